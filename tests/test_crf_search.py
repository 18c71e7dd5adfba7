"""The search for a CRF's parameters finds what is planted, may answer "no CRF", and repeats itself; its tool."""
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semseg_course.crf import KERNELS, Kernel, dense_crf
from semseg_course.crf_search import DEFAULTS, GRID, NO_CRF, crf_matrix, crf_settings, search_crf
from semseg_course.data.labels import VOID
from semseg_course.metrics import confusion_matrix, mean_iou

ROOT = Path(__file__).parent.parent
NO = dict(kernels=(), iterations=0)


def stripes(seed=0, noise=0.35, classes=3):
    "Stripes of clear colours; probabilities that are right on the whole and wrong at single pixels."
    random = np.random.default_rng(seed)
    label = (np.arange(30) // 10)[None].repeat(20, 0).astype(np.uint8) % classes
    image = np.stack([label * 60, 200 - label * 60, label * 0 + 90], 2).astype(np.uint8)
    seen = np.where(random.random(label.shape) < noise, random.integers(0, classes, label.shape), label)
    p = np.where(np.arange(classes)[:, None, None] == seen, 0.6, 0.4 / (classes - 1))
    label[0, :5] = VOID
    return image, p, label


def data(count=3, **options):
    "Images, probabilities and labels of a small problem."
    return tuple(zip(*(stripes(seed, **options) for seed in range(count))))


def poles():
    "Single right columns in a grey image, where any smoothing is an error."
    label = np.zeros((20, 30), np.uint8)
    label[:, 4::6] = 1
    p = np.where(np.arange(2)[:, None, None] == label, 0.7, 0.3)
    return [np.full((20, 30, 3), 128, np.uint8)], [p], [label]


def test_six_numbers_are_the_arguments_of_the_crf():
    assert crf_settings(**DEFAULTS) == crf_settings() == dict(kernels=KERNELS, iterations=5)
    assert crf_settings(**NO_CRF) == crf_settings(smooth_compat=0, colour_compat=0) == NO
    assert crf_settings(colour_compat=0) == dict(kernels=(Kernel(3, 3),), iterations=5)
    image, p, _ = stripes()
    assert (dense_crf(image, p, **crf_settings()) == dense_crf(image, p)).all()
    with pytest.raises(TypeError): crf_settings(sxy=3)


def test_one_matrix_over_all_images_without_void():
    images, beliefs, labels = data()
    expected = sum(confusion_matrix(p.argmax(0), label, 3) for p, label in zip(beliefs, labels))
    for settings in (None, NO, crf_settings(**NO_CRF)):
        assert (crf_matrix(images, beliefs, labels, 3, settings) == expected).all()
    after = [dense_crf(image, p).argmax(0) for image, p in zip(images, beliefs)]
    expected = sum(confusion_matrix(answer, label, 3) for answer, label in zip(after, labels))
    assert (crf_matrix(images, beliefs, labels, 3, crf_settings()) == expected).all()
    assert expected.sum() == sum((label != VOID).sum() for label in labels)


def test_finds_the_planted_best():
    "Only a colour kernel that tells the stripes apart and is loud enough removes the noise."
    images, beliefs, labels = data()
    grid = dict(smooth_compat=(0, 50), smooth_sxy=(1, 20), colour_compat=(0.01, 10), colour_sxy=(0.3, 10),
                colour_srgb=(1000, 5), iterations=(0, 5))
    every = [dict(zip(grid, values)) for values in np.array(np.meshgrid(*grid.values())).reshape(6, -1).T.tolist()]
    for values in every: values["iterations"] = int(values["iterations"])
    best = max(mean_iou(crf_matrix(images, beliefs, labels, 3, crf_settings(**values))) for values in every)
    assert best > 0.99 > mean_iou(crf_matrix(images, beliefs, labels, 3)) + 0.2
    start = dict(smooth_compat=0, smooth_sxy=1, colour_compat=0.01, colour_sxy=0.3, colour_srgb=1000, iterations=5)
    for seed in range(3):
        found = search_crf(images, beliefs, labels, 3, grid=grid, start=start, evaluations=64, explore=0.2, seed=seed)
        assert found.miou == pytest.approx(best)
        assert {name: found.values[name] for name in ("colour_compat", "colour_sxy", "colour_srgb")} == dict(
            colour_compat=10, colour_sxy=10, colour_srgb=5)
        again = [dense_crf(i, p, **found.settings).argmax(0)[None] for i, p in zip(images, beliefs)]
        assert mean_iou(sum(confusion_matrix(a, label[None], 3) for a, label in zip(again, labels))) == found.miou


def test_climbs_from_the_start_without_draws():
    images, beliefs, labels = data(1)
    grid = {name: (value,) for name, value in DEFAULTS.items()} | dict(colour_srgb=(13, 500))
    start = DEFAULTS | dict(colour_srgb=500)
    found = search_crf(images, beliefs, labels, 3, grid=grid, start=start, evaluations=9, explore=0)
    assert found.values["colour_srgb"] == 13 and len(found.tried) == 3


def test_keeps_no_crf_when_any_can_only_hurt():
    images, beliefs, labels = poles()
    for seed in range(2):
        grid = GRID | dict(smooth_compat=(3, 6), smooth_sxy=(2, 5))
        found = search_crf(images, beliefs, labels, 2, grid=grid, evaluations=10, seed=seed)
        assert found.settings == NO and found.miou == 1
        assert found.tried[0]["miou"] == 1 and found.tried[1]["miou"] < 1
    already = [np.eye(3)[np.minimum(label, 2)].transpose(2, 0, 1) for label in data()[2]]
    assert search_crf(data()[0], already, data()[2], 3, evaluations=4).settings == NO  # a tie goes to what came first


def test_same_seed_same_answer_and_the_limit_holds():
    first, second, other = (search_crf(*data(2), 3, evaluations=12, seed=seed) for seed in (3, 3, 4))
    assert first == second and first.tried != other.tried
    assert len(first.tried) == 12
    assert first.tried[0] == NO_CRF | dict(miou=first.tried[0]["miou"])
    assert first.tried[1] == DEFAULTS | dict(miou=first.tried[1]["miou"])
    assert len({str(crf_settings(**{name: row[name] for name in DEFAULTS})) for row in first.tried}) == 12
    assert first.miou == max(row["miou"] for row in first.tried)
    json.dumps(first.tried)  # plain numbers


def test_tensors_and_a_small_grid():
    images, beliefs, labels = data(2)
    grid = {name: (value,) for name, value in DEFAULTS.items()}
    arrays = search_crf(images, beliefs, labels, 3, grid=grid)
    tensors = search_crf(images, [torch.from_numpy(p) for p in beliefs], labels, 3, grid=grid)
    assert len(arrays.tried) == 2 and tensors.values == arrays.values
    assert tensors.miou == pytest.approx(arrays.miou)


@pytest.mark.parametrize("change, words", [
    (dict(images=()), "equally many, at least one; got 0, 2 and 2"),
    (dict(labels=data(1)[2]), "got 2, 2 and 1"),
    (dict(num_classes=4), r"probabilities\[0\] must be \(4, h, w\)"),
    (dict(labels=[label[1:] for label in data(2)[2]]), r"height and width \(19, 30\); got \(3, 20, 30\)"),
    (dict(evaluations=1), "evaluations must be 2 or more"),
    (dict(grid=dict(sxy=(3,))), "grid must name smooth_compat"),
    (dict(start=dict(iterations=3)), "start must name smooth_compat"),
    (dict(grid=GRID | dict(colour_sxy=())), "got none of colour_sxy"),
    (dict(grid=GRID | dict(colour_srgb=(3, 0))), "colour_srgb must be positive; got 0"),
    (dict(grid=GRID | dict(iterations=(-1,))), "iterations must be 0 or more; got -1"),
    (dict(start=DEFAULTS | dict(smooth_sxy=-1)), "start smooth_sxy must be positive; got -1"),
    (dict(labels=[np.full((20, 30), VOID, np.uint8)] * 2), "all of them are void"),
    (dict(probabilities=[10 * p for p in data(2)[1]]), "sum to 1"),
    (dict(images=[image / 255 for image in data(2)[0]]), "image must be uint8"),
])
def test_errors(change, words):
    images, beliefs, labels = data(2)
    arguments = dict(images=images, probabilities=beliefs, labels=labels, num_classes=3, evaluations=4) | change
    with pytest.raises(ValueError, match=words): search_crf(**arguments)


def call(main, *arguments):
    "A program's `main` with these arguments on its command line."
    before, sys.argv = sys.argv, ["program", *map(str, arguments)]
    try: main()
    except SystemExit as done: assert not done.code
    finally: sys.argv = before


def tool(*arguments):
    spec = importlib.util.spec_from_file_location("camvid_crf", ROOT / "tools/camvid_crf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    call(module.main, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of one epoch on a few drawn streets."
    from semseg_course.cli import main
    folder = tmp_path_factory.mktemp("runs") / "toy"
    command = "train --data toy --model small --width 0.25 --size 32x48 --scenes 20 --epochs 1 --workers 0 --run"
    call(main, *command.split(), folder)
    return folder


def test_tool_scores_any_run_and_keeps_those_before(run, tmp_path, capsys):
    options = "--name", "toy_crf", "--folder", tmp_path, "--search-images", 3, "--evaluations", 5
    tool(run, *options)
    other = tmp_path / "copy"
    other.symlink_to(run)
    tool(other, *options, "--limit", 1)
    assert "copy: mIoU none" in capsys.readouterr().out
    kept = json.loads((tmp_path / "toy_crf.json").read_text())
    runs = kept["figures"]["runs"]
    assert kept["command"].startswith("python tools/camvid_crf.py runs/toy runs/copy --name toy_crf")
    assert set(runs) == {"toy", "copy"} and (runs["toy"]["images"], runs["copy"]["images"]) == (2, 1)
    assert kept["seconds"] == pytest.approx(sum(r["seconds"] for r in runs.values()), abs=0.02)
    first = runs["toy"]
    assert first["data"] == "toy" and first["split"] == "val" and first["search"]["split"] == "train"
    assert "trained on the images of the search" in first["search"]["note"]
    assert len(first["search"]["images"]) == 3 and len(first["search"]["tried"]) == 5
    assert first["rows"]["searched"]["values"] == first["search"]["values"]
    assert first["search"]["miou"] >= first["search"]["tried"][0]["miou"]
    for way in ("none", "default", "searched"):
        row = first["rows"][way]
        assert 0 <= row["miou"] <= 1 and [*row["trimap"]] == [str(width) for width in range(1, 11)]
        assert set(row["boundary"]) == {"1", "3"} and len(row["iou"]) == 11
        assert row["wall_seconds"] >= 0 and row["cpu_seconds"] >= 0


def test_tool_without_a_crf_scores_as_validation_does(run, tmp_path):
    from semseg_course.cli import open_data, open_run
    from semseg_course.training import evaluate
    tool(run, "--name", "toy_crf", "--folder", tmp_path, "--search-images", 2, "--evaluations", 2)
    network, options, _ = open_run(run)
    scores = evaluate(network, open_data(options, "val"))
    row = json.loads((tmp_path / "toy_crf.json").read_text())["figures"]["runs"]["toy"]["rows"]["none"]
    assert row["miou"] == pytest.approx(scores["miou"], abs=1e-6)
    assert row["pixel_accuracy"] == pytest.approx(scores["pixel_accuracy"], abs=1e-6)


def test_tool_refuses_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"): tool(tmp_path, "--folder", tmp_path)
    assert not (tmp_path / "camvid_crf.json").exists()


def test_kept_figures_are_whole():
    path = ROOT / "results/camvid_crf.json"
    if not path.is_file(): pytest.skip("results/camvid_crf.json is not there")
    for name, record in json.loads(path.read_text())["figures"]["runs"].items():
        rows = record["rows"]
        assert record["images"] == 101 and record["size"] == [360, 480], name
        assert rows["none"]["values"]["iterations"] == 0 and rows["default"]["values"] == DEFAULTS
        own = ROOT / f"results/{name}.json"
        if own.is_file():
            assert rows["none"]["miou"] == pytest.approx(json.loads(own.read_text())["figures"]["miou"], abs=2e-3), name
