"""The confusion matrix and its numbers against a slow loop, against torchmetrics, and on bad input."""
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from semseg_course import metrics
from semseg_course.data.labels import CAMVID, VOID
from semseg_course.metrics import ConfusionMatrix, class_maximum, confusion_matrix, iou, mean_iou


def slow(predictions, target, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(predictions.ravel().tolist(), target.ravel().tolist()):
        if t != VOID: matrix[t, p] += 1
    return matrix


def pair(num_classes, shape=(3, 17, 23), seed=0, void=0.1):
    random = np.random.default_rng(seed)
    target = random.integers(0, num_classes, shape, np.uint8)
    target[random.random(shape) < void] = VOID
    return random.integers(0, num_classes, shape, np.uint8), target


@pytest.mark.parametrize("num_classes", [1, 2, 11, 15, 16, 19, 150, 254, 255])
def test_matrix_equals_a_slow_loop(num_classes):
    predictions, target = pair(num_classes)
    matrix = confusion_matrix(predictions, target, num_classes)
    assert matrix.dtype == np.int64 and (matrix == slow(predictions, target, num_classes)).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_tensors_and_arrays_of_all_whole_types_agree(dtype):
    predictions, target = pair(11)
    expected = slow(predictions, target, 11)
    tensors = torch.from_numpy(predictions).to(dtype), torch.from_numpy(target).to(dtype)
    assert (confusion_matrix(*tensors, 11) == expected).all()
    assert (confusion_matrix(*(t.numpy() for t in tensors), 11) == expected).all()
    assert (confusion_matrix(predictions, tensors[1], 11) == expected).all()


def test_inputs_are_not_changed_and_need_not_be_contiguous():
    predictions, target = pair(11, (20, 30))
    copies = predictions.copy(), target.copy()
    part = predictions[::2, ::3], target[::2, ::3]
    assert (confusion_matrix(*part, 11) == slow(*part, 11)).all()
    assert (confusion_matrix(predictions.T, target.T, 11) == slow(*copies, 11)).all()
    assert (predictions == copies[0]).all() and (target == copies[1]).all()


@pytest.mark.parametrize("num_classes", [11, 20])
def test_no_pixels_and_nothing_but_void(num_classes):
    nothing = np.zeros((0, 4), np.uint8)
    void = np.full((2, 3), VOID, np.uint8)
    for pair in ((nothing, nothing), (np.zeros_like(void), void)):
        matrix = confusion_matrix(*pair, num_classes)
        assert matrix.shape == (num_classes, num_classes) and matrix.sum() == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isnan(mean_iou(matrix)) and np.isnan(metrics.pixel_accuracy(matrix))
            assert np.isnan(metrics.mean_accuracy(matrix)) and np.isnan(metrics.frequency_weighted_iou(matrix))


@pytest.mark.parametrize("predictions, target, words", [
    (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), r"target's shape \(3, 2\); got \(2, 3\)"),
    (np.zeros(2), np.zeros(2, int), "predictions must hold whole numbers.*got float64"),
    (np.zeros(2, int), torch.zeros(2), "target must hold whole numbers.*got float32"),
    (np.zeros(2, bool), np.zeros(2, int), "got bool"),
    (np.array([0, 5]), np.zeros(2, int), r"predictions must hold ids 0 to 4; got \[5\]"),
    (np.array([0, VOID]), np.zeros(2, int), "Void is no answer"),
    (np.zeros(3, int), np.array([0, 7, 9]), r"target must hold ids 0 to 4; got \[7, 9\]"),
    (np.zeros(2, int), np.array([0, -100]), "target must hold ids 0 to 255; got -100"),
    (np.zeros(2, int), np.array([0, 256]), "target must hold ids 0 to 255; got 256"),
    (torch.tensor([-1, 0]), np.zeros(2, int), "predictions must hold ids 0 to 255; got -1"),
])
def test_bad_input_is_named(predictions, target, words):
    with pytest.raises(ValueError, match=words): confusion_matrix(predictions, target, 5)


