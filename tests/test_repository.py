"""The repository in order: notebooks equal modules and are clean, references resolve, the wheel is whole."""
import ast
import configparser
import copy
import functools
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import book_refs as refs  # noqa: E402
import make_book  # noqa: E402
import write_exercises  # noqa: E402
import write_readme  # noqa: E402

from semseg_course.profiles import declared_parameters, parse_value  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
TWINS = [p for p in NOTEBOOKS if p.parent == ROOT / "nbs/tf"]
CHAPTERS = [p for p in NOTEBOOKS if p.parent == ROOT / "nbs"] + TWINS
NAMES = {p: p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in NOTEBOOKS}
ADDRESS = make_book.repository()
INSTALL = f'''#| include: false
try:
    import semseg_course  # noqa: F401
except ImportError:
    %pip install -q "semseg-course[nbs] @ git+{ADDRESS}"'''

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES.get)
each_twin = pytest.mark.parametrize("path", TWINS, ids=NAMES.get)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=NAMES.get)


@functools.cache
def read(path):
    return nbformat.reads(path.read_text(encoding="utf-8"), 4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@functools.cache
def exported_module(path):
    "data.labels, from `#| default_exp: data.labels`; None for a notebook that exports nothing."
    options = [refs.directives(c.source) for c in code_cells(path)]
    found = [o["default_exp"] for o in options if "default_exp" in o]
    assert len(found) <= 1, f"{path.name} has {len(found)} default_exp cells"
    return found[0] if found else None


@functools.cache
def modules():
    "Module -> notebook."
    return {exported_module(path): path for path in NOTEBOOKS if exported_module(path)}


def texts():
    "Every page of the book that is Markdown: name -> list of Markdown texts."
    pages = {NAMES[p]: [c.source for c in read(p).cells if c.cell_type == "markdown"]
             + [refs.directives(c.source).get("fig-cap", "") for c in code_cells(p)] for p in NOTEBOOKS}
    return pages | {p.name: [p.read_text(encoding="utf-8")] for p in ROOT.glob("*.qmd")}


# Notebooks and package

def test_modules_equal_what_the_notebooks_export(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for init in (ROOT / "semseg_course").rglob("__init__.py"):
        target = tmp_path / init.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(init, target)
    code = ("from nbdev.export import nb_export\nimport sys\n"
            "for path in sys.argv[1:]: nb_export(path, lib_path='semseg_course')")
    names = [str(p.relative_to(ROOT)) for p in NOTEBOOKS]
    subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, check=True, capture_output=True, text=True)
    differ = []
    for module in modules():
        file = f"semseg_course/{module.replace('.', '/')}.py"
        ours = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else None
        if ours != (tmp_path / file).read_text(encoding="utf-8"): differ.append(file)
    assert not differ, f"edit the notebook and run nbdev-export; these differ from what the notebooks export: {differ}"


def test_every_module_belongs_to_exactly_one_notebook():
    claimed = [exported_module(path) for path in NOTEBOOKS if exported_module(path)]
    assert len(claimed) == len(set(claimed)), f"two notebooks export one module: {sorted(claimed)}"
    written = {p.relative_to(ROOT / "semseg_course").with_suffix("").as_posix().replace("/", ".")
               for p in (ROOT / "semseg_course").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")}
    assert written == set(claimed), f"modules without a notebook, or notebooks without a module: {written ^ set(claimed)}"


def imports(source):
    "Names of our modules that a piece of Python imports, anywhere in it."
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom): names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        found |= {name.removeprefix("semseg_course.") for name in names if name.startswith("semseg_course.")}
    return found & set(modules())


def plain(source):
    "A cell without its magics."
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


@each_chapter
def test_a_chapter_imports_only_from_chapters_before_it(path):
    order = {module: NAMES[notebook] for module, notebook in modules().items()}
    # The line above a chapter's stubs is generated, and check is explained in 00b, after the chapter that runs the chapters.
    generated = "from semseg_course.exercises import check"
    used = set().union(*(imports(plain(c.source)) for c in code_cells(path) if c.source != generated))
    late = {m: order[m] for m in used if order[m] > NAMES[path] or order[m].startswith("solutions/")}
    assert not late, f"{path.name} imports from chapters that come later: {late}"


def test_the_import_graph_has_no_cycle():
    graph = {module: imports((ROOT / f"semseg_course/{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
             for module in modules()}
    state = {}

    def visit(module, trail):
        assert state.get(module) != "open", " -> ".join([*trail, module])
        if module in state: return
        state[module] = "open"
        for other in graph[module] - {module}: visit(other, [*trail, module])
        state[module] = "done"

    for module in graph: visit(module, [])


def test_ruff():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


# Notebooks

@each_notebook
def test_notebook_is_clean(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert raw["metadata"]["kernelspec"]["name"] == "python3" and raw["metadata"]["kernelspec"]["language"] == "python"
    assert set(raw["metadata"]) <= {"kernelspec", "language_info", "accelerator", "colab"}
    ids = [cell.get("id") for cell in raw["cells"]]
    assert all(ids) and len(ids) == len(set(ids)), "every cell keeps an id of its own"
    for cell in raw["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, cell["metadata"]
        if cell["cell_type"] == "code": assert not cell["outputs"] and cell["execution_count"] is None, "run nbdev-clean"
    nbformat.validate(read(path))


@each_notebook
def test_directives_are_name_and_value(path):
    for cell in code_cells(path):
        for line in cell.source.splitlines():
            if line.startswith("#|"): assert re.fullmatch(r"#\| [a-z_-]+: \S.*", line), f"{path.name}: {line!r}"


@each_chapter
def test_chapter_begins_as_agreed(path):
    cells = read(path).cells
    name = "tf-" * (path in TWINS) + re.sub(r"^\d+[a-z]?_", "", path.stem).replace("_", "-")
    assert re.match(rf"# .+ \{{#sec-{name}\}}\n", cells[0].source + "\n"), f"the title of {path.name} wants {{#sec-{name}}}"
    assert re.search(r"^> .+", cells[0].source, re.M), "the question the chapter answers, behind >"
    assert [c.source for c in cells if "%pip" in c.source] == [INSTALL.replace("[nbs]", "[nbs,tf]") if path in TWINS else INSTALL]
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r"\w+: [^=]+ = .+?  # .+", line), f"a parameter with type and unit: {line!r}"


@each_notebook
def test_every_figure_has_a_caption_and_alt_text(path):
    for cell in code_cells(path):
        options = refs.directives(cell.source)
        if options.get("label", "").startswith("fig-") or "fig-cap" in options:
            assert options.get("fig-cap") and options.get("fig-alt"), f"{path.name}: {options}"
    for cell in read(path).cells:
        if cell.cell_type != "markdown": continue
        for alt, target, given in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)(\{[^}]*\})?", refs.without_code(cell.source)):
            assert alt or "fig-alt=" in given, f"{path.name}: {target} has no alt text"
            assert (path.parent / target).is_file(), f"{path.name}: {target} is not there"


@each_twin
def test_a_twin_and_its_chapter_link_each_other(path):
    section = re.sub(r"^\d+[a-z]?_", "", path.stem).replace("_", "-")
    opening = read(path).cells[0].source
    assert "NHWC" in "".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    original = ROOT / "nbs" / path.name
    if not original.is_file(): return  # what only TensorFlow needs, such as copying weights
    assert f"@sec-{section}" in opening
    assert f"@sec-tf-{section}" in read(original).cells[0].source, f"{path.name}: no link from the PyTorch chapter"


def settings():
    parser = configparser.ConfigParser(inline_comment_prefixes="#")
    parser.read(ROOT / "settings.ini")
    return {name: {key: parse_value(text) for key, text in parser[name].items()} for name in parser.sections()}


def test_profiles_name_known_chapters_and_parameters():
    for section, values in settings().items():
        profile, _, chapter = section.partition(".")
        assert profile in ("smoke", "colab", "paper"), section
        if not chapter: continue
        assert chapter in NAMES.values(), f"[{section}]: no such chapter"
        unknown = set(values) - set(declared_parameters(ROOT / "nbs" / f"{chapter}.ipynb"))
        assert not unknown, f"[{section}] sets what the chapter does not have: {unknown}"


@each_chapter
def test_parameters_cell_stands_at_the_colab_profile(path):
    declared = {name: parse_value(text) for name, text in declared_parameters(path).items()}
    wanted = {k: v for k, v in settings()["colab"].items() if k in declared} | settings().get(f"colab.{NAMES[path]}", {})
    assert {name: declared[name] for name in wanted} == wanted


@each_chapter
def test_exercises_equal_their_source(path):
    module = re.sub(r"^\d+[a-z]?_", "", path.stem)
    if path in TWINS or not (ROOT / "nbs/solutions" / path.name).is_file():
        checks = [c.source for c in code_cells(path) if c.id.startswith("exr-")]
        assert not checks, f"{path.name} has exercises that are checked and no page of solutions"
        return
    ours = [(c.id, c.cell_type, c.source) for c in read(path).cells]
    made = [(c.id, c.cell_type, c.source) for c in write_exercises.with_exercises(copy.deepcopy(read(path)), module).cells]
    assert ours == made, "run python tools/write_exercises.py"


# References

def test_every_label_is_there_once_and_every_reference_resolves():
    pages = {f"nbs/{NAMES[p]}": [(c.cell_type, c.source) for c in read(p).cells] for p in NOTEBOOKS}
    pages |= {p.stem: [("markdown", p.read_text(encoding="utf-8"))] for p in ROOT.glob("*.qmd")}
    found = [label.name for page, cells in pages.items() for label in refs.labels_in(page, cells)]
    assert len(found) == len(set(found)), f"twice: {sorted({n for n in found if found.count(n) > 1})}"
    known = set(found) | {"sec-results", "sec-api"}  # the generated pages
    lost = {page: sorted(missing) for page, parts in texts().items()
            if (missing := set().union(*map(refs.references_in, parts)) - known)}
    assert not lost, f"references to nothing: {lost}"


def test_every_citation_has_its_entry_and_every_entry_is_cited():
    entries = refs.read_bibliography(ROOT / "references.bib")
    cited = {page: set().union(*map(refs.citations_in, parts)) for page, parts in texts().items()}
    lost = {page: sorted(keys - set(entries)) for page, keys in cited.items() if keys - set(entries)}
    assert not lost, f"cited and not in references.bib: {lost}"
    unused = sorted(set(entries) - set().union(*cited.values()))
    assert not unused, f"in references.bib and cited nowhere: {unused}"


def test_bibliography_entries_are_whole():
    for key, entry in refs.read_bibliography(ROOT / "references.bib").items():
        assert re.fullmatch(r"[a-z]+\d{4}[a-z]+", key), f"{key}: first author, year, a word"
        assert entry.kind in refs.REQUIRED, f"{key} is @{entry.kind}; known are {sorted(refs.REQUIRED)}"
        missing = refs.REQUIRED[entry.kind] - set(entry.fields)
        assert not missing, f"{key} lacks {missing}"
        surname = unicodedata.normalize("NFKD", entry.surnames[0].lower())
        assert key.startswith(re.sub(r"[^a-z]", "", surname)[:4]) and entry.fields["year"] in key, key


def test_bibliography_reader_says_what_is_wrong(tmp_path):
    path = tmp_path / "references.bib"
    for text, words in (("@book{a, title={x}}\n@book{a, title={y}}", "a is there twice"),
                        ("@book{a, title={x", "do not close"), ("@book{a", "expected @kind{key")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words): refs.read_bibliography(path)
    path.write_text("@article{doe2020x, title = {The {CRF}}, author = {Doll\\'{a}r, Piotr and Roe, Jane}, "
                    'year = 2020, pages="1--2"}')
    entry = refs.read_bibliography(path)["doe2020x"]
    assert entry.short == "Dollár and Roe" and entry.fields == {
        "title": "The CRF", "author": "Dollár, Piotr and Roe, Jane", "year": "2020", "pages": "1–2"}


@pytest.mark.parametrize("path", sorted((ROOT / "images").glob("*.svg")), ids=lambda p: p.name)
def test_drawing_has_a_title(path):
    root = ElementTree.parse(path).getroot()
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text.strip() and root.get("viewBox")
    assert re.match(r"\d+[a-z]?_", path.name), "numbered like the chapter that shows it"
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text(encoding="utf-8"))
    assert "http" not in rest, "nothing is loaded from elsewhere"


# Packaging

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy of what git would keep."
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("semseg_course", "results"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_and_data_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".py", ".txt", ".safetensors")
    files = [p for p in (ROOT / "semseg_course").rglob("*") if p.suffix in kinds and p.name != "_modidx.py"]
    missing = {p.relative_to(ROOT).as_posix() for p in files} - inside
    assert not missing
    metadata = zipfile.ZipFile(wheel).read(next(n for n in inside if n.endswith(".dist-info/METADATA"))).decode()
    assert f"Repository, {ADDRESS}" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_wheel_brings_the_results_that_chapters_read(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    brought = {Path(n).name for n in names if n.endswith(".json") and "share/semseg_course/results/" in n}
    assert brought == {p.name for p in (ROOT / "results").glob("*.json")} and brought


def test_bare_install_imports_fast_and_loads_nothing_heavy(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); start = time.perf_counter(); import semseg_course; "
            "seconds = time.perf_counter() - start; assert semseg_course.__file__.startswith(sys.argv[1]); "
            "print(seconds, *({'torch', 'tensorflow', 'numpy', 'matplotlib'} & set(sys.modules)))")
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(7)]
    assert not any(loaded for _, *loaded in runs), f"import semseg_course loads {runs[0][1:]}"
    assert statistics.median(float(seconds) for seconds, *_ in runs) < 0.1


