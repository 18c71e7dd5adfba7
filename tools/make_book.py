"""Make the book in _docs/ from the executed chapters in _runs/PROFILE/.

    python tools/make_book.py --profile smoke               # with Quarto where it is installed, else our own pages
    python tools/make_book.py --profile smoke --pages       # our own pages in any case
    python tools/make_book.py --profile smoke --list-stale  # only names the chapters that must run again

Every address in the book is derived from [project.urls] Repository in pyproject.toml.
"""
import argparse
import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import book_api
import book_pages
import book_refs as refs
import nbformat
import yaml

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
GET_QUARTO = "https://quarto.org/docs/get-started/"


# What the book consists of

def repository(root: Path = ROOT) -> str:
    "The address that every link, button and badge is derived from."
    with open(root / "pyproject.toml", "rb") as file: return tomllib.load(file)["project"]["urls"]["Repository"]


def colab_address(page: str, root: Path = ROOT) -> str:
    "Where a notebook of the repository opens in Colab."
    opened = repository(root).replace("https://github.com/", "https://colab.research.google.com/github/")
    return f"{opened}/blob/main/{page}.ipynb"


def configuration(root: Path = ROOT) -> dict:
    "_quarto.yml."
    return yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))


def contents(root: Path = ROOT) -> list[tuple[str, str]]:
    "(part, file) of everything that _quarto.yml names, in reading order."
    book, found = configuration(root)["book"], []
    for item in book["chapters"]:
        if isinstance(item, str): found.append(("", item))
        else: found += [(item["part"], file) for file in item["chapters"]]
    appendices = book.get("appendices", [])
    return found + [("Solutions" if "/solutions/" in file else "Reference", file) for file in appendices]


def fresh(name: str, runs: Path, root: Path = ROOT) -> bool:
    "Whether the executed copy of a chapter is younger than its notebook, the package, the profiles and the results."
    executed, summary = runs / f"{name}.ipynb", runs / "summary.json"
    if not executed.is_file() or not summary.is_file(): return False
    if not json.loads(summary.read_text())["chapters"].get(name, {}).get("ok"): return False
    sources = [root / "nbs" / f"{name}.ipynb", root / "settings.ini", *(root / "semseg_course").rglob("*.py"),
               *(root / "results").glob("*.json")]
    return all(source.stat().st_mtime <= executed.stat().st_mtime for source in sources)


# Executed copies

def merged(notebook):
    "A copy in which the values that papermill injected stand in the parameters cell, and its own cells are gone."
    notebook = copy.deepcopy(notebook)
    notebook.cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    if (injected := tagged.get("injected-parameters")) is None: return notebook
    values = {node.targets[0].id: ast.unparse(node.value) for node in ast.parse(injected.source).body
              if isinstance(node, ast.Assign)}
    if "parameters" in tagged: tagged["parameters"].source = with_values(tagged["parameters"].source, values)
    notebook.cells.remove(injected)
    return notebook


def without_doubled_words(notebook):
    "`notebook` with `Exercise @exr-x` as `@exr-x`: the reference brings its word along."
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\b(?:Exercise|Figure|Table|Equation)\s+(?=@(?:exr|fig|tbl|eq)-)", "", cell.source)
    return notebook


def folded(notebook):
    "`notebook` with its cells that only import folded away under the word Imports."
    for cell in notebook.cells:
        code = refs.body(cell.source) if cell.cell_type == "code" else ""
        if code.lstrip().startswith(("%", "!")) or "code-fold" in refs.directives(cell.source): continue
        try: nodes = ast.parse(code).body
        except SyntaxError: continue
        if nodes and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes) and not cell.get("outputs"):
            cell.source = f'#| code-fold: true\n#| code-summary: "Imports"\n{cell.source}'
    return notebook


def with_values(source: str, values: dict[str, str]) -> str:
    "A parameters cell with other values, types and comments kept."
    lines = source.splitlines()
    for node in ast.parse(source).body:
        name = getattr(getattr(node, "target", None) or getattr(node, "targets", [None])[0], "id", None)
        if name not in values: continue
        start, end = node.value.col_offset, lines[node.end_lineno - 1][node.value.end_col_offset:]
        lines[node.lineno - 1:node.end_lineno] = [lines[node.lineno - 1][:start] + values[name] + end]
        if len(lines) != len(source.splitlines()): return with_values("\n".join(lines), values)  # a long value before
    return "\n".join(lines)


def verified(name: str, summary: dict) -> str:
    "Last verified 2026-03-01 with Python 3.11.7 and torch 2.13.0; profile smoke: 4 s, 300 MiB."
    record = summary.get("chapters", {}).get(name)
    if not record: return ""
    versions = record.get("versions", {})
    shown = [f"{title} {versions[key].split('+')[0]}" for key, title in (("python", "Python"), ("torch", "PyTorch"))
             if versions.get(key)]
    memory = f", {record['peak_memory_mib']:.0f} MiB" if record.get("peak_memory_mib") else ""
    state = "Last verified" if record["ok"] else "Stopped with an error"
    return (f"{state} {record['date'][:10]} with {' and '.join(shown)}; profile {summary['profile']}: "
            f"{record['seconds']:.0f} s{memory}.")


