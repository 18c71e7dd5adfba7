"""U-Net against a well-known implementation, the paper's sizes, and its own promises; what is done for cells."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semseg_course.backbones import init_weights
from semseg_course.data.labels import VOID
from semseg_course.microscopy import (
    TouchingCells,
    border_weights,
    cell_scores,
    components,
    distance_to,
    elastic,
    mirrored,
    separated,
    tiled_scores,
)
from semseg_course.models.unet import CHANNELS, FORMS, SKIPS, UNet, double, grow, middle, paper_output, paper_side

sys.path.insert(0, str(Path(__file__).parent))  # pytest runs with import mode importlib
from fingerprint import differs, scores_of  # noqa: E402
from twins import count, filled, on_meta  # noqa: E402

NETWORKS = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
pytestmark = pytest.mark.usefixtures("seeded")
SMALL = dict(width=1 / 16)
FIT = {"padded": (33, 50), "paper": (188, 204)}  # sizes that a form takes


def expected(classes, inputs, form, skip):
    "Parameters by the paper's figure: kernels, and a bias or the two numbers of a norm for each channel."
    norms = 2 if form == "padded" else 1
    layer = lambda a, b: 9 * a * b + norms * b
    total = sum(layer(a, b) + layer(b, b) for a, b in zip((inputs, *CHANNELS), CHANNELS))
    for fine, coarse in zip(CHANNELS, CHANNELS[1:]):
        total += 4 * coarse * fine + fine + layer(2 * fine if skip == "concat" else fine, fine) + layer(fine, fine)
    return total + CHANNELS[0] * classes + classes


def test_fingerprint():
    assert not differs(scores_of(filled(UNet, 12), NETWORKS["unet_padded"]["size"]), NETWORKS["unet_padded"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skip", SKIPS)
def test_parameters(form, skip):
    for classes, inputs in ((12, 3), (2, 1), (21, 4)):
        assert count(on_meta(UNet, classes, inputs, form, skip)) == expected(classes, inputs, form, skip)


def test_parameters_of_known_nets():
    assert count(on_meta(UNet, 12)) == 31_038_348 and count(on_meta(UNet, 21)) == 31_038_933
    assert count(on_meta(UNet, 2, 1, "paper")) == 31_030_658


def test_the_papers_convolutions():
    layers = [m for m in on_meta(UNet, 2, 1, "paper").modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert len(layers) == 23  # "in total the network has 23 convolutional layers", the up-convolutions among them


def sizes_of_the_figure(side):
    "Side after each layer of the paper's figure, the arrows down and up left out."
    sizes = []
    for _ in range(4):
        sizes += [side, side - 2, side - 4]
        side = (side - 4) // 2
    sizes += [side, side - 2, side - 4]
    for _ in range(4):
        side = 2 * (side - 4)
        sizes += [side, side - 2, side - 4]
    return sizes


def test_every_size_of_the_papers_figure():
    network, sizes = on_meta(UNet, 2, 1, "paper"), []
    remember = lambda module, inputs, output: sizes.extend([inputs[0].shape[-1], output.shape[-1]])
    for block in (*network.down, *network.merge):
        block[0].register_forward_hook(remember)
        block[2].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    assert network(torch.zeros(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    assert sizes == sizes_of_the_figure(572)
    assert sizes[12:15] == [32, 30, 28] and sizes[:3] == [572, 570, 568]


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("size", ((1, 1), (1, 40), (15, 16), (33, 1), (37, 53), (64, 96)))
def test_any_size_when_padded(skip, size):
    assert UNet(5, skip=skip, **SMALL).eval()(torch.zeros(1, 3, *size)).shape == (1, 5, *size)


def test_sizes_of_the_papers_form_are_those_that_the_layers_allow():
    def through(side):  # what the layers do, None where a pool would drop a row
        skips = []
        for _ in range(4):
            skips.append(side := side - 4)
            if side < 1 or side % 2: return None
            side //= 2
        side -= 4
        for skip in reversed(skips):
            if side < 1 or 2 * side > skip: return None
            side = 2 * side - 4
        return side if side > 0 else None
    for side in range(1, 700):
        if through(side) is None:
            with pytest.raises(ValueError, match=f"got {side}"): paper_output(side)
        else: assert paper_output(side) == through(side)


def test_the_side_for_so_many_pixels():
    for pixels in range(1, 400):
        side = paper_side(pixels)
        assert paper_output(side) >= pixels and (side == 188 or paper_output(side - 16) < pixels)


@pytest.mark.parametrize("side, near", (
    (512, "508 and 524"), (571, "556 and 572"), (100, "188 and 204"), (172, "188 and 204")))
def test_sizes_that_do_not_fit(side, near):
    network = UNet(2, 1, "paper", **SMALL).eval()
    for size in ((side, 188), (188, side)):
        with pytest.raises(ValueError, match=f"got {side}. The nearest are {near}"): network(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skip", SKIPS)
def test_batches_equal_single_images(form, skip):
    network, x = UNet(4, form=form, skip=skip, **SMALL).eval(), torch.randn(2, 3, *FIT[form])
    together = network(x)
    assert together.std() > 0
    for i in range(2): torch.testing.assert_close(together[i:i + 1], network(x[i:i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skip", SKIPS)
def test_gradients_reach_every_parameter(form, skip):
    with torch.enable_grad():
        network = UNet(3, form=form, skip=skip, **SMALL)
        network(torch.randn(1, 3, *FIT[form])).square().sum().backward()
    for name, p in network.named_parameters(): assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("skip", SKIPS)
def test_only_skips_bring_fine_maps(skip):
    "With a bottom that says nothing, a net without skips says the same of every image."
    network = UNet(2, skip=skip, **SMALL).eval()
    network.down[-1].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    one, other = (network(torch.randn(1, 3, 32, 32)) for _ in range(2))
    assert torch.equal(one, other) == (skip == "none")


def test_concatenation_can_do_what_addition_does():
    "Repeat the kernels of the added net for both halves, and the concatenating net gives the same scores."
    added, joined = UNet(3, skip="add", **SMALL).eval(), UNet(3, skip="concat", **SMALL).eval()
    state = added.state_dict()
    for i in range(4): state[f"merge.{i}.0.weight"] = state[f"merge.{i}.0.weight"].repeat(1, 2, 1, 1)
    joined.load_state_dict(state)
    x = torch.randn(1, 3, 45, 60)
    torch.testing.assert_close(joined(x), added(x), rtol=1e-4, atol=1e-5)


def test_scores_of_the_papers_form_see_real_pixels_only():
    "Scores of a crop are the scores of the whole, there where both are: nothing depends on where the image ends."
    network, x = UNet(2, 1, "paper", **SMALL).eval(), torch.randn(1, 1, 236, 236)
    whole = network(x)  # 52 x 52
    part = network(x[:, :, 32:220, 16:204])  # 4 x 4; shifted by multiples of 16, the pools' common step
    torch.testing.assert_close(part, whole[:, :, 32:36, 16:20], rtol=1e-4, atol=1e-5)


def test_dropout_only_in_the_papers_form_and_in_training():
    drops = {form: [m for m in on_meta(UNet, 2, form=form).modules() if isinstance(m, torch.nn.Dropout)] for form in FORMS}
    assert [len(drops[form]) for form in FORMS] == [0, 2] and drops["paper"][0].p == 0.5
    network, x = UNet(2, form="paper", **SMALL), torch.randn(1, 3, 188, 188)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("form", FORMS)
def test_channels_last_stays(form):
    network = UNet(3, form=form, **SMALL).eval()
    x = torch.randn(2, 3, *FIT[form])
    plain = network(x)
    scores = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert scores.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(scores, plain, rtol=1e-3, atol=1e-4)


def test_maps_of_one_size_are_not_copied():
    x = torch.randn(1, 2, 4, 4)
    assert grow(x, (4, 4)) is x and middle(x, (4, 4)).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("have, want", (((2, 2), (3, 3)), ((2, 4), (5, 4)), ((3, 5), (3, 8))))
def test_grown_maps_stand_in_the_middle(have, want):
    grown = grow(torch.ones(1, 1, *have), want)
    assert grown.shape[2:] == want and grown.sum() == have[0] * have[1]
    for axis in (2, 3):
        lit = grown.sum((0, 1, 5 - axis)).nonzero().flatten()
        assert lit[0] == (want[axis - 2] - have[axis - 2]) // 2


@pytest.mark.parametrize("settings, message", (
    (dict(form="valid"), "padded, paper; got 'valid'"), (dict(skip="sum"), "concat, add, none; got 'sum'"),
    (dict(width=1e-4), "at least one")))
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message): UNet(2, **settings)


def test_random_weights_keep_the_size_of_activations():
    x = torch.randn(1, 64, 40, 40)
    block = double(64, 64, "paper")
    init_weights(block)
    assert 0.5 < block(x).square().mean() < 2
    network = UNet(2, 1, "paper", width=0.25).eval()
    scores = network(torch.randn(1, 1, 188, 188))
    assert 0.05 < scores.std() < 20


# Tiles, weights and elastic deformation

def cells(height, width, seed=0):
    return TouchingCells((height, width), 1, seed, cells=(4, 6)).scene(0)


@pytest.mark.parametrize("size", ((20, 30), (64, 65), (130, 70), (1, 1)))
@pytest.mark.parametrize("tile", (204, 252))
def test_tiles_give_the_scores_of_the_whole(size, tile):
    network = UNet(3, 2, "paper", width=1 / 32).eval()
    x = torch.randn(2, 2, *size)
    more = [(92, paper_side(side) - 92 - side) for side in size]
    whole = network(mirrored(x, *more))[:, :, :size[0], :size[1]]
    torch.testing.assert_close(tiled_scores(network, x, tile), whole, rtol=1e-4, atol=1e-5 * whole.std().item())


@pytest.mark.parametrize("tile, message", ((188, "at least 204.*got 188"), (200, "188 and 204")))
def test_tiles_that_do_not_fit(tile, message):
    with pytest.raises(ValueError, match=message): tiled_scores(lambda x: x, torch.zeros(1, 1, 8, 8), tile)


def test_tiles_want_the_papers_form():
    with pytest.raises(ValueError, match=r"middle 20 of 204 pixels.*got scores of \(204, 204\).*form='paper'"):
        tiled_scores(UNet(2, 1, **SMALL).eval(), torch.zeros(1, 1, 30, 30), 204)


@pytest.mark.parametrize("before, after", ((0, 0), (3, 2), (9, 14), (92, 200)))
def test_mirrors_are_numpys(before, after):
    x = np.random.default_rng(0).normal(size=(2, 1, 5, 7))
    ours = mirrored(torch.from_numpy(x), (before, after), (after, before))
    pad = ((0, 0), (0, 0), (before, after), (after, before))
    assert (ours.numpy() == np.pad(x, pad, mode="reflect")).all()


def test_distances_by_brute_force():
    rng = np.random.default_rng(0)
    for shape in ((9, 14), (1, 12), (7, 7)):
        mask = rng.random(shape) < 0.08
        mask[0, 0] = True
        y, x = np.mgrid[:shape[0], :shape[1]]
        truth = np.min([np.hypot(y - a, x - b) for a, b in zip(*mask.nonzero())], 0)
        np.testing.assert_allclose(distance_to(mask, 20), truth)
        near = distance_to(mask, 3)
        np.testing.assert_allclose(near[truth <= 3], truth[truth <= 3])
        assert (near[truth > 3] >= 3).all()
    assert (distance_to(np.zeros((3, 4), bool), 2) >= 2).all()


@pytest.mark.parametrize("w0, sigma, class_weights", ((10.0, 5.0, (1.0, 1.0)), (3.0, 2.0, (0.5, 2.0))))
def test_border_weights_by_brute_force(w0, sigma, class_weights):
    instances = cells(40, 50).instances
    y, x = np.mgrid[:40, :50]
    distances = np.sort([np.min([np.hypot(y - a, x - b) for a, b in zip(*(instances == n).nonzero())], 0)
                         for n in np.unique(instances[instances > 0])], 0)
    gaps = w0 * np.exp(-((distances[0] + distances[1])**2) / (2 * sigma**2))
    truth = np.where(instances > 0, class_weights[1], class_weights[0] + gaps)
    np.testing.assert_allclose(border_weights(instances, w0, sigma, class_weights), truth, atol=1e-5)


def test_border_weights_without_gaps():
    assert (border_weights(np.zeros((5, 6), int)) == 1).all()
    assert (border_weights(np.ones((5, 6), int), class_weights=(1, 3)) == 3).all()
    with pytest.raises(ValueError, match="must be positive.*got 0"): border_weights(np.zeros((5, 6), int), sigma=0)


def test_cells_are_the_same_everywhere_and_apart():
    for i in range(3):
        scene = TouchingCells(count=3, seed=5).scene(i)
        assert all((a == b).all() for a, b in zip(scene, TouchingCells(count=9, seed=5).scene(i)))
        assert ((scene.instances > 0) == (scene.label == 1)).all() and scene.label.max() == 1
        assert scene.image.dtype == scene.label.dtype == np.uint8 and scene.instances.dtype == np.uint16
        for number in range(1, components(scene.label).max() + 1):  # no component holds two cells
            assert len(np.unique(scene.instances[components(scene.label) == number])) == 1
        assert (separated(scene.instances) == scene.instances).all()
    with pytest.raises(IndexError, match="0 to 2; got 3"): TouchingCells(count=3)[3]
    for wrong in ((0, 3), (8, 5)):
        with pytest.raises(ValueError, match="fewest and the most"): TouchingCells(cells=wrong)


def test_components_by_flooding():
    mask = np.random.default_rng(0).random((20, 25)) < 0.55
    numbers, seen = components(mask), np.zeros(mask.shape, int)
    for start in zip(*mask.nonzero()):
        if seen[start]: continue
        todo, count = [start], seen.max() + 1
        while todo:
            y, x = todo.pop()
            if not (0 <= y < 20 and 0 <= x < 25) or not mask[y, x] or seen[y, x]: continue
            seen[y, x] = count
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    pairs = set(zip(numbers[mask].tolist(), seen[mask].tolist()))
    assert len(pairs) == numbers.max() == seen.max() and (numbers[~mask] == 0).all()
    assert components(np.zeros((3, 4), bool)).max() == 0


def test_scores_of_cells():
    scene = cells(96, 128)
    assert (cell_scores(scene.label, scene.instances) == 1).all()
    assert (cell_scores(np.zeros_like(scene.label), scene.instances) == 0).all()
    assert len(cell_scores(scene.label, np.zeros_like(scene.instances))) == 0
    together = cell_scores(np.ones_like(scene.label), scene.instances)
    np.testing.assert_allclose(together, [(scene.instances == n).mean() for n in np.unique(scene.instances)[1:]])


@pytest.mark.parametrize("channels", ((), (3,)))
def test_elastic(channels):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, *channels), dtype=np.uint8)
    label = rng.integers(0, 5, (30, 40), dtype=np.uint8)
    label[3:6] = VOID
    same = elastic(image, label, np.random.default_rng(1), deviation=0)
    assert (same[0] == image).all() and (same[1] == label).all()
    bent = [elastic(image, label, np.random.default_rng(1)) for _ in range(2)]
    assert (bent[0][0] == bent[1][0]).all() and (bent[0][1] == bent[1][1]).all()
    assert bent[0][0].shape == image.shape and set(np.unique(bent[0][1])) <= {0, 1, 2, 3, 4, VOID}
    assert not (bent[0][1] == label).all()
    with pytest.raises(ValueError, match=r"label's size \(30, 40\); got \(30, 39\)"): elastic(image[:, 1:], label, rng)


def test_elastic_moves_image_and_label_alike():
    "A label that holds every pixel's number says where each pixel of the image came from."
    numbers = np.arange(15 * 17, dtype=np.uint8).reshape(15, 17)  # 0 to 254
    bent, where = elastic(numbers, numbers, np.random.default_rng(2), deviation=2)
    known = where != VOID
    steps = np.abs(bent.astype(int) - where)[known]  # bilinear against nearest: at most a step down and one across
    assert known.any() and not known.all() and steps.max() <= 9 + 1
