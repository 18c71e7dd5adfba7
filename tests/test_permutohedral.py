"""Gaussian sums: all pairs against loops, in two passes, and the lattice against a slow one made of dictionaries."""
from math import exp, floor, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semseg_course.permutohedral import (
    Lattice,
    barycentric,
    elevation,
    enclosing_simplex,
    gaussian_filter,
    grid_filter,
    lattice_neighbours,
    vertex_keys,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
dimensions, seeds = st.integers(1, 6), st.integers(0, 2**31 - 1)


def cloud(seed, n, d, spread=2.0, kind=torch.float64):
    "Random points, a few of them twice, and values of three channels."
    g = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(n, d, generator=g, dtype=kind)
    features[n // 2:n // 2 + n // 5] = features[:n // 5]
    return features, torch.randn(n, 3, generator=g, dtype=kind)


def located(features):
    "Elevated points, corner and rank, and the vertices' coordinates as integers (n, d + 1 vertices, d + 1)."
    d = features.shape[1]
    elevated = elevation(d).to(features) @ features.T
    corner, rank = enclosing_simplex(elevated)
    k = torch.arange(d + 1).view(-1, 1, 1)
    vertices = (d + 1) * corner.long() + k - (d + 1) * (rank > d - k)
    return elevated, corner, rank, vertices.permute(2, 0, 1)


# A lattice as plain as can be: one point at a time, tuples as keys, dictionaries in place of arrays.

def slow_corners(y):
    "Vertices and weights of the simplex around a point of the plane, by sorting and by differences."
    d = len(y) - 1
    near = [(d + 1) * floor(c / (d + 1) + 0.5) for c in y]
    while sum(near) > 0:
        i = min(range(d + 1), key=lambda i: y[i] - near[i])
        near[i] -= d + 1
    while sum(near) < 0:
        i = max(range(d + 1), key=lambda i: y[i] - near[i])
        near[i] += d + 1
    falling = sorted(range(d + 1), key=lambda i: near[i] - y[i])
    rest = [(y[i] - near[i]) / (d + 1) for i in falling]
    shares = [1 + rest[d] - rest[0]] + [rest[d - k] - rest[d - k + 1] for k in range(1, d + 1)]
    corners = []
    for k in range(d + 1):
        last = falling[d + 1 - k:]
        corners.append(tuple(near[i] + k - (d + 1) * (i in last) for i in range(d + 1)))
    return corners, shares


def slow_lattice(features, values, reverse=False):
    n, d = features.shape
    matrix = np.zeros((d + 1, d))
    for j in range(d):
        matrix[:j + 1, j], matrix[j + 1, j] = 1, -(j + 1)
        matrix[:, j] *= sqrt(2 / 3) * (d + 1) / sqrt((j + 1) * (j + 2))
    around = [slow_corners([float(sum(matrix[i] * f)) for i in range(d + 1)]) for f in features]
    held = {}
    for (corners, shares), value in zip(around, values):
        for corner, share in zip(corners, shares): held[corner] = held.get(corner, 0) + share * value
    directions = [tuple(1 - (d + 1) * (i == j) for i in range(d + 1)) for j in range(d + 1)]
    for step in reversed(directions) if reverse else directions:
        ahead = {vertex: tuple(a + b for a, b in zip(vertex, step)) for vertex in held}
        behind = {vertex: tuple(a - b for a, b in zip(vertex, step)) for vertex in held}
        held = {v: held[v] + 0.5 * held.get(ahead[v], 0) + 0.5 * held.get(behind[v], 0) for v in held}
    sums = [sum(share * held[corner] for corner, share in zip(*each)) for each in around]
    return np.array(sums).reshape(n, -1) / (1 + 0.5**d)


# All pairs

@few
@given(seeds, st.integers(1, 12), dimensions, st.integers(1, 13))
def test_all_pairs_equal_loops(seed, n, d, rows):
    features, values = (x.numpy() for x in cloud(seed, n, d))
    loops = [[sum(exp(-0.5 * sum((f - g)**2)) * v[c] for g, v in zip(features, values)) for c in range(3)]
             for f in features]
    np.testing.assert_allclose(gaussian_filter(features, values, rows=rows), loops, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("h, w, sigma", [(5, 7, (1.2, 1.7)), (1, 9, (2.0, 2.0)), (8, 1, (2.5, 0.5)), (1, 1, (3, 3))])
def test_two_passes_equal_all_pairs(h, w, sigma):
    values = torch.rand(h * w, 2, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(h).double() / sigma[0], torch.arange(w).double() / sigma[1])
    error = (grid_filter(values, (h, w), sigma) - gaussian_filter(places, values)).abs().max()
    assert error < 1e-10  # no image here is so large that tails are cut


def test_two_passes_leave_out_far_tails_only():
    values = torch.rand(30 * 40, 2, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(30).double() / 3, torch.arange(40).double() / 2)
    exact = gaussian_filter(places, values)
    assert ((grid_filter(values, (30, 40), (3.0, 2.0)) - exact).abs() / exact).max() < 1e-3


# Simplices

@few
@given(seeds, dimensions)
def test_weights_are_barycentric(seed, d):
    elevated, corner, rank, vertices = located(cloud(seed, 30, d, spread=5.0)[0])
    weights = barycentric(elevated, corner, rank)
    assert weights.shape == (30, d + 1) and weights.min() > -1e-12
    assert (weights.sum(1) - 1).abs().max() < 1e-12
    assert ((weights[:, None] @ vertices.double())[:, 0] - elevated.T).abs().max() < 1e-10


@few
@given(seeds, dimensions)
def test_vertices_lie_in_the_plane_and_have_every_remainder(seed, d):
    _, _, rank, vertices = located(cloud(seed, 30, d, spread=5.0)[0])
    assert (vertices.sum(2) == 0).all()
    assert (vertices % (d + 1) == torch.arange(d + 1).view(1, -1, 1)).all()
    assert (rank.sort(0).values == torch.arange(d + 1).view(-1, 1)).all()


@pytest.mark.parametrize("d", range(1, 7))
def test_elevation_keeps_shapes(d):
    matrix = elevation(d)
    assert (matrix.T @ matrix - 2 / 3 * (d + 1)**2 * torch.eye(d, dtype=torch.float64)).abs().max() < 1e-10
    assert matrix.sum(0).abs().max() < 1e-10


# Keys and neighbours

@few
@given(seeds, dimensions, st.floats(0.1, 20))
def test_keys_are_equal_exactly_for_equal_vertices(seed, d, spread):
    _, corner, rank, vertices = located(cloud(seed, 25, d, spread)[0])
    keys = vertex_keys(corner, rank)[0].flatten()
    _, by_key = torch.unique(keys, return_inverse=True)
    _, by_vertex = torch.unique(vertices.flatten(0, 1), dim=0, return_inverse=True)
    assert torch.equal(by_key[:, None] == by_key, by_vertex[:, None] == by_vertex)


@few
@given(seeds, dimensions)
def test_neighbours_are_those_of_the_coordinates(seed, d):
    _, corner, rank, vertices = located(cloud(seed, 40, d, spread=1.0)[0])
    keys, strides, box = vertex_keys(corner, rank)
    where = dict(zip(keys.flatten().tolist(), map(tuple, vertices.flatten(0, 1).tolist())))
    names = sorted(where)
    number = {where[name]: i for i, name in enumerate(names)}
    neighbours, m = lattice_neighbours(torch.tensor(names, dtype=keys.dtype), strides, box), len(names)
    assert neighbours.shape == (d + 1, m + 1, 3) and (neighbours[:, m] == m).all()
    for j in range(d + 1):
        for i, name in enumerate(names):
            ahead = tuple(c + 1 - (d + 1) * (axis == j) for axis, c in enumerate(where[name]))
            behind = tuple(c - 1 + (d + 1) * (axis == j) for axis, c in enumerate(where[name]))
            assert neighbours[j, i].tolist() == [i, number.get(ahead, m), number.get(behind, m)]


@pytest.mark.parametrize("d", [1, 2, 5])
def test_neighbours_are_symmetric(d):
    lattice = Lattice(cloud(0, 200, d)[0])
    m = len(lattice.keys)
    for neighbours in lattice.neighbours:
        pairs = [{(i, int(k)) for i, k in enumerate(neighbours[:m, column]) if k < m} for column in (1, 2)]
        assert pairs[0] == {(k, i) for i, k in pairs[1]} and pairs[0]


# The filter

@few
@given(seeds, dimensions, st.integers(1, 25), st.sampled_from([0.05, 0.5, 2.0, 20.0]), st.booleans())
def test_lattice_equals_a_slow_one(seed, d, n, spread, reverse):
    features, values = cloud(seed, n, d, spread)
    slow = slow_lattice(features.numpy(), values.numpy(), reverse)
    np.testing.assert_allclose(Lattice(features).filter(values, reverse=reverse).numpy(), slow, rtol=1e-10, atol=1e-10)


@few
@given(seeds, dimensions)
def test_reverse_is_the_transpose(seed, d):
    lattice, every = Lattice(cloud(seed, 40, d)[0]), torch.eye(40, dtype=torch.float64)
    assert (lattice.filter(every) - lattice.filter(every, reverse=True).T).abs().max() < 1e-12


@pytest.mark.parametrize("d", [1, 2, 5])
def test_pieces_are_transposes(d):
    lattice = Lattice(cloud(1, 60, d)[0])
    m = len(lattice.keys)
    points, vertices = torch.eye(60, dtype=torch.float64), torch.eye(m, dtype=torch.float64)
    splat, slice = lattice.splat(points), lattice.slice(vertices)
    assert (splat.T - slice * (1 + 0.5**d)).abs().max() < 1e-12
    assert (lattice.blur(vertices).T - lattice.blur(vertices, reverse=True)).abs().max() < 1e-12
    assert (splat.sum(0) - 1).abs().max() < 1e-12  # nothing is lost on the way to the vertices


def test_the_filter_is_linear_and_channels_do_not_meet():
    features, values = cloud(2, 80, 5)
    lattice = Lattice(features)
    whole, alone = lattice.filter(values), [lattice.filter(values[:, c:c + 1]) for c in range(3)]
    assert (whole - torch.cat(alone, 1)).abs().max() < 1e-12
    assert (lattice.filter(2 * values - values.flip(1)) - (2 * whole - whole.flip(1))).abs().max() < 1e-12


def test_scaled_multiplies_values_and_sums():
    features, values = cloud(3, 50, 3)
    before, after = torch.rand(2, 50, 1, dtype=torch.float64)
    lattice = Lattice(features)
    scaled, kept = lattice.scaled(before, after).filter(values), lattice.filter(values)
    assert (scaled - after * lattice.filter(before * values)).abs().max() < 1e-12
    assert torch.equal(lattice.filter(values), kept)  # the lattice itself is left as it was


@pytest.mark.parametrize("d", range(1, 7))
def test_one_point_and_copies_of_it(d):
    features, values = cloud(4, 1, d)
    once = Lattice(features).filter(values)
    np.testing.assert_allclose(once.numpy(), slow_lattice(features.numpy(), values.numpy()), atol=1e-12)
    copies = Lattice(features.repeat(7, 1))
    assert len(copies.keys) == d + 1
    assert (copies.filter(values.repeat(7, 1)) - 7 * once).abs().max() < 1e-12


@pytest.mark.parametrize("d", range(1, 7))
def test_a_point_on_a_vertex_answers_itself_with_one(d):
    steps = (1 - (d + 1) * torch.eye(d + 1, dtype=torch.float64)) @ elevation(d) * 1.5 / (d + 1)**2  # in features
    ways = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1], dtype=torch.float64)] * (d + 1))
    features = torch.cat([torch.zeros(1, d, dtype=torch.float64), ways @ steps])
    first = torch.zeros(len(features), 1, dtype=torch.float64)
    first[0] = 1
    assert abs(Lattice(features).filter(first)[0].item() - 1) < 1e-9


