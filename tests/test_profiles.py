"Running chapters: profiles, failures, records."
import json
import re
from pathlib import Path

import nbformat
import pytest

from semseg_course.profiles import chapter_parameters, result, run_chapters, write_result


@pytest.fixture
def course(tmp_path):
    "Three chapters: a good one, one that fails in its second cell, another good one."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[smoke]\nseed = 7\n[smoke.02_bad]\nsteps = 3\n[colab]\n")
    v4 = nbformat.v4
    for name, code in (("01_good", "print(seed)"), ("02_bad", "words = 'no'\nint(words)"), ("03_late", "1 + 1")):
        tags = {"tags": ["parameters"]}
        parameters = v4.new_code_cell("seed: int = 0  # seed\nsteps: int = 1  # steps", metadata=tags)
        kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
        notebook = v4.new_notebook(cells=[parameters, v4.new_code_cell(code)], metadata=kernel)
        nbformat.write(notebook, tmp_path / f"nbs/{name}.ipynb")
    return tmp_path


def test_a_failing_chapter_is_shown_and_does_not_stop_the_others(course):
    said = []
    assert not run_chapters([], "smoke", course, say=said.append)
    text = "\n".join(said)
    for words in ("02_bad", "int(words)", "ValueError: invalid literal", "2 of 3 chapters ran"): assert words in text
    summary = json.loads((course / "_runs/smoke/summary.json").read_text())
    ran = {name: record["ok"] for name, record in summary["chapters"].items()}
    assert ran == {"01_good": True, "02_bad": False, "03_late": True}
    record = summary["chapters"]["01_good"]
    assert record["seconds"] > 0 and record["peak_memory_mib"] > 10 and record["versions"]["python"]
    executed = nbformat.read(course / "_runs/smoke/01_good.ipynb", 4)
    assert any("7" in str(c.get("outputs")) for c in executed.cells if c.cell_type == "code")


def test_parameters_win_over_the_profile_and_unknown_ones_are_listed(course):
    assert chapter_parameters("02_bad", "smoke", course) == {"seed": 7, "steps": 3}
    assert chapter_parameters("02_bad", "smoke", course, dict(steps=9))["steps"] == 9
    for arguments, words in ((("02_bad", "smok"), "there are: smoke, colab"), (("02_bat", "smoke"), "01_good, 02_bad")):
        with pytest.raises(ValueError, match=words): chapter_parameters(*arguments, course)
    with pytest.raises(ValueError, match="there are: seed, steps"):
        chapter_parameters("02_bad", "smoke", course, dict(step=1))


def test_nothing_runs_when_one_name_is_wrong(course):
    with pytest.raises(ValueError, match="02_bat"): run_chapters(["01_good", "02_bat"], "smoke", course)
    assert not (course / "_runs").exists()


def test_results_keep_their_circumstances(tmp_path):
    write_result("speed", dict(ratio=2.5), "semseg-course speed", seconds=1.25, seed=3, folder=tmp_path)
    kept = result("speed", tmp_path)
    assert kept["figures"] == {"ratio": 2.5} and kept["seed"] == 3 and kept["seconds"] == 1.25
    assert kept["command"] == "semseg-course speed" and {"python", "numpy"} <= set(kept["versions"])
    assert kept["hardware"]["cores"] >= 1 and kept["date"]


def test_every_committed_result_names_its_command_and_machine():
    for path in (Path(__file__).parent.parent / "results").glob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["command"] and kept["versions"] and kept["hardware"] and kept["figures"], path
        assert "seed" in kept and kept["seconds"] >= 0, path
        assert not re.search(r'[" =](/|~|[A-Z]:)[\w./]', path.read_text()), f"{path} names a folder of somebody's machine"
