"""Spectra and colours of photographs, views by chance, total variation."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

from captum_extremal.channels.image_priors import (
    COLOUR_COVARIANCE,
    ImagePrior,
    colour_root,
    random_views,
    spectrum_scale,
    spectrum_to_image,
    total_variation,
    view,
)
from reference import inversion as ref

COVARIANCE = torch.tensor(COLOUR_COVARIANCE)


def random_image(size, decay=1.0, decorrelate=True, count=1, std=1.0):
    """Images and what stands in their sigmoid, divided by the slope."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, 3, size[0], size[1] // 2 + 1, 2)
    spectrum = std * torch.randn(shape, generator=generator)
    root = colour_root(3, decorrelate)
    image = spectrum_to_image(spectrum, size, spectrum_scale(size, decay), root)
    return image, torch.logit(image.double()) / 4


# --- spectrum ---


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (7, 4), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_image_of_a_spectrum_is_the_slow_sum(size, decay):
    spectrum = torch.randn(1, 1, size[0], size[1] // 2 + 1, 2)
    one = torch.eye(1)
    image = spectrum_to_image(spectrum, size, spectrum_scale(size, decay), one)
    complex_one = torch.view_as_complex(spectrum)[0, 0].numpy()
    expected = ref.pixels(complex_one, size, decay)
    np.testing.assert_allclose(image[0, 0], 1 / (1 + np.exp(-4 * expected)), atol=2e-6)


@pytest.mark.parametrize("size", [(16, 16), (15, 9), (8, 17)])
def test_pixels_have_variance_one(size):
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(4000, 1, size[0], size[1] // 2 + 1, 2, generator=generator)
    scale = spectrum_scale(size)
    pixels = torch.fft.irfft2(
        torch.view_as_complex(spectrum) * scale, s=size, norm="ortho"
    )
    assert pixels.var(dim=0).mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_power_of_a_random_image_falls_with_its_frequency(decay):
    size = (128, 128)
    _, pixels = random_image(size, decay, count=4)
    power = torch.fft.fft2(pixels.mean(dim=1)).abs().square().mean(dim=0)
    frequencies = torch.fft.fftfreq(128, dtype=torch.float64)
    radius = torch.hypot(frequencies[:, None], frequencies)
    band = (radius > 0.03) & (radius < 0.5)
    x, y = radius[band].log(), power[band].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-2 * decay, abs=0.06)


def test_an_image_of_nothing_is_grey():
    root = colour_root(3)
    spectrum = torch.zeros(2, 3, 4, 3, 2)
    image = spectrum_to_image(spectrum, (4, 5), spectrum_scale((4, 5)), root)
    assert torch.equal(image, torch.full((2, 3, 4, 5), 0.5))


# --- colours ---


def test_random_colours_have_the_covariance_of_imagenet():
    _, colours = random_image((64, 64), count=64)
    found = torch.cov(colours.movedim(1, 0).flatten(1)).float()
    torch.testing.assert_close(found, COVARIANCE, atol=0.006, rtol=0)


def test_so_have_those_of_an_image_to_first_order():
    image, _ = random_image((64, 64), count=64, std=0.1)
    found = torch.cov(image.movedim(1, 0).flatten(1)) / 0.1**2
    torch.testing.assert_close(found, COVARIANCE, atol=0.006, rtol=0)


def test_without_decorrelation_colours_are_independent():
    _, colours = random_image((64, 64), decorrelate=False, count=64)
    found = torch.corrcoef(colours.movedim(1, 0).flatten(1)).float()
    torch.testing.assert_close(found, torch.eye(3), atol=0.05, rtol=0)


def test_the_axes_of_the_colours():
    axes = colour_root(3).T
    assert (axes[0] > 0).all()  # black to white comes first
    assert axes[1][0] * axes[1][2] < 0  # then blue to yellow
    lengths = axes.norm(dim=1)
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    off = axes @ axes.T - torch.diag(lengths.square())
    torch.testing.assert_close(off, torch.zeros(3, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_colours_are_independent(channels):
    expected = math.sqrt(float(COVARIANCE.diagonal().mean())) * torch.eye(channels)
    torch.testing.assert_close(colour_root(channels), expected)


def test_the_published_covariance_is_that_of_pictures(data_root):
    from PIL import Image

    root = data_root / "imagenet_mini"
    with (root / "labels.csv").open(newline="") as file:
        paths = [root / row["file"] for row in csv.DictReader(file)]
    pictures = [Image.open(path).convert("RGB").resize((32, 32)) for path in paths]
    pixels = np.stack([np.asarray(p, dtype=np.float64) / 255 for p in pictures])
    found = np.cov(pixels.reshape(-1, 3).T)
    # Sixty pictures, made smaller: of the same size and shape, not the same numbers.
    np.testing.assert_allclose(found, COVARIANCE, atol=0.02)
    _, axes = np.linalg.eigh(found)
    ours = colour_root(3)[:, 0] / colour_root(3)[:, 0].norm()
    assert abs(axes[:, -1] @ ours.numpy()) > 0.99


# --- views ---


def still(**changes):
    return ImagePrior(**({"jitter": 0, "scale": 0, "rotate": 0} | changes))


def views(prior, count=200, size=(20, 30), seed=0):
    return random_views(count, size, prior, torch.Generator().manual_seed(seed))


def test_a_view_without_changes_is_the_image():
    images = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(view(images, views(still(), 1, (5, 7))[0]), images)


def test_jitter_moves_by_so_many_pixels():
    moves = views(still(jitter=4))
    pixels = moves[:, :, 2] * torch.tensor([30, 20]) / 2
    assert pixels.abs().amax() <= 4
    assert (pixels.amax(dim=0) > 3.8).all()
    assert (pixels.amin(dim=0) < -3.8).all()
    images = torch.rand(1, 1, 20, 30)
    two_right = torch.tensor([[1.0, 0.0, 2 * 2 / 30], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(view(images, two_right)[..., :-2], images[..., 2:])


def test_beyond_the_border_the_image_is_mirrored():
    images = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    two_right = torch.tensor([[1.0, 0.0, 2 * 2 / 4], [0.0, 1.0, 0.0]])
    expected = torch.tensor([[[[3.0, 4.0, 4.0, 3.0]]]])
    torch.testing.assert_close(view(images, two_right), expected)


def test_scale_changes_both_sides_alike():
    zooms = 1 / views(still(scale=0.25))[:, 0, 0]
    assert zooms.amin() >= 0.75
    assert zooms.amin() < 0.77
    assert zooms.amax() <= 1.25
    assert zooms.amax() > 1.23
    maps = views(still(scale=0.25))
    torch.testing.assert_close(maps[:, 0, 0], maps[:, 1, 1])


def test_rotate_turns_by_so_many_degrees():
    maps = views(still(rotate=30), size=(20, 20))
    degrees = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()
    assert degrees.abs().amax() <= 30.001
    assert degrees.amax() > 28
    assert degrees.amin() < -28


def test_a_turned_disk_stays_round_in_an_oblong_image():
    rows, columns = torch.meshgrid(
        torch.arange(40.0), torch.arange(80.0), indexing="ij"
    )
    disk = torch.exp(-((rows - 19.5) ** 2 + (columns - 39.5) ** 2) / 10)[None, None]
    for affine in views(still(rotate=90), 5, (40, 80)):
        turned = view(disk, affine)[..., 20:60]  # beyond, its mirror images come in
        torch.testing.assert_close(turned, disk[..., 20:60], atol=0.05, rtol=0)


def test_views_follow_the_seed():
    prior = ImagePrior()
    assert torch.equal(views(prior), views(prior))
    assert not torch.equal(views(prior), views(prior, seed=1))


# --- total variation ---


def test_total_variation_is_the_slow_mean():
    images = torch.rand(2, 3, 5, 7)
    expected = [ref.total_variation(image.double().numpy()) for image in images]
    assert total_variation(images).tolist() == pytest.approx(expected, rel=1e-5)


def test_total_variation_without_neighbours_is_zero():
    assert total_variation(torch.rand(2, 3, 1, 1)).tolist() == [0, 0]


# --- errors ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay": -1}, ValueError, "decay must be finite and at least 0, got -1"),
        ({"jitter": "8"}, TypeError, "jitter must be a number, got '8'"),
        ({"rotate": math.inf}, ValueError, "rotate must be finite"),
        ({"scale": 1.0}, ValueError, "scale must be below 1, got 1.0"),
        ({"total_variation": -1}, ValueError, "total_variation must be finite"),
        ({"decorrelate": 1}, TypeError, "decorrelate must be a bool, got 1"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        ImagePrior(**options)
