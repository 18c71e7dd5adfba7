"""FC-DenseNet: the paper's networks, and a dense block that keeps less than autograd would."""
import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from semseg_course.models.fc_densenet import DenseBlock, FCDenseNet

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, fill, image, sample  # noqa: E402
from twins import count, filled, on_meta  # noqa: E402

NETWORKS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
SMALL = dict(layers=(2, 3, 2), width=0.25)
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("depth", (56, 67, 103))
def test_fingerprint(depth):
    theirs = NETWORKS[f"fc_densenet{depth}"]
    network = filled(FCDenseNet, 12, depth).eval()
    with torch.no_grad(): scores = network(image(theirs["size"])).log_softmax(1)  # the reference ends with one
    assert not differs(dict(params=sum(p.numel() for p in network.parameters()), **sample(scores)), theirs)


@pytest.mark.parametrize("depth, at_12, at_11", (
    (56, 1_376_988, 1_376_795), (67, 3_463_532, 3_463_243), (103, 9_322_348, 9_322_091)))
def test_parameters(depth, at_12, at_11):
    for classes, parameters in ((12, at_12), (11, at_11)): assert count(on_meta(FCDenseNet, classes, depth)) == parameters


@pytest.mark.parametrize("depth", (56, 67, 103))
def test_the_name_counts_the_convolutions(depth):
    assert sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in on_meta(FCDenseNet, 2, depth).modules()) == depth


@pytest.mark.parametrize("size", ((4, 4), (5, 7), (33, 4), (37, 53)))
@pytest.mark.parametrize("classes", (1, 5))
def test_any_size(size, classes):
    assert FCDenseNet(classes, **SMALL).eval()(torch.zeros(1, 3, *size)).shape == (1, classes, *size)


@pytest.mark.parametrize("depth", (56, 103))
def test_odd_sizes_of_the_whole_network(depth):
    assert FCDenseNet(3, depth, width=1 / 12).eval()(torch.zeros(1, 3, 33, 47)).shape == (1, 3, 33, 47)


@pytest.mark.parametrize("memory", FORMATS)
def test_batches_equal_single_images_and_the_format_stays(memory):
    network = FCDenseNet(5, **SMALL).eval().to(memory_format=memory)
    x = torch.randn(3, 3, 21, 30).to(memory_format=memory)
    together = network(x)
    assert together.is_contiguous(memory_format=memory) and together.std() > 0
    for i in range(3): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


def plain(network):
    "The same network, by autograd alone."
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, DenseBlock): module.forward = module.plain
    return network


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("checkpointing", (False, True))
@pytest.mark.parametrize("frozen", (False, True))
def test_written_backward_equals_autograd(memory, checkpointing, frozen):
    ours = FCDenseNet(5, **SMALL, dropout=0, checkpointing=checkpointing).double().to(memory_format=memory)
    fill(ours)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d): module.train(not frozen)
    theirs, x = plain(ours), torch.randn(2, 3, 21, 30).double().to(memory_format=memory)
    target = torch.randint(0, 5, (2, 21, 30))
    for network in (ours, theirs): functional.cross_entropy(network(x), target).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10, msg=name)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers()): torch.testing.assert_close(a, b, msg=name)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_gradients_by_finite_differences():
    block = DenseBlock(3, 2, 3, dropout=0).double()
    fill(block)
    maps = [torch.randn(2, c, 3, 4, dtype=torch.double, requires_grad=True) for c in (1, 2)]
    for block.checkpointing in (False, True): torch.autograd.gradcheck(block, maps)


def test_checkpointing_changes_nothing_but_memory():
    "The same dropped numbers, gradients to the last bit, statistics counted once."
    states = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        network = FCDenseNet(5, **SMALL, checkpointing=checkpointing)
        functional.cross_entropy(network(torch.randn(2, 3, 20, 28)), torch.randint(0, 5, (2, 20, 28))).backward()
        states.append([p.grad for p in network.parameters()] + [*network.buffers()])
        assert {m.num_batches_tracked.item() for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}
    for a, b in zip(*states): assert torch.equal(a, b)


def held(network, x):
    "Bytes kept for backward."
    found = {}
    def note(t): return found.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): scores = network(x)
    assert scores.requires_grad
    return sum(found.values())


def test_less_is_kept_for_backward():
    x = torch.randn(1, 3, 64, 64)
    networks = [FCDenseNet(12, layers=(4, 5, 7), width=0.5, checkpointing=c) for c in (False, True)]
    ours, checkpointed, autograd = held(networks[0], x), held(networks[1], x), held(plain(networks[0]), x)
    assert ours < 0.75 * autograd and checkpointed < 0.5 * autograd


@pytest.mark.parametrize("checkpointing", (False, True))
def test_backward_twice(checkpointing):
    network = FCDenseNet(2, **SMALL, checkpointing=checkpointing)
    loss = network(torch.randn(2, 3, 8, 8)).square().mean()
    parameters = [*network.parameters()]
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second): assert torch.equal(a, b)


def test_gradients_reach_every_parameter():
    network = FCDenseNet(3, **SMALL)
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), name
    for name, p in network.named_parameters():
        if name.endswith("weight"): assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("checkpointing", (False, True))
def test_mixed_precision(checkpointing):
    network, x = FCDenseNet(3, **SMALL, dropout=0, checkpointing=checkpointing), torch.randn(2, 3, 32, 32)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16): scores = network(x)
    assert scores.dtype == torch.bfloat16 and (scores - exact).abs().max() < 0.1 * exact.abs().max()
    scores.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


def test_other_norms_take_the_plain_way():
    network = FCDenseNet(3, **SMALL, dropout=0)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(other(x), network.eval()(x), rtol=1e-4, atol=1e-5)


def test_dropout_drops_single_numbers():
    block = DenseBlock(2, 3, 1, dropout=0.5)
    new = block(torch.randn(1, 2, 20, 20))
    share = (new == 0).float().mean((0, 2, 3))
    assert ((share > 0.3) & (share < 0.7)).all()  # whole maps would be all or nothing
    assert (block.eval()(torch.randn(1, 2, 20, 20)) != 0).all()


def test_settings_make_it_again():
    network = FCDenseNet(3, 67, width=0.5, checkpointing=True)
    again = FCDenseNet(**network.settings)
    assert [p.shape for p in again.parameters()] == [p.shape for p in network.parameters()]


@pytest.mark.parametrize("settings, message", (
    (dict(depth=121), "56, 67, 103; got 121"), (dict(layers=(4,)), "bottleneck's last; got .4,."),
    (dict(layers=(4, 0, 4)), "positive"), (dict(width=1e-3), "at least one")))
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message): FCDenseNet(2, **settings)


def test_images_that_are_pooled_away():
    small = torch.zeros(1, 3, 32, 31)
    with pytest.raises(ValueError, match=r"at least 32x32, 5 pools .* got \(32, 31\)"): on_meta(FCDenseNet, 2)(small)
    with pytest.raises(ValueError, match="two places at least"): FCDenseNet(2, width=1 / 8)(torch.zeros(1, 3, 32, 32))