def project():
    with open(ROOT / "pyproject.toml", "rb") as file: return make_book.tomllib.load(file)["project"]


def test_constraints_hold_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.match(r"[\w.-]+", line)[0] for line in lines if line and not line.startswith("#")}
    exact = re.compile(r"[\w.-]+==[\w.]+(; python_full_version >= .*)?$")
    assert all(exact.match(line) for line in lines if not line.startswith("#"))
    extras = project()["optional-dependencies"]
    wishes = project()["dependencies"] + extras["nbs"] + extras["dev"]
    wanted = [wish for wish in wishes if ";" not in wish or "== 'linux'" in wish]  # where the constraints were written
    missing = {re.match(r"[\w.-]+", wish)[0].lower() for wish in wanted} - pinned
    assert not missing, f"run python tools/write_constraints.py: {missing}"
    assert all(re.fullmatch(r"[\w.\[\]-]+>=[\d.]+(; .+)?", wish) for wish in wishes), "lower bounds only"


# Texts at the top

README = ROOT / "README.md"


def test_links_to_files_exist():
    for path in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        text = refs.without_code(path.read_text(encoding="utf-8"))
        targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
        lost = [t for t in targets if not t.startswith(("http:", "https:", "mailto:")) and not (ROOT / t).exists()]
        assert not lost, f"{path.name} links to nothing: {lost}"


