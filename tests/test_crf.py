"""The dense CRF against its formulas written as loops, against brute force, and against the authors' code."""
import functools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "benchmarks")]
from crf_reference import CASES, REFERENCE, authors, checksum  # noqa: E402
from crf_scenes import crop, street  # noqa: E402

from semseg_course.crf import (  # noqa: E402
    KERNELS,
    NORMALIZATIONS,
    Kernel,
    crf_from_json,
    crf_to_json,
    dense_crf,
    mean_field_step,
    normalized,
    unary_energy,
)

few = settings(max_examples=25, deadline=None, derandomize=True)


# The formulas, a loop for each sum

def gaussian(kernel, image, i, j):
    "The kernel between two places (y, x)."
    difference = [i[1] - j[1], i[0] - j[0]]
    if kernel.precision is not None:
        matrix = np.asarray(kernel.precision, float)
        if len(matrix) == 5: difference += list(image[i].astype(float) - image[j])
        difference = np.array(difference, float)
        return np.exp(-0.5 * difference @ matrix @ difference)
    scale = list(np.broadcast_to(kernel.sxy, 2))
    if kernel.srgb is not None:
        difference += list(image[i].astype(float) - image[j])
        scale += list(np.broadcast_to(kernel.srgb, 3))
    return np.exp(-0.5 * sum((d / s) ** 2 for d, s in zip(difference, scale)))


def costs(compat, classes):
    "What each pair of labels costs."
    return compat * (1 - np.eye(classes)) if np.ndim(compat) == 0 else np.asarray(compat, float)


def formulas(image, probabilities, kernels, iterations, normalization, mask=None):
    classes, h, w = probabilities.shape
    mask = np.ones((h, w), bool) if mask is None else mask
    places = [place for place in np.ndindex(h, w) if mask[place]]
    unary = {i: -np.log(np.maximum(probabilities[(slice(None), *i)], 1e-5)) for i in places}
    q = {i: np.exp(-unary[i]) / np.exp(-unary[i]).sum() for i in places}
    tables = []
    for kernel in kernels:
        k = {(i, j): gaussian(kernel, image, i, j) for i in places for j in places}
        d = {i: sum(k[i, j] for j in places) for i in places}
        before, after = NORMALIZATIONS[normalization]
        tables.append((costs(kernel.compat, classes),
                       {(i, j): k[i, j] / d[j] ** before / d[i] ** after for i in places for j in places}))
    for _ in range(iterations):
        new = {}
        for i in places:
            cost = unary[i].copy()
            for mu, k in tables:
                for j in places: cost += k[i, j] * (mu @ q[j])
            new[i] = np.exp(cost.min() - cost)
            new[i] /= new[i].sum()
        q = new
    result = probabilities.copy()
    for i in places: result[(slice(None), *i)] = q[i]
    return result


def picture(random, h, w, classes, levels=256):
    "A random image and random probabilities."
    image = random.integers(0, levels, (h, w, 3)).astype(np.uint8)
    return image, random.dirichlet([0.7] * classes, (h, w)).transpose(2, 0, 1).copy()


def positive(random, d):
    "A random precision matrix."
    a = random.normal(size=(d, d))
    matrix = a @ a.T / d + 0.1 * np.eye(d)
    scale = np.r_[[0.5] * 2, [0.05] * 3][:d]
    matrix = matrix * np.outer(scale, scale)
    return (matrix + matrix.T) / 2


def some_kernels(random, classes):
    "One to three kernels of all kinds."
    def compat():
        if random.random() < 0.5: return float(random.uniform(-1, 4))
        a = random.normal(size=(classes, classes))
        return a + a.T
    kinds = [lambda: Kernel(compat(), sxy=float(random.uniform(0.5, 4))),
             lambda: Kernel(compat(), sxy=tuple(random.uniform(0.5, 4, 2)), srgb=tuple(random.uniform(5, 90, 3))),
             lambda: Kernel(compat(), precision=positive(random, int(random.choice([2, 5]))))]
    return [kinds[random.integers(3)]() for _ in range(random.integers(1, 4))]


