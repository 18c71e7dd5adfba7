"""The book: its configuration, what is made of an executed notebook, and its pages in a browser."""
import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import book_api  # noqa: E402
import book_refs as refs  # noqa: E402
import make_book  # noqa: E402
from book_markdown import Writer, attributes, split_divs  # noqa: E402

from semseg_course.profiles import chapter_names, run_chapter  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: the pages are not opened")


# A small course to make books from

def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (320, 120), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture(colour="#804080"):
    return new_output("display_data", data={"image/png": png(colour), "text/plain": "<Figure size 640x480 with 1 Axes>"})


FIRST = [
    new_markdown_cell("# First steps {#sec-first}\n\n> What is a pixel?\n\nSince [@long2015fcn; @brostow2009camvid, page 3], and "
                      "@long2015fcn says so. Mail a@b.c is no citation, `@code` neither."),
    new_code_cell("#| default_exp: first"),
    new_code_cell("#| include: false\nhidden = 1"),
    new_code_cell("import os\nimport sys"),
    new_code_cell("seed: int = 0  # seed\nsteps: int = 400  # steps", metadata={"tags": ["parameters"]}),
    new_code_cell("# Parameters\nsteps = 3\n", metadata={"tags": ["injected-parameters"]}),
    new_markdown_cell("## The picture\n\nLook at @fig-first-look and @eq-first-sum, then do @exr-first-add in @sec-second.\n\n"
                      "$$ \\sum_{i=1}^{n} \\frac{x_i}{\\sqrt{n}} $$ {#eq-first-sum}\n\nInline $x^2$, and a price of $5 or $6.\n\n"
                      "| class | IoU |\n|---|---|\n| Sky | 0.9 |\n\n![A drawing](../images/00_banner.svg){fig-alt=\"A street\"}"),
    new_code_cell('#| label: fig-first-look\n#| fig-cap: "A plain $x$ card."\n#| fig-alt: "One colour everywhere."\nshow(image)',
                  outputs=[new_output("stream", name="stdout", text="  10%|#\r 100%|###\nwords <b>\n"), picture()]),
    new_code_cell("#| echo: false\n1 + 1", outputs=[new_output("execute_result", data={"text/plain": "2"}, execution_count=1)]),
    new_code_cell("#| code-fold: true\nfold_me = 1"),
    new_code_cell("a_long_line = " + " + ".join(f"term_{i}" for i in range(40))),
    new_markdown_cell("## Exercises\n\nThe solutions are elsewhere."),
    new_markdown_cell('::: {#exr-first-add}\n## Addition\n\nAdd **two** numbers.\n:::\n\n'
                      '::: {.callout-tip collapse="true" title="Hint"}\nUse `+`.\n\n```python\n# ::: not a div\n```\n:::'),
    new_code_cell("def add(a, b):\n    ..."),
]
SECOND = [new_markdown_cell("# Second steps {#sec-second}\n\n> And then?\n\nBack to @sec-first. Exercise @exr-first-add.\n\n"
                            "::: {.callout-warning}\n## Careful\nText.\n:::\n\n- one\n- two"),
          new_code_cell("1 / 0", outputs=[new_output("error", ename="ZeroDivisionError", evalue="division by zero",
                                                     traceback=["\x1b[31mZeroDivisionError\x1b[0m: division by zero"])])]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    "A clone with two chapters that have run."
    root = tmp_path_factory.mktemp("course")
    for name in ("pyproject.toml", "index.qmd", "references.qmd", "references.bib"): shutil.copy(ROOT / name, root)
    for name in ("styles", "images", "results"): shutil.copytree(ROOT / name, root / name)
    (root / "semseg_course").mkdir()
    (root / "semseg_course/first.py").write_text(
        '__all__ = ["SIZE", "Thing", "add"]\nSIZE = 3  # edge in pixels\n\n\nclass Thing:\n    "A thing."\n'
        '    def go(self, far: int = 1):  # steps\n        "Go on."\n\n\n'
        'def add(\n    a: int,  # one | number\n    b: int = 2,\n) -> int:  # their sum'
        '\n    """Add two numbers.\n\n    Units: none.\n    """\n    return a + b\n\n\ndef _hidden(): pass\n')
    config = make_book.configuration()
    config["book"]["chapters"] = ["index.qmd", {"part": "Ground", "chapters": ["nbs/01_first.ipynb", "nbs/02_second.ipynb"]}]
    config["book"]["appendices"] = ["results.qmd", "api.qmd", "references.qmd"]
    (root / "_quarto.yml").write_text(yaml.safe_dump(config))
    runs, chapters = root / "_runs/smoke", {"01_first": FIRST, "02_second": SECOND}
    for folder in (runs, root / "nbs"):
        folder.mkdir(parents=True)
        for name, cells in chapters.items(): nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    record = dict(ok=True, seconds=2.4, peak_memory_mib=101.0, date="2026-03-01T10:00:00",
                  versions={"python": "3.11.7", "torch": "2.13.0+cpu"})
    (runs / "summary.json").write_text(json.dumps(dict(profile="smoke", chapters={"01_first": record, "02_second": record})))
    return root