def test_readme_map_names_every_chapter_and_module():
    rows = re.findall(r"^\|.*\]\((nbs/[^)]+)\) *\|([^|]*)\|", README.read_text(encoding="utf-8"), re.M)
    shown = {name: set(re.findall(r"`([\w.]+)`", names)) for name, names in rows}
    real = {f"nbs/{NAMES[path]}.ipynb": {exported_module(path)} - {None} for path in CHAPTERS}
    assert shown == real


def test_readme_badges_and_map_are_as_written_by_the_tool():
    text = README.read_text(encoding="utf-8")
    assert text == write_readme.written(text), "run python tools/write_readme.py"


def test_readme_example_runs():
    examples = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(examples) == 1 and 5 <= len(examples[0].splitlines()) <= 12
    run = subprocess.run([sys.executable, "-c", examples[0]], cwd=ROOT, capture_output=True, text=True,
                         env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr


def test_the_address_is_the_one_of_pyproject():
    owner, name = ADDRESS.removeprefix("https://github.com/").split("/")
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.qmd"), *ROOT.glob("*.cff"), *NOTEBOOKS, *(ROOT / ".github").rglob("*.yml"),
             *(ROOT / "tools").glob("*.py"), *(ROOT / "styles").iterdir()]
    for path in files:
        text = path.read_text(encoding="utf-8")
        for found in re.findall(r"(?:github\.com|github\.com/github|/github)/([\w-]+)/([\w-]+)", text):
            if "semseg" in found[0] + found[1]: assert found == (owner, name), f"{path.name}: {'/'.join(found)}"
        for host, folder in re.findall(r"([\w-]+)\.github\.io(?:/([\w-]+))?", text):
            if "semseg" in host + folder: assert (host, folder) == (owner, name), f"{path.name}: {host}.github.io/{folder}"


