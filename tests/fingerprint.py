"""Fingerprint a PyTorch network: fill its parameters by a fixed rule, run one fixed image, sample the scores.

The rule depends only on what a tensor is and on its shape, never on its name or its place in the network, so two
implementations of one architecture give the same numbers however their code is arranged. data/networks.json beside this
file holds the fingerprints of well-known implementations, each with its source.
"""
import zlib

import numpy as np
import torch
from torch import nn

SAMPLES = 24  # scores kept of each output
BLOCK = 1 << 20  # numbers made at once, so that the largest layers need no memory for in-between results


def uniform(kind: str, shape) -> np.ndarray:
    "Fixed pseudo-random numbers in [-1, 1) for a tensor of this kind and shape (a 32-bit integer hash of the index)."
    numbers = np.empty(int(np.prod(shape)))
    seed = zlib.crc32(f"{kind}:{'x'.join(map(str, shape))}".encode())
    for start in range(0, len(numbers), BLOCK):
        index = np.arange(start, min(start + BLOCK, len(numbers)), dtype=np.uint32)
        h = index * np.uint32(2654435761) + np.uint32(seed)  # 32 bits wrap around, as the rule wants
        for shift, factor in ((16, 2246822507), (13, 3266489909)): h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
        numbers[start:start + BLOCK] = h / 2**31 - 1
    return numbers.reshape(shape)


def _put(tensor, kind, base=0.0, scale=0.1):
    if tensor is None: return
    numbers = torch.from_numpy(uniform(kind, tuple(tensor.shape)))
    tensor.data.copy_(numbers.mul_(scale).add_(base))


def fill(model: nn.Module) -> nn.Module:
    "Set every parameter and running statistic of `model` by the rule, in place."
    convolutions = (nn.modules.conv._ConvNd, nn.Linear)
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    seen = set()
    for module in nn.Module.modules(model):  # some networks shadow `modules`
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, convolutions):
            fan = max(1, module.weight[0].numel())
            _put(module.weight, "weight", 0.0, (6 / fan) ** 0.5)
            _put(module.bias, "bias")
        elif isinstance(module, norms):
            _put(module.weight, "norm.weight", 1.0)
            _put(module.bias, "norm.bias")
            if getattr(module, "running_mean", None) is not None:
                _put(module.running_mean, "norm.mean")
                _put(module.running_var, "norm.var", 1.0)
        elif isinstance(module, nn.PReLU):
            _put(module.weight, "prelu", 0.25, 0.05)
        elif own:
            for tensor in own.values(): _put(tensor, "other")
        seen.update(id(t) for t in own.values())
    assert all(id(p) in seen for p in model.parameters()), "a parameter was not filled"
    return model


def image(size, channels=3, batch=1) -> torch.Tensor:
    "The fixed input, (batch, channels, h, w), values in [-1, 1)."
    return torch.from_numpy(uniform("input", (batch, channels, *size)))


def sample(scores: torch.Tensor) -> dict:
    "Shape, mean, standard deviation and SAMPLES fixed entries of one output tensor."
    flat = scores.detach().double().flatten()
    where = ((uniform("sample", (SAMPLES,)) + 1) / 2 * len(flat)).astype(int)
    return dict(shape=list(scores.shape), mean=float(flat.mean()), std=float(flat.std()),
                values=[float(flat[i]) for i in where])


@torch.no_grad()
def scores_of(model: nn.Module, size, batch=1) -> dict:
    "Parameter count and sampled scores of a filled `model` in evaluation mode (dropout off)."
    scores = model.eval()(image(size, batch=batch))
    while not isinstance(scores, torch.Tensor):
        scores = next(iter(scores.values() if isinstance(scores, dict) else scores))
    return dict(params=sum(p.numel() for p in model.parameters()), size=list(size), **sample(scores))


def fingerprint(model: nn.Module, size=(96, 128), batch=1) -> dict:
    "What networks.json holds of a network: the count and the scores, in double precision."
    return scores_of(fill(model.double()), size, batch)


def differs(ours: dict, theirs: dict, rtol=1e-6) -> str:
    "Empty when the two fingerprints agree, else one line saying how they differ."
    for key in ("params", "shape"):
        if ours[key] != theirs[key]: return f"{key}: ours {ours[key]}, reference {theirs[key]}"
    gap = max(abs(a - b) for a, b in zip(ours["values"], theirs["values"]))
    scale = max(theirs["std"], 1e-12)
    return "" if gap <= rtol * scale else f"scores differ by {gap:.3g} (reference std {scale:.3g})"
