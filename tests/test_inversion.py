"""`FeatureInversion`: images whose right colours and places are known by hand."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_extremal import FeatureInversion, ImagePrior, channel_saliency
from captum_extremal.channels.inversion import Inversion
from reference import inversion as ref
from tiny_models import ConvNet, traces, varied

SIZE = (12, 16)
STILL = ImagePrior(jitter=0, scale=0, rotate=0)
RED, GREEN, BLUE, GREY = range(4)


class Colours(nn.Module):
    """Channels that like one colour and dislike the others, and one for the mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1, bias=False)
        likes = torch.tensor([[2, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, 1]])
        self.layer.weight = nn.Parameter(likes[:, :, None, None] / 3)
        self.head = nn.ReLU(inplace=True)
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        return self.head(self.layer(images)).mean(dim=(2, 3))


class Tokens(nn.Module):
    """(N, 3, H, W) -> (N, 2 + patches, features): two prefix tokens, patches of 4."""

    def __init__(self, transposed: bool = False):
        super().__init__()
        self.patches = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        weight = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16
        self.patches.weight = nn.Parameter(weight.clone())
        self.block = nn.Identity()
        self.transposed = transposed

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        prefix = tokens.new_full((len(tokens), 2, 3), 7.0)
        return self.block(torch.cat([prefix, tokens], dim=1)).mean(dim=1)


def method(model=None, layer=None, **options):
    model = Colours() if model is None else model
    options = {"iterations": 30, "learning_rate": 0.2, "prior": STILL} | options
    return FeatureInversion(model, layer or model.layer, **options)


def mean_colour(images):
    return images.mean(dim=(2, 3))


# --- single channels ---


def test_a_channel_of_a_colour_gives_that_colour():
    found = method().channel([RED, GREEN, BLUE], size=SIZE)
    assert found.images.shape == (3, 3, *SIZE)
    assert mean_colour(found.images).argmax(dim=1).tolist() == [RED, GREEN, BLUE]
    assert (found.scores[0] > found.history[0, 0] + 0.2).all()


def test_the_score_of_a_channel_is_its_mean():
    model = Colours()
    found = method(model).channel([RED, GREY], size=SIZE)
    means = model.layer(found.inputs).mean(dim=(2, 3))
    expected = torch.stack([means[0, RED], means[1, GREY]])
    torch.testing.assert_close(found.scores, expected)


def test_the_score_rises():
    history = method().channel(GREY, size=SIZE).history
    assert history.shape == (1, 30)
    assert history[0, 0] == pytest.approx(0.5, abs=0.02)
    assert (history[0].diff() > 0).all()


def test_channels_are_counted_from_one_integer_or_a_tensor():
    expected = method().channel([BLUE], size=SIZE).images
    assert torch.equal(method().channel(BLUE, size=SIZE).images, expected)
    assert torch.equal(method().channel(torch.tensor(BLUE), size=SIZE).images, expected)


# --- activations ---


def red_left_blue_right():
    image = torch.zeros(1, 3, *SIZE)
    image[:, RED, :, :8] = 1
    image[:, BLUE, :, 8:] = 1
    return image


def test_an_inversion_puts_colours_where_they_were():
    inversion = method()
    activations = inversion.activations(red_left_blue_right())
    image = inversion.invert(activations, size=SIZE).images[0]
    assert image[:, :, :7].mean(dim=(1, 2)).argmax() == RED
    assert image[:, :, 9:].mean(dim=(1, 2)).argmax() == BLUE


def test_a_mask_takes_its_channels_out():
    inversion = method()
    activations = inversion.activations(red_left_blue_right())
    masks = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    image = inversion.invert(activations, masks, size=SIZE).images[0]
    whole = inversion.invert(activations, size=SIZE).images[0]
    # The red channel alone asks for what is not red on the right, blue or green.
    right, left = image[:, :, 9:].mean(dim=(1, 2)), image[:, :, :7].mean(dim=(1, 2))
    assert left.argmax() == RED
    assert right[RED] < right[BLUE] - 0.2
    assert abs(right[BLUE] - right[GREEN]) < 0.1
    assert whole[BLUE, :, 9:].mean() - whole[GREEN, :, 9:].mean() > 0.2


