"""Time and memory of SegNet, DeconvNet, ENet, U-Net and FC-DenseNet beside the best known implementations.

    git clone https://github.com/xiaoyufenfei/Efficient-Segmentation-Networks references/Efficient-Segmentation-Networks
    git clone https://github.com/Jasonlee1995/DeconvNet references/DeconvNet
    git clone https://github.com/davidtvs/PyTorch-ENet references/PyTorch-ENet
    git clone https://github.com/milesial/Pytorch-UNet references/Pytorch-UNet
    git clone https://github.com/bfortuner/pytorch_tiramisu references/pytorch_tiramisu
    python tests/benchmarks/encoder_decoder_speed.py references        # writes results/encoder_decoder_speed.json
    python tests/benchmarks/encoder_decoder_speed.py references --compiled --networks enet segnet   # ..._compiled.json

Only the modules of the networks are loaded; what else the repositories need is not. Both sides are in one process, in
turns; a peak is that of a process of its own. --compiled adds each network through torch.compile, which wants a C++
compiler and minutes, and leaves out the peaks, as they would be the compiler's.
"""
import os

os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # before torch: waiting threads do not burn a core

import argparse
import importlib
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

from beside import beside

from semseg_course.backbones import VGG
from semseg_course.profiles import write_result

CLASSES, REPEATS, SEED, THREADS = 12, 3, 0, 2


def _imported(folder: Path, module: str):
    sys.path.insert(0, str(folder))
    return importlib.import_module(module)


def segnet(folder: Path):
    sys.modules.setdefault("torchsummary", SimpleNamespace(summary=None))  # imported there, not needed
    return _imported(folder / "model", "SegNet").SegNet(CLASSES)


def deconvnet(folder: Path):
    vgg = SimpleNamespace(vgg16_bn=lambda pretrained: VGG(norm=True))  # the same layers, without a download
    torchvision = ModuleType("torchvision")
    torchvision.models = vgg
    sys.modules |= {"torchvision": torchvision, "torchvision.models": vgg}
    return _imported(folder / "Implementation", "model").DeconvNet(CLASSES, True)


def enet(folder: Path): return _imported(folder, "models.enet").ENet(CLASSES)


def unet(folder: Path): return _imported(folder, "unet.unet_model").UNet(3, CLASSES)


def tiramisu(folder: Path, layers: int): return getattr(_imported(folder, "models.tiramisu"), f"FCDenseNet{layers}")(CLASSES)


def ours(*names: str, checkpointing: bool = False) -> dict[str, dict]:
    "What is measured: each network as it is, and perhaps once more with checkpoints."
    rows = {name: dict(name=name) for name in names}
    if checkpointing: rows |= {f"{name}, checkpointing": dict(name=name, checkpointing=True) for name in names}
    return rows


REFERENCES = {  # repository, its network, size of the image, ours
    "segnet": ("Efficient-Segmentation-Networks", segnet, (360, 480), ours("segnet_vgg16")),
    "deconvnet": ("DeconvNet", deconvnet, (352, 480), ours("deconvnet_vgg16")),
    "enet": ("PyTorch-ENet", enet, (360, 480), ours("enet", "enet_port")),
    "unet": ("Pytorch-UNet", unet, (360, 480), ours("unet_padded")),
    "fc_densenet56": ("pytorch_tiramisu", partial(tiramisu, layers=57), (360, 480),
                      ours("fc_densenet56", checkpointing=True)),
    "fc_densenet67": ("pytorch_tiramisu", partial(tiramisu, layers=67), (360, 480),
                      ours("fc_densenet67", checkpointing=True)),
    "fc_densenet103": ("pytorch_tiramisu", partial(tiramisu, layers=103), (360, 480),
                       ours("fc_densenet103", checkpointing=True)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, help="the folder that holds the five checkouts")
    parser.add_argument("--networks", nargs="+", default=list(REFERENCES), choices=list(REFERENCES))
    parser.add_argument("--compiled", action="store_true", help="measure torch.compile, too, and no peaks")
    options = parser.parse_args()
    start, networks = time.perf_counter(), {}
    for name in options.networks:
        repository, reference, size, candidates = REFERENCES[name]
        folder = (options.checkouts / repository).resolve()
        if not folder.is_dir(): raise SystemExit(f"{folder} must be a checkout; see --help for its address.")
        if options.compiled: candidates |= {f"{label}, compiled": row | dict(compiled=True) for label, row in candidates.items()}
        rows = beside(partial(reference, folder), candidates, size, CLASSES, REPEATS, THREADS, not options.compiled)
        for label, row in rows.items():
            networks[label] = dict(reference=repository, size=size) | row
            print(label, {key: round(value, 2) for key, value in row.items()}, flush=True)
    kept, flags = "encoder_decoder_speed", ""
    if options.compiled: kept, flags = "encoder_decoder_compiled", f" --compiled --networks {' '.join(options.networks)}"
    write_result(kept, dict(classes=CLASSES, threads=THREADS, networks=networks),
                 f"python tests/benchmarks/encoder_decoder_speed.py references{flags}", time.perf_counter() - start, SEED)


if __name__ == "__main__": main()
