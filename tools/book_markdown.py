"""Markdown as the chapters use it (Quarto's: divs, callouts, exercises, references, citations, formulas) to HTML.

    Writer(page, labels, bibliography, link).html(text)
"""
import html
import re
import shlex
from collections.abc import Callable

import book_refs as refs
from latex2mathml.converter import convert as mathml
from markdown_it import MarkdownIt
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.footnote import footnote_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ATTRIBUTES = re.compile(r"\s*\{([#.][^{}]*|[\w-]+=[^{}]*)\}\s*$")
NAMED = re.compile(r"(<m(?:sub|sup|subsup|under|over|underover)>)?<mi>(?:ln|log|exp|max|min|sin|cos|tan|arg|det|dim)</mi>"
                   r"(?=<m(?:i|n|s|frac|sub|sup|row)\b)")
CALLOUTS = {"tip": "Hint", "note": "Note", "warning": "Warning", "important": "Important", "caution": "Caution"}


def attributes(text: str) -> dict[str, str]:
    "`{#id .class name=\"value\"}` without its braces, as a dictionary; classes joined under `class`."
    found = {}
    for part in shlex.split(text.replace("'", "\u2019")):
        part = part.replace("\u2019", "'")
        if part.startswith("#"): found["id"] = part[1:]
        elif part.startswith("."): found["class"] = (found.get("class", "") + " " + part[1:]).strip()
        elif "=" in part: found[part.split("=", 1)[0]] = part.split("=", 1)[1]
    return found


def slug(text: str) -> str:
    "An id made of a heading's words."
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def code_html(source: str, language: str = "python") -> str:
    "Highlighted code, coloured by the page's own style sheet."
    try: lexer = get_lexer_by_name({"ipython3": "python", "": "text"}.get(language, language))
    except ClassNotFound: lexer = get_lexer_by_name("text")
    inner = highlight(source, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")
    return f'<div class="code"><pre tabindex="0"><code>{inner}</code></pre></div>'


def formula(source: str, display: bool) -> str:
    "A formula as MathML, which browsers draw by themselves."
    try: drawn = NAMED.sub(_spaced, mathml(source, display="block" if display else "inline"))
    except Exception: return f'<code class="formula-source">{html.escape(source)}</code>'
    return f'<span class="display-math">{drawn}</span>' if display else drawn


def _spaced(match) -> str:
    "A thin space behind ln, max, ..., but not where the name is the base of an index."
    return match[0] if match[1] else f'{match[0]}<mspace width="0.17em"/>'


def split_divs(lines: list[str]) -> list:
    "Lines to a list of texts and (attributes, content) pairs, one for each `::: {...}` that is not in a code block."
    found, text, fence = [], [], ""
    lines = list(lines)
    while lines:
        line = lines.pop(0)
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or mark[1].startswith(fence)): fence = "" if fence else mark[1]
        opening = re.match(r":::+\s*(?:\{(.*)\}|(\w[\w-]*))\s*:*$", line.strip())
        if fence or not opening: text.append(line); continue
        inner, depth, inside = [], 1, ""
        while lines and depth:
            line = lines.pop(0)
            mark = re.match(r"\s*(```+|~~~+)", line)
            if mark and (not inside or mark[1].startswith(inside)): inside = "" if inside else mark[1]
            if not inside and re.match(r":::+\s*[\w{]", line.strip()): depth += 1
            elif not inside and re.fullmatch(r":::+", line.strip()): depth -= 1
            if depth: inner.append(line)
        found += ["\n".join(text), (attributes(opening[1] or f".{opening[2]}"), inner)]
        text = []
    return found + ["\n".join(text)]


