"""What all drawn data sets promise: the same bytes everywhere, any size, fresh arrays, and errors that name the argument."""
import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from semseg_course.data.labels import CAMVID, ClassTable
from semseg_course.data.toy_eyes import EYES, ToyEyes
from semseg_course.data.toy_streets import ToyStreets


@dataclass(frozen=True)
class Drawn:
    make: Callable
    classes: ClassTable
    dtypes: tuple  # of a scene's arrays: image, label and what else there is
    known: dict  # (size, seed, difficulty, index): SHA-256 of these arrays
    plain: tuple  # the key that is drawn again without SIMD

    def fingerprint(self, size, seed, difficulty, index):
        digest = hashlib.sha256()
        for array in self.make(size, 100, seed, difficulty).scene(index)[:len(self.dtypes)]: digest.update(array.tobytes())
        return digest.hexdigest()


DRAWN = {
    "streets": Drawn(ToyStreets, CAMVID, (np.uint8, np.uint8, np.float32, np.uint16), {
        ((96, 128), 0, 0.5, 0): "6c3bdf240d31e2f34b91564880d3c030839801b1c97f8e9077254565ec86033a",
        ((96, 128), 1, 0.0, 17): "165f54d28a286baf0e3a2619535991025769e5b49e4f465ba62bb8a033289f16",
        ((120, 200), 2, 1.0, 3): "f35e129c9d9b6b84ec4c5ba20592fb10098483f23aff37e542b5a10d58de8fa4",
        ((360, 480), 0, 0.5, 5): "08427c4b4137e003c27821f602e3bd80c620413b2e5db0825a385dc840e392e4",
    }, ((96, 128), 0, 0.5, 0)),
    "eyes": Drawn(ToyEyes, EYES, (np.uint8, np.uint8, np.uint8), {
        ((120, 160), 0, 0.5, 0): "55320e2e134fdcff47d426fd6eab3851efd53ed531e233db96f63617ad66b72d",
        ((120, 160), 1, 0.0, 17): "feb979e79d042dab718419a43a5769d96961a581492d75858a461107cee1e8f3",
        ((96, 128), 2, 1.0, 3): "9a0a817aadff18813f0753610abcd750f6ba8848d1cc7466058407a63add7214",
        ((240, 320), 0, 0.7, 5): "b715e991eec91acd5356d4ce11bd19eb7160cb9b4b2d8d4751bf75702453d932",
    }, ((96, 128), 2, 1.0, 3)),
}


@pytest.fixture(params=DRAWN)
def drawn(request): return DRAWN[request.param]


@pytest.mark.parametrize("name, key", [(name, key) for name, drawn in DRAWN.items() for key in drawn.known], ids=str)
def test_scenes_have_known_bytes(name, key):
    assert DRAWN[name].fingerprint(*key) == DRAWN[name].known[key]


@pytest.mark.parametrize("name", DRAWN)
def test_without_simd_the_bytes_are_the_same(name):
    "NumPy's plain loops, in a process of their own, give what the vectorised ones give."
    drawn = DRAWN[name]
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_drawn as t; "
    code += f"print(t.DRAWN[{name!r}].fingerprint(*{drawn.plain!r}))"
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={"NPY_DISABLE_CPU_FEATURES": features},
                         capture_output=True, text=True)
    if run.returncode and "NPY_DISABLE_CPU_FEATURES" in run.stderr: pytest.skip("this NumPy was built without dispatch")
    assert run.stdout.strip() == drawn.known[drawn.plain], run.stderr


def test_types_and_shapes(drawn):
    arrays = drawn.make((100, 150), 3, 4).scene(1)[:len(drawn.dtypes)]
    assert [a.dtype for a in arrays] == [*drawn.dtypes]
    assert [a.shape for a in arrays] == [(100, 150, 3)] + [(100, 150)] * (len(arrays) - 1)
    assert all(a.flags["C_CONTIGUOUS"] for a in arrays)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 300), (300, 32), (97, 131), (240, 320)])
@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_any_size_is_drawn(drawn, size, difficulty):
    for image, label in drawn.make(size, 6, 11, difficulty):
        assert image.shape == (*size, 3) and label.shape == size and label.any()


def test_a_scene_depends_on_seed_and_index_only(drawn):
    few, many = drawn.make(count=3, seed=5), drawn.make(count=50, seed=5)
    many[7]
    assert (few[2][0] == many[2][0]).all() and (few[-1][0] == few[2][0]).all()
    assert (few[np.int64(2)][0] == few[2][0]).all()
    assert (few[0][0] != few[1][0]).any() and (few[0][0] != drawn.make(count=3, seed=6)[0][0]).any()


def test_items_are_the_scenes_and_iteration_ends(drawn):
    dataset = drawn.make(count=4)
    pairs = list(dataset)
    assert len(pairs) == len(dataset) == 4 and dataset.classes is drawn.classes
    assert all((a == b).all() for a, b in zip(pairs[3], dataset.scene(3)))
    assert list(drawn.make(count=0)) == []


def test_items_are_fresh_arrays(drawn):
    dataset = drawn.make(count=2)
    image, label = dataset[0]
    image[:], label[:] = 0, 0
    assert dataset[0][0].any() and dataset[0][1].any()


def _draw(dataset): return dataset[1][0]


def test_a_spawned_process_draws_the_same(drawn):
    dataset = drawn.make(count=2, seed=8)
    assert (pickle.loads(pickle.dumps(dataset))[1][0] == dataset[1][0]).all()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert (pool.submit(_draw, dataset).result() == dataset[1][0]).all()


@pytest.mark.parametrize("arguments, word", [
    (dict(size=(31, 128)), "size"), (dict(size=(96, 8)), "size"), (dict(size=96), "size"), (dict(size=(96, 128, 3)), "size"),
    (dict(size=(96.0, 128)), "size"), (dict(count=-1), "count"), (dict(count=2.5), "count"), (dict(count=True), "count"),
    (dict(seed=-1), "seed"), (dict(seed="a"), "seed"), (dict(difficulty=-0.1), "difficulty"),
    (dict(difficulty=1.01), "difficulty"), (dict(difficulty=float("nan")), "difficulty"),
    (dict(difficulty="hard"), "difficulty")])
def test_bad_arguments_are_named(drawn, arguments, word):
    with pytest.raises(ValueError, match=f"^{word}.*got"): drawn.make(**arguments)


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_a_missing_scene_is_an_index_error(drawn, index):
    with pytest.raises(IndexError, match="0 to 2"): drawn.make(count=3)[index]


def test_modules_load_numpy_and_no_torch(drawn):
    code = f"import sys, {drawn.make.__module__}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
