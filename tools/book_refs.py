"""What the chapters refer to: the bibliography, the labels that can be referred to, and the references themselves.

The pages of the book and the tests of the repository read the same rules from here.
"""
import html
import re
from dataclasses import dataclass
from pathlib import Path

KINDS = {"sec": "Section", "fig": "Figure", "tbl": "Table", "eq": "Equation", "exr": "Exercise", "lst": "Listing"}
REFERENCE = re.compile(r"(?<![\w@/.])@((?:sec|fig|tbl|eq|exr|lst)-[\w-]*\w)")
CITATION_GROUP = re.compile(r"\[([^\[\]]*?-?@[^\[\]]+)\]")
CITATION = re.compile(r"(?<![\w@/.])(-?)@([A-Za-z][\w:.-]*\w)")
REQUIRED = {
    "article": {"title", "author", "year", "journal"},
    "inproceedings": {"title", "author", "year", "booktitle"},
    "book": {"title", "author", "year", "publisher"},
    "misc": {"title", "author", "year"},
    "phdthesis": {"title", "author", "year", "school"},
}
ACCENTS = {'"a': "ä", '"o': "ö", '"u': "ü", '"A': "Ä", '"O': "Ö", '"U': "Ü", "'e": "é", "'a": "á", "'i": "í", "'o": "ó",
           "`e": "è", "'c": "ć", "~n": "ñ", "vc": "č", "vs": "š", "vz": "ž", "cc": "ç", "^o": "ô", "^e": "ê", "ss": "ß"}


# The bibliography

@dataclass(frozen=True)
class Entry:
    "One paper of references.bib."
    key: str
    kind: str  # article, inproceedings, ...
    fields: dict[str, str]  # as text: braces and TeX accents resolved

    @property
    def surnames(self) -> list[str]:
        people = re.split(r"\s+and\s+", self.fields["author"])
        return [p.split(",")[0].strip() if "," in p else p.split()[-1] for p in people]

    @property
    def short(self) -> str:
        "Long et al."
        names = self.surnames
        return names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."


def _text(value: str) -> str:
    "A BibTeX value as plain text."
    value = re.sub(r"\\([\"'`^~vc])\s*\{?\\?(\w)\}?", lambda m: ACCENTS.get(m[1] + m[2], m[2]), value)
    value = value.replace(r"\ss", "ß").replace("\\&", "&").replace("--", "–").replace("~", " ")
    return " ".join(re.sub(r"[{}]", "", value).split())


def read_bibliography(path: Path) -> dict[str, Entry]:
    """Key -> entry.

    Raises: ValueError naming the line, for a key that comes twice or a text that is not BibTeX.
    """
    text, entries, position = path.read_text(encoding="utf-8"), {}, 0
    while (start := text.find("@", position)) >= 0:
        line = text.count("\n", 0, start) + 1
        head = re.compile(r"@(\w+)\s*\{\s*([^\s,]+)\s*,").match(text, start)
        if not head: raise ValueError(f"{path.name} line {line}: expected @kind{{key, got {text[start:start + 20]!r}.")
        end = _closing(text, text.index("{", start))
        if end < 0: raise ValueError(f"{path.name} line {line}: the braces of {head[2]} do not close.")
        if head[2] in entries: raise ValueError(f"{path.name} line {line}: {head[2]} is there twice; remove one.")
        entries[head[2]] = Entry(head[2], head[1].lower(), _fields(text[head.end():end]))
        position = end + 1
    return entries


def _closing(text: str, opening: int) -> int:
    "Where the brace at `opening` is closed, -1 where it is not."
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0: return i
    return -1


def _fields(body: str) -> dict[str, str]:
    "name = {value}, name = \"value\", name = 2015"
    fields, position = {}, 0
    while match := re.compile(r"\s*,?\s*(\w+)\s*=\s*").match(body, position):
        start = match.end()
        if body[start] == "{": end = _closing(body, start) + 1
        elif body[start] == '"': end = body.index('"', start + 1) + 1
        else: end = re.compile(r"[^,\n]*").match(body, start).end()
        fields[match[1].lower()] = _text(body[start:end].strip('"'))
        position = end
    return fields