def test_what_is_masked_out_does_not_matter():
    inversion = method()
    first = inversion.activations(red_left_blue_right())
    second = first.clone()
    second[:, GREEN:] = torch.randn_like(second[:, GREEN:])
    masks = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    one, other = (
        inversion.invert(activations, masks, size=SIZE).images
        for activations in (first, second)
    )
    assert torch.equal(one, other)


def test_the_score_is_equation_12():
    inversion = method()
    activations = inversion.activations(varied((2, 3, *SIZE)))
    masks = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 0.25, 1.0]])
    found = inversion.invert(activations, masks, size=SIZE)
    of_found = inversion.activations(found.inputs)
    expected = [
        ref.score(*(t.double().numpy() for t in row))
        for row in zip(activations, masks, of_found, strict=True)
    ]
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_activation_itself_scores_one():
    activations = method().activations(varied((1, 3, *SIZE)))[0].double().numpy()
    assert ref.score(activations, torch.ones(4).numpy(), activations) == 1


# --- batches, seeds, progress ---


def test_an_image_does_not_depend_on_the_others():
    inversion = method(prior=ImagePrior())
    activations = inversion.activations(varied((3, 3, *SIZE)))
    together = inversion.invert(activations, size=SIZE)
    for row in range(3):
        alone = inversion.invert(activations[row : row + 1], size=SIZE)
        torch.testing.assert_close(together.images[row], alone.images[0])
        torch.testing.assert_close(together.history[row], alone.history[0])


@pytest.mark.parametrize("images_per_run", [1, 2, 5])
def test_chunks_do_not_matter(images_per_run):
    inversion = method(prior=ImagePrior())
    expected = inversion.channel(range(4), size=SIZE)
    found = inversion.channel(range(4), size=SIZE, images_per_run=images_per_run)
    torch.testing.assert_close(found.images, expected.images)
    torch.testing.assert_close(found.scores, expected.scores)


def test_the_seed_decides():
    inversion = method(prior=ImagePrior())
    first, again = (inversion.channel(RED, size=SIZE).images for _ in range(2))
    torch.manual_seed(5)
    unmoved = inversion.channel(RED, size=SIZE).images
    other = inversion.channel(RED, size=SIZE, seed=1).images
    assert torch.equal(first, again)
    assert torch.equal(first, unmoved)
    assert not torch.allclose(first, other, atol=0.01)


def test_progress_is_shown_when_asked_for(capsys):
    method(iterations=3).channel([0, 1], size=SIZE)
    assert capsys.readouterr().err == ""
    method(iterations=3).channel(
        [0, 1], size=SIZE, images_per_run=1, show_progress=True
    )
    shown = capsys.readouterr().err
    assert "Feature Inversion" in shown
    assert "6/6" in shown


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 20},
        {"learning_rate": 0.01},
        {"prior": dataclasses.replace(STILL, decay=0.5)},
        {"prior": dataclasses.replace(STILL, decorrelate=False)},
        {"prior": dataclasses.replace(STILL, jitter=3)},
        {"prior": dataclasses.replace(STILL, scale=0.3)},
        {"prior": dataclasses.replace(STILL, rotate=30)},
        {"prior": dataclasses.replace(STILL, total_variation=5.0)},
    ],
    ids=str,
)
def test_every_option_changes_the_image(options):
    activations = method().activations(red_left_blue_right())
    plain = method().invert(activations, size=SIZE).images
    other = method(**options).invert(activations, size=SIZE).images
    assert (plain - other).abs().amax() > 0.01


def test_total_variation_smooths():
    noisy = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    rough, smooth = (
        method(prior=dataclasses.replace(STILL, total_variation=weight))
        .invert(noisy, size=SIZE)
        .images
        for weight in (0.0, 20.0)
    )
    assert smooth.diff(dim=3).abs().mean() < 0.5 * rough.diff(dim=3).abs().mean()


def test_inputs_are_the_normalised_images():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    found = method(mean=mean, std=std).channel(RED, size=SIZE)
    back = found.inputs * torch.tensor(std).view(3, 1, 1)
    back = back + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(back, found.images)
    assert found.images.amin() >= 0
    assert found.images.amax() <= 1


