"""How many Toy Streets scenes one thread draws in a second, at the course's two sizes.

    python tests/benchmarks/toy_streets_speed.py        # writes results/toy_streets_speed.json
"""
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy: one thread

import statistics
import time
from collections.abc import Callable

from semseg_course.data.toy_streets import ToyStreets
from semseg_course.profiles import write_result

SEED, SIZES, SCENES = 1, ((96, 128), (360, 480)), 200


def seconds_of_scenes(kind: Callable, size: tuple, scenes: int, seed: int) -> list:
    "Seconds of each scene of a drawn data set, one after the other after one to warm up."
    dataset, seconds = kind(size, scenes + 1, seed=seed), []
    for index in range(scenes + 1):
        start = time.perf_counter()
        dataset[index]
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])


def speeds(kind: Callable, sizes: tuple, scenes: int, seed: int) -> dict:
    "What one thread does in a second, by size, at the default difficulty."
    figures = dict(threads=1, scenes=scenes, difficulty=0.5)
    for size in sizes:
        seconds = seconds_of_scenes(kind, size, scenes, seed)
        figures["{}x{}".format(*size)] = dict(scenes_per_second_median=round(1 / statistics.median(seconds), 1),
                                              scenes_per_second_slowest_tenth=round(1 / seconds[int(0.9 * scenes)], 1))
    return figures


def main() -> dict:
    start = time.perf_counter()
    figures = speeds(ToyStreets, SIZES, SCENES, SEED)
    command = "python tests/benchmarks/toy_streets_speed.py"
    print(write_result("toy_streets_speed", figures, command, time.perf_counter() - start, seed=SEED))
    return figures


if __name__ == "__main__": print(main())
