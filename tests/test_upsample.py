"What the chapter on upsampling cannot show: many sizes, number types, gradients, the errors in full, and the sliders' cell."
from itertools import product
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.nn import functional

from semseg_course.upsample import (
    PixelShuffleUp,
    ResizeConv,
    as_transposed,
    bilinear_kernel,
    bilinear_upsampling,
    from_tensorflow_indices,
    max_pool_with_indices,
    max_unpool,
    phases,
    to_tensorflow_indices,
    transposed_convolution,
)

CHAPTER = Path(__file__).resolve().parent.parent / "nbs/08_upsample.ipynb"
SIZES = [1, 2, 3, 4, 5, 8]


@pytest.fixture(autouse=True)
def fixed_seed(): torch.manual_seed(0)


@pytest.mark.parametrize("size, stride, padding", [c for c in product(SIZES, [1, 2, 3, 5], [0, 1]) if c[0] > 2 * c[2]])
def test_transposed_convolution_equals_torch_and_is_the_gradient_of_a_convolution(size, stride, padding):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    weight = torch.randn(3, 2, size, size + 1, dtype=torch.float64)
    ours = transposed_convolution(x, weight, stride, padding)
    torch.testing.assert_close(ours, functional.conv_transpose2d(x, weight, stride=stride, padding=padding))
    picture = torch.randn_like(ours).requires_grad_()  # <conv(picture), x> = <picture, transposed(x)>
    (functional.conv2d(picture, weight, stride=stride, padding=padding) * x).sum().backward()
    torch.testing.assert_close(picture.grad, ours)


def test_transposed_convolution_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"weight must be \(3, out, height, width\), x's channels first; got \(6, 3, 2, 2\)"):
        transposed_convolution(torch.ones(1, 3, 4, 4), torch.ones(6, 3, 2, 2))


