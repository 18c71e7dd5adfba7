"""Time of the CRF layer, forward and with its gradients, beside CRF-as-RNN's own PyTorch version in the same run.

    git clone https://github.com/sadeepj/crfasrnn_pytorch
    cd crfasrnn_pytorch/crfasrnn && python setup.py build_ext --inplace && cd -        # a compiler, half a minute
    python tests/benchmarks/crf_rnn_speed.py crfasrnn_pytorch        # writes results/crf_rnn_speed.json

Without the folder it measures ours alone, beside the figure kept in ../shared/reference/speed.json where there is one.
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from semseg_course.crf import KERNELS, Kernel
from semseg_course.crf_rnn import CRFLayer
from semseg_course.data.datasets import CamVid, find_camvid
from semseg_course.data.toy_streets import ToyStreets
from semseg_course.profiles import project_root, write_result

SEED, ROUNDS, THREADS, SIZE, CLASSES, ITERATIONS = 0, 3, 2, (360, 480), (12, 21), (5, 10)
DEFAULTS = {"ours": KERNELS, "crfasrnn_pytorch": (Kernel(compat=3, sxy=3), Kernel(compat=5, sxy=160, srgb=3))}


def authors(folder: Path, classes: int, iterations: int, kernels: tuple[Kernel, Kernel]) -> torch.nn.Module:
    "The authors' layer with the same kernels."
    if not list(folder.glob("crfasrnn/permuto_cpp*")): raise SystemExit(f"{folder} must hold crfasrnn/permuto_cpp, built.")
    if str(folder) not in sys.path: sys.path[:0] = [str(folder), str(folder / "crfasrnn")]
    from crfasrnn.crfrnn import CrfRnn
    from crfasrnn.params import DenseCRFParams
    near, wide = kernels
    return CrfRnn(classes, iterations, DenseCRFParams(wide.sxy, wide.srgb, near.sxy, near.compat, wide.compat))


def steps(layer, image, scores, target) -> dict:
    "Both things that are timed, as functions that return what they computed."
    order = (lambda: layer(scores, image)) if isinstance(layer, CRFLayer) else lambda: layer(image, scores)

    def forward():
        with torch.no_grad(): return order()

    def backward():
        scores.grad = None
        functional.cross_entropy(order(), target).backward()
        return scores.grad

    return {"forward": forward, "backward": backward}


def in_turns(functions: dict) -> dict[str, dict[str, float]]:
    "Median wall and processor seconds; the functions take turns, so that a slow moment meets all of them."
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: dict(zip(("wall_s", "cpu_s"), (round(statistics.median(t), 3) for t in zip(*each))))
            for name, each in times.items()}


def kept(classes: int, iterations: int) -> float | None:
    "Seconds of the authors' forward as measured before, or None."
    path = project_root().parent / "shared/reference/speed.json"
    if not path.is_file(): return None
    figures = json.loads(path.read_text())["dense_crf_360x480"]["crf_as_rnn_layer_forward"]
    return figures.get(f"{classes} classes, {iterations} steps")


def agreement(ours: dict, theirs: dict) -> dict[str, float]:
    "Share of pixels with equal labels, and the cosine between both gradients of the scores."
    labels = (ours["forward"]().argmax(1) == theirs["forward"]().argmax(1)).float().mean().item()
    similar = functional.cosine_similarity(*(f["backward"]().double().flatten() for f in (ours, theirs)), 0).item()
    return dict(equal_labels=round(labels, 6), gradient_cosine=round(similar, 6))


def compare(image, classes: int, iterations: int, whose: str, folder: Path | None) -> dict:
    "A row of times, ratios and, beside the authors' code, how far labels and gradients agree."
    torch.manual_seed(SEED)
    scores = functional.interpolate(4 * torch.randn(1, classes, 23, 30), size=SIZE, mode="bilinear").requires_grad_()
    target = scores.detach().argmax(1)
    kernels, row = DEFAULTS[whose], dict(kernels=whose, classes=classes, iterations=iterations)
    ours = steps(CRFLayer(classes, kernels, iterations, normalization="after"), image, scores, target)
    if folder is None:
        row |= {"ours": in_turns(ours), "kept_forward_s": kept(classes, iterations)}
        return row | ({"forward_ratio": round(row["ours"]["forward"]["wall_s"] / row["kept_forward_s"], 3)}
                      if row["kept_forward_s"] else {})
    theirs = steps(authors(folder, classes, iterations, kernels), image.permute(0, 3, 1, 2).float(), scores, target)
    near, wide = kernels
    through_lattice = CRFLayer(classes, (Kernel(near.compat, precision=np.eye(2) / near.sxy**2), wide), iterations,
                               normalization="after")  # the position kernel, too, as theirs
    row |= agreement(ours, theirs) | {f"{name}_through_lattice": value for name, value in
                                      agreement(steps(through_lattice, image, scores, target), theirs).items()}
    times = in_turns({("ours", k): f for k, f in ours.items()} | {("crfasrnn_pytorch", k): f for k, f in theirs.items()})
    row |= {who: {k: times[who, k] for k in ours} for who in ("ours", "crfasrnn_pytorch")}
    ratios = {f"{k}_{kind}_ratio": round(times["ours", k][f"{kind}_s"] / times["crfasrnn_pytorch", k][f"{kind}_s"], 3)
              for k in ours for kind in ("wall", "cpu")}
    return row | ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a built checkout of sadeepj/crfasrnn_pytorch")
    folder, started, rows = parser.parse_args().folder, time.perf_counter(), []
    torch.set_num_threads(THREADS)
    data = CamVid(find_camvid(), "val") if find_camvid() else ToyStreets(SIZE, 1, SEED)
    image = torch.from_numpy(data[0][0].copy())[None]
    for whose, classes, iterations in itertools.product(DEFAULTS, CLASSES, ITERATIONS):
        rows.append(compare(image, classes, iterations, whose, folder and folder.resolve()))
        print(rows[-1], flush=True)
    about = dict(reference="sadeepj/crfasrnn_pytorch, same run" if folder else "kept in shared/reference/speed.json",
                 image="CamVid" if find_camvid() else "Toy Streets", size=SIZE, threads=THREADS, rows=rows)
    write_result("crf_rnn_speed", about, " ".join(["python tests/benchmarks/crf_rnn_speed.py"] + [folder.name] * bool(folder)),
                 time.perf_counter() - started, SEED)


if __name__ == "__main__": main()
