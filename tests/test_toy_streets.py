"""Toy Streets: the same bytes everywhere, all classes, CamVid's balance, clear errors, and fast enough."""
import hashlib
import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from multiprocessing import get_context

import numpy as np
import pytest

from semseg_course.data import painting, toy_streets
from semseg_course.data.labels import CAMVID, VOID
from semseg_course.data.painting import BICYCLIST, CAR, FAR, PEDESTRIAN, POLE, SKY
from semseg_course.data.sprites import Dice, bodies, cyclists, draw, facade, fences, furniture, hedge, people, trees
from semseg_course.data.toy_streets import ToyStreets

KNOWN = {  # (size, seed, difficulty, scene): SHA-256 of image, label, depth and instances
    ((96, 128), 0, 0.5, 0): "6c3bdf240d31e2f34b91564880d3c030839801b1c97f8e9077254565ec86033a",
    ((96, 128), 1, 0.0, 17): "165f54d28a286baf0e3a2619535991025769e5b49e4f465ba62bb8a033289f16",
    ((120, 200), 2, 1.0, 3): "f35e129c9d9b6b84ec4c5ba20592fb10098483f23aff37e542b5a10d58de8fa4",
    ((360, 480), 0, 0.5, 5): "08427c4b4137e003c27821f602e3bd80c620413b2e5db0825a385dc840e392e4",
}


def fingerprint(size, seed, difficulty, index):
    digest = hashlib.sha256()
    for array in ToyStreets(size, 100, seed, difficulty).scene(index): digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("key", KNOWN, ids=str)
def test_scenes_have_known_bytes(key):
    assert fingerprint(*key) == KNOWN[key]


def test_without_simd_the_bytes_are_the_same():
    "NumPy's plain loops, in a process of their own, give what the vectorised ones give."
    key = next(iter(KNOWN))
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_toy_streets as t; print(t.fingerprint(*{key!r}))"
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={"NPY_DISABLE_CPU_FEATURES": features},
                         capture_output=True, text=True)
    if run.returncode and "NPY_DISABLE_CPU_FEATURES" in run.stderr: pytest.skip("this NumPy was built without dispatch")
    assert run.stdout.strip() == KNOWN[key], run.stderr


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


def test_types_shapes_and_values():
    scene = ToyStreets((100, 150), 3, 4).scene(1)
    assert [a.dtype for a in scene] == [np.uint8, np.uint8, np.float32, np.uint16]
    assert [a.shape for a in scene] == [(100, 150, 3)] + [(100, 150)] * 3
    assert all(a.flags["C_CONTIGUOUS"] and a.flags["OWNDATA"] or a.base is not None for a in scene)
    assert set(np.unique(scene.label)) <= {*range(11), VOID}


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 300), (300, 32), (97, 131), (240, 320)])
@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_any_size_is_drawn(size, difficulty):
    for image, label in ToyStreets(size, 6, 11, difficulty): assert image.shape == (*size, 3) and label.shape == size


def test_a_scene_depends_on_seed_and_index_only():
    few, many = ToyStreets(count=3, seed=5), ToyStreets(count=50, seed=5)
    assert (few[2][0] == many[2][0]).all() and (few[-1][0] == few[2][0]).all()
    assert (few[np.int64(2)][0] == few[2][0]).all()
    assert (few[0][0] != few[1][0]).any() and (few[0][0] != ToyStreets(count=3, seed=6)[0][0]).any()


def test_items_are_the_scenes_and_iteration_ends():
    streets = ToyStreets(count=4)
    pairs = list(streets)
    assert len(pairs) == len(streets) == 4 and streets.classes is CAMVID
    assert all((a == b).all() for a, b in zip(pairs[3], streets.scene(3)))
    assert list(ToyStreets(count=0)) == []


def test_items_are_fresh_arrays():
    streets = ToyStreets(count=2)
    image, label = streets[0]
    image[:], label[:] = 0, 0
    assert streets[0][0].any() and streets[0][1].any()


def _draw(streets): return streets[1][0]


def test_a_spawned_process_draws_the_same():
    streets = ToyStreets(count=2, seed=8)
    assert (pickle.loads(pickle.dumps(streets))[1][0] == streets[1][0]).all()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert (pool.submit(_draw, streets).result() == streets[1][0]).all()


@pytest.mark.parametrize("arguments, word", [
    (dict(size=(31, 128)), "size"), (dict(size=(96, 8)), "size"), (dict(size=96), "size"), (dict(size=(96, 128, 3)), "size"),
    (dict(size=(96.0, 128)), "size"), (dict(count=-1), "count"), (dict(count=2.5), "count"), (dict(count=True), "count"),
    (dict(seed=-1), "seed"), (dict(seed="a"), "seed"), (dict(difficulty=-0.1), "difficulty"),
    (dict(difficulty=1.01), "difficulty"), (dict(difficulty=float("nan")), "difficulty"),
    (dict(difficulty="hard"), "difficulty")])
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"^{word}.*got"): ToyStreets(**arguments)


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_a_missing_scene_is_an_index_error(index):
    with pytest.raises(IndexError, match="0 to 2"): ToyStreets(count=3)[index]


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


def test_modules_load_numpy_and_no_torch():
    code = "import sys, semseg_course.data.toy_streets; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("size, least", [((96, 128), 100), ((360, 480), 20)])
def test_speed(size, least):
    "Scenes a second on one core, in processor time because machines are busy; half is allowed for slow ones."
    streets, seconds = ToyStreets(size, 30, seed=1), []
    for index in range(30):
        start = time.process_time()
        streets[index]
        seconds.append(time.process_time() - start)
    assert 1 / np.median(seconds[1:]) > least / 2