@few
@given(seed=st.integers(0, 2**31), h=st.integers(1, 4), w=st.integers(1, 4), classes=st.integers(1, 4),
       iterations=st.integers(0, 3), normalization=st.sampled_from(list(NORMALIZATIONS)))
def test_exact_equals_the_formulas(seed, h, w, classes, iterations, normalization):
    random = np.random.default_rng(seed)
    image, p = picture(random, h, w, classes)
    kernels = some_kernels(random, classes)
    ours = dense_crf(image, p, kernels=kernels, iterations=iterations, normalization=normalization, exact=True)
    # features are float32: what the tolerance allows beyond 1e-10 is tested away below, with whole numbers
    np.testing.assert_allclose(ours, formulas(image, p, kernels, iterations, normalization), atol=2e-5)


@few
@given(seed=st.integers(0, 2**31), h=st.integers(1, 4), w=st.integers(1, 5), classes=st.integers(1, 4),
       iterations=st.integers(0, 4), normalization=st.sampled_from(["none", "symmetric"]), matrix=st.booleans(),
       scale=st.sampled_from([0.5, 1, 2, 4, 8]))
def test_exact_equals_the_formulas_to_the_last_digits(seed, h, w, classes, iterations, normalization, matrix, scale):
    "With deviations that are powers of two, features are exact in float32, so all else must agree to 1e-10."
    random = np.random.default_rng(seed)
    image, p = picture(random, h, w, classes)
    compat = random.normal(size=(classes, classes)) if matrix else float(random.uniform(0, 5))
    kernels = [Kernel(compat + compat.T if matrix else compat, sxy=scale, srgb=(32, 64, 128)),
               Kernel(1.5, precision=np.diag([0.25, 4]))]
    ours = dense_crf(image, p, kernels=kernels, iterations=iterations, normalization=normalization, exact=True)
    np.testing.assert_allclose(ours, formulas(image, p, kernels, iterations, normalization), atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 7)])
def test_thin_images(shape):
    image, p = picture(np.random.default_rng(3), *shape, 3)
    kernels = [Kernel(2, sxy=2, srgb=64), Kernel(1, sxy=4)]
    expected = formulas(image, p, kernels, 3, "symmetric")
    np.testing.assert_allclose(dense_crf(image, p, kernels=kernels, iterations=3, exact=True), expected, atol=1e-10)
    fast = dense_crf(image, p, kernels=kernels, iterations=3)
    assert fast.shape == p.shape and abs(fast - expected).mean() < 0.05
    np.testing.assert_allclose(fast.sum(0), 1, atol=1e-5)


def test_one_class_and_no_iteration():
    image, p = picture(np.random.default_rng(4), 5, 6, 1)
    for exact in (False, True): np.testing.assert_allclose(dense_crf(image, p, exact=exact), 1, atol=1e-6)
    image, p = picture(np.random.default_rng(5), 5, 6, 4)
    p = np.maximum(p, 1e-4) / np.maximum(p, 1e-4).sum(0)
    for exact in (False, True): np.testing.assert_allclose(dense_crf(image, p, iterations=0, exact=exact), p, atol=1e-6)


@few
@given(seed=st.integers(0, 2**31), colour=st.booleans(), exact=st.booleans())
def test_a_diagonal_precision_equals_deviations(seed, colour, exact):
    random = np.random.default_rng(seed)
    image, p = picture(random, 6, 7, 3)
    sigmas = random.uniform(1, 4, 2), random.uniform(20, 90, 3)
    straight = Kernel(2, sxy=tuple(sigmas[0]), srgb=tuple(sigmas[1]) if colour else None)
    general = Kernel(2, precision=np.diag(np.concatenate(sigmas if colour else sigmas[:1]) ** -2))
    features = [kernel.features(torch.from_numpy(image)) for kernel in (general, straight)]
    np.testing.assert_allclose(*features, rtol=1e-5)
    one, other = (dense_crf(image, p, kernels=[kernel], exact=exact) for kernel in (straight, general))
    # positions alone go over the pixel grid or through the lattice, which is an approximation
    np.testing.assert_allclose(one, other, atol=1e-4 if exact or colour else 0.2)