class Writer:
    "Turns the Markdown of one page into HTML."

    def __init__(self, page: str, labels: dict, bibliography: dict, link: Callable[[str], str]):
        self.page, self.labels, self.bibliography, self.link = page, labels, bibliography, link
        self.headings, self.unresolved = [], []  # (level, id, text) of the page; what could not be resolved
        self.markdown = MarkdownIt("commonmark", {"html": True, "highlight": None}).enable(["table", "strikethrough"])
        self.markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True,
                          allow_labels=True, renderer=lambda text, options: formula(text, options["display_mode"]),
                          label_renderer=self._equation_number)
        self.markdown.use(footnote_plugin).use(deflist_plugin)
        self.markdown.add_render_rule("fence", _fence)

    def _equation_number(self, name: str) -> str:
        label = self.labels.get(name)
        return f'<span class="equation-number" id="{name}">({label.number if label else "?"})</span>'

    def html(self, text: str) -> str:
        "A whole Markdown text."
        text = re.sub(r"(\$\$)\s*\{#(eq-[\w-]+)\}", r"\1 (\2)", text)
        parts = split_divs(text.splitlines())
        return "\n".join(self._text(p) if isinstance(p, str) else self._div(*p) for p in parts if p)

    def inline(self, text: str) -> str:
        "One line without a paragraph around it, such as a caption."
        tokens = self.markdown.parseInline(text)
        self._resolve(tokens)
        return self.markdown.renderer.render(tokens, self.markdown.options, {})

    def _text(self, text: str) -> str:
        environment: dict = {}
        tokens = self.markdown.parse(text, environment)
        self._headings(tokens)
        self._resolve(tokens)
        _figures(tokens, self)
        return self.markdown.renderer.render(tokens, self.markdown.options, environment)

    def _headings(self, tokens):
        "Ids from `{#sec-x}` or from the words; noted for the page's contents."
        for opening, inline in zip(tokens, tokens[1:]):
            if opening.type != "heading_open": continue
            match = ATTRIBUTES.search(inline.content)
            given = attributes(match[1]) if match else {}
            if match: _drop_end(inline.children, match[0])
            title = "".join(c.content for c in inline.children if c.type in ("text", "code_inline")).strip()
            opening.attrSet("id", given.get("id") or slug(title))
            self.headings.append((int(opening.tag[1]), opening.attrGet("id"), title))

    def _resolve(self, tokens):
        "References and citations in running text become links."
        for token in tokens:
            if token.type == "inline": token.children = [new for c in token.children for new in self._linked(c)]

    def _linked(self, token):
        if token.type != "text" or "@" not in token.content: return [token]
        text = html.escape(token.content, quote=False)
        text = refs.CITATION_GROUP.sub(lambda m: self._group(m[0], m[1]), text)
        text = refs.REFERENCE.sub(lambda m: self._reference(m[1]), text)
        token.type, token.content = "html_inline", refs.CITATION.sub(lambda m: self._in_text(m[0], m[2]), text)
        return [token]

    def _reference(self, name: str) -> str:
        label = self.labels.get(name)
        if not label: return self._missing(f"@{name}")
        return f'<a class="reference" href="{self.link(label.page)}#{name}">{html.escape(label.text)}</a>'

    def _group(self, whole: str, inner: str) -> str:
        "[@a; @b, section 4] -> (Long et al., 2015; Brostow et al., 2009, section 4)"
        if any(key.split("-")[0] in refs.KINDS for _, key in refs.CITATION.findall(inner)): return whole
        def one(match):
            entry = self.bibliography.get(match[2])
            if not entry: return self._missing(match[0])
            return self._cited(entry, entry.fields["year"] if match[1] else f"{entry.short}, {entry.fields['year']}")
        return f"({refs.CITATION.sub(one, inner)})"

    def _in_text(self, whole: str, key: str) -> str:
        "@a -> Long et al. (2015)"
        if key.split("-")[0] in refs.KINDS: return whole
        entry = self.bibliography.get(key)
        return f"{self._cited(entry, entry.short)} ({entry.fields['year']})" if entry else self._missing(whole)

    def _cited(self, entry, text: str) -> str:
        title = html.escape(entry.fields["title"], quote=True).replace("@", "&#64;")
        return f'<a class="citation" href="{self.link("references")}#ref-{entry.key}" title="{title}">{text}</a>'

    def _missing(self, text: str) -> str:
        self.unresolved.append(text)
        return f'<span class="unresolved">{text.replace("@", "&#64;")}</span>'

    def _div(self, given: dict, inner: list[str]) -> str:
        classes, name = given.get("class", "").split(), given.get("id", "")
        kind = next((c.split("-", 1)[1] for c in classes if c.startswith("callout-")), None)
        if name.startswith("exr-"): return self._exercise(name, inner)
        if kind: return self._callout(kind, given, inner)
        if name == "refs": return self.reference_list()
        content = self.html("\n".join(inner))
        head = f' id="{name}"' if name else ""
        return f'<div{head} class="{" ".join(classes)}">{content}</div>'

    def _exercise(self, name: str, inner: list[str]) -> str:
        inner = list(inner)
        while inner and not inner[0].strip(): inner.pop(0)
        title = inner.pop(0).lstrip("# ").strip() if inner and inner[0].startswith("#") else ""
        label = self.labels.get(name)
        number = f"Exercise {label.number}" if label else "Exercise"
        self.headings.append((3, name, f"{number}: {title}"))
        return (f'<section class="exercise" id="{name}"><h3><span class="exercise-number">{number}</span> '
                f'{self.inline(title)}</h3>{self.html(chr(10).join(inner))}</section>')

    def _callout(self, kind: str, given: dict, inner: list[str]) -> str:
        inner, title = list(inner), given.get("title", "")
        while inner and not inner[0].strip(): inner.pop(0)
        if not title and inner and inner[0].startswith("#"): title = inner.pop(0).lstrip("# ")
        title, content = self.inline(title or CALLOUTS.get(kind, kind.title())), self.html("\n".join(inner))
        if "collapse" not in given:
            return f'<aside class="callout {kind}"><p class="callout-title">{title}</p>{content}</aside>'
        shown = " open" if given["collapse"] == "false" else ""
        return f'<details class="callout {kind}"{shown}><summary>{title}</summary>{content}</details>'

    def reference_list(self) -> str:
        "Every entry of the bibliography."
        entries = sorted(self.bibliography.values(), key=lambda e: (e.surnames, e.fields["year"]))
        items = "\n".join(f'<li id="ref-{e.key}">{refs.reference_html(e)}</li>' for e in entries)
        return f'<ul class="references">{items}</ul>'


