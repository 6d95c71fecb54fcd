from __future__ import annotations

import copy
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from captum_extremal.masks.max_convolution import (
    MaskGenerator,
    default_sigma,
    default_step,
    profile_paper,
    profile_smooth,
    profile_torchray,
    smooth_max,
)
from reference import masks as reference

PROFILES = {
    "smooth": profile_smooth,
    "paper": profile_paper,
    "torchray": profile_torchray,
}


def random_params(generator: MaskGenerator, count: int = 2) -> Tensor:
    """Parameters of all kinds: between 0 and 1, at 0 and at 1."""
    params = torch.rand(count, 1, *generator.params_size, dtype=torch.float64)
    return (1.6 * params - 0.3).clamp(0, 1)


def inner_params(generator: MaskGenerator) -> Tensor:
    """Parameters away from 0 and 1: finite differences must not leave the range."""
    shape = (2, 1, *generator.params_size)
    params = 0.05 + 0.9 * torch.rand(shape, dtype=torch.float64)
    return params.requires_grad_()


@pytest.fixture(params=["spread", "gather"])
def engine(request, monkeypatch):
    """Both ways to compute a mask: the one for CPUs, and the one for the rest."""
    if request.param == "gather":
        never_spread(monkeypatch)
    return request.param


def never_spread(monkeypatch) -> None:
    limits = {torch.float32: 0.0, torch.float64: 0.0}
    monkeypatch.setattr("captum_extremal.masks.max_convolution.MAX_EXPONENT", limits)


def used_engines(generator: MaskGenerator) -> set[str]:
    return {key[0] for key in generator._engines}


# --- smooth maximum ---


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 0.05, 1.0, 100.0])
def test_smooth_max_is_eq_7(temperature, dtype, device):
    values = torch.randn(6, dtype=torch.float64)
    expected = reference.smooth_max(values.numpy(), temperature)
    found = smooth_max(values.to(device, dtype), temperature)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_smooth_max_reduces_the_asked_dimensions():
    values = torch.randn(2, 3, 4)
    found = smooth_max(values, 0.5, dim=(0, 2))
    expected = [reference.smooth_max(values[:, j].numpy(), 0.5) for j in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert smooth_max(values, 0.5, dim=1).shape == (2, 4)


def test_smooth_max_runs_from_the_mean_to_the_maximum():
    values = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    temperatures = [math.inf, 1e3, 1.0, 0.3, 0.05, 1e-3, 0.0]
    found = [smooth_max(values, t).item() for t in temperatures]
    assert found == sorted(found)
    assert found[0] == 0.5
    assert found[1] == pytest.approx(0.5, abs=1e-3)
    assert found[-2:] == [1.0, 1.0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-300])
def test_smooth_max_stays_in_range(temperature):
    values = torch.tensor([-1e4, 1e4, 1e4])
    assert smooth_max(values, temperature).item() == 1e4
    assert smooth_max(values, 1.0).item() == 1e4


def test_smooth_max_at_temperature_0_shares_the_gradient_of_ties():
    values = torch.tensor([0.2, 1.0, 1.0], requires_grad=True)
    smooth_max(values, 0.0).backward()
    assert values.grad.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("temperature", [0.3, math.inf])
def test_smooth_max_gradient(temperature):
    values = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: smooth_max(v, temperature), values)


@pytest.mark.parametrize("temperature", [-0.1, math.nan])
def test_smooth_max_refuses_a_temperature(temperature):
    with pytest.raises(ValueError, match=f"at least 0, got {temperature}"):
        smooth_max(torch.rand(3), temperature)


def test_smooth_max_refuses_integers():
    message = "values must be a floating point tensor, got torch.int64"
    with pytest.raises(TypeError, match=message):
        smooth_max(torch.arange(3), 0.05)


# --- profiles ---


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_their_formulas(name, dtype, device):
    z = torch.linspace(0, 3, 301, dtype=torch.float64)
    expected = [reference.PROFILES[name][0](x) for x in z.tolist()]
    found = PROFILES[name](z.to(device, dtype))
    torch.testing.assert_close(
        found.cpu().double(), torch.tensor(expected).double(), atol=1e-6, rtol=0
    )


