"""The book as plain pages of our own, for readers without Quarto: nothing is loaded from anywhere else.

    build(book, output)          # book: a prepared folder, see make_book.Book
"""
import base64
import html
import json
import re
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import book_refs as refs
from book_markdown import Writer, code_html, figure_html
from jinja2 import Environment, FileSystemLoader, select_autoescape

STYLES = Path(__file__).resolve().parent.parent / "styles"
PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}


@dataclass
class Page:
    "One page of the book."
    name: str  # nbs/02_metrics: its place in the book without an ending
    part: str  # the heading it stands under
    title: str
    question: str  # the line the chapter opens with
    cells: list[tuple]  # (kind, source, outputs)
    banner: dict = field(default_factory=dict)  # colab, notebook, verified

    @property
    def short(self) -> str:
        "The title as the list of contents shows it."
        return "Welcome" if self.name == "index" else self.title.removeprefix("Solutions: ")

    @property
    def number(self) -> str:
        "02, 05b; nothing for pages that are no chapters."
        match = re.match(r"(\d+[a-z]?)_", Path(self.name).name)
        return match[1] if match else ""


def opening(source: str) -> tuple[str, str]:
    "Title and question of a chapter's first cell."
    title = re.search(r"^#\s+(.*?)\s*(\{.*\})?\s*$", source, re.M)
    question = re.search(r"^>\s*(.+(?:\n>.*)*)", source, re.M)
    return title[1] if title else "", " ".join(question[1].replace("\n>", " ").split()) if question else ""


def relative(page: str, target: str) -> str:
    "The link from one page to another."
    up = "../" * page.count("/")
    return f"{up}{target}.html" if target != page else f"{Path(page).name}.html"


def build(pages: list[Page], bibliography: dict, images: Path, output: Path, title: str, address: str) -> list[str]:
    "Write every page into `output`; return what could not be resolved, one line each."
    (output / "assets").mkdir(parents=True)
    for name in ("book.css", "book.js"): shutil.copy(STYLES / name, output / "assets" / name)
    if images.is_dir(): shutil.copytree(images, output / "images")
    labels = {label.name: label for page in pages
              for label in refs.labels_in(page.name, [(kind, source) for kind, source, _ in page.cells])}
    template = Environment(loader=FileSystemLoader(STYLES), autoescape=select_autoescape()).get_template("page.html")
    found, problems = [], []
    for i, page in enumerate(pages):
        writer = Writer(page.name, labels, bibliography, lambda target, here=page.name: relative(here, target))
        content = page_html(page, writer, output)
        problems += [f"{page.name}: {text}" for text in writer.unresolved]
        found += sections(page, writer.headings, content)
        target = output / f"{page.name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(template.render(
            page=page, content=content, title=title, address=address, parts=grouped(pages),
            root="../" * page.name.count("/"), headings=[h for h in writer.headings if h[0] in (2, 3)],
            link=lambda to, here=page.name: relative(here, to),
            before=pages[i - 1] if i else None, after=pages[i + 1] if i + 1 < len(pages) else None), encoding="utf-8")
    index = json.dumps(found, ensure_ascii=False).replace("</", "<\\/")
    (output / "assets" / "search.js").write_text(f"window.bookSections = {index};\n", encoding="utf-8")
    return problems


def grouped(pages: list[Page]) -> list[tuple[str, list[Page]]]:
    "Pages under the heading of their part, in order."
    parts: dict[str, list[Page]] = {}
    for page in pages: parts.setdefault(page.part, []).append(page)
    return list(parts.items())


def sections(page: Page, headings: list, content: str) -> list[dict]:
    "What the search looks through: each section's title and words."
    found, plain = [], re.sub(r"<(pre|math|svg|style|script)\b.*?</\1>", " ", content, flags=re.S)
    starts = [(plain.find(f'id="{name}"'), name, text) for _, name, text in headings]
    starts = [s for s in starts if s[0] >= 0]
    for (start, name, text), end in zip(starts, [s[0] for s in starts[1:]] + [len(plain)]):
        words = html.unescape(re.sub(r"<[^>]+>", " ", plain[plain.find(">", start) + 1:end]))
        words = " ".join(words.split())[:1200]
        found.append(dict(page=page.title, url=f"{page.name}.html#{name}", title=text, text=words))
    return found


# A page

