"What the chapter on weights in two frameworks cannot show: subclassed models, many kernels, saving, mixed precision, all errors."
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'semseg-course[tf]'")
import keras  # noqa: E402
from keras import layers  # noqa: E402

from semseg_course.blocks import SeparableConv2d  # noqa: E402
from semseg_course.tf.weights import (  # noqa: E402
    CroppedConv2DTranspose,
    PaddedConv2D,
    PaddedDepthwiseConv2D,
    PaddedMaxPool2D,
    PaddedSeparableConv2D,
    batch_norm,
    copy_weights,
    keras_slots,
    to_nchw,
    to_nhwc,
    torch_slots,
)

PAIRS = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: PaddedConv2D(6, 3, padding=1, name="0")),
    "strided": (lambda: nn.Conv2d(4, 6, 5, 3, 2), lambda: PaddedConv2D(6, 5, 3, padding=2, name="0")),
    "pad 100": (lambda: nn.Conv2d(4, 2, 3, padding=100), lambda: PaddedConv2D(2, 3, padding=100, name="0")),
    "asymmetric": (lambda: nn.Conv2d(4, 6, (5, 1), padding=(2, 0)), lambda: PaddedConv2D(6, (5, 1), padding=(2, 0), name="0")),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda: PaddedConv2D(6, 3, padding=1, groups=2, name="0")),
    "depthwise": (lambda: nn.Conv2d(4, 12, 3, 2, 1, groups=4, bias=False),
                  lambda: PaddedDepthwiseConv2D(3, 2, padding=1, depth_multiplier=3, use_bias=False, name="0")),
    "separable": (lambda: SeparableConv2d(4, 6, 3, padding=1), lambda: PaddedSeparableConv2D(6, 3, padding=1, name="0")),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1), lambda: CroppedConv2DTranspose(4, 4, 2, padding=1, name="0")),
    "transposed, extra": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1),
                          lambda: CroppedConv2DTranspose(3, 3, 2, padding=1, output_padding=1, name="0")),
    "transposed, gaps": (lambda: nn.ConvTranspose2d(4, 3, 2, 3), lambda: CroppedConv2DTranspose(3, 2, 3, name="0")),
    "batch norm": (lambda: nn.BatchNorm2d(4), lambda: batch_norm(name="0")),
    "bare batch norm": (lambda: nn.BatchNorm2d(4, affine=False), lambda: batch_norm(name="0", center=False, scale=False)),
    "PReLU": (lambda: nn.PReLU(4), lambda: layers.PReLU(shared_axes=[1, 2], name="0")),
    "one PReLU": (lambda: nn.PReLU(), lambda: layers.PReLU(shared_axes=[1, 2, 3], name="0"))}


def fill(module):
    "Random numbers in every tensor, statistics included; variances positive."
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point(): tensor.uniform_(0.1, 1)
    return module.eval()


@pytest.mark.parametrize("name", PAIRS)
def test_scores_shapes_and_round_trip(name):
    theirs, ours = nn.Sequential(PAIRS[name][0]()), PAIRS[name][1]()
    ours = keras.Sequential([keras.Input((None, None, 4)), ours])
    fill(theirs)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    names = copy_weights(theirs, ours)
    assert sorted(names) == sorted(k for k in before if not k.endswith("num_batches_tracked"))
    for h, w in ((8, 8), (7, 10)):
        x = torch.randn(2, 4, h, w)
        want, got = to_nhwc(theirs(x)), ours(to_nhwc(x)).numpy()
        assert got.shape == want.shape and ours.compute_output_shape((2, h, w, 4))[1:] == want.shape[1:]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for tensor in theirs.state_dict().values(): tensor.zero_()
    assert sorted(copy_weights(ours, theirs)) == sorted(names)
    assert all(torch.equal(theirs.state_dict()[k], before[k]) for k in names)


@pytest.mark.parametrize("settings", [(2, 2, 0, True), (3, 2, 1, True), (3, 2, 1, False), (2, 3, 1, True), (1, 2, 0, True)])
def test_max_pool_of_any_size(settings):
    *sizes, ceil_mode = settings
    theirs, ours = (pool(*sizes, ceil_mode=ceil_mode) for pool in (nn.MaxPool2d, PaddedMaxPool2D))
    for h in range(3, 9):
        x = torch.randn(1, 2, h, 11 - h) - 5
        np.testing.assert_array_equal(ours(to_nhwc(x)).numpy(), to_nhwc(theirs(x)))