@pytest.mark.parametrize("wrong", range(12, VOID))
def test_no_id_out_of_range_slips_through_a_byte(wrong):
    "Pairs of bytes overflow for large ids, so each must be refused before."
    ids = np.array([0, wrong], np.uint8)
    with pytest.raises(ValueError, match=f"target.*{wrong}"): confusion_matrix(np.zeros(2, np.uint8), ids, 12)
    with pytest.raises(ValueError, match=f"predictions.*{wrong}"): confusion_matrix(ids, np.zeros(2, np.uint8), 12)


@pytest.mark.parametrize("num_classes", [0, -1, 256])
def test_a_class_count_out_of_range_is_refused(num_classes):
    one = np.zeros(1, int)
    with pytest.raises(ValueError, match="num_classes must be 1 to 255"): confusion_matrix(one, one, num_classes)


def test_a_matrix_must_be_square():
    for name in ("iou", "mean_iou", "accuracy", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"):
        with pytest.raises(ValueError, match=r"got \(2, 3\)"): getattr(metrics, name)(np.zeros((2, 3)))


def test_absent_classes_are_left_out_and_false_ones_count():
    matrix = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]])  # only class 0 occurs
    assert np.isnan(iou(matrix)).tolist() == [False, True, True] and mean_iou(matrix) == 1
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])  # class 1 is predicted and never true
    assert iou(matrix)[:2].tolist() == [0.75, 0] and mean_iou(matrix) == 0.375
    assert metrics.mean_accuracy(matrix) == 0.75


@pytest.mark.parametrize("num_classes", [3, 12, 21])
def test_equals_torchmetrics(num_classes):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

    def each(metric, *averages): return {a: metric(num_classes, average=a, ignore_index=VOID) for a in averages}

    ours, theirs = ConfusionMatrix(num_classes), MulticlassConfusionMatrix(num_classes, ignore_index=VOID)
    jaccard = each(MulticlassJaccardIndex, "macro", "none", "weighted")
    accuracy = each(MulticlassAccuracy, "macro", "micro")
    for seed in range(3):
        predictions, target = pair(num_classes, seed=seed)
        ours.update(predictions, target)
        for metric in (theirs, *jaccard.values(), *accuracy.values()):
            metric.update(torch.from_numpy(predictions).long(), torch.from_numpy(target).long())
    matrix = ours.matrix
    assert (matrix == theirs.compute().numpy()).all()
    assert np.allclose(iou(matrix), jaccard["none"].compute())
    assert np.isclose(mean_iou(matrix), jaccard["macro"].compute())
    assert np.isclose(metrics.frequency_weighted_iou(matrix), jaccard["weighted"].compute())
    assert np.isclose(metrics.pixel_accuracy(matrix), accuracy["micro"].compute())
    assert np.isclose(metrics.mean_accuracy(matrix), accuracy["macro"].compute())


@pytest.mark.parametrize("shape", [(2, 12, 45, 61), (1, 1, 4, 4), (3, 2, 1, 1), (1, 255, 3, 5), (2, 5, 300, 700),
                                   (0, 3, 4, 4)])
def test_class_maximum_equals_argmax(shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = class_maximum(scores)
    assert labels.dtype == torch.uint8 and (labels == scores.argmax(1)).all()
    assert (class_maximum(scores.numpy()) == scores.numpy().argmax(1)).all()


def test_ties_go_to_the_lowest_class():
    scores = torch.randint(-2, 3, (2, 12, 50, 60), generator=torch.Generator().manual_seed(0)).float()
    assert (class_maximum(scores).numpy() == scores.numpy().argmax(1)).all()
    assert (class_maximum(torch.zeros(1, 7, 2, 2)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_class_maximum_takes_other_numbers(dtype):
    scores = (10 * torch.randn((2, 5, 8, 9), generator=torch.Generator().manual_seed(0))).to(dtype)
    assert (class_maximum(scores).numpy() == scores.double().numpy().argmax(1)).all()


def test_class_maximum_takes_any_layout_and_gradients():
    scores = torch.randn(2, 5, 8, 9, requires_grad=True)
    expected = scores.argmax(1)
    assert (class_maximum(scores) == expected).all()
    assert (class_maximum(scores.to(memory_format=torch.channels_last)) == expected).all()
    assert (class_maximum(scores.transpose(2, 3)) == expected.transpose(1, 2)).all()


def test_infinities_are_numbers_and_nan_is_not():
    scores = torch.full((1, 3, 1, 2), -torch.inf)
    scores[0, 2, 0, 1] = torch.inf
    assert class_maximum(scores).tolist() == [[[0, 2]]]
    for c in range(3):
        broken = torch.zeros(1, 3, 2, 2)
        broken[0, c, 1, 1] = torch.nan
        with pytest.raises(ValueError, match="got NaN"): class_maximum(broken)
        with pytest.raises(ValueError, match="got NaN"): class_maximum(broken.numpy())


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 0, 4, 4), (1, 256, 2, 2)])
def test_scores_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="scores must be"): class_maximum(np.zeros(shape, np.float32))


