"""MobileNetV2 against the list of the official file, and the U-Net on it: counts, sizes, gradients, freezing.

`data/mobilenet_official.json` was written from the rule of torchvision's names, not by our code.
"""
import json
import math
from pathlib import Path

import pytest
import torch
from fingerprint import fill, image
from torch import nn
from torch.nn import functional

from semseg_course.blocks import count_operations, count_parameters
from semseg_course.models.mobilenet_unet import (
    BLOCKS,
    DECODER,
    FORMS,
    Doubling,
    InvertedResidual,
    LateConv2d,
    MobileNetV2,
    MobileNetV2UNet,
    conv_norm_relu6,
    divisible,
    mobilenet_features,
    pyramid,
)
from semseg_course.pretrained import compare, load_matching
from semseg_course.training import parameter_groups, set_training

FILE = json.loads((Path(__file__).parent / "data/mobilenet_official.json").read_text(encoding="utf-8"))
FILE = FILE["files"]["mobilenet_v2"]
HEAD = ("features.17.conv.3.*", "features.18.*", "classifier.*")


def ghost(kind, *arguments, **settings):
    "A network with shapes and without numbers."
    with torch.device("meta"): return kind(*arguments, **settings)


def official(device="meta"):
    return {name: torch.rand(shape, device=device) for name, shape in FILE["tensors"].items()}


def numbers(network, part=""):
    "Parameters and running statistics, as Keras counts them."
    return sum(t.numel() for name, t in network.state_dict().items()
               if "num_batches" not in name and name.startswith(part))


def narrow(num_classes=3, **settings): return fill(MobileNetV2UNet(num_classes, width=0.1, **settings))


# The classifier

def test_every_name_and_shape_of_the_official_file():
    network = ghost(MobileNetV2)
    ours = {k: list(t.shape) for k, t in network.state_dict().items() if "num_batches_tracked" not in k}
    assert ours == FILE["tensors"] and list(ours) == list(FILE["tensors"])
    assert count_parameters(network) == FILE["parameters"] == 3_504_872


def test_the_official_tensors_load_strictly():
    network = ghost(MobileNetV2)
    counters = {k: t for k, t in network.state_dict().items() if "num_batches_tracked" in k}
    assert not any(network.load_state_dict(official() | counters, strict=True, assign=True))


def test_the_papers_multiply_adds():
    image = torch.zeros(1, 3, 224, 224, device="meta")
    assert count_operations(ghost(MobileNetV2).eval(), image) == 300_774_272


@pytest.mark.parametrize("width, channels", [(0.35, 112), (0.5, 160), (0.75, 240), (1.0, 320), (1.4, 448)])
def test_widths_round_as_the_authors(width, channels):
    assert divisible(320, width) == channels
    assert all(divisible(c, width) % 8 == 0 and divisible(c, width) >= 0.9 * c * width for _, c, _, _ in BLOCKS)


def test_counts_at_other_widths():
    "Trainable numbers of keras.applications.MobileNetV2(alpha=width) with 1000 classes."
    assert {w: count_parameters(ghost(MobileNetV2, width=w)) for w in (0.35, 0.5, 0.75, 1.3, 1.4)} == {
        0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.3: 5_386_792, 1.4: 6_108_776}


def test_blocks_add_only_what_has_the_same_shape():
    blocks = list(ghost(mobilenet_features))[1:]
    assert len(blocks) == 17 and sum(block.residual for block in blocks) == 10
    x = image((9, 7), 8).float()
    block = fill(InvertedResidual(8, 8, 1)).eval()
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert block(x).shape == x.shape and not InvertedResidual(8, 16).residual and not InvertedResidual(8, 8, 2).residual


def test_the_projection_is_linear():
    block = InvertedResidual(8, 8)
    assert [type(layer) for layer in block.conv] == [nn.Sequential, nn.Sequential, nn.Conv2d, nn.BatchNorm2d]
    assert sum(isinstance(m, nn.ReLU6) for m in block.modules()) == 2
    assert len(InvertedResidual(8, 8, expansion=1).conv) == 3


# Padding

@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 5), (1, 2)])
def test_late_windows_begin_at_the_first_pixel_of_an_even_side(size):
    torch.manual_seed(0)
    layer, x = LateConv2d(1, 1, 3, 2, bias=False), torch.randn(1, 1, *size)
    with torch.no_grad(): layer.weight.zero_()[0, 0, 1, 1] = 1  # takes the middle of each window
    first = [1 - side % 2 for side in size]
    picked = functional.pad(x, (0, 1, 0, 1))[:, :, first[0]:first[0] + size[0]:2, first[1]:first[1] + size[1]:2]
    torch.testing.assert_close(layer(x), picked)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 5), (1, 1)])
def test_doubling_is_the_transpose_of_halving(form, size):
    "<down(x), y> equals <x, up(y)> for the same kernel, whatever x and y."
    torch.manual_seed(0)
    down = conv_norm_relu6(2, 3, 3, 2, form=form)[0].double()
    up = Doubling(3, 2, bias=False, form=form).double()
    with torch.no_grad(): up.weight.copy_(down.weight)
    x = torch.randn(1, 2, *size).double()
    y = torch.randn_like(down(x))
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y, size)).sum())


# The U-Net

@pytest.mark.parametrize("classes, count, trained", [(12, 6_517_196, 4_673_292), (3, 6_504_227, 4_660_323)])
def test_counts_of_the_tutorial(classes, count, trained):
    network = ghost(MobileNetV2UNet, classes)
    assert numbers(network) == count
    assert sum(p.numel() for p in network.freeze().parameters() if p.requires_grad) == trained
    assert numbers(network, "features") == 1_841_984


