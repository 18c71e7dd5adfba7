"""FCN against well-known implementations, and against its own promises."""
import json
import sys
from pathlib import Path

import pytest
import torch

from semseg_course.models.fcn import FCN, SCALES, STRIDES, crop_and_add, next_stage

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, scores_of, uniform  # noqa: E402
from twins import count, filled, on_meta  # noqa: E402

NETWORKS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
pytestmark = pytest.mark.usefixtures("seeded")
SMALL = dict(width=1 / 16)


def spoken(network):
    "A network whose score layers are not zero."
    for head in network.score: torch.nn.init.normal_([*head.parameters()][-2], std=0.1)
    return network.eval()


@pytest.mark.parametrize("name, stride", [("fcn32s_vgg16", 32), ("fcn16s_vgg16", 16)])
def test_fingerprint(name, stride):
    assert not differs(scores_of(filled(FCN, 12, stride, form="authors"), NETWORKS[name]["size"]), NETWORKS[name])


def test_fingerprint_of_8s_in_stages_and_at_once():
    network = filled(FCN, 12, 8, form="authors")
    assert not differs(scores_of(network, (96, 128)), NETWORKS["fcn8s_vgg16"])
    network.scales = on_meta(FCN, 12, at_once=True).scales  # the only difference; one filled network is enough
    assert network.scales == SCALES
    assert not differs(scores_of(network, (96, 128)), NETWORKS["fcn8s_atonce_vgg16"])


def test_fingerprints_notice_a_shift():
    theirs = NETWORKS["fcn8s_vgg16"]
    assert "differ" in differs(theirs | dict(values=theirs["values"][1:] + theirs["values"][:1]), theirs)
    assert "params" in differs(theirs | dict(params=1), theirs)


def test_rule_is_the_same_in_blocks():
    import fingerprint
    whole = uniform("weight", (7, 11))
    assert -1 <= whole.min() < whole.max() < 1
    before, fingerprint.BLOCK = fingerprint.BLOCK, 10
    try: assert (uniform("weight", (7, 11)) == whole).all()
    finally: fingerprint.BLOCK = before


@pytest.mark.parametrize("stride, parameters", [(32, 136_152_917), (16, 134_815_994), (8, 134_489_759)])
def test_parameters_of_the_released_nets(stride, parameters):
    assert count(on_meta(FCN, 21, stride, form="authors")) == parameters


def test_parameters_of_fast_fcn8():
    def held(network):  # parameters and running statistics
        return sum(t.numel() for name, t in network.state_dict().items() if "num_batches" not in name)
    assert held(on_meta(FCN, 2, norm=True, separable=True)) == 20_615_521
    assert held(on_meta(FCN, 2, norm=True)) == 134_287_302


@pytest.mark.parametrize("form", ("compact", "authors"))
@pytest.mark.parametrize("size", ((1, 1), (1, 40), (33, 1), (37, 53), (64, 96)))
def test_any_size(form, size):
    for stride in STRIDES:
        assert FCN(5, stride, form=form, **SMALL).eval()(torch.zeros(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("settings", (dict(form="authors"), dict(norm=True), dict(separable=True), dict(at_once=True),
                                      dict(backbone="vgg19", stride=16)))
@pytest.mark.parametrize("classes", (1, 2, 21))
def test_batches_equal_single_images(settings, classes):
    network, x = spoken(FCN(classes, **settings, **SMALL)), torch.randn(3, 3, 45, 70)
    together = network(x)
    assert together.shape == (3, classes, 45, 70) and together.std() > 0
    for i in range(3): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


def test_vgg19_has_three_more_convolutions():
    networks = [on_meta(FCN, 3, backbone=name, **SMALL) for name in ("vgg16", "vgg19")]
    assert [sum(p.ndim == 4 for p in network.features.parameters()) for network in networks] == [13, 16]


@pytest.mark.parametrize("settings", (dict(norm=True), dict(form="authors"), dict(separable=True), dict(backbone="vgg19")))
def test_stages_begin_where_the_last_ended(settings):
    x, network = torch.randn(2, 3, 61, 90), spoken(FCN(4, 32, **settings, **SMALL))
    for number, stride in enumerate((16, 8)):
        finer = next_stage(network, stride)
        assert finer.settings == network.settings | dict(stride=stride) and not finer.training
        enlarged, scores = finer.upscore[number](network.coarse_scores(x)), finer.coarse_scores(x)
        h, w = scores.shape[2:]
        assert torch.equal(scores, enlarged[:, :, :h, :w])
        for name, tensor in network.state_dict().items():
            if not name.startswith("enlarge"): assert torch.equal(tensor, finer.state_dict()[name]), name
        network = spoken(finer)


def test_a_stage_may_be_left_out():
    network, x = spoken(FCN(4, 32, **SMALL)), torch.randn(1, 3, 64, 64)
    finer = next_stage(network.train(), 8)
    assert finer.training
    twice = finer.upscore[1](finer.upscore[0](network.eval().coarse_scores(x)))
    assert torch.equal(finer.eval().coarse_scores(x), twice)


def test_stages_keep_weights_apart():
    network = FCN(4, 32, **SMALL)
    finer = next_stage(network, 16)
    finer.features[0].weight.zero_()
    assert network.features[0].weight.abs().sum() > 0


@pytest.mark.parametrize("stride", STRIDES)
def test_the_authors_crops_keep_a_point_in_its_place(stride):
    "With layers that only average, an image of its own row numbers comes out as it went in, once for each map."
    average = torch.nn.functional.avg_pool2d
    network = FCN(1, stride, form="authors", width=1 / 64)
    x = (torch.arange(128 + 198.0) - 99).view(1, 1, -1, 1).expand(1, 1, -1, 128 + 198)  # as large as conv1_1 makes it
    scores = average(average(x, 32, ceil_mode=True), 7, 1)
    for size, up, crop in zip((16, 8), network.upscore, network.skip_crops):
        scores = crop_and_add(up(scores), average(x, size, ceil_mode=True)[:, :, crop:, crop:])
    column = network.enlarge(scores)[0, 0, network.crop:network.crop + 128, 64]
    middle = slice(40, 90)  # near the borders zeros are mixed in
    torch.testing.assert_close(column[middle], len(network.score) * torch.arange(128.0)[middle])


@pytest.mark.parametrize("settings, message", (
    (dict(stride=4), "32, 16 or 8; got 4"), (dict(form="caffe"), "compact, authors; got 'caffe'"),
    (dict(backbone="resnet"), "vgg16, vgg19; got 'resnet'"), (dict(width=1e-4), "at least one")))
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message): FCN(2, **settings)


@pytest.mark.parametrize("before, after", ((8, 8), (16, 32), (32, 4), (16, 16)))
def test_stage_errors(before, after):
    with pytest.raises(ValueError, match=f"finer than {before}.*got {after}"): next_stage(on_meta(FCN, 2, before, **SMALL), after)


def test_maps_of_other_classes_are_not_added():
    with pytest.raises(ValueError, match="got .1, 3."): crop_and_add(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))


def test_gradients_reach_every_learned_tensor():
    with torch.enable_grad():
        network = spoken(FCN(3, **SMALL))
        network(torch.randn(1, 3, 64, 64)).square().sum().backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.abs().sum() > 0, name
    frozen = [name for name, p in FCN(3, form="authors", **SMALL).named_parameters() if not p.requires_grad]
    assert frozen == ["enlarge.weight"]
