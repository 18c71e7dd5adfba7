"""Road or not road: two classes, KITTI's colours, scores against slow counts, and the view from above."""
import numpy as np
import pytest
import torch

from semseg_course.data.batches import TrainingSet
from semseg_course.data.datasets import CamVid, find_camvid, mini_camvid
from semseg_course.data.labels import CAMVID, VOID, ClassTable, colorize
from semseg_course.data.painting import Camera
from semseg_course.data.toy_streets import ToyStreets
from semseg_course.road import (
    ROAD,
    RoadOnly,
    RoadScores,
    average_precision,
    birds_eye,
    f_measure,
    max_f,
    precision_recall,
    read_road_label,
    road_probability,
)

ROAD_ID = CAMVID.names.index("Road")


class Labels:
    "A data set of given labels over black images."
    def __init__(self, *labels, classes=CAMVID): self.labels, self.classes = labels, classes
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return np.zeros((*self.labels[i].shape, 3), np.uint8), self.labels[i]


def pixels(count, seed=0, void=0.2):
    "Probabilities on and off the grid of 256, and truths that they somewhat agree with."
    random = np.random.default_rng(seed)
    target = (random.random(count) < 0.3).astype(np.uint8)
    probability = np.clip(0.35 * target + random.normal(0.3, 0.25, count), 0, 1)
    probability[::3] = np.round(probability[::3] * 255) / 255  # exactly on a threshold
    target[random.random(count) < void] = VOID
    return probability, target


def test_every_id_becomes_road_other_or_void():
    label = np.array([[*range(11), VOID]], np.uint8)
    dataset = RoadOnly(Labels(label))
    image, road = dataset[0]
    assert road.dtype == np.uint8 and image.shape == (1, 12, 3) and len(dataset) == 1
    assert (road == np.array([[1 if i == ROAD_ID else VOID if i == VOID else 0 for i in label[0]]])).all()
    assert dataset.classes is ROAD and ROAD.names == ("Other", "Road")
    assert label[0, -1] == VOID and label[0, ROAD_ID] == ROAD_ID, "the label itself is not changed"


def test_several_classes_may_be_road():
    both = RoadOnly(Labels(np.arange(11, dtype=np.uint8)[None]), road=("Road", "Pavement"))[0][1]
    assert np.flatnonzero(both[0]).tolist() == [ROAD_ID, ROAD_ID + 1]


def test_bad_classes_and_labels_are_named():
    with pytest.raises(ValueError, match=r"Sky, Building.*got \['Street'\]"): RoadOnly(Labels(), road=("Street",))
    with pytest.raises(ValueError, match="road must name classes"): RoadOnly(Labels(), road=())
    with pytest.raises(ValueError, match=r"label 0 must hold ids 0 to 10 or 255; got \[11, 200\]"):
        RoadOnly(Labels(np.array([[3, 11, 200, VOID]], np.uint8)))[0]


def test_works_on_toy_streets_and_for_training():
    streets = ToyStreets((32, 48), 3, seed=5)
    roads = RoadOnly(streets)
    for i in range(3):
        image, label = roads[i]
        assert (image == streets[i][0]).all() and ((label == 1) == (streets[i][1] == ROAD_ID)).all()
        assert ((label == VOID) == (streets[i][1] == VOID)).all()
    x, target = TrainingSet(roads, flip=False)[0, 1]
    assert x.shape == (3, 32, 48) and (target.numpy() == roads[1][1]).all()
    with pytest.raises(IndexError): roads[3]


def test_works_on_folders_in_camvid_form(tmp_path):
    mini_camvid(tmp_path)
    inner = CamVid(tmp_path, "train")
    roads = RoadOnly(inner)
    assert roads.names == inner.names and len(roads) == len(inner)
    assert set(np.unique(roads[0][1])) <= {0, 1, VOID}
    TrainingSet(roads, crop=(32, 32)).settings()


@pytest.mark.skipif(find_camvid() is None, reason="CamVid is not here")
def test_works_on_camvid():
    image, label = RoadOnly(CamVid(find_camvid(), "val"))[0]
    assert 0.1 < (label == 1).mean() < 0.6 and label.shape == image.shape[:2]


# KITTI's colours

def test_label_colours_and_back():
    label = np.random.default_rng(0).choice([0, 1, VOID], (7, 9)).astype(np.uint8)
    picture = colorize(label, ROAD)
    assert (read_road_label(picture) == label).all() and read_road_label(picture).dtype == np.uint8
    assert picture[label == 1][0].tolist() == [255, 0, 255] and picture[label == 0][0].tolist() == [255, 0, 0]


