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
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from beside import beside

from semseg_course.profiles import write_result

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="a checkout of wkentaro/pytorch-fcn")
    parser.add_argument("--strides", type=int, nargs="+", default=list(OURS))
    options = parser.parse_args()
    start, networks = time.perf_counter(), {}
    for stride in options.strides:
        ours = {name: dict(name=name) for name in OURS[stride]}
        networks |= beside(partial(reference, options.checkout, stride), ours, SIZE, CLASSES, REPEATS, THREADS)
        for name in ours: print(name, {key: round(value, 2) for key, value in networks[name].items()}, flush=True)
    about = dict(reference="wkentaro/pytorch-fcn", size=SIZE, classes=CLASSES, threads=THREADS, networks=networks)
    write_result("fcn_speed", about, f"python tests/benchmarks/fcn_speed.py {Path(options.checkout).name}",
                 time.perf_counter() - start, SEED)


if __name__ == "__main__": main()
