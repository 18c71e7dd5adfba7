"""The guided filter against a loop over windows, the convolutional CRF against all pairs, and what they refuse."""
import numpy as np
import pytest
import torch

from semseg_course.crf import Kernel, dense_crf
from semseg_course.guided_filter import box_mean, conv_crf, guided_filter, local_linear, shifts, window_filter

SIZES = [(7, 9), (1, 8), (6, 1), (1, 1), (4, 4)]


def data(size, guides=3, channels=2, seed=0):
    random = np.random.default_rng(seed)
    return random.random((*size, guides)), random.random((channels, *size))


def crowd(size, classes=3, seed=0, n=None):
    "An image and probabilities."
    random = np.random.default_rng(seed)
    batch = () if n is None else (n,)
    image = random.integers(0, 256, (*batch, *size, 3), np.uint8)
    return image, torch.from_numpy(random.normal(size=(*batch, classes, *size))).softmax(-3).numpy()


def window(y, x, size, radius):
    return [(i, j) for i in range(max(0, y - radius), min(size[0], y + radius + 1))
            for j in range(max(0, x - radius), min(size[1], x + radius + 1))]


def slow_box_mean(values, radius):
    answer = np.empty(values.shape)
    for y, x in np.ndindex(values.shape):
        answer[y, x] = np.mean([values[place] for place in window(y, x, values.shape, radius)])
    return answer


def slow_guided_filter(guide, values, radius, epsilon):
    "Window by window as the paper has it: least squares with the penalty as extra rows, then the mean of all answers."
    channels, *size = values.shape
    guides, answer = guide.shape[2], np.zeros_like(values)
    for y, x in np.ndindex(*size):
        places = window(y, x, size, radius)
        rows = np.array([[*guide[place], 1] for place in places])
        penalty = np.hstack([np.sqrt(epsilon * len(places)) * np.eye(guides), np.zeros((guides, 1))])
        for c in range(channels):
            wanted = np.r_[[values[(c, *place)] for place in places], np.zeros(guides)]
            line = np.linalg.lstsq(np.vstack([rows, penalty]), wanted, rcond=None)[0]
            for row, place in zip(rows, places):
                answer[(c, *place)] += row @ line / len(window(*place, size, radius))
    return answer


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [0, 1, 3, 20])
def test_box_mean_counts_the_pixels_that_are_there(size, radius):
    values = data(size)[1]
    expected = np.stack([slow_box_mean(v, radius) for v in values])
    np.testing.assert_allclose(box_mean(torch.from_numpy(values), radius), expected, atol=1e-12)
    assert torch.equal(box_mean(torch.ones(size), radius), torch.ones(size))
    single = box_mean(torch.from_numpy(values).float(), radius)
    assert single.dtype == torch.float32 and single.is_contiguous()


@pytest.mark.parametrize("guides", [1, 2, 3])
@pytest.mark.parametrize("size, radius", [((7, 9), 2), ((7, 9), 12), ((1, 8), 2), ((6, 1), 1), ((1, 1), 3)])
@pytest.mark.parametrize("epsilon", [1e-4, 0.3])
def test_filter_equals_a_loop_over_windows(guides, size, radius, epsilon):
    guide, values = data(size, guides)
    got = guided_filter(guide[..., 0] if guides == 1 else guide, values, radius, epsilon)
    np.testing.assert_allclose(got, slow_guided_filter(guide, values, radius, epsilon), atol=1e-8)
    np.testing.assert_array_equal(got, guided_filter(guide, values, radius, epsilon))