def test_the_smooth_profile_is_flat_then_falls_to_exactly_0():
    z = torch.tensor([0, 0.5, 0.75, 1, 1.25, 1.5, 2])
    root = math.sqrt(0.5)
    expected = [1, 1, 0.5 + root / 2, 0.5, 0.5 - root / 2, 0, 0]
    torch.testing.assert_close(profile_smooth(z), torch.tensor(expected))
    assert profile_smooth(z)[-2:].tolist() == [0, 0]
    assert (profile_smooth(torch.linspace(0.51, 1.5, 99)).diff() < 0).all()


@pytest.mark.parametrize("name", PROFILES)
def test_the_lipschitz_constant_is_the_steepest_slope(name):
    z = torch.linspace(0, 4, 400_001, dtype=torch.float64)
    steepest = (PROFILES[name](z).diff().abs().max() / 1e-5).item()
    generator = MaskGenerator((8, 8), step=2, sigma=10.0, profile=name)
    assert generator.lipschitz == pytest.approx(steepest / 10, rel=1e-4)
    assert generator.lipschitz >= steepest / 10 * (1 - 1e-9)


def test_the_slope_of_a_callable_is_measured():
    def tent(z):
        return (1 - z / 2).clamp(min=0)

    generator = MaskGenerator((8,), sigma=4.0, profile=tent)
    assert generator.lipschitz == pytest.approx(1 / 8)


def test_a_callable_reaches_as_far_as_its_values():
    def near(z):
        return (1 - z).clamp(min=0)

    def far(z):
        return (1 - z / 3).clamp(min=0)

    params = torch.zeros(1, 1, 9, dtype=torch.float64)
    params[..., 4] = 1
    for profile, reach in ((near, 1), (far, 3)):
        generator = MaskGenerator((33,), 4, 4, 0.0, profile)
        pixels = torch.arange(33, dtype=torch.float64)
        expected = (1 - (pixels - 16).abs() / (4 * reach)).clamp(min=0)
        torch.testing.assert_close(generator(params)[0, 0], expected)


def test_a_known_function_is_as_good_as_its_name():
    for name, function in PROFILES.items():
        by_name = MaskGenerator((20,), profile=name)
        by_function = MaskGenerator((20,), profile=function)
        assert by_function.lipschitz == by_name.lipschitz
        params = random_params(by_name)
        assert torch.equal(by_function(params), by_name(params))


@pytest.mark.parametrize(
    ("profile", "error", "message"),
    [
        ("gauss", ValueError, "profile must be 'smooth' or 'paper' or 'torchray', got"),
        (3, TypeError, "profile must be callable, got 3"),
        (lambda z: 1 + z, ValueError, r"and 1 at z = 0, got values in \[1, 9\]"),
        (lambda z: -z, ValueError, r"must return values in \[0, 1\]"),
        (lambda z: 0.5 * torch.exp(-z), ValueError, "and 0.5 at z = 0"),
        (lambda z: z * math.nan, ValueError, "values in .nan, nan."),
        (lambda z: z.sum(), ValueError, "shape of its argument"),
    ],
)
def test_a_wrong_profile_is_refused(profile, error, message):
    with pytest.raises(error, match=message):
        MaskGenerator((8, 8), profile=profile)


# --- defaults ---


@pytest.mark.parametrize(
    ("size", "step"),
    [((224, 224), 7), ((32, 32), 1), ((448, 300), 11), ((1,), 1), ((64, 512, 96), 5)],
)
def test_defaults_scale_with_the_geometric_mean_of_the_sides(size, step):
    assert default_step(size) == step
    assert default_sigma(step) == 3 * step
    generator = MaskGenerator(size)
    assert (generator.step, generator.sigma) == (step, 3 * step)
    assert generator.params_size == tuple(math.ceil(side / step) for side in size)


def test_a_given_step_scales_the_default_sigma():
    assert MaskGenerator((64, 64), step=4).sigma == 12


# --- the mask: values ---