def test_the_model_sees_normalised_images():
    seen = []

    class Watch(nn.Conv2d):
        def forward(self, images):
            seen.append(images.detach())
            return super().forward(images)

    model = Watch(3, 1, 1)
    method(model, model, mean=(1, 1, 1), std=(0.5, 0.5, 0.5), iterations=2).channel(
        0, size=SIZE
    )
    assert float(seen[1].mean()) == pytest.approx((0.5 - 1) / 0.5, abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 8), (33, 20)])
def test_any_size(size):
    found = method(iterations=3, prior=ImagePrior()).channel(GREY, size=size)
    assert found.images.shape == (1, 3, *size)
    assert found.scores[0] > 0.5


def test_grey_images():
    model = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(model.weight, -1)
    found = method(model, model, mean=(0.5,), std=(0.25,)).channel(0, size=SIZE)
    assert found.images.shape == (1, 1, *SIZE)
    assert found.images.amax() < 0.4
    assert found.inputs.mean() < -0.4


def test_double_precision():
    model = Colours().double()
    found = method(model).channel(RED, size=SIZE)
    torch.testing.assert_close(
        found.images, method().channel(RED, size=SIZE).images, atol=1e-3, rtol=0
    )


def test_on_each_device(device):
    model = Colours().to(device)
    found = method(model).channel([RED], size=SIZE)
    activations = method(model).activations(red_left_blue_right().to(device))
    inverted = method(model).invert(activations, torch.ones(1, 4), size=SIZE)
    for tensor in (*dataclasses.astuple(found), *dataclasses.astuple(inverted)):
        assert tensor.device.type == device.type


# --- tokens ---


def test_features_of_tokens():
    model = Tokens()
    inversion = method(model, model.block, channel_dim=-1)
    found = inversion.channel([RED, GREEN], size=(8, 8))
    assert mean_colour(found.images).argmax(dim=1).tolist() == [RED, GREEN]


def test_tokens_are_laid_out_on_the_image():
    model = Tokens()
    image = torch.zeros(1, 3, 8, 16)
    image[0, RED, :4, 12:] = 1  # the last patch of the first row
    activations = method(model, model.block).activations(image)
    assert activations.shape == (1, 2 + 2 * 4, 3)
    masks = torch.tensor([[1.0, 0, 0]])
    heat = channel_saliency(activations, masks, (8, 16), 2, grid=(2, 4))
    assert heat.shape == (1, 1, 8, 16)
    assert heat[0, 0].argmax() % 16 >= 13
    assert heat[0, 0, 0, -1] == 1
    assert heat[0, 0, :, :6].abs().amax() == 0


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (16, (30, 30), (4, 4)),  # patches of 7, two pixels left over
        (16, (66, 66), (4, 4)),
        (197, (224, 224), (14, 14)),
        (201, (224, 224), (14, 14)),
        (257, (224, 224), (16, 16)),
        (261, (224, 224), (16, 16)),
        (12 * 9, (51, 38), (12, 9)),
    ],
)
def test_patches_need_not_tile_the_image(count, size, grid):
    places = torch.zeros(1, count, 1)
    places[0, -1] = 1  # the patch in the lower right corner
    places[0, -grid[0] * grid[1]] = -1  # and that in the upper left one
    expected = places[:, -grid[0] * grid[1] :, 0].unflatten(1, grid)[:, None]
    expected = nn.functional.interpolate(expected, size, mode="bilinear")
    found = channel_saliency(places, torch.ones(1, 1), size, 2)
    torch.testing.assert_close(found, expected)


def test_a_grid_that_could_be_another_is_asked_for():
    tokens, mask = torch.arange(17.0).view(1, 17, 1), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"17 tokens lie .*: 3 x 3 or 4 x 4 patches"):
        channel_saliency(tokens, mask, (32, 32), 2)
    found = channel_saliency(tokens, mask, (4, 4), 2, grid=(4, 4))
    assert found.flatten().tolist() == list(range(1, 17))
    found = channel_saliency(tokens, mask, (2, 8), 2, grid=(2, 8))
    assert found.flatten().tolist() == list(range(1, 17))
    found = channel_saliency(tokens, mask, (3, 3), 2, grid=(3, 3))
    assert found.flatten().tolist() == list(range(8, 17))
    with pytest.raises(ValueError, match="grid must have at most as many patches as"):
        channel_saliency(tokens, mask, (4, 4), 2, grid=(4, 5))
    with pytest.raises(TypeError, match=r"grid must be .*, got 4"):
        channel_saliency(tokens, mask, (4, 4), 2, grid=4)
    with pytest.raises(
        ValueError, match=r"grid must be that of .* \(5, 6\), got \(4, 4"
    ):
        channel_saliency(torch.ones(1, 1, 5, 6), mask, (5, 6), grid=(4, 4))


