"""How many Toy Streets scenes one thread draws in a second, at the course's two sizes.

    python tests/benchmarks/toy_streets_speed.py        # writes results/toy_streets_speed.json
"""
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy: one thread

import statistics
import time

from semseg_course.data.toy_streets import ToyStreets
from semseg_course.profiles import write_result

SEED, SIZES, SCENES = 1, ((96, 128), (360, 480)), 200


def seconds_of_scenes(size: tuple) -> list:
    "Seconds of each scene, drawn one after the other after one to warm up."
    streets, seconds = ToyStreets(size, SCENES + 1, seed=SEED), []
    for index in range(SCENES + 1):
        start = time.perf_counter()
        streets[index]
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> dict:
    start, figures = time.perf_counter(), dict(threads=1, scenes=SCENES, difficulty=0.5)
    for size in SIZES:
        seconds = sorted(seconds_of_scenes(size))
        figures["{}x{}".format(*size)] = dict(scenes_per_second_median=round(1 / statistics.median(seconds), 1),
                                              scenes_per_second_slowest_tenth=round(1 / seconds[int(0.9 * SCENES)], 1))
    command = "python tests/benchmarks/toy_streets_speed.py"
    print(write_result("toy_streets_speed", figures, command, time.perf_counter() - start, seed=SEED))
    return figures


if __name__ == "__main__": print(main())
