"""Write constraints.txt: the exact versions in this environment of everything the course needs, directly or not.

    python tools/write_constraints.py          # after the tests and the book pass with the versions installed

A version that does not exist for every Python the course supports gets a marker, so that one file serves all of them.
"""
import platform
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
OLDEST = Version("3.10")  # that pyproject.toml allows
HEAD = """\
# The exact versions that the book was last verified with (Python {python}); written by tools/write_constraints.py.
# A package without a line for some older Python is free there.
"""


def needed(extras: tuple[str, ...] = ("nbs", "dev")) -> dict:
    "Name -> distribution of the installed packages that the course with `extras` draws in."
    found, waiting = {}, [Requirement(f"semseg-course[{','.join(extras)}]")]
    while waiting:
        wish = waiting.pop()
        try: package = distribution(wish.name)
        except PackageNotFoundError: continue
        asked = [*wish.extras, ""]
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        if name in found and not wish.extras: continue
        found[name] = package
        for line in package.requires or []:
            child = Requirement(line)
            wanted = not child.marker or any(child.marker.evaluate({"extra": extra}) for extra in asked)
            if wanted: waiting.append(child)
    return {name: package for name, package in sorted(found.items()) if name not in ("semseg-course", "pip")}


def line(name: str, package) -> str:
    "One constraint, with a marker where the version needs a newer Python than the course does."
    bounds = [s.version for s in SpecifierSet(package.metadata.get("Requires-Python") or "") if s.operator == ">="]
    newer = [bound for bound in bounds if Version(bound) > OLDEST]
    marker = f'; python_full_version >= "{newer[0]}"' if newer else ""
    return f"{name}=={package.version.split('+')[0]}{marker}"


def main():
    lines = [line(name, package) for name, package in needed().items()]
    text = HEAD.format(python=platform.python_version()) + "\n".join(lines) + "\n"
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")
    print(f"wrote constraints.txt: {len(lines)} packages")


if __name__ == "__main__": main()
