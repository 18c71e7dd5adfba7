"""What share of a small network's training is spent on training, and what share on waiting for images.

    SEMSEG_DATA=FOLDER python tests/benchmarks/loader_busy.py        # writes results/loader_busy.json
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import statistics
import time

import torch

from semseg_course.data.batches import TrainingSet, training_batches
from semseg_course.data.datasets import CamVid, find_camvid
from semseg_course.profiles import write_result
from semseg_course.training import make_accelerator, train_step
from semseg_course.zoo import build

SEED, EPOCHS, BATCH, THREADS = 0, 3, 8, 2


def epoch_times(network, optimizer, training_set, epoch: int, workers: int, accelerator) -> tuple[float, float]:
    "Seconds of waiting for batches, the start of the workers included, and of the whole epoch."
    started, waited = time.perf_counter(), 0.0
    batches = iter(training_batches(training_set, BATCH, epoch, workers))
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None: return waited, time.perf_counter() - started
        image, target = batch
        batch = image.to(accelerator.device, memory_format=torch.channels_last), target.to(accelerator.device)
        train_step(network, optimizer, [batch], accelerator)


def measure(workers: int, precision: str) -> dict:
    "Median over epochs of the share that the network was busy."
    torch.manual_seed(SEED)
    training_set = TrainingSet(CamVid(find_camvid(), "train"), crop=(256, 352), scale=(0.6, 1.6), look=0.25, seed=SEED)
    accelerator = make_accelerator(precision)
    network = build("small", 11).to(memory_format=torch.channels_last)
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=1e-3))
    times = [epoch_times(network, optimizer, training_set, epoch, workers, accelerator) for epoch in range(EPOCHS)]
    share = statistics.median(1 - waited / whole for waited, whole in times)
    return dict(busy=share, images_per_second=len(training_set) / statistics.median(whole for _, whole in times))


def main():
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    if find_camvid() is None: raise SystemExit("CamVid is not there. Fetch it with: semseg-course prepare camvid")
    figures = {f"{workers} workers, {precision}": measure(workers, precision)
               for precision in ("no", "bf16") for workers in (0, 1, 2)}
    about = dict(network="small", crop=[256, 352], batch_size=BATCH, threads=THREADS, epochs=EPOCHS, **figures)
    write_result("loader_busy", about, "python tests/benchmarks/loader_busy.py", time.perf_counter() - start, SEED)
    for name, row in figures.items(): print(f"{name}: busy {row['busy']:.1%}, {row['images_per_second']:.1f} images/s")


if __name__ == "__main__": main()