def test_each_class_costs_one_kernel():
    assert numbers(ghost(MobileNetV2UNet, 2)) - numbers(ghost(MobileNetV2UNet, 1)) == 160 * 9 + 1


@pytest.mark.parametrize("form", FORMS)
def test_only_the_head_of_the_official_file_is_left(form):
    network, tensors = MobileNetV2UNet(5, form=form), official("cpu")
    report = load_matching(network, tensors).require(missing=("up.*", "score.*"), unexpected=HEAD)
    assert set(report.loaded) == {name for name in tensors if name.startswith("features")} & set(network.state_dict())
    assert set(report.loaded) == {n for n in network.state_dict() if n.startswith("features") and "num_b" not in n}
    assert torch.equal(network.features[17].conv[2].weight, tensors["features.17.conv.2.weight"])
    assert len(report.unexpected) == 4 + 5 + 2 and not report.misshapen


def test_the_report_needs_no_memory():
    compare(ghost(MobileNetV2UNet, 5), official()).require(missing=("up.*", "score.*"), unexpected=HEAD)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 33), (32, 64), (47, 95), (96, 65)])
def test_scores_have_the_images_size(form, size):
    network, x = narrow(form=form).eval(), image(size).float()
    maps = pyramid(network.features, x)
    assert [m.shape[2:] for m in maps] == [tuple(-(-s // 2**i) for s in size) for i in range(1, 6)]
    assert network(x).shape == (1, 3, *size)


def test_skips_are_the_tutorials_five():
    maps = pyramid(ghost(MobileNetV2UNet, 3).features, torch.zeros(1, 3, 224, 224, device="meta"))
    assert [(m.shape[1], m.shape[2]) for m in maps] == [(96, 112), (144, 56), (192, 28), (576, 14), (320, 7)]
    network, x = narrow().eval().features, image((40, 50)).float()
    maps = pyramid(network, x)
    for m, last in zip(maps, (2, 4, 7, 14)):
        torch.testing.assert_close(m, network[last].conv[0](network[:last](x)))
    torch.testing.assert_close(maps[-1], network(x))
    assert all(m.min() >= 0 and m.max() <= 6 for m in maps[:4]) and maps[-1].min() < 0


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_equals_its_images(form):
    network, x = narrow(form=form).eval(), image((45, 70), batch=2).float()
    torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_channels_last_gives_the_same(form):
    network, x = narrow(form=form).eval(), image((45, 70)).float()
    expected = network(x)
    last = network.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), expected, rtol=1e-4, atol=1e-5)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in pyramid(last.features, x))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form):
    torch.manual_seed(0)
    network = MobileNetV2UNet(3, 0.1, form)
    network(image((64, 96), batch=2).float()).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("form", FORMS)
def test_fine_maps_move_with_the_image(form):
    "Moved by 32 pixels, an image gets moved skips, but for what sees the border: at most 10 places at 1/4."
    features, x = narrow(form=form).eval().features, image((64, 160)).float()
    with torch.no_grad(): whole, part = pyramid(features, x), pyramid(features, x[..., 32:])
    for step, a, b in zip((2, 4), whole, part):
        a = a[..., 32 // step:]
        torch.testing.assert_close(a[..., 10:], b[..., 10:], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(a[..., :10], b[..., :10], rtol=1e-2, atol=1e-3)


def test_the_forms_are_different_functions_of_the_same_weights():
    x, networks = image((64, 64)).float(), [narrow(form=form).eval() for form in FORMS]
    networks[1].load_state_dict(networks[0].state_dict())
    with torch.no_grad(): a, b = (network(x) for network in networks)
    assert (a - b).abs().max() > 0.01 * a.std()
    assert {m.eps for m in networks[1].modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


# Freezing

def test_frozen_means_no_gradient_and_no_moving_means():
    network = narrow().freeze()
    set_training(network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(image((64, 64), batch=2).float()).square().mean().backward()
    optimizer.step()
    changed = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert changed and not any(name.startswith("features") for name in changed)
    assert {"up.0.norm.running_mean", "up.0.conv.weight", "score.bias"} <= changed
    assert not network.features.training and network.up.training


def test_freeing_undoes_it():
    network = narrow().freeze().train().freeze(False)
    assert all(m.training for m in network.modules()) and all(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in narrow().eval().freeze().modules())
    kept = sum(p.numel() for group in parameter_groups(narrow().freeze(), 0.01) for p in group["params"])
    assert kept == count_parameters(narrow()) - count_parameters(narrow().features)


# Arguments

@pytest.mark.parametrize("kind", [MobileNetV2, MobileNetV2UNet])
def test_bad_arguments_say_what_to_do(kind):
    with pytest.raises(ValueError, match="form must be one of torchvision, keras; got 'tf'"): kind(3, form="tf")
    for width in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="width must be a positive factor"): kind(3, width)


def test_settings_build_the_network_again():
    network = narrow(4, form="keras")
    again = MobileNetV2UNet(**network.settings)
    assert {k: t.shape for k, t in again.state_dict().items()} == {k: t.shape for k, t in network.state_dict().items()}
    assert network.up[0].conv.weight.shape[1] == divisible(DECODER[0], 0.1)


def test_same_seed_same_network():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(MobileNetV2UNet(5, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks)))
