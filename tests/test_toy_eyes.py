"""Toy Eyes: the same bytes everywhere, a label that is the part Iris, clear errors, and fast enough."""
import hashlib
import pickle
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from semseg_course.data import toy_eyes
from semseg_course.data.sprites import Dice
from semseg_course.data.toy_eyes import (
    BALL,
    EYES,
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

KNOWN = {  # (size, seed, difficulty, eye): SHA-256 of image, label and parts
    ((120, 160), 0, 0.5, 0): "55320e2e134fdcff47d426fd6eab3851efd53ed531e233db96f63617ad66b72d",
    ((120, 160), 1, 0.0, 17): "feb979e79d042dab718419a43a5769d96961a581492d75858a461107cee1e8f3",
    ((96, 128), 2, 1.0, 3): "9a0a817aadff18813f0753610abcd750f6ba8848d1cc7466058407a63add7214",
    ((240, 320), 0, 0.7, 5): "b715e991eec91acd5356d4ce11bd19eb7160cb9b4b2d8d4751bf75702453d932",
}


def fingerprint(size, seed, difficulty, index):
    digest = hashlib.sha256()
    for array in ToyEyes(size, 100, seed, difficulty).scene(index)[:3]: digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("key", KNOWN, ids=str)
def test_eyes_have_known_bytes(key):
    assert fingerprint(*key) == KNOWN[key]


def test_without_simd_the_bytes_are_the_same():
    "NumPy's plain loops, in a process of their own, give what the vectorised ones give."
    key = list(KNOWN)[2]
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_toy_eyes as t; print(t.fingerprint(*{key!r}))"
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={"NPY_DISABLE_CPU_FEATURES": features},
                         capture_output=True, text=True)
    if run.returncode and "NPY_DISABLE_CPU_FEATURES" in run.stderr: pytest.skip("this NumPy was built without dispatch")
    assert run.stdout.strip() == KNOWN[key], run.stderr


def test_types_shapes_and_values():
    scene = ToyEyes((100, 150), 3, 4).scene(1)
    assert [a.dtype for a in scene[:3]] == [np.uint8] * 3
    assert [a.shape for a in scene[:3]] == [(100, 150, 3), (100, 150), (100, 150)]
    assert all(a.flags["C_CONTIGUOUS"] for a in scene[:3])
    assert set(np.unique(scene.parts)) <= set(range(len(PARTS)))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 300), (300, 32), (97, 131), (240, 320)])
@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_any_size_is_drawn(size, difficulty):
    for image, label in ToyEyes(size, 6, 11, difficulty):
        assert image.shape == (*size, 3) and label.shape == size and label.any()


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


def test_a_scene_depends_on_seed_and_index_only():
    few, many = ToyEyes(count=3, seed=5), ToyEyes(count=50, seed=5)
    many[7]
    assert (few[2][0] == many[2][0]).all() and (few[-1][0] == few[2][0]).all()
    assert (few[np.int64(2)][0] == few[2][0]).all()
    assert (few[0][0] != few[1][0]).any() and (few[0][0] != ToyEyes(count=3, seed=6)[0][0]).any()


def test_items_are_the_scenes_and_iteration_ends():
    eyes = ToyEyes(count=4)
    pairs = list(eyes)
    assert len(pairs) == len(eyes) == 4 and eyes.classes is EYES
    assert all((a == b).all() for a, b in zip(pairs[3], eyes.scene(3)))
    assert list(ToyEyes(count=0)) == []


def test_items_are_fresh_arrays():
    eyes = ToyEyes(count=2)
    image, label = eyes[0]
    image[:], label[:] = 0, 0
    assert eyes[0][0].any() and eyes[0][1].any()


def _draw(eyes): return eyes[1][0]


def test_a_spawned_process_draws_the_same():
    eyes = ToyEyes(count=2, seed=8)
    assert (pickle.loads(pickle.dumps(eyes))[1][0] == eyes[1][0]).all()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert (pool.submit(_draw, eyes).result() == eyes[1][0]).all()


@pytest.mark.parametrize("arguments, word", [
    (dict(size=(31, 128)), "size"), (dict(size=(96, 8)), "size"), (dict(size=96), "size"), (dict(size=(96, 128, 3)), "size"),
    (dict(size=(96.0, 128)), "size"), (dict(count=-1), "count"), (dict(count=2.5), "count"), (dict(count=True), "count"),
    (dict(seed=-1), "seed"), (dict(seed="a"), "seed"), (dict(difficulty=-0.1), "difficulty"),
    (dict(difficulty=1.01), "difficulty"), (dict(difficulty=float("nan")), "difficulty"),
    (dict(difficulty="hard"), "difficulty")])
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"^{word}.*got"): ToyEyes(**arguments)


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_a_missing_eye_is_an_index_error(index):
    with pytest.raises(IndexError, match="0 to 2"): ToyEyes(count=3)[index]


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


def test_module_loads_numpy_and_no_torch():
    code = "import sys, semseg_course.data.toy_eyes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("size, least", [((120, 160), 200), ((240, 320), 60)])
def test_speed(size, least):
    "Eyes a second on one core, in processor time because machines are busy; half is allowed for slow ones."
    eyes, seconds = ToyEyes(size, 40, seed=1), []
    for index in range(40):
        start = time.process_time()
        eyes[index]
        seconds.append(time.process_time() - start)
    assert 1 / np.median(seconds[1:]) > least / 2