def test_the_inverse_of_a_covariance_is_a_precision():
    spread = np.random.default_rng(3).normal(size=(5, 5))
    matrix = np.linalg.inv(spread @ spread.T)  # symmetric but for rounding
    assert not np.array_equal(matrix, matrix.T) and np.array_equal(Kernel(1, precision=matrix).precision, matrix)


def test_a_tilted_precision_is_a_quadratic_form():
    matrix = np.array([[1, -0.9], [-0.9, 1]])
    f = Kernel(1, precision=matrix).features(torch.zeros(3, 4, 3, dtype=torch.uint8)).double()
    a, b = f[0], f[2 * 4 + 1]  # one to the right, two down
    np.testing.assert_allclose((a - b) @ (a - b), np.array([1, 2]) @ matrix @ np.array([1, 2]), rtol=1e-5)


# Batches, masks, types

def test_a_batch_equals_single_images():
    pairs = [crop(i) for i in range(3)]
    together = dense_crf(*map(np.stack, zip(*pairs)))
    for one, (image, p) in zip(together, pairs): assert np.array_equal(one, dense_crf(image, p))
    masks = np.random.default_rng(0).random((3, 48, 64)) < 0.8
    together = dense_crf(*map(np.stack, zip(*pairs)), mask=masks)
    for one, (image, p), mask in zip(together, pairs, masks): assert np.array_equal(one, dense_crf(image, p, mask=mask))


@few
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), normalization=st.sampled_from(list(NORMALIZATIONS)))
def test_mask(seed, share, normalization):
    random = np.random.default_rng(seed)
    image, p = picture(random, 3, 4, 3)
    mask = random.random((3, 4)) < share
    p[:, ~mask] = random.choice([np.nan, -3, np.inf, 7])
    kernels = [Kernel(2, sxy=2, srgb=64)]
    ours = dense_crf(image, p, kernels=kernels, normalization=normalization, mask=mask, exact=True)
    assert np.array_equal(ours[:, ~mask], p[:, ~mask], equal_nan=True)
    expected = formulas(image, p, kernels, 5, normalization, mask)
    np.testing.assert_allclose(ours[:, mask], expected[:, mask], atol=1e-10)
    fast = dense_crf(image, p, kernels=kernels, normalization=normalization, mask=mask)
    assert np.array_equal(fast[:, ~mask], p[:, ~mask], equal_nan=True)
    if mask.any(): np.testing.assert_allclose(fast[:, mask].sum(0), 1, atol=1e-5)


def test_what_the_image_shows_outside_a_mask_does_not_matter():
    image, p = crop(1)
    image, p = image[:24, :32], p[:, :24, :32]
    mask = np.zeros((24, 32), bool)
    mask[4:20, 5:30] = True
    other = np.where(mask[..., None], image, 255 - image)
    one, two = (dense_crf(x, p, mask=mask, exact=True)[:, mask] for x in (image, other))
    np.testing.assert_allclose(one, two, atol=1e-12)
    assert not np.allclose(one, dense_crf(image, p, exact=True)[:, mask], atol=1e-3)


def test_types_shapes_and_read_only_input():
    warnings.simplefilter("error")
    image, p = crop(0)
    image.setflags(write=False)
    kept = p.copy()
    expected = dense_crf(image, p)
    assert isinstance(expected, np.ndarray) and expected.dtype == np.float32 and expected.shape == p.shape
    assert np.array_equal(p, kept)
    p.setflags(write=False)
    assert np.array_equal(dense_crf(image, p), expected)
    double = dense_crf(image, p.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, atol=1e-5)
    for dtype in (torch.float32, torch.float64):
        tensor = dense_crf(torch.from_numpy(image.copy()), torch.from_numpy(p.copy()).to(dtype))
        assert isinstance(tensor, torch.Tensor) and (tensor.dtype, tensor.device) == (dtype, torch.device("cpu"))
        np.testing.assert_allclose(tensor, expected, atol=1e-5)
    assert isinstance(dense_crf(image, torch.from_numpy(p.copy())), torch.Tensor)  # the probabilities decide


