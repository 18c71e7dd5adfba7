"DeconvNet in TensorFlow against DeconvNet in PyTorch: names, scores, gradients, training, saved files."
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
import keras  # noqa: E402
from fingerprint import image, uniform  # noqa: E402
from twins import as_graph, assert_same_gradients, paired  # noqa: E402

from semseg_course.models import deconvnet as pytorch  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.models.deconvnet import DeconvNet  # noqa: E402
from semseg_course.tf.weights import copy_weights, keras_slots, to_nchw, to_nhwc  # noqa: E402

SMALL = dict(width=1 / 16, window=2)


def twins(num_classes=3, **options):
    options = {**SMALL, **options}
    return paired(*(kind(num_classes, **options) for kind in (pytorch.DeconvNet, DeconvNet)))


def gap(ours, theirs):
    "The largest difference, as a share of how much a class's scores differ from pixel to pixel."
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    spread = theirs.std((0, 1, 2)).max()
    assert spread > 1e-4  # scores that are the same everywhere would prove nothing
    return np.abs(np.array(ours) - theirs).max() / spread


@pytest.mark.parametrize("options, size", [
    (dict(), (64, 96)), (dict(), (75, 101)), (dict(), (127, 65)), (dict(norm=False), (67, 64)),
                                           (dict(window=1), (33, 63)), (dict(window=3, width=1 / 16), (97, 131))], ids=str)
def test_scores_equal_pytorch(options, size):
    ours, theirs = twins(**options)
    x = image(size, batch=2).float()
    assert gap(ours(to_nhwc(x), training=False), theirs(x)) < 1e-4


def test_a_graph_for_any_size():
    ours, theirs = twins()
    graph = as_graph(ours)
    for size in ((64, 64), (65, 95), (96, 100)):
        x = image(size, batch=2).float()
        assert gap(graph(to_nhwc(x)), theirs(x)) < 1e-4


def test_tensors_and_counts_are_pytorchs():
    ours, theirs = twins(norm=True)
    names = [name for name in theirs.state_dict() if "num_batches" not in name]
    assert set(keras_slots(ours)) == set(names)
    assert sum(int(np.prod(v.shape)) for v in ours.trainable_weights) == sum(p.numel() for p in theirs.parameters())
    ours, theirs = twins(norm=False)
    assert set(keras_slots(ours)) == set(theirs.state_dict())


def test_gradients_equal_pytorch():
    ours, theirs = twins(norm=False)
    x, target = image((66, 65), batch=2).float(), torch.arange(2 * 66 * 65).reshape(2, 66, 65) % 3
    torch.nn.functional.cross_entropy(theirs(x), target).backward()
    loss = lambda: PixelCrossEntropy()(target.numpy(), ours(to_nhwc(x), training=False))
    assert_same_gradients(ours, theirs, loss, of_own=1e-3, floor=1e-12)


def test_training_moves_every_weight_and_goes_back_to_pytorch():
    keras.utils.set_random_seed(0)
    network, _ = twins()
    before = {v.path: v.numpy().copy() for v in network.weights}
    network.compile(keras.optimizers.Adam(0.01), PixelCrossEntropy())
    x, target = uniform("input", (2, 64, 65, 3)).astype("float32"), np.arange(2 * 64 * 65).reshape(2, 64, 65) % 3
    network.fit(x, target, batch_size=2, epochs=1, verbose=0)
    assert not [v.path for v in network.weights if np.array_equal(v, before[v.path]) and len(v.shape) > 1]
    theirs = pytorch.DeconvNet(3, **SMALL).eval()
    copy_weights(network, theirs)
    assert gap(network(x, training=False), theirs(to_nchw(x))) < 1e-4


def test_saved_network_is_the_same(tmp_path):
    network, x = DeconvNet(3, **SMALL), np.ones((1, 64, 67, 3), "float32")
    network.save(tmp_path / "deconvnet.keras")
    loaded = keras.models.load_model(tmp_path / "deconvnet.keras")
    assert loaded.get_config() == network.get_config() == dict(num_classes=3, norm=True, **SMALL)
    np.testing.assert_array_equal(loaded(x), network(x))


def test_weights_begin_by_the_rule():
    keras.utils.set_random_seed(0)
    for name, slot in keras_slots(DeconvNet(3, width=1 / 8, window=2)).items():
        if len(slot.shape) < 2 or np.prod(slot.shape) < 2000: continue
        deviation = 0.01 if slot.transposed else np.sqrt(2 / np.prod(slot.shape[1:]))
        assert np.std(slot.read()) == pytest.approx(deviation, rel=0.1), name


@pytest.mark.parametrize("size", [(63, 96), (96, 63)])
def test_images_that_are_too_small(size):
    with pytest.raises(ValueError, match=f"at least 64x64.*got {size[0]}x{size[1]}.*smaller window"):
        DeconvNet(2, **SMALL)(tf.zeros((1, *size, 3)))


def test_a_single_vector_cannot_be_normed_in_training():
    network, x = DeconvNet(2, **SMALL), tf.zeros((1, 64, 95, 3))
    with pytest.raises(ValueError, match="one image of 64x95"): network(x, training=True)
    network(x)
    DeconvNet(2, norm=False, **SMALL)(x, training=True)


def test_a_width_that_leaves_nothing():
    with pytest.raises(ValueError, match="width must leave at least one"): DeconvNet(2, width=1e-3)


def test_every_public_name_but_the_product_has_its_twin():
    import semseg_course.tf.models.deconvnet as here
    assert set(pytorch.__all__) - {"WindowTransposed2d"} <= set(here.__all__)
    assert {name for name in vars(pytorch.DeconvNet) if name[0] != "_"} - {"forward"} <= set(dir(DeconvNet))
