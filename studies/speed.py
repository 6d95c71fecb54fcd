"""What the library costs beyond the model, on one thread of a CPU.

    python studies/speed.py [--quick] [--only step,masks,search,recipe,large]

Every goal is a ratio of two things that are measured in turn, A B A B; medians and
quartiles of the ratio are kept. Results go to ``studies/results/speed.json``, each
part with its date and machine, and from there to the tables in ``docs/speed.md``.

- step: what an iteration of `LevelSetSolver`, the default, and of `GradientSolver`
  takes, from one `on_step` to the next,
  and between two of them the model's own forward and backward with respect to an input
  of the same batch and memory order. Four areas, 224 pixels. Peak memory: of all that a
  run of two steps allocates, blurred levels and mask tables included, over that of the
  model's forward and backward with its input (see `measuring.peak_memory`).
- masks: `MaskGenerator`, forward and backward of four masks of 224 pixels, against
  TorchRay's; with the same kernel and margin, and with the library's default ones.
- search: `ExtremalPerturbation(...).optimize` at three areas. With `SearchSolver` the
  model is wrapped in a clock; the library's own share is the rest over that. A run of
  the default solver gives the wall time of an image. TorchRay's own code is run for a
  few iterations, twice; their difference is scaled to its 800.
- recipe: what makes a model fast on a CPU, EfficientNet-Lite0 as an example.
- large: a picture of 2160 x 3840. Seconds for its levels and for the masks of three
  areas; the peak memory of a run of two iterations on a model that costs nothing, over
  the picture's own 100 MB, as the growth of a process of its own since its imports.

TorchRay 1.0.0.2 (``pip install --no-deps torchray``, CC-BY-NC) is run as a peer; what
needs it is left out where it is not installed.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measuring
import timm
import torch
import torchvision
from measuring import Record, interleaved, peak_memory, ratios, spread
from torch import Tensor, nn

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    LevelSetSolver,
    MaskGenerator,
    Problem,
    SearchSolver,
    Solver,
)
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import edge_widths, largest, smooth_edges
from captum_extremal.masks.fields import Field
from captum_extremal.models.networks import _fold_batch_norms, load_demo

AREAS = (0.05, 0.1, 0.2, 0.4)
SIZE = (224, 224)
TARGET = 282
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "speed.json"
DOCS = Path(__file__).parents[1] / "docs" / "speed.md"
TORCHRAY_ITERATIONS = 800


# --- step ---


def resnet50() -> nn.Module:
    """With random weights, which take as long as any."""
    return torchvision.models.resnet50(weights=None).eval().requires_grad_(False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "EfficientNet-Lite0": lambda: load_demo().model,
    "ResNet-50": resnet50,
}
SOLVERS: dict[str, Callable[[int], Solver]] = {
    "level set": lambda n: LevelSetSolver(iterations=n, shared=0.0),
    "gradient": lambda n: GradientSolver(iterations=n, tolerance=0),
}


def measure_step(repeats: int) -> Record:
    """Time and memory of a step over those of the model, for each model."""
    record = {}
    for name, make in MODELS.items():
        model = make()
        own = own_peak(model)
        for kind, solver_of in SOLVERS.items():
            times = step_times(model, solver_of(repeats + 2))
            step = peak_memory(two_steps(model, solver_of(2)), CPU)
            record[f"{kind}, {name}"] = {
                "step_seconds": spread(times["step"]),
                "model_seconds": spread(times["model"]),
                "time": ratios(times, "step", "model"),
                "memory": {"median": step / own, "step_mb": step, "model_mb": own},
            }
    return record


def step_times(model: nn.Module, solver: Solver) -> dict[str, list[float]]:
    """Steps, and passes of the model alone between them."""
    inputs = torch.randn(1, 3, *SIZE)
    own = own_pass(model, inputs.repeat(len(AREAS), 1, 1, 1))
    times: dict[str, list[float]] = {"step": [], "model": []}
    start = time.perf_counter()

    def on_step(_: int) -> None:
        nonlocal start
        end = time.perf_counter()
        own()
        after = time.perf_counter()
        times["step"].append(end - start)
        times["model"].append(after - end)
        start = time.perf_counter()

    solver.solve(problem_of(model, inputs), on_step=on_step)
    return {name: values[2:] for name, values in times.items()}


def problem_of(model: nn.Module, inputs: Tensor) -> Problem:
    """The masks of all areas of one image."""
    levels = BlurPerturbation().levels(inputs)
    return Problem(lambda x, _: model(x[0])[:, TARGET], (levels,), AREAS)


def own_pass(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    """The model's forward, and its backward with respect to the input."""

    def run() -> Tensor:
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(leaf)[:, TARGET].sum(), leaf)
        return gradient

    return run


