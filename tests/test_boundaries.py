"""The scores near edges against loops over every pair of pixels, and their behaviour at void and at the border."""
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from semseg_course.boundaries import BoundaryIoU, TrimapScores, boundary_band, boundary_iou, edge_distance
from semseg_course.data.labels import VOID
from semseg_course.metrics import confusion_matrix, mean_iou


def pair(num_classes, shape=(9, 11), seed=0, void=0.15, coarse=3):
    "A blocky label with void, and a prediction that differs from it here and there."
    random = np.random.default_rng(seed)
    blocks = random.integers(0, num_classes, (-(-shape[0] // coarse), -(-shape[1] // coarse)), np.uint8)
    label = blocks.repeat(coarse, 0).repeat(coarse, 1)[:shape[0], :shape[1]].copy()
    prediction = np.where(random.random(shape) < 0.1, random.integers(0, num_classes, shape, np.uint8), label)
    label[random.random(shape) < void] = VOID
    return prediction, label


def slow_distance(label, limit, void_edges, border):
    h, w = label.shape
    answer = np.full((h, w), limit + 1)
    for y in range(h):
        for x in range(w):
            if label[y, x] == VOID: continue
            steps = [max(abs(y - i), abs(x - j)) for i in range(h) for j in range(w)
                     if label[i, j] != label[y, x] and (void_edges or label[i, j] != VOID)]
            if border: steps += [y + 1, x + 1, h - y, w - x]
            answer[y, x] = min([limit + 1, *steps])
    return answer


def slow_band(mask, width, border):
    "Pixels of a mask with a pixel outside of it at most `width` steps away."
    h, w = mask.shape
    near = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        for i in range(y - width, y + width + 1):
            for j in range(x - width, x + width + 1):
                inside = 0 <= i < h and 0 <= j < w
                near[y, x] |= not mask[i, j] if inside else border
    return near


def slow_boundary_iou(prediction, label, num_classes, width, border):
    "Class by class with masks, as the paper defines it; void has the prediction's class and is not counted."
    void, answer = label == VOID, []
    known = np.where(void, prediction, label)
    for c in range(num_classes):
        mine, true = (slow_band(ids == c, width, border) & ~void for ids in (prediction, known))
        answer.append((mine & true).sum() / (mine | true).sum() if (mine | true).any() else np.nan)
    return np.array(answer)


@pytest.mark.parametrize("void_edges", [False, True])
@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("shape", [(9, 11), (1, 7), (6, 1), (1, 1), (4, 4)])
def test_distance_equals_a_loop_over_all_pairs(void_edges, border, shape):
    for seed in range(6):
        label = pair(2 + seed % 3, shape, seed, coarse=4)[1]
        for limit in (1, 3, 20):
            assert (edge_distance(label, limit, void_edges, border)
                    == slow_distance(label, limit, void_edges, border)).all()


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("void", [0, 0.2])
def test_boundary_iou_equals_a_loop_over_masks(border, void):
    for seed in range(12):
        k = 1 + seed % 5
        prediction, label = pair(k, seed=seed, void=void, coarse=1 + seed % 4)
        for width in (1, 2, 4):
            expected = slow_boundary_iou(prediction, label, k, width, border)
            np.testing.assert_allclose(boundary_iou(prediction, label, k, width, border), expected)


@pytest.mark.parametrize("void_edges", [False, True])
def test_trimaps_equal_a_matrix_of_the_near_pixels(void_edges):
    scores, total = TrimapScores(4, (1, 2, 5), void_edges), {1: 0, 2: 0, 5: 0}
    for seed in range(5):
        prediction, label = pair(4, seed=seed)
        scores.update(prediction, label)
        for width in total:
            near = slow_distance(label, width, void_edges, False) <= width
            total[width] += confusion_matrix(prediction[near], label[near], 4)
    for width, matrix in total.items():
        assert (scores.matrices[width].matrix == matrix).all()
    assert scores.mean_iou() == {width: mean_iou(matrix) for width, matrix in total.items()}
    scores.reset()
    assert all(np.isnan(value) for value in scores.mean_iou().values())


def test_a_band_as_wide_as_the_image_is_the_whole_image():
    prediction, label = pair(3)
    scores = TrimapScores(3, [40])
    scores.update(prediction, label)
    assert (scores.matrices[40].matrix == confusion_matrix(prediction, label, 3)).all()
    everything = boundary_iou(prediction, label, 3, 40)
    known = label != VOID
    union = [((label == c) | (prediction == c))[known].sum() for c in range(3)]
    both = [((label == c) & (prediction == c))[known].sum() for c in range(3)]
    np.testing.assert_allclose(everything, np.divide(both, union))


def test_batches_scores_and_tensors_agree_with_single_images():
    pairs = [pair(3, seed=seed) for seed in range(4)]
    predictions, labels = (np.stack(images) for images in zip(*pairs))
    one_by_one, at_once, tensors = (BoundaryIoU(3, 2) for _ in range(3))
    for prediction, label in pairs: one_by_one.update(prediction, label)
    at_once.update(np.eye(3, dtype=np.float32)[predictions].transpose(0, 3, 1, 2), labels)
    tensors.update(torch.from_numpy(predictions).long(), torch.from_numpy(labels).long())
    assert (one_by_one.matrix == at_once.matrix).all() and (one_by_one.matrix == tensors.matrix).all()
    trimaps = [TrimapScores(3, [2]) for _ in range(2)]
    for prediction, label in pairs: trimaps[0].update(prediction, label)
    trimaps[1].update(torch.from_numpy(predictions), torch.from_numpy(labels))
    assert trimaps[0].mean_iou() == trimaps[1].mean_iou()


def test_void_costs_nothing_whatever_is_predicted_there():
    prediction, label = pair(3, void=0.3)
    random = np.random.default_rng(1)
    perfect = np.where(label == VOID, random.integers(0, 3, label.shape, np.uint8), label)
    for border in (False, True):
        values = boundary_iou(perfect, label, 3, 2, border)
        assert (values[~np.isnan(values)] == 1).all()
    scores = TrimapScores(3)
    scores.update(perfect, label)
    assert set(scores.mean_iou().values()) == {1.0}


def test_void_splits_nothing_but_hides_nothing():
    row = np.array([[1, 1, VOID, 1, 1, VOID, 2, 2]], np.uint8)
    assert edge_distance(row, 5).tolist() == [[6, 5, 6, 3, 2, 6, 2, 3]]
    assert boundary_band(row, 1).sum() == 0
    assert boundary_band(row, 1, void_edges=True).tolist() == [[False, True, False, True, True, False, True, False]]


def test_boundary_iou_is_symmetric_without_void():
    prediction, label = pair(3, void=0)
    np.testing.assert_array_equal(boundary_iou(prediction, label, 3, 2), boundary_iou(label, prediction, 3, 2))


def test_nothing_but_void_and_no_pixels():
    void = np.full((4, 5), VOID, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in (void, np.zeros((0, 5), np.uint8)):
            score, trimaps = BoundaryIoU(2, 1), TrimapScores(2, [1])
            score.update(np.zeros_like(label), label)
            trimaps.update(np.zeros_like(label), label)
            assert np.isnan(score.iou()).all() and np.isnan(score.mean_iou()) and np.isnan(trimaps.mean_iou()[1])


def test_inputs_stay_as_they_are():
    prediction, label = pair(3)
    copies = prediction.copy(), label.copy()
    boundary_iou(prediction, label, 3, 2)
    TrimapScores(3).update(prediction, label)
    assert (prediction == copies[0]).all() and (label == copies[1]).all()


@pytest.mark.parametrize("width", [0, -1, 255, 1.5, "2"])
def test_bad_widths_are_refused(width):
    label = np.zeros((3, 3), np.uint8)
    for call in (lambda: boundary_band(label, width), lambda: BoundaryIoU(2, width), lambda: TrimapScores(2, [width])):
        with pytest.raises(ValueError, match="whole pixels from 1 to 254"): call()


def test_other_mistakes_are_refused():
    prediction, label = pair(3)
    with pytest.raises(ValueError, match="label must be a map of ids"): boundary_band(label / 2, 1)
    with pytest.raises(ValueError, match="label must be a map of ids"): boundary_band(label[0], 1)
    with pytest.raises(ValueError, match="label must hold ids 0 to 255; got -1"): edge_distance(label.astype(int) * 0 - 1, 1)
    for score in (BoundaryIoU(3, 1), TrimapScores(3)):
        with pytest.raises(ValueError, match=r"prediction must have label's shape \(9, 11\); got \(8, 11\)"):
            score.update(prediction[:8], label)
        with pytest.raises(ValueError, match="prediction must hold ids 0 to 2; got 255"): score.update(label, label)
        with pytest.raises(ValueError, match="label must hold ids 0 to 2; got 3"): score.update(prediction, label * 0 + 3)
        assert np.nansum(score.iou() if isinstance(score, BoundaryIoU) else list(score.mean_iou().values())) == 0
    with pytest.raises(ValueError, match="at least one width"): TrimapScores(3, [])
    for number in (0, 255):
        with pytest.raises(ValueError, match="num_classes must be 1 to 254"): BoundaryIoU(number, 1)


def test_254_classes_fit():
    label = np.arange(254, dtype=np.uint8).reshape(2, 127)
    assert (boundary_iou(label, label, 254, 1) == 1).all()


def test_both_scores_of_an_image_take_well_under_a_fifth_of_a_second():
    prediction, label = pair(11, (360, 480), coarse=24)
    trimaps, score, times = TrimapScores(11), BoundaryIoU(11, 12), []
    for _ in range(3):
        start = time.process_time()
        trimaps.update(prediction, label)
        score.update(prediction, label)
        times.append(time.process_time() - start)
    assert min(times) < 0.1


def test_numpy_is_enough():
    code = "import sys, semseg_course.boundaries; print(sorted({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
