"""The CRF layer equals the dense CRF before it learns, its gradients are right, and it learns."""
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from semseg_course.crf import KERNELS, NORMALIZATIONS, Kernel, dense_crf
from semseg_course.crf_rnn import (
    CRFLayer,
    LinearMap,
    PixelSoftmax,
    WithCRF,
    filter_layer,
    filter_maps,
    mean_field_layer,
    to_images,
)
from semseg_course.data.batches import to_input
from semseg_course.data.toy_streets import ToyStreets

SMALL = Kernel(compat=3, sxy=1.5), Kernel(compat=5, sxy=4, srgb=40)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def scene(n=2, classes=4, h=10, w=13, scale=2.0):
    "Smooth scores and pieces of drawn streets, a batch."
    streets = ToyStreets((48, 64), n)
    images = torch.stack([torch.from_numpy(streets[i][0][:h, -w:].copy()) for i in range(n)])
    return scale * torch.randn(n, classes, h, w), images


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance


# Before it learns

@pytest.mark.parametrize("weights", ("class", "matrix"))
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equals_dense_crf(weights, normalization):
    scores, images = scene(h=24, w=32, classes=5)
    kernels = KERNELS if normalization != "none" else (Kernel(0.3, 1), Kernel(0.1, 8, 13))
    crf = CRFLayer(5, kernels, normalization=normalization, weights=weights)
    close(crf(scores, images).softmax(1), dense_crf(images, scores.softmax(1), kernels=kernels, normalization=normalization))


@pytest.mark.parametrize("iterations", (0, 1, 5, 10))
def test_equals_dense_crf_after_any_number_of_steps(iterations):
    scores, images = scene(h=32, w=48, classes=12)
    crf = CRFLayer(12, iterations=iterations)
    close(crf(scores, images).softmax(1), dense_crf(images, scores.softmax(1), iterations=iterations))


def test_floor_is_that_of_dense_crf():
    scores, images = torch.zeros(1, 2, 16, 16), torch.full((1, 16, 16, 3), 128, dtype=torch.uint8)
    scores[:, 0] = 20
    scores[:, :, 8, 8] = torch.tensor([0.0, 20.0])  # one pixel is sure of what all others exclude
    expected = dense_crf(images, scores.softmax(1))
    assert expected[0, :, 8, 8].argmax() == 0
    close(CRFLayer(2, floor=1e-5)(scores, images).softmax(1), expected)
    assert CRFLayer(2)(scores, images)[0, :, 8, 8].argmax() == 1


def test_matrix_compatibility_equals_dense_crf():
    scores, images = scene()
    cost = torch.rand(4, 4)
    kernels = Kernel((cost + cost.T).numpy(), 2), Kernel(5, 4, 40)
    crf = CRFLayer(4, kernels, weights="matrix")
    close(crf(scores, images).softmax(1), dense_crf(images, scores.softmax(1), kernels=kernels))


def test_precision_kernel_equals_dense_crf():
    scores, images = scene()
    kernels = Kernel(2, precision=np.array([[0.5, 0.1], [0.1, 0.3]])), Kernel(2, sxy=20)
    close(CRFLayer(4, kernels)(scores, images).softmax(1), dense_crf(images, scores.softmax(1), kernels=kernels))


def test_no_steps_give_the_scores_back():
    scores, images = scene()
    assert torch.equal(CRFLayer(4, iterations=0)(scores, images), scores)


def test_costs_are_not_symmetric():
    scores, images = scene()
    crf = CRFLayer(4, iterations=1)
    with torch.no_grad(): crf.compatibility[0, 1] = -2  # a neighbour of class 1 speaks for class 0
    change = crf(scores, images) - CRFLayer(4, iterations=1)(scores, images)
    assert (change[:, 0] > 0).all() and change[:, 1:].abs().max() == 0


# Shapes