def test_versions_agree():
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "semseg_course/__init__.py").read_text())[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert citation["repository-code"] == ADDRESS
    assert re.search(rf"^## {re.escape(version)}", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_licence_is_the_whole_apache_licence():
    words = " ".join((ROOT / "LICENSE").read_text().split())
    assert hashlib.sha256(words.encode()).hexdigest() == "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645"


# Commands and workflows

def make_targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflow_calls_what_there_is(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["name"] and workflow["jobs"] and workflow[True] and "permissions" in workflow  # YAML reads `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["steps"] and job["timeout-minutes"]
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        assert set(re.findall(r"\bmake ([a-z]+)", commands)) <= make_targets()
        for file in re.findall(r"\b((?:tools|tests|\.ci)/[\w./-]+)", commands): assert (ROOT / file).exists(), file
        assert all(re.search(r"@v\d+$", step["uses"]) for step in job["steps"] if "uses" in step)


def test_workflows_are_the_three():
    assert {p.name for p in (ROOT / ".github/workflows").glob("*.yml")} == {"test.yml", "book.yml", "colab.yml"}


def test_ci_runs_the_readme_test_command():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "\nexec make test\n" in script.read_text()
    assert re.search(r"^make test\b", README.read_text(encoding="utf-8"), re.M)
    assert {"book", "test"} <= make_targets()
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    listed = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0 and "pytest" in listed.stdout, listed.stderr
