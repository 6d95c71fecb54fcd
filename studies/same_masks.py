"""Record what every solver, site and game gives, and find what a change made of it.

A change of the house must leave the masks as they are, bit for bit:

    python studies/same_masks.py record masks.json    # before the change
    python studies/same_masks.py compare masks.json   # after it

Twelve small models and inputs and two real ones (the demo's network, if installed, on a
picture of scikit-image); each entry is a hash of the masks, the scores and the history
of a run. One thread, CPU: elsewhere sums may round otherwise from run to run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_extremal import (
    ChannelDescent,
    ChannelExtremalPerturbation,
    ChannelSolver,
    ExtremalPerturbation,
    FadePerturbation,
    GradientSolver,
    LevelSetSolver,
    SearchSolver,
    presets,
)

GAMES = ("preservation", "deletion", "hybrid")
AREAS = (0.1, 0.3)
SOLVERS: dict[str, Callable[[], object]] = {
    "level set": lambda: LevelSetSolver(iterations=16),
    "search": lambda: SearchSolver(evaluations=40),
    "gradient": lambda: GradientSolver(iterations=30, patience=10),
}
CHANNEL_SOLVERS: dict[str, Callable[[], object]] = {
    "swaps": lambda: ChannelSolver(iterations=10, rounds=3),
    "descent": lambda: ChannelDescent(iterations=40),
}


def convolutions(dims: int, classes: int = 4) -> nn.Sequential:
    """A small network of random weights for inputs with 3 channels."""
    torch.manual_seed(dims)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(
        conv(3, 8, 3, padding=1),
        nn.ReLU(),
        conv(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    ).eval()


def noise(*shape: int) -> Tensor:
    """The same standard normal numbers for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs() -> dict[str, tuple[Callable[..., Tensor], object, dict[str, object]]]:
    """Name -> model, inputs and arguments of `ExtremalPerturbation`."""
    pair = convolutions(2)
    fade = {"perturbation": "fade"}

    def of_two(left: Tensor, right: Tensor) -> Tensor:
        return pair(left) + 0.5 * pair(right)

    def planted(x: Tensor) -> Tensor:
        return x[:, :, 4:12, 4:12].mean((1, 2, 3), keepdim=True).flatten(1).repeat(1, 4)

    return {
        "picture": (convolutions(2), noise(2, 3, 32, 32), {}),
        "picture, fade": (
            convolutions(2),
            noise(1, 3, 24, 40),
            {"perturbation": "fade"},
        ),
        "double": (convolutions(2).double(), noise(1, 3, 20, 20).double(), {}),
        "planted": (planted, torch.ones(1, 3, 32, 32), fade),
        "signal": (convolutions(1), noise(1, 3, 90), {}),
        "leads": (convolutions(2), noise(1, 3, 8, 120), {}),
        "volume": (convolutions(3), noise(1, 3, 6, 16, 16), {}),
        "two": (of_two, (noise(1, 3, 16, 16), noise(1, 3, 24, 24)), {}),
    }


def layers() -> dict[str, tuple[nn.Module, nn.Module, Tensor, dict[str, object]]]:
    """Name -> model, layer, inputs and options of `ChannelExtremalPerturbation`."""
    net, signal = convolutions(2), convolutions(1)
    baselines = {"layer_baselines": 0.1}
    at_input = {"attribute_to_layer_input": True}
    return {
        "channels": (net, net[3], noise(2, 3, 20, 20), {}),
        "channels, input": (
            net,
            net[2],
            noise(1, 3, 20, 20),
            at_input,
        ),
        "channels, baseline": (net, net[1], noise(1, 3, 20, 20), baselines),
        "channels, signal": (signal, signal[3], noise(1, 3, 40), {"channel_dim": -2}),
    }


def runs(real: bool) -> Iterator[tuple[str, object]]:
    """Each case by name, with its result."""
    for name, (model, x, arguments) in inputs().items():
        for solver, make in SOLVERS.items():
            for game in GAMES:
                method = ExtremalPerturbation(model, solver=make(), **arguments)
                target = torch.tensor([1] * len(x)) if isinstance(x, Tensor) else 1
                yield (
                    f"{name} / {solver} / {game}",
                    method.optimize(x, target, AREAS, game=game),
                )
    for name, (model, layer, x, options) in layers().items():
        for solver, make in CHANNEL_SOLVERS.items():
            for game in GAMES:
                method = ChannelExtremalPerturbation(model, layer, solver=make())
                yield (
                    f"{name} / {solver} / {game}",
                    method.optimize(x, 1, (2, 0.5), game=game, **options),
                )
    for name in ("paper", "torchray"):
        preset = getattr(presets, name)()
        solver = preset["solver"]
        object.__setattr__(solver, "iterations", 40)
        method = ExtremalPerturbation(convolutions(2), **preset)
        yield f"preset {name}", method.optimize(noise(1, 3, 32, 32), 1, AREAS)
    if real:
        yield from real_runs()


def real_runs() -> Iterator[tuple[str, object]]:
    """The demo's network on a picture: its pixels and its channels."""
    from PIL import Image
    from skimage import data

    from captum_extremal.models import load_model

    loaded = load_model("demo")
    x = loaded.preprocess(Image.fromarray(data.coffee()))[1][None]
    method = ExtremalPerturbation(loaded.model)
    yield "coffee / default", method.optimize(x, 967, (0.05, 0.2))
    fade = ExtremalPerturbation(loaded.model, FadePerturbation(), SearchSolver(64))
    yield "coffee / search", fade.optimize(x, 967, (0.1,))
    slow = ExtremalPerturbation(loaded.model, solver=GradientSolver(iterations=20))
    yield "coffee / gradient", slow.optimize(x, 967, (0.1,), game="hybrid")
    layer = loaded.model.blocks[4]
    of_layer = ChannelExtremalPerturbation(loaded.model, layer)
    yield "coffee / channels", of_layer.optimize(x, 967, (5, 20))


def digest(result: object) -> str:
    """A hash of all tensors of a result."""
    found = hashlib.sha256()
    masks = result.masks if isinstance(result.masks, tuple) else (result.masks,)
    tensors = [
        *masks,
        result.scores,
        result.complement_scores,
        result.input_score,
        result.perturbed_score,
        *(result.history[name] for name in sorted(result.history)),
    ]
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--small", action="store_true", help="without the network")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: digest(result) for name, result in runs(not asked.small)}
    if asked.what == "record":
        asked.path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"recorded {len(found)} runs")
        return
    known = json.loads(asked.path.read_text())
    other = [name for name in found if known.get(name) != found[name]]
    for name in other:
        print(f"differs: {name}")
    print(f"{len(found) - len(other)} of {len(found)} runs equal")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
