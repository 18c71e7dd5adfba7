"Layers and arithmetic of chapter 07: equal to torch on every setting tried, loud on bad input."
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from semseg_course.blocks import (
    SeparableConv2d,
    WindowConv2d,
    convolution_parameters,
    convolutionalize,
    count_operations,
    count_parameters,
    output_size,
    receptive_field,
    to_convolution,
    transposed_size,
)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.mark.parametrize("kernel", range(1, 8))
def test_output_size_of_convolutions(kernel):
    for size, stride, padding, dilation in itertools.product(range(1, 24), range(1, 6), range(5), range(1, 4)):
        x, k = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
        try: expected = functional.conv1d(x, k, None, stride, padding, dilation).shape[-1]
        except RuntimeError:
            with pytest.raises(ValueError, match="Pad more"): output_size(size, kernel, stride, padding, dilation)
            continue
        assert output_size(size, kernel, stride, padding, dilation) == expected


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("ceil", [False, True])
def test_output_size_of_pools(kernel, ceil):
    settings = itertools.product(range(5, 24), range(1, 7), range(kernel // 2 + 1), range(1, 4))
    for size, stride, padding, dilation in settings:
        if dilation * (kernel - 1) + 1 > size + 2 * padding: continue
        x = torch.zeros(1, 1, size)
        expected = functional.max_pool1d(x, kernel, stride, padding, dilation, ceil_mode=ceil).shape[-1]
        assert output_size(size, kernel, stride, padding, dilation, ceil) == expected, (size, stride, padding, dilation)


def test_output_size_in_two_dimensions():
    layer = nn.Conv2d(1, 1, (3, 5), (2, 3), (1, 2), (2, 1))
    h, w = layer(torch.zeros(1, 1, 17, 23)).shape[2:]
    assert (h, w) == (output_size(17, 3, 2, 1, 2), output_size(23, 5, 3, 2))


def test_transposed_size():
    settings = itertools.product(range(2, 7), range(1, 5), range(1, 5), range(3), range(3), range(1, 4))
    for size, kernel, stride, padding, extra, dilation in settings:
        expected = transposed_size(size, kernel, stride, padding, extra, dilation)
        if extra >= max(stride, dilation) or expected < 1: continue
        x, k = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
        assert functional.conv_transpose1d(x, k, None, stride, padding, extra, 1, dilation).shape[-1] == expected


@pytest.mark.parametrize("layers", [[(3, 1)], [(7, 2), (3, 2), (3, 1)], [(3, 1), (2, 2), (5, 3), (1, 1)], []])
def test_receptive_field_is_what_a_gradient_reaches(layers):
    network = nn.Sequential(*[nn.Conv1d(1, 1, kernel, stride, bias=False) for kernel, stride in layers])
    for p in network.parameters(): nn.init.ones_(p)
    x = torch.ones(1, 1, 80, requires_grad=True)
    field, jump = receptive_field(layers)
    network(x)[0, 0, 1].backward()
    reached = x.grad[0, 0].nonzero().flatten()
    assert (len(reached), reached[0]) == (field, jump)


def test_receptive_field_of_vgg16():
    pool5 = [layer for count in (2, 2, 3, 3, 3) for layer in [(3, 1)] * count + [(2, 2)]]
    assert receptive_field(pool5) == (212, 32) and receptive_field([*pool5, (7, 1), (1, 1)]) == (404, 32)


def test_parameters_of_convolutions():
    for before, after, kernel, bias, groups in itertools.product((6, 12), (6, 18), (1, 3, 7), (True, False), (1, 2, 6)):
        layer = nn.Conv2d(before, after, kernel, bias=bias, groups=groups)
        assert convolution_parameters(before, after, kernel, bias, groups) == count_parameters(layer)


def test_frozen_parameters_count_and_buffers_do_not():
    layer = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).requires_grad_(False)
    assert count_parameters(layer) == 2 * 3 + 3 + 3 + 3


def test_operations_by_hand():
    assert count_operations(nn.Conv2d(3, 5, 3, padding=1), torch.zeros(2, 3, 8, 9)) == 2 * 8 * 9 * 5 * 27
    assert count_operations(nn.Conv2d(6, 6, 5, groups=6), torch.zeros(1, 6, 9, 9)) == 5 * 5 * 6 * 25
    assert count_operations(nn.ConvTranspose2d(3, 4, 4, 2), torch.zeros(1, 3, 5, 6)) == 5 * 6 * 3 * 4 * 16
    assert count_operations(nn.Sequential(nn.Linear(7, 4), nn.ReLU()), torch.zeros(3, 7)) == 3 * 7 * 4


def test_counting_leaves_no_gradient_and_needs_no_memory():
    layer = nn.Conv2d(3, 5, 3).to("meta")
    assert count_operations(layer, torch.zeros(1, 3, 10, 10, device="meta")) == 8 * 8 * 5 * 27
    assert layer.weight.grad is None


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_as_convolution(size, bias):
    linear, x = nn.Linear(6 * size[0] * size[1], 9, bias=bias), torch.randn(4, 6, *size)
    convolution = to_convolution(linear, size)
    assert convolution.kernel_size == size and (convolution.bias is not None) == bias
    torch.testing.assert_close(convolution(x).flatten(1), linear(x.flatten(1)), atol=1e-5, rtol=1e-5)


def test_the_convolution_is_a_copy_of_the_same_type():
    linear = nn.Linear(8, 2).double()
    convolution = to_convolution(linear, (2, 2))
    assert convolution.weight.dtype == torch.float64
    with torch.no_grad(): linear.weight.zero_()
    assert convolution.weight.abs().sum() > 0
    assert to_convolution(nn.Linear(8, 2, device="meta")).weight.device.type == "meta"


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="size must divide the layer's 10 inputs; got 2x2"):
        to_convolution(nn.Linear(10, 3), (2, 2))


