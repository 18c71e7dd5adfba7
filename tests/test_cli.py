"The command line as a user calls it: in processes of its own, with exit codes and messages."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semseg_course.cli import app, open_data
from semseg_course.data.labels import CAMVID, VOID
from semseg_course.data.toy_eyes import EYES, ToyEyes
from semseg_course.data.toy_streets import ToyStreets

TINY = "train --scenes 24 --size 32x48 --epochs 2 --width 0.2 --batch-size 8 --workers 0 --learning-rate 0.01".split()


def call(*arguments, code=0):
    outcome = CliRunner().invoke(app, [str(a) for a in arguments])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    call(*TINY, "--run", folder)
    return folder


@pytest.fixture
def scene(tmp_path):
    image, label = ToyStreets((64, 96), 1, 5)[0]
    Image.fromarray(image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_a_run_keeps_what_it_needs(run):
    expected = {"settings.json", "log.jsonl", "best.safetensors", "checkpoints", "tensorboard"}
    assert expected <= {p.name for p in run.iterdir()}
    settings = json.loads((run / "settings.json").read_text())
    assert settings["options"]["size"] == [32, 48] and settings["classes"]["names"] == list(CAMVID.names)
    assert settings["versions"]["torch"] and settings["hardware"]["processor"]
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_validate_prints_every_class(run):
    output = call("validate", run)
    assert all(name in output for name in CAMVID.names) and "mean IoU" in output


def test_test_writes_json_and_markdown_without_void(run, tmp_path):
    call("test", run, "--out", tmp_path)
    scores = json.loads((tmp_path / "test.json").read_text())
    assert set(scores["iou"]) == set(CAMVID.names) and scores["images"] == 2
    known = sum((ToyStreets((32, 48), 2, 2)[i][1] != VOID).sum() for i in range(2))
    assert np.array(scores["matrix"]).sum() == known
    assert "| Sky |" in (tmp_path / "test.md").read_text()


@pytest.mark.parametrize("extra", [(), ("--flip",), ("--tile", "32x48", "--overlap", "8"), ("--probabilities",)])
def test_predict_writes_masks_and_overlays(run, scene, tmp_path, extra):
    call("predict", run, scene, "--out", tmp_path / "out", *extra)
    mask = Image.open(tmp_path / "out/masks/scene.png")
    assert mask.mode == "P" and mask.size == (96, 64) and np.asarray(mask).max() < len(CAMVID)
    assert (tmp_path / "out/overlays/scene.jpg").is_file()
    assert (tmp_path / "out/probabilities").exists() == ("--probabilities" in extra)


def test_a_crf_refines_what_is_predicted_and_scored(run, scene, tmp_path):
    "Predicted with --crf is predicted and then refined; parameters in the run's settings are used and written down."
    from semseg_course.crf import Kernel, dense_crf
    kernels = [dict(compat=2, sxy=2), dict(compat=4, sxy=15, srgb=20)]
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    settings = json.loads((mine / "settings.json").read_text())
    (mine / "settings.json").write_text(json.dumps(settings | dict(crf=dict(kernels=kernels, iterations=3))))
    def predicted(folder, *extra):
        call("predict", folder, scene, "--out", tmp_path / "out", "--probabilities", *extra)
        return np.load(tmp_path / "out/probabilities/scene.npy").astype(np.float32)
    p, image = predicted(run), np.asarray(Image.open(scene))
    usual = dense_crf(image, p / p.sum(0))
    chosen = dense_crf(image, p / p.sum(0), kernels=[Kernel(**k) for k in kernels], iterations=3)
    assert np.abs(usual - chosen).mean() > 0.01 < np.abs(usual - p).mean()
    for folder, expected, iterations in ((run, usual, 5), (mine, chosen, 3)):
        assert np.abs(predicted(folder, "--crf") - expected).mean() < 1e-3  # probabilities are kept in half precision
        call("test", folder, "--out", tmp_path, "--crf")
        kept = json.loads((tmp_path / "test_crf.json").read_text())["crf"]
        assert kept["iterations"] == iterations
        assert kept["kernels"] == (kernels if folder == mine else [dict(compat=3, sxy=3), dict(compat=10, sxy=80, srgb=13)])
    call("test", run, "--out", tmp_path)
    assert json.loads((tmp_path / "test.json").read_text())["crf"] is None


def test_a_crf_is_chosen_on_training_images_and_kept(run, tmp_path):
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    before = json.loads((mine / "settings.json").read_text())
    assert "training images" in call("tune-crf", mine, "--images", 2, "--evaluations", 4)
    after = json.loads((mine / "settings.json").read_text())
    assert {name: after[name] for name in before} == before and set(after) == {*before, "crf"}
    assert "mean IoU" in call("validate", mine, "--crf")
    assert "must be the folder of a run" in call("tune-crf", "camvid_enet", code=2)


@pytest.mark.parametrize("crf, message", [
    (dict(kernel=[]), "settings of a CRF are kernels, iterations, normalization; got kernel"),
    (dict(kernels=[dict(compat=3, sxy=-1)]), "sxy must be one positive number or 2; got -1"),
    (dict(kernels=[dict(sxy=1)]), "kernels must be a list of"), (dict(normalization="all"), "normalization must be one of")])
def test_bad_settings_of_a_crf_are_named(run, scene, tmp_path, crf, message):
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    settings = json.loads((mine / "settings.json").read_text())
    (mine / "settings.json").write_text(json.dumps(settings | dict(crf=crf)))
    assert message in call("predict", mine, scene, "--out", tmp_path / "out", "--crf", code=2)


def test_eyes_are_drawn_data_too(tmp_path):
    folder, (image, label) = tmp_path / "run", ToyEyes((48, 64), 1, 5)[0]
    call(*TINY, "--data", "eyes", "--size", "48x64", "--class-weights", "median", "--run", folder)
    assert len(records(folder)) == 2
    table, kept = call("validate", folder), json.loads((folder / "settings.json").read_text())
    assert "| Iris |" in table and kept["classes"]["names"] == list(EYES.names)
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        eyes = open_data(dict(data="eyes", scenes=24, size=None, seed=0, difficulty=0.25), split)
        expected = ToyEyes((120, 160), 24 if split == "train" else 2, seed, 0.25)
        assert repr(eyes) == repr(expected)
    Image.fromarray(image).save(tmp_path / "eye.png")
    call("predict", folder, tmp_path / "eye.png", "--out", tmp_path / "out", "--tile", "32x32", "--overlap", 8)
    mask = np.asarray(Image.open(tmp_path / "out/masks/eye.png"))
    assert mask.shape == label.shape and mask.max() < len(EYES)


@pytest.fixture
def own(tmp_path):
    "A reader's own two-class data, 64x96 images."
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "labels"): (tmp_path / "own" / split / kind).mkdir(parents=True)
        for i in range(count):
            image, label = ToyStreets((64, 96), count, 7)[i]
            Image.fromarray(image).save(tmp_path / "own" / split / "images" / f"{i}.png")
            halves = Image.fromarray(np.where(label == VOID, VOID, label // 6))
            halves.save(tmp_path / "own" / split / "labels" / f"{i}.png")
    table = dict(names=["first", "second"], palette=[[0, 0, 0], [255, 0, 0]])
    (tmp_path / "own/classes.json").write_text(json.dumps(table))
    return tmp_path / "own"


def test_own_folder_from_training_to_prediction(own, tmp_path):
    line = ["train", "--data", "folder", "--root", own, "--size", "32x48", "--epochs", 1, "--width", 0.2,
            "--workers", 0, "--batch-size", 4, "--class-weights", "median"]
    call(*line, "--run", tmp_path / "run")
    assert "first" in call("validate", tmp_path / "run")
    assert "test" in call("test", tmp_path / "run", code=2)
    (own / "classes.json").write_text(json.dumps(dict(names=["first"], palette=[[0, 0, 0]])))
    assert "stray ids" in call(*line, "--run", tmp_path / "run2", code=2)


@pytest.mark.parametrize("line, words", [
    ("train --size 240", "HEIGHTxWIDTH"), ("train --scale 2,1", "LOW <= HIGH"), ("train --epochs 0", "--epochs"),
    ("train --epochs many", "valid integer"), ("train --data moon", "eyes"),
    ("train --model enormous", "there are: small"),
    ("train --data camvid --root nowhere", "holds no CamVid split 'train'"), ("train --schedule cosine", "one_cycle"),
    ("train --data folder --root nowhere", "classes.json is missing"), ("train --mixed-precision half", "bf16"),
    ("train --scenes 4 --batch-size 8", "batch_size must be 1 to 4"), ("validate nowhere", "settings.json is missing"),
    ("predict nowhere image.png", "settings.json is missing"), ("train --resume nowhere", "settings.json is missing"),
    ("train --resume nowhere --epochs 3", "leave out: epochs"),
    ("chapters --profile smok", "there are: smoke, colab, paper"),
    ("chapters no_such_chapter", "there are: 00_how_to_run"), ("chapters 02_metrics --parameter sede=1", "there are: "),
    ("chapters 02_metrics --parameter seed", "NAME=VALUE"), ("prepare moon", "camvid")])
def test_wrong_values_exit_with_words_and_no_traceback(line, words, tmp_path, monkeypatch):
    outcome = CliRunner().invoke(app, line.split() + (["--run", str(tmp_path / "r")] if line.startswith("train") and
                                                      "resume" not in line else []))
    assert outcome.exit_code == 2 and "Traceback" not in outcome.output
    assert words in " ".join(outcome.output.split())


def test_an_existing_run_is_not_overwritten(run):
    assert f"--resume {run}" in " ".join(call(*TINY, "--run", run, code=2).split())


@pytest.mark.parametrize("command", ["train", "validate", "test", "predict", "prepare", "chapters"])
def test_help_explains_every_option(command):
    output = call(command, "--help")
    for line in output.splitlines():
        if line.strip().startswith("--"): assert len(line.split(None, 1)) == 2, line


def listen():
    "Hear SIGINT, also where these tests run in the background of a shell, which tells its jobs to ignore it."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_how_to_go_on_and_the_resumed_run_is_the_same(tmp_path):
    program = str(Path(sys.executable).parent / "semseg-course")
    line = [program, *TINY[:6], "24", *TINY[7:], "--run", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                             preexec_fn=listen)
    deadline = time.time() + 120
    while time.time() < deadline and not (tmp_path / "run/log.jsonl").exists(): time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130 and f"--resume {tmp_path / 'run'}" in errors and "Traceback" not in errors
    done = len((tmp_path / "run/log.jsonl").read_text().splitlines())
    assert 1 <= done < 24
    resume = [program, "train", "--resume", str(tmp_path / "run")]
    subprocess.run(resume, check=True, env=environment, capture_output=True)
    line[-1] = str(tmp_path / "whole")
    subprocess.run(line, check=True, env=environment, capture_output=True)
    logs = [records(tmp_path / name) for name in ("run", "whole")]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]] and len(logs[0]) == 24