@pytest.mark.parametrize("height, width, stride", list(product([1, 2, 3, 7], [1, 4, 5], [1, 2, 3, 4])))
def test_phases_woven_together_are_the_transposed_convolution(height, width, stride):
    x, weight = torch.randn(1, 2, 5, 6), torch.randn(2, 3, height, width)
    kernels = phases(weight, stride)
    assert kernels.shape == (2, 3, stride, stride, -(-height // stride), -(-width // stride))
    whole = transposed_convolution(x, weight, stride)
    for a, b in product(range(stride), repeat=2):
        part = transposed_convolution(x, kernels[:, :, a, b])
        real = whole[:, :, a::stride, b::stride]
        torch.testing.assert_close(part[:, :, :real.shape[2], :real.shape[3]], real)
        assert not part[:, :, real.shape[2]:].any() and not part[:, :, :, real.shape[3]:].any()


def test_phases_of_any_number_of_dimensions():
    weight = torch.randn(4, 5)
    assert torch.equal(phases(weight.expand(2, 3, 4, 5), 2), phases(weight, 2).expand(2, 3, 2, 2, 2, 3))
    assert torch.equal(phases(weight, 1)[0, 0], weight)
    torch.testing.assert_close(phases(weight, 3).sum(), weight.sum())
    for stride, bad in [(0, weight), (-1, weight), (2, torch.ones(3))]:
        with pytest.raises(ValueError, match="stride must be 1 or more and weight"): phases(bad, stride)


@pytest.mark.parametrize("stride", range(1, 34))
def test_bilinear_phases_sum_to_one_from_the_usual_size_on(stride):
    for size in (None, 2 * stride - 1, 2 * stride, 2 * stride + 1, 3 * stride + 2):
        kernel = bilinear_kernel(stride, size)
        assert (kernel >= 0).all()
        torch.testing.assert_close(phases(kernel, stride).sum((-1, -2)), torch.ones(stride, stride))


@pytest.mark.parametrize("stride, size", [(0, None), (-2, None), (2, 0)])
def test_bilinear_kernel_refuses(stride, size):
    with pytest.raises(ValueError, match="stride and size must be 1 or more"): bilinear_kernel(stride, size)


@pytest.mark.parametrize("stride, shape", list(product([1, 2, 3, 4, 7, 8, 16, 32], [(1, 1), (2, 3), (5, 4)])))
def test_bilinear_upsampling_is_interpolation_inside_and_with_a_repeated_border_everywhere(stride, shape):
    x = torch.randn(2, 4, *shape)
    expected = functional.interpolate(x, scale_factor=stride, mode="bilinear")
    with torch.no_grad():
        inside = bilinear_upsampling(4, stride, stride // 2)(x)
        whole = bilinear_upsampling(4, stride, stride + stride // 2)(functional.pad(x, (1, 1, 1, 1), mode="replicate"))
    assert inside.shape == expected.shape == whole.shape
    edge = stride // 2
    middle = (..., slice(edge, expected.shape[2] - edge), slice(edge, expected.shape[3] - edge))
    torch.testing.assert_close(inside[middle], expected[middle], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride, padding", [(2, 0), (2, 1), (3, 0), (8, 4), (32, 0)])
def test_bilinear_upsampling_gives_the_size_it_says(stride, padding):
    layer = bilinear_upsampling(3, stride, padding, frozen=True)
    h, w = (stride * (n + 1) - 2 * padding - stride % 2 for n in (4, 5))
    assert layer(torch.zeros(2, 3, 4, 5)).shape == (2, 3, h, w)
    assert [name for name, _ in layer.named_parameters()] == ["weight"] and not layer.weight.requires_grad


@pytest.mark.parametrize("mode, scale, size", list(product(["nearest", "bilinear"], [1, 2, 3, 8], [1, 3, 5])))
def test_resize_convolution_keeps_flat_things_flat(mode, scale, size):
    layer = ResizeConv(2, 3, scale, size, mode)
    with torch.no_grad(): x = layer(torch.ones(1, 2, 6, 7))
    assert x.shape == (1, 3, 6 * scale, 7 * scale)
    edge = size // 2
    x = x[:, :, edge:x.shape[2] - edge, edge:x.shape[3] - edge]
    torch.testing.assert_close(x, x[:, :, :1, :1].expand_as(x))


@pytest.mark.parametrize("scale, size, even", list(product([1, 2, 3, 4], [1, 3, 5], [False, True])))
def test_a_shuffle_is_a_transposed_convolution(scale, size, even):
    shuffle, x = PixelShuffleUp(3, 2, scale, size, even), torch.randn(2, 3, 5, 6)
    if not even: nn.init.zeros_(shuffle[0].bias)
    transposed = as_transposed(shuffle)
    with torch.no_grad(): torch.testing.assert_close(transposed(x), shuffle(x))
    sums = phases(transposed.weight.detach(), scale).sum((-1, -2))
    same = torch.isclose(sums, sums[:, :, :1, :1], atol=1e-5).all().item()
    assert same == (even or scale == 1)


def test_a_shuffle_starts_evenly_and_owns_its_numbers():
    shuffle, x = PixelShuffleUp(3, 2, 4), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        y = shuffle(x)
        torch.testing.assert_close(y, functional.interpolate(y[:, :, ::4, ::4], scale_factor=4))
        before = shuffle[0].weight.clone()
        as_transposed(shuffle).weight.zero_()
    assert torch.equal(shuffle[0].weight, before), "the copy must not share memory"
    shuffle(x).square().sum().backward()
    assert shuffle[0].weight.grad is not None


def test_biases_of_one_channel_that_differ_are_refused():
    with pytest.raises(ValueError, match="one bias for all phases of a channel"): as_transposed(PixelShuffleUp(2, 2, even=False))


MAPS = [(2, 3, 6, 8, 2, False), (1, 2, 7, 9, 2, False), (2, 1, 7, 9, 2, True), (1, 1, 1, 1, 2, True), (2, 2, 5, 11, 3, True),
        (1, 4, 10, 4, 3, False), (3, 1, 1, 9, 2, True), (1, 1, 4, 4, 1, False)]


@pytest.mark.parametrize("n, c, h, w, size, ceil_mode", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unpooling_equals_torch(n, c, h, w, size, ceil_mode, dtype):
    x = torch.randn(n, c, h, w, dtype=dtype)
    pooled, indices = max_pool_with_indices(x, size, ceil_mode)
    up = max_unpool(pooled, indices, (h, w), size)
    assert up.dtype == dtype and up.shape == x.shape
    kept = up != 0
    assert torch.equal(up[kept], x[kept]) and kept.sum() == pooled.numel()
    if dtype != torch.bfloat16:
        assert torch.equal(up, functional.max_unpool2d(pooled, indices, size, output_size=(h, w)))
    assert torch.equal(up, max_unpool(pooled, indices, x.shape, size)), "a whole shape is taken as well"


@pytest.mark.parametrize("n, c, h, w, size, ceil_mode", MAPS)
def test_up_and_down_again_is_the_positive_part(n, c, h, w, size, ceil_mode):
    pooled, indices = max_pool_with_indices(torch.randn(n, c, h, w), size, ceil_mode)
    other = torch.randn_like(pooled)
    again, places = max_pool_with_indices(max_unpool(other, indices, (h, w), size), size, ceil_mode)
    rows = torch.tensor([min(size, h - size * i) for i in range(pooled.shape[2])])[:, None]
    columns = torch.tensor([min(size, w - size * j) for j in range(pooled.shape[3])])
    expected = torch.where(rows * columns == 1, other, other.clamp(min=0))  # a window of one pixel has no zeros
    assert torch.equal(again, expected)
    assert torch.equal(places[other > 0], indices[other > 0])


def test_unpooling_passes_gradients_to_the_numbers_and_nothing_else():
    pooled, indices = max_pool_with_indices(torch.randn(2, 3, 5, 7, dtype=torch.float64), ceil_mode=True)
    x = torch.randn_like(pooled).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: max_unpool(x, indices, (5, 7)), x)


def test_unpooling_takes_any_memory_layout():
    x = torch.randn(2, 8, 6, 6)
    pooled, indices = max_pool_with_indices(x.to(memory_format=torch.channels_last))
    assert torch.equal(max_unpool(pooled, indices), max_unpool(pooled.contiguous(), indices.contiguous()))


@pytest.mark.parametrize("shape, given, words", [
    ((7, 7), None, "it may have been odd"),
    ((7, 7), (6, 6), "it may have been odd"),
    ((7, 7), (9, 9), r"output_size must pool to \(3, 3\) with windows of 2; got \(9, 9\)"),
    ((6, 10), (10, 6), r"output_size must pool to \(3, 5\)"),
])
def test_a_wrong_size_is_noticed(shape, given, words):
    pooled, indices = max_pool_with_indices(torch.rand(2, 3, *shape))
    with pytest.raises(ValueError, match=words): max_unpool(pooled, indices, given)


def test_wrong_indices_are_noticed():
    pooled, indices = max_pool_with_indices(torch.rand(2, 3, 6, 6))
    with pytest.raises(ValueError, match=r"indices must have x's shape \(2, 3, 3, 3\); got \(2, 3, 1, 1\)"):
        max_unpool(pooled, max_pool_with_indices(pooled)[1])
    for bad in (indices - 40, indices + 40, indices.flip(2), to_tensorflow_indices(indices).movedim(3, 1)):
        with pytest.raises(ValueError, match="in their own windows"): max_unpool(pooled, bad)


@pytest.mark.parametrize("n, c, h, w, size, ceil_mode", MAPS)
def test_places_go_to_tensorflow_and_back(n, c, h, w, size, ceil_mode):
    x = torch.randn(n, c, h, w)
    pooled, indices = max_pool_with_indices(x, size, ceil_mode)
    theirs = to_tensorflow_indices(indices)
    flat = x.movedim(1, 3).flatten(1)  # each image's numbers in TensorFlow's order
    assert torch.equal(flat.gather(1, theirs.flatten(1)).view(theirs.shape), pooled.movedim(1, 3))
    assert torch.equal(from_tensorflow_indices(theirs), indices)


def test_pytorch_places_are_not_taken_for_tensorflow_ones():
    indices = max_pool_with_indices(torch.rand(1, 4, 6, 6))[1]
    with pytest.raises(ValueError, match="each place in its own channel of 4"): from_tensorflow_indices(indices.movedim(1, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_all_of_it_on_a_gpu():
    x = torch.randn(2, 3, 7, 9, device="cuda")
    pooled, indices = max_pool_with_indices(x)
    assert torch.equal(max_unpool(pooled, indices, (7, 9)).cpu(), max_unpool(pooled.cpu(), indices.cpu(), (7, 9)))
    assert torch.equal(from_tensorflow_indices(to_tensorflow_indices(indices)), indices)
    shuffle = PixelShuffleUp(3, 2).cuda()
    with torch.no_grad(): torch.testing.assert_close(as_transposed(shuffle)(x), shuffle(x), atol=1e-3, rtol=1e-3)


def test_the_sliders_leave_nothing_where_nobody_can_move_them():
    source = next(c.source for c in nbformat.read(CHAPTER, 4).cells if "from ipywidgets import interact" in c.source)
    cells = [nbformat.v4.new_code_cell("interactive, KINDS = True, ['ones']"), nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3").execute()
    assert not notebook.cells[1].outputs