def two_steps(model: nn.Module, solver: Solver) -> Callable[[], object]:
    """A run of two steps from the image on."""
    inputs = torch.randn(1, 3, *SIZE)
    return lambda: solver.solve(problem_of(model, inputs))


def own_peak(model: nn.Module) -> float:
    """Peak memory of the model's forward and backward, its input included."""
    return peak_memory(
        lambda: own_pass(model, torch.randn(len(AREAS), 3, *SIZE))(), CPU
    )


# --- masks ---


def measure_masks(repeats: int) -> Record:
    """Forward and backward of the mask generators, side by side."""
    cases = {
        "default": forward_backward(MaskGenerator(SIZE)),
        "same": forward_backward(
            MaskGenerator(SIZE, 7, 21, profile="torchray", margin=21)
        ),
    }
    record: Record = {
        f"{name}_mb": peak_memory(case, CPU) / len(AREAS)
        for name, case in cases.items()
    }
    peer = torchray()
    if peer is not None:
        generate = peer.MaskGenerator(SIZE, 7, 21).generate
        cases["torchray"] = forward_backward(lambda params: generate(params)[0])
        record["torchray_mb"] = peak_memory(cases["torchray"], CPU) / len(AREAS)
    times = interleaved(cases, repeats)
    record |= {f"{name}_seconds": spread(values) for name, values in times.items()}
    if peer is not None:
        record["same"] = ratios(times, "torchray", "same")
        record["default"] = ratios(times, "torchray", "default")
    return record


