"SegNet in TensorFlow against SegNet in PyTorch: names, places, scores, gradients, training, saved files."
import os

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import image, uniform  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course.models import segnet as pytorch  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.models.segnet import (  # noqa: E402
    UPS,
    EncoderDecoder,
    SegNet,
    SegNetBasic,
    corner_places,
    enlarge,
    shifted_places,
)
from semseg_course.tf.upsample import max_pool_with_indices, to_tensorflow_indices  # noqa: E402
from semseg_course.tf.weights import copy_weights, to_nchw, to_nhwc  # noqa: E402

KINDS = {"segnet": (SegNet, dict(width=1 / 32)), "vgg19": (SegNet, dict(backbone="vgg19", width=1 / 32)),
         "basic": (SegNetBasic, dict(channels=4))}
TOLERANCE = {up: 1e-5 if up == "bilinear" else 1e-9 for up in UPS}  # tf.image.resize knows single precision only


def twins(name, double=True, **options):
    kind, sizes = KINDS[name]
    ours, theirs = paired(*(make(3, **sizes, **options) for make in (getattr(pytorch, kind.__name__), kind)))
    return ours, theirs.double() if double else theirs


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("name", KINDS)
def test_scores_equal_pytorch_at_any_size(name, up, double):
    ours, theirs = twins(name, up=up)
    for size in ((32, 64), (45, 61), (1, 33), (1, 1)):
        x = image(size, batch=2)
        assert gap(ours(to_nhwc(x)), theirs(x)) < TOLERANCE[up]


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("name", ["segnet", "basic"])
def test_gradients_equal_pytorch(name, up, double):
    ours, theirs = twins(name, up=up)
    theirs.train()
    x, target = image((33, 46), batch=2), torch.arange(2 * 33 * 46).reshape(2, 33, 46) % 3
    torch.nn.functional.cross_entropy(theirs(x), target).backward()
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
    loss = lambda: tf.reduce_mean(entropy(target.numpy(), ours(to_nhwc(x), training=True)))
    assert_same_gradients(ours, theirs, loss, of_largest=100 * TOLERANCE[up])


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1), (2, 5), (5, 1)])
def test_places_and_ways_up_equal_pytorch(size):
    x = image(size, 3, 2).float()
    (small, there), (ours, here) = pytorch.max_pool_with_indices(x, 2, True), max_pool_with_indices(to_nhwc(x), 2, True)
    for move, wanted in ((shifted_places, pytorch.shifted_places), (corner_places, pytorch.corner_places)):
        np.testing.assert_array_equal(move(here, size[1]), to_tensorflow_indices(wanted(there, size[1])))
    spec = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 3), tf.int64), tf.TensorSpec((2,), tf.int32)]
    for up in UPS:
        wanted = to_nhwc(pytorch.enlarge(small, there, size, up))
        graph = tf.function(lambda x, i, s: enlarge(x, i, (s[0], s[1]), up), input_signature=spec)
        for result in (enlarge(ours, here, size, up), graph(ours, here, tf.constant(size))):
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


def test_scores_in_single_precision_by_a_graph_for_any_size():
    ours, theirs = twins("segnet", double=False)
    graph = as_graph(ours)
    for size in ((37, 53), (64, 96), (1, 1)):
        x = image(size).float()
        with torch.no_grad(): wanted = theirs(x)
        difference = np.abs(np.array(graph(to_nhwc(x))) - to_nhwc(wanted)) / wanted.std().item()
        assert np.mean(difference < 1e-4) > 0.95  # a place may be decided by rounding; a wrong layout moves all


def test_training_moves_all_and_goes_back_to_pytorch():
    keras.utils.set_random_seed(0)
    network = SegNetBasic(3, 4, dropout=0.1)
    before = {v.path: v.numpy().copy() for v in network.weights}
    network.compile(keras.optimizers.Adam(0.01), PixelCrossEntropy())
    x, target = uniform("input", (4, 18, 21, 3)).astype("float32"), np.arange(4 * 18 * 21).reshape(4, 18, 21) % 3
    losses = network.fit(x, target, batch_size=2, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not [v.path for v in network.weights if np.array_equal(v, before[v.path])]
    theirs = pytorch.SegNetBasic(3, 4).eval()
    copy_weights(network, theirs)
    assert np.median(np.abs(to_nhwc(theirs(to_nchw(x))) - network(x))) < 1e-4


def test_dropout_stands_in_the_deeper_half():
    seen = []
    network = SegNet(3, width=1 / 32, dropout=0.5)
    network.dropout = type("Spy", (), {"__call__": lambda self, x: seen.append(tuple(x.shape[1:3])) or x})()
    network(tf.zeros((1, 64, 96, 3)))
    assert seen == [(8, 12), (4, 6), (2, 3), (4, 6), (8, 12), (16, 24)]


def test_full_size_counts():
    for kind, count in ((SegNet, 29_449_355), (SegNetBasic, 1_416_587)):
        assert sum(np.prod(w.shape) for w in kind(11).trainable_weights) == count


@pytest.mark.parametrize("name", KINDS)
def test_saved_network_is_the_same(name, tmp_path):
    kind, sizes = KINDS[name]
    network, x = kind(3, up="bilinear", dropout=0.25, **sizes), to_nhwc(image((20, 33)).float())
    network.save(tmp_path / "segnet.keras")
    loaded = keras.models.load_model(tmp_path / "segnet.keras")
    assert loaded.get_config() == network.get_config() and loaded.up == "bilinear"
    np.testing.assert_array_equal(loaded(x), network(x))


@pytest.mark.parametrize("make, words", [(lambda: SegNet(2, up="max", width=1 / 32), "shifted, corner; got 'max'"),
                                         (lambda: SegNetBasic(2, 4, None), "got None"),
                                         (lambda: SegNet(2, "vgg11"), "vgg16, vgg19; got 'vgg11'"),
                                         (lambda: SegNet(2, width=1e-4), "at least one"),
                                         (lambda: SegNet(2, width=1 / 32, dropout=1.5), "rate"),
                                         (lambda: EncoderDecoder(keras.Sequential([]), [None]), "0 stages.*got 1")])
def test_bad_arguments_say_what_to_do(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_pytorchs_places_are_refused():
    x = image((8, 10), 3).float()
    _, there = pytorch.max_pool_with_indices(x)
    small, _ = max_pool_with_indices(to_nhwc(x))
    with pytest.raises(ValueError, match="Translate PyTorch's places"): enlarge(small, to_nhwc(there), (8, 10))


def test_every_public_name_has_its_twin():
    import semseg_course.tf.models.segnet as here
    assert set(pytorch.__all__) <= set(here.__all__)
    for kind in (SegNet, SegNetBasic, here.EncoderDecoder):
        assert {name for name in vars(getattr(pytorch, kind.__name__)) if name[0] != "_"} - {"forward"} <= set(dir(kind))
