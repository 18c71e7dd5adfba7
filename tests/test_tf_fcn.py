"FCN in TensorFlow against FCN in PyTorch: names, scores, gradients, training, saved files."
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import differs, fill, image, sample, uniform  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course import backbones  # noqa: E402
from semseg_course.models import fcn as pytorch  # noqa: E402
from semseg_course.tf.backbones import VGG, conv2d, init_weights, pyramid, vgg_features  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.models.fcn import FCN, FORMS, crop_and_add, next_stage  # noqa: E402
from semseg_course.tf.weights import copy_weights, keras_slots, to_nchw, to_nhwc  # noqa: E402


def twins(num_classes=3, width=1 / 32, **options):
    return paired(*(kind(num_classes, width=width, **options) for kind in (pytorch.FCN, FCN)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [dict(stride=32), dict(stride=16), dict(norm=True), dict(separable=True, norm=True),
                                     dict(at_once=True, backbone="vgg19")], ids=str)
def test_scores_equal_pytorch_at_any_size(form, options):
    ours, theirs = twins(form=form, **options)
    for size in ((2, 47, 66), (1, 33, 1)):
        x = image(size[1:], batch=size[0]).float()
        assert gap(ours(to_nhwc(x), training=False), theirs(x)) < 1e-4


def test_every_odd_size_equals_pytorch():
    ours, theirs = twins()
    graph = as_graph(ours)
    for size in (1, 2, 31, 32, 33, 48, 69):
        x = image((size, 70 - size)).float()
        assert gap(graph(to_nhwc(x)), theirs(x)) < 1e-4


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", backbones.STAGES)
def test_backbones_have_the_same_tensors_and_maps(name, norm):
    theirs = fill(backbones.vgg_features(name, norm, 1 / 32, padding=5)).eval()
    ours = vgg_features(name, norm, 1 / 32, padding=5)
    copy_weights(theirs, ours)
    x = image((41, 38)).float()
    for a, b in zip(pyramid(ours, to_nhwc(x)), backbones.pyramid(theirs, x)): assert gap(a, b) < 1e-4


def test_classifier_equals_pytorch():
    theirs, ours = fill(backbones.VGG(7, width=1 / 32)).eval(), VGG(7, width=1 / 32)
    copy_weights(theirs, ours)
    x = image((70, 64)).float()
    np.testing.assert_allclose(ours(to_nhwc(x)), theirs(x).detach(), rtol=1e-4, atol=1e-5)


def test_gradients_equal_pytorch_in_the_authors_form():
    ours, theirs = twins(form="authors")
    x, target = image((45, 50), batch=2).float(), torch.arange(2 * 45 * 50).reshape(2, 45, 50) % 3
    torch.nn.functional.cross_entropy(theirs(x), target).backward()
    loss = lambda: PixelCrossEntropy()(target.numpy(), ours(to_nhwc(x), training=False))
    assert_same_gradients(ours, theirs, loss, of_own=1e-4)


def test_training_moves_all_but_the_frozen_kernel_and_goes_back_to_pytorch():
    keras.utils.set_random_seed(0)
    network = FCN(3, form="authors", norm=True, width=1 / 32)
    before = {v.path: v.numpy().copy() for v in network.weights}
    network.compile(keras.optimizers.Adam(0.01), PixelCrossEntropy())
    x, target = uniform("input", (2, 12, 9, 3)).astype("float32"), np.arange(2 * 12 * 9).reshape(2, 12, 9) % 3
    network.fit(x, target, batch_size=2, epochs=2, verbose=0)
    assert {v.path for v in network.weights if np.array_equal(v, before[v.path])} == {"enlarge/kernel"}
    theirs = pytorch.FCN(3, form="authors", norm=True, width=1 / 32).eval()
    copy_weights(network, theirs)
    assert gap(network(x, training=False), theirs(to_nchw(x))) < 1e-4


def test_scores_begin_at_zero_and_weights_by_the_rule():
    keras.utils.set_random_seed(0)
    network = FCN(3, separable=True, width=1 / 4)
    assert not np.any(network(np.ones((1, 40, 40, 3), "float32")))
    for name, slot in keras_slots(network).items():
        if len(slot.shape) < 2 or slot.transposed or name.startswith("score") or np.prod(slot.shape) < 2000: continue
        assert np.std(slot.read()) == pytest.approx(np.sqrt(2 / np.prod(slot.shape[1:])), rel=0.1), name
    first = network.features.layers[0].pointwise_kernel.numpy()
    assert not np.array_equal(first, FCN(3, separable=True, width=1 / 4).features.layers[0].pointwise_kernel)


def test_same_seed_same_weights():
    kernels = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        layer = conv2d(4, 3)
        layer.build((None, None, None, 3))
        init_weights(layer)
        kernels.append(layer.kernel.numpy())
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])


