"""Time and memory of FCN beside the best known implementation, both in one process, in turns.

    git clone https://github.com/wkentaro/pytorch-fcn
    python tests/benchmarks/fcn_speed.py pytorch-fcn        # writes results/fcn_speed.json

Of the reference only the modules of its three networks are loaded; its other dependencies are not needed for that.
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import argparse
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from semseg_course.profiles import write_result
from semseg_course.speed import apart, calibration, in_turns, peak_mib, steps
from semseg_course.zoo import build

CLASSES, SIZE, REPEATS, SEED, THREADS = 12, (360, 480), 3, 0, 2
REFERENCE = {32: ("fcn32s", "FCN32s"), 16: ("fcn16s", "FCN16s"), 8: ("fcn8s", "FCN8s")}
OURS = {32: ("fcn32s_vgg16", "fcn32s"), 16: ("fcn16s_vgg16", "fcn16s"), 8: ("fcn8s_vgg16", "fcn8s")}


def reference(checkout: str, stride: int):
    "A network of the checkout, without the packages that only its downloads and trainings need."
    folder = Path(checkout).resolve() / "torchfcn"
    if not folder.is_dir(): raise SystemExit(f"{checkout} must be a checkout of wkentaro/pytorch-fcn.")
    for name, path in (("fcn", None), ("torchvision", None), ("torchfcn", folder), ("torchfcn.models", folder / "models")):
        module = sys.modules.setdefault(name, ModuleType(name))
        if path: module.__path__ = [str(path)]
    module, name = REFERENCE[stride]
    network = getattr(importlib.import_module(f"torchfcn.models.{module}"), name)(CLASSES)
    for parameter in network.parameters(): torch.nn.init.normal_(parameter, std=0.01)
    return network


def named(name: str, checkout: str, stride: int):
    return reference(checkout, stride) if name == "reference" else build(name, CLASSES)


def plain_steps(network):
    "As the reference is used: in the memory format that torch gives it."
    image, target = torch.randn(1, 3, *SIZE), torch.randint(0, CLASSES, (1, *SIZE))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    @torch.no_grad()
    def forward():
        network.eval()(image)

    def train_step():
        torch.nn.functional.cross_entropy(network.train()(image), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return dict(forward=forward, train_step=train_step)


def tasks(name: str, checkout: str, stride: int) -> dict:
    network = named(name, checkout, stride)
    return plain_steps(network) if name == "reference" else steps(network, torch.randn(1, 3, *SIZE), CLASSES)


def peak(name: str, checkout: str, stride: int, kind: str) -> float:
    "Peak memory of a process that did nothing else."
    task = tasks(name, checkout, stride)[kind]
    for _ in range(3): task()
    return peak_mib()


def compare(checkout: str, stride: int, kind: str) -> dict[str, float]:
    "Median processor seconds of the reference, the authors' form, the compact form and the unit."
    torch.manual_seed(SEED)
    names = ("reference", *OURS[stride])
    return in_turns(dict(unit=calibration()) | {name: tasks(name, checkout, stride)[kind] for name in names}, REPEATS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="a checkout of wkentaro/pytorch-fcn")
    parser.add_argument("--strides", type=int, nargs="+", default=list(OURS))
    options = parser.parse_args()
    start, networks = time.perf_counter(), {}
    for stride in options.strides:
        seconds = {kind: apart(compare, options.checkout, stride, kind, threads=THREADS) for kind in ("forward", "train_step")}
        peaks = {(name, kind): apart(peak, name, options.checkout, stride, kind, threads=THREADS)
                 for name in ("reference", *OURS[stride]) for kind in ("forward", "train_step")}
        for name in OURS[stride]:
            row = networks[name] = {}
            for kind, found in seconds.items():
                row |= {f"{kind}_cpu_s": found[name], f"{kind}_calibrated": found[name] / found["unit"],
                        f"{kind}_ratio": found[name] / found["reference"],
                        f"reference_{kind}_calibrated": found["reference"] / found["unit"],
                        f"{kind}_peak_mib": peaks[name, kind], f"reference_{kind}_peak_mib": peaks["reference", kind]}
            print(name, {key: round(value, 2) for key, value in row.items()}, flush=True)
    about = dict(reference="wkentaro/pytorch-fcn", size=SIZE, classes=CLASSES, threads=THREADS, networks=networks)
    write_result("fcn_speed", about, f"python tests/benchmarks/fcn_speed.py {Path(options.checkout).name}",
                 time.perf_counter() - start, SEED)


if __name__ == "__main__": main()
