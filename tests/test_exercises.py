"Every exercise: the solution passes, the stub is 'not done yet', each typical mistake gets its own sentence."
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from semseg_course.exercises import check, difference, exercise_modules, find, stub

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f"{chapter}.{key}" for chapter in exercise_modules()
         for key in __import__(f"semseg_course.solutions.{chapter}", fromlist=["exercises"]).exercises]


def test_every_chapter_has_three():
    counts = Counter(name.split(".")[0] for name in NAMES)
    chapters = {re.sub(r"^\d+[a-z]?_", "", path.stem): path for path in (ROOT / "nbs").glob("*.ipynb")}
    without = sorted(path.name for path in chapters.values() if not (ROOT / "nbs/solutions" / path.name).is_file())
    assert chapters and not without, f"chapters without a page of solutions: {without}"
    wrong = {module: counts[module] for module in set(chapters) | set(counts) if not 3 <= counts[module] <= 5}
    assert not wrong, f"a chapter has three to five exercises: {wrong}"


@pytest.mark.parametrize("name", NAMES)
def test_solution_passes(name):
    verdict = check(name, find(name).solution)
    assert verdict and "right" in str(verdict)


@pytest.mark.parametrize("name", NAMES)
def test_stub_is_not_done_yet(name):
    source, _, call = stub(name).rpartition("\n\n\n")
    space = {"np": np, "Tensor": object}  # what every chapter with annotated stubs imports
    exec(source, space)
    verdict = check(name, space[find(name).solution.__name__])
    assert not verdict and "not done yet" in str(verdict)
    assert call == f'check("{name}", {find(name).solution.__name__})'


@pytest.mark.parametrize("name", NAMES)
def test_stub_does_not_give_the_solution_away(name):
    assert stub(name).splitlines()[-4].strip().startswith("...") and "return" not in stub(name)


@pytest.mark.parametrize("name", NAMES)
def test_typical_mistakes_get_their_sentence(name):
    exercise = find(name)
    assert exercise.wrong, "at least one typical mistake"
    for sentence, mistake in exercise.wrong.items():
        verdict = check(name, mistake)
        assert not verdict and sentence in str(verdict)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_there(name):
    exercise = find(name)
    assert exercise.title and exercise.question and exercise.hint and exercise.solution.__doc__
    assert len(exercise.tries) >= 2


def test_an_error_in_the_readers_code_is_reported_not_raised():
    def broken(*arguments): raise RuntimeError("my mistake")
    verdict = check(NAMES[0], broken)
    assert not verdict and "RuntimeError: my mistake" in str(verdict) and "Try 1" in str(verdict)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="there are: .*training"): check("cooking.eggs", len)
    with pytest.raises(ValueError, match="training.poly"): check("training.eggs", len)


@pytest.mark.parametrize("got, expected, words", [
    (1.0, 1.0 + 1e-9, ""), (np.ones(2), np.ones(3), "shape"), (1, True, "true or false"), (np.nan, np.nan, ""),
    ((1, 2), (1, 2, 3), "3 values"), ("a", "b", "'b'"), (None, 3, "3"), ([1, [2]], np.ones(2), ""), (True, True, "")])
def test_difference(got, expected, words):
    found = difference(got, expected)
    if isinstance(got, list): assert found
    else: assert (words in found) if words else not found