def test_strides_do_not_matter():
    image, p = crop(0)
    expected = dense_crf(image, p)
    assert np.array_equal(dense_crf(np.asfortranarray(image), np.asfortranarray(p)), expected)
    flipped = dense_crf(image[::-1], p[:, ::-1])  # a negative stride
    assert np.array_equal(flipped, dense_crf(image[::-1].copy(), p[:, ::-1].copy()))
    mask = np.ones((64, 48), bool).T
    mask.setflags(write=False)
    assert np.array_equal(dense_crf(image, p, mask=mask), expected)


def test_input_stays_as_it_is():
    image, p = crop(2)
    tensors = torch.from_numpy(image.copy()), torch.from_numpy(p.copy())
    for exact in (False, True):
        dense_crf(*tensors, exact=exact, iterations=1)
        assert np.array_equal(tensors[0], image) and np.array_equal(tensors[1], p)


# Near to brute force

@functools.cache
def exactly(number, classes=11): return dense_crf(*crop(number, classes), exact=True)


@pytest.mark.parametrize("number", range(4))
def test_lattice_is_near_brute_force(number):
    image, p = crop(number)
    fast, exact = dense_crf(image, p), exactly(number)
    assert abs(fast - exact).mean() < 0.02
    assert (fast.argmax(0) == exact.argmax(0)).mean() > 0.97
    assert abs(exact - p).mean() > 5 * abs(fast - exact).mean()  # the CRF does something, the lattice does the same


@pytest.mark.parametrize("classes", [1, 12, 21])
def test_lattice_with_other_numbers_of_classes(classes):
    image, p = crop(5, classes)
    fast, exact = dense_crf(image, p), dense_crf(image, p, exact=True)
    assert fast.shape == p.shape and abs(fast - exact).mean() < 0.02


@pytest.mark.parametrize("normalization", ["before", "after", "none"])
def test_lattice_with_each_normalization(normalization):
    image, p = crop(3)
    image, p = image[:30, :40], p[:, :30, :40]
    fast, exact = (dense_crf(image, p, normalization=normalization, exact=e) for e in (False, True))
    assert abs(fast - exact).mean() < 0.02


@pytest.mark.parametrize("number, classes", CASES)
def test_labels_of_the_authors_code(number, classes):
    image, p = street(number, classes)
    kept = np.load(REFERENCE)
    if not np.allclose(kept[f"checksum_{number}_{classes}"], checksum(image, p), atol=2e-4):
        pytest.fail("Toy Streets are drawn otherwise than for the reference: run tests/benchmarks/crf_reference.py")
    labels = kept[f"labels_{number}_{classes}"]
    assert (p.argmax(0) != labels).mean() > 0.05  # there is something to agree on
    assert (dense_crf(image, p).argmax(0) == labels).mean() >= 0.99


def test_marginals_of_the_authors_code_live():
    pytest.importorskip("pydensecrf", reason="pydensecrf is not installed: pip install pydensecrf2")
    image, p = street(0, 12)
    theirs, ours = authors(image, p), dense_crf(image, p)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.99 and abs(ours - theirs).mean() < 0.005
    assert np.array_equal(theirs.argmax(0), np.load(REFERENCE)["labels_0_12"])


# The same every time

DIGEST = """
import sys, hashlib, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads({threads})
from crf_scenes import street
from semseg_course.crf import dense_crf
image, p = street(1, 12, (120, 160))
print(hashlib.sha256(dense_crf(image, p).tobytes()).hexdigest())
"""


@functools.cache
def digest(threads):
    code = DIGEST.format(tests=str(Path(__file__).parent), threads=threads)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_same_bytes_every_time():
    image, p = crop(0)
    for exact in (False, True):
        one, two = (dense_crf(image[:30], p[:, :30], exact=exact).tobytes() for _ in range(2))
        assert one == two
    assert digest(1) == digest.__wrapped__(1)