def test_two_processes_by_the_command_line(tmp_path):
    program = str(Path(sys.executable).parent / "semseg-course")
    for processes, name in ((1, "one"), (2, "two")):
        line = [program, *TINY, "--frozen-norm", "--processes", str(processes), "--run", str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    losses = [[record["loss"] for record in records(tmp_path / name)] for name in ("one", "two")]
    assert np.allclose(*losses, rtol=1e-4)


def test_bare_command_shows_help():
    outcome = CliRunner().invoke(app, [])
    assert "train" in outcome.output and "predict" in outcome.output


def test_one_validation_image_on_two_processes_does_not_hang(tmp_path):
    program = str(Path(sys.executable).parent / "semseg-course")
    line = [program, *TINY[:1], "--scenes", "8", *TINY[3:], "--frozen-norm", "--processes", "2", "--run", str(tmp_path / "r")]
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "r/settings.json").read_text())["options"]["processes"] == 2


def test_several_processes_are_checked_before_they_start(tmp_path):
    assert "--frozen-norm is needed" in call(*TINY, "--processes", 2, "--run", tmp_path / "a", code=2)
    assert "multiple of 3" in call(*TINY, "--processes", 3, "--frozen-norm", "--run", tmp_path / "b", code=2)


def test_a_start_that_failed_does_not_block_its_folder(tmp_path):
    call(*TINY, "--accumulate", 100, "--run", tmp_path / "run", code=2)
    call(*TINY, "--run", tmp_path / "run")


