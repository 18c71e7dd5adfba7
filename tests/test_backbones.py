"""VGG against lists of the official files: every name, every shape, every total.

`data/vgg_official.json` was written from the rule of torchvision's files (a layer's place in the list is its number),
not by our code.
"""
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from semseg_course import blocks
from semseg_course.backbones import STAGES, VGG, init_weights, pyramid, scaled, vgg_features
from semseg_course.blocks import SeparableConv2d, convolutionalize, count_operations, count_parameters, output_size

FILES = json.loads((Path(__file__).parent / "data/vgg_official.json").read_text(encoding="utf-8"))["files"]
TOTALS = dict(vgg16=138_357_544, vgg16_bn=138_365_992, vgg19=143_667_240, vgg19_bn=143_678_248)


def ghost(file: str, **settings) -> VGG:
    "The network of an official file, with shapes and without numbers."
    with torch.device("meta"): return VGG(name=file.removesuffix("_bn"), norm=file.endswith("_bn"), **settings)


def official(file: str) -> dict:
    "The tensors of an official file, with shapes and without numbers."
    return {name: torch.empty(shape, device="meta") for name, shape in FILES[file]["tensors"].items()}


@pytest.mark.parametrize("file", TOTALS)
def test_totals(file):
    learned = {k: math.prod(s) for k, s in FILES[file]["tensors"].items() if "running" not in k}
    assert sum(learned.values()) == FILES[file]["parameters"] == TOTALS[file] == count_parameters(ghost(file))


@pytest.mark.parametrize("file", TOTALS)
def test_every_name_and_shape(file):
    ours = {k: list(t.shape) for k, t in ghost(file).state_dict().items() if "num_batches_tracked" not in k}
    assert ours == FILES[file]["tensors"] and list(ours) == list(FILES[file]["tensors"])


@pytest.mark.parametrize("file", TOTALS)
@pytest.mark.parametrize("counters", [False, True])
def test_the_official_tensors_load_strictly(file, counters):
    network, tensors = ghost(file), official(file)
    if counters:  # newer files count batches, older ones do not
        tensors |= {k: t for k, t in network.state_dict().items() if "num_batches_tracked" in k}
    result = network.load_state_dict(tensors, strict=True, assign=True)
    assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize("file", TOTALS)
def test_a_tensor_too_few_too_many_or_misshapen_is_an_error(file):
    for change in (lambda t: t.pop("features.0.bias"), lambda t: t.update(extra=torch.zeros(1)),
                   lambda t: t.update({"classifier.6.bias": torch.zeros(21)})):
        tensors = official(file)
        change(tensors)
        with pytest.raises(RuntimeError, match="features.0.bias|extra|classifier.6.bias"):
            ghost(file).load_state_dict(tensors, strict=True, assign=True)


@pytest.mark.parametrize("file", TOTALS)
def test_the_official_classifier_becomes_convolutions(file):
    network = ghost(file)
    network.load_state_dict(official(file), strict=True, assign=True)
    head = convolutionalize(network.classifier, (7, 7))
    assert [tuple(m.weight.shape) for m in head if isinstance(m, nn.Conv2d)] == [
        (4096, 512, 7, 7), (4096, 4096, 1, 1), (1000, 4096, 1, 1)]
    assert count_parameters(network.features) + count_parameters(head) == TOTALS[file]
    scores = head(network.features(torch.zeros(1, 3, 320, 416, device="meta")))
    assert scores.shape == (1, 1000, 4, 7)  # 320 / 32 - 6, 416 / 32 - 6


def test_one_official_layer_alone():
    network = ghost("vgg16")
    assert blocks.to_convolution(network.classifier[0], (7, 7)).weight.shape == (4096, 512, 7, 7)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("norm", [False, True])
def test_convolutional_form_equals_the_classifier(name, norm):
    torch.manual_seed(0)
    network, image = VGG(11, name, norm, width=1 / 16).eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        scores = convolutionalize(network.classifier, (7, 7))(network.features(image))
        torch.testing.assert_close(scores.flatten(1), network(image), atol=1e-5, rtol=1e-5)


def test_operations_of_vgg16():
    image = torch.zeros(1, 3, 224, 224, device="meta")
    assert count_operations(ghost("vgg16").eval(), image) == 15_470_264_320


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [(32, 32), (96, 128), (95, 127), (33, 70)])
@pytest.mark.parametrize("ceil", [False, True])
def test_pyramid_sizes(name, size, ceil):
    features = vgg_features(name, width=1 / 16, ceil_mode=ceil)
    maps = pyramid(features, torch.zeros(2, 3, *size))
    assert [m.shape[1] for m in maps] == [4, 8, 16, 32, 32]
    for m in maps:
        size = [output_size(s, 2, 2, ceil=ceil) for s in size]
        assert list(m.shape[2:]) == size


def test_pyramid_ends_with_the_features():
    torch.manual_seed(0)
    features, image = vgg_features(norm=True, width=1 / 16).eval(), torch.randn(1, 3, 64, 64)
    maps = pyramid(features, image)
    assert torch.equal(maps[-1], features(image)) and torch.equal(maps[0], features[:7](image))


def test_other_convolutions_and_padding():
    features = vgg_features(width=1 / 16, convolution=SeparableConv2d, padding=100)
    assert sum(isinstance(m, SeparableConv2d) for m in features) == 13
    assert features(torch.zeros(1, 3, 16, 16)).shape[2:] == (6, 6)  # (16 + 198) / 32


def test_unknown_names_and_widths():
    with pytest.raises(ValueError, match="vgg16, vgg19; got 'vgg11'"): vgg_features("vgg11")
    with pytest.raises(ValueError, match="vgg16, vgg19"): VGG(name="vgg16_bn")
    with pytest.raises(ValueError, match="at least one of 64 channels"): vgg_features(width=0.001)
    assert [scaled(64, w) for w in (1, 0.5, 1 / 64, 0.1)] == [64, 32, 1, 6]


def test_small_images():
    network = VGG(5, width=1 / 16)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"at least 32x32.*got \(31, 64\)"): network(torch.zeros(1, 3, 31, 64))


def test_start_keeps_the_size_of_activations():
    torch.manual_seed(0)
    features, x = vgg_features(width=0.5), torch.randn(2, 3, 64, 64)
    init_weights(features)
    with torch.no_grad():
        for layer in features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d): assert 0.2 < x.std() < 5 and not layer.bias.any()


def test_start_leaves_norms_alone():
    norm = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    init_weights(norm)
    assert norm[1].weight.eq(1).all() and not norm[1].bias.any()


def test_same_seed_same_network():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(VGG(5, width=1 / 16))
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks)))