def test_saved_network_is_the_same(tmp_path):
    network = FCN(3, stride=16, form="authors", norm=True, width=1 / 32, dropout=0.2)
    network.score[1].kernel.assign(np.ones(network.score[1].kernel.shape))
    network.save(tmp_path / "fcn.keras")
    loaded, x = keras.models.load_model(tmp_path / "fcn.keras"), np.ones((1, 50, 43, 3), "float32")
    assert loaded.get_config() == network.get_config()
    np.testing.assert_array_equal(loaded(x), network(x))


@pytest.mark.parametrize("options, words", [(dict(stride=4), "stride must be 32, 16 or 8; got 4"),
                                            (dict(form="pad"), "compact, authors; got 'pad'"),
                                            (dict(backbone="vgg11"), "vgg16, vgg19; got 'vgg11'"),
                                            (dict(width=1e-4), "width must leave at least one")])
def test_bad_arguments_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words): FCN(3, **options)


@pytest.mark.parametrize("before, after, options", [(32, 16, dict(norm=True)), (32, 8, dict(form="authors")),
                                                    (16, 8, dict(separable=True))])
def test_stages_begin_where_the_last_ended(before, after, options):
    ours, theirs = twins(stride=before, **options)
    finer, x = next_stage(ours, after), image((61, 90), batch=2).float()
    assert finer.get_config() == {**ours.get_config(), "stride": after}
    assert gap(finer(to_nhwc(x)), pytorch.next_stage(theirs, after)(x)) < 1e-4
    for v in finer.score[0].weights: v.assign(np.zeros(v.shape))
    assert all(np.any(v) for v in ours.score[0].weights)  # the stages keep their weights apart


@pytest.mark.parametrize("before, after", [(8, 8), (16, 32), (32, 4)])
def test_stage_errors(before, after):
    with pytest.raises(ValueError, match=f"finer than {before}.*got {after}"): next_stage(FCN(2, before, width=1 / 64), after)


def test_every_public_name_has_its_twin():
    import semseg_course.tf.models.fcn as here
    assert set(pytorch.__all__) <= set(here.__all__)
    assert {name for name in vars(pytorch.FCN) if name[0] != "_"} - {"forward"} <= set(dir(FCN))


def test_maps_of_other_classes_are_not_added():
    with pytest.raises(ValueError, match="got .1, 3."): crop_and_add(tf.zeros((1, 4, 4, 2)), tf.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("options", [dict(form="authors"), dict(separable=True, norm=True)], ids=str)
def test_a_summary_names_every_layer(options):
    lines = []
    FCN(3, width=1 / 32, **options).summary(print_fn=lambda line, **_: lines.append(line))
    assert all(name in "".join(lines) for name in ("features", "classifier", "score.0", "upscore.1", "enlarge"))


@pytest.mark.slow
def test_scores_equal_pytorch_at_half_width():
    ours, theirs = twins(21, width=1 / 2)
    x = image((75, 101)).float()
    with torch.no_grad(): assert gap(ours(to_nhwc(x), training=False), theirs(x)) < 1e-4


@pytest.mark.slow
def test_scores_of_the_whole_fcn8s(monkeypatch):
    "Full width, 134 million parameters, against PyTorch and against the 24 figures of data/networks.json."
    zeros = lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype)
    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", zeros)
    monkeypatch.setattr("semseg_course.tf.models.fcn.init_weights", lambda network: None)  # memory of random draws is kept
    reference = json.loads((Path(__file__).parent / "data" / "networks.json").read_text("utf-8"))["fcn8s_vgg16"]
    with torch.device("meta"): theirs = pytorch.FCN(reference["classes"], form="authors")
    theirs, x = fill(theirs.to_empty(device="cpu")).eval(), image(reference["size"]).float()
    with torch.no_grad(): wanted = theirs(x)
    ours = FCN(reference["classes"], form="authors")
    copy_weights(theirs, ours)
    del theirs
    scores = ours(to_nhwc(x), training=False)
    assert gap(scores, wanted) < 1e-4
    assert ours.count_params() == reference["params"]
    assert not differs(dict(params=reference["params"], **sample(to_nchw(scores))), reference, rtol=1e-4)