def test_predict_works_at_the_size_of_the_run_as_validate_does(own, tmp_path):
    from semseg_course.metrics import confusion_matrix, mean_iou
    line = ["train", "--data", "folder", "--root", own, "--size", "32x48", "--epochs", 2, "--width", 0.2, "--workers", 0]
    call(*line, "--run", tmp_path / "run")
    table = call("validate", tmp_path / "run")
    call("predict", tmp_path / "run", own / "val/images", "--out", tmp_path / "out")
    matrix = sum(confusion_matrix(np.asarray(Image.open(tmp_path / f"out/masks/{i}.png")),
                                  np.asarray(Image.open(own / f"val/labels/{i}.png")), 2) for i in range(3))
    assert f"| **mean IoU** | **{100 * mean_iou(matrix):.1f}** |" in table
    assert "works on whole images" in call("predict", tmp_path / "run", own / "val/images", "--tile", "32x32", code=2)


def test_a_damaged_file_is_named_before_training_starts(own, tmp_path):
    damaged = own / "train/images/3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    line = ["train", "--data", "folder", "--root", own, "--epochs", 1, "--width", 0.2, "--run", tmp_path / "run"]
    output = call(*line, code=2)
    assert "3.png" in output and not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("name", ["settings.json"])
def test_a_damaged_run_is_named(run, tmp_path, name):
    (tmp_path / name).write_text("")
    assert f"{tmp_path / name} is damaged" in " ".join(call("validate", tmp_path, code=2).replace("\n", "").split())


