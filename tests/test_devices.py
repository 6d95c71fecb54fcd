"""What only an accelerator can show: nobody waits, and results are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    LevelSetSolver,
    MaskGenerator,
    Problem,
    SearchSolver,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

AREAS = (0.1, 0.3)


def network(device="cuda"):
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 6, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(864, 4)
    return nn.Sequential(*layers).to(device)


def problem_of(device, model=None):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 28, 28).to(device)
    levels = BlurPerturbation(num_levels=4).levels(inputs)
    model = model or network(device)
    return Problem(lambda x, _: model(x[0])[:, 2].float() * 50, (levels,), AREAS)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """Convolutions may else be computed in TF32, with ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def waiting_is_an_error():
    """Off until it is called with True; always off in the end."""

    def switch(on):
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield switch
    switch(False)


@pytest.mark.parametrize(
    "settings", [{}, {"jitter": 0.1}, {"area_scope": "canvas", "profile": "torchray"}]
)
def test_steps_between_checks_do_not_wait(settings, waiting_is_an_error):
    solver = GradientSolver(iterations=10, patience=5, tolerance=0, **settings)
    done = 0

    def on_step(_):
        nonlocal done
        done += 1
        # The fifth and the tenth step are followed by a check, which does wait.
        waiting_is_an_error(done % 5 != 0)

    solver.solve(problem_of("cuda"), on_step=on_step)
    assert done == 10


def test_steps_of_the_ascent_between_exchanges_do_not_wait(waiting_is_an_error):
    done = 0

    def on_step(_):
        nonlocal done
        done += 1
        # Fields are compared, and scores checked, before the steps 5 and 7.
        waiting_is_an_error(done not in (4, 6, 8))

    LevelSetSolver(iterations=8).solve(problem_of("cuda"), on_step=on_step)
    assert done == 8


def test_the_ascent_agrees_with_the_cpu():
    solver = LevelSetSolver(iterations=5)
    cpu, gpu = (solver.solve(problem_of(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(
        gpu.history["reward"].cpu(), cpu.history["reward"], rtol=1e-3, atol=1e-2
    )
    counts = (gpu.masks[0] >= 0.5).flatten(1).sum(1).tolist()
    assert counts == (cpu.masks[0] >= 0.5).flatten(1).sum(1).tolist()


def test_a_wait_is_seen(waiting_is_an_error):
    waiting_is_an_error(True)
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_the_descent_agrees_with_the_cpu(game):
    solver = GradientSolver(iterations=5, tolerance=0)
    found = []
    for device in ("cpu", "cuda"):
        problem = problem_of(device)
        problem = Problem(
            problem._score, problem._levels, AREAS, game, perturbations_per_eval=3
        )
        found.append(solver.solve(problem))
    cpu, gpu = found
    for name, series in cpu.history.items():
        torch.testing.assert_close(
            gpu.history[name].cpu(), series, rtol=1e-3, atol=1e-3, equal_nan=True
        )
    torch.testing.assert_close(gpu.masks[0].cpu(), cpu.masks[0], rtol=0, atol=1e-3)


def test_the_search_agrees_with_the_cpu():
    torch.manual_seed(0)
    inputs = torch.randn(1, 3, 28, 28)
    solver = SearchSolver(evaluations=24)
    cpu, gpu = (
        ExtremalPerturbation(network(device), solver=solver).optimize(
            inputs.to(device), 2, AREAS
        )
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(gpu.scores.cpu(), cpu.scores, rtol=1e-3, atol=1e-3)
    counts = (gpu.masks >= 0.5).flatten(2).sum(2).tolist()
    assert counts == (cpu.masks >= 0.5).flatten(2).sum(2).tolist()


def test_masks_stay_in_float32_under_autocast_and_channels_last():
    model = network().to(memory_format=torch.channels_last)

    def half(inputs):
        assert inputs.dtype == torch.float32
        with torch.autocast("cuda", torch.bfloat16):
            return model(inputs)

    solver = GradientSolver(iterations=5, tolerance=0)
    plain = solver.solve(problem_of("cuda")).masks[0]
    masks = solver.solve(problem_of("cuda", half)).masks[0]
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks, plain, rtol=0, atol=0.1)


def test_memory_of_masks_is_bounded():
    """Beyond masks, parameters and what the backward keeps: pieces of one size."""
    generator = MaskGenerator((224, 224)).to("cuda")
    peaks = []
    for count in (16, 256):
        params = torch.rand(count, 1, 32, 32, device="cuda", requires_grad=True)
        torch.autograd.grad(generator(params).sum(), params)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(generator(params).sum(), params)
        peaks.append((torch.cuda.max_memory_allocated() - before) / 1e6)
    assert peaks[1] - peaks[0] < 240 * 3