def forward_backward(generate: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Masks of random parameters and the gradient of their sum."""
    params = torch.rand(len(AREAS), 1, 32, 32, requires_grad=True)
    return lambda: torch.autograd.grad(generate(params).sum(), params)


# --- search ---


class Clock:
    """A model that knows how long it has been at work."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seconds = 0.0

    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's output."""
        start = time.perf_counter()
        outputs = self.model(inputs)
        self.seconds += time.perf_counter() - start
        return outputs


def measure_search(repeats: int) -> Record:
    """The search's own share, and the wall time of an image against TorchRay's code."""
    model = load_demo().model
    inputs = torch.randn(1, 3, *SIZE)
    peer = torchray()
    shares, ours, theirs, speedups = [], [], [], []
    for _ in range(repeats):
        clock = Clock(model)
        start = time.perf_counter()
        search = ExtremalPerturbation(clock, solver=SearchSolver())
        search.optimize(inputs, TARGET, AREAS[:3])
        shares.append((time.perf_counter() - start) / clock.seconds - 1)
        start = time.perf_counter()
        ExtremalPerturbation(model).optimize(inputs, TARGET, AREAS[:3])
        total = time.perf_counter() - start
        ours.append(total)
        if peer is not None:
            theirs.append(torchray_seconds(peer, model, inputs))
            speedups.append(theirs[-1] / total)
    record = {"share": spread(shares), "seconds": spread(ours)}
    if peer is not None:
        record |= {"torchray_seconds": spread(theirs), "speedup": spread(speedups)}
    return record


def torchray_seconds(peer: Any, model: nn.Module, inputs: Tensor) -> float:  # noqa: ANN401
    """Seconds of TorchRay's 800 iterations, from a run of two and one of six."""
    seconds = {}
    for iterations in (2, 6):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.extremal_perturbation(
                model,
                inputs.clone(),
                TARGET,
                areas=list(AREAS[:3]),
                max_iter=iterations,
                reward_func=lambda y, target, variant: y[:, target],  # noqa: ARG005
            )
        seconds[iterations] = time.perf_counter() - start
    one = (seconds[6] - seconds[2]) / 4
    return seconds[2] + (TORCHRAY_ITERATIONS - 2) * one


def torchray() -> Any:  # noqa: ANN401
    """TorchRay's module; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchray.attribution import extremal_perturbation
    except ImportError:
        return None
    return extremal_perturbation


# --- recipe ---


def measure_recipe(repeats: int) -> Record:
    """Seconds an image: forms of one network, and images in one forward."""
    fast = load_demo().model
    folded = plain_lite0()
    _fold_batch_norms(folded)
    batch = torch.randn(4, 3, *SIZE)

    def autocast(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fast(inputs)

    forms: dict[str, Any] = {
        "as timm makes it": plain_lite0(),
        "BatchNorm folded": folded,
        "folded, channels_last": fast,
        "folded, channels_last, bfloat16 autocast": autocast,
    }
    passes = {name: own_pass(form, batch) for name, form in forms.items()}
    times = interleaved(passes, repeats)
    sizes = {size: torch.randn(size, 3, *SIZE) for size in (1, 4, 16)}
    with torch.no_grad():
        forwards = interleaved(
            {str(size): lambda x=x: fast(x) for size, x in sizes.items()}, repeats
        )
    return {
        "forms": {
            name: spread([seconds / len(batch) for seconds in values])
            for name, values in times.items()
        },
        "forwards": {
            size: spread([seconds / int(size) for seconds in values])
            for size, values in forwards.items()
        },
    }


def plain_lite0() -> nn.Module:
    """The network as it comes, with random weights."""
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return model.eval().requires_grad_(False)


# --- large pictures ---

LARGE = (2160, 3840)
LARGE_RUN = """
import torch
from captum_extremal import ExtremalPerturbation, LevelSetSolver
def peak():  # in kB; Linux keeps ru_maxrss of the parent
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
torch.set_num_threads(1)
before = peak()
inputs = torch.rand(1, 3, 2160, 3840)
method = ExtremalPerturbation(
    lambda x: x[:, :, 540:1080].mean((1, 2, 3)), solver=LevelSetSolver(iterations=2)
)
method.optimize(inputs, areas=[0.05, 0.1, 0.2])
print((peak() - before) * 1024 / inputs.nbytes)
"""


def measure_large(repeats: int) -> Record:
    """Seconds beside the model, and memory, for a picture of 4k."""
    inputs = torch.rand(1, 3, *LARGE)
    field = Field(LARGE, None, CPU)
    values = field(torch.randn(3, *field.points))
    counts = [area_count(values[0].numel(), area) for area in AREAS[:3]]
    regions = largest(values, counts)
    widths = edge_widths(LevelSetSolver().edge, LARGE)
    cases: dict[str, Callable[[], object]] = {
        "levels": lambda: BlurPerturbation().levels(inputs),
        "regions": lambda: largest(values, counts),
        "edges": lambda: smooth_edges(regions, widths),
    }
    times = interleaved(cases, repeats)
    memory = [
        float(subprocess.check_output([sys.executable, "-c", LARGE_RUN], text=True))
        for _ in range(repeats)
    ]
    record: Record = {name: spread(values) for name, values in times.items()}
    return record | {"memory": spread(memory)}


# --- tables ---


def goals_table(parts: dict[str, Record]) -> str:
    """Goal, measured, met."""
    rows = []
    for name, goal, at_most, figure in goals(parts):
        value, quartiles = figure["median"], figure.get("quartiles")
        met = value <= goal if at_most else value >= goal
        span = f" ({quartiles[0]:.3g} to {quartiles[1]:.3g})" if quartiles else ""
        sign = "at most" if at_most else "at least"
        rows.append(
            [name, f"{sign} {goal:g}", f"{value:.3g}{span}", "yes" if met else "no"]
        )
    header = ["", "goal", "median (quartiles)", "met"]
    return measuring.table(header, rows)


def goals(parts: dict[str, Record]) -> list[tuple[str, float, bool, Record]]:
    """What is measured, its goal, whether that is an upper bound, and the figure."""
    found = []
    for model, record in parts.get("step", {}).items():
        if isinstance(record, dict) and "time" in record:
            time_name = f"step / model's own forward and backward: {model}"
            found.append((time_name, 1.05, True, record["time"]))
            memory_name = f"peak memory of a step / of the model's own pass: {model}"
            found.append((memory_name, 1.06, True, record["memory"]))
    if "search" in parts:
        record = parts["search"]
        found.append(("search's own work / model's time", 0.1, True, record["share"]))
        if "speedup" in record:
            name = "TorchRay's code / default, wall time of an image of three areas"
            found.append((name, 20, False, record["speedup"]))
    if "masks" in parts:
        record = parts["masks"]
        for name, text in (("same", "same kernel and margin"), ("default", "default")):
            if name in record:
                row = f"TorchRay's mask generator / this one, {text}"
                found.append((row, 12, False, record[name]))
            megabytes = {"median": record[f"{name}_mb"]}
            found.append((f"MB a mask, {text}", 3, True, megabytes))
    return found


def recipe_table(parts: dict[str, Record]) -> str:
    """Milliseconds an image."""
    if "recipe" not in parts:
        return "not measured"
    recipe = parts["recipe"]
    rows = [
        [f"forward and backward, 4 images: {name}", f"{figure['median'] * 1e3:.1f}"]
        for name, figure in recipe["forms"].items()
    ]
    rows += [
        [f"forward of {size} at once", f"{figure['median'] * 1e3:.1f}"]
        for size, figure in recipe["forwards"].items()
    ]
    return measuring.table(["EfficientNet-Lite0", "ms an image"], rows)


def large_table(parts: dict[str, Record]) -> str:
    """Seconds, and memory in pictures."""
    if "large" not in parts:
        return "not measured"
    record = parts["large"]
    names = {
        "levels": "8 levels of blur, s",
        "regions": "regions of three areas, s",
        "edges": "their edges, s",
        "memory": "peak memory of a run / the picture",
    }
    rows = [[text, f"{record[name]['median']:.3g}"] for name, text in names.items()]
    return measuring.table(["3 x 2160 x 3840", "median"], rows)


def origin(parts: dict[str, Record]) -> str:
    """When and where the parts were measured."""
    lines = {
        f"{m['date']}, {m['processor']}, {m['threads']} thread, torch {m['torch']}"
        for m in (record["metadata"] for record in parts.values())
    }
    return "Measured by `python studies/speed.py`: " + "; ".join(sorted(lines)) + "."


PARTS: dict[str, tuple[Callable[[int], Record], int]] = {
    "step": (measure_step, 15),
    "masks": (measure_masks, 9),
    "search": (measure_search, 3),
    "recipe": (measure_recipe, 9),
    "large": (measure_large, 3),
}


@click.command()
@click.option("--quick", is_flag=True, help="Two repeats; writes nothing.")
@click.option("--only", default=",".join(PARTS), show_default=True)
def main(quick: bool, only: str) -> None:
    """Measure, save, and print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # TorchRay's
    parts: dict[str, Record] = {}
    for name in only.split(","):
        measure, repeats = PARTS[name]
        parts[name] = measure(2 if quick else repeats)
        parts[name]["metadata"] = measuring.metadata()
        click.echo(f"{name}: {json.dumps(parts[name])}", err=True)
    if not quick:
        parts = measuring.save(RESULTS, parts)
        text = measuring.fill_in(DOCS.read_text(), "goals", goals_table(parts))
        text = measuring.fill_in(text, "recipe", recipe_table(parts))
        text = measuring.fill_in(text, "large", large_table(parts))
        DOCS.write_text(measuring.fill_in(text, "origin", origin(parts)))
    click.echo(
        f"{goals_table(parts)}\n\n{recipe_table(parts)}\n\n{large_table(parts)}\n\n{origin(parts)}"
    )


if __name__ == "__main__":
    main()
