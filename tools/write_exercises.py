"""Write the exercises of every chapter: what stands under the heading Exercises comes from the page of solutions.

    python tools/write_exercises.py            # rewrites the chapters whose exercises changed
"""
import re
from pathlib import Path

import nbformat

from semseg_course.exercises import exercise_cells, exercise_modules
from semseg_course.profiles import project_root


def chapter_of(module: str, root: Path) -> Path:
    "The notebook whose exercises the module `module` of the solutions holds."
    found = [p for p in (root / "nbs").glob("*.ipynb") if re.sub(r"^\d+[a-z]?_", "", p.stem) == module]
    if len(found) != 1:
        raise ValueError(f"solutions.{module} must belong to one chapter NN_{module}.ipynb; found {found}.")
    return found[0]


def with_exercises(notebook, module: str):
    "`notebook` with the cells after its heading Exercises replaced by those that `module` says."
    heads = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## Exercises")]
    if len(heads) != 1:
        raise ValueError(f"the chapter of solutions.{module} must have one cell that begins with '## Exercises'.")
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    new = [make[kind](source, id=name[:64]) for name, kind, source in exercise_cells(module)]
    notebook.cells = notebook.cells[: heads[0] + 1] + new
    return notebook


def main():
    root = project_root()
    for module in exercise_modules():
        path = chapter_of(module, root)
        old = path.read_text(encoding="utf-8")
        new = nbformat.writes(with_exercises(nbformat.reads(old, 4), module)) + "\n"
        if new != old: path.write_text(new, encoding="utf-8"); print(f"wrote the exercises of {path.name}")


if __name__ == "__main__": main()
