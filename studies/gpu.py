"""The library on an accelerator: one command, a table at the end.

    python studies/gpu.py [--device cuda] [--images 8] [--quick]

- step: an iteration of `GradientSolver` for all images and four areas in one forward,
  over the model's own forward and backward at that batch; in float32, with a model in
  the channels_last order, under bfloat16 autocast, and with both.
- masks: time and peak memory of a mask, forward and backward, for growing batches.
- search: `ExtremalPerturbation(...).optimize` with `LevelSetSolver` and `SearchSolver`,
  seconds an image, for growing ``perturbations_per_eval``.
- waiting: steps under ``torch.cuda.set_sync_debug_mode("error")``, CUDA alone.
- agreement: masks after three steps, and their rewards, against the CPU.

The model is torchvision's ResNet-50 with random weights; results go to
``studies/results/gpu.json``. ``--device cpu --quick`` (a smaller model and smaller
images, nothing written) shows that the command works.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
import measuring
import torch
import torchvision
from measuring import Record, interleaved, peak_memory, ratios, spread, wait
from torch import Tensor, nn

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    LevelSetSolver,
    MaskGenerator,
    Problem,
    SearchSolver,
)

AREAS = (0.05, 0.1, 0.2, 0.4)
TARGET = 282
RESULTS = Path(__file__).parent / "results" / "gpu.json"


class Bench:
    """Model, images and device that all parts share."""

    def __init__(self, device: torch.device, images: int, quick: bool) -> None:
        self.device = device
        self.quick = quick
        self.repeats = 2 if quick else 20
        self.size = (64, 64) if quick else (224, 224)
        self.name = "resnet18" if quick else "resnet50"
        self.inputs = torch.randn(images, 3, *self.size).to(device)

    def model(self, channels_last: bool = False) -> nn.Module:
        """In evaluation mode, with the same random weights each time."""
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(self.name, weights=None)
        model = model.eval().requires_grad_(False).to(self.device)
        order = torch.channels_last if channels_last else torch.contiguous_format
        return model.to(memory_format=order)

    def problem(self, model: Callable[[Tensor], Tensor]) -> Problem:
        """All images and areas in one forward."""
        levels = BlurPerturbation().levels(self.inputs)
        count = len(self.inputs) * len(AREAS)
        return Problem(
            lambda x, _: model(x[0])[:, TARGET].float(),
            (levels,),
            AREAS,
            perturbations_per_eval=count,
        )


def measure_step(bench: Bench) -> Record:
    """Each precision and order of memory."""
    return {
        f"{'bfloat16 autocast' if half else 'float32'}, {order}": step_of(
            bench, half, order == "channels_last"
        )
        for half in (False, True)
        for order in ("contiguous", "channels_last")
    }


def step_of(bench: Bench, half: bool, channels_last: bool) -> Record:
    """Seconds of a step and of the model alone, in turn, and their ratio."""
    network = bench.model(channels_last)

    def model(inputs: Tensor) -> Tensor:
        precision: AbstractContextManager[object] = nullcontext()
        if half:
            precision = torch.autocast(bench.device.type, torch.bfloat16)
        with precision:
            return network(inputs)

    times = step_times(bench, model)
    return {
        "step_seconds": spread(times["step"]),
        "model_seconds": spread(times["model"]),
        "time": ratios(times, "step", "model"),
    }


def step_times(
    bench: Bench, model: Callable[[Tensor], Tensor]
) -> dict[str, list[float]]:
    """Ten steps at a time, then as many passes of the model alone: A B A B.

    The host runs ahead of the device within the ten, as it does in use.
    """
    problem = bench.problem(model)
    batch = bench.inputs.repeat_interleave(len(AREAS), dim=0)
    steps = 2 if bench.quick else 10

    def solve() -> None:
        # No check falls into the run: a check waits for the device.
        GradientSolver(iterations=steps, tolerance=0, patience=steps).solve(problem)

    def passes() -> None:
        for _ in range(steps):
            leaf = batch.detach().requires_grad_()
            torch.autograd.grad(model(leaf)[:, TARGET].sum(), leaf)

    times = interleaved({"step": solve, "model": passes}, bench.repeats, bench.device)
    return {name: [s / steps for s in values] for name, values in times.items()}


def measure_masks(bench: Bench) -> Record:
    """Milliseconds and megabytes a mask."""
    generator = MaskGenerator(bench.size).to(bench.device)
    record = {}
    for count in (4, 16) if bench.quick else (4, 32, 256):
        params = torch.rand(count, 1, *generator.params_size).to(bench.device)
        params.requires_grad_()

        def run(params: Tensor = params) -> None:
            torch.autograd.grad(generator(params).sum(), params)

        times = interleaved({"masks": run}, bench.repeats, bench.device)["masks"]
        record[str(count)] = {
            "seconds": spread([value / count for value in times]),
            "mb": peak_memory(run, bench.device) / count,
        }
    return record


def measure_search(bench: Bench) -> Record:
    """Seconds an image."""
    solvers = {"level set": LevelSetSolver(), "search": SearchSolver()}
    if bench.quick:
        solvers = {"level set": LevelSetSolver(4), "search": SearchSolver(32)}
    model = bench.model(channels_last=True)
    record = {}
    for name, solver in solvers.items():
        method = ExtremalPerturbation(model, solver=solver)
        for count in (16, 64) if bench.quick else (16, 64, 256):
            times = []
            for _ in range(2):
                start = time.perf_counter()
                method.optimize(
                    bench.inputs, TARGET, AREAS, perturbations_per_eval=count
                )
                wait(bench.device)
                times.append((time.perf_counter() - start) / len(bench.inputs))
            record[f"{name}, {count} at once"] = {"seconds": min(times)}
    return record


def measure_waiting(bench: Bench) -> Record:
    """Whether steps make the host wait between two checks."""
    if bench.device.type != "cuda":
        return {"steps": "not measured: needs CUDA"}
    problem = bench.problem(bench.model())
    strict = False

    def on_step(_: int) -> None:
        nonlocal strict
        torch.cuda.set_sync_debug_mode("default" if strict else "error")
        strict = not strict

    solver = GradientSolver(iterations=4, tolerance=0, patience=2)
    try:
        solver.solve(problem, on_step=on_step)
    except RuntimeError as error:
        return {"steps": f"wait: {error}"}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": "do not wait"}


def measure_agreement(bench: Bench) -> Record:
    """The largest differences from the CPU after three steps, without TF32."""
    torch.backends.cudnn.allow_tf32 = False
    found = []
    solver = GradientSolver(iterations=3, tolerance=0)
    for device in (bench.device, torch.device("cpu")):
        other = Bench(device, len(bench.inputs), bench.quick)
        other.inputs = bench.inputs.to(device)
        solution = solver.solve(other.problem(other.model()))
        rewards = solution.history["reward"]
        found.append((solution.masks[0].cpu(), rewards.cpu()))
    (masks, rewards), (cpu_masks, cpu_rewards) = found
    return {
        "masks": float((masks - cpu_masks).abs().max()),
        "rewards": float((rewards - cpu_rewards).abs().max()),
    }


PARTS: dict[str, Callable[[Bench], Record]] = {
    "step": measure_step,
    "masks": measure_masks,
    "search": measure_search,
    "waiting": measure_waiting,
    "agreement": measure_agreement,
}


def rows_of(parts: dict[str, Record]) -> list[list[str]]:
    """What the table shows."""
    rows = []
    for name, record in parts["step"].items():
        ratio, seconds = record["time"]["median"], record["step_seconds"]["median"]
        rows.append([f"step, {name}: ms", f"{seconds * 1e3:.1f}"])
        rows.append([f"step / model, {name}", f"{ratio:.3f}"])
    for count, record in parts["masks"].items():
        seconds = record["seconds"]["median"]
        rows.append([f"masks, {count} at once: ms a mask", f"{seconds * 1e3:.3f}"])
        rows.append([f"masks, {count} at once: MB a mask", f"{record['mb']:.2f}"])
    for name, record in parts["search"].items():
        rows.append([f"{name}: s an image", f"{record['seconds']:.2f}"])
    rows.append(["steps between two checks", parts["waiting"]["steps"]])
    for name in ("masks", "rewards"):
        difference = f"{parts['agreement'][name]:.1e}"
        rows.append([f"difference of {name} from the CPU, 3 steps", difference])
    return rows


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--images", default=8, show_default=True)
@click.option("--quick", is_flag=True, help="A trial on a small scale; writes nothing.")
def main(device: str, images: int, quick: bool) -> None:
    """Measure, save, and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = torch.device(device)
    bench = Bench(place, 2 if quick else images, quick)
    parts: dict[str, Record] = {}
    for name, measure in PARTS.items():
        parts[name] = measure(bench)
        click.echo(f"{name}: {json.dumps(parts[name])}", err=True)
    parts["metadata"] = measuring.metadata(place) | {
        "device": device,
        "cuda": torch.version.cuda,
        "images": len(bench.inputs),
        "model": bench.name,
    }
    if not quick:
        measuring.save(RESULTS, parts)
    where = parts["metadata"]
    click.echo(measuring.table(["", f"{where['processor']}"], rows_of(parts)))
    click.echo(f"\n{where['date']}, torch {where['torch']}, CUDA {where['cuda']}")


if __name__ == "__main__":
    main()
