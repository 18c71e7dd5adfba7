"""Splat, blur and slice in NumPy, torch and numba: which of them the lattice should be written in.

    pip install numba        # for this measurement alone
    python tests/benchmarks/crf_backends.py        # writes results/crf_backends.json
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import importlib.metadata
import time

import numpy as np
import torch
from crf_speed import in_turns, scene, with_classes

from semseg_course.crf import KERNELS
from semseg_course.permutohedral import Lattice
from semseg_course.profiles import write_result

try:
    from numba import njit, prange
except ImportError: raise SystemExit("numba is missing: pip install numba") from None

ROUNDS, THREADS = 5, 2


class InNumPy:
    "Sorted values summed by reduceat; a loop over the vertices of the simplices keeps memory small."

    def __init__(self, lattice: Lattice):
        self.points, self.starts = lattice._points.numpy(), lattice._starts.numpy()
        self.splat_weights, self.weights = lattice._splat_weights.numpy()[:, None], lattice._slice_weights.numpy()
        self.vertices, self.neighbours = lattice.vertices.numpy(), lattice.neighbours.numpy()

    def filter(self, values: np.ndarray) -> np.ndarray:
        x = np.add.reduceat(values[self.points] * self.splat_weights, self.starts, axis=0)
        x = np.concatenate([x, np.zeros_like(x[:1])])
        for _, ahead, behind in self.neighbours.transpose(0, 2, 1): x = x + 0.5 * (x[ahead] + x[behind])
        return sum(x[v] * w[:, None] for v, w in zip(self.vertices.T, self.weights.T))


@njit(parallel=True, fastmath=True, cache=True)
def _numba_filter(values, points, starts, splat_weights, neighbours, vertices, weights):
    channels, m = values.shape[1], len(starts)
    x, y = np.zeros((m + 1, channels), np.float32), np.zeros((m + 1, channels), np.float32)
    for i in prange(m):
        for j in range(starts[i], starts[i + 1] if i + 1 < m else len(points)):
            for c in range(channels): x[i, c] += splat_weights[j] * values[points[j], c]
    for direction in range(neighbours.shape[0]):
        for i in prange(m):
            ahead, behind = neighbours[direction, i, 1], neighbours[direction, i, 2]
            for c in range(channels): y[i, c] = x[i, c] + np.float32(0.5) * (x[ahead, c] + x[behind, c])
        x, y = y, x
    result = np.zeros((len(vertices), channels), np.float32)
    for i in prange(len(vertices)):
        for k in range(vertices.shape[1]):
            for c in range(channels): result[i, c] += weights[i, k] * x[vertices[i, k], c]
    return result


class InNumba(InNumPy):
    "The same loops, compiled at the first call."

    def filter(self, values: np.ndarray) -> np.ndarray:
        return _numba_filter(values, self.points, self.starts, self.splat_weights[:, 0], self.neighbours, self.vertices,
                             self.weights)


def main() -> dict:
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    image, probabilities = scene()
    features = KERNELS[1].features(torch.from_numpy(image))
    lattice = Lattice(features)
    first = time.perf_counter()
    InNumba(lattice).filter(np.ones((len(features), 1), np.float32))
    rows, compiled = [], time.perf_counter() - first
    for classes in (12, 21):
        values = np.ascontiguousarray(with_classes(probabilities, classes).reshape(classes, -1).T)
        ways = {"numpy": InNumPy(lattice), "torch": lattice, "numba": InNumba(lattice)}
        answers = {name: way.filter(values) for name, way in ways.items()}
        for answer in answers.values(): assert np.allclose(answer, answers["torch"], rtol=1e-3, atol=1e-2)
        seconds = in_turns({name: lambda way=way: way.filter(values) for name, way in ways.items()}, ROUNDS)
        rows += [dict(filter=name, classes=classes, wall_ms=round(1e3 * wall, 2), cpu_ms=round(1e3 * cpu, 2))
                 for name, (wall, cpu) in seconds.items()]
    setup = in_turns({"torch": lambda: Lattice(features)}, ROUNDS)["torch"]
    figures = dict(rows=rows, vertices=len(lattice.keys), pixels=len(features), threads=THREADS, rounds=ROUNDS,
                   setup_torch_wall_ms=round(1e3 * setup[0], 2), setup_torch_cpu_ms=round(1e3 * setup[1], 2),
                   numba_first_call_s=round(compiled, 2), numba=importlib.metadata.version("numba"))
    write_result("crf_backends", figures, "python tests/benchmarks/crf_backends.py", time.perf_counter() - start)
    return figures


if __name__ == "__main__":
    for name, value in main().items(): print(name, *(value if isinstance(value, list) else [value]), sep="\n  ")
