"""Labels of the authors' C++ code for two drawn streets at 360x480, 12 and 21 classes: what test_crf.py compares with.

    pip install pydensecrf2        # builds for about a minute; the package itself does not need it
    python tests/benchmarks/crf_reference.py        # writes tests/data/crf_reference.npz
"""
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
from crf_scenes import street  # noqa: E402

REFERENCE = TESTS / "data/crf_reference.npz"
CASES = [(number, classes) for number in (0, 1) for classes in (12, 21)]


def authors(image: np.ndarray, probabilities: np.ndarray, iterations: int = 5) -> np.ndarray:
    "Marginals (classes, h, w) of the authors' code with the parameters of its example."
    try:
        from pydensecrf import densecrf
    except ImportError: raise SystemExit("pydensecrf is missing. Install it with: pip install pydensecrf2") from None
    classes, h, w = probabilities.shape
    crf = densecrf.DenseCRF2D(w, h, classes)
    energy = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(crf.inference(iterations)).reshape(classes, h, w)


def checksum(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    "A few numbers that tell whether scenes are still drawn as when the reference was made."
    some = probabilities[:, ::60, ::80].astype(np.float64).ravel()[:20]
    return np.array([image.astype(np.int64).sum(), *np.round(some, 4)])


def main():
    kept = {}
    for number, classes in CASES:
        image, p = street(number, classes)
        kept[f"labels_{number}_{classes}"] = authors(image, p).argmax(0).astype(np.uint8)
        kept[f"checksum_{number}_{classes}"] = checksum(image, p)
    np.savez_compressed(REFERENCE, **kept)
    print(f"{REFERENCE.name}: {REFERENCE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
