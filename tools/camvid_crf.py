"""Score trained networks without a CRF, with the usual one, and with one that was searched for on training images.

    python tools/camvid_crf.py runs/camvid_fcn32s runs/camvid_fcn8s       # adds to results/camvid_crf.json, run by run
    python tools/camvid_crf.py runs/other --name other_crf --limit 10     # elsewhere, with the first 10 images
"""
import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from semseg_course.boundaries import BoundaryIoU, TrimapScores
from semseg_course.cli import DRAWN, open_data, open_run
from semseg_course.crf import dense_crf
from semseg_course.crf_search import DEFAULTS, GRID, crf_settings, search_crf
from semseg_course.losses import spatial_softmax
from semseg_course.metrics import ConfusionMatrix, class_maximum, iou, mean_iou, pixel_accuracy
from semseg_course.profiles import project_root, read_json, write_result
from semseg_course.training import image_scores

NOTE = ("The network was trained on the images of the search. It is surer and better there than on new images, "
        "so the search sees surer probabilities than the CRF will meet, and its mIoU flatters.")
WIDE = GRID | dict(colour_srgb=(1, 2, *GRID["colour_srgb"]))  # so that no search ends at the edge of its grid


def size_for(options: dict): return None if options["data"] in DRAWN else options["size"]


@torch.no_grad()
def probabilities(network, image, size) -> torch.Tensor:
    "What the network believes of one image: (classes, h, w), on the CPU."
    return spatial_softmax(image_scores(network, image, size).float().cpu())[0]


class Scores:
    "All that is measured of one way to label: with or without a CRF."
    def __init__(self, num_classes: int, shape: tuple):
        self.matrix, self.trimap = ConfusionMatrix(num_classes), TrimapScores(num_classes)
        wide = max(1, round(0.02 * math.hypot(*shape)))  # 2 % of the diagonal, as the paper has it
        self.bands = {width: BoundaryIoU(num_classes, width) for width in sorted({3, wide})}
        self.wall, self.cpu = [], []

    def add(self, image, p, label, settings):
        wall, cpu = time.perf_counter(), time.process_time()
        found = class_maximum((dense_crf(image, p, **settings) if settings["iterations"] else p)[None])
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        for score in (self.matrix, self.trimap, *self.bands.values()): score.update(found, label[None])

    def figures(self, names) -> dict:
        matrix = self.matrix.matrix
        classes = {name: None if v != v else float(v) for name, v in zip(names, iou(matrix))}  # JSON has no nan
        return dict(miou=float(mean_iou(matrix)), pixel_accuracy=float(pixel_accuracy(matrix)), iou=classes,
                    trimap={width: float(v) for width, v in self.trimap.mean_iou().items()},
                    boundary={width: float(bands.mean_iou()) for width, bands in self.bands.items()},
                    wall_seconds=float(np.median(self.wall)), cpu_seconds=float(np.median(self.cpu)))


def searched(network, options: dict, images: int, evaluations: int, seed: int) -> tuple[dict, dict]:
    "The best settings on training images spread evenly over their set, and the record of the search."
    start, dataset = time.perf_counter(), open_data(options, "train")
    chosen = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, images)})
    images, labels = zip(*(dataset[i] for i in chosen))
    beliefs = [probabilities(network, image, size_for(options)) for image in images]
    found = search_crf(images, beliefs, labels, len(dataset.classes), grid=WIDE, evaluations=evaluations, seed=seed)
    names = [dataset.names[i] if hasattr(dataset, "names") else i for i in chosen]
    about = dict(images=names, split="train", note=NOTE, evaluations=len(found.tried), seed=seed, miou=found.miou)
    seconds = round(time.perf_counter() - start, 2)
    return found.values, dict(about, values=found.values, tried=found.tried, seconds=seconds)


def measure(run: Path, images: int, evaluations: int, seed: int, limit: int) -> dict:
    "All figures of one run."
    start = time.perf_counter()
    network, options, classes = open_run(run)
    values, search = searched(network, options, images, evaluations, seed)
    dataset = open_data(options, "val")
    count = min(limit or len(dataset), len(dataset))
    ways = dict(none=DEFAULTS | dict(iterations=0), default=DEFAULTS, searched=values)
    scores = {way: Scores(len(classes), dataset[0][1].shape) for way in ways}
    for image, label in (dataset[i] for i in range(count)):
        p = probabilities(network, image, size_for(options))
        for way, score in scores.items(): score.add(image, p, label, crf_settings(**ways[way]))
    rows = {way: dict(values=ways[way], **score.figures(classes.names)) for way, score in scores.items()}
    about = dict(data=options["data"], model=options["model"], width=options["width"], split="val", images=count)
    return about | dict(size=list(dataset[0][1].shape), threads=torch.get_num_threads(), search=search, rows=rows,
                        seconds=round(time.perf_counter() - start, 2))


def before(name: str, folder: Path) -> dict:
    "The runs that are there already."
    path = folder / f"{name}.json"
    return read_json(path)["figures"]["runs"] if path.is_file() else {}


def keep(name: str, folder: Path, runs: dict, seed: int, options: list[str]):
    "Write all runs, those of earlier calls too, with the command that makes them all."
    command = " ".join(["python tools/camvid_crf.py", *(f"runs/{run}" for run in runs), *options])
    ways = dict(none="the network alone", default="the dense CRF with its default parameters",
                searched="the dense CRF with the parameters that a search on training images found")
    seconds = sum(run["seconds"] for run in runs.values())
    return write_result(name, dict(rows=ways, runs=runs), command, seconds, seed, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that `semseg-course train` made")
    parser.add_argument("--name", default="camvid_crf", help="the result's name")
    parser.add_argument("--folder", type=Path, help="where the result is kept; results/ if not given")
    parser.add_argument("--search-images", type=int, default=12, help="training images that the search looks at")
    parser.add_argument("--evaluations", type=int, default=30, help="settings that the search tries")
    parser.add_argument("--limit", type=int, default=0, help="validation images; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder or project_root() / "results"
    options = [f"--{key.replace('_', '-')} {value}" for key, value in vars(arguments).items()
               if key not in ("runs", "folder") and value != parser.get_default(key)]
    for run in arguments.runs:
        figures = measure(run, arguments.search_images, arguments.evaluations, arguments.seed, arguments.limit)
        runs = before(arguments.name, folder) | {run.name: figures}
        path = keep(arguments.name, folder, runs, arguments.seed, options)
        scores = ", ".join(f"{way} {row['miou']:.4f}" for way, row in figures["rows"].items())
        print(f"{run.name}: mIoU {scores}; {figures['seconds']:.0f} s; wrote {path}", flush=True)


if __name__ == "__main__": main()
