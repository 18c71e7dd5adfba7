"""Toy Streets: all classes, CamVid's balance, depth and instances that agree. See test_drawn.py, too."""
import json
from importlib.resources import files

import numpy as np
import pytest

from semseg_course.data import painting, toy_streets
from semseg_course.data.labels import CAMVID, VOID
from semseg_course.data.painting import BICYCLIST, CAR, FAR, PEDESTRIAN, POLE, SKY
from semseg_course.data.sprites import Dice, bodies, cyclists, draw, facade, fences, furniture, hedge, people, trees
from semseg_course.data.toy_streets import ToyStreets


def test_raw_words_of_the_dice():
    assert [Dice(0).raw(), Dice(2016, 1).raw()] == [11749869230777074271, 3150808788246929709]
    numbers = [Dice(1, 2, 3).random() for _ in range(3)]
    assert numbers == [numbers[0]] * 3 and 0 <= numbers[0] < 1


def test_dice_keep_their_ranges():
    dice = Dice(3)
    for low, high in ((0, 1), (-5, 5), (10, 10.5)):
        for throw in (dice.uniform, dice.bell): assert all(low <= throw(low, high) < high for _ in range(500))
    assert {dice.choice("abc") for _ in range(100)} == set("abc")
    assert abs(sum(dice.chance(0.25) for _ in range(4000)) / 4000 - 0.25) < 0.03
    assert dice.bytes(3, 5).shape == (3, 5)


def test_labels_are_classes_or_void():
    assert set(np.unique(ToyStreets((100, 150), 3, 4).scene(1).label)) <= {*range(11), VOID}


@pytest.fixture(scope="module")
def counted():
    labels = [label for _, label in ToyStreets((96, 128), 300, seed=1)]
    return np.array([np.bincount(label.ravel(), minlength=256) for label in labels])


def test_shares_are_near_those_of_camvid(counted):
    total = counted.sum(0)
    statistics = json.loads((files("semseg_course") / "data/camvid_statistics.json").read_text())
    real = np.array(statistics["splits"]["train"]["pixels"])
    ratio = total[:11] / total[:11].sum() / (real / real.sum())
    assert (ratio > 0.7).all() and (ratio < 1.5).all(), dict(zip(CAMVID.names, ratio.round(2)))
    assert 0.03 < total[VOID] / total.sum() < 0.055


def test_every_class_is_common_at_the_small_size(counted):
    assert ((counted[:, :11] > 0).mean(0) > 0.8).all()


@pytest.mark.parametrize("difficulty", [0, 1])
def test_every_class_is_there_at_both_ends(difficulty):
    labels = np.stack([label for _, label in ToyStreets(count=40, seed=3, difficulty=difficulty)])
    assert set(range(11)) <= set(np.unique(labels).tolist())


def test_difficulty_makes_images_noisier_and_streets_fuller():
    easy, hard = ([ToyStreets(count=20, seed=2, difficulty=d).scene(i) for i in range(20)] for d in (0, 1))
    rough = lambda scenes: np.mean([np.abs(np.diff(s.image[-20:].astype(int), axis=1)).mean() for s in scenes])
    things = lambda scenes: np.mean([np.unique(s.instances[s.label == CAR]).size for s in scenes])
    assert rough(hard) > 1.5 * rough(easy) and things(hard) > 1.3 * things(easy)


def test_poles_are_thin():
    widths = []
    for _, label in ToyStreets(count=30, seed=2):
        for row in label == POLE: widths += [len(run) for run in "".join("01"[int(p)] for p in row).split("0") if run]
    assert np.median(widths) == 1 and np.quantile(widths, 0.75) <= 3


def test_depth_and_instances_agree_with_the_label():
    for index in range(20):
        scene = ToyStreets((120, 160), 20, seed=6).scene(index)
        assert (scene.depth[scene.label == SKY] == FAR).all() and (scene.depth > 0).all()
        for label in (CAR, PEDESTRIAN, BICYCLIST): assert (scene.instances[scene.label == label] > 0).all()
        for thing in np.unique(scene.instances[scene.label == CAR]):
            classes = set(scene.label[scene.instances == thing].tolist())
            assert classes <= {CAR, VOID}


def test_ground_depth_grows_towards_the_horizon():
    depth, label = ToyStreets((96, 128), 5).scene(2)[2:0:-1]
    for column in range(10, 128, 13):
        rows = np.flatnonzero(label[:, column] == painting.ROAD)
        assert (np.diff(depth[rows, column]) <= 0).all()


def test_sprites_name_their_parts():
    sprites = [*people(), *cyclists(), *fences(), hedge(), *(facade(i) for i in range(16)), *furniture()["plates"]]
    sprites += [tree for kind in trees().values() for tree in kind] + [s for body in bodies().values() for s in body[:4]]
    known = set(painting.PLAIN) | {f"leaf{i}" for i in range(4)} | set(toy_streets.dressed(Dice(0)))
    known |= {"body", "wall", "course", "cornice", "board", "plank", "plank_dark", "plank_light"} | set(painting.SHINING)
    for sprite in sprites:
        assert sprite.parts.dtype == np.uint8 and 0 < sprite.parts.max() <= len(sprite.roles)
        assert set(sprite.roles) <= known


def test_draw_puts_later_shapes_on_top():
    everywhere = lambda x, y: (x == x) & (y == y)
    right, upper = lambda x, y: (x > 0.5) & (y == y), lambda x, y: y + 0 * x > 0.5
    sprite = draw(1, 1, [("below", everywhere), ("above", right), (None, upper)], 4)
    assert sprite.parts.tolist() == [[0] * 4] * 2 + [[1, 1, 2, 2]] * 2