def test_a_comparison_of_tokens():
    model = Tokens()
    inversion = method(model, model.block, channel_dim=2, iterations=2)
    inputs, masks = varied((1, 3, 8, 16)), torch.tensor([[1.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match="1 x 2 or 2 x 4 or 2 x 5 patches"):
        inversion.compare(inputs, masks)
    found = inversion.compare(inputs, masks, grid=(2, 4))
    expected = channel_saliency(
        inversion.activations(inputs), masks, (8, 16), 2, grid=(2, 4)
    )
    torch.testing.assert_close(found.saliency, expected)


# --- saliency and comparison ---


def test_saliency_is_equation_11():
    activations, masks = torch.randn(2, 4, 5, 6), torch.rand(2, 4)
    found = channel_saliency(activations, masks, (5, 6))
    for row in range(2):
        expected = ref.saliency(
            activations[row].double().numpy(), masks[row].double().numpy()
        )
        torch.testing.assert_close(found[row, 0], torch.from_numpy(expected).float())


def test_saliency_has_the_size_of_the_image():
    activations = torch.tensor([[[[0.0, 1.0]]]])
    found = channel_saliency(activations, torch.ones(1, 1), (2, 4))
    expected = torch.tensor([[[[0.0, 0.25, 0.75, 1.0]] * 2]]).reshape(1, 1, 2, 4)
    torch.testing.assert_close(found, expected)


def test_the_comparison_is_its_three_parts():
    inversion = method(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    inputs = torch.cat([red_left_blue_right(), varied((1, 3, *SIZE))]) * 2 - 1
    masks = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    found = inversion.compare(inputs, masks)
    activations = inversion.activations(inputs)
    torch.testing.assert_close(found.images, (inputs + 1) / 2)
    torch.testing.assert_close(
        found.saliency, channel_saliency(activations, masks, SIZE)
    )
    for part, expected in (
        (found.original, inversion.invert(activations, size=SIZE)),
        (found.masked, inversion.invert(activations, masks, size=SIZE)),
    ):
        for name in ("images", "inputs", "scores", "history"):
            torch.testing.assert_close(getattr(part, name), getattr(expected, name))
    assert not torch.allclose(found.original.images, found.masked.images, atol=0.1)


def test_a_comparison_names_the_images_own_row():
    inversion = method(iterations=1)
    inputs, masks = varied((2, 3, *SIZE)), torch.ones(2, 4)
    masks[1] = 0
    with pytest.raises(ValueError, match="got 0 in row 1 once masked"):
        inversion.compare(inputs, masks)
    inputs[1] = 0
    with pytest.raises(ValueError, match=r"got 0 in row 1$"):
        inversion.compare(inputs, masks)
    masks[1] = torch.nan
    with pytest.raises(ValueError, match="got NaN in row 1: no area sufficed"):
        inversion.compare(inputs, masks)
    with pytest.raises(ValueError, match="masks must be of shape"):
        inversion.compare(inputs, masks[0])


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
def test_scales_whose_squares_float32_cannot_hold(factor):
    model, scaled = Colours(), Colours()
    scaled.layer.weight = nn.Parameter(model.layer.weight.detach() * factor)
    found, expected = (
        method(m).invert(method(m).activations(red_left_blue_right()), size=SIZE)
        for m in (scaled, model)
    )
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.images, expected.images, atol=1e-3, rtol=0)


# --- precision and place ---


def test_a_default_type_does_not_matter():
    inversion = method(prior=dataclasses.replace(ImagePrior(), decorrelate=False))
    expected = inversion.channel([RED, GREY], size=SIZE)
    torch.set_default_dtype(torch.float64)
    try:
        found = inversion.channel([RED, GREY], size=SIZE)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(
        dataclasses.astuple(found), dataclasses.astuple(expected), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)


def test_a_default_type_of_a_model_without_parameters():
    torch.set_default_dtype(torch.float64)
    try:
        layer = nn.AvgPool2d(2)
        found = method(layer, layer).channel(0, size=SIZE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.images.dtype == torch.float32


def test_autocast_is_for_the_model_alone():
    seen = []
    model = Colours()
    model.layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    inversion = method(model, prior=ImagePrior())
    expected = inversion.channel([RED, GREY], size=SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        found = inversion.channel([RED, GREY], size=SIZE)
    assert seen[-1] == torch.bfloat16
    assert found.images.dtype == found.inputs.dtype == torch.float32
    # Not in the eight bits of bfloat16.
    assert not torch.equal(found.images, found.images.bfloat16().float())
    colours = mean_colour(found.images), mean_colour(expected.images)
    torch.testing.assert_close(*colours, atol=0.05, rtol=0)


def test_inputs_fit_the_models_first_parameter():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1).double()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return self.layer(self.first(images).float())

    model = Mixed()
    for forward_func in (model, model.forward):
        inversion = method(forward_func, model.layer, iterations=2)
        assert inversion.activations(varied((1, 3, *SIZE))).dtype == torch.float32
        assert inversion.channel(0, size=SIZE).images.dtype == torch.float32


def test_a_bound_method_of_a_model():
    model = Colours().double()
    inversion = method(model.forward, model.head, iterations=3)
    inputs, masks = varied((1, 3, *SIZE)), torch.ones(1, 4)
    assert inversion.activations(inputs).dtype == torch.float64
    found = inversion.compare(inputs, masks)
    assert found.original.images.dtype == torch.float32
    assert found.images.dtype == torch.float32


def test_activations_of_another_device(device):
    model = Colours().to(device)
    inputs, masks = red_left_blue_right(), torch.ones(1, 4)
    activations = method(model).activations(inputs)
    assert activations.device.type == device.type
    found = method(model).invert(activations.cpu(), masks, size=SIZE)
    assert found.images.device.type == device.type
    compared = method(model, iterations=2).compare(inputs, masks)
    assert compared.images.device.type == compared.saliency.device.type == device.type


# --- the model is left as found ---


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
def test_the_model_is_left_as_found(mode):
    model = ConvNet(3).train()
    inputs, masks = varied((2, 3, *SIZE)), torch.ones(2, 4)
    before = traces(model, inputs, masks)
    with warnings.catch_warnings(), mode():
        warnings.simplefilter("ignore")
        inversion = FeatureInversion(model, model.norm, iterations=2)
        inversion.compare(inputs, masks)
        inversion.channel(0, size=SIZE)
    assert traces(model, inputs, masks) == before


def test_inputs_made_in_inference_mode():
    inversion = method()
    with torch.inference_mode():
        inputs, masks = red_left_blue_right(), torch.ones(1, 4)
        found = inversion.compare(inputs, masks)
    expected = method().compare(red_left_blue_right(), torch.ones(1, 4))
    torch.testing.assert_close(found.masked.images, expected.masked.images)
    assert not found.images.is_inference()
    assert not found.saliency.is_inference()
    assert not found.original.images.is_inference()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 4])
def test_and_after_an_exception(error, at):
    model = Colours()
    before = traces(model)

    def fail(images):
        if model.forwards >= at:
            raise error
        return model(images)

    inversion = FeatureInversion(fail, model.layer, iterations=10)
    with pytest.raises(error):
        inversion.channel(0, size=SIZE)
    assert traces(model) == before


def test_a_model_without_gradients_of_its_own():
    model = Colours().requires_grad_(False)
    found = method(model).channel(RED, size=SIZE)
    assert mean_colour(found.images)[0].argmax() == RED


def test_what_follows_the_layer_in_place_does_no_harm():
    inputs = red_left_blue_right()
    model = Colours()
    expected = model.layer(inputs).detach()
    assert expected.amin() < 0
    assert torch.equal(method(model).activations(inputs), expected)


def test_a_training_model_is_warned_of():
    model = ConvNet(3).train()
    with pytest.warns(
        UserWarning, match=r"forward_func is in training mode \(layers no"
    ):
        FeatureInversion(model, model.conv, iterations=1).channel(0, size=SIZE)


@pytest.mark.parametrize(
    "call",
    [
        lambda inversion: inversion.activations(varied((2, 3, *SIZE))),
        lambda inversion: inversion.channel(0, size=SIZE),
        lambda inversion: inversion.invert(torch.ones(1, 4, *SIZE), size=SIZE),
        lambda inversion: inversion.compare(varied((2, 3, *SIZE)), torch.ones(2, 4)),
    ],
    ids=["activations", "channel", "invert", "compare"],
)
def test_the_warning_points_at_the_caller(call):
    model = ConvNet(3).train()
    inversion = FeatureInversion(model, model.norm, iterations=1)
    with pytest.warns(
        UserWarning, match=r"its activations depend .* meaningful im"
    ) as r:
        call(inversion)
    assert [record.filename for record in r] == [__file__]
    call(inversion)  # warned of once


# --- errors ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mean": (0.5,)}, ValueError, "mean and std must have one value for each col"),
        ({"mean": (), "std": ()}, ValueError, "one value for each colour, got 0 and 0"),
        ({"std": (1, 0, 1)}, ValueError, "std must be positive and finite, got 0"),
        ({"mean": (1, float("nan"), 1)}, ValueError, "mean must be finite, got nan"),
        ({"channel_dim": 0}, ValueError, "channel_dim must not be 0"),
        (
            {"mean": 0.5},
            TypeError,
            "mean must be a sequence of one number for each col",
        ),
        ({"std": torch.tensor(1.0)}, TypeError, "std must be a sequence of one number"),
        ({"mean": ("a", 1, 1)}, TypeError, "mean must be a number, got 'a'"),
        ({"channel_dim": 1.5}, TypeError, "channel_dim must be an int, got 1.5"),
        ({"prior": 3}, TypeError, "prior must be an ImagePrior, got int"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        method(**options)


def test_a_layer_that_is_no_module():
    with pytest.raises(TypeError, match=r"layer must be a torch\.nn\.Module, got str"):
        FeatureInversion(Colours(), "layer")


def test_a_layer_of_another_model():
    with pytest.raises(ValueError, match="layer must be a module of forward_func, got"):
        FeatureInversion(Colours(), Colours().layer)


@pytest.mark.parametrize(
    ("activations", "masks", "error", "message"),
    [
        (torch.ones(1, 4, 3, 3), None, ValueError,
         r"must be of shape \(N, 4, 12, 16\)"),
        (torch.zeros(1, 4, *SIZE), None, ValueError,
         "must not be 0 everywhere, got 0 i"),
        (torch.ones(0, 4, *SIZE), None, ValueError, "must hold at least one example"),
        (torch.ones(1, 4, *SIZE), torch.zeros(1, 4), ValueError,
         "in row 0 once masked"),
        (torch.ones(1, 4, *SIZE), torch.ones(4), ValueError,
         r"masks must be of shape \("),
        (torch.ones(1, 4, *SIZE), torch.ones(1, 3), ValueError,
         r"\(1, 4\), one value fo"),
        (torch.ones(1, 4, *SIZE), [1, 1, 1, 1], TypeError,
         "masks must be a floating po"),
        (torch.full((1, 4, *SIZE), torch.nan), None, ValueError,
         "must be finite, got NaN or inf in row 0"),
        (torch.ones(2, 4, *SIZE), torch.tensor([[1.0] * 4, [torch.nan] * 4]),
         ValueError, "got NaN in row 1: no area sufficed for that image"),
        (torch.tensor(1.0), None, ValueError,
         "must be of shape \\(N, ...\\), with values"),
        (torch.ones(3), None, ValueError, "must be of shape \\(N, ...\\), with values"),
        (torch.tensor(1.0), torch.ones(1, 4), ValueError, "must have channels besides"),
        (torch.ones(1, 4, *SIZE).int(), None, TypeError,
         "activations must be a floati"),
    ],
)  # fmt: skip
def test_wrong_activations_and_masks(activations, masks, error, message):
    with pytest.raises(error, match=message):
        method().invert(activations, masks, size=SIZE)


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        ([0, 4], ValueError, "channels must lie in 0 to 3, got 4"),
        (-1, ValueError, "channels must lie in 0 to 3, got -1"),
        (0.5, TypeError, "channels must be whole numbers, got torch.float32"),
        ([], ValueError, "channels must name at least one channel, got none"),
    ],
)
def test_wrong_channels(channels, error, message):
    with pytest.raises(error, match=message):
        method().channel(channels, size=SIZE)