CASES = [
    # size, step, sigma, margin
    ((1,), None, None, 0),
    ((17,), 4, 6.0, 0),
    ((17,), 4, 6.0, None),
    ((5,), 1, 3.0, 0),
    ((23, 11), 4, 9.0, 0),
    ((23, 11), 4, 9.0, 8),
    ((12, 17), 3, 6.0, None),
    ((6, 9), 3, 5.0, 2),
    ((10, 10), None, None, 0),
    ((7, 4, 5), 3, 4.0, 0),
    ((3, 2, 4), 2, 2.0, 2),
    ((3, 4, 2), 1, 1.5, 0),
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("size", "step", "sigma", "margin"), CASES)
def test_masks_are_those_of_the_paper(
    size, step, sigma, margin, profile, device, monkeypatch
):
    generator = MaskGenerator(size, step, sigma, 0.05, profile, margin)
    params = random_params(generator, count=1)
    step, sigma, margin = generator.step, generator.sigma, generator.margin
    expected = reference.smooth_mask(
        params[0, 0].numpy(), size, step, sigma, 0.05, profile, margin
    )
    for use in (lambda: None, lambda: never_spread(monkeypatch)):
        use()
        found = generator(params.to(device)).cpu()
        assert found.shape == (1, 1, *expected.shape)
        np.testing.assert_allclose(found[0, 0], expected, atol=1e-12, rtol=0)


def test_both_engines_are_used(engine):
    generator = MaskGenerator((12, 12), 3)
    generator(random_params(generator))
    assert used_engines(generator) == {engine}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-5, 0.01, 0.05, 0.5, 30.0])