@pytest.mark.parametrize("guides", [1, 3])
def test_epsilon_zero_where_windows_have_lines_and_where_they_have_none(guides):
    guide, values = data((7, 9), guides)
    np.testing.assert_allclose(guided_filter(guide, values, 3, 0), slow_guided_filter(guide, values, 3, 0), atol=1e-8)
    np.testing.assert_allclose(guided_filter(guide, values, 0, 0), values, atol=1e-12)
    np.testing.assert_allclose(guided_filter(guide[:, :, :1].repeat(3, 2), values, 3, 0),
                               guided_filter(guide[:, :, 0], values, 3, 0), atol=1e-6)
    step = np.tile((np.arange(9) > 4).astype(float), (7, 1))
    np.testing.assert_allclose(guided_filter(step, step[None], 2, 0), step[None], atol=1e-8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("epsilon", [0, 1e-6, 1])
def test_a_constant_guide_gives_the_mean_of_means(size, epsilon):
    values = data(size)[1]
    twice = box_mean(box_mean(torch.from_numpy(values), 2), 2).numpy()
    for guide in (np.full(size, 7, np.uint8), np.full((*size, 3), 200, np.uint8), np.zeros(size)):
        np.testing.assert_allclose(guided_filter(guide, values, 2, epsilon), twice, atol=1e-9)


def test_it_is_linear_in_the_values_and_keeps_constants_and_the_guide():
    guide, values = data((7, 9))
    once = guided_filter(guide, values, 2, 0.01)
    np.testing.assert_allclose(guided_filter(guide, 3 * values + 2, 2, 0.01), 3 * once + 2, atol=1e-10)
    rest = guided_filter(guide, 1 - values.sum(0, keepdims=True), 2, 0.01)
    np.testing.assert_allclose(rest, 1 - once.sum(0)[None], atol=1e-10)
    itself = guide.transpose(2, 0, 1)
    np.testing.assert_allclose(guided_filter(guide, itself, 2, 0), itself, atol=1e-7)


def test_uint8_counts_as_0_to_1():
    image, values = crowd((7, 9))
    np.testing.assert_allclose(guided_filter(image, values), guided_filter(image / 255.0, values), atol=1e-12)


def test_batches_types_layouts_and_read_only_arrays():
    images, values = crowd((7, 9), n=3)
    expected = np.stack([guided_filter(*pair, 2, 1e-3) for pair in zip(images, values)])
    np.testing.assert_allclose(guided_filter(images, values, 2, 1e-3), expected, atol=1e-12)
    grey = guided_filter(images[..., 0], values, 2, 1e-3)
    np.testing.assert_allclose(grey[1], guided_filter(images[1, :, :, 0], values[1], 2, 1e-3), atol=1e-12)
    tensor = guided_filter(torch.from_numpy(images), torch.from_numpy(values).float(), 2, 1e-3)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor, expected, atol=1e-4)
    half = guided_filter(images, values.astype(np.float16), 2, 1e-3)
    assert half.dtype == np.float16 and abs(half - expected).max() < 0.01
    flipped = guided_filter(images[:, :, ::-1], values[..., ::-1], 2, 1e-3)
    np.testing.assert_allclose(flipped[..., ::-1], expected, atol=1e-9)
    copies = images.copy(), values.copy()
    images.flags.writeable = values.flags.writeable = False
    np.testing.assert_allclose(guided_filter(images, values, 2, 1e-3), expected, atol=1e-12)
    assert (images == copies[0]).all() and (values == copies[1]).all()


def test_single_precision_stays_near_double_on_a_large_flat_picture():
    random = np.random.default_rng(0)
    image = (200 + random.integers(0, 3, (300, 400, 3))).astype(np.uint8)
    values = random.random((2, 300, 400))
    difference = guided_filter(image, values.astype(np.float32), 8, 1e-5) - guided_filter(image, values, 8, 1e-5)
    assert abs(difference).max() < 1e-3


@pytest.mark.parametrize("epsilon", [0.01, 0.5])
def test_gradients(epsilon):
    guide, values = (torch.from_numpy(x).requires_grad_() for x in data((3, 4)))
    assert torch.autograd.gradcheck(lambda g, v: guided_filter(g, v, 1, epsilon), (guide, values))


def test_local_linear_of_a_line_is_the_line():
    guide = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    slopes, heights = local_linear(guide, (guide[:, :2] * 2 + 0.5), 2, 0)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    expected[0, 0] = expected[1, 1] = 2
    torch.testing.assert_close(slopes, expected[None, :, :, None, None].expand_as(slopes), atol=1e-7, rtol=0)
    torch.testing.assert_close(heights, torch.full_like(heights, 0.5), atol=1e-7, rtol=0)


def test_what_the_filter_refuses():
    image, values = crowd((7, 9))
    bad = values.copy()
    bad[0, 2, 2] = np.nan
    for arguments, message in [
            ((image, values[0]), "values must be floats"), ((image, values.astype(int)), "values must be floats"),
            ((image, values[:, :0]), "values must be floats"),
            ((image.astype(np.int32), values), "guide must be uint8 or floats"),
            ((image[:6], values), r"guide must be \(7, 9\) or \(7, 9, 3\)"),
            ((image, values[None]), "have their batch of 1"),
            ((image[None], values), "guide must be"), ((image, bad), "values must be finite"),
            ((image + np.inf, values), "guide must be finite"), ((image, values, -1), "radius must be whole pixels"),
            ((image, values, 2.0), "radius must be whole pixels"),
            ((image, values, 2, -1e-9), "epsilon must be 0 or more"),
            ((image, values, 2, float("nan")), "epsilon must be 0 or more")]:
        with pytest.raises(ValueError, match=message): guided_filter(*arguments)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalization", ["symmetric", "none", "before", "after"])