def test_batch_equals_single_images():
    scores, images = scene(3)
    crf = CRFLayer(4)
    whole = crf(scores, images)
    for i in range(3): close(whole[i:i + 1], crf(scores[i:i + 1], images[i:i + 1]), 1e-5)


@pytest.mark.parametrize("size", ((1, 1), (1, 7), (9, 1), (2, 3)))
def test_any_size(size):
    scores, images = scene(h=size[0], w=size[1])
    scores.requires_grad_()
    refined = CRFLayer(4)(scores, images)
    assert refined.shape == scores.shape
    close(refined.softmax(1), dense_crf(images, scores.detach().softmax(1)))
    refined.square().sum().backward()
    assert scores.grad.isfinite().all()


def test_one_class():
    scores, images = scene(classes=1)
    assert torch.allclose(CRFLayer(1)(scores, images).softmax(1), torch.ones_like(scores))


def test_memory_formats_and_half_precision():
    scores, images = scene()
    crf = CRFLayer(4)
    close(crf(scores.to(memory_format=torch.channels_last), images), crf(scores, images), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        refined = crf(scores.bfloat16(), images)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, crf(scores.bfloat16().float(), images))


# Gradients

@pytest.mark.parametrize("normalization", ("symmetric", "after"))
@pytest.mark.parametrize("kernel", (SMALL[0], SMALL[1], Kernel(1, sxy=30), Kernel(1, precision=np.eye(5) / 50)))
def test_transpose_of_a_filter(kernel, normalization):
    _, images = scene(1)
    sums, transpose = filter_maps(kernel, images[0], normalization, torch.float64)
    x, y = torch.randn(2, 130, 3, dtype=torch.float64)
    assert torch.isclose((y * sums(x)).sum(), (transpose(y) * x).sum(), rtol=1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_of_a_filter(normalization):
    _, images = scene(1, h=4, w=5)
    layer = filter_layer(SMALL[1], images[0], normalization, torch.float64)
    x = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_softmax_and_its_gradient():
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(PixelSoftmax.apply(x), x.softmax(1))
    assert PixelSoftmax.apply(torch.tensor([[1e4, 0.0]])).tolist() == [[1, 0]]
    assert torch.autograd.gradcheck(PixelSoftmax.apply, x)
    assert torch.autograd.gradgradcheck(PixelSoftmax.apply, x)


def test_linear_map():
    matrix = torch.randn(3, 4, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: LinearMap.apply(x, lambda v: matrix @ v, lambda g: matrix.T @ g), x)


@pytest.mark.parametrize("weights", ("class", "matrix"))
@pytest.mark.parametrize("floor", (0.0, 1e-3))
def test_gradients_of_scores_weights_and_compatibility(weights, floor):
    scores, images = scene(2, 3, 2, 3)
    crf = CRFLayer(3, SMALL, iterations=2, weights=weights, floor=floor).double()
    inputs = [scores.double(), *(p.detach() + 0.1 * torch.randn_like(p) for p in crf.parameters())]
    names = [name for name, _ in crf.named_parameters()]

    def call(scores, *parameters):
        return torch.func.functional_call(crf, dict(zip(names, parameters)), (scores, images))

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("weights", ("class", "matrix"))
def test_gradients_reach_every_parameter(weights):
    scores, images = scene(h=24, w=32, scale=30.0)
    crf = CRFLayer(4, weights=weights)
    scores.requires_grad_()
    functional.cross_entropy(crf(scores, images), torch.randint(0, 4, (2, 24, 32))).backward()
    for x in (scores, *crf.parameters()):
        assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    wanted = crf.weights.grad if weights == "class" else crf.weights.grad.flatten(1)
    assert (wanted != 0).all() and (crf.compatibility.grad != 0).all()


def test_frozen_network_gets_no_gradient():
    scores, images = scene()
    crf = CRFLayer(4)
    crf(scores, images).square().sum().backward()
    assert scores.grad is None and crf.compatibility.grad.abs().max() > 0


# Training

def test_learns_to_leave_the_scores_alone():
    scores, images = scene(2, 3, 16, 20)
    crf = CRFLayer(3, SMALL, iterations=2)
    steps, losses = torch.optim.Adam(crf.parameters(), 0.03), []
    for _ in range(12):
        steps.zero_grad()
        losses.append(functional.cross_entropy(crf(scores, images), scores.argmax(1)))
        losses[-1].backward()
        steps.step()
    assert losses[-1] < 0.9 * losses[0]


def test_network_and_layer_train_together():
    images = torch.stack([to_input(ToyStreets((48, 64), 2)[i][0][:16, :24]) for i in range(2)])
    target = torch.randint(0, 3, (2, 16, 24))
    network = WithCRF(nn.Conv2d(3, 3, 3, padding=1), CRFLayer(3, SMALL))
    before, steps = copy.deepcopy(network.state_dict()), torch.optim.SGD(network.parameters(), 0.1)
    functional.cross_entropy(network(images), target).backward()
    steps.step()
    for name, value in network.state_dict().items(): assert not torch.equal(value, before[name]), name


def test_state_dict_round_trip():
    scores, images = scene()
    crf, other = CRFLayer(4), CRFLayer(4)
    with torch.no_grad():
        for p in crf.parameters(): p.add_(torch.randn_like(p))
    assert {n: tuple(t.shape) for n, t in crf.state_dict().items()} == {"weights": (2, 4), "compatibility": (4, 4)}
    assert not torch.equal(crf(scores, images), other(scores, images))
    other.load_state_dict(crf.state_dict())
    assert torch.equal(crf(scores, images), other(scores, images))


def test_deterministic():
    scores, images = scene(h=24, w=32)
    crf, grads = CRFLayer(4), []
    for _ in range(2):
        crf.zero_grad()
        crf(scores, images).square().sum().backward()
        grads.append(crf.compatibility.grad.clone())
    assert torch.equal(*grads)


def test_pictures_come_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3).contiguous()
    levels[1] = levels[1].flip(0)
    x = torch.stack([to_input(image.numpy()) for image in levels])
    assert torch.equal(to_images(x), levels)
    assert torch.equal(to_images(x.to(memory_format=torch.channels_last)), levels)


