"""Write what README.md shares with the rest of the repository: the badges and the map of chapters.

    python tools/write_readme.py            # after adding a chapter or changing its title, module or papers
"""
import re

import book_pages
import book_refs as refs
import make_book
import nbformat


def badges() -> str:
    "Tests, book and licence, from the repository's address."
    address = make_book.repository()
    book = "https://{1}.github.io/{2}".format(*address.rsplit("/", 2))
    runs = f"{address}/actions/workflows"
    shown = (("Tests", "test", f"{runs}/test.yml"), ("Book", "book", book),
             ("Chapters on Colab", "colab", f"{runs}/colab.yml"))
    return "\n".join(f"[![{text}]({runs}/{name}.yml/badge.svg)]({target})" for text, name, target in shown)


def chapter_map() -> str:
    "Chapter, notebook, module and papers, a row each."
    bibliography = refs.read_bibliography(make_book.ROOT / "references.bib")
    by_page: dict[str, list[str]] = {}
    for module, (page, _) in make_book.modules(make_book.ROOT).items():
        by_page.setdefault(page, []).append(f"`{module}`")
    rows = ["| chapter | notebook | module | papers |", "|---|---|---|---|"]
    for path in make_book.chapter_files():
        opening = nbformat.read(path, 4).cells[0].source
        keys = [key for _, key in refs.CITATION.findall(opening) if key in bibliography]
        papers = "; ".join(f"{e.short} {e.fields['year']}" for e in map(bibliography.get, dict.fromkeys(keys)))
        page = make_book.page_of(path)
        title, modules, name = book_pages.opening(opening)[0], ", ".join(by_page.get(page, [])), page.removeprefix("nbs/")
        rows.append(f"| [{title}]({make_book.colab_address(page)}) | [{name}]({page}.ipynb) | {modules} | {papers} |")
    return "\n".join(rows)


def written(text: str) -> str:
    "README's text with both parts as they should be."
    for name, part in (("badges", badges()), ("map", chapter_map())):
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text = marks.sub(lambda m: f"{m[1]}{part}\n{m[2]}", text)
    return text


def main():
    path = make_book.ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(written(text), encoding="utf-8")
    print("README.md was up to date" if written(text) == text else "wrote README.md")


if __name__ == "__main__": main()