def classifier():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(8 * 2 * 3, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)).eval()


def test_equal_at_the_training_size():
    net, x = classifier(), torch.randn(3, 3, 14, 18)
    torch.testing.assert_close(convolutionalize(net, (2, 3))(x).flatten(1), net(x), atol=1e-5, rtol=1e-5)


def test_sliding_equals_every_patch():
    net, x = classifier(), torch.randn(1, 3, 30, 41)
    scores = convolutionalize(net, (2, 3))(x)
    h, w = scores.shape[2:]
    assert (h, w) == ((30 - 14) // 4 + 1, (41 - 18) // 4 + 1)
    for row, column in itertools.product(range(h), range(w)):
        patch = x[:, :, 4 * row:4 * row + 14, 4 * column:4 * column + 18]
        torch.testing.assert_close(scores[:, :, row, column], net(patch), atol=1e-5, rtol=1e-5)


def test_conversion_leaves_the_classifier_alone():
    net = classifier()
    converted = convolutionalize(net, (2, 3))
    assert not {id(p) for p in net.parameters()} & {id(p) for p in converted.parameters()}
    assert not converted[0].training and count_parameters(net) == count_parameters(converted)
    assert not any(isinstance(layer, (nn.Linear, nn.Flatten)) for layer in converted)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(7), nn.AdaptiveMaxPool2d(1)])
def test_adaptive_pools_are_refused(pool):
    with pytest.raises(ValueError, match="one answer for any size"):
        convolutionalize(nn.Sequential(pool, nn.Flatten(), nn.Linear(7, 2)), (1, 1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_by_windows(layout):
    for kernel, padding, bias in itertools.product((1, 3, (2, 5)), (0, 1, (3, 2)), (True, False)):
        torch.manual_seed(1)
        usual = nn.Conv2d(5, 6, kernel, padding=padding, bias=bias)
        torch.manual_seed(1)
        windows = WindowConv2d(5, 6, kernel, padding=padding, bias=bias).to(memory_format=layout)
        for x in (torch.randn(2, 5, 9, 11), torch.randn(1, 5, 5, 5)):
            x = x.to(memory_format=layout)
            torch.testing.assert_close(windows(x), usual(x), atol=1e-5, rtol=1e-5)
            grads = [torch.autograd.grad(net(x).square().sum(), net.weight)[0] for net in (windows, usual)]
            torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-4)
    with pytest.raises(TypeError, match="stride"): WindowConv2d(5, 6, 3, stride=2)


def test_separable_convolution():
    for kernel, stride, padding in itertools.product((1, 3, 7), (1, 2), (0, 1, 3)):
        full, separable = nn.Conv2d(8, 12, kernel, stride, padding), SeparableConv2d(8, 12, kernel, stride, padding)
        x = torch.randn(2, 8, 17, 20)
        assert separable(x).shape == full(x).shape
        ratio = count_operations(separable, x) / count_operations(full, x)
        assert ratio == pytest.approx(1 / 12 + 1 / kernel**2)
        assert count_parameters(separable) == 8 * kernel**2 + 8 * 12 + 12


def test_a_separable_convolution_is_a_full_one_of_low_rank():
    separable, x = SeparableConv2d(4, 6, 3, padding=1), torch.randn(1, 4, 9, 9)
    depthwise, mix = separable
    kernel = mix.weight * depthwise.weight[:, 0]  # out, in, 3, 3
    full = functional.conv2d(x, kernel, mix.bias, padding=1)
    torch.testing.assert_close(separable(x), full, atol=1e-5, rtol=1e-5)