def test_wrong_sizes():
    with pytest.raises(ValueError, match=r"size must be \(height, width\), got \(3,\)"):
        method().channel(0, size=(3,))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        method().channel(0, size=(3, 0))
    with pytest.raises(TypeError, match=r"size must be \(height, width\), got 32"):
        method().channel(0, size=32)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        method().channel(0, size=SIZE, seed=-1)
    with pytest.raises(TypeError, match=r"seed must be an int, got 0\.5"):
        method().channel(0, size=SIZE, seed=0.5)
    with pytest.raises(ValueError, match="images_per_run must be at least 1, got 0"):
        method().channel(0, size=SIZE, images_per_run=0)


def test_inputs_of_another_kind():
    message = (
        r"inputs must be of shape \(N, 3, H, W\), .* as mean has 3 values, got \(1, 1"
    )
    with pytest.raises(ValueError, match=message):
        method().activations(torch.ones(1, 1, 4, 4))


def test_errors_come_before_work():
    model = Colours()
    with pytest.raises(ValueError, match="must not be 0 everywhere"):
        method(model).invert(torch.zeros(1, 4, *SIZE), size=SIZE)
    assert model.forwards == 0
    with pytest.raises(ValueError, match="channels must lie in"):
        method(model).channel(9, size=SIZE)
    assert model.forwards == 1  # what tells how many there are


