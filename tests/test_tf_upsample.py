"What the chapter on upsampling in TensorFlow cannot show: many sizes, ties, saving, graphs, and the names of its twin."
import os

import numpy as np
import pytest
import torch
from torch.nn import functional

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'semseg-course[tf]'")
import keras  # noqa: E402

import semseg_course.tf.upsample as ours  # noqa: E402
import semseg_course.upsample as theirs  # noqa: E402
from semseg_course.tf.weights import copy_weights, to_nhwc  # noqa: E402


def close(a, b): np.testing.assert_allclose(a, to_nhwc(b), rtol=1e-4, atol=1e-5)


def test_every_public_name_has_its_twin():
    assert set(theirs.__all__) <= set(ours.__all__)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 8, 16, 32])
def test_bilinear_kernels_and_layers(stride):
    for size in (None, stride, 2 * stride - 1, 2 * stride + 3):
        np.testing.assert_allclose(ours.bilinear_kernel(stride, size), theirs.bilinear_kernel(stride, size).numpy(), atol=1e-7)
    x = torch.randn(1, 2, 3, 5)
    for padding in (0, stride // 2):
        close(ours.bilinear_upsampling(2, stride, padding)(to_nhwc(x)), theirs.bilinear_upsampling(2, stride, padding)(x))


@pytest.mark.parametrize("size, stride, padding", [(1, 1, 0), (3, 2, 1), (4, 2, 1), (2, 5, 0), (16, 8, 4)])
def test_transposed_convolution(size, stride, padding):
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(3, 6, size, size)
    got = ours.transposed_convolution(to_nhwc(x), tf.constant(weight.permute(2, 3, 1, 0).numpy()), stride, padding)
    close(got, functional.conv_transpose2d(x, weight, stride=stride, padding=padding))
    close(got, theirs.transposed_convolution(x, weight, stride, padding))


@pytest.mark.parametrize("make", [
    lambda m, *c: m.ResizeConv(*c, 4, 3, 5), lambda m, *c: m.ResizeConv(*c, 4, 2, 3, "bilinear"),
    lambda m, *c: m.PixelShuffleUp(*c, 4, 3, 3), lambda m, *c: m.PixelShuffleUp(*c, 4, 2, 5, False)])
def test_layers_take_torch_weights_and_can_be_saved(make, tmp_path):
    torch_layer, layer, x = make(theirs, 3), make(ours), torch.randn(2, 3, 5, 6)
    net = keras.Sequential([keras.Input((None, None, 3)), layer])
    copy_weights(torch_layer, layer)
    close(net(to_nhwc(x)), torch_layer(x))
    assert net.compute_output_shape((2, 5, 6, 3)) == tuple(to_nhwc(torch_layer(x)).shape)
    net.save(tmp_path / "net.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "net.keras")(to_nhwc(x)), net(to_nhwc(x)))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_places_of_every_size_and_ties(size, ceil_mode):
    rng = np.random.default_rng(0)
    for h, w in ((4, 4), (5, 7), (9, 6), (11, 13)):
        # few different numbers, many of them equal: the first of a window wins in both; negative ones must not lose to padding
        x = torch.tensor(rng.integers(-5, -1, (2, 3, h, w)).astype("float32"))
        pooled, places = ours.max_pool_with_indices(to_nhwc(x), size, ceil_mode)
        torch_pooled, torch_places = functional.max_pool2d(x, size, ceil_mode=ceil_mode, return_indices=True)
        close(pooled, torch_pooled)
        np.testing.assert_array_equal(ours.from_tensorflow_indices(places), torch_places)
        np.testing.assert_array_equal(ours.to_tensorflow_indices(torch_places), places)
        up = ours.max_unpool(pooled, places, (h, w), size)
        close(up, functional.max_unpool2d(torch_pooled, torch_places, size, output_size=(h, w)))


def test_places_as_tensorflow_counts_them():
    x = np.random.default_rng(0).random((3, 6, 8, 5), "float32")
    pooled, places = ours.max_pool_with_indices(x)
    np.testing.assert_array_equal(places, tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")[1])
    counted = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID", include_batch_in_index=True)[1]
    np.testing.assert_array_equal(counted % (6 * 8 * 5), places)
    with pytest.raises(ValueError, match="leave the batch out"): ours.max_unpool(pooled, counted)
    with pytest.raises(ValueError, match="it may have been odd"): ours.max_unpool(*ours.max_pool_with_indices(x[:, :, :7]))
    with pytest.raises(ValueError, match="must pool to"): ours.max_unpool(pooled, places, (9, 9))
    with pytest.raises(ValueError, match="indices must have x's shape"): ours.max_unpool(pooled, places[:1])


def test_unpooling_in_half_precision_and_in_a_graph():
    x = tf.constant(np.random.default_rng(0).random((2, 7, 5, 3)), tf.float16)

    @tf.function
    def back(x): return ours.max_unpool(*ours.max_pool_with_indices(x, 2, True), (7, 5))

    np.testing.assert_array_equal(back(x), ours.max_unpool(*ours.max_pool_with_indices(x, 2, True), (7, 5)))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="1 or more"): ours.bilinear_kernel(2, 0)
    with pytest.raises(ValueError, match="1 or more"): ours.phases(np.ones(3), 2)
    x = tf.ones((1, 2, 2, 3))
    with pytest.raises(ValueError, match="x's channels last"): ours.transposed_convolution(x, tf.ones((3, 3, 3, 2)))
    with pytest.raises(ValueError, match="multiple of 9"): ours.pixel_shuffle(tf.ones((1, 2, 2, 8)), 3)
    with pytest.raises(ValueError, match="places already"): ours.from_tensorflow_indices(np.zeros((1, 2, 2, 3), int))