def test_mistaken_label_pictures_are_named():
    picture = colorize(np.array([[0, 1], [VOID, 0]], np.uint8), ROAD)
    with pytest.raises(ValueError, match=r"got \[\(0, 0, 255\)\] in 2 pixels.*reverse them"): read_road_label(picture[..., ::-1])
    with pytest.raises(ValueError, match="resized smoothly"): read_road_label((picture * 0.9).astype(np.uint8))
    with pytest.raises(ValueError, match="red, magenta and black alone"): read_road_label(np.full((2, 2, 3), 255, np.uint8))
    for bad in (picture[..., 0], picture.astype(float), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"picture must be uint8 \(h, w, 3\)"): read_road_label(bad)


# Scores

@pytest.mark.parametrize("thresholds", [2, 11, 256])
def test_stream_equals_a_slow_count(thresholds):
    probability, target = pixels(2000)
    stream = RoadScores(thresholds)
    for part in np.array_split(np.arange(2000), 7): stream.update(probability[part], target[part])
    for k, t in enumerate(stream.thresholds):
        slow = [sum(p >= t and y == truth for p, y in zip(probability, target)) for truth in (0, 1)]
        assert stream.reached()[:, k].tolist() == slow
    assert stream.counts.sum(1).tolist() == [(target == 0).sum(), (target == 1).sum()]


def test_order_batches_shapes_and_kinds_do_not_matter():
    probability, target = pixels(600)
    whole, parts, tensors = RoadScores(), RoadScores(), RoadScores()
    whole.update(probability, target)
    for i in np.random.default_rng(1).permutation(600): parts.update(probability[i:i + 1], target[i:i + 1])
    tensors.update(torch.from_numpy(probability).view(2, 30, 10).requires_grad_(), torch.from_numpy(target).view(2, 30, 10))
    assert (whole.counts == parts.counts).all() and (whole.counts == tensors.counts).all()
    whole.reset()
    assert not whole.counts.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_probabilities_of_mixed_precision_are_taken(dtype):
    values = torch.arange(256, dtype=torch.float64).div(255).to(dtype)
    half, double = RoadScores(), RoadScores()
    half.update(values, torch.ones(256, dtype=torch.int64))
    double.update(values.double().numpy(), np.ones(256, int))
    assert (half.counts == double.counts).all()


def test_void_is_never_counted():
    probability, target = pixels(500)
    other = np.where(target == VOID, 1 - probability, probability)
    first, second = RoadScores(), RoadScores()
    first.update(probability, target)
    second.update(other, target)
    assert (first.counts == second.counts).all()
    first.update(np.full(5, np.nan), np.full(5, VOID))  # nobody looks at what is void
    assert (first.counts == second.counts).all()


def test_eight_bit_probabilities_meet_the_grid_exactly():
    values = np.arange(256)
    stream = RoadScores()
    stream.update(values / 255, np.ones(256, int))
    assert stream.reached()[1].tolist() == (256 - values).tolist()


def test_summary_by_definition():
    probability, target = pixels(3000, seed=3)
    stream = RoadScores()
    stream.update(probability, target)
    summary = stream.summary()
    p, y = probability[target != VOID], target[target != VOID] == 1
    best = max(2 * ((p >= k / 255) & y).sum() / ((p >= k / 255).sum() + y.sum()) for k in range(256))
    found = p >= summary["threshold"]
    assert summary["max_f"] == pytest.approx(best)
    assert summary["precision"] == pytest.approx(y[found].mean()) and summary["recall"] == pytest.approx(found[y].mean())
    assert summary["false_positive_rate"] == pytest.approx(found[~y].mean())
    assert summary["false_negative_rate"] == pytest.approx((~found)[y].mean())
    assert summary["pixel_accuracy"] == pytest.approx((found == y).mean())
    assert summary["max_f"] == pytest.approx(f_measure(summary["precision"], summary["recall"]))


def test_average_precision_by_a_slow_loop():
    probability, target = pixels(1000, seed=4)
    stream = RoadScores()
    stream.update(probability, target)
    precision, recall = stream.curve()
    slow = []
    for level in range(11):
        reached = [q for q, r in zip(precision, recall) if r >= level / 10 and not np.isnan(q)]
        slow.append(max(reached, default=0.0))
    assert average_precision(precision, recall) == pytest.approx(sum(slow) / 11)
    assert stream.summary()["average_precision"] == pytest.approx(sum(slow) / 11)