def test_same_bytes_for_any_number_of_threads(): assert digest(1) == digest(2)


# The pieces

def test_unary_energy():
    p = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(unary_energy(p), [[0, -np.log(1e-5)], [np.log(4), np.log(4 / 3)]], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(unary_energy(p, floor=0.5), [[0, np.log(2)], [np.log(2), np.log(4 / 3)]], rtol=1e-5)


@few
@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), classes=st.integers(1, 5))
def test_mean_field_step_equals_the_formula(seed, n, classes):
    random = np.random.default_rng(seed)
    q, unary = random.dirichlet([1] * classes, n), random.exponential(2, (n, classes))
    k, a = random.random((2, n, n)), random.normal(size=(classes, classes))
    filters = [lambda v, m=torch.from_numpy(m): m @ v for m in k]
    compats = 3.0, torch.from_numpy(a + a.T)
    ours = mean_field_step(torch.from_numpy(q), torch.from_numpy(unary), list(zip(filters, compats)))
    for i in range(n):
        cost = unary[i].copy()
        for label in range(classes):
            for j in range(n):
                for other in range(classes):
                    cost[label] += k[0, i, j] * q[j, other] * 3 * (label != other)
                    cost[label] += k[1, i, j] * q[j, other] * (a + a.T)[label, other]
        expected = np.exp(cost.min() - cost)
        np.testing.assert_allclose(ours[i], expected / expected.sum(), atol=1e-10)


def test_mean_field_step_leaves_its_arguments_alone():
    q, unary = torch.rand(5, 3), torch.rand(5, 3)
    kept = q.clone(), unary.clone()
    mean_field_step(q, unary, [(lambda v: 2 * v, 1.0)])
    assert torch.equal(q, kept[0]) and torch.equal(unary, kept[1])


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_normalized(how):
    k = torch.rand(6, 6, dtype=torch.float64)
    k = k + k.T
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)[:, None]
    before, after = NORMALIZATIONS[how]
    d = k @ mask
    matrix = normalized(lambda v: k @ v, mask, how)(torch.eye(6, dtype=torch.float64))
    np.testing.assert_allclose(matrix, k * mask * mask.T / d**after / d.T**before, atol=1e-12)
    assert not matrix[2].any() and not matrix[:, 2].any()


@pytest.mark.parametrize("compat", [1e3, 1e6, -1e3])
@pytest.mark.parametrize("exact", [False, True])
def test_huge_weights_stay_finite(compat, exact):
    image, p = crop(4)
    piece = image[:20, :20], p[:, :20, :20].astype(np.float64)
    for normalization in ("none", "symmetric"):
        q = dense_crf(*piece, kernels=[Kernel(compat, sxy=20, srgb=30)], normalization=normalization, exact=exact)
        assert np.isfinite(q).all()
        np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


def test_probabilities_of_zero_and_one():
    image, p = crop(4)
    sure = (p.argmax(0) == np.arange(len(p))[:, None, None]).astype(np.float32)
    q = dense_crf(image, sure, kernels=[Kernel(60, sxy=20, srgb=30)])
    assert np.isfinite(q).all() and not np.array_equal(q.argmax(0), sure.argmax(0))  # no label is out of the question


# What is refused, and what is said then

def refused(message, *args, **kwargs):
    with pytest.raises(ValueError, match=message): dense_crf(*args, **kwargs)


def test_errors_about_probabilities():
    image, p = crop(0)
    refused("probabilities must be 0 or more and sum to 1 .* Apply a softmax to scores", image, np.log(p))
    refused("probabilities must be 0 or more .*sums from nan", image, p * np.nan)
    refused("sums from 2 to 2. Apply a softmax", image, p * 2)
    broken = p.copy()
    broken[3, 7, 7] = np.nan
    refused("sum to 1 at each pixel", image, broken)
    broken[:, 7, 7] = np.inf
    refused("sum to 1 at each pixel", image, broken)
    broken[:, 7, 7] = 0
    refused("sums from 0 to 1", image, broken)
    refused(r"probabilities must be floats .*int64 \(48, 64\)", image, p.argmax(0))
    refused(r"probabilities must be floats .*float32 \(0, 48, 64\)", image, p[:0])
    refused("probabilities must be floats", image, (p > 0.5))


