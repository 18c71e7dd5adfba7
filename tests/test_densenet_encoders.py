"""DenseNet against the lists of the official files, made by rule, and the network that stands on it."""
import math

import pytest
import torch
from torch import nn

from semseg_course.models.densenet_unet import LAYERS, DenseNet, DenseNetUNet, densenet_features, densenet_pyramid
from semseg_course.pretrained import compare

TOTALS = dict(densenet121=7_978_856, densenet169=14_149_480, densenet201=20_013_928)
TABLE = dict(densenet121=(6, 12, 24, 16), densenet169=(6, 12, 32, 32), densenet201=(6, 12, 48, 32))
SMALL = dict(width=1 / 8, layers=2)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def norm(name, channels):
    return {f"{name}.{part}": [channels] for part in ("weight", "bias", "running_mean", "running_var")}


def official(name):
    "Names and shapes of torchvision's file, by the rule of its code, written down without ours."
    tensors, channels = {"features.conv0.weight": [64, 3, 7, 7]} | norm("features.norm0", 64), 64
    for i, count in enumerate(TABLE[name], 1):
        for j in range(1, count + 1):
            layer = f"features.denseblock{i}.denselayer{j}"
            tensors |= norm(f"{layer}.norm1", channels) | {f"{layer}.conv1.weight": [128, channels, 1, 1]}
            tensors |= norm(f"{layer}.norm2", 128) | {f"{layer}.conv2.weight": [32, 128, 3, 3]}
            channels += 32
        if i < 4:
            tensors |= norm(f"features.transition{i}.norm", channels)
            tensors[f"features.transition{i}.conv.weight"] = [channels // 2, channels, 1, 1]
            channels //= 2
    last = {"classifier.weight": [1000, channels], "classifier.bias": [1000]}
    return tensors | norm("features.norm5", channels) | last


def ghost(cls, *args, **settings):
    with torch.device("meta"): return cls(*args, **settings)


@pytest.mark.parametrize("name", TOTALS)
def test_every_name_and_shape(name):
    network, theirs = ghost(DenseNet, name=name), official(name)
    ours = {k: list(t.shape) for k, t in network.state_dict().items() if "num_batches_tracked" not in k}
    assert ours == theirs and list(ours) == list(theirs)
    assert sum(math.prod(s) for k, s in theirs.items() if "running" not in k) == TOTALS[name]
    assert sum(p.numel() for p in network.parameters()) == TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_report_of_the_official_file(name):
    network = ghost(DenseNetUNet, 12, name)
    file = {k: torch.empty(s, device="meta") for k, s in official(name).items()}
    report = compare(network, file, name).require(
        missing=("bottleneck.*", "enlarge.*", "up.*", "score.*"), unexpected="classifier.*")
    assert set(report.unexpected) == {"classifier.weight", "classifier.bias"}
    assert {k for k in file if k.startswith("features.")} == set(report.loaded) and not report.misshapen


@pytest.mark.parametrize("name", TOTALS)
def test_channels_of_the_skips(name):
    x = torch.zeros(1, 3, 64, 96, device="meta")
    with torch.no_grad(): maps = densenet_pyramid(ghost(densenet_features, name).eval(), x)
    deepest = dict(densenet121=(1024, 1024), densenet169=(1280, 1664), densenet201=(1792, 1920))[name]
    assert [x.shape[1] for x in maps] == [64, 256, 512, *deepest]
    assert [tuple(x.shape[2:]) for x in maps] == [(64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]


def test_classifier():
    network = DenseNet(7, width=1 / 8).eval()
    x = torch.randn(2, 3, 70, 64)
    scores = network(x)
    assert scores.shape == (2, 7)
    torch.testing.assert_close(network(x[:1]), scores[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ((32, 32), (33, 47), (63, 64), (37, 101)))
def test_any_size(size):
    network = DenseNetUNet(5, **SMALL).eval()
    with torch.no_grad(): assert network(torch.zeros(1, 3, *size)).shape == (1, 5, *size)


def test_batches_equal_single_images_and_the_format_stays():
    network = DenseNetUNet(5, **SMALL).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 40, 50).to(memory_format=torch.channels_last)
    with torch.no_grad():
        together = network(x)
        assert together.std() > 0 and together.stride(1) == 1
        for i in range(2): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    network = DenseNetUNet(3, **SMALL, checkpointing=True)
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), name
    for name, p in network.named_parameters():
        if name.endswith("weight"): assert p.grad.abs().sum() > 0, name
    assert {m.num_batches_tracked.item() for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


def test_settings_make_it_again():
    network = ghost(DenseNetUNet, 3, "densenet169", growth=8, layers=3)
    again = ghost(DenseNetUNet, **network.settings)
    assert [p.shape for p in again.parameters()] == [p.shape for p in network.parameters()]


def test_errors():
    assert LAYERS == TABLE
    with pytest.raises(ValueError, match="densenet121, densenet169, densenet201; got 'densenet161'"):
        DenseNetUNet(3, "densenet161")
    with pytest.raises(ValueError, match="at least one"): DenseNetUNet(3, width=1e-3)
    network = DenseNetUNet(3, **SMALL)
    with pytest.raises(ValueError, match=r"at least 32x32.*got \(31, 40\)"): network(torch.zeros(1, 3, 31, 40))