def banner(page: str, name: str, summary: dict, root: Path = ROOT) -> dict:
    "The links under a chapter's title. A page of solutions installs nothing, so it is not offered to Colab."
    return dict(colab=None if name.startswith("solutions/") else colab_address(page, root),
                notebook=f"{repository(root)}/blob/main/{page}.ipynb", verified=verified(name, summary))


@dataclass
class Book:
    "Everything that goes into the book, before it is written in one form or the other."
    root: Path
    runs: Path  # executed notebooks and summary.json
    notebooks: dict  # nbs/02_metrics -> executed notebook
    texts: dict[str, str]  # index -> Markdown
    banners: dict[str, dict]
    missing: list[str]  # chapters without an executed copy


def collect(runs: Path, root: Path = ROOT, only: list[str] | None = None) -> Book:
    "Read the executed chapters and make the generated pages; `only` some chapters in tests."
    summary = json.loads((runs / "summary.json").read_text()) if (runs / "summary.json").is_file() else {}
    book = Book(root, runs, {}, {}, {}, [])
    for _, file in contents(root):
        page, name = file.rsplit(".", 1)[0], file.rsplit(".", 1)[0].removeprefix("nbs/")
        if not file.endswith(".ipynb") or (only is not None and name not in only): continue
        if not (runs / f"{name}.ipynb").is_file(): book.missing.append(name); continue
        executed = merged(nbformat.read(runs / f"{name}.ipynb", 4))
        book.notebooks[page] = without_doubled_words(folded(executed))
        book.banners[page] = banner(page, name, summary, root)
    book.texts = {"index": front_page(book), "references": (root / "references.qmd").read_text(encoding="utf-8"),
                  "api": book_api.api_markdown(root / "semseg_course", modules(root)),
                  "results": book_api.results_markdown(root / "results")}
    return book


def chapter_files(root: Path = ROOT) -> list[Path]:
    "The notebooks of the chapters in reading order, the TensorFlow twins after them."
    return [*sorted((root / "nbs").glob("*.ipynb")), *sorted((root / "nbs/tf").glob("*.ipynb"))]


def page_of(path: Path, root: Path = ROOT) -> str:
    "nbs/tf/09_fcn for the notebook of that name."
    return path.relative_to(root).with_suffix("").as_posix()


def first_cell(notebook) -> str: return notebook.cells[0].source


def modules(root: Path) -> dict[str, tuple[str, str]]:
    "metrics -> (nbs/02_metrics, Metrics): the module each chapter exports, in reading order."
    found = {}
    for path in chapter_files(root):
        notebook = nbformat.read(path, 4)
        names = [refs.directives(c.source)["default_exp"] for c in notebook.cells
                 if c.cell_type == "code" and "default_exp" in refs.directives(c.source)]
        for name in names: found[name] = (page_of(path, root), book_pages.opening(first_cell(notebook))[0])
    return found


def front_page(book: Book) -> str:
    "index.qmd with the list of chapters and their questions in place of its mark."
    lines, last = [], None
    for part, file in contents(book.root):
        page = file.rsplit(".", 1)[0]
        if page not in book.notebooks or "/solutions/" in page: continue
        if part != last: lines += ["", f"### {part}", ""]
        title, question = book_pages.opening(first_cell(book.notebooks[page]))
        lines.append(f"- [**{title}**]({file}) {question}")
        last = part
    return (book.root / "index.qmd").read_text(encoding="utf-8").replace(
        "<!-- chapters -->", "\n".join(["::: {.contents}", *lines, ":::"]))


# Our own pages

def own_pages(book: Book, output: Path) -> list[str]:
    "Write the book as plain HTML into `output`, which is replaced; return what could not be resolved."
    pages = []
    for part, file in contents(book.root):
        name = file.rsplit(".", 1)[0]
        if name in book.notebooks:
            cells = [(c.cell_type, c.source, c.get("outputs", [])) for c in book.notebooks[name].cells]
        elif name in book.texts: cells = [("markdown", front_matter_away(book.texts[name]), [])]
        else: continue
        title, question = book_pages.opening(cells[0][1])
        pages.append(book_pages.Page(name, part, title, question, cells, book.banners.get(name, {})))
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    problems = book_pages.build(pages, refs.read_bibliography(book.root / "references.bib"), book.root / "images", part,
                                configuration(book.root)["book"]["title"], repository(book.root))
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)
    return problems


def front_matter_away(text: str) -> str: return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)


# Quarto