def test_sums_of_evenly_spread_points_are_short_by_a_known_factor():
    axis = torch.linspace(-5, 5, 80, dtype=torch.float64)
    features, ones = torch.cartesian_prod(axis, axis), torch.ones(6400, 1, dtype=torch.float64)
    ratio = (Lattice(features).filter(ones) / gaussian_filter(features, ones))[features.abs().amax(1) < 1]
    assert (ratio - 8 / 1.25 * 1.5 / sqrt(3) / (2 * np.pi)).abs().max() < 2e-3


def street(h, w):
    "Positions and colours of a smooth picture with one sharp edge, and values that follow them."
    y, x = np.mgrid[:h, :w] / w
    colours = np.stack([np.sin(3 * x) * 60, np.where(x + y > 0.8, 90, 20), 50 + 40 * y], 2)
    features = np.concatenate([np.stack([y, x], 2) * w / 10, colours / 20], 2).reshape(h * w, 5)
    return features, np.stack([x, y, x + y > 0.8], 2).reshape(h * w, 3).astype(float)


def test_means_are_near_those_of_all_pairs():
    features, values = street(36, 48)
    ones = np.ones((len(values), 1))
    lattice = Lattice(features)
    sums, exact = lattice.filter(values), gaussian_filter(features, values)
    means, exact_means = sums / lattice.filter(ones), exact / gaussian_filter(features, ones)
    off = np.linalg.norm(means - exact_means) / np.linalg.norm(exact_means)
    assert off < 0.02 and np.abs(means - exact_means).max() < 0.08
    assert 0.2 < np.linalg.norm(sums - exact) / np.linalg.norm(exact) < 0.6  # why everybody divides