class Net(keras.Model):
    "A subclass with lists, an own weight, and a layer that is used twice."

    def __init__(self):
        super().__init__(name="any")
        self.stages = [PaddedConv2D(4, 3, padding=1, name="stages.0"), PaddedConv2D(4, 3, padding=1, name="stages.1")]
        self.drop, self.factor = layers.Dropout(0.5), self.add_weight(shape=(4,), name="factor")

    def call(self, x): return self.drop(self.stages[1](self.stages[1](self.stages[0](x)))) * self.factor


class Twin(nn.Module):
    "The same in torch; the second stage has a second name."

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)))
        self.again, self.factor = self.stages[1], nn.Parameter(torch.randn(4))

    def forward(self, x): return self.again(self.stages(x)) * self.factor[:, None, None]


def test_a_subclass_with_shared_layers():
    theirs, ours, x = Twin(), Net(), torch.randn(1, 4, 6, 7)
    with pytest.raises(ValueError, match="Call the Keras model on an image first"): copy_weights(theirs, ours)
    ours(to_nhwc(x))
    assert set(copy_weights(theirs, ours)) == {"factor", "stages.0.weight", "stages.0.bias", "stages.1.weight", "stages.1.bias"}
    np.testing.assert_allclose(ours(to_nhwc(x)).numpy(), to_nhwc(theirs(x)), rtol=1e-4, atol=1e-5)


def test_every_difference_is_named_and_nothing_is_changed():
    theirs = nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(), nn.ConvTranspose2d(6, 6, 3, bias=False))
    ours = keras.Sequential([keras.Input((None, None, 4)), layers.Conv2D(6, 5, name="0"),
                             layers.Conv2D(6, 3, use_bias=False, name="2"), layers.Dense(3, name="3")])
    read = lambda net: {n: s.read().copy() for n, s in (keras_slots(net) if net is ours else torch_slots(net)).items()}
    for source, target in ((theirs, ours), (ours, theirs)):
        before = read(target)
        with pytest.raises(ValueError) as error: copy_weights(source, target)
        for part in ("missing in the source", "unexpected", "misshapen", "3.weight", "1.weight",
                     "transposed convolution on one side alone: 2.weight", "(6, 4, 5, 5)", "(6, 4, 3, 3)"):
            assert part in str(error.value)
        for name, array in read(target).items(): np.testing.assert_array_equal(array, before[name])


def test_types_that_are_no_network_and_names_that_clash():
    with pytest.raises(ValueError, match="got list"): copy_weights([], nn.PReLU())
    shared = keras.Sequential([keras.Input((2,)), keras.Sequential([layers.Dense(2, name="b.c")], name="a"),
                               keras.Sequential([layers.Dense(2, name="c")], name="a.b")])
    with pytest.raises(ValueError, match="a.b.c.weight twice"): keras_slots(shared)
    with pytest.raises(ValueError, match="at most padding"): CroppedConv2DTranspose(2, 3, 2, padding=0, output_padding=1)


def test_a_saved_model_keeps_its_padding(tmp_path):
    parts = [PaddedConv2D(4, 3, 2, padding=1), PaddedMaxPool2D(2, ceil_mode=True), PaddedSeparableConv2D(4, 3, padding=1),
             PaddedDepthwiseConv2D(3, padding=1), CroppedConv2DTranspose(2, 3, 2, padding=1, output_padding=1)]
    net = keras.Sequential([keras.Input((None, None, 3)), *parts])
    net.save(tmp_path / "net.keras")
    x = np.random.rand(1, 13, 10, 3).astype("float32")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "net.keras")(x), net(x), rtol=1e-6)


def test_half_precision_on_either_side():
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3)).to(torch.bfloat16)
    ours = keras.Sequential([keras.Input((None, None, 3)), PaddedConv2D(4, 3, name="0", dtype="mixed_float16")])
    copy_weights(theirs, ours)
    np.testing.assert_array_equal(keras_slots(ours)["0.weight"].read(), theirs[0].weight.float().detach().numpy())
    again = nn.Sequential(nn.Conv2d(3, 4, 3)).to(torch.bfloat16)
    copy_weights(ours, again)
    assert torch.equal(again[0].weight, theirs[0].weight) and again[0].weight.requires_grad
    assert torch.equal(to_nchw(to_nhwc(torch.ones(1, 2, 3, 4))), torch.ones(1, 2, 3, 4))


def test_the_modules_need_no_torch():
    modules = ", ".join(f"semseg_course.tf.{m}" for m in "losses weights upsample backbones models.fcn training".split())
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
