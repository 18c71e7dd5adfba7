"""How fast class maximum and confusion matrix are, beside torch.argmax and torchmetrics in the same run.

    python tests/benchmarks/metrics_speed.py        # writes results/metrics_speed.json
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import statistics
import time
import warnings

import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from semseg_course.data.labels import VOID
from semseg_course.metrics import class_maximum, confusion_matrix
from semseg_course.profiles import write_result

N, CLASSES, HEIGHT, WIDTH = SHAPE = 8, 12, 360, 480
SEED, ROUNDS, THREADS = 0, 15, 2


def measure(functions: dict) -> dict:
    "Median seconds of each function; they take turns, so that a slow moment of the machine meets all of them."
    times = {name: [] for name in functions}
    for name, function in functions.items(): function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> dict:
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    scores = torch.randn(SHAPE)
    target = torch.randint(0, CLASSES, (N, HEIGHT, WIDTH), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.04] = VOID  # as much void as in CamVid
    predictions = class_maximum(scores)
    wide_predictions, wide_target = predictions.long(), target.long()
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID)

    def torchmetrics(p, t):
        theirs.reset()
        theirs.update(p, t)
        return theirs.compute()

    assert (predictions == scores.argmax(1)).all()
    assert (torchmetrics(wide_predictions, wide_target).numpy() == confusion_matrix(predictions, target, CLASSES)).all()
    seconds = measure({
        "argmax": lambda: torch.argmax(scores, 1),
        "scores_to_matrix": lambda: confusion_matrix(class_maximum(scores), target, CLASSES),
        "class_maximum": lambda: class_maximum(scores),
        "matrix_uint8": lambda: confusion_matrix(predictions, target, CLASSES),
        "matrix_int64": lambda: confusion_matrix(wide_predictions, wide_target, CLASSES),
        "torchmetrics_int64": lambda: torchmetrics(wide_predictions, wide_target),
        "torchmetrics_uint8": lambda: torchmetrics(predictions, target),
    })
    figures = {f"{name}_ms": round(1e3 * value, 3) for name, value in seconds.items()}
    figures |= {
        "shape": list(SHAPE), "threads": THREADS, "rounds": ROUNDS,
        "argmax_over_scores_to_matrix": round(seconds["argmax"] / seconds["scores_to_matrix"], 1),
        "torchmetrics_int64_over_matrix_uint8": round(seconds["torchmetrics_int64"] / seconds["matrix_uint8"], 1),
        "torchmetrics_uint8_over_matrix_uint8": round(seconds["torchmetrics_uint8"] / seconds["matrix_uint8"], 1),
        "torchmetrics_int64_over_matrix_int64": round(seconds["torchmetrics_int64"] / seconds["matrix_int64"], 1),
    }
    write_result("metrics_speed", figures, command="python tests/benchmarks/metrics_speed.py",
                 seconds=time.perf_counter() - start, seed=SEED)
    return figures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, value in main().items(): print(f"{name:40} {value}")
