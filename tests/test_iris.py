"""The iris scores against plain counting, void, bad input, and the conversion of masks."""
import numpy as np
import pytest
import torch
from PIL import Image

from semseg_course.data.datasets import ImageLabelFolder, check_dataset
from semseg_course.data.labels import VOID
from semseg_course.data.toy_eyes import EYES, ToyEyes
from semseg_course.iris import IrisScores, convert_masks, iris_errors


def random_pair(seed, shape=(3, 12, 15), void=0.1):
    random = np.random.default_rng(seed)
    target = (random.random(shape) < 0.2).astype(np.uint8)
    answer = np.where(random.random(shape) < 0.15, 1 - target, target).astype(np.uint8)
    target[random.random(shape) < void] = VOID
    return answer, target


def directly(answers, targets):
    "E1, E2 and IoU, image by image and pixel by pixel."
    e1, e2, both, either = [], [], 0, 0
    for answer, target in zip(answers, targets):
        pairs = [(a, t) for a, t in zip(answer.ravel().tolist(), target.ravel().tolist()) if t != VOID]
        e1.append(sum(a != t for a, t in pairs) / len(pairs))
        rates = [sum(a != t for a, t in pairs if t == truth) / max(1, sum(t == truth for _, t in pairs)) for truth in (0, 1)]
        e2.append(sum(rates) / 2)
        both, either = both + sum(a == t == 1 for a, t in pairs), either + sum(1 in (a, t) for a, t in pairs)
    return np.mean(e1), np.mean(e2), both / either


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_plain_counting(seed):
    answer, target = random_pair(seed)
    scores = IrisScores()
    scores.update(answer, target)
    s = scores.summary()
    assert np.allclose([s["e1"], s["e2"], s["iou"]], directly(answer, target))
    assert np.isclose(s["f1"], 2 * s["iou"] / (1 + s["iou"]))
    assert np.isclose(s["f1"], 2 * s["precision"] * s["recall"] / (s["precision"] + s["recall"]))


def test_without_void_and_with_equal_sizes_e1_is_one_minus_accuracy():
    answer, target = random_pair(9, void=0)
    scores = IrisScores()
    scores.update(answer, target)
    assert np.isclose(scores.summary()["e1"], (answer != target).mean())


def test_images_one_by_one_batches_scores_and_tensors_are_alike():
    answer, target = random_pair(1)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(answer).long(), 2).movedim(-1, 1).float()
    summaries = []
    for predictions, targets in (
            (answer, target), (torch.from_numpy(answer), torch.from_numpy(target).long()), (one_hot, target)):
        scores = IrisScores()
        scores.update(predictions, targets)
        summaries.append(scores.summary())
    scores = IrisScores()
    for pair in zip(answer, target): scores.update(*pair)
    assert all(s == scores.summary() for s in summaries)


def test_small_images_count_as_much_as_large_ones():
    scores = IrisScores()
    scores.update(np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    scores.update(np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8))
    assert scores.summary()["e1"] == 0.5


def test_no_iris_and_no_known_pixel():
    assert iris_errors([[9, 1], [0, 0]]) == (0.1, 0.05)
    assert iris_errors([[0, 0], [3, 1]]) == (0.75, 0.375)
    assert np.isnan(iris_errors([[0, 0], [0, 0]])).all()
    scores = IrisScores()
    scores.update(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert np.isnan(scores.summary()["f1"]) and np.isnan(scores.summary()["recall"])


@pytest.mark.parametrize("prediction, target", [
    (np.zeros((3, 4), np.uint8), np.zeros((3, 5), np.uint8)), (np.zeros((2, 3, 4), np.uint8), np.zeros((3, 3, 4), np.uint8)),
    (np.zeros(5, np.uint8), np.zeros(5, np.uint8)), (np.zeros((1, 3, 4), np.uint8), np.zeros((3, 4), np.uint8))])
def test_other_shapes_are_refused(prediction, target):
    with pytest.raises(ValueError, match="shape"): IrisScores().update(prediction, target)


def test_other_ids_are_refused():
    with pytest.raises(ValueError, match="got"): IrisScores().update(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match="update"): IrisScores().summary()


@pytest.mark.parametrize("iris", [0, 255])
@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_masks_become_labels(tmp_path, iris, mode):
    for name in ("images", "masks"): (tmp_path / name).mkdir()
    pairs = list(ToyEyes((40, 60), 3, 5))
    for i, (image, label) in enumerate(pairs):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.tiff")
        mask = Image.fromarray(np.where(label == 1, iris, 255 - iris).astype(np.uint8))
        mask.convert(mode).save(tmp_path / "masks" / f"{i}.bmp")
    assert convert_masks(tmp_path / "masks", tmp_path / "labels", iris) == 3
    folder = ImageLabelFolder(tmp_path / "images", tmp_path / "labels", EYES)
    assert check_dataset(folder, progress=False) == 3
    for (image, label), pair in zip(folder, pairs): assert (image == pair[0]).all() and (label == pair[1]).all()


def test_faulty_masks_are_named(tmp_path):
    with pytest.raises(ValueError, match="iris must be"): convert_masks(tmp_path, tmp_path / "out", iris=1)
    with pytest.raises(FileNotFoundError, match="nowhere"): convert_masks(tmp_path / "nowhere", tmp_path / "out")
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 255
    for picture, word in ((np.full((8, 8), 128, np.uint8), "128"), (colour, "colours")):
        Image.fromarray(picture).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match=f"mask.png.*{word}"): convert_masks(tmp_path, tmp_path / "out")
