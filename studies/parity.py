"""Each step of the descent on a real network against float64, and against TorchRay.

    python studies/parity.py [--steps 6]

Every step starts from the library's own parameters, since trajectories are chaotic:
a rounding error of 1e-7 is worth 0.5 after some fifty steps. Where ``torchray``
1.0.0.2 is installed (``pip install --no-deps torchray``, CC-BY-NC), its first steps
are compared too; these are trajectories.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import sys
import warnings
from pathlib import Path

import click
import torch
from PIL import Image
from torch import Tensor

from captum_extremal import (
    AreaWeight,
    ExtremalPerturbation,
    GradientSolver,
    Problem,
    presets,
)
from captum_extremal.models import load_demo
from captum_extremal.solvers.gradient import _Descent

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.descent import Descent

AREAS = (0.05, 0.1, 0.2)
SETTINGS = {
    "default": ({"perturbation": presets.paper()["perturbation"]}, GradientSolver()),
    "paper": (presets.paper(), presets.paper()["solver"]),
    "torchray": (presets.torchray(), presets.torchray()["solver"]),
}


@click.command()
@click.option("--steps", default=6, show_default=True)
def main(steps: int) -> None:
    """Print the largest differences of each step."""
    torch.set_num_threads(1)
    model, preprocess, _ = load_demo()
    inputs = preprocess(picture())[1][None]
    target = int(model(inputs).argmax())
    for name, (method, solver) in SETTINGS.items():
        levels = method["perturbation"].levels(inputs)
        against_float64(name, model, levels, target, solver, steps)
    against_torchray(model, inputs, target, steps)


def picture() -> Image.Image:
    """The espresso of scikit-image, CC0."""
    from skimage import data

    return Image.fromarray(data.coffee())


def against_float64(
    name: str,
    model: torch.nn.Module,
    levels: Tensor,
    target: int,
    solver: GradientSolver,
    steps: int,
) -> None:
    """One line: the largest difference over the steps, from random parameters."""
    problem = Problem(lambda x, _: model(x[0])[:, target], (levels,), AREAS)
    run = _Descent(solver, problem, seed=0)
    run.params[0].copy_(torch.rand(run.params[0].shape))
    exact = copy.deepcopy(model).double()
    followed = Descent(
        solver, lambda x: exact(x)[0, target], levels, AREAS, run.generators[0]
    )
    largest = torch.zeros(3, dtype=torch.double)
    for iteration in range(steps):
        expected = followed.step(iteration, run.params[0])
        with torch.no_grad():
            run._step(iteration)  # noqa: SLF001
        found = (
            run.history["reward"][iteration],
            run.history["area_loss"][iteration],
            run.params[0],
        )
        differences = [
            (a.double() - b).abs().max() for a, b in zip(found, expected, strict=True)
        ]
        largest = torch.maximum(largest, torch.stack(differences))
    reward, loss, params = largest.tolist()
    click.echo(
        f"{name}, {steps} steps, float64: reward {reward:.1e}, area loss {loss:.1e}, "
        f"parameters {params:.1e}"
    )


def against_torchray(
    model: torch.nn.Module, inputs: Tensor, target: int, steps: int
) -> None:
    """The first steps of TorchRay's own code, from all ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchray.attribution.extremal_perturbation import (
                extremal_perturbation,
            )
    except ImportError as error:
        click.echo(f"torchray is not installed ({error}): not compared")
        return
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, history = extremal_perturbation(
            model,
            inputs.clone(),
            target,
            areas=list(AREAS),
            max_iter=steps,
            jitter=True,
            resize=False,
            smooth=0,
            reward_func=lambda y, index, variant: y[:, index],  # noqa: ARG005
        )
    preset = presets.torchray()
    weight = AreaWeight(growth=1.0035**steps)
    solver = dataclasses.replace(preset["solver"], iterations=steps, area_weight=weight)
    result = ExtremalPerturbation(model, preset["perturbation"], solver).optimize(
        inputs, target, AREAS
    )
    rewards = (history[:, 0] - result.history["reward"][0]).abs().amax(dim=0)
    weights = [solver.area_weight(step, steps) for step in range(steps)]
    losses = history[:, 1] + result.history["area_loss"][0] * torch.tensor(weights)
    click.echo(
        "TorchRay's code, difference at each step: rewards "
        + ", ".join(f"{value:.1e}" for value in rewards.tolist())
        + "; weighted area losses (of about 260) "
        + ", ".join(f"{value:.1e}" for value in losses.abs().amax(dim=0).tolist())
    )


if __name__ == "__main__":
    main()
