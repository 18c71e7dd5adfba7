"""ENet against the authors' counts, against a well-known port, and against its own promises."""
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from semseg_course.backbones import init_weights
from semseg_course.losses import cross_entropy
from semseg_course.models.enet import FORMS, Bottleneck, ENet, ENetEncoder, Form

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, fill, scores_of  # noqa: E402

THEIRS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())["enet"]
# The port's scores at an odd size, by the same rule: the first eight of the 24, and their deviation.
ODD = dict(size=(45, 70), std=442302.35079324746, values=(
    -66380.41043550288, 301836.61364151083, -942782.4107101442, 927361.7085212837, 457563.46242792736,
    -138112.9898437934))
DECODER = ("up4", "stage4", "up5", "stage5", "score")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad(): yield


def count(*modules): return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def port(): return fill(ENet(12, "port").double()).eval()


@pytest.mark.parametrize("classes, parameters", ((11, 363_791), (12, 363_856), (19, 364_311), (20, 364_376)))
def test_parameters_of_the_authors_net(classes, parameters): assert count(ENet(classes)) == parameters


def test_parameters_of_the_authors_encoder():
    network = ENet(12)
    assert count(network) - count(*(getattr(network, name) for name in DECODER)) == 338_156  # without its score layer
    encoder = ENetEncoder(network)
    assert count(encoder.head) == 128 * 12 + 12


@pytest.mark.parametrize("classes, parameters", ((12, 350_652), (21, 351_948)))
def test_parameters_of_the_port(classes, parameters): assert count(ENet(classes, "port")) == parameters


def test_fingerprint_of_the_port(port): assert not differs(scores_of(port, THEIRS["size"]), THEIRS)


def test_fingerprint_of_the_port_at_an_odd_size(port):
    values = scores_of(port, ODD["size"])["values"][:len(ODD["values"])]
    assert max(abs(a - b) for a, b in zip(values, ODD["values"])) < 1e-9 * ODD["std"]


@pytest.mark.parametrize("field", [f.name for f in fields(Form)])
def test_every_difference_between_the_forms_is_felt(field, monkeypatch):
    "The fingerprint is that of the port only with all of its settings."
    monkeypatch.setitem(FORMS, "trial", replace(FORMS["port"], **{field: getattr(FORMS["authors"], field)}))
    felt = bool(differs(scores_of(fill(ENet(12, "trial").double()), THEIRS["size"]), THEIRS))
    assert felt == (field != "decoder_dropout")  # dropout has no effect on a network in use


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ((8, 8), (8, 40), (9, 15), (37, 53), (45, 64), (63, 66)))
def test_any_size(form, size):
    scores = ENet(5, form).eval()(torch.randn(1, 3, *size))
    assert scores.shape == (1, 5, *size) and scores.isfinite().all()


@pytest.mark.parametrize("size", ((7, 64), (64, 7), (1, 1)))
def test_small_images_are_refused(size):
    for network in (ENet(2), ENetEncoder(ENet(2))):
        with pytest.raises(ValueError, match="at least 8x8"): network(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ((48, 64), (37, 53)))
def test_batches_equal_single_images(form, size):
    network, x = ENet(4, form).double().eval(), torch.randn(2, 3, *size).double()
    together = network(x)
    assert together.std() > 0
    for i in range(2): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-6, atol=1e-6)


def test_layout_in_memory_is_kept():
    network, x = ENet(4).double().eval(), torch.randn(2, 3, 48, 64).double()
    other = network(x)
    network, x = (thing.to(memory_format=torch.channels_last) for thing in (network, x))
    assert network(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ("caffe", "", "Authors"))
def test_unknown_forms_are_refused(form):
    with pytest.raises(ValueError, match="authors, port; got"): ENet(2, form)


def test_places_of_the_encoder_are_used():
    "Whatever the branch says, the main path of a doubling puts its numbers where the maxima were, and nowhere else."
    down, up = (Bottleneck(8, 8, FORMS["authors"], step).eval() for step in ("down", "up"))
    nn.init.zeros_(up.expand[-2].weight)  # the branch's last norm: nothing is left of the branch
    x = torch.randn(2, 8, 12, 16)
    y, places = down(x)
    out = up(y, places, (12, 16))
    main = up.activation(up.main(y))
    assert torch.equal(out.flatten(2).gather(2, places.flatten(2)), main.flatten(2))
    assert out.count_nonzero() == main.count_nonzero()


def test_scores_hang_on_both_poolings():
    network, x = ENet(3).eval(), torch.randn(1, 3, 32, 48)
    scores = network(x)
    for bottleneck in (network.down1, network.down2):  # places of the mirrored map belong to other pixels
        def moved(module, inputs, output):
            mirrored = torch.nn.functional.max_pool2d(inputs[0].flip(3), 2, return_indices=True)[1]
            return output[0], mirrored
        hook = bottleneck.register_forward_hook(moved)
        assert (network(x) - scores).abs().max() > 0.01 * scores.std()
        hook.remove()
    assert torch.equal(network(x), scores)