def _fence(renderer, tokens, i, options, environment) -> str:
    return code_html(tokens[i].content, _language(tokens[i]))


def _language(token) -> str:
    return token.info.strip().strip("{}").split()[0].lstrip(".") if token.info.strip("{} ") else ""


def _drop_end(children: list, ending: str):
    "Take `ending` off the text that a heading or paragraph ends with."
    for child in reversed(children):
        if child.type != "text": continue
        child.content = child.content.rstrip().removesuffix(ending.strip()).rstrip()
        return


def _figures(tokens: list, writer: Writer):
    "An image alone in its paragraph is a figure; `{#fig-x fig-alt=\"...\"}` behind any image is obeyed."
    for i, token in enumerate(tokens):
        if token.type != "inline" or not any(c.type == "image" for c in token.children): continue
        for position, child in enumerate(token.children):
            if child.type != "image": continue
            after = token.children[position + 1] if position + 1 < len(token.children) else None
            match = re.match(r"\s*\{([^{}]*)\}", after.content) if after and after.type == "text" else None
            given = attributes(match[1]) if match else {}
            if match: after.content = after.content[match.end():]
            alone = i and tokens[i - 1].type == "paragraph_open" and all(
                c is child or (c.type in ("text", "softbreak") and not c.content.strip()) for c in token.children)
            child.content = _figure(child, given, writer, bool(alone))
            child.type = "html_inline"
            if alone: tokens[i - 1].hidden = tokens[i + 1].hidden = True


def _figure(image, given: dict, writer: Writer, alone: bool) -> str:
    caption = image.content
    alt = html.escape(given.get("fig-alt") or caption, quote=True)
    size = f' style="width: {given["width"]}"' if "width" in given else ""
    picture = f'<img src="{html.escape(image.attrGet("src"), quote=True)}" alt="{alt}"{size}>'
    if not alone: return picture
    return figure_html(given.get("id", ""), picture, caption, writer)


def figure_html(name: str, content: str, caption: str, writer: Writer) -> str:
    "A figure on its white card, numbered when it has a label."
    label, head = writer.labels.get(name), f' id="{name}"' if name else ""
    number = f'<span class="figure-number">{label.text}:</span> ' if label else ""
    below = f"<figcaption>{number}{writer.inline(caption)}</figcaption>" if caption or number else ""
    return f'<figure{head}><div class="card">{content}</div>{below}</figure>'
