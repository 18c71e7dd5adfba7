"""Drawn streets with probabilities that are made the same way every time, for the tests of the dense CRF."""
import numpy as np

from semseg_course.data.labels import VOID
from semseg_course.data.toy_streets import ToyStreets


def box(x: np.ndarray, reach: int) -> np.ndarray:
    "Mean over 2 reach + 1 pixels along the last two axes, the border repeated; sums of float64, the same everywhere."
    for axis in (-2, -1):
        width = [(0, 0)] * x.ndim
        width[axis] = (reach + 1, reach)
        total = np.cumsum(np.pad(x, width, mode="edge"), axis=axis)
        ends = [np.take(total, np.arange(start, start + x.shape[axis]), axis=axis) for start in (2 * reach + 1, 0)]
        x = (ends[0] - ends[1]) / (2 * reach + 1)
    return x


def probabilities(label: np.ndarray, classes: int, seed: int, reach: int = 6, doubt: float = 0.4) -> np.ndarray:
    "Blurred one-hot labels and smooth random doubt, float32 (classes, h, w); classes beyond the label's are rare."
    h, w = label.shape
    names = np.where(label == VOID, 0, label)
    p = box(box((names == np.arange(classes)[:, None, None]).astype(np.float64), reach), reach // 2)
    coarse = np.random.default_rng([seed, classes]).random((classes, -(-h // 8), -(-w // 8)))
    noise = box(coarse.repeat(8, 1).repeat(8, 2)[:, :h, :w], 4) ** 4
    noise[11:] *= 0.2
    p = (1 - doubt) * np.clip(p, 0, 1) + doubt * noise / noise.sum(0)
    return (p / p.sum(0)).astype(np.float32)


def street(number: int, classes: int, size: tuple[int, int] = (360, 480)) -> tuple[np.ndarray, np.ndarray]:
    "Image uint8 (h, w, 3) and probabilities of one scene."
    image, label = ToyStreets(size, number + 1, seed=15)[number]
    return image, probabilities(label, classes, number)


def crop(number: int, classes: int = 11) -> tuple[np.ndarray, np.ndarray]:
    "A piece of 48 rows and 64 columns of a scene of 96x128 pixels."
    image, p = street(number, classes, (96, 128))
    y, x = np.random.default_rng(number).integers(0, (49, 65))
    return np.ascontiguousarray(image[y:y + 48, x:x + 64]), np.ascontiguousarray(p[:, y:y + 48, x:x + 64])