def test_a_window_that_covers_the_image_gives_the_dense_crf(size, normalization):
    image, p = crowd(size)
    for k in (2 * max(size) - 1, 2 * max(size) + 5):
        np.testing.assert_allclose(conv_crf(image, p, k, normalization=normalization),
                                   dense_crf(image, p, exact=True, normalization=normalization), atol=1e-9)


def test_other_kernels_batches_and_types():
    images, p = crowd((5, 6), n=2)
    costs = np.array([[0, 1, 2], [1, 0, 0.5], [2, 0.5, 0]])
    kernels = Kernel(costs, sxy=(2, 3)), Kernel(2.0, sxy=4, srgb=(9, 30, 60))
    expected = dense_crf(images, p, kernels=kernels, iterations=3, exact=True)
    np.testing.assert_allclose(conv_crf(images, p, 11, kernels=kernels, iterations=3), expected, atol=1e-9)
    np.testing.assert_allclose(conv_crf(images[1], p[1], 11, kernels=kernels, iterations=3), expected[1], atol=1e-9)
    leaf = torch.from_numpy(p).float().requires_grad_()
    tensor = conv_crf(torch.from_numpy(images), leaf, 11, kernels=kernels, iterations=3)
    assert tensor.dtype == torch.float32 and not tensor.requires_grad
    np.testing.assert_allclose(tensor, expected, atol=1e-4)
    np.testing.assert_allclose(conv_crf(images, p, 3, iterations=0), p, atol=1e-4)


def test_window_filter_equals_a_loop():
    image = crowd((5, 7))[0]
    kernel, values = Kernel(1, sxy=3, srgb=60), torch.rand(35, 2, dtype=torch.float64)
    got = window_filter(kernel, torch.from_numpy(image), 3, torch.float64)(values).view(5, 7, 2)
    features = kernel.features(torch.from_numpy(image)).double().view(5, 7, 5)
    for y, x in np.ndindex(5, 7):
        near = [(-0.5 * (features[y, x] - features[place]).square().sum()).exp() * values.view(5, 7, 2)[place]
                for place in window(y, x, (5, 7), 1)]
        torch.testing.assert_close(got[y, x], sum(near))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_shifts_are_what_unfold_gives(size):
    x = torch.rand(2, 4, 6)
    expected = torch.nn.functional.unfold(x[None], size, padding=size // 2).view(2, size * size, 4, 6)
    assert torch.equal(torch.stack([*shifts(x, size)], 1), expected)


def test_news_travels_half_a_window_a_step():
    wall, p = np.zeros((1, 40, 3), np.uint8), np.full((2, 1, 40), 0.5)
    p[:, 0, 0] = 0.9, 0.1
    for size in (3, 7):
        for steps in (1, 4):
            reached = conv_crf(wall, p, size, iterations=steps)[0, 0] > 0.5
            assert reached.sum() == 1 + steps * (size // 2) and reached[:reached.sum()].all()


def test_what_the_convolutional_crf_refuses():
    image, p = crowd((5, 6))
    for size in (0, 4, -3, 3.0):
        with pytest.raises(ValueError, match="size must be whole pixels, odd"): conv_crf(image, p, size)
    for arguments, message in [((image, 2 * p), "Apply a softmax"), ((image / 255, p), "image must be uint8"),
                               ((image[:4], p), "as large as the probabilities")]:
        with pytest.raises(ValueError, match=message): conv_crf(*arguments)
    with pytest.raises(ValueError, match="iterations must be 0 or more"): conv_crf(image, p, iterations=-1)
    with pytest.raises(ValueError, match="normalization must be one of"): conv_crf(image, p, normalization="twice")
    for compat in (np.ones((2, 3)), np.triu(np.ones((len(p), len(p))))):
        with pytest.raises(ValueError, match="compat must be a number or symmetric"):
            conv_crf(image, p, kernels=[Kernel(compat, sxy=3)])