def quarto_folder(book: Book, folder: Path):
    "Lay out what Quarto renders: its configuration with the address, texts, styles, pictures, executed chapters."
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("images", "styles"):
        if (book.root / name).is_dir(): shutil.copytree(book.root / name, folder / name)
    labels = all_labels(book)
    for page, notebook in book.notebooks.items():
        notebook = copy.deepcopy(notebook)
        notebook.cells[0].source = with_banner(notebook.cells[0].source, book.banners[page])
        for cell in notebook.cells:
            if cell.cell_type == "markdown": cell.source = linked_sections(cell.source, page, labels)
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / f"{page}.ipynb")
    for name, text in book.texts.items():
        (folder / f"{name}.qmd").write_text(linked_sections(text, name, labels), encoding="utf-8")
    shutil.copy(book.root / "references.bib", folder)
    (folder / "_quarto.yml").write_text(yaml.safe_dump(quarto_configuration(book), sort_keys=False, allow_unicode=True))


def all_labels(book: Book) -> dict:
    "Every label of the chapters and texts."
    pages = {name: [(c.cell_type, c.source) for c in notebook.cells] for name, notebook in book.notebooks.items()}
    pages |= {name: [("markdown", text)] for name, text in book.texts.items()}
    return {label.name: label for page, cells in pages.items() for label in refs.labels_in(page, cells)}


def quarto_configuration(book: Book) -> dict:
    "_quarto.yml with the address filled in and without chapters that have not run."
    config = configuration(book.root)
    config["book"]["repo-url"] = repository(book.root)
    gone = {f"nbs/{name}.ipynb" for name in book.missing}
    chapters = [item if isinstance(item, str) else item | {"chapters": [f for f in item["chapters"] if f not in gone]}
                for item in config["book"]["chapters"]]
    config["book"]["chapters"] = [item for item in chapters if isinstance(item, str) or item["chapters"]]
    config["book"]["appendices"] = [f for f in config["book"].get("appendices", []) if f not in gone]
    return config


def with_banner(source: str, links: dict) -> str:
    "The chapter's first cell with its links under the title, in Quarto's Markdown."
    names = (("colab", "Open in Colab"), ("notebook", "Notebook"))
    shown = [f"[{text}]({links[key]}){{.chapter-button}}" for key, text in names if links.get(key)]
    if links.get("verified"): shown.append(f"[{links['verified']}]{{.chapter-verified}}")
    title, _, rest = source.partition("\n")
    return f"{title}\n\n::: {{.chapter-links}}\n{' '.join(shown)}\n:::\n{rest}"


def linked_sections(text: str, page: str, labels: dict) -> str:
    "@sec-x as a link with the section's title: our chapters have no numbers that would differ from their files'."
    def link(match):
        label = labels.get(match[1])
        if not label or not label.name.startswith("sec-"): return match[0]
        ending = ".ipynb" if label.page.startswith("nbs/") else ".qmd"
        target = os.path.relpath(label.page, Path(page).parent).replace(os.sep, "/") + ending
        return f"[{label.title}]({'' if label.page == page else target}#{label.name})"
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else refs.REFERENCE.sub(link, part) for i, part in enumerate(parts))


def quarto_pages(book: Book, output: Path) -> bool:
    "Render with Quarto; False where it fails, its own words having been shown."
    folder = book.root / "_proc"
    quarto_folder(book, folder)
    environment = os.environ | {"QUARTO_PYTHON": sys.executable}
    if subprocess.run(["quarto", "render", str(folder), "--to", "html"], env=environment).returncode: return False
    shutil.rmtree(output, ignore_errors=True)
    shutil.move(folder / configuration(book.root)["project"]["output-dir"], output)
    return True


# The command

def main() -> int:
    parser = argparse.ArgumentParser(description="Make the book from the executed chapters.")
    parser.add_argument("--profile", default="smoke", help="which executed copies to take (default: smoke)")
    parser.add_argument("--output", type=Path, default=ROOT / "_docs", help="where the pages go (default: _docs)")
    parser.add_argument("--pages", action="store_true", help="our own pages even where Quarto is installed")
    parser.add_argument("--list-stale", action="store_true", help="only print the chapters that must run again")
    options = parser.parse_args()
    runs = ROOT / "_runs" / options.profile
    if options.list_stale:
        names = [file[4:-6] for _, file in contents() if file.endswith(".ipynb") and (ROOT / file).is_file()]
        print("\n".join(name for name in names if not fresh(name, runs)))
        return 0
    return write(collect(runs), options.output.resolve(), options.pages)


def write(book: Book, output: Path, pages: bool) -> int:
    "Make the book in the form that is possible here; the last line says where it is."
    status, quarto = 0, shutil.which("quarto")
    for name in book.missing: print(f"left out, since it has not run: {name}")
    if quarto and not pages:
        status = 0 if quarto_pages(book, output) else 1
        if status: print("Quarto stopped with an error, shown above; what follows are the course's own pages.")
    elif not pages: print(f"Quarto is not installed, so these are the course's own pages; to get it: {GET_QUARTO}")
    if not quarto or pages or status:
        for problem in own_pages(book, output): print(f"not resolved: {problem}")
    print(f"The book: {(output / 'index.html').as_uri()}")
    return status


if __name__ == "__main__": sys.exit(main())