def test_every_temperature(temperature, dtype, device):
    generator = MaskGenerator((15, 9), 3, 5.0, temperature)
    params = random_params(generator)
    found = generator(params.to(device, dtype)).cpu().double()
    for mask, lattice in zip(found, params, strict=True):
        expected = reference.smooth_mask(
            lattice[0].numpy(), (15, 9), 3, 5.0, temperature, "smooth"
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(mask[0], expected, atol=tolerance, rtol=0)


def test_the_temperature_may_be_set_anew():
    generator = MaskGenerator((15, 9), 3, temperature=0.2)
    params = random_params(generator)
    warm = generator(params)
    generator.temperature = 0.05
    cold = generator(params)
    assert torch.equal(cold, MaskGenerator((15, 9), 3)(params))
    assert (cold >= warm).all()
    assert (cold > warm + 0.05).any()


@pytest.mark.parametrize("option", [{"step": 5}, {"sigma": 9.0}, {"profile": "paper"}])
def test_options_change_the_mask(option):
    default = MaskGenerator((20, 20), step=4, sigma=6.0)
    params = torch.zeros(1, 1, 5, 5)
    params[0, 0, 2, 2] = 1
    changed = MaskGenerator((20, 20), **{"step": 4, "sigma": 6.0, **option})
    mask = changed(params[..., : changed.params_size[0], : changed.params_size[1]])
    assert (mask - default(params)).abs().max() > 0.2


def test_single_precision_at_the_published_size(engine):
    generator = MaskGenerator((224, 224), profile="torchray")
    params = random_params(generator).requires_grad_()
    single = params.detach().float().requires_grad_()
    exact, rough = generator(params), generator(single)
    assert (rough - exact).abs().max() < 1e-5
    weights = torch.randn_like(exact)
    (gradient,) = torch.autograd.grad(exact, params, weights)
    (rough_gradient,) = torch.autograd.grad(rough, single, weights.float())
    assert (rough_gradient - gradient).abs().max() < 2e-5 * gradient.abs().max()
    assert rough.dtype == rough_gradient.dtype == torch.float32


def test_masks_of_a_batch_are_those_of_its_examples(engine, monkeypatch):
    monkeypatch.setattr("captum_extremal.masks._engines._CPU_ELEMENTS", 2000)
    generator = MaskGenerator((21, 18), 3)
    params = random_params(generator, count=7).requires_grad_()
    together = generator(params)
    alone = torch.cat([generator(params[k : k + 1]) for k in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-14, rtol=0)
    weights = torch.randn_like(alone)
    (first,) = torch.autograd.grad(together, params, weights)
    (second,) = torch.autograd.grad(alone, params, weights)
    torch.testing.assert_close(first, second, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", [(21, 18), (40,), (7, 5, 6)])
def test_pieces_change_nothing(size, engine, monkeypatch):
    generator = MaskGenerator(size, 3)
    params = random_params(generator, count=3).requires_grad_()
    whole = generator(params)
    weights = torch.randn_like(whole)
    (expected,) = torch.autograd.grad(whole, params, weights)
    monkeypatch.setattr("captum_extremal.masks._engines._CPU_ELEMENTS", 1)
    monkeypatch.setattr("captum_extremal.masks._engines._BAND_ELEMENTS", 1)
    monkeypatch.setattr("captum_extremal.masks._engines._SHORTEST_ROW", 1)
    small = MaskGenerator(size, 3)
    found = small(params)
    (gradient,) = torch.autograd.grad(found, params, weights)
    torch.testing.assert_close(found, whole, atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-13, rtol=0)


def test_an_empty_batch(engine):
    generator = MaskGenerator((12, 9), 3)
    params = torch.zeros(0, 1, 4, 3, requires_grad=True)
    masks = generator(params)
    assert masks.shape == (0, 1, 12, 9)
    (gradient,) = torch.autograd.grad(masks.sum(), params)
    assert gradient.shape == params.shape


@pytest.mark.parametrize("size", [(9,), (9, 8), (5, 6, 7)])
def test_constant_parameters(size, engine):
    generator = MaskGenerator(size, 2, 3.0)
    zeros = torch.zeros(1, 1, *generator.params_size)
    assert generator(zeros).abs().max() == 0
    assert generator(zeros + 1).min() > 0.9
    assert generator(zeros + 1).max() <= 1


def test_rounding_never_passes_the_range(engine):
    generator = MaskGenerator((40,), 1, 2.0, profile=torch.ones_like)
    mask = generator(torch.ones(1, 1, 40))  # sums that rounding brings to 1 + 5e-7
    assert mask.max() == 1


def test_views_and_other_layouts_are_accepted(engine):
    generator = MaskGenerator((12, 9), 3)
    params = torch.rand(3, 4, 1, 2).permute(3, 2, 1, 0).requires_grad_()
    plain = params.detach().contiguous().requires_grad_()
    found, expected = generator(params), generator(plain)
    torch.testing.assert_close(found, expected)
    weights = torch.rand(12, 9, 2).movedim(-1, 0).unsqueeze(1)
    (gradient,) = torch.autograd.grad(found, params, weights)
    (second,) = torch.autograd.grad(expected, plain, weights.contiguous())
    torch.testing.assert_close(gradient, second)
    expanded = torch.ones(1).expand(2, 1, 12, 9)
    (third,) = torch.autograd.grad(generator(plain), plain, expanded)
    (fourth,) = torch.autograd.grad(generator(plain), plain, expanded.contiguous())
    torch.testing.assert_close(third, fourth)


@pytest.mark.parametrize("size", [(9,), (12, 9), (5, 6, 7)])
@pytest.mark.parametrize("margin", [0, 3])
def test_masks_own_their_memory(size, margin, engine):
    generator = MaskGenerator(size, 3, margin=margin)
    mask = generator(random_params(generator))
    assert mask.is_contiguous()
    assert mask.untyped_storage().nbytes() == mask.numel() * mask.element_size()


def test_parameters_are_left_alone(engine):
    generator = MaskGenerator((9,), 1)
    params = torch.rand(1, 1, 9, requires_grad=True)
    before = params.detach().clone()
    generator(params).sum().backward()
    assert torch.equal(params, before)


# --- the mask: gradients ---


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("size", "step", "sigma", "margin"),
    [
        ((7,), 3, 4.0, 3),
        ((7, 5), 3, 4.0, 0),
        ((5, 3), 2, 3.0, 3),
        ((3, 2, 4), 2, 2.0, 0),
    ],
)
def test_gradients(size, step, sigma, margin, profile, engine):
    generator = MaskGenerator(size, step, sigma, 0.2, profile, margin)
    params = inner_params(generator)
    assert torch.autograd.gradcheck(generator, params)


@pytest.mark.parametrize("size", [(40, 33), (24, 30), (9, 8, 10)])
def test_gradients_are_those_of_eq_7(size, engine, device):
    generator = MaskGenerator(size, 4, 9.0)
    params = random_params(generator, count=1).to(device).requires_grad_()
    pixels = torch.cartesian_prod(*map(torch.arange, size)).double()
    points = torch.cartesian_prod(*(4 * torch.arange(n) for n in generator.params_size))
    # The window holds whole disks, so that zeros alone are missing from these values.
    kernel = profile_smooth(torch.cdist(pixels, points.double()) / 9).to(device)
    values = kernel * params.flatten()
    spare = (2 * (1 + math.ceil(13.5 / 4)) + 1) ** len(size) - values.shape[1]
    weights = (values / 0.05).exp()
    expected = (weights * values).sum(1) / (weights.sum(1) + spare)
    found = generator(params).flatten()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    direction = torch.randn(len(found), dtype=torch.float64).to(device)
    (gradient,) = torch.autograd.grad(found @ direction, params)
    (second,) = torch.autograd.grad(expected @ direction, params)
    torch.testing.assert_close(gradient, second, atol=1e-11, rtol=0)


def test_gradients_run_into_those_of_the_maximum(device):
    params = torch.rand(2, 1, 6, 5, dtype=torch.float64, device=device)
    params.requires_grad_()
    weights = torch.randn(2, 1, 17, 15, dtype=torch.float64).to(device)
    exact, near = (
        torch.autograd.grad(MaskGenerator((17, 15), 3, 5.0, t)(params), params, weights)
        for t in (0.0, 1e-7)
    )
    torch.testing.assert_close(near, exact)


def test_ties_share_the_gradient_of_the_maximum(device):
    generator = MaskGenerator((9,), 4, 4.0, temperature=0.0)
    params = torch.full((1, 1, 3), 0.5, dtype=torch.float64, device=device)
    params.requires_grad_()
    mask = generator(params)
    (gradient,) = torch.autograd.grad(mask[0, 0, 2], params)
    # The pixel 2 lies between the lattice points 0 and 4, where the kernel is still 1.
    assert gradient.flatten().tolist() == [0.5, 0.5, 0.0]
    (gradient,) = torch.autograd.grad(generator(params)[0, 0, 3], params)
    assert gradient.flatten().tolist() == [0.0, 1.0, 0.0]


def test_without_any_parameter_the_maximum_is_a_tie_of_the_window():
    generator = MaskGenerator((9,), 4, 4.0, temperature=0.0)
    params = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator(params)[0, 0, 0], params)
    # 7 places in the window, of which one holds a disk that is 1 here, one a 0.5.
    torch.testing.assert_close(
        gradient.flatten(), torch.tensor([1, 0.5, 0]).double() / 7
    )


def test_a_second_derivative_is_refused(engine):
    generator = MaskGenerator((9,), 3)
    params = random_params(generator).requires_grad_()
    mask = generator(params).square().sum()
    (gradient,) = torch.autograd.grad(mask, params, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def test_the_gradient_can_be_taken_again(engine):
    generator = MaskGenerator((12, 9), 3)
    params = random_params(generator).requires_grad_()
    mask = generator(params)
    weights = torch.randn_like(mask)
    (first,) = torch.autograd.grad(mask, params, weights, retain_graph=True)
    (second,) = torch.autograd.grad(mask, params, weights)
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.zeros_like(first))


def test_a_mask_remembers_its_temperature():
    generator = MaskGenerator((12, 9), 3, temperature=0.1)
    params = random_params(generator).requires_grad_()
    mask = generator(params)
    (expected,) = torch.autograd.grad(mask.sum(), params, retain_graph=True)
    generator.temperature = 0.0
    (found,) = torch.autograd.grad(mask.sum(), params)
    assert torch.equal(found, expected)


# --- Lemma 1 ---

LATTICES = [((23,), 5, 7.0), ((19, 14), 4, 6.0), ((9, 8, 7), 3, 4.0), ((6, 7), 1, 2.0)]


@st.composite
def lattices(draw):
    """A generator's settings and parameters, some of them 0 or 1."""
    size, step, sigma = draw(st.sampled_from(LATTICES))
    generator = MaskGenerator(size, step, sigma, temperature=0.0)
    seed = draw(st.integers(0, 2**31))
    low, high = draw(st.sampled_from([(0.0, 1.0), (-2.0, 1.0), (0.0, 3.0)]))
    random = torch.Generator().manual_seed(seed)
    shape = (1, 1, *generator.params_size)
    params = torch.rand(shape, generator=random, dtype=torch.float64)
    return generator, (low + (high - low) * params).clamp(0, 1)


def at_lattice_points(generator: MaskGenerator, mask: Tensor) -> Tensor:
    return mask[(..., *[slice(None, None, generator.step)] * len(generator.size))]


def steepest(mask: Tensor, axis: int) -> Tensor:
    return mask.diff(dim=axis).abs()


@given(lattices())
@settings(max_examples=60)
def test_lemma_1_bounds(case):
    generator, params = case
    mask = generator(params)
    assert (mask <= 1).all()
    assert (at_lattice_points(generator, mask) >= params - 1e-12).all()
    ones = at_lattice_points(generator, mask)[params == 1]
    assert (ones == 1).all()


@given(lattices())
@settings(max_examples=60)
def test_lemma_1_slope(case):
    generator, params = case
    mask = generator(params)
    for axis in range(2, mask.ndim):
        assert steepest(mask, axis).max() <= generator.lipschitz + 1e-12


def test_the_slope_comes_close_to_its_bound():
    generator = MaskGenerator((80,), 20, 20.0, temperature=0.0)
    params = torch.zeros(1, 1, 4, dtype=torch.float64)
    params[..., 1] = 1
    assert steepest(generator(params), 2).max() > 0.99 * generator.lipschitz


@pytest.mark.parametrize("profile", ["paper", "torchray"])
def test_published_kernels_jump_between_cells_only(profile):
    generator = MaskGenerator((77,), 7, 21.0, 0.0, profile)
    params = torch.zeros(1, 1, 11, dtype=torch.float64)
    params[..., 5] = 1
    slopes = steepest(generator(params), 2).flatten()
    last_of_cell = torch.arange(76) % 7 == 6
    assert slopes[~last_of_cell].max() <= generator.lipschitz + 1e-12
    assert slopes[last_of_cell].max() > 3 * generator.lipschitz


def test_the_default_kernel_moves_smoothly_at_every_temperature():
    """A window that ends too early, or counts too few zeros, would show here."""
    for temperature in (0.05, 0.5):
        generator = MaskGenerator((77,), 7, 21.0, temperature)
        params = torch.zeros(1, 1, 11, dtype=torch.float64)
        params[..., 5] = 1
        curvature = generator(params).diff(n=2).abs().flatten()
        inside = torch.arange(75) % 7 < 5
        assert curvature[~inside].max() <= 1.2 * curvature[inside].max()


def test_at_temperature_0_masks_are_the_max_convolution():
    generator = MaskGenerator((7, 6), 1, 2.0, temperature=0.0)
    params = random_params(generator, count=1)
    expected = reference.max_convolution(
        params[0, 0].numpy(), lambda distance: reference.profile_smooth(distance / 2)
    )
    np.testing.assert_allclose(generator(params)[0, 0], expected, atol=1e-12)


def test_the_maximum_does_what_a_convolution_does_not():
    params = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    params[0, 0, 4, 4] = 1
    mask = MaskGenerator((9, 9), 1, 2.0)(params)[0, 0]
    blurred = reference.convolution(
        params[0, 0].numpy(), lambda distance: reference.profile_smooth(distance / 2)
    )
    assert mask[4, 4] > 1 - 1e-6
    assert blurred[4, 4] < 0.1


@given(lattices(), st.sampled_from([0.0, 0.05]), st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_larger_parameter_lowers_no_mask_that_it_leads(case, temperature, index):
    """Eq. 7 falls in a value that lies more than T below the mean, and rises in others.

    The maximum never falls; the smooth one at least not in its largest value.
    """
    generator, params = case
    generator.temperature = temperature
    more = params.clone()
    flat = more.view(-1)
    chosen = index % flat.numel() if temperature == 0 else flat.argmax()
    flat[chosen] = 1
    pixel = tuple(
        generator.step * int(i)
        for i in np.unravel_index(int(chosen), generator.params_size)
    )
    before, after = generator(params), generator(more)
    assert after[(0, 0, *pixel)] >= before[(0, 0, *pixel)] - 1e-9
    if temperature == 0:
        assert (after >= before).all()


# --- canvas and crop ---


def test_the_canvas_of_the_published_settings():
    generator = MaskGenerator((224, 224), 7, 21, profile="torchray", margin=None)
    assert generator.margin == 21
    assert generator.params_size == (32, 32)
    assert generator.canvas_size == (260, 260)
    canvas = generator(torch.rand(1, 1, 32, 32))
    assert torch.equal(generator.crop(canvas), canvas[..., 21:245, 21:245])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("margin", [3, 12])
def test_a_margin_of_whole_steps_moves_nothing(profile, margin, engine):
    wide = MaskGenerator((20, 13), 3, 6.0, profile=profile, margin=margin)
    plain = MaskGenerator((20, 13), 3, 6.0, profile=profile)
    params = random_params(plain)
    canvas = wide(params)
    assert canvas.shape[2:] == wide.canvas_size
    assert all(
        c >= s + margin for c, s in zip(wide.canvas_size, plain.size, strict=True)
    )
    torch.testing.assert_close(wide.crop(canvas), plain(params), atol=1e-14, rtol=0)


def test_any_margin_serves_the_whole_kernel():
    plain = MaskGenerator((20, 13), 3, 6.0, temperature=0.0)
    params = random_params(plain)
    for margin in range(1, 15):
        wide = MaskGenerator((20, 13), 3, 6.0, 0.0, margin=margin)
        assert torch.equal(wide.crop(wide(params)), plain(params))


def test_no_margin_means_no_crop():
    generator = MaskGenerator((20, 13), 3)
    assert generator.canvas_size == generator.size == (20, 13)
    mask = generator(random_params(generator))
    assert generator.crop(mask) is mask


def test_the_crop_passes_gradients():
    generator = MaskGenerator((8,), 2, 3.0, margin=None)
    params = inner_params(generator)
    assert torch.autograd.gradcheck(lambda p: generator.crop(generator(p)), params)


def test_a_crop_of_something_else_is_refused():
    generator = MaskGenerator((20, 13), 3, margin=3)
    message = r"canvas_mask must have the spatial size \(\d+, \d+\), got \(20, 13\)"
    with pytest.raises(ValueError, match=message):
        generator.crop(torch.zeros(1, 1, 20, 13))


# --- the module ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": ()}, ValueError, r"size must be .* of 1 to 3 integers, got \(\)"),
        ({"size": (2, 2, 2, 2)}, ValueError, "size must be a sequence of 1 to 3"),
        ({"size": 224}, ValueError, "size must be a sequence of 1 to 3 .* got 224"),
        ({"size": (8, 0)}, ValueError, "size must be at least 1, got 0"),
        ({"size": (8.0, 8)}, TypeError, "size must be an int, got 8.0"),
        ({"step": 0}, ValueError, "step must be at least 1, got 0"),
        ({"step": 1.5}, TypeError, "step must be an int, got 1.5"),
        ({"sigma": 0}, ValueError, "sigma must be positive and finite, got 0"),
        ({"sigma": math.inf}, ValueError, "sigma must be positive and finite, got inf"),
        ({"temperature": -1}, ValueError, "temperature must be .* at least 0, got -1"),
        ({"temperature": math.inf}, ValueError, "temperature must be finite"),
        ({"margin": -1}, ValueError, "margin must be at least 0, got -1"),
        ({"margin": 2.5}, TypeError, "margin must be an int, got 2.5"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MaskGenerator(**{"size": (8, 8), **arguments})


def test_a_wrong_new_temperature_is_refused():
    generator = MaskGenerator((8, 8))
    with pytest.raises(ValueError, match=r"temperature must be .* got nan"):
        generator.temperature = math.nan


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 2, 4, 4), (1, 4, 4), (4, 4)])
def test_parameters_of_a_wrong_shape_are_refused(shape):
    generator = MaskGenerator((8, 8), 2)
    with pytest.raises(ValueError, match=r"params must be of shape \(K, 1, 4, 4\)"):
        generator(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [torch.float16, torch.bfloat16, torch.int64])