def test_a_run_of_an_older_version_takes_defaults(run, tmp_path):
    import shutil
    shutil.copytree(run, tmp_path / "old")
    kept = json.loads((run / "settings.json").read_text())
    del kept["options"]["difficulty"]
    (tmp_path / "old/settings.json").write_text(json.dumps(kept))
    assert call("validate", tmp_path / "old") == call("validate", run)


def test_a_run_starts_from_another_and_accounts_for_every_tensor(run, tmp_path):
    output = call(*TINY, "--start", run, "--epochs", 1, "--run", tmp_path / "next")
    assert "100.0% of the network's numbers arrived" in output
    first = records(tmp_path / "next")[0]["loss"]
    assert first < records(run)[0]["loss"], "what was learned is still there"
    other = call(*TINY, "--model", "small_gated", "--start", run, "--epochs", 1, "--run", tmp_path / "gated")
    assert "missing" in other and "gate" in other
    assert "vgg16_bn" in call(*TINY, "--start", tmp_path / "nowhere", "--run", tmp_path / "x", code=2)


def test_speed_prints_a_row_a_network_and_names_the_known():
    output = call("speed", "small", "--size", "32x48", "--width", 0.2, "--repeats", 1)
    assert "small" in output and "train step" in output and len(output.splitlines()) == 2
    assert "there are: small, " in call("speed", "smal", code=2)
