"FC-DenseNet in TensorFlow against PyTorch: names, scores at any size, gradients, saved files."
import os

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import image  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course.models import fc_densenet as pytorch  # noqa: E402
from semseg_course.tf.models.fc_densenet import DEPTHS, FCDenseNet  # noqa: E402
from semseg_course.tf.weights import copy_weights, keras_slots, to_nhwc  # noqa: E402

SMALL = dict(layers=(2, 3, 2), width=0.25)


def twins(num_classes=3, **options):
    return paired(*(kind(num_classes, **options) for kind in (pytorch.FCDenseNet, FCDenseNet)))


@pytest.mark.parametrize("options, sizes", (
    (SMALL, ((4, 4), (5, 7), (21, 30))), (dict(depth=56, width=1 / 12), ((33, 47),)),
    (dict(depth=67, width=1 / 16), ((32, 40),)), (dict(depth=103, width=1 / 16), ((47, 33),))), ids=str)
def test_scores_equal_pytorch_at_any_size(options, sizes):
    ours, theirs = twins(**options)
    graph = as_graph(ours)
    for size in sizes:
        x = image(size, batch=2).float()
        for run in (ours, graph): assert gap(run(to_nhwc(x)), theirs(x)) < 1e-4


def test_names_are_the_paths_of_pytorch():
    ours, theirs = twins(**SMALL)
    assert set(keras_slots(ours)) == {name for name in theirs.state_dict() if "num_batches" not in name}
    assert DEPTHS == pytorch.DEPTHS


def test_copied_both_ways():
    ours, theirs = twins(**SMALL)
    back = pytorch.FCDenseNet(3, **SMALL)
    copy_weights(ours, back)
    for a, b in zip(back.parameters(), theirs.parameters()): assert torch.equal(a, b)


def test_gradients_equal_pytorch():
    ours, theirs = twins(**SMALL, dropout=0)
    x = image((21, 30), batch=2).float()
    theirs.train()(x).square().mean().backward()
    assert_same_gradients(ours, theirs, lambda: tf.reduce_mean(ours(to_nhwc(x), training=True) ** 2), of_largest=1e-3)


def test_dropout_in_training_alone():
    ours, _ = twins(**SMALL)
    x = to_nhwc(image((16, 16)).float())
    assert not np.allclose(ours(x, training=True), ours(x, training=True))
    np.testing.assert_array_equal(ours(x, training=False), ours(x, training=False))


def test_saved_file(tmp_path):
    ours, _ = twins(**SMALL)
    ours.save(tmp_path / "net.keras")
    again, x = keras.models.load_model(tmp_path / "net.keras"), to_nhwc(image((16, 16)).float())
    np.testing.assert_allclose(again(x), ours(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings, message", (
    (dict(depth=121), "56, 67, 103; got 121"), (dict(layers=(4,)), "bottleneck's last"),
    (dict(width=1e-3), "at least one")))
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message): FCDenseNet(2, **settings)
    with pytest.raises(ValueError, match="at least 4x4, 2 pools"): FCDenseNet(2, **SMALL)(tf.zeros((1, 3, 8, 3)))
