"""Where the dense CRF and the authors' C++ code give other labels at 360x480: which is nearer to the sum over all pairs?

    pip install pydensecrf2        # builds for about a minute; the package itself does not need it
    python tests/benchmarks/crf_accuracy.py        # writes results/crf_accuracy.json, after several minutes
"""
import time

import numpy as np
import torch
from crf_reference import authors
from crf_speed import SIZE, scene, with_classes

from semseg_course.crf import KERNELS, dense_crf, mean_field_step, normalized, unary_energy
from semseg_course.data.datasets import find_camvid
from semseg_course.profiles import write_result

ITERATIONS = 5


def all_pairs(values: torch.Tensor, features: torch.Tensor, rows: int = 512) -> torch.Tensor:
    "As `gaussian_filter`, with distances from a matrix product: less exact, and fast enough for 30 thousand million pairs."
    half = 0.5 * features.square().sum(1)
    result = torch.empty_like(values)
    for i in range(0, len(features), rows):
        f = features[i:i + rows]
        exponent = torch.addmm(-half[None], f, features.T).sub_(half[i:i + rows, None]).clamp_(max=0)
        result[i:i + rows] = exponent.exp_() @ values
    return result


def on_the_grid(values: torch.Tensor, sigma: float) -> torch.Tensor:
    "All pairs where the features are positions alone: a product along the columns and one along the rows."
    kernels = [torch.exp(-0.5 * ((torch.arange(s)[:, None] - torch.arange(s)) / sigma).double().square()) for s in SIZE]
    x = torch.einsum("ij,jwc->iwc", kernels[0], values.view(*SIZE, -1).double())
    return torch.einsum("ij,hjc->hic", kernels[1], x).reshape(values.shape).to(values)


def brute_force(image: np.ndarray, several: list[np.ndarray]) -> list[np.ndarray]:
    "Mean field with exact sums; several problems on one image share the sums over pairs."
    features = KERNELS[1].features(torch.from_numpy(image))
    features -= features.mean(0)
    ones, sizes = torch.ones(len(features), 1), [len(p) for p in several]
    unary = [unary_energy(torch.from_numpy(p).flatten(1).T.contiguous()) for p in several]
    both = [normalized(lambda v: on_the_grid(v, KERNELS[0].sxy), ones), normalized(lambda v: all_pairs(v, features), ones)]
    qs = [(-u).softmax(1) for u in unary]
    for step in range(ITERATIONS):
        messages = [filter(torch.cat(qs, 1)).split(sizes, 1) for filter in both]
        qs = [mean_field_step(q, u, [(lambda q, m=m[i]: m, float(k.compat)) for m, k in zip(messages, KERNELS)])
              for i, (q, u) in enumerate(zip(qs, unary))]
        print(f"step {step + 1} of {ITERATIONS}", flush=True)
    return [q.T.reshape(p.shape).numpy() for q, p in zip(qs, several)]


def row(image: np.ndarray, p: np.ndarray, exact: np.ndarray) -> dict:
    "How near both are to the exact marginals, everywhere and where their labels differ."
    ours, theirs = dense_crf(image, p, iterations=ITERATIONS), authors(image, p, ITERATIONS)
    labels = {name: q.argmax(0) for name, q in (("ours", ours), ("authors", theirs), ("exact", exact))}
    differ = labels["ours"] != labels["authors"]
    share = lambda a, b: round(float((labels[a] == labels[b]).mean()), 5)
    distance = lambda q, where: round(float(np.abs(q - exact)[:, where].mean()), 6) if where.any() else None
    everywhere = np.ones_like(differ)
    return dict(
        classes=len(p), equal_labels=share("ours", "authors"), ours_equal_exact=share("ours", "exact"),
        authors_equal_exact=share("authors", "exact"), pixels_that_differ=int(differ.sum()),
        ours_right_there=int((labels["ours"] == labels["exact"])[differ].sum()),
        authors_right_there=int((labels["authors"] == labels["exact"])[differ].sum()),
        ours_error=distance(ours, everywhere), authors_error=distance(theirs, everywhere),
        ours_error_there=distance(ours, differ), authors_error_there=distance(theirs, differ))


def main() -> dict:
    start = time.perf_counter()
    image, p = scene()
    several = [with_classes(p, classes) for classes in (12, 21)]
    rows = [row(image, q, exact) for q, exact in zip(several, brute_force(image, several))]
    figures = dict(size=list(SIZE), iterations=ITERATIONS, image="CamVid" if find_camvid() else "drawn", rows=rows)
    write_result("crf_accuracy", figures, "python tests/benchmarks/crf_accuracy.py", time.perf_counter() - start, 0)
    return figures


if __name__ == "__main__":
    for line in main()["rows"]: print(line)