@pytest.mark.parametrize("d, bound", [(1, 0.06), (2, 0.06), (3, 0.06), (4, 0.07), (5, 0.08), (6, 0.1)])
def test_means_of_random_points(d, bound):
    features = torch.randn(1000, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    values, ones = 1 + torch.sin(2 * features[:, :1]), torch.ones(1000, 1, dtype=torch.float64)
    lattice = Lattice(features)
    means = lattice.filter(values) / lattice.filter(ones)
    exact = gaussian_filter(features, values) / gaussian_filter(features, ones)
    assert ((means - exact).norm() / exact.norm()).item() < bound


# Types, inputs, threads

def test_arrays_in_arrays_out_and_tensors_in_tensors_out():
    features, values = cloud(6, 20, 3)
    for filter in (Lattice(features).filter, Lattice(features.numpy()).filter):
        assert isinstance(filter(values.numpy()), np.ndarray) and isinstance(filter(values), torch.Tensor)
        np.testing.assert_array_equal(filter(values.numpy()), filter(values).numpy())
    assert isinstance(gaussian_filter(features.numpy(), values.numpy()), np.ndarray)
    assert isinstance(gaussian_filter(features, values), torch.Tensor)


def test_inputs_stay_as_they_are():
    features, values = cloud(7, 30, 4)
    copies = features.clone(), values.clone()
    Lattice(features).filter(values)
    gaussian_filter(features, values)
    assert torch.equal(features, copies[0]) and torch.equal(values, copies[1])


def test_32_bits_are_near_64():
    features, values = cloud(8, 500, 5, kind=torch.float32)
    found = Lattice(features).filter(values)
    assert found.dtype == torch.float32 and Lattice(features.numpy()).filter(values.numpy()).dtype == np.float32
    assert (found.double() - Lattice(features.double()).filter(values.double())).abs().max() < 1e-3


def test_wide_features_take_long_keys():
    features, values = cloud(9, 20, 3, spread=2000.0)
    lattice = Lattice(features)
    assert lattice.keys.dtype == torch.int64
    np.testing.assert_allclose(lattice.filter(values), slow_lattice(features.numpy(), values.numpy()), atol=1e-8)


@pytest.mark.parametrize("features, message", [
    (torch.rand(5), r"a row a point; got torch.float32 \(5,\)"),
    (torch.zeros(5, 2, dtype=torch.int64), "must be floats"),
    (torch.rand(0, 2), r"\(0, 2\)"), (torch.rand(5, 0), r"\(5, 0\)"), (torch.full((2, 2), torch.nan), "finite"),
    (torch.tensor([[0.0], [torch.inf]]), "finite"),
    (torch.tensor([[0.0, 1e7]]), "smaller for torch.float32; got up to 1e[+]07. Take larger standard deviations, or float64"),
    (torch.rand(9, 6, generator=torch.Generator().manual_seed(0)).double() * 1e5, "Take larger standard deviations")])
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=message): Lattice(features)


@pytest.mark.parametrize("values, message", [
    (torch.rand(4, 2), r"values must be floats \(5, channels\).*\(4, 2\)"), (torch.rand(5), "values must be"),
    (torch.ones(5, 2, dtype=torch.uint8), "torch.uint8")])
def test_bad_values(values, message):
    features = torch.rand(5, 2)
    with pytest.raises(ValueError, match=message): gaussian_filter(features, values)
    with pytest.raises(ValueError, match=message): Lattice(features).filter(values)


@pytest.fixture
def threads():
    "Sets the number of threads for a while."
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_same_bits_again_and_with_two_threads(threads):
    features, values = cloud(10, 6000, 5, kind=torch.float32)
    answers = {}
    for count in (1, 2):
        threads(count)
        first, second = Lattice(features), Lattice(features)
        answers[count] = first.filter(values)
        assert torch.equal(answers[count], second.filter(values)) and torch.equal(first.keys, second.keys)
    assert torch.equal(answers[1], answers[2])
    threads(1)  # a lattice that was built with two threads
    assert torch.equal(first.filter(values, reverse=True), second.filter(values, reverse=True))
