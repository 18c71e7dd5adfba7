"U-Net in TensorFlow against U-Net in PyTorch: names, joins, scores, gradients, training, saved files."
import os
import re

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import image, uniform  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course.models import unet as pytorch  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.models.unet import FORMS, SKIPS, UNet, double, grow, middle, paper_output, paper_side  # noqa: E402
from semseg_course.tf.weights import copy_weights, keras_slots, to_nchw, to_nhwc  # noqa: E402

SIZES = {"padded": ((32, 64), (45, 61), (1, 33), (1, 1)), "paper": ((188, 204),)}


def twins(**options):
    return paired(*(kind(3, width=1 / 32, **options) for kind in (pytorch.UNet, UNet)))


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("form", FORMS)
def test_scores_equal_pytorch(form, skip):
    ours, theirs = twins(form=form, skip=skip)
    graph = as_graph(ours)
    for size in SIZES[form]:
        x = image(size, batch=2).float()
        for make in (ours, graph): assert gap(make(to_nhwc(x)), theirs(x)) < 1e-4


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_pytorch(form, skip):
    ours, theirs = twins(form=form, skip=skip, dropout=0.0)
    theirs.train()
    side = dict(padded=(33, 46), paper=(188, 188))[form]
    x = image(side, batch=2).float()
    theirs(x).square().mean().backward()
    loss = lambda: tf.reduce_mean(tf.square(ours(to_nhwc(x), training=True)))
    assert_same_gradients(ours, theirs, loss, of_largest=1e-3)


def test_other_numbers_of_channels():
    for channels in (1, 4):
        ours, theirs = paired(*(kind(2, channels, width=1 / 32) for kind in (pytorch.UNet, UNet)))
        x = image((21, 40), channels).float()
        assert gap(ours(to_nhwc(x)), theirs(x)) < 1e-4


@pytest.mark.parametrize("have", [(1, 1), (2, 2), (4, 7)])
@pytest.mark.parametrize("want", [(1, 1), (2, 3), (5, 7), (8, 8), (1, 9)])
def test_maps_grow_and_are_cut_as_in_pytorch(have, want):
    x = image(have, 2).float()
    spec = [tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((2,), tf.int32)]
    graph = tf.function(lambda x, s: grow(x, (s[0], s[1])), input_signature=spec)
    for result in (grow(to_nhwc(x), want), graph(to_nhwc(x), tf.constant(want))):
        np.testing.assert_array_equal(result, to_nhwc(pytorch.grow(x, want)))
    if all(h >= w for h, w in zip(have, want)):
        np.testing.assert_array_equal(middle(to_nhwc(x), want), to_nhwc(pytorch.middle(x, want)))


def test_the_papers_sizes():
    for side in range(1, 700):
        try: expected = pytorch.paper_output(side)
        except ValueError as error:
            with pytest.raises(ValueError) as ours: paper_output(side)
            assert re.findall(r"\d+", str(ours.value)) == re.findall(r"\d+", str(error))  # the same advice
        else: assert paper_output(side) == expected and paper_side(expected) == side
    with pytest.raises(ValueError, match="got 187. The nearest are 188 and 204"):
        UNet(2, form="paper", width=1 / 64)(tf.zeros((1, 188, 187, 3)))


def test_dropout_stands_after_the_two_deepest_stages_of_the_paper():
    rates = [[p.rate for p in stage.layers if isinstance(p, keras.layers.Dropout)] for stage in
             UNet(2, form="paper", width=1 / 64, dropout=0.3).down]
    assert rates == [[], [], [], [0.3], [0.3]]
    assert not [p for p in UNet(2, width=1 / 64)._flatten_layers() if isinstance(p, keras.layers.Dropout)]


def test_weights_begin_by_the_rule():
    keras.utils.set_random_seed(0)
    for name, slot in keras_slots(UNet(3, width=1 / 4)).items():
        if len(slot.shape) < 2 or np.prod(slot.shape) < 2000: continue
        wanted = slot.shape[0]**-0.5 if slot.transposed else np.sqrt(2 / np.prod(slot.shape[1:]))
        assert np.std(slot.read()) == pytest.approx(wanted, rel=0.1), name


def test_training_moves_all_and_goes_back_to_pytorch():
    keras.utils.set_random_seed(0)
    network = UNet(3, width=1 / 32)
    before = {v.path: v.numpy().copy() for v in network.weights}
    network.compile(keras.optimizers.Adam(0.01), PixelCrossEntropy())
    x, target = uniform("input", (4, 18, 21, 3)).astype("float32"), np.arange(4 * 18 * 21).reshape(4, 18, 21) % 3
    losses = network.fit(x, target, batch_size=2, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not [v.path for v in network.weights if np.array_equal(v, before[v.path])]
    theirs = pytorch.UNet(3, width=1 / 32).eval()
    copy_weights(network, theirs)
    assert gap(network(x), theirs(to_nchw(x))) < 1e-4


@pytest.mark.parametrize("options", [dict(), dict(form="paper", skip="add", dropout=0.2), dict(in_channels=1, skip="none")],
                         ids=str)
def test_saved_network_is_the_same(options, tmp_path):
    network = UNet(3, width=1 / 64, **options)
    x = np.ones((1, 188, 188, options.get("in_channels", 3)), "float32")
    network.save(tmp_path / "unet.keras")
    loaded = keras.models.load_model(tmp_path / "unet.keras")
    assert loaded.get_config() == network.get_config()
    np.testing.assert_array_equal(loaded(x), network(x))


@pytest.mark.parametrize("make, words", [(lambda: UNet(2, form="valid"), "padded, paper; got 'valid'"),
                                         (lambda: UNet(2, skip="sum"), "concat, add, none; got 'sum'"),
                                         (lambda: UNet(2, width=1e-4), "at least one")])
def test_bad_arguments_say_what_to_do(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_every_public_name_has_its_twin():
    import semseg_course.tf.models.unet as here
    assert set(pytorch.__all__) <= set(here.__all__) and double(3, 4).name
    assert {name for name in vars(pytorch.UNet) if name[0] != "_"} - {"forward"} <= set(dir(UNet))
