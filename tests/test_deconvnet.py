"""DeconvNet against a well-known implementation and the authors' count, and against its own promises."""
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from semseg_course.models.deconvnet import DeconvNet, WindowTransposed2d
from semseg_course.models.segnet import encode

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, fill, scores_of  # noqa: E402
from twins import count, filled, on_meta  # noqa: E402

NETWORKS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text("utf-8"))
pytestmark = pytest.mark.usefixtures("seeded")
SMALL = dict(width=1 / 16, window=3)


def test_fingerprint():
    reference = NETWORKS["deconvnet_vgg16"]
    assert not differs(scores_of(filled(DeconvNet, reference["classes"]), reference["size"]), reference)


@pytest.mark.parametrize("classes, parameters", [(21, 251_805_653), (12, 251_805_068), (11, 251_805_003)])
def test_parameters_of_the_released_net(classes, parameters):
    assert count(on_meta(DeconvNet, classes)) == parameters  # 65 a class: 64 weights and a bias


def test_layers_are_numbered_as_in_the_official_vgg_with_norm():
    names = on_meta(DeconvNet, 2).state_dict()
    assert [n for n in names if n.startswith("classifier") and n.endswith("weight") and names[n].ndim == 4] == [
        "classifier.0.weight", "classifier.3.weight"]
    assert "features.40.weight" in names and "features.43.weight" not in names
    assert "features.28.bias" in DeconvNet(2, norm=False, **SMALL).state_dict()


@pytest.mark.parametrize("norm", (True, False))
@pytest.mark.parametrize("window, size", ((1, (32, 33)), (2, (95, 64)), (3, (97, 131)), (3, (127, 160)), (7, (225, 224))))
def test_every_allowed_size(window, size, norm):
    network = DeconvNet(5, width=1 / 32, window=window, norm=norm).eval()
    scores = network(torch.randn(1, 3, *size))
    assert scores.shape == (1, 5, *size) and scores.isfinite().all()


@pytest.mark.parametrize("size", ((97, 131), (96, 128)))
@pytest.mark.parametrize("classes", (1, 2, 21))
def test_batches_equal_single_images(classes, size):
    network, x = fill(DeconvNet(classes, **SMALL)).eval(), torch.randn(3, 3, *size)
    together = network(x)
    assert together.shape == (3, classes, *size) and together.std() > 0
    for i in range(3): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


def test_unpooling_goes_back_to_the_places_of_the_maxima():
    network, maps = fill(DeconvNet(3, **SMALL)).eval(), []
    for stage in network.decoder: stage.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    image = torch.randn(1, 3, 101, 135)
    _, pools = encode(network.features, image)
    network(image)
    for unpooled, (indices, size) in zip(maps, reversed(pools)):
        assert unpooled.shape[2:] == size
        elsewhere = unpooled.flatten(2).scatter(2, indices.flatten(2), 0)
        assert elsewhere.abs().sum() == 0 and unpooled.abs().sum() > 0


@pytest.mark.parametrize("size", ((95, 128), (128, 95), (1, 1)))
def test_images_that_are_too_small(size):
    with pytest.raises(ValueError, match=f"at least 96x96.*got {size[0]}x{size[1]}.*smaller window"):
        DeconvNet(2, **SMALL)(torch.zeros(2, 3, *size))
    with pytest.raises(ValueError, match="at least 224x224"): on_meta(DeconvNet, 2)(torch.zeros(1, 3, 223, 300, device="meta"))


def test_a_single_vector_cannot_be_normed_in_training():
    network, x = DeconvNet(2, **SMALL), torch.zeros(1, 3, 96, 127)
    with pytest.raises(ValueError, match="one image of 96x127"): network.train()(x)
    network.eval()(x)
    network.train()(torch.zeros(2, 3, 96, 127))
    DeconvNet(2, norm=False, **SMALL).train()(x)


def test_a_width_that_leaves_nothing():
    with pytest.raises(ValueError, match="width must leave at least one"): DeconvNet(2, width=1e-3)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("size", ((1, 1), (2, 5), (9, 3)))
@pytest.mark.parametrize("kernel", (7, (3, 2), 1))
def test_one_product_is_the_transposed_convolution(kernel, size, layout):
    layer = WindowTransposed2d(6, 4, kernel).double().to(memory_format=layout)
    theirs = torch.nn.ConvTranspose2d(6, 4, kernel).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.double).to(memory_format=layout)
    inputs = x.requires_grad_(), x.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = layer(inputs[0]), theirs(inputs[1])
        for out in outputs: (out * out.detach().sin()).sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(layer.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(layer.bias.grad, theirs.bias.grad)
    assert layer.weight.grad.is_contiguous(memory_format=layout)  # the layout of the weights: kept, not copied


def test_a_product_without_bias():
    layer, x = WindowTransposed2d(3, 2, 2, bias=False), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(layer(x), functional.conv_transpose2d(x, layer.weight))


def test_channels_last_gives_the_same_scores():
    network, x = fill(DeconvNet(3, **SMALL)).eval(), torch.randn(2, 3, 97, 130)
    scores = network(x)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, scores, rtol=1e-4, atol=1e-4)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", (True, False))
def test_gradients_reach_every_tensor(norm):
    with torch.enable_grad():
        network = fill(DeconvNet(3, norm=norm, **SMALL))
        network(torch.randn(2, 3, 96, 128)).square().sum().backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_without_norm_there_is_none():
    network = DeconvNet(3, norm=False, **SMALL)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert count(DeconvNet(3, **SMALL)) - count(network) == 2 * sum(
        m.out_channels for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))) - 2 * 3


def test_settings_build_it_again():
    network = DeconvNet(4, norm=False, **SMALL)
    DeconvNet(**network.settings).load_state_dict(network.state_dict())


def test_weights_begin_as_in_the_paper():
    network = DeconvNet(3, width=1 / 8, window=3)
    for part in (network.mirror, *network.decoder):
        for layer in part[::3]: assert abs(layer.weight.std() - 0.01) < 1e-3 and not layer.bias.any()