def test_pooled_channels_come_first_and_new_ones_begin_at_zero():
    down = Bottleneck(8, 12, FORMS["authors"], "down").eval()
    nn.init.zeros_(down.expand[-2].weight)
    x = torch.rand(1, 8, 6, 10)
    y, _ = down(x)
    assert torch.equal(y[:, :8], torch.nn.functional.max_pool2d(x, 2)) and y[:, 8:].abs().sum() == 0


def test_the_first_block_keeps_the_pooled_image():
    block, x = ENet(2).initial.eval(), torch.rand(1, 3, 11, 14)
    for p in (block.norm.weight,): p.fill_((1 + block.norm.eps) ** 0.5)
    torch.testing.assert_close(block(x)[:, 13:], torch.nn.functional.max_pool2d(x, 2, ceil_mode=True))


def test_activations_of_the_authors_net():
    "One for each ReLU of the paper's figure 3: 67 in the encoder."
    network = ENet(12)
    encoder = [m for name, part in network.named_children() if name not in DECODER for m in part.modules()]
    assert sum(isinstance(m, nn.PReLU) for m in encoder) == 67
    assert not any(isinstance(m, nn.PReLU) for name in DECODER for m in getattr(network, name).modules())


def test_dropout_takes_whole_channels():
    network = ENet(2)
    shares = {m.p for m in network.modules() if isinstance(m, nn.Dropout2d)}
    assert shares == {0.01, 0.1, 0.0}
    assert not any(isinstance(m, (nn.Dropout, nn.AlphaDropout)) for m in network.modules())
    drops = [m.p for name in DECODER for m in getattr(network, name).modules() if isinstance(m, nn.Dropout2d)]
    assert set(drops) == {0.0}
    assert {m.p for m in ENet(2, "port").stage5.modules() if isinstance(m, nn.Dropout2d)} == {0.1}


def test_dilations_and_pairs_alternate():
    layers = [m for m in ENet(2).stage3.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert [(m.kernel_size, m.dilation[0]) for m in layers] == [
        ((3, 3), 1), ((3, 3), 2), ((5, 1), 1), ((1, 5), 1), ((3, 3), 4),
        ((3, 3), 1), ((3, 3), 8), ((5, 1), 1), ((1, 5), 1), ((3, 3), 16)]
    assert [m.bias is not None for m in layers[2:4]] == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form):
    with torch.enable_grad():
        network = ENet(3, form)
        cross_entropy(network(torch.randn(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), name
    silent = [name for name, p in network.named_parameters() if not p.grad.abs().sum()]
    assert not silent


def test_the_encoder_is_shared():
    network = ENet(3)
    encoder = ENetEncoder(network)
    assert encoder.network is network
    scores = encoder(torch.randn(2, 3, 48, 64))
    assert scores.shape == (2, 3, 6, 8)
    with torch.enable_grad(): cross_entropy(encoder(torch.randn(2, 3, 48, 64)), torch.randint(0, 3, (2, 6, 8))).backward()
    learned = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert learned == {"initial", "down1", "stage1", "down2", "stage2", "stage3"}
    assert encoder.head.weight.grad.abs().sum() > 0


def test_decoder_goes_on_where_the_encoder_stopped():
    "What the encoder has learned is what the whole network begins with; its score layer is left behind."
    network = ENet(3)
    encoder, before = ENetEncoder(network), {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    with torch.enable_grad(): cross_entropy(encoder(torch.randn(2, 3, 48, 64)), torch.randint(0, 3, (2, 6, 8))).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"initial", "down1", "stage1", "down2", "stage2", "stage3"}
    assert not any("head" in name for name in network.state_dict())


@pytest.mark.parametrize("size, small", (((48, 64), (6, 8)), ((45, 70), (5, 8)), ((8, 8), (1, 1))))
def test_size_of_the_encoders_scores(size, small):
    assert ENetEncoder(ENet(2)).eval()(torch.zeros(1, 3, *size)).shape[2:] == small


def test_names_and_order_of_the_parameters_stay():
    "Kept weights are found by these names."
    names = [name for name, _ in ENet(2).named_parameters()]
    assert names[:5] == ["initial.conv.weight", "initial.conv.bias", "initial.norm.weight", "initial.norm.bias",
                         "initial.activation.weight"]
    assert names[5:8] == ["down1.reduce.0.weight", "down1.reduce.1.weight", "down1.reduce.1.bias"]
    assert names[-2:] == ["score.weight", "score.bias"] and len(names) == 353


def test_weights_begin_as_elsewhere():
    network = ENet(2)
    convolution = network.stage1[0].middle[0]
    again = nn.Conv2d(16, 16, 3)
    init_weights(again)
    assert abs(convolution.weight.std() / again.weight.std() - 1) < 0.1 and convolution.bias.abs().sum() == 0