def test_perfect_and_hopeless_detectors():
    target = np.array([1, 1, 0, 0, 0, VOID])
    perfect, hopeless = RoadScores(), RoadScores()
    perfect.update((target == 1).astype(float), target)
    hopeless.update(np.zeros(6), target)
    assert perfect.summary() == pytest.approx(dict(
        max_f=1, threshold=1 / 255, precision=1, recall=1, average_precision=1, false_positive_rate=0,
        false_negative_rate=0, pixel_accuracy=1))
    assert hopeless.summary()["precision"] == pytest.approx(2 / 5) and hopeless.summary()["false_positive_rate"] == 1
    assert np.isnan(hopeless.curve()[0][1:]).all() and hopeless.curve()[1][1:].max() == 0


def test_only_road_has_no_false_positive_rate():
    stream = RoadScores()
    stream.update([0.9, 0.8], [1, 1])
    assert np.isnan(stream.summary()["false_positive_rate"]) and stream.summary()["max_f"] == 1


def test_precision_recall_and_f():
    precision, recall = precision_recall([3, 0, 0], [2, 0, 1], 4)
    assert precision[0] == pytest.approx(0.6) and np.isnan(precision[1]) and precision[2] == 0
    assert recall.tolist() == [0.75, 0, 0]
    assert f_measure(precision, recall).tolist() == pytest.approx([2 / 3, 0, 0])
    assert np.isnan(precision_recall(0, 1, 0)[1])
    assert max_f([0.5, 1.0, np.nan], [1.0, 0.5, 0.0]) == (pytest.approx(2 / 3), 0)
    assert average_precision([1.0], [0.5]) == pytest.approx(6 / 11)


def test_bad_scores_are_named():
    stream = RoadScores()
    with pytest.raises(ValueError, match="got none"): stream.curve()
    with pytest.raises(ValueError, match=r"probability must have target's shape \(3,\); got \(2,\)"):
        stream.update([0, 1], [0, 1, 1])
    for bad in ([1.2], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="between 0 and 1"): stream.update(bad, [1])
    with pytest.raises(ValueError, match=r"target must hold 0, 1 and 255; got \[3\]"): stream.update([0.5], [3])
    with pytest.raises(ValueError, match="thresholds must be at least 2"): RoadScores(1)
    assert not stream.counts.any(), "a refused batch leaves no trace"


def test_probability_is_the_softmax():
    scores = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(road_probability(scores), torch.sigmoid(scores[:, 1] - scores[:, 0]))
    for bad in (torch.zeros(1, 3, 2, 2), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match=r"scores must be \(n, 2, h, w\)"): road_probability(bad)


# From above

CAMERA = Camera(height=96, width=128, focal=100, horizon=40, centre=64, eye=1.5)


def test_each_cell_is_the_pixel_it_falls_on():
    rows, columns = np.mgrid[:96, :128]
    above = birds_eye(np.stack([rows, columns], 2), CAMERA, outside=-1, cell=0.5)
    assert above.shape == (80, 40, 2)
    for i, j in np.random.default_rng(0).integers(0, (80, 40), (50, 2)):
        z, x = 46 - 0.5 * (i + 0.5), -10 + 0.5 * (j + 0.5)
        row, column = 40 + 100 * 1.5 / z, 64 + 100 * x / z
        expected = [int(row), int(column)] if 0 <= row < 96 and 0 <= column < 128 else [-1, -1]
        assert above[i, j].tolist() == expected


def test_ground_that_is_not_shown_is_void():
    above = birds_eye(np.ones((96, 128), np.uint8), CAMERA)
    assert above.shape == (800, 400) and set(np.unique(above)) == {1, VOID}
    assert above[0].max() == 1 and above[-1, 0] == VOID, "all that is far is in the image, near corners are not"
    high = CAMERA._replace(horizon=200)
    assert (birds_eye(np.ones((96, 128), np.uint8), high) == VOID).all()


def test_colours_and_types_are_kept():
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    assert birds_eye(picture, CAMERA, 0).shape == (800, 400, 3) and birds_eye(picture, CAMERA, 0).dtype == np.uint8
    assert birds_eye(picture[..., 0] / 255, CAMERA, 0).dtype == np.float64


@pytest.mark.parametrize("bad", [dict(ahead=(0, 46)), dict(ahead=(-6, 46)), dict(ahead=(46, 6)), dict(sides=(3, 3)),
                                 dict(cell=0)])
def test_impossible_ground_is_refused(bad):
    with pytest.raises(ValueError, match="ahead must be"): birds_eye(np.zeros((96, 128)), CAMERA, **bad)


def test_other_class_tables_work():
    table = ClassTable(("track", "grass"), ((1, 2, 3), (4, 5, 6)))
    dataset = RoadOnly(Labels(np.array([[0, 1, VOID]], np.uint8), classes=table), road=("track",))
    assert dataset[0][1].tolist() == [[1, 0, VOID]]
