"""The preparation notebooks: each runs as a script, opens as a notebook, and has its parameters cell."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from semseg_course.data.datasets import mini_camvid

SCRIPTS = sorted((Path(__file__).parents[1] / "data_prep").glob("*.py"))
CAMVID = next(path for path in SCRIPTS if path.stem == "camvid")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return mini_camvid(tmp_path_factory.mktemp("mini") / "CamVid", counts=(5, 2, 2), size=(48, 64)).parent


def check_written(out: Path):
    names = {"camvid_statistics.json", "camvid_statistics.png", "camvid_train.png", "camvid_val.png", "camvid_test.png"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "camvid_statistics.json").read_text())["splits"]["train"]["count"] == 5


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_opens_as_a_notebook_with_parameters(path):
    jupytext = pytest.importorskip("jupytext", reason="the extra nbs is not installed")
    notebook = jupytext.read(path)
    tagged = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and all("  # " in line for line in tagged[0].splitlines())
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


def test_camvid_runs_as_a_script(tree, tmp_path):
    command = [sys.executable, CAMVID, "--root", tree, "--out", tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "found in" in run.stdout and "Bicyclist" in run.stdout
    check_written(tmp_path / "out")


def test_camvid_as_a_script_knows_its_parameters():
    run = subprocess.run([sys.executable, CAMVID, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and all(option in run.stdout for option in ("--root", "--out", "--url"))


@pytest.mark.slow
def test_camvid_runs_as_a_notebook(tree, tmp_path):
    jupytext = pytest.importorskip("jupytext", reason="the extra nbs is not installed")
    papermill = pytest.importorskip("papermill", reason="the extra nbs is not installed")
    jupytext.write(jupytext.read(CAMVID), tmp_path / "camvid.ipynb")
    parameters = dict(root=str(tree), out=str(tmp_path / "out"))
    done = papermill.execute_notebook(tmp_path / "camvid.ipynb", tmp_path / "done.ipynb", parameters, cwd=tmp_path,
                                      progress_bar=False, kernel_name="python3")
    check_written(tmp_path / "out")
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
