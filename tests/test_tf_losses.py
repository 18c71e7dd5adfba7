"What the TensorFlow twin of pixel losses cannot show: types, graphs, compilers, replicas, saved models."
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402

import semseg_course.losses as pytorch  # noqa: E402
from semseg_course.tf.losses import (  # noqa: E402
    VOID,
    PixelCrossEntropy,
    cross_entropy,
    cross_entropy_terms,
    dense_cross_entropy,
    pixel_losses,
    spatial_softmax,
)


def pair(n=2, h=6, w=7, num_classes=5, void=0.3, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (n, h, w, num_classes)).astype(np.float32)
    target = rng.integers(0, num_classes, (n, h, w))
    return scores, np.where(rng.random(target.shape) < void, VOID, target)


def there(scores):
    return torch.tensor(np.moveaxis(np.asarray(scores), -1, 1)).requires_grad_()


def gradient(loss, scores, *rest):
    scores = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        value = loss(scores, *rest)
    return float(value), tape.gradient(value, scores).numpy()


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 6, 7, 5), (3, 1, 40, 11), (1, 5, 5, 200)])
@pytest.mark.parametrize("void", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_pytorch_in_value_and_gradient(shape, void, weighted):
    scores, target = pair(*shape, void=void)
    weights = np.linspace(0, 2, shape[3], dtype=np.float32) if weighted else None
    theirs = there(scores)
    loss = pytorch.cross_entropy(theirs, torch.tensor(target), None if weights is None else torch.tensor(weights))
    loss.backward()
    value, slope = gradient(cross_entropy, scores, target, weights)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slope, np.moveaxis(theirs.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-7)


def test_terms_pixels_and_probabilities_equal_pytorch():
    scores, target = pair()
    weights = np.float32([0, 1, 2, 3, 4])
    arguments = there(scores).detach(), torch.tensor(target), torch.tensor(weights)
    for ours, theirs in zip(cross_entropy_terms(scores, target, weights), pytorch.cross_entropy_terms(*arguments)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    theirs = pytorch.pixel_losses(*arguments)
    np.testing.assert_allclose(pixel_losses(scores, target, weights), theirs, rtol=1e-4, atol=1e-6)
    theirs = pytorch.spatial_softmax(arguments[0]).movedim(1, -1)
    np.testing.assert_allclose(spatial_softmax(scores), theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("total", [1.0, 3.0])
def test_dense_equals_pytorch_whatever_a_row_sums_to(total):
    scores, target = pair()
    probabilities = total * spatial_softmax(pair(seed=1)[0]).numpy()
    weight = (target != VOID).astype(np.float32)
    theirs = there(scores)
    loss = pytorch.dense_cross_entropy(theirs, there(probabilities).detach(), torch.tensor(weight))
    loss.backward()
    value, slope = gradient(dense_cross_entropy, scores, probabilities, weight)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    np.testing.assert_allclose(slope, np.moveaxis(theirs.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_whole_numbers_of_any_size(dtype):
    scores, target = pair()
    assert cross_entropy(scores, target.astype(dtype)) == cross_entropy(scores, target)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(dtype):
    scores, target = pair(h=60, w=60)
    half = tf.cast(scores, dtype)
    loss = cross_entropy(half, target)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, cross_entropy(tf.cast(half, tf.float32), target), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_the_same_when_compiled_with_unknown_sizes(jit):
    scores, target = pair()
    signature = [tf.TensorSpec([None, None, None, 5]), tf.TensorSpec([None, None, None], tf.int64)]
    compiled = tf.function(cross_entropy, input_signature=signature, jit_compile=jit)
    np.testing.assert_allclose(compiled(scores, target), cross_entropy(scores, target), rtol=1e-5)
    if not jit:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"target has id. .7. .*num_classes = 5"):
            compiled(scores, np.full_like(target, 7))


@pytest.mark.parametrize("scores, target, text", [
    (np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), int), "scores must be floating point"),
    (np.zeros((1, 3, 3, 2), int), np.zeros((1, 3, 3), int), "scores must be floating point"),
    (np.zeros((1, 3, 3, 2), np.float32), np.zeros((3, 3), int), "Stack the labels"),
    (np.zeros((1, 3, 3, 2), np.float32), np.zeros((1, 3, 3, 1), int), "Take target"),
    (np.zeros((1, 3, 3, 2), np.float32), np.zeros((1, 3, 3, 2), int), "dense_cross_entropy"),
    (np.zeros((1, 3, 3, 2), np.float32), np.zeros((2, 3, 3), int), "one batch size"),
    (np.zeros((1, 3, 3, 2), np.float32), np.zeros((1, 3, 3)), "whole numbers"),
    (np.zeros((1, 3, 3, 2), np.float32), np.full((1, 3, 3), -1), "target has id -1"),
    (np.zeros((1, 3, 3, 2), np.float32), np.full((1, 3, 3), 2), "expected ids 0 to 1, or 255 for void"),
])
def test_errors_name_the_cure(scores, target, text):
    with pytest.raises(ValueError, match=text): cross_entropy(scores, target)


@pytest.mark.parametrize("weights, text", [([1, 1], "one a class"), ([1, 1, 1, 1, -1], "not negative"),
                                           ([1, 1, 1, 1, np.inf], "finite"), ([1, 1, 1, 1, np.nan], "finite")])
def test_class_weights_are_checked(weights, text):
    with pytest.raises(ValueError, match=text): cross_entropy(*pair(), weights)


def test_a_model_trains_with_it_and_is_loaded_back(tmp_path):
    scores, target = pair(n=4)
    model = keras.Sequential([keras.Input((6, 7, 5)), keras.layers.Conv2D(5, 1)])
    model.compile("sgd", PixelCrossEntropy([1, 2, 3, 4, 5]))
    want = cross_entropy(model(scores), target, [1, 2, 3, 4, 5])
    history = model.fit(scores, target, batch_size=4, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(history[0], want, rtol=1e-5)
    assert history[2] < history[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    losses = [m.evaluate(scores, target, verbose=0) for m in (model, again)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


REPLICAS = """
import numpy as np, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from semseg_course.tf.losses import PixelCrossEntropy, cross_entropy
rng = np.random.default_rng(0)
scores, target = rng.normal(0, 1, (4, 6, 7, 5)).astype(np.float32), rng.integers(0, 5, (4, 6, 7))
target[2:, 1:] = 255  # the second replica knows far fewer pixels
kernels = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        model = keras.Sequential([keras.Input((6, 7, 5)), keras.layers.Conv2D(5, 1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.5), PixelCrossEntropy())
    loss = model.fit(scores, target, batch_size=4, epochs=2, verbose=0, shuffle=False).history["loss"]
    kernels.append((loss, model.get_weights()[0]))
np.testing.assert_allclose(kernels[0][0], kernels[1][0], rtol=1e-5)
np.testing.assert_allclose(kernels[0][1], kernels[1][1], rtol=1e-4, atol=1e-6)
print("same on", strategy.num_replicas_in_sync)
"""


def test_two_replicas_take_the_step_of_one():
    "In a process of its own, as devices are split before TensorFlow starts."
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True,
                          env=os.environ | dict(CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same on 2" in done.stdout
