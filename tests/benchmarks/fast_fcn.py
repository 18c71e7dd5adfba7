"""FCN-8s and its separable twin at full width: multiply-adds beside the measured time of forward and training step.

Time is that of the processor, in one thread, not of the clock: other work on the machine disturbs it less.

    python tests/benchmarks/fast_fcn.py        # writes results/fast_fcn.json; needs about 4 GiB of memory
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import statistics
import time

import torch

from semseg_course.blocks import count_operations, count_parameters
from semseg_course.losses import cross_entropy
from semseg_course.models.fcn import FCN
from semseg_course.profiles import write_result

CLASSES, SIZE = 11, (360, 480)
SEED, ROUNDS, THREADS = 0, 5, 1


def medians(functions: dict) -> dict:
    "Median processor seconds of each function; they take turns, so that a slow moment meets all of them."
    times = {name: [] for name in functions}
    for function in functions.values(): function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> dict:
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    networks = {"plain": FCN(CLASSES, norm=True), "separable": FCN(CLASSES, norm=True, separable=True)}
    image, target = torch.randn(1, 3, *SIZE), torch.randint(0, CLASSES, (1, *SIZE))

    def step(network):
        cross_entropy(network(image), target).backward()
        network.zero_grad()

    operations = {name: count_operations(network.eval(), image) for name, network in networks.items()}
    with torch.no_grad(): forward = medians({name: lambda n=n: n.eval()(image) for name, n in networks.items()})
    training = medians({name: lambda n=n: step(n.train()) for name, n in networks.items()})
    figures = dict(size=list(SIZE), classes=CLASSES, threads=THREADS, rounds=ROUNDS)
    for name, network in networks.items():
        figures |= {f"{name}_parameters": count_parameters(network),
                    f"{name}_billion_multiply_adds": round(operations[name] / 1e9, 2),
                    f"{name}_forward_processor_ms": round(1e3 * forward[name], 1),
                    f"{name}_training_step_processor_ms": round(1e3 * training[name], 1)}
    for name, values in (("multiply_adds", operations), ("forward", forward), ("training_step", training)):
        figures[f"{name}_ratio"] = round(values["plain"] / values["separable"], 2)
    write_result("fast_fcn", figures, command="python tests/benchmarks/fast_fcn.py",
                 seconds=time.perf_counter() - start, seed=SEED)
    return figures


if __name__ == "__main__":
    for name, value in main().items(): print(f"{name:40} {value}")
