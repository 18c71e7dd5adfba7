"""Time and memory of networks of the zoo beside a reference, all in one process, in turns."""
from collections.abc import Callable

import torch

from semseg_course.speed import apart, calibration, in_turns, peak_mib, steps
from semseg_course.zoo import build

KINDS = ("forward", "train_step")


def plain_steps(network: torch.nn.Module, size: tuple[int, int], num_classes: int) -> dict[str, Callable]:
    "What is timed of a reference: in the memory format that torch gives it, as its users have it."
    image, target = torch.randn(1, 3, *size), torch.randint(0, num_classes, (1, *size))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    @torch.no_grad()
    def forward():
        network.eval()(image)

    def train_step():
        torch.nn.functional.cross_entropy(network.train()(image), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return dict(forward=forward, train_step=train_step)


def task(network: Callable[[], torch.nn.Module] | dict, kind: str, size: tuple[int, int], num_classes: int) -> Callable:
    "One of the two things; `network` makes the reference, or says as a dict what `build` is to make."
    if not isinstance(network, dict): return plain_steps(network(), size, num_classes)[kind]
    made = build(num_classes=num_classes, **{name: value for name, value in network.items() if name != "compiled"})
    if network.get("compiled"): made = torch.compile(made)
    return steps(made, torch.randn(1, 3, *size), num_classes)[kind]


def _seconds(networks: dict, kind: str, size: tuple[int, int], num_classes: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    return in_turns(dict(unit=calibration()) | {n: task(x, kind, size, num_classes) for n, x in networks.items()}, repeats)


def _peak(network, kind: str, size: tuple[int, int], num_classes: int) -> float:
    "Peak memory of a process that did nothing else, in MiB."
    run = task(network, kind, size, num_classes)
    for _ in range(3): run()
    return peak_mib()


def beside(
    reference: Callable[[], torch.nn.Module],  # one that a new process can import, functools.partial included
    ours: dict[str, dict],  # name -> arguments of `build`, and perhaps compiled=True
    size: tuple[int, int],
    num_classes: int = 12,
    repeats: int = 3,
    threads: int = 2,
    memory: bool = True,  # measure peaks, too, each in a process of its own
) -> dict[str, dict]:
    "Name -> median processor seconds, the same in units of a convolution, ratios to the reference, and peaks in MiB."
    networks = dict(reference=reference) | ours
    rows = {name: {} for name in ours}
    for kind in KINDS:
        seconds = apart(_seconds, networks, kind, size, num_classes, repeats, threads=threads)
        for name, row in rows.items():
            row |= {f"{kind}_cpu_s": seconds[name], f"{kind}_calibrated": seconds[name] / seconds["unit"],
                    f"{kind}_ratio": seconds[name] / seconds["reference"],
                    f"reference_{kind}_calibrated": seconds["reference"] / seconds["unit"]}
        if not memory: continue
        peaks = {name: apart(_peak, network, kind, size, num_classes, threads=threads) for name, network in networks.items()}
        for name, row in rows.items():
            row |= {f"{kind}_peak_mib": peaks[name], f"reference_{kind}_peak_mib": peaks["reference"]}
    return rows