def reference_html(entry: Entry) -> str:
    "The line of the reference list."
    f = entry.fields
    authors = html.escape(" · ".join(_person(p) for p in re.split(r"\s+and\s+", f["author"])))
    place = html.escape(f.get("journal") or f.get("booktitle") or f.get("publisher") or f.get("howpublished") or "")
    if "eprint" in f: place += f"{', ' if place else ''}arXiv:{html.escape(f['eprint'])}"
    link = f.get("url") or (f"https://doi.org/{f['doi']}" if "doi" in f else "") \
        or (f"https://arxiv.org/abs/{f['eprint']}" if "eprint" in f else "")
    title = html.escape(f["title"])
    title = f'<a href="{html.escape(link)}">{title}</a>' if link else title
    return f"{authors} ({html.escape(f['year'])}). <em>{title}</em>. {place}."


def _person(name: str) -> str:
    "Long, Jonathan -> Jonathan Long"
    if name.strip() == "others": return "and others"
    return " ".join(part.strip() for part in reversed(name.split(",", 1)))


# Labels and references

@dataclass(frozen=True)
class Label:
    "Something that can be referred to."
    name: str  # sec-metrics, fig-metrics-ladder
    page: str  # nbs/02_metrics
    number: str  # 2.1; empty for sections
    title: str

    @property
    def text(self) -> str:
        kind = self.name.split("-")[0]
        return self.title if kind == "sec" else f"{KINDS[kind]} {self.number}"


def without_code(text: str) -> str:
    "Markdown with its code taken out, so that an @ in an example is no reference."
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^(```+|~~~+).*?^\1\s*$", "", text, flags=re.M | re.S))


def directives(source: str) -> dict[str, str]:
    "The `#| name: value` lines at the head of a code cell; values unquoted."
    found = {}
    for line in source.splitlines():
        if not line.startswith("#|"): break
        name, _, value = line[2:].partition(":")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] in "\"'": value = value[1:-1].replace('\\"', '"')
        found[name.strip()] = value
    return found


def body(source: str) -> str:
    "A code cell without its directive lines."
    lines = source.splitlines()
    while lines and lines[0].startswith("#|"): lines.pop(0)
    return "\n".join(lines).strip("\n")


def number_of(page: str) -> str:
    "What a page's figures count under: 2 for nbs/02_metrics, S2 for its solutions, T2 for its twin, nothing for the front page."
    match = re.match(r"0*(\d+[a-z]?)_", Path(page).name)
    letter = "S" if "solutions/" in page else "T" if "/tf/" in page else ""
    return letter + match[1] if match else ""


def labels_in(page: str, cells: list[tuple[str, str]]) -> list[Label]:
    "The labels of one page, from its cells (kind, source) in order, numbered within the page."
    found, counts, chapter = [], {}, number_of(page)

    def add(name, title):
        kind = name.split("-")[0]
        counts[kind] = counts.get(kind, 0) + (kind != "sec")
        number = f"{chapter}.{counts[kind]}" if chapter else str(counts[kind])
        found.append(Label(name, page, "" if kind == "sec" else number, title))

    for kind, source in cells:
        if kind == "code":
            options = directives(source)
            if options.get("label", "").split("-")[0] in KINDS: add(options["label"], options.get("fig-cap", ""))
            continue
        text = without_code(source)
        for match in re.finditer(r"\{[^{}\n]*#((?:sec|fig|tbl|eq|exr|lst)-[\w-]+)[^{}\n]*\}", text):
            before, after = text[:match.start()].rsplit("\n", 1)[-1], text[match.end():]
            heading = re.match(r"\s*#+\s*(.*?)\s*(?:\{|$)", after) if match[1].startswith("exr") else None
            add(match[1], heading[1] if heading else before.lstrip("#").strip())
    return found


def references_in(markdown: str) -> set[str]:
    "Every @sec-, @fig-, ... of a text."
    return set(REFERENCE.findall(without_code(markdown)))


def citations_in(markdown: str) -> set[str]:
    "Every key cited in a text, in brackets or not."
    return {key for _, key in CITATION.findall(without_code(markdown)) if key.split("-")[0] not in KINDS}
