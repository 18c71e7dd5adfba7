"""Toy Eyes: a label that is the part Iris, parts that look and lie as they should. See test_drawn.py, too."""
import numpy as np
import pytest

from semseg_course.data import toy_eyes
from semseg_course.data.sprites import Dice
from semseg_course.data.toy_eyes import (
    BALL,
    GLASSES,
    IRIS,
    LASHES,
    PARTS,
    PUPIL,
    REFLECTION,
    SKIN,
    Layers,
    ToyEyes,
)


def test_parts_are_those_with_names():
    assert set(np.unique(ToyEyes((100, 150), 3, 4).scene(1).parts)) <= set(range(len(PARTS)))


@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_the_label_is_the_part_iris_and_every_image_has_some(difficulty):
    shares = []
    for index in range(150):
        scene = ToyEyes(count=150, seed=9, difficulty=difficulty).scene(index)
        assert (scene.label == (scene.parts == IRIS)).all()
        shares.append(scene.label.mean())
    assert 0.003 < min(shares) and max(shares) < 0.15 and 0.03 < np.mean(shares) < 0.075


def test_all_parts_occur_and_only_some_images_have_glasses():
    parts = np.stack([ToyEyes(count=60, seed=3, difficulty=0.8).scene(i).parts for i in range(60)])
    assert set(np.unique(parts).tolist()) == {SKIN, BALL, IRIS, PUPIL, LASHES, REFLECTION, GLASSES}
    assert 5 < (parts == GLASSES).any((1, 2)).sum() < 55
    easy = np.stack([ToyEyes(count=30, seed=3, difficulty=0).scene(i).parts for i in range(30)])
    assert not (easy == GLASSES).any()


def test_infrared_images_are_grey_and_others_are_not():
    scenes = [ToyEyes(count=40, seed=1).scene(i) for i in range(40)]
    for scene in scenes: assert scene.eye.infrared == (scene.image == scene.image[..., :1]).all()
    assert 3 < sum(scene.eye.infrared for scene in scenes) < 20


def test_a_pixel_belongs_to_the_layer_with_the_largest_share():
    "Against all shares, worked out one by one."
    random = np.random.default_rng(0)
    for _ in range(20):
        covers, parts = random.integers(0, 9, (5, 6, 7)) / 8, random.permutation(7)[:5]
        covers[0] = 1
        layers, shares = Layers((6, 7), 1.0), []
        for cover, part in zip(covers, parts):
            layers.lay(cover.astype(np.float32), (0, 0, 0), part)
            shares = [share * (1 - cover) for share in shares] + [cover]
        assert (layers.parts == parts[np.argmax(shares, 0)]).all()
        assert np.allclose(layers.most, np.max(shares, 0))


def test_windows_hold_what_is_painted():
    "A lamp near any edge, on a tilted head, is the same with its window and on the whole image."
    for index in range(30):
        dice = Dice(7, index)
        layers = Layers((60, 80), 0.4, tilt=dice.uniform(-0.3, 0.3))
        eye = toy_eyes.plan_eye(dice, 1.0)
        x, y, radius = dice.uniform(-18, 18), dice.uniform(-14, 14), dice.uniform(0.5, 3)
        toy_eyes.paint_lamp(layers, eye, x, y, radius)
        far = np.hypot(layers.x - x - eye.gaze[0], layers.y - y - eye.gaze[1])
        assert ((layers.parts == REFLECTION) == (layers.cover(radius - far, 0.25) > 0))[abs(radius - far) > 0.01].all()


def test_difficulty_hides_more_of_the_iris():
    shares = [np.mean([label.mean() for _, label in ToyEyes(count=60, seed=2, difficulty=d)]) for d in (0, 0.5, 1)]
    assert shares[0] > 1.1 * shares[1] > 1.2 * shares[2]
