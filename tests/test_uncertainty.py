"""Monte Carlo dropout keeps its promises, whatever the network."""
import math

import pytest
import torch
from torch import nn

from semseg_course.models.segnet import SegNet, SegNetBasic
from semseg_course.uncertainty import active_dropout, entropy, monte_carlo


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad(): yield


def modes(network): return [m.training for m in network.modules()]


@pytest.mark.parametrize("training", (True, False))
def test_modes_and_running_means_are_as_before(training):
    network, x = SegNetBasic(3, 4, dropout=0.5).train(training), torch.randn(2, 3, 40, 48)
    network.features[1].eval()  # a norm that is frozen in training stays so
    before, state = modes(network), {name: t.clone() for name, t in network.state_dict().items()}
    monte_carlo(network, x, 3)
    assert modes(network) == before
    for name, tensor in network.state_dict().items(): assert torch.equal(tensor, state[name]), name


def test_modes_come_back_after_an_error():
    network = SegNet(3, width=1 / 16, dropout=0.5)
    before = modes(network)
    with pytest.raises(RuntimeError): monte_carlo(network, torch.zeros(1, 4, 32, 32), 2)
    assert modes(network) == before


def test_only_dropout_is_at_work():
    network = SegNet(3, width=1 / 16, dropout=0.5)
    with active_dropout(network):
        assert [type(m) for m in network.modules() if m.training] == [nn.Dropout]


@pytest.mark.parametrize("kind", (nn.Dropout, nn.Dropout2d))
def test_mean_and_variance_are_those_of_the_answers(kind):
    network, x = nn.Sequential(nn.Conv2d(3, 8, 1), kind(0.5), nn.Conv2d(8, 5, 1)), torch.randn(2, 3, 6, 7)
    torch.manual_seed(5)
    mean, variance = monte_carlo(network, x, 20)
    torch.manual_seed(5)
    answers = torch.stack([network(x).softmax(1) for _ in range(20)])
    torch.testing.assert_close(mean, answers.mean(0))
    torch.testing.assert_close(variance, answers.var(0, correction=0).mean(1))


def test_no_gradients_and_shapes():
    network, x = SegNetBasic(3, 4, dropout=0.5), torch.randn(2, 3, 33, 47)
    with torch.enable_grad(): mean, variance = monte_carlo(network, x, 2)
    assert not mean.requires_grad and mean.shape == (2, 3, 33, 47) and variance.shape == (2, 33, 47)


def test_entropy():
    probabilities = torch.rand(2, 7, 3, 4).softmax(1)
    expected = -(probabilities * probabilities.log()).sum(1)
    torch.testing.assert_close(entropy(probabilities), expected)
    even, certain = torch.full((1, 7, 1, 1), 1 / 7), torch.eye(7)[None, :1].movedim(2, 1)[..., None]
    assert entropy(even).item() == pytest.approx(math.log(7)) and entropy(certain).item() == 0


def test_errors():
    with pytest.raises(ValueError, match="dropout layer with p above 0; got a SegNet with none"):
        monte_carlo(SegNet(3, width=1 / 16), torch.zeros(1, 3, 32, 32), 4)
    with pytest.raises(ValueError, match="at least 2.*got 1"):
        monte_carlo(SegNet(3, width=1 / 16, dropout=0.5), torch.zeros(1, 3, 32, 32), 1)