def test_steps_leave_their_inputs_alone():
    scores, images = scene(1)
    flat = scores[0].flatten(1).T.contiguous()
    before = flat.clone()
    mean_field_layer(flat, flat, [filter_layer(SMALL[1], images[0])], [torch.eye(4)])
    assert torch.equal(flat, before)


# Errors

@pytest.mark.parametrize("options, words", (
    (dict(weights="none"), "weights must be class or matrix"),
    (dict(normalization="all"), "normalization must be one of"),
    (dict(iterations=-1), "iterations must be 0 or more"),
    (dict(kernels=[Kernel(np.ones((3, 3)))], weights="matrix"), r"compat must be a number or \(4, 4\)"),
    (dict(kernels=[Kernel(np.ones((4, 4)))]), "weights must be matrix"),
    (dict(kernels=[]), "kernels must be"),
))
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words): CRFLayer(4, **options)


@pytest.mark.parametrize("change, words", (
    (lambda s, i: (s[:, :3], i), r"scores must be floats \(n, 4, h, w\)"),
    (lambda s, i: (s[0], i), "scores must be floats"),
    (lambda s, i: (s.long(), i), "scores must be floats"),
    (lambda s, i: (s, i[:1]), r"images must be uint8 \(2, 10, 13, 3\)"),
    (lambda s, i: (s, i.float()), "to_images"),
    (lambda s, i: (s, i.permute(0, 3, 1, 2)), "images must be uint8"),
    (lambda s, i: (s, i[:, :, 1:]), "images must be uint8"),
))
def test_bad_inputs(change, words):
    with pytest.raises(ValueError, match=words): CRFLayer(4)(*change(*scene()))