def test_parameters_of_a_wrong_type_are_refused(wrong):
    generator = MaskGenerator((8, 8), 2)
    with pytest.raises(TypeError, match=f"float32 or float64, got {wrong}"):
        generator(torch.zeros(1, 1, 4, 4, dtype=wrong))


def test_settings_are_shown():
    text = "MaskGenerator((20, 13), step=3, sigma=9.0, temperature=0.05, "
    text += "profile='paper'"
    assert repr(MaskGenerator((20, 13), 3, profile="paper")) == text + ")"
    margin = MaskGenerator((20, 13), 3, profile="paper", margin=6)
    assert repr(margin) == text + ", margin=6)"


def test_the_generator_copies_and_pickles():
    generator = MaskGenerator((20, 13), 3, 5.0, 0.1, "torchray", 6)
    params = random_params(generator)
    mask = generator(params)
    for twin in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert torch.equal(twin(params), mask)
    assert list(generator.parameters()) == list(generator.buffers()) == []


def test_inference_mode_leaves_nothing_behind(engine):
    generator = MaskGenerator((20, 13), 3)
    params = random_params(generator)
    with torch.inference_mode():
        inferred = generator(params)
    params.requires_grad_()
    mask = generator(params)
    assert torch.equal(inferred, mask)
    mask.sum().backward()
    assert params.grad.abs().max() > 0


