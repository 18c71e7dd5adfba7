"The CRF with the classes last equals the CRF with the classes first."
import os
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'semseg-course[tf]'")
import keras  # noqa: E402
import torch  # noqa: E402, F401

from semseg_course import crf  # noqa: E402
from semseg_course.tf.crf import dense_crf  # noqa: E402


def crowd(*shape, classes=3, dtype=np.float32, seed=0):
    "An image and probabilities, the classes last."
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (*shape, 3), np.uint8), random.dirichlet(np.ones(classes), shape).astype(dtype)


def expected(image, p, **settings):
    return np.moveaxis(crf.dense_crf(image, np.moveaxis(p, -1, -3).copy(), **settings), -3, -1)


@pytest.mark.parametrize("shape", [(6, 8), (1, 9), (7, 1), (1, 1), (3, 6, 8), (1, 5, 4)])
@pytest.mark.parametrize("classes", [1, 3, 12])
def test_it_equals_the_other_layout(shape, classes):
    image, p = crowd(*shape, classes=classes)
    got = dense_crf(image, p)
    assert got.shape == p.shape and got.dtype == p.dtype and got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected(image, p))


def test_settings_and_masks_pass_through():
    image, p = crowd(2, 6, 8)
    mask = np.random.default_rng(1).random((2, 6, 8)) < 0.7
    kernel = crf.Kernel(np.ones((3, 3)) - np.eye(3), sxy=2, srgb=30)
    settings = dict(kernels=(kernel,), iterations=3, normalization="none", exact=True)
    got = dense_crf(image, p, mask=mask, **settings)
    np.testing.assert_array_equal(got, expected(image, p, mask=mask, **settings))
    np.testing.assert_array_equal(got[~mask], p[~mask])
    np.testing.assert_array_equal(dense_crf(image, p, mask=tf.constant(mask), **settings), got)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_comes_in_comes_out(dtype):
    image, p = crowd(6, 8, dtype=dtype)
    array, tensor = dense_crf(image, p), dense_crf(tf.constant(image), tf.constant(p))
    assert isinstance(array, np.ndarray) and array.dtype == dtype
    assert tf.is_tensor(tensor) and tensor.dtype == dtype
    np.testing.assert_array_equal(array, tensor)
    np.testing.assert_array_equal(dense_crf(image, tf.constant(p)), tensor)
    assert isinstance(dense_crf(tf.constant(image), p), np.ndarray)


def test_variables_and_bfloat16():
    image, p = crowd(6, 8)
    with pytest.raises(ValueError, match="Cast the scores to float32"): dense_crf(image, tf.cast(p, tf.bfloat16))
    np.testing.assert_array_equal(dense_crf(image, tf.Variable(p)), dense_crf(image, p))


def test_inputs_stay_as_they_are_and_may_be_read_only():
    image, p = crowd(6, 8)
    copies = image.copy(), p.copy()
    image.flags.writeable = p.flags.writeable = False
    dense_crf(image, p)[:] = 0
    assert (image == copies[0]).all() and (p == copies[1]).all()
    np.testing.assert_allclose(dense_crf(image[:, ::-1], p[:, ::-1])[:, ::-1], dense_crf(image, p), atol=0.05)


def test_no_gradient_flows():
    image, p = crowd(6, 8)
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(p))
        total = tf.reduce_sum(dense_crf(image, x) * x[::-1])
    assert tape.gradient(total, x) is not None  # by the factor
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(dense_crf(image, x))
    assert tape.gradient(total, x) is None


def test_mistakes_are_named():
    image, p = crowd(6, 8)
    for arguments, message in [
            ((image, np.moveaxis(p, -1, 0)), "Is the axis of the classes the last"), ((image, p[0]), "both NHWC"),
            ((image[:5], p), r"got \(5, 8, 3\) and \(6, 8, 3\)"), ((image[None], p), "both NHWC"),
            ((np.moveaxis(image, -1, 0), p), "both NHWC"), ((image / 255, p), "Multiply it by 255"),
            ((image, np.log(p)), "Apply a softmax"), ((image, p * np.nan), "probabilities must be")]:
        with pytest.raises(ValueError, match=message): dense_crf(*arguments)
    with pytest.raises(ValueError, match="normalization must be one of"): dense_crf(image, p, normalization="twice")
    with pytest.raises(ValueError, match="got a tensor of a graph"): dense_crf(image, keras.Input((6, 8, 3)))


def test_inside_a_graph_it_needs_numpy_function():
    image, p = crowd(6, 8)
    alone = tf.function(lambda x: dense_crf(image, x))
    with pytest.raises(ValueError, match="tf.numpy_function"): alone(tf.constant(p))
    wrapped = tf.function(lambda x: tf.numpy_function(dense_crf, [image, x], tf.float32))
    np.testing.assert_array_equal(wrapped(tf.constant(p)), dense_crf(image, p))


def test_importing_it_loads_no_pytorch():
    code = "import sys, semseg_course.tf.crf; print(sorted({'torch', 'semseg_course.crf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