def test_errors_about_the_image():
    image, p = crop(0)
    refused(r"image must be uint8.*float32, 0.* to .*Multiply it by 255", (image / np.float32(255)), p)
    refused("image must be uint8.*float64.*Round it to uint8", image.astype(float), p)
    refused("image must be uint8.*int64.*Round it to uint8", image.astype(np.int64), p)
    refused(r"image must be \(48, 64, 3\), as large as the probabilities; got \(47, 64, 3\)", image[1:], p)
    refused(r"as large as the probabilities; got \(3, 48, 64\)", image.transpose(2, 0, 1), p)
    refused(r"as large as the probabilities; got \(2, 48, 64, 3\)", np.stack([image] * 2), np.stack([p] * 3))


def test_errors_about_the_rest():
    image, p = crop(0)
    refused(r"mask must be bool \(48, 64\); got torch.uint8", image, p, mask=np.ones((48, 64), np.uint8))
    refused(r"mask must be bool \(48, 64\); got torch.bool \(64, 48\)", image, p, mask=np.ones((64, 48), bool))
    for count in (-1, 2.5): refused(f"iterations must be 0 or more, a whole number; got {count}", image, p, iterations=count)
    refused("normalization must be one of none, symmetric, before, after; got 'two'", image, p, normalization="two")
    refused(r"symmetric \(11, 11\); got \(2, 2\)", image, p, kernels=[Kernel(np.eye(2))])
    lopsided = np.triu(np.ones((11, 11)))
    refused(r"symmetric \(11, 11\); got one that is not symmetric", image, p, kernels=[Kernel(lopsided)])
    refused("Take larger standard deviations", image, p, kernels=[Kernel(1, sxy=1e-6, srgb=1)])


def test_probabilities_in_half_precision_and_a_single_kernel():
    "Halves sum to 1 less exactly, and a kernel need not stand in a list."
    image, p = crop(0)
    half = dense_crf(image, p.astype(np.float16), kernels=KERNELS[1])
    assert half.dtype == np.float16
    assert np.abs(half - dense_crf(image, p, kernels=[KERNELS[1]])).mean() < 1e-3
    assert dense_crf(torch.from_numpy(image), torch.from_numpy(p).bfloat16()).dtype == torch.bfloat16


def test_errors_about_kernels():
    for wrong, message in (({"sxy": 0}, "sxy must be one positive number or 2; got 0"),
                           ({"sxy": (1, 2, 3)}, "sxy must be one positive number or 2"),
                           ({"srgb": (1, -2, 3)}, "srgb must be one positive number or 3"),
                           ({"srgb": float("nan")}, "srgb must be one positive number or 3"),
                           ({"precision": np.eye(3)}, r"\(2, 2\) or \(5, 5\); got \(3, 3\)"),
                           ({"precision": [[1, 2], [2, 1]]}, "positive definite"),
                           ({"precision": [[1, 0.5], [0, 1]]}, "symmetric")):
        with pytest.raises(ValueError, match=message): Kernel(1, **wrong)


# Settings in a file

def test_settings_survive_a_file():
    import json
    kernels = Kernel(np.arange(4).reshape(2, 2), sxy=(1, 2)), Kernel(2, precision=np.eye(5)), *KERNELS
    kept = json.loads(json.dumps(crf_to_json(kernels=kernels, iterations=7, normalization="after")))
    again = crf_from_json(kept)
    assert crf_to_json(**again) == kept and again["iterations"] == 7 and again["kernels"][2:] == KERNELS
    image, p = crop(1)
    assert np.array_equal(dense_crf(image, p, **crf_from_json(crf_to_json())), dense_crf(image, p))
    with pytest.raises(ValueError, match="got sigma"): crf_from_json(dict(sigma=3))
    with pytest.raises(ValueError, match="kernels must be a list"): crf_from_json(dict(kernels=[dict(sigma=3)]))
