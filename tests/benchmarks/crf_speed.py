"""How fast the dense CRF is, set-up included, beside the authors' C++ code in the same run; and how its time grows.

    pip install pydensecrf2        # builds for about a minute; the package itself does not need it
    python tests/benchmarks/crf_speed.py        # writes results/crf_speed.json
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import statistics
import time

import numpy as np
import torch
from crf_reference import authors

from semseg_course.crf import dense_crf
from semseg_course.data.batches import to_input
from semseg_course.data.datasets import CamVid, find_camvid
from semseg_course.data.toy_streets import ToyStreets
from semseg_course.prediction import inference
from semseg_course.profiles import write_result
from semseg_course.zoo import pretrained

SEED, ROUNDS, THREADS, SIZE = 0, 7, 2, (360, 480)


def scene(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    "An image of CamVid, or a drawn street, and the probabilities of the ENet that comes with the package, (11, h, w)."
    data = CamVid(find_camvid(), "val") if find_camvid() and size == SIZE else ToyStreets(size, 1, SEED)
    image, network = data[0][0], pretrained("enet", "camvid")
    with inference(network): probabilities = network(to_input(image)[None]).softmax(1)
    return image, probabilities[0].numpy()


def with_classes(probabilities: np.ndarray, classes: int) -> np.ndarray:
    "The probabilities with further classes that get a thousandth each, or with the first ones only."
    more = np.full((max(0, classes - len(probabilities)), *probabilities.shape[1:]), 1e-3, np.float32)
    p = np.concatenate([probabilities[:classes], more])
    return np.ascontiguousarray(p / p.sum(0))


def in_turns(functions: dict, rounds: int) -> dict[str, tuple[float, float]]:
    "Median wall and processor seconds; the functions take turns, so that a slow moment meets all of them."
    times = {name: [] for name in functions}
    for function in functions.values(): function()
    for _ in range(rounds):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(map(statistics.median, zip(*each))) for name, each in times.items()}


def compare(image, probabilities, classes: int, iterations: int) -> dict:
    "A row: both times and how many labels agree."
    p = with_classes(probabilities, classes)
    ours, theirs = dense_crf(image, p, iterations=iterations), authors(image, p, iterations)
    seconds = in_turns({"ours": lambda: dense_crf(image, p, iterations=iterations),
                        "pydensecrf": lambda: authors(image, p, iterations)}, ROUNDS)
    row = {f"{name}_{kind}_s": round(value, 4) for name, both in seconds.items() for kind, value in zip(("wall", "cpu"), both)}
    return dict(classes=classes, iterations=iterations) | row | dict(
        wall_ratio=round(seconds["ours"][0] / seconds["pydensecrf"][0], 3),
        cpu_ratio=round(seconds["ours"][1] / seconds["pydensecrf"][1], 3),
        equal_labels=round(float((ours.argmax(0) == theirs.argmax(0)).mean()), 5))


def growth() -> list[dict]:
    "Seconds for more pixels and for more classes."
    rows = []
    for size, classes in [((45, 60), 12), ((90, 120), 12), ((180, 240), 12), ((360, 480), 12), ((720, 960), 12),
                          ((360, 480), 2), ((360, 480), 6), ((360, 480), 24), ((360, 480), 48)]:
        image, p = scene(size)
        seconds = in_turns({"ours": lambda: dense_crf(image, with_classes(p, classes))}, 3)["ours"]
        rows.append(dict(height=size[0], width=size[1], classes=classes, wall_s=round(seconds[0], 4), cpu_s=round(seconds[1], 4)))
    return rows


def main() -> dict:
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    image, p = scene()
    rows = [compare(image, p, classes, iterations) for classes in (12, 21) for iterations in (5, 10)]
    figures = dict(size=list(SIZE), threads=THREADS, rounds=ROUNDS, image="CamVid" if find_camvid() else "drawn",
                   rows=rows, growth=growth())
    write_result("crf_speed", figures, "python tests/benchmarks/crf_speed.py", time.perf_counter() - start, SEED)
    return figures


if __name__ == "__main__":
    for name, value in main().items():
        for line in value if isinstance(value, list) and isinstance(value[0], dict) else [value]: print(name, line)