def test_a_stream_equals_the_whole():
    scores, (_, target) = torch.randn(4, 11, 17, 23), pair(11, (4, 17, 23))
    stream, labels = ConfusionMatrix(11), ConfusionMatrix(11)
    for i in range(4):
        stream.update(scores[i:i + 1], target[i:i + 1])
        labels.update(class_maximum(scores[i:i + 1]), target[i:i + 1])
    assert (stream.matrix == confusion_matrix(scores.argmax(1), target, 11)).all()
    assert (stream.matrix == labels.matrix).all()
    stream.reset()
    assert stream.matrix.sum() == 0 and labels.matrix.sum() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_same_on_a_gpu():
    scores, (_, target) = torch.randn(2, 11, 17, 23), pair(11, (2, 17, 23))
    labels = class_maximum(scores.cuda())
    assert labels.device.type == "cuda" and (labels.cpu() == class_maximum(scores)).all()
    expected = confusion_matrix(class_maximum(scores), target, 11)
    assert (confusion_matrix(labels, torch.from_numpy(target).cuda(), 11) == expected).all()
    with pytest.raises(ValueError, match="got NaN"): class_maximum(torch.full((1, 2, 2, 2), torch.nan).cuda())


def test_scores_on_another_device_take_torchs_own_maximum():
    "The meta device stands in for a GPU up to the first look at a value."
    with pytest.raises((NotImplementedError, RuntimeError)): class_maximum(torch.zeros(1, 3, 2, 2, device="meta"))


def test_the_heat_map_shows_percent_of_the_row():
    matrix = np.zeros((11, 11), int)
    matrix[0, 0], matrix[0, 3], matrix[3, 3] = 3, 1, 5
    axis = metrics.show_matrix(matrix, CAMVID).axes[0]
    assert [text.get_text() for text in axis.texts] == ["75", "25", "0", "100"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["Sky", "Road"]


def test_import_and_use_on_arrays_load_no_torch():
    code = ("import sys, numpy as np; from semseg_course.metrics import *; c = ConfusionMatrix(3); "
            "c.update(np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8)); "
            "print([m for m in ('torch', 'matplotlib', 'tensorflow') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_faster_than_argmax_and_torchmetrics():
    "A small version of tests/benchmarks/metrics_speed.py with wide margins, as other work may run beside it."
    import time

    from torchmetrics.classification import MulticlassConfusionMatrix

    def fastest(function): return min(_seconds(function, time.perf_counter) for _ in range(5))

    scores, (_, target) = torch.randn(4, 12, 180, 240), pair(12, (4, 180, 240))
    target = torch.from_numpy(target)
    labels, theirs = class_maximum(scores), MulticlassConfusionMatrix(12, ignore_index=VOID)
    wide = labels.long(), target.long()
    both, matrix = lambda: confusion_matrix(class_maximum(scores), target, 12), lambda: confusion_matrix(labels, target, 12)
    assert fastest(lambda: torch.argmax(scores, 1)) > 1.5 * fastest(both)
    assert fastest(lambda: theirs.update(*wide)) > 5 * fastest(matrix)


def _seconds(function, clock):
    start = clock()
    function()
    return clock() - start
