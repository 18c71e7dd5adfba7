"""How many Toy Eyes one thread draws in a second, at two sizes.

    python tests/benchmarks/toy_eyes_speed.py        # writes results/toy_eyes_speed.json
"""
import time

from toy_streets_speed import speeds  # first: it keeps NumPy to one thread

from semseg_course.data.toy_eyes import ToyEyes
from semseg_course.profiles import write_result

SEED, SIZES, SCENES = 1, ((120, 160), (240, 320)), 200


def main() -> dict:
    start = time.perf_counter()
    figures = speeds(ToyEyes, SIZES, SCENES, SEED)
    command = "python tests/benchmarks/toy_eyes_speed.py"
    print(write_result("toy_eyes_speed", figures, command, time.perf_counter() - start, seed=SEED))
    return figures


if __name__ == "__main__": print(main())