def page_html(page: Page, writer: Writer, output: Path) -> str:
    "All cells of a page, the first with the chapter's links under its title."
    parts = []
    for number, (kind, source, outputs) in enumerate(page.cells):
        made = writer.html(source) if kind == "markdown" else code_cell(page, number, source, outputs, writer, output)
        if number == 0 and page.banner: made = made.replace("</h1>", "</h1>" + banner_html(page.banner), 1)
        parts.append(made)
    content = "\n".join(parts)
    content = re.sub(r"<table(?![^>]*role)", '<div class="table"><table', content).replace("</table>", "</table></div>")
    return re.sub(r'href="([^":#]+)\.(?:ipynb|qmd)(#[^"]*)?"', r'href="\1.html\2"', content)


def banner_html(banner: dict) -> str:
    "The links of a chapter and when it was last seen to work."
    links = [f'<a class="button" href="{banner[key]}">{text}</a>'
             for key, text in (("colab", "Open in Colab"), ("notebook", "Notebook")) if banner.get(key)]
    verified = f'<span class="verified">{html.escape(banner["verified"])}</span>' if banner.get("verified") else ""
    return f'<p class="chapter-links">{" ".join(links)} {verified}</p>'


def code_cell(page: Page, number: int, source: str, outputs: list, writer: Writer, output: Path) -> str:
    "Code and what it showed, as the cell's directives ask."
    options, code = refs.directives(source), refs.body(source)
    if options.get("include") == "false" or (not code and not outputs): return ""
    shown = "" if options.get("echo") == "false" or not code else code_html(code)
    if shown and options.get("code-fold") in ("true", "show"):
        state = " open" if options["code-fold"] == "show" else ""
        shown = (f'<details class="code-fold"{state}><summary>{html.escape(options.get("code-summary", "Code"))}'
                 f"</summary>{shown}</details>")
    alt = options.get("fig-alt") or options.get("fig-cap") or f"Output of a cell of {page.title}"
    made = [output_html(page, f"{number}-{i}", out, alt, writer, output) for i, out in enumerate(outputs)]
    pictures = "".join(m for m, drawn in made if drawn)
    texts = "".join(m for m, drawn in made if not drawn)
    if options.get("output") == "false": pictures = texts = ""
    if pictures: pictures = figure_html(options.get("label", ""), pictures, options.get("fig-cap", ""), writer)
    return shown + texts + pictures


def output_html(page: Page, name: str, out: dict, alt: str, writer: Writer, output: Path) -> tuple[str, bool]:
    "One output as HTML, and whether it is a picture."
    if out["output_type"] == "stream":
        return f'<pre class="output {out["name"]}" tabindex="0">{_terminal(_joined(out["text"]))}</pre>', False
    if out["output_type"] == "error":
        lines = _joined(["\n".join(out["traceback"])]) or f"{out['ename']}: {out['evalue']}"
        return f'<pre class="output error" tabindex="0">{_terminal(lines)}</pre>', False
    data = out["data"]
    if "application/vnd.jupyter.widget-view+json" in data and not PICTURES.keys() & data.keys():
        return '<p class="output interactive">Moves when you run the notebook.</p>', False
    for kind, ending in PICTURES.items():
        if kind in data: return _picture(page, f"{name}.{ending}", _joined(data[kind]), alt, output), True
    if "text/html" in data: return f'<div class="output html">{_joined(data["text/html"])}</div>', False
    if "text/markdown" in data: return writer.html(_joined(data["text/markdown"])), False
    text = _joined(data.get("text/plain", ""))
    return f'<pre class="output" tabindex="0">{_terminal(text)}</pre>' if text else "", False


def _joined(text) -> str:
    return text if isinstance(text, str) else "".join(text)


def _terminal(text: str) -> str:
    "Output as a terminal would leave it: the last state of a progress bar, no colour codes."
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.rstrip("\n").split("\n")]
    return html.escape("\n".join(lines), quote=False)


def _picture(page: Page, name: str, data: str, alt: str, output: Path) -> str:
    folder = output / f"{page.name}_files"
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".svg"): (folder / name).write_text(data, encoding="utf-8")
    else: (folder / name).write_bytes(base64.b64decode(data))
    size = _png_size(data) if name.endswith(".png") else ""  # known before it is loaded, so that nothing jumps
    return f'<img src="{Path(page.name).name}_files/{name}" alt="{html.escape(alt, quote=True)}" loading="lazy"{size}>'


def _png_size(data: str) -> str:
    width, height = struct.unpack(">II", base64.b64decode(data[:64])[16:24])
    return f' width="{width}" height="{height}"'