# --- memory ---


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors alive at once, of those made while it is active."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, Tensor):
                self._count(item.untyped_storage())
        return result

    def _count(self, storage):
        if storage._cdata in self.alive:
            return
        self.alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key, size):
        self.alive.discard(key)
        self.now -= size


@pytest.mark.parametrize("count", [1, 2, 4, 16])
@pytest.mark.parametrize("profile", PROFILES)
def test_memory_at_the_published_size(count, profile):
    """A tensor of pixels times window is 16 MB per mask; here are 3 in all."""
    generator = MaskGenerator((224, 224), profile=profile)
    params = torch.rand(count, 1, 32, 32, requires_grad=True)
    weights = torch.randn(count, 1, 224, 224)
    generator(params)  # the tables, made once
    with PeakMemory() as memory:
        torch.autograd.grad(generator(params), params, weights)
    assert count * 2e5 < memory.peak < count * 3e6


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_of_pieces_is_bounded(direction, monkeypatch):
    """On other devices the pieces' size bounds what is alive, whatever the batch."""
    never_spread(monkeypatch)
    monkeypatch.setattr("captum_extremal.masks._engines._CPU_ELEMENTS", 1 << 16)
    generator = MaskGenerator((112, 112), 7, 21, profile="torchray")
    params = torch.rand(8, 1, 16, 16, requires_grad=True)
    generator(params)
    pixels = 8 * 112 * 112 * 4
    with PeakMemory() as memory:
        mask = generator(params)
        if direction == "backward":
            torch.autograd.grad(mask, params, torch.ones_like(mask))
    assert memory.peak < 20 * pixels + 8 * 4 * (1 << 16)


def test_the_peak_is_seen():
    """The measure itself: two megabytes at once, one after the other."""
    with PeakMemory() as memory:
        first = torch.zeros(250_000)
        second = first + 1
        del first, second
        torch.zeros(250_000)
    assert memory.peak == 2_000_000
