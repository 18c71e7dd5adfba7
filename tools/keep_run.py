"""Keep the figures of a finished run under results/, and a picture of its predictions under images/.

    python tools/keep_run.py runs/camvid_small camvid_small --picture images/06_camvid_predictions.jpg
    python tools/keep_run.py runs/camvid_enet camvid_enet --weights       # also in the package, in half precision
"""
import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from semseg_course.boundaries import BoundaryIoU, TrimapScores
from semseg_course.checkpoints import save_tensors
from semseg_course.cli import DRAWN, _defaults, open_data, open_run
from semseg_course.data.labels import show
from semseg_course.metrics import class_maximum
from semseg_course.profiles import read_json, write_result
from semseg_course.training import evaluate, image_scores

LEAVE_OUT = ("run", "root", "resume", "processes")  # where it lay, and how many computed it
TOY = ("scenes", "difficulty")  # without a meaning for data that are not drawn


def command_line(options: dict, defaults: dict) -> str:
    "The command that makes the run again: every option that is not at its default."
    left_out = LEAVE_OUT if options["data"] in DRAWN else LEAVE_OUT + TOY
    given = [written(name.replace("_", "-"), value) for name, value in options.items()
             if name not in left_out and value != defaults.get(name)]
    return " ".join(["semseg-course train", *given])


def written(name: str, value) -> str:
    "An option as it is typed: a switch, a size, a range or a plain value."
    if isinstance(value, bool): return f"--{name}" if value else f"--no-{name}"
    if not isinstance(value, tuple): return f"--{name} {value}"
    return f"--{name} {('x' if all(isinstance(v, int) for v in value) else ',').join(map(str, value))}"


@torch.no_grad()
def near_edges(network, dataset, size) -> dict:
    "Mean IoU within 1 to 10 pixels of the label's edges, and boundary IoU with bands of 2 % of the diagonal."
    trimap = TrimapScores(len(dataset.classes))
    width = max(1, round(0.02 * math.hypot(*dataset[0][1].shape)))
    bands = BoundaryIoU(len(dataset.classes), width)
    for image, label in (dataset[i] for i in range(len(dataset))):
        found = class_maximum(image_scores(network, image, size).cpu())
        for score in (trimap, bands): score.update(found, label[None])
    return dict(trimap=trimap.mean_iou(), boundary=dict(width=width, miou=bands.mean_iou()))


@torch.no_grad()
def picture(network, dataset, size, images: int = 3):
    "Rows of image, label and prediction, evenly spread over the data set, with a legend."
    shown = []
    for i in np.linspace(0, len(dataset) - 1, images).astype(int):
        image, label = dataset[i]
        found = np.asarray(class_maximum(image_scores(network, image, size).cpu()))[0]
        shown += [image, label, found]
    titles = ["image", "label", "prediction"] + [""] * (len(shown) - 3)
    return show(shown, titles, columns=3, classes=dataset.classes, width=9)


def file_facts(path: Path) -> dict:
    "What tells a file of weights from any other."
    return dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size)


def keep_weights(network, dataset, run: Path, options: dict, name: str) -> dict:
    "Write the network's weights in half precision into the package; score what was written."
    settings = read_json(run / "settings.json")
    about = dict(options={k: v for k, v in settings["options"].items() if k not in LEAVE_OUT}, classes=settings["classes"])
    half = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    if wrong := [n for n, t in half.items() if not t.isfinite().all()]:
        raise ValueError(f"{wrong[0]} must fit half precision; it has numbers beyond 65504. Keep this network elsewhere.")
    network.load_state_dict(half)
    scores = evaluate(network, dataset, options["size"])
    about |= dict(command=command_line(options, _defaults()), split="val", miou=scores["miou"])
    path = Path("semseg_course/weights") / f"{name}.safetensors"
    save_tensors(path, half, about)
    return dict(miou=scores["miou"], **file_facts(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("name", help="the result's name")
    parser.add_argument("--picture", type=Path, help="where to keep rows of image, label and prediction")
    parser.add_argument("--weights", action="store_true", help="keep half-precision weights in the package, too")
    arguments = parser.parse_args()
    network, options, classes = open_run(arguments.run)
    dataset = open_data(options, "val")
    size = None if options["data"] in DRAWN else options["size"]
    scores = evaluate(network, dataset, size)
    history = [json.loads(line) for line in (arguments.run / "log.jsonl").read_text().splitlines()]
    figures = dict(
        split="val", images=len(dataset), epochs=len(history), parameters=sum(p.numel() for p in network.parameters()),
        **{name: scores[name] for name in ("loss", "miou", "pixel_accuracy", "mean_accuracy")},
        iou={name: None if v != v else v for name, v in zip(classes.names, scores["iou"])},  # JSON has no nan
        **near_edges(network, dataset, size), matrix=scores["matrix"], weights=file_facts(arguments.run / "best.safetensors"),
        history=[{k: r[k] for k in ("epoch", "loss", "val_loss", "miou", "seconds", "images_per_second") if k in r}
                 for r in history])
    seconds = sum(r["seconds"] for r in history)
    command = command_line(options, _defaults())
    if arguments.picture: picture(network, dataset, size).savefig(arguments.picture, dpi=90)
    if arguments.weights: figures["half_precision"] = keep_weights(network, dataset, arguments.run, options, arguments.name)
    path = write_result(arguments.name, figures, command, seconds, options["seed"])
    print(f"wrote {path}: mIoU {scores['miou']:.4f}")


if __name__ == "__main__": main()
