"""Every network by its name, and the weights that come with the package."""
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import call

from semseg_course.checkpoints import load_tensors, save_tensors
from semseg_course.data.datasets import CamVid, find_camvid
from semseg_course.data.labels import CAMVID
from semseg_course.profiles import result
from semseg_course.training import evaluate
from semseg_course.zoo import build, pretrained, trained_weights, zoo

KEPT = list(trained_weights())


@pytest.mark.parametrize("name", zoo)
def test_every_network_gives_scores_of_the_image_size(name):
    with torch.device("meta"), torch.no_grad():
        assert build(name, 7).eval()(torch.zeros(2, 3, 224, 256)).shape == (2, 7, 224, 256)


def test_wrong_names_and_settings_are_told():
    with pytest.raises(ValueError, match="there are: small, "): build("fcn", 7)
    with pytest.raises(ValueError, match="'enet' cannot be built.*depth"): build("enet", 7, depth=3)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="no weights of 'fcn32s_vgg16' for 'camvid'; there are: .*camvid_small"):
        pretrained("fcn32s_vgg16")
    with pytest.raises(ValueError, match="no weights of 'small' for 'voc'"): pretrained("small", "voc")


@pytest.mark.parametrize("kept", KEPT)
def test_kept_weights_are_those_of_the_result(kept):
    path, figures = trained_weights()[kept], result(kept)["figures"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == figures["half_precision"]["sha256"]
    assert path.stat().st_size == figures["half_precision"]["bytes"] < 4e6
    about = load_tensors(path)[1]
    assert about["miou"] == figures["half_precision"]["miou"] == pytest.approx(figures["miou"], abs=2e-3)
    assert about["command"] == result(kept)["command"] and about["classes"]["names"] == list(CAMVID.names)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.skipif(find_camvid() is None, reason="CamVid is not here: scores of the kept weights are not measured again")
def test_kept_weights_score_what_they_claim(kept):
    network = pretrained(kept.removeprefix("camvid_"))
    assert not network.training
    scores = evaluate(network, CamVid(find_camvid(), "val"))
    assert scores["miou"] == pytest.approx(network.about["miou"], abs=1e-3)


def test_command_line_takes_kept_weights_for_a_run(tmp_path):
    Image.fromarray(np.full((90, 120, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    assert "Images labelled: 1" in call("predict", "camvid_small", tmp_path / "grey.png", "--out", tmp_path / "out")
    assert Image.open(tmp_path / "out/masks/grey.png").size == (120, 90)
    assert "camvid_small" in call("predict", "camvid_none", tmp_path / "grey.png", code=2)
    assert "--out must name a folder" in call("test", "camvid_small", code=2)


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    tensors, about = load_tensors(trained_weights()["camvid_small"])
    tensors.pop(next(iter(tensors)))
    save_tensors(tmp_path / "camvid_small.safetensors", tensors, about)
    monkeypatch.setattr("semseg_course.zoo.trained_weights", lambda: {"camvid_small": tmp_path / "camvid_small.safetensors"})
    with pytest.raises(ValueError, match="missing"): pretrained("small")
