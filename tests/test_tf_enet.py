"ENet in TensorFlow against ENet in PyTorch: names, scores, places, gradients, saved files."
import os

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import image  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course.models import enet as pytorch  # noqa: E402
from semseg_course.tf.models.enet import FORMS, Bottleneck, ENet, ENetEncoder, InitialBlock  # noqa: E402
from semseg_course.tf.upsample import from_tensorflow_indices, to_tensorflow_indices  # noqa: E402
from semseg_course.tf.weights import copy_weights, keras_slots, to_nhwc  # noqa: E402


def without_dropout(ours, theirs):
    for layer in ours._flatten_layers():
        if isinstance(layer, keras.layers.SpatialDropout2D): layer.rate = 0.0
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout2d): module.p = 0.0


def twins(kind, theirs, *args, **options):
    ours, theirs = paired(theirs, kind(*args, **options))
    return ours, theirs.double()


@pytest.mark.parametrize("form", FORMS)
def test_scores_and_gradients_equal_pytorch(form, double):
    ours, theirs = twins(ENet, pytorch.ENet(3, form), 3, form)
    for size in ((33, 46), (16, 24)):
        x = image(size, batch=2)
        assert gap(ours(to_nhwc(x)), theirs(x)) < 1e-9
    without_dropout(ours, theirs)
    theirs.train()
    x, target = image((33, 46), batch=2), torch.arange(2 * 33 * 46).reshape(2, 33, 46) % 3
    torch.nn.functional.cross_entropy(theirs(x), target).backward()
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
    assert_same_gradients(ours, theirs, lambda: tf.reduce_mean(entropy(target.numpy(), ours(to_nhwc(x), training=True))), 1e-8)


def test_scores_in_single_precision_by_a_graph_for_any_size():
    ours, theirs = ENet(3), pytorch.ENet(3).eval()
    copy_weights(theirs, ours)
    graph = as_graph(ours)
    for size in ((37, 53), (48, 64)):
        x = image(size).float()
        with torch.no_grad(): wanted = theirs(x)
        difference = np.abs(np.array(graph(to_nhwc(x))) - to_nhwc(wanted)) / wanted.std().item()
        assert np.mean(difference < 1e-4) > 0.99  # a place may be decided by rounding; a wrong layout moves all


@pytest.mark.parametrize("step", ["same", "down", "up"])
@pytest.mark.parametrize("options", [dict(dilation=4), dict(factorised=True), dict(relu=True)], ids=str)
def test_bottlenecks_equal_pytorch(step, options, double):
    for form in FORMS:
        theirs = pytorch.Bottleneck(8, 16 if step == "down" else 8, pytorch.FORMS[form], step, **options)
        ours, theirs = twins(Bottleneck, theirs, 8, 16 if step == "down" else 8, FORMS[form], step, **options)
        x = image((7, 9), 8, 2)
        if step == "same": assert gap(ours(to_nhwc(x)), theirs(x)) < 1e-9
        if step == "down":
            (a, places), (b, there) = ours(to_nhwc(x)), theirs(x)
            assert gap(a, b) < 1e-9 and np.array_equal(from_tensorflow_indices(places), there)
        if step == "up":
            small, there = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
            places = to_tensorflow_indices(there)
            assert gap(ours(to_nhwc(small), places, size=(7, 9)), theirs(small, there, (7, 9))) < 1e-9
            with pytest.raises(ValueError, match="another channel"): ours(to_nhwc(small), to_nhwc(there), size=(7, 9))


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (10, 9)])
def test_first_block_equals_pytorch(size, double):
    for form in FORMS:
        ours, theirs = twins(InitialBlock, pytorch.InitialBlock(pytorch.FORMS[form]), FORMS[form])
        x = image(size)
        assert gap(ours(to_nhwc(x)), theirs(x)) < 1e-9


def test_the_same_counts_and_names():
    for form in FORMS:
        ours, theirs = ENet(12, form), pytorch.ENet(12, form)
        assert sum(np.prod(w.shape) for w in ours.trainable_weights) == sum(p.numel() for p in theirs.parameters())
        assert set(keras_slots(ours)) == {name for name in theirs.state_dict() if "num_batches" not in name}


def test_slopes_begin_as_in_pytorch_and_are_as_many():
    for form, count in (("authors", 16), ("port", 1)):
        slopes = InitialBlock(FORMS[form]).activation.alpha.numpy()
        assert slopes.size == count and (slopes == 0.25).all()


def test_dropout_takes_whole_channels_and_hears_of_training():
    keras.utils.set_random_seed(0)
    block = Bottleneck(8, 8, FORMS["authors"], dropout=0.5)
    block.activation, x = keras.layers.Identity(), tf.random.stateless_normal((4, 6, 5, 8), (0, 0))
    branch = block(x, training=True) - x
    empty = np.all(np.array(branch) == 0, axis=(1, 2))
    assert 0 < empty.sum() < empty.size and np.all((np.array(branch) != 0).any((1, 2)) == ~empty)
    assert np.array_equal(block(x), block(x, training=False))


def test_the_encoder_is_shared_and_can_be_saved(tmp_path):
    network = ENet(3)
    encoder, x = ENetEncoder(network), to_nhwc(image((21, 40)).float())
    assert encoder.network is network and encoder(x).shape == (1, 2, 5, 3)
    encoder.save(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "encoder.keras")(x), encoder(x))
    network.save(tmp_path / "enet.keras")
    loaded = keras.models.load_model(tmp_path / "enet.keras")
    assert loaded.get_config() == network.get_config()
    np.testing.assert_array_equal(loaded(x), network(x))


def test_small_images_are_refused():
    network = ENet(2)
    for size in ((7, 64), (64, 7), (1, 1)):
        with pytest.raises(ValueError, match="at least 8x8"): network(tf.zeros((1, *size, 3)))
    assert network(tf.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 2)


@pytest.mark.parametrize("make, words", [(lambda: ENet(2, "caffe"), "authors, port; got 'caffe'"),
                                         (lambda: Bottleneck(8, 8, FORMS["port"], "left"), "same, down, up; got 'left'")])
def test_bad_arguments_say_what_to_do(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_every_public_name_has_its_twin():
    import semseg_course.tf.models.enet as here
    assert set(pytorch.__all__) <= set(here.__all__)
    assert {name for name in vars(pytorch.ENet) if name[0] != "_"} - {"forward"} <= set(dir(ENet))