def test_a_relu_that_is_off():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    nn.init.ones_(model[0].weight)
    model[0].bias = nn.Parameter(torch.tensor([1.0, -9.0]))
    with pytest.raises(RuntimeError, match="none comes from channel 1 in any view of"):
        method(model, model[1]).channel([0, 1], size=SIZE)
    assert method(model, model[0]).channel([0, 1], size=SIZE).scores[1] > -9


class Off(nn.Module):
    """Channels 0 to 2 see the image, channel 3 is off, channel 4 has no gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()
        self.forwards = 0

    def forward(self, images):
        self.forwards += 1
        edges = torch.round(41 * images[:, :1])
        return self.layer(torch.cat([images, 0 * edges.relu(), edges], dim=1))


@pytest.mark.parametrize("images_per_run", [1, 8])
def test_channels_that_are_off_cost_no_work(images_per_run):
    model = Off()
    inversion = method(model, model.layer, iterations=100, prior=ImagePrior())
    message = r"none comes from channel 3, channel 3 in any view"
    with pytest.raises(RuntimeError, match=message):
        inversion.channel([0, 3, 1, 3], size=SIZE, images_per_run=images_per_run)
    assert model.forwards < 30


def test_rows_that_are_off_are_named():
    model = Off()
    activations = torch.zeros(3, 5, *SIZE)
    activations[0, 0] = activations[1, 3] = activations[2, 1] = 1
    inversion = method(model, model.layer)
    with pytest.raises(RuntimeError, match="none comes from row 1 in any view"):
        inversion.invert(activations, size=SIZE)
    masks = torch.tensor([[1.0, 0, 0, 1, 0]]).repeat(3, 1)
    activations[2, 3] = activations[1, 0] = 1
    with pytest.raises(RuntimeError, match="none comes from row 2 once masked in any"):
        inversion.invert(activations, masks, size=SIZE)


def test_a_score_that_the_views_change_is_not_off():
    model = Off()
    inversion = method(model, model.layer, iterations=20, prior=ImagePrior())
    assert inversion.channel(4, size=SIZE).history.unique().numel() > 1


def test_gradients_that_are_not_finite_cost_no_work():
    class Root(Off):
        def forward(self, images):
            flat = (0 * images).sqrt()  # an infinite slope times 0
            self.forwards += 1
            return self.layer(torch.cat([images, flat], dim=1))

    model = Root()
    inversion = method(model, model.layer, iterations=50)
    with pytest.raises(RuntimeError, match=r"must give finite .* for channel 0"):
        inversion.channel([0, 1, 4], size=SIZE, images_per_run=1)
    assert model.forwards < 10


def test_a_layer_that_does_not_see_the_image():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 2, 4, 4))
            self.layer = nn.Identity()

        def forward(self, images):
            return self.layer(self.weight.expand(len(images), -1, -1, -1))

    model = Blind()
    with pytest.raises(RuntimeError, match="forward_func must let gradients pass"):
        method(model, model.layer).channel(0, size=SIZE)


def test_a_forward_without_gradients():
    model = Colours()
    inversion = FeatureInversion(torch.no_grad()(model.forward), model.layer)
    with pytest.raises(RuntimeError, match="forward_func must let gradients pass"):
        inversion.channel(0, size=SIZE)


def test_a_layer_that_runs_twice_or_never():
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared)
    with pytest.raises(ValueError, match=r"layer must be called once .* got 2 calls"):
        FeatureInversion(twice, shared).channel(0, size=SIZE)
    with pytest.raises(ValueError, match=r"layer must be called once .* got 0 calls"):
        FeatureInversion(lambda x: x, shared).channel(0, size=SIZE)


def test_a_layer_with_two_outputs():
    class Two(nn.Module):
        def forward(self, images):
            return images, images

    two = Two()
    with pytest.raises(TypeError, match="layer must return one tensor, got Tensor, T"):
        FeatureInversion(lambda x: two(x)[0], two).channel(0, size=SIZE)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = Colours()
    with pytest.raises(RuntimeError, match=r"forward_func was made inside torch.infer"):
        method(model).channel(0, size=SIZE)
    with pytest.raises(RuntimeError, match=r"forward_func was made inside torch.infer"):
        method(model).activations(red_left_blue_right())


def test_activations_without_a_place_in_the_image():
    with pytest.raises(ValueError, match="activations must have rows and columns, or"):
        channel_saliency(torch.ones(1, 3), torch.ones(1, 3), (4, 4))
    with pytest.raises(ValueError, match=r"tokens of square patches .* got 30 tokens"):
        channel_saliency(torch.ones(1, 30, 3), torch.ones(1, 3), (8, 8), 2)


def test_the_result_holds_what_it_is_given():
    grey = torch.full((1, 3, 2, 2), 0.5)
    found = Inversion(grey, -grey, torch.ones(1), torch.zeros(1, 3))
    assert found.images is grey
    assert float(found.inputs.mean()) == -0.5


@pytest.mark.parametrize("before", [torch.no_grad, torch.enable_grad])
def test_a_compiled_model_that_has_run_gives_the_same(before):
    torch._dynamo.reset()
    model = Colours()
    fast = torch.compile(model, backend="eager")
    with before():
        fast(varied((1, 3, *SIZE)))
    found = method(fast, model.layer).channel([RED, BLUE], size=SIZE)
    expected = method(Colours()).channel([RED, BLUE], size=SIZE)
    torch.testing.assert_close(found.images, expected.images)
    inputs = varied((1, 3, *SIZE))
    torch.testing.assert_close(
        method(fast, model.layer).activations(inputs), model.layer(inputs)
    )


@pytest.mark.parametrize(
    "front",
    [lambda x: x.reshape(1, 3, *SIZE), lambda x: x[:1]],
    ids=["reshape", "first row"],
)
def test_a_model_for_batches_of_one_is_named(front):
    class One(Colours):
        def forward(self, images):
            return super().forward(front(images))

    text = "takes batches of one alone: images_per_run=1"
    with pytest.raises((RuntimeError, ValueError), match=text):
        method(One()).channel([RED, BLUE], size=SIZE)
    found = method(One()).channel([RED, BLUE], size=SIZE, images_per_run=1)
    expected = method().channel([RED, BLUE], size=SIZE, images_per_run=1)
    torch.testing.assert_close(found.images, expected.images)


def test_activations_have_a_row_for_each_image():
    class First(Colours):
        def forward(self, images):
            return super().forward(images[:1])

    with pytest.raises(ValueError, match="one row for each of the 2 images"):
        method(First()).activations(varied((2, 3, *SIZE)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("inside", [True, False])
def test_reentrant_checkpointing_is_named(inside):
    class Checked(Colours):
        def __init__(self):
            super().__init__()
            self.after = nn.Identity()

        def forward(self, images):
            return self.after(checkpoint(self.layer, images, use_reentrant=True))

    model = Checked()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        method(model, model.layer if inside else model.after).channel(0, size=SIZE)


def test_tokens_are_hinted_at_once():
    model = Tokens()
    inversion = method(model, model.block, iterations=1)
    with pytest.warns(UserWarning, match=r"channel_dim=2 or -1 takes the 3 features"):
        inversion.channel(5, size=SIZE)
    inversion.channel(6, size=SIZE)
    method(model, model.block, channel_dim=-1, iterations=1).channel(0, size=SIZE)
