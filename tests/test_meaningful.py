"""Meaningful perturbation against its formula, and each of its options."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_extremal.methods import meaningful
from captum_extremal.methods.meaningful import _Descent
from captum_extremal.peers import MeaningfulPerturbation
from captum_extremal.perturbations.blur import gaussian_blur
from captum_extremal.perturbations.levels import FadePerturbation
from reference import peers as reference
from tiny_models import varied

FAST = {"iterations": 30, "mask_size": 12, "mask_sigma": 1.0, "jitter": 1}


def disk(size=24, row=8, column=15, radius=5):
    rows, columns = torch.meshgrid(
        torch.arange(size), torch.arange(size), indexing="ij"
    )
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()


def sees(disk):
    """A probability: one half where the disk is white, all but 0 where it is black."""

    def model(x):
        return torch.sigmoid(20 * (x.mean(1) * disk).sum((1, 2)) / disk.sum() - 10)

    return model


def attribute(model, inputs, perturbation=None, **options):
    method = MeaningfulPerturbation(model, perturbation or FadePerturbation())
    return method.attribute(inputs, **FAST | options)


def descent(**options):
    settings = {
        "game": "deletion", "iterations": 1, "learning_rate": 0.1, "l1_weight": 1e-4,
        "tv_weight": 1e-2, "tv_beta": 3.0, "mask_size": 28, "mask_sigma": 5.0,
        "jitter": 4, "seed": 0,
    }  # fmt: skip
    return _Descent(**settings | options)


# --- the formula ---


@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 3)])
@pytest.mark.parametrize("game", ["deletion", "preservation"])
def test_size_and_roughness_as_in_the_paper(size, game):
    mask = torch.rand(1, 1, *size, dtype=torch.float64)
    settings = {"l1_weight": 0.3, "tv_weight": 0.7, "tv_beta": 2.5}
    settings = descent(game=game, **settings)
    found = settings._penalty(mask, settings.terms(size))
    array = mask[0, 0].numpy()
    # The roughness of a mask and its complement are equal.
    expected = reference.meaningful_penalty(
        array if game == "deletion" else 1 - array, 0.3, 0.7, 2.5
    )
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("game", ["deletion", "preservation"])
def test_each_step_is_adam_on_the_whole_objective(game):
    inputs, weights = varied((1, 2, 10, 10)), torch.randn(2, 10, 10)

    def model(x):
        return torch.tanh(0.02 * (x * weights).sum((1, 2, 3)))

    sign = 1 if game == "deletion" else -1
    whole = descent(game=game, mask_size=5, mask_sigma=1.5)
    levels = FadePerturbation().levels(inputs)
    score = lambda x, _: model(*x)  # noqa: E731
    mask = whole._start(score, [levels], torch.tensor([0]))[0]
    mean, square = torch.zeros(5, 5), torch.zeros(5, 5)

    def fine(mask):
        return gaussian_blur(F.interpolate(mask, size=(10, 10), mode="bilinear"), 1.5)

    for step in range(1, 8):
        penalty = 0.01 * (1 - mask if game == "deletion" else mask).sum() + 0.2 * (
            (mask[..., 1:, :] - mask[..., :-1, :]).abs().pow(3).sum()
            + (mask[..., 1:] - mask[..., :-1]).abs().pow(3).sum()
        )
        loss = sign * model(inputs * fine(mask)).sum() + penalty
        (gradient,) = torch.autograd.grad(loss, mask)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        move = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        mask = (mask - 0.05 * move).clamp(0, 1).detach().requires_grad_()
    expected = fine(mask).detach()
    found = attribute(
        model, inputs, game=game, iterations=7, learning_rate=0.05, l1_weight=0.01,
        tv_weight=0.2, mask_size=5, mask_sigma=1.5,
    )  # fmt: skip
    assert expected.std() > 0.02
    expected = 1 - expected if game == "deletion" else expected
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("game", ["deletion", "preservation"])
def test_it_finds_the_disk_that_the_model_sees(game):
    seen = disk()
    inputs = torch.ones(1, 1, 24, 24)
    found = attribute(
        sees(seen), inputs, game=game, iterations=150, l1_weight=2e-3, mask_size=24
    )[0, 0]
    inside, outside = found[seen == 1], found[disk(radius=8) == 0]
    assert outside.max() < 0.05
    assert inside.mean() > 0.4
    assert seen.flatten()[found.argmax()] == 1
    deleted = sees(seen)(inputs * (1 - found)) if game == "deletion" else 0.0
    kept = sees(seen)(inputs * found) if game == "preservation" else 1.0
    assert deleted < 0.1
    assert kept > 0.9


def test_the_default_perturbation_is_the_published_blur():
    inputs, seen = varied((1, 1, 24, 24)), []

    def model(x):
        seen.append(x.detach().clone())
        return x.mean((1, 2, 3))

    method = MeaningfulPerturbation(model)
    method.attribute(inputs, iterations=200, l1_weight=0, tv_weight=0, jitter=1)
    torch.testing.assert_close(seen[0], inputs)
    blurred = gaussian_blur(inputs, 10.0 * 24 / 224)
    # Where deleting lowers the mean, a pixel ends at its blur; the others stay.
    assert (seen[-1] - blurred).abs().min() < 1e-3
    assert seen[-1].min() >= torch.minimum(blurred, inputs).min() - 1e-6


# --- the start ---


def distances_of(num_cells):
    """Cells by their distance from the middle; 1 is the corner."""
    places = (torch.arange(num_cells) + 0.5) * 2 / num_cells - 1
    return (places[:, None] ** 2 + places**2).sqrt() / 2**0.5


def start_of(model, inputs, **options):
    """What is changed, or kept, before the first step; a cell for each pixel."""
    first = {"iterations": 1, "learning_rate": 1e-30, "mask_sigma": 0.0}
    found = attribute(model, inputs, mask_size=inputs.shape[-1], **first | options)
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-20)
    return found.round()


@pytest.mark.parametrize("game", ["deletion", "preservation"])
@pytest.mark.parametrize("reach", [0.25, 0.55])
def test_it_starts_from_the_smallest_disk_that_does_it(game, reach):
    seen = (distances_of(28) < reach).float()

    def model(x):
        return torch.sigmoid(20 * (x[:, 0] * seen).sum((1, 2)) / seen.sum() - 10)

    found = start_of(model, torch.ones(2, 1, 28, 28), game=game)
    radii = {radius: (distances_of(28) < radius / 10).float() for radius in range(11)}
    sizes = [r for r, disk in radii.items() if torch.equal(found[0, 0], disk)]
    assert torch.equal(found[0], found[1])
    assert len(sizes) == 1
    # Half of what the model sees makes it unsure; 99 % of the score need 3 quarters.
    area = (radii[sizes[0]] * seen).sum() / seen.sum()
    smaller = (radii[sizes[0] - 1] * seen).sum() / seen.sum()
    assert smaller < 0.7297 <= area


def test_where_no_smaller_disk_does_it_the_whole_is_the_start():
    found = start_of(lambda x: x.mean((1, 2, 3)) * 0, torch.ones(1, 1, 8, 8))
    assert (found == 1).all()


def test_nothing_is_changed_at_radius_0():
    """A grid with a cell right in the middle has it inside no disk of radius 0."""
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return x.mean((1, 2, 3))

    start_of(Model(), torch.ones(1, 1, 7, 7))
    assert (seen[0] == 1).all()
    assert (seen[10] == 0).all()


# --- jitter ---


def test_jitter_shifts_by_few_pixels_around_0_and_repeats_the_border():
    import random

    levels = torch.arange(6.0).expand(1, 2, 1, 6)
    source = random.Random(0)
    found = {
        tuple(descent(jitter=4).terms((6,)).shifted(levels, source)[0, 0, 0].tolist())
        for _ in range(60)
    }
    assert found == {
        (2, 3, 4, 5, 5, 5), (1, 2, 3, 4, 5, 5), (0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 3, 4),
    }  # fmt: skip
    same = descent(jitter=1).terms((6,)).shifted(levels, source)
    assert torch.equal(same, levels)


# --- other sizes than the published one ---

AS_PUBLISHED = {"l1_weight": None, "tv_weight": None, "mask_size": None}
AS_PUBLISHED |= {"mask_sigma": None, "jitter": None}


@pytest.mark.parametrize(
    ("size", "cells", "l1_weight", "tv_weight", "mask_sigma", "jitter"),
    [
        ((224, 224), (28, 28), 1e-4, 1e-2, (5.0, 5.0), (4, 4)),
        ((448, 448), (28, 28), 1e-4, 1e-2, (10.0, 10.0), (8, 8)),
        ((196, 256), (28, 28), 1e-4, 1e-2, (5.0, 5.0), (4, 4)),
        ((56, 56), (28, 28), 1e-4, 2.5e-3, (1.25, 1.25), (1, 1)),
        ((14, 14), (14, 14), 4e-4, 5e-3, (0.3125, 0.3125), (1, 1)),
        ((14, 14, 14), (14, 14, 14), 1e-4 / 3.5, 1e-2 / 28, (0.3125,) * 3, (1,) * 3),
        ((1024,), (128,), 6.125e-4, 6.125e-2, (1024 * 5 / 224,), (18,)),
        ((98,), (98,), 8e-4, 1e-2, (2.1875,), (2,)),
    ],
)
def test_the_published_values_scale_with_the_size(
    size, cells, l1_weight, tv_weight, mask_sigma, jitter
):
    found = descent(**AS_PUBLISHED).terms(size)
    assert found.cells == cells
    assert found.l1_weight == pytest.approx(l1_weight, rel=1e-12)
    assert found.tv_weight == pytest.approx(tv_weight, rel=1e-12)
    assert found.mask_sigma == pytest.approx(mask_sigma, rel=1e-12)
    assert found.jitter == jitter
    if size == (224, 224):  # bit for bit
        assert (found.l1_weight, found.tv_weight) == (1e-4, 1e-2)
        assert found.mask_sigma == (5, 5)
    given = descent().terms(size)
    assert (given.l1_weight, given.tv_weight) == (1e-4, 1e-2)
    assert given.mask_sigma == (5,) * len(size)
    assert given.jitter == (4,) * len(size)


def test_steps_that_stand_by_themselves_are_neither_joined_nor_shifted(monkeypatch):
    alone = lambda size: tuple(0.0 if side < 20 else side for side in size)  # noqa: E731
    monkeypatch.setattr(meaningful, "scales", alone)
    settings = descent(**AS_PUBLISHED, tv_beta=1.0)
    terms = settings.terms((12, 896))
    assert terms.cells == (12, 128)
    assert terms.jitter == (1, 16)
    assert terms.mask_sigma == (0, 20)
    assert terms.l1_weight == pytest.approx(1e-4 * 784 / (12 * 128))
    mask = torch.zeros(1, 1, 12, 128)
    mask[..., :6, :] = 1
    size = terms.l1_weight * 6 * 128
    assert float(settings._penalty(mask, terms)) == pytest.approx(size, rel=1e-5)
    mask = torch.ones(1, 1, 12, 128)
    mask[..., 64:] = 0
    rough = terms.l1_weight * 12 * 64 + terms.tv_weight * 12
    assert float(settings._penalty(mask, terms)) == pytest.approx(rough, rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "first", "last"),
    [
        ((24, 24, 24), (4, 4, 4), (12, 12, 12)),
        ((16, 24, 32), (2, 4, 16), (8, 12, 28)),
        ((96, 96), (60, 20), (76, 36)),
        ((48, 48), (4, 4), (12, 12)),
        ((32, 32), (18, 6), (26, 14)),
        ((100,), (50,), (60,)),
        ((300,), (30,), (75,)),
        ((1000,), (500,), (600,)),
    ],
)
def test_it_finds_what_the_model_sees_at_any_size(sizes, first, last):
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(sizes)
    truth[tuple(map(slice, first, last))] = 1
    weights = torch.randn(1, 1, *sizes, generator=generator) * truth
    inputs = 0.3 * torch.randn(1, 1, *sizes, generator=generator) + weights

    def probability(x):
        share = (x * weights).flatten(1).sum(1) / (weights * weights).sum()
        return (8 * share - 4).sigmoid()

    found = MeaningfulPerturbation(probability).attribute(inputs)[0, 0]
    assert found[truth == 1].mean() > 0.8
    assert found[truth == 0].mean() < 0.13
    top = found.flatten().topk(int(truth.sum())).indices
    assert truth.flatten()[top].mean() >= 0.8


def test_tensors_of_a_tuple_have_values_of_their_own():
    pair = torch.rand(1, 1, 24, 24), torch.rand(1, 2, 150)

    def model(image, line):
        return (image.mean((1, 2, 3)) + line.mean((1, 2))).sigmoid()

    found = MeaningfulPerturbation(model).attribute(pair, iterations=3)
    assert [each.shape for each in found] == [each.shape for each in pair]
    settings = descent(**AS_PUBLISHED)
    assert settings.terms((24, 24)).cells == (24, 24)
    assert settings.terms((150,)).cells == (128,)


# --- options ---


def test_every_option_changes_the_outcome():
    inputs, model = varied((1, 1, 24, 24)), sees(disk())
    base = {"iterations": 12, "jitter": 4}
    usual = attribute(model, inputs, **base)
    assert torch.equal(attribute(model, inputs, **base), usual)
    for name, value in (
        ("game", "preservation"), ("iterations", 11), ("learning_rate", 0.05),
        ("l1_weight", 1e-2), ("tv_weight", 1.0), ("tv_beta", 1.0), ("mask_size", 8),
        ("mask_sigma", 2.0), ("jitter", 2), ("seed", 1),
    ):  # fmt: skip
        other = attribute(model, inputs, **base | {name: value})
        assert not torch.allclose(other, usual, atol=1e-6), name
    blurred = MeaningfulPerturbation(model).attribute(inputs, **FAST | base)
    assert not torch.allclose(blurred, usual)


def test_a_mask_has_no_more_cells_than_pixels():
    found = attribute(sees(disk(6, 2, 2, 1)), torch.ones(1, 1, 6, 6), mask_size=28)
    same = attribute(sees(disk(6, 2, 2, 1)), torch.ones(1, 1, 6, 6), mask_size=6)
    assert torch.equal(found, same)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"game": "hybrid"}, ValueError, "game must be 'deletion' or 'preservation'"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive"),
        ({"l1_weight": -1.0}, ValueError, "l1_weight must be finite and at least 0"),
        ({"tv_weight": -1.0}, ValueError, "tv_weight must be finite and at least 0"),
        ({"tv_beta": 0.5}, ValueError, "tv_beta must be at least 1, got 0.5"),
        ({"mask_size": 0}, ValueError, "mask_size must be at least 1, got 0"),
        ({"mask_sigma": -1.0}, ValueError, "mask_sigma must be finite"),
        ({"jitter": 0}, ValueError, "jitter must be at least 1, got 0"),
    ],
)
def test_a_bad_option_is_an_error_before_any_work(options, error, text):
    def model(x):
        raise AssertionError("no work was to be done")

    with pytest.raises(error, match=text):
        attribute(model, torch.ones(1, 1, 8, 8), **options)


def test_a_model_that_cuts_the_gradient_is_an_error():
    with pytest.raises(RuntimeError, match="must let a gradient pass"):
        attribute(lambda x: x.detach().mean((1, 2, 3)), torch.ones(1, 1, 8, 8))


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(RuntimeError, match="finite scores, got NaN or inf"):
        attribute(lambda x: x.mean((1, 2, 3)) / 0, torch.ones(1, 1, 8, 8))