@pytest.fixture(scope="module")
def book(course):
    return make_book.collect(course / "_runs/smoke", course)


@pytest.fixture(scope="module")
def pages(book):
    "The small book as our own pages."
    output = book.root / "_docs"
    assert make_book.own_pages(book, output) == []
    return output


# Configuration

def test_configuration_names_every_notebook_once_in_reading_order():
    files = [file for _, file in make_book.contents()]
    named = [file for file in files if file.endswith(".ipynb")]
    real = [p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert sorted(named) == sorted(real), f"differ: {set(named) ^ set(real)}"
    for kind in (False, True):
        order = [file for file in named if ("solutions/" in file) == kind]
        assert order == sorted(order)
    for file in files:
        if file.endswith(".qmd") and file not in ("api.qmd", "results.qmd"): assert (ROOT / file).is_file()
    assert files[0] == "index.qmd" and "references.qmd" in files


def test_configuration_says_what_the_book_needs():
    config = make_book.configuration()
    assert config["project"] == {"type": "book", "output-dir": "_docs"} and config["execute"] == {"enabled": False}
    html = config["format"]["html"]
    assert set(html["theme"]) == {"light", "dark"} and html["code-copy"] and config["book"]["search"]
    assert config["bibliography"] == "references.bib" and (ROOT / "references.bib").is_file()
    for themes in html["theme"].values():
        assert all((ROOT / t).is_file() for t in themes if t.endswith(".scss"))
    assert "repo-url" not in config["book"], "the address stands in pyproject.toml and is filled in"


# From an executed notebook

def test_injected_values_move_into_the_parameters_cell():
    notebook = make_book.merged(new_notebook(cells=FIRST))
    sources = [c.source for c in notebook.cells]
    assert "seed: int = 0  # seed\nsteps: int = 3  # steps" in sources and not any(s.startswith("# Parameters") for s in sources)
    assert FIRST[4].source.endswith("400  # steps"), "the notebook that was read is left alone"


def test_the_cells_that_papermill_adds_to_a_failed_chapter_are_gone():
    cells = [new_markdown_cell("An Exception was encountered", metadata={"tags": ["papermill-error-cell-tag"]}), *FIRST]
    assert make_book.merged(new_notebook(cells=cells)).cells[0].source == FIRST[0].source


def test_values_replace_values_of_any_shape():
    source = "a: int = 1  # one\nb: tuple = (\n    1,\n    2,\n)  # two\nc = 'x'  # three"
    expected = "a: int = 1  # one\nb: tuple = (3, 4)  # two\nc = 'y'  # three"
    assert make_book.with_values(source, {"b": "(3, 4)", "c": "'y'"}) == expected


def test_verified_line_comes_from_the_record(book):
    line = "Last verified 2026-03-01 with Python 3.11.7 and PyTorch 2.13.0; profile smoke: 2 s, 101 MiB."
    assert book.banners["nbs/01_first"]["verified"] == line
    assert make_book.verified("03_absent", {}) == ""


def test_addresses_are_derived(book):
    links = book.banners["nbs/01_first"]
    assert links["colab"] == make_book.repository().replace("//github.com", "//colab.research.google.com/github") \
        + "/blob/main/nbs/01_first.ipynb"
    assert links["notebook"] == make_book.repository() + "/blob/main/nbs/01_first.ipynb"
    assert make_book.banner("nbs/solutions/01_x", "solutions/01_x", {})["colab"] is None


def test_a_chapter_is_stale_when_its_notebook_or_the_package_changed(course):
    runs = course / "_runs/smoke"
    (course / "settings.ini").write_text("")
    for path in runs.rglob("*.ipynb"): path.touch()
    assert make_book.fresh("01_first", runs, course) and not make_book.fresh("03_absent", runs, course)
    executed = (runs / "01_first.ipynb").stat().st_mtime
    os.utime(course / "semseg_course/first.py", (executed + 5, executed + 5))
    assert not make_book.fresh("01_first", runs, course)


def test_quarto_gets_all_it_needs(book, tmp_path):
    make_book.quarto_folder(book, tmp_path / "proc")
    inside = {p.relative_to(tmp_path / "proc").as_posix() for p in (tmp_path / "proc").rglob("*") if p.is_file()}
    assert {"_quarto.yml", "index.qmd", "api.qmd", "results.qmd", "references.qmd", "references.bib", "nbs/01_first.ipynb",
            "images/00_banner.svg", "styles/light.scss", "styles/dark.scss"} <= inside
    config = yaml.safe_load((tmp_path / "proc/_quarto.yml").read_text())
    assert config["book"]["repo-url"] == make_book.repository()
    first = nbformat.read(tmp_path / "proc/nbs/01_first.ipynb", 4)
    nbformat.validate(first)
    text = "\n".join(c.source for c in first.cells)
    assert "[Open in Colab](https://colab" in text and "Last verified 2026-03-01" in text
    assert "[Second steps](02_second.ipynb#sec-second)" in text and "`@code`" in text and "@fig-first-look" in text
    assert '#| code-summary: "Imports"\nimport os' in text
    assert first.cells[0].source.startswith("# First steps {#sec-first}\n\n::: {.chapter-links}")
    assert "Exercise @exr" not in "\n".join(c.source for c in nbformat.read(tmp_path / "proc/nbs/02_second.ipynb", 4).cells)


def test_chapters_that_have_not_run_are_left_out_and_named(course, tmp_path):
    shutil.copytree(course / "_runs/smoke", tmp_path / "runs")
    (tmp_path / "runs/02_second.ipynb").unlink()
    part = make_book.collect(tmp_path / "runs", course)
    assert part.missing == ["02_second"]
    chapters = make_book.quarto_configuration(part)["book"]["chapters"]
    assert chapters == ["index.qmd", {"part": "Ground", "chapters": ["nbs/01_first.ipynb"]}]


@pytest.mark.skipif(not shutil.which("quarto"), reason="Quarto is not installed on this machine: its book is not rendered")
def test_quarto_renders(book, tmp_path):
    assert make_book.quarto_pages(book, tmp_path / "docs")
    assert "Last verified" in (tmp_path / "docs/nbs/01_first.html").read_text(encoding="utf-8")


# Reference pages

def test_api_reference_shows_signature_comments_and_notes(book):
    text = book.texts["api"]
    assert "## semseg_course.first {#sec-api-first}" in text and "[First steps](nbs/01_first.ipynb)" in text
    assert "add(a, b=2) -> int" in text and "| `a` | `int` |  | one \\| number |" in text
    assert "| *returns* | `int` |  | their sum |" in text and "- *Units:* none." in text
    assert "### SIZE\n\nEdge in pixels." in text and "#### Thing.go" in text and "_hidden" not in text


def test_api_reference_has_every_public_name_of_the_package():
    text = book_api.api_markdown(ROOT / "semseg_course", make_book.modules(ROOT))
    for module in make_book.modules(ROOT):
        tree = ast.parse((ROOT / f"semseg_course/{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        section = text.split(f"## semseg_course.{module} ")[1].split("\n## ")[0]
        missing = [name for name in book_api.exported(tree) if f"### {name}\n" not in section + "\n"]
        assert not missing, f"{module}: {missing}"


def test_results_become_tables(tmp_path):
    assert "Nothing has been measured yet." in book_api.results_markdown(tmp_path)
    (tmp_path / "camvid_small.json").write_text(json.dumps(dict(
        name="camvid_small", command="semseg-course test", seconds=3.5, seed=0, date="2026-03-01", versions={"torch": "2.13.0"},
        hardware={"cores": 2, "gpu": None}, figures={"mean_iou": 0.61237, "classes": {"Sky": {"iou": 0.9}, "Pole": {"iou": None}},
                                                     "curve": [{"epoch": 1, "loss": 2.0}]})))
    text = book_api.results_markdown(tmp_path)
    assert "## Camvid small {#sec-results-camvid-small}" in text and "semseg-course test" in text
    assert "| mean iou | 0.6124 |" in text and "| Sky | 0.9 |" in text and "| Pole |  |" in text and "| 1 | 2 |" in text


# Markdown

def writer():
    entries = refs.read_bibliography(ROOT / "references.bib")
    cells = [("markdown", "# A {#sec-a}\n\n$$x$$ {#eq-a}\n\n::: {#exr-a-b}\n## Sum\n:::"),
             ("code", '#| label: fig-a\n#| fig-cap: "C"\nf()')]
    labels = {label.name: label for label in refs.labels_in("nbs/03_a", cells)}
    return Writer("nbs/03_a", labels, entries, lambda page: f"{page}.html")


@pytest.mark.parametrize("text, expected", [
    ("@sec-a", 'href="nbs/03_a.html#sec-a">A</a>'),
    ("(see @fig-a.)", '#fig-a">Figure 3.1</a>.)'),
    ("@exr-a-b", "Exercise 3.1</a>"),
    ("[@long2015fcn, section 4]", ">Long et al., 2015</a>, section 4)"),
    ("@long2015fcn", ">Long et al.</a> (2015)"),
    ("$$y$$ {#eq-a}", '<span class="equation-number" id="eq-a">(3.1)</span>'),
    ("**bold** and $a_b$", "<msub>"),
    ("$\\ln k$", '<mi>ln</mi><mspace width="0.17em"/><mi>k</mi>'),
    ("$\\log_2 k$", "<msub><mi>log</mi><mn>2</mn></msub>"),
    ("## Title `x` {#sec-t .unnumbered}", '<h2 id="sec-t">Title <code>x</code></h2>'),
    ("::: {.callout-note}\nHere.\n:::", '<aside class="callout note"><p class="callout-title">Note</p>'),
    ('::: {.callout-tip collapse="true" title="Hint"}\nHere.\n:::', '<details class="callout tip"><summary>Hint</summary>'),
    ("::: {#exr-a-b}\n## Sum\nText\n:::", 'class="exercise" id="exr-a-b"><h3><span class="exercise-number">Exercise 3.1'),
    ("```bash\nmake book\n```", '<div class="code"><pre tabindex="0">'),
    ("a <b>bold</b> word", "<b>bold</b>"),
])
def test_markdown(text, expected):
    made = writer()
    assert expected in made.html(text)
    assert not made.unresolved


def test_what_does_not_resolve_is_reported():
    made = writer()
    made.html("@sec-nothing and [@nobody1900paper] and `@sec-code`")
    assert made.unresolved == ["@nobody1900paper", "@sec-nothing"] or made.unresolved == ["@sec-nothing", "@nobody1900paper"]


def test_divs_nest_and_stay_out_of_code():
    parts = split_divs("a\n::: {.one}\nb\n:::: {.two}\nc\n::::\n:::\n```\n::: {.no}\n```\nd".splitlines())
    assert parts == ["a", ({"class": "one"}, ["b", ":::: {.two}", "c", "::::"]), "```\n::: {.no}\n```\nd"]
    assert attributes('#fig-x .wide fig-alt="It\'s a \\"map\\""') == {"id": "fig-x", "class": "wide", "fig-alt": 'It\'s a "map"'}


def test_every_formula_of_the_course_can_be_drawn():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "markdown" or "$" not in cell.source: continue
            assert "formula-source" not in writer().html(cell.source), f"{path.name}: {cell.source}"


# Pages

def test_page_shows_what_the_directives_ask_for(pages):
    text = (pages / "nbs/01_first.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", text)
    assert "hidden = 1" not in plain and "default_exp" not in plain and "#|" not in plain and "1 + 1" not in plain
    assert "fold_me" in plain and '<details class="code-fold"><summary>Code' in text and "<summary>Imports" in text
    assert '<figure id="fig-first-look">' in text and 'alt="One colour everywhere."' in text and "Figure 1.1:" in plain
    assert "100%|###" in plain and "10%|#" not in plain.replace("100%|###", "") and "words &lt;b&gt;" in text
    assert "steps: int = 3" in plain and "400" not in plain
    assert "a price of $5 or $6" in plain and "Last verified 2026-03-01" in plain


def test_every_picture_has_alternative_text_and_every_link_leads_somewhere(pages):
    check_links(pages)


def check_links(folder):
    "Pictures with words, links with targets, nothing loaded from elsewhere."
    ids = {p: set(re.findall(r'\bid="([^"]+)"', p.read_text(encoding="utf-8"))) for p in folder.rglob("*.html")}
    for path in ids:
        text = path.read_text(encoding="utf-8")
        assert all(re.search(r'\balt="[^"]+"', image) for image in re.findall(r"<img\b[^>]*>", text)), path.name
        for kind, target in re.findall(r"<(?:img|script|link|iframe)\b[^>]*\b(src|href)=\"([^\"]+)\"", text):
            assert not re.match(r"(https?:)?//", target), f"{path.name} loads {target}"
        body = re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
        for target in re.findall(r'(?:href|src)="([^"]+)"', body):
            if re.match(r"https?:|data:|mailto:", target): continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file).resolve() if file else path
            assert other.is_file(), f"{path.name} -> {target}"
            if anchor and other.suffix == ".html": assert anchor in ids[other], f"{path.name} -> {target}"
        assert len(re.findall(r"<h1\b", text)) == 1, f"{path.name} has one title"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const rgb = c => c.startsWith("color(srgb") ? parse(c.replace("srgb", "")).map((v, i) => i < 3 ? v * 255 : v) : parse(c);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > .9) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("p, li, a, h1, h2, h3, code, code span, figcaption, td, summary, pre, .number")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
}"""


def check_in_browser(browser, folder, names=None):
    "Open pages in light, dark and narrow: no console errors, pictures loaded, nothing sticks out, all text legible."
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 400)):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
        for path in sorted(folder.rglob("*.html")):
            if names and path.relative_to(folder).with_suffix("").as_posix() not in names: continue
            page.goto(path.as_uri())
            page.evaluate("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => 0) }))")
            broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
            assert not broken, f"{path.name}: {broken}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path.name} sticks out at {width} px"
            assert not (low := page.evaluate(CONTRAST)), f"{path.name} in {scheme}: {low[:8]}"
            assert not errors, f"{path.name}: {errors}"
        page.close()


@needs_browser
def test_pages_in_a_browser(browser, pages):
    check_in_browser(browser, pages)


@needs_browser
def test_switch_search_and_menu(browser, pages):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.goto((pages / "nbs/01_first.html").as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != light
    page.goto((pages / "nbs/02_second.html").as_uri())
    assert page.evaluate(ground) != light, "the choice holds on the next page"
    page.fill("#search", "addition")
    page.click("#found a")
    assert page.url.endswith("01_first.html#exr-first-add")
    page.fill("#search", "zzzz")
    assert page.inner_text("#found") == "Nothing found"
    page.click("nav.turn a[rel=next]")
    assert page.url.endswith("02_second.html")
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_selector("#search", state="hidden")
    page.click("#menu")
    page.wait_for_selector("#search", state="visible")
    page.close()


# The whole book

@pytest.mark.xdist_group("chapters")
def test_whole_book_from_the_executed_chapters(tmp_path, request):
    runs = ROOT / "_runs/smoke"
    for name in chapter_names(ROOT):
        if not make_book.fresh(name, runs): assert run_chapter(name, "smoke", ROOT)["ok"], name
    whole = make_book.collect(runs)
    assert not whole.missing and not make_book.own_pages(whole, tmp_path / "docs")
    for page, notebook in whole.notebooks.items():
        for cell in notebook.cells:
            drawn = any(kind.startswith("image/") for out in cell.get("outputs", []) for kind in out.get("data", {}))
            options = refs.directives(cell.source) if drawn else {"fig-alt": ""}
            assert "fig-alt" in options or options.get("include") == "false", f"{page}: no fig-alt\n{cell.source}"
    check_links(tmp_path / "docs")
    if CHROMIUM: check_in_browser(request.getfixturevalue("browser"), tmp_path / "docs")


def test_command_names_the_folder_last(course):
    run = subprocess.run([sys.executable, str(ROOT / "tools/make_book.py"), "--help"], capture_output=True, text=True, check=True)
    assert "--profile" in run.stdout and "--list-stale" in run.stdout


def test_command_says_where_to_look(book, tmp_path, capsys):
    assert make_book.write(book, tmp_path / "docs", pages=True) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"The book: {(tmp_path / 'docs/index.html').as_uri()}" and (tmp_path / "docs/index.html").is_file()


def test_without_quarto_one_line_says_so_and_how_to_get_it(book, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(make_book.shutil, "which", lambda name: None)
    assert make_book.write(book, tmp_path / "docs", pages=False) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "Quarto" in line]
    assert len(lines) == 1 and make_book.GET_QUARTO in lines[0]
