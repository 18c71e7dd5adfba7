"""SegNet against a well-known implementation and the authors' counts, and against its own promises."""
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from semseg_course.backbones import VGG
from semseg_course.models.segnet import UPS, EncoderDecoder, SegNet, SegNetBasic, corner_places, enlarge, shifted_places
from semseg_course.pretrained import load_matching
from semseg_course.upsample import max_pool_with_indices, max_unpool

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, fill, scores_of  # noqa: E402

NETWORKS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
NARROW = {"segnet": lambda **s: SegNet(3, width=1 / 16, **s), "basic": lambda **s: SegNetBasic(3, 4, **s)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad(): yield


def count(make):
    with torch.device("meta"): return sum(p.numel() for p in make().parameters())


def test_fingerprint():
    with torch.device("meta"): network = SegNet(12)
    network, theirs = fill(network.double().to_empty(device="cpu")), NETWORKS["segnet_vgg16"]
    assert not differs(scores_of(network, theirs["size"]), theirs)
    network.up = "shifted"
    assert differs(scores_of(network, theirs["size"]), theirs)


@pytest.mark.parametrize("classes", (1, 2, 11, 12, 21))
def test_parameters_of_the_authors_nets(classes):
    assert count(lambda: SegNet(classes)) == 29_449_355 + (classes - 11) * (64 * 9 + 1)
    assert count(lambda: SegNetBasic(classes)) == 1_416_587 + (classes - 11) * (64 + 1)


@pytest.mark.parametrize("backbone, convolutions", (("vgg16", 13), ("vgg19", 16)))
def test_as_many_convolutions_up_as_down(backbone, convolutions):
    with torch.device("meta"): network = SegNet(11, backbone)
    for part in (network.features, network.decoder):
        layers = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        assert len(layers) == convolutions and all(m.bias is not None for m in layers)
    assert type(network.decoder[-1][-1]) is nn.Conv2d  # neither norm nor ReLU on the scores


def test_basic_has_no_relu_on_the_way_up():
    assert not [m for m in NARROW["basic"]().decoder.modules() if isinstance(m, nn.ReLU)]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("size", ((1, 1), (1, 40), (33, 1), (37, 53), (45, 60), (64, 96)))
def test_any_size(name, up, size):
    assert NARROW[name](up=up).eval()(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("up", UPS)
def test_batches_equal_single_images(name, up):
    network, x = NARROW[name](up=up).eval(), torch.randn(3, 3, 45, 70)
    together = network(x)
    assert together.std() > 0
    for i in range(3): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("up", UPS)
def test_channels_last_gives_the_same(name, up):
    network, x = NARROW[name](up=up).eval(), torch.randn(2, 3, 37, 54)
    plain = network(x)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ((6, 8), (7, 9), (1, 1), (2, 5)))
def test_unpooling_is_that_of_the_chapter_before(size):
    x = torch.randn(2, 3, *size)
    pooled, places = max_pool_with_indices(x, ceil_mode=True)
    assert torch.equal(enlarge(pooled, places, size), max_unpool(pooled, places, size))


@pytest.mark.parametrize("size", ((6, 8), (7, 9), (1, 1), (2, 5), (5, 1)))
def test_wrong_places_stay_in_their_windows(size):
    x = torch.rand(2, 3, *size)
    pooled, places = max_pool_with_indices(x, ceil_mode=True)
    for move in (shifted_places, corner_places):
        moved = move(places, size[1])
        back, again = max_pool_with_indices(max_unpool(pooled, moved, size), ceil_mode=True)
        assert torch.equal(back, pooled) and torch.equal(again, moved)
    assert torch.equal(shifted_places(shifted_places(places, size[1]), size[1]), places)
    away = (shifted_places(places, size[1]) - places).abs()
    assert away.max() <= 1 and (away[..., :size[1] // 2] == 1).all()  # a last window of one column has no other place
    rows, columns = corner_places(places, size[1]) // size[1], corner_places(places, size[1]) % size[1]
    assert (rows[0, 0, :, 0] == torch.arange(0, size[0], 2)).all() and (columns[0, 0, 0] == torch.arange(0, size[1], 2)).all()


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("up", UPS)
def test_gradients_reach_every_tensor(name, up):
    with torch.enable_grad():
        network = NARROW[name](up=up, dropout=0.5).train()
        network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for parameter, p in network.named_parameters():
        assert p.grad is not None, parameter  # a bias before a batch norm gets a gradient of zero, as it should
        if p.ndim > 1: assert p.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("backbone", ("vgg16", "vgg19"))
def test_official_names_of_the_encoder(backbone):
    official, network = VGG(7, backbone, norm=True, width=1 / 16), SegNet(3, backbone, width=1 / 16)
    report = load_matching(network, official.state_dict())
    report.require(missing="decoder.*", unexpected="classifier.*")
    for name, tensor in official.features.state_dict().items():
        assert torch.equal(network.features.state_dict()[name], tensor), name


@pytest.mark.parametrize("name, places", (("segnet", (3, 3)), ("basic", (2, 2))))
def test_dropout_stands_where_the_authors_put_it(name, places):
    "After the deeper half of the pools, and after the stages of the decoder that mirror them."
    network, seen = NARROW[name](dropout=0.5), []
    network.dropout.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    network(torch.zeros(2, 3, 64, 96))
    down = [(64 >> n, 96 >> n) for n in range(1, len(network.decoder) + 1)][-places[0]:]
    up = [(64 >> n, 96 >> n) for n in reversed(range(len(network.decoder)))][:places[1]]
    assert seen == down + up


def test_dropout_is_silent_in_evaluation_and_at_zero():
    network, x = NARROW["segnet"](dropout=0.5).eval(), torch.randn(1, 3, 64, 64)
    assert torch.equal(network(x), network(x))
    network = NARROW["segnet"]().train()
    assert torch.equal(network(x.repeat(2, 1, 1, 1)), network(x.repeat(2, 1, 1, 1)))


@pytest.mark.parametrize("make, message", (
    (lambda: SegNet(2, up="max"), "indices, bilinear, shifted, corner; got 'max'"),
    (lambda: SegNetBasic(2, up=None), "got None"),
    (lambda: SegNet(2, "resnet"), "vgg16, vgg19; got 'resnet'"),
    (lambda: SegNet(2, width=1e-4), "at least one"),
    (lambda: SegNet(2, dropout=1.5), "dropout"),
    (lambda: EncoderDecoder(nn.Sequential(nn.MaxPool2d(2)), []), "1 stages, one for each pool of features; got 0")))
def test_errors(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_settings_make_the_network_again():
    for network in (SegNet(5, "vgg19", "bilinear", 1 / 16, 0.5), SegNetBasic(5, 4, "corner", 0.1)):
        again = type(network)(**network.settings)
        shapes = lambda n: {name: t.shape for name, t in n.state_dict().items()}
        assert shapes(again) == shapes(network) and again.up == network.up and again.dropout.p == network.dropout.p
