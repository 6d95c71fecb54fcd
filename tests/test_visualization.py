from __future__ import annotations

import dataclasses

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from captum.attr._utils.visualization import _normalize_attr
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization import (
    DELETED,
    PERTURBED,
    PRESERVED,
    UNTOUCHED,
    denormalize,
    overlay_mask,
    overlay_saliency,
    overlay_signed,
    plot_area_growth,
    plot_channels,
    plot_class_channels,
    plot_comparison,
    plot_methods,
    plot_result,
)

HEIGHT, WIDTH = 6, 8


def make_result(**changes):
    """Two images, areas 1/4, 1/2 and 3/4: left, upper and right parts are kept."""
    masks = torch.zeros(2, 3, 1, HEIGHT, WIDTH)
    masks[:, 0, 0, :, :2] = 1
    masks[:, 1, 0, :3] = 1
    masks[:, 2, 0, :, 2:] = 1
    result = ExtremalResult(
        masks=masks,
        areas=(0.25, 0.5, 0.75),
        scores=torch.tensor([[1.0, 3.0, 5.0], [0.5, 0.6, 0.7]]),
        complement_scores=torch.tensor([[4.0, 2.0, 1.0], [0.4, 0.3, 0.2]]),
        input_score=torch.tensor([2.5, 9.0]),
        perturbed_score=torch.tensor([-1.0, 0.0]),
    )
    return dataclasses.replace(result, **changes)


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def image(request):
    return torch.rand(request.param, HEIGHT, WIDTH)


def grid(figure, num_areas=3):
    """The pictures as two rows, and the axes of the curve."""
    pictures = figure.axes[: 2 * (num_areas + 1)]
    return np.array(pictures).reshape(2, num_areas + 1), figure.axes[-1]


def pixels(axes):
    (shown,) = axes.images
    return torch.from_numpy(np.array(shown.get_array())).float()


def as_shown(image):
    return image.movedim(0, -1).squeeze(-1)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


# --- channels ---


def channel_result(**changes):
    """Channel k is k + 1 in column k and 0 elsewhere."""
    activations = torch.zeros(1, 4, 2, 4)
    for channel in range(4):
        activations[0, channel, :, channel] = channel + 1
    result = ChannelResult(
        masks=torch.tensor([[[1.0, 1, 1, 0], [0, 1, 0, 0]]]),
        areas=(3, 1),
        scores=torch.tensor([[3.0, 1.0]]),
        complement_scores=torch.tensor([[0.0, 2.0]]),
        input_score=torch.tensor([2.5]),
        perturbed_score=torch.tensor([-1.0]),
        activations=activations,
    )
    return dataclasses.replace(result, **changes)


def test_channels_show_their_activation_on_the_image():
    figure = plot_channels(torch.rand(3, 2, 4), channel_result(), title="four")
    maps = {axes.get_title(): axes for axes in figure.axes[:5]}
    assert set(maps) == {
        "input",
        "a* = 3 channels",
        "channel 0",
        "channel 1",
        "channel 2",
    }
    drawn = {
        name: np.array(axes.images[-1].get_array())[0].tolist()
        for name, axes in maps.items()
        if name != "input"
    }
    assert drawn["a* = 3 channels"] == [1, 2, 3, 0]  # eq. 11
    assert drawn["channel 1"] == [0, 2, 0, 0]
    assert drawn["channel 2"] == [0, 0, 3, 0]


def test_the_curve_of_channels_is_drawn_over_their_number():
    figure = plot_channels(torch.rand(3, 2, 4), channel_result())
    curve = figure.axes[-1]
    assert curve.get_xlabel() == "number of channels"
    kept = lines(curve)["kept part alone"]
    assert kept.get_xdata().tolist() == [1, 3]
    assert kept.get_ydata().tolist() == [1, 3]
    (mark,) = curve.texts
    assert mark.get_text() == "a* = 3"


def test_without_a_star_the_largest_set_is_drawn():
    result = channel_result(input_score=torch.tensor([9.0]))
    figure = plot_channels(torch.rand(1, 2, 4), result)
    assert "3 channels" in [axes.get_title() for axes in figure.axes]
    assert not figure.axes[-1].texts


def test_a_layer_without_places_has_only_the_curve():
    result = channel_result(activations=torch.rand(1, 4, 7))
    figure = plot_channels(torch.rand(1, 2, 4), result)
    assert [axes.get_title() for axes in figure.axes if axes.images] == ["input"]


def test_channels_that_cannot_be_drawn():
    image, result = torch.rand(3, 2, 4), channel_result()
    with pytest.raises(ValueError, match=r"index must lie in 0\.\.0, got 1"):
        plot_channels(image, result, 1)
    with pytest.raises(ValueError, match="image must be of shape"):
        plot_channels(torch.rand(2, 4), result)
    several = channel_result(masks=(result.masks,) * 2)
    with pytest.raises(TypeError, match="result must hold one tensor of masks"):
        plot_channels(image, several)


# --- helpers ---


def test_denormalize_undoes_a_normalisation():
    image = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    normalised = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(
        denormalize(normalised, mean.tolist(), std.tolist()), image
    )


def test_denormalize_clips():
    image = denormalize(torch.tensor([[[-9.0, 9.0]]]), mean=[0.5], std=[0.5])
    assert image.tolist() == [[[0.0, 1.0]]]


def test_overlay_keeps_the_image_where_the_mask_is_one():
    image = torch.tensor([[[0.2, 0.4, 0.8]], [[0.6, 1.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.5, 0.0]]])
    black = overlay_mask(image, mask)
    torch.testing.assert_close(
        black, torch.tensor([[[0.2, 0.2, 0.0]], [[0.6, 0.5, 0.0]]])
    )
    grey = overlay_mask(image, mask, background=0.5)
    torch.testing.assert_close(
        grey, torch.tensor([[[0.2, 0.45, 0.5]], [[0.6, 0.75, 0.5]]])
    )


def test_overlay_takes_an_image_as_background():
    image, mask = torch.rand(3, 2, 2), torch.zeros(1, 2, 2)
    ghost = torch.rand(1, 2, 2)
    torch.testing.assert_close(overlay_mask(image, mask, ghost), ghost.expand_as(image))


# --- pictures ---


def test_first_row_is_the_input_and_what_is_kept(image):
    pictures, _ = grid(plot_result(image, make_result()))
    torch.testing.assert_close(pixels(pictures[0, 0]), as_shown(image))
    kept = pixels(pictures[0, 1])
    torch.testing.assert_close(kept[:, :2], as_shown(image)[:, :2])
    assert kept[:, 2:].max() < 0.3  # a ghost of the rest


def test_second_row_is_the_mean_and_the_masks(image):
    result = make_result()
    pictures, _ = grid(plot_result(image, result))
    torch.testing.assert_close(pixels(pictures[1, 0]), result.masks[0, :, 0].mean(0))
    for column in range(3):
        shown = pixels(pictures[1, column + 1])
        torch.testing.assert_close(shown, result.masks[0, column, 0])


def test_grey_levels_are_absolute():
    image = torch.full((1, HEIGHT, WIDTH), 0.5)
    pictures, _ = grid(plot_result(image, make_result()))
    for axes in pictures.flat:
        assert axes.images[0].get_clim() == (0, 1)


def test_titles_are_the_areas_and_captions_the_scores():
    pictures, _ = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), make_result(), 1))
    assert [axes.get_title() for axes in pictures[0]] == [
        "input",
        "25 %",
        "50 %",
        "75 %",
    ]
    assert [axes.get_xlabel() for axes in pictures[0]] == [
        "score 9.00",
        "alone 0.50",
        "alone 0.60",
        "alone 0.70",
    ]
    assert pictures[1, 1].get_xlabel() == "removed 0.40"


def test_the_outline_is_where_the_mask_is_one_half():
    masks = torch.linspace(0, 1, WIDTH).expand(2, 1, 1, HEIGHT, WIDTH)
    result = make_result(
        masks=masks,
        areas=(0.5,),
        scores=torch.zeros(2, 1),
        complement_scores=torch.zeros(2, 1),
    )
    pictures, _ = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), result), num_areas=1)
    (contour,) = pictures[0, 1].collections
    (path,) = contour.get_paths()
    np.testing.assert_allclose(path.vertices[:, 0], (WIDTH - 1) / 2)
    assert not pictures[1, 1].collections


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_mask_has_no_outline(value):
    result = make_result(masks=torch.full((2, 3, 1, HEIGHT, WIDTH), value))
    pictures, _ = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), result))
    assert not any(axes.collections for axes in pictures.flat)


def test_index_chooses_the_image():
    result = make_result()
    result.masks[1] = 1 - result.masks[1]
    pictures, curve = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), result, index=1))
    torch.testing.assert_close(pixels(pictures[1, 1]), result.masks[1, 0, 0])
    assert lines(curve)["input"].get_ydata()[0] == 9.0


def test_areas_are_drawn_in_growing_order():
    in_order, order = make_result(), [2, 0, 1]
    shuffled = make_result(
        masks=in_order.masks[:, order],
        areas=tuple(in_order.areas[place] for place in order),
        scores=in_order.scores[:, order],
        complement_scores=in_order.complement_scores[:, order],
    )
    image = torch.rand(3, HEIGHT, WIDTH)
    expected, curve = grid(plot_result(image, in_order))
    pictures, other = grid(plot_result(image, shuffled))
    for one, two in zip(expected.flat, pictures.flat, strict=True):
        assert one.get_title() == two.get_title()
        assert one.get_xlabel() == two.get_xlabel()
        torch.testing.assert_close(pixels(one), pixels(two))
    for label, line in lines(curve).items():
        if not label.startswith("_"):
            np.testing.assert_array_equal(
                line.get_xydata(), lines(other)[label].get_xydata()
            )


# --- a* ---


def frame_colors(pictures):
    return [
        {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()}
        for axes in pictures.flat
    ]


def test_the_smallest_sufficient_area_is_boxed():
    pictures, curve = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), make_result()))
    assert pictures[0, 2].get_title() == "a* = 50 %"
    boxed = [colors == {UNTOUCHED.lower()} for colors in frame_colors(pictures)]
    assert boxed == [False, False, True, False] * 2
    (mark,) = curve.texts
    assert mark.get_text() == "a* = 50 %"
    assert mark.xy[0] == 50


def test_nothing_is_boxed_where_no_area_suffices():
    figure = plot_result(torch.rand(3, HEIGHT, WIDTH), make_result(), index=1)
    pictures, curve = grid(figure)
    assert {UNTOUCHED.lower()} not in frame_colors(pictures)
    assert not curve.texts


def test_an_area_that_float32_cannot_hold_is_boxed():
    result = make_result(areas=(0.05, 0.1, 0.7))
    pictures, _ = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), result))
    assert pictures[0, 2].get_title() == "a* = 10 %"


# --- the curve ---


def test_the_curve_shows_scores_over_areas():
    _, curve = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), make_result()))
    kept, removed = (lines(curve)[f"kept part {word}"] for word in ("alone", "removed"))
    assert kept.get_xydata().tolist() == [[25, 1], [50, 3], [75, 5]]
    assert removed.get_xydata().tolist() == [[25, 4], [50, 2], [75, 1]]
    assert (kept.get_color(), removed.get_color()) == (PRESERVED, DELETED)


def test_the_curve_has_two_lines_of_reference():
    _, curve = grid(plot_result(torch.rand(3, HEIGHT, WIDTH), make_result()))
    references = lines(curve)["input"], lines(curve)["fully perturbed"]
    assert [set(line.get_ydata()) for line in references] == [{2.5}, {-1.0}]
    assert [line.get_color() for line in references] == [UNTOUCHED, PERTURBED]
    assert len({line.get_linestyle() for line in curve.lines}) >= 3


@pytest.mark.parametrize("num_areas", [1, 3])
def test_the_legend_covers_no_data(num_areas):
    result = make_result()
    result = make_result(
        masks=result.masks[:, :num_areas],
        areas=result.areas[:num_areas],
        scores=result.scores[:, :num_areas],
        complement_scores=result.complement_scores[:, :num_areas],
    )
    figure = plot_result(torch.rand(3, HEIGHT, WIDTH), result, title="title")
    figure.draw_without_rendering()
    curve = figure.axes[-1]
    legend, data = curve.get_legend().get_window_extent(), curve.get_window_extent()
    assert not legend.overlaps(data)
    page = figure.bbox
    assert legend.x0 >= page.x0
    assert legend.x1 <= page.x1
    assert legend.y0 >= page.y0


# --- the figure ---


def test_the_title_is_above_everything():
    image = torch.rand(3, HEIGHT, WIDTH)
    assert plot_result(image, make_result(), title="a cat").get_suptitle() == "a cat"
    assert plot_result(image, make_result()).get_suptitle() == ""


def test_no_window_and_no_global_state(image):
    before = dict(mpl.rcParams)
    figure = plot_result(image, make_result(), title="title")
    assert type(figure) is Figure
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_the_figure_can_be_written(image, tmp_path):
    for suffix in ("png", "svg"):
        path = tmp_path / f"figure.{suffix}"
        plot_result(image, make_result()).savefig(path)
        assert path.stat().st_size > 1000


def test_tensors_with_gradients_and_other_types_are_drawn():
    image = torch.rand(3, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    result = make_result(scores=torch.rand(2, 3, requires_grad=True))
    pictures, _ = grid(plot_result(image, result))
    expected = as_shown(image.detach().float())
    torch.testing.assert_close(pixels(pictures[0, 0]), expected)


# --- errors ---


@pytest.mark.parametrize("shape", [(2, HEIGHT, WIDTH), (HEIGHT, WIDTH), (1, 3, 6, 8)])
def test_an_image_of_another_kind(shape):
    with pytest.raises(ValueError, match=r"image must be of shape \(1 or 3, H, W\)"):
        plot_result(torch.rand(shape), make_result())


def test_an_image_of_another_size():
    message = r"image must have the size of the masks, \(6, 8\), got \(8, 6\)"
    with pytest.raises(ValueError, match=message):
        plot_result(torch.rand(3, WIDTH, HEIGHT), make_result())


def test_masks_with_another_number_of_axes():
    result = make_result(masks=torch.rand(2, 3, 1, 8))
    with pytest.raises(ValueError, match=r"size of the masks, \(8,\), got \(6, 8\)"):
        plot_result(torch.rand(3, HEIGHT, WIDTH), result)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range(index):
    with pytest.raises(ValueError, match=rf"index must lie in 0..1, got {index}"):
        plot_result(torch.rand(3, HEIGHT, WIDTH), make_result(), index)


def test_a_tuple_of_masks():
    result = make_result()
    result = make_result(masks=(result.masks, result.masks))
    with pytest.raises(TypeError, match="result must hold one tensor of masks"):
        plot_result(torch.rand(3, HEIGHT, WIDTH), result)


# --- channels ---


def test_overlay_is_the_image_where_nothing_is_salient(image):
    saliency = torch.zeros(1, HEIGHT, WIDTH)
    saliency[0, 0, 0] = 3.0
    saliency[0, 1, 1] = -3.0
    shown = overlay_saliency(image, saliency)
    expected = image.expand(3, -1, -1).clone()
    expected[:, 0, 0] = 0.25 * expected[:, 0, 0]
    warmest = mpl.colormaps["inferno"](1.0)[:3]
    expected[:, 0, 0] += 0.75 * torch.tensor(warmest)
    torch.testing.assert_close(shown, expected)


def test_overlay_does_not_depend_on_the_scale():
    image, saliency = torch.rand(3, 4, 4), torch.rand(1, 4, 4)
    once, twice = (overlay_saliency(image, k * saliency) for k in (1, 2))
    torch.testing.assert_close(once, twice)
    assert torch.equal(overlay_saliency(image, -saliency), image)


@pytest.mark.parametrize(
    ("image", "saliency", "message"),
    [
        ((3, 4, 4), torch.full((1, 4, 4), torch.nan), "saliency must be finite"),
        ((3, 4, 4), torch.full((1, 4, 4), torch.inf), "saliency must be finite"),
        (
            (3, 4, 4),
            torch.ones(4, 4),
            r"saliency must be of .* \(1, 4, 4\), got \(4",
        ),
        ((3, 4, 4), torch.ones(1, 2, 4), r"saliency must be of .* \(1, 4, 4\), got"),
        ((3, 4, 4), torch.ones(3, 4, 4), r"saliency must be of .* \(1, 4, 4\), got"),
        (
            (2, 4, 4),
            torch.ones(1, 4, 4),
            r"image must be of .* \(1 or 3, H, W\), no",
        ),
        ((4, 4), torch.ones(1, 4, 4), r"image must be of .* \(1 or 3, H, W\), none"),
    ],
)
def test_overlay_of_what_does_not_fit(image, saliency, message):
    with pytest.raises(ValueError, match=message):
        overlay_saliency(torch.rand(image), saliency)


def comparison():
    names = ("images", "original", "masked")
    parts = {name: torch.rand(2, 3, HEIGHT, WIDTH) for name in names}
    return parts | {"saliency": torch.rand(2, 1, HEIGHT, WIDTH)}


def test_a_comparison_shows_its_three_columns():
    parts = comparison()
    figure = plot_comparison(**parts, captions=["a $1", "b"], title="Fig. 9")
    axes = np.array(figure.axes).reshape(2, 3)
    for row in range(2):
        overlaid = overlay_saliency(parts["images"][row], parts["saliency"][row])
        for column, expected in enumerate(
            (overlaid, parts["original"][row], parts["masked"][row])
        ):
            shown = pixels(axes[row, column])
            torch.testing.assert_close(shown, as_shown(expected))
    assert [ax.get_xlabel() for ax in axes[:, 0]] == ["a $1", "b"]
    assert figure.get_suptitle() == "Fig. 9"
    figure.canvas.draw()


def test_channels_show_their_inversion_and_examples():
    inversions = torch.rand(2, 3, HEIGHT, WIDTH)
    examples = [torch.rand(3, 3, 4, 4), torch.rand(1, 1, 5, 5)]
    figure = plot_class_channels(
        inversions,
        examples,
        captions=["cat", "dog"],
        example_captions=[["1", "2", "3"], ["4"]],
    )
    axes = np.array(figure.axes).reshape(2, 4)
    torch.testing.assert_close(pixels(axes[1, 0]), as_shown(inversions[1]))
    torch.testing.assert_close(pixels(axes[0, 3]), as_shown(examples[0][2]))
    torch.testing.assert_close(pixels(axes[1, 1]), as_shown(examples[1][0]))
    assert [ax.get_xlabel() for ax in axes[0]] == ["cat", "1", "2", "3"]
    assert [len(ax.images) for ax in axes[1]] == [1, 1, 0, 0]
    assert not axes[1, 2].axison
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.rand(2, 2, 6, 8)},
            r"images must be of shape \(N, 1 or 3, H, W",
        ),
        (
            {"masked": torch.rand(2, 3, 6, 7)},
            r"masked must be of shape \(",
        ),
        (
            {"original": torch.rand(1, 3, 6, 8)},
            "original must be of shape .*, as images are",
        ),
        (
            {"saliency": torch.rand(2, 3, 6, 8)},
            r"saliency must be of shape \(2, 1, 6, 8",
        ),
        ({"captions": ["a"]}, "captions must be one for each of 2 images, got 1"),
    ],
)
def test_a_comparison_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        plot_comparison(**comparison() | changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": []}, "examples must be given for each of 1 channels, got 0"),
        ({"examples": [torch.rand(3, 8, 8)]}, r"examples must be of shape \(N, 1 or 3"),
        ({"captions": []}, "captions must be one for each of 1 images, got 0"),
        ({"example_captions": [["a"]]}, "example_captions must be one for each of 2"),
        ({"example_captions": []}, "example_captions must be given for each of 1"),
    ],
)
def test_channels_that_do_not_fit(options, message):
    options = {"examples": [torch.rand(2, 3, 8, 8)]} | options
    with pytest.raises(ValueError, match=message):
        plot_class_channels(torch.rand(1, 3, 8, 8), **options)


# --- methods side by side (Fig. 2) ---


def rows_of(figure, num_images):
    return np.array(figure.axes).reshape(num_images, -1)


def test_a_signed_overlay_is_red_above_0_and_blue_below(image):
    saliency = torch.zeros(1, HEIGHT, WIDTH)
    saliency[0, 0, 0], saliency[0, 1, 1], saliency[0, 2, 2] = 4.0, -2.0, -4.0
    shown = overlay_signed(image, saliency)
    pale = (0.75 + 0.25 * image.mean(dim=0)).expand(3, -1, -1)
    expected = pale.clone()
    red, blue = (torch.tensor(to_rgb(colour)) for colour in (PERTURBED, PRESERVED))
    expected[:, 0, 0] = red
    expected[:, 1, 1] = 0.5 * pale[:, 1, 1] + 0.5 * blue
    expected[:, 2, 2] = blue
    torch.testing.assert_close(shown, expected)
    assert torch.equal(overlay_signed(image, 0 * saliency), pale)


def test_a_signed_overlay_of_what_does_not_fit():
    with pytest.raises(ValueError, match=r"saliency must be of .* \(1, 4, 4\), got"):
        overlay_signed(torch.rand(3, 4, 4), torch.rand(1, 4, 5))


def test_methods_stand_in_columns_and_images_in_rows(image):
    images = torch.stack([image, image.flip(1)])
    signed, positive = torch.randn(2, 3, HEIGHT, WIDTH), torch.rand(2, 1, 2, 2)
    maps = {"ig": signed, "grad-cam": positive}
    figure = plot_methods(
        images, maps, captions=["a $1", "b"], title="Fig. 2", outlier_perc=0
    )
    axes = rows_of(figure, 2)
    assert [ax.get_title() for ax in axes[0]] == ["input", "ig", "grad-cam"]
    assert [ax.get_xlabel() for ax in axes[:, 0]] == ["a $1", "b"]
    assert figure.get_suptitle() == "Fig. 2"
    assert figure.get_supxlabel() == "red: above 0, blue: below 0"
    large = torch.nn.functional.interpolate(positive, (HEIGHT, WIDTH), mode="bilinear")
    for row in range(2):
        expected = (
            images[row],
            overlay_signed(images[row], signed[row].sum(dim=0, keepdim=True)),
            overlay_saliency(images[row], large[row]),
        )
        for ax, picture in zip(axes[row], expected, strict=True):
            torch.testing.assert_close(pixels(ax), as_shown(picture))
    figure.canvas.draw()


def test_a_method_is_signed_if_one_of_its_maps_is():
    images, maps = torch.full((2, 1, 4, 4), 0.5), torch.ones(2, 1, 4, 4)
    assert plot_methods(images, {"m": maps}).get_supxlabel() == ""
    maps[1, 0, 0, 0] = -1
    figure = plot_methods(images, {"m": maps})
    assert figure.get_supxlabel() == "red: above 0, blue: below 0"
    expected = overlay_signed(images[0], maps[0])  # without a negative value itself
    torch.testing.assert_close(pixels(rows_of(figure, 2)[0, 1]), as_shown(expected))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_outliers_are_cut_as_captum_cuts_them(sign):
    values = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)).abs()
    values[0, 0, 0, 0] = 9.0
    values[0, 0, 1] *= sign
    image = torch.zeros(1, 3, 8, 8)
    shown = {}
    for percent in (2, 20):
        captum = _normalize_attr(
            values[0, 0].numpy(), "all" if sign < 0 else "positive", percent
        )
        overlay = overlay_signed if sign < 0 else overlay_saliency
        expected = overlay(image[0], torch.from_numpy(captum)[None])
        figure = plot_methods(image, {"m": values}, outlier_perc=percent)
        shown[percent] = pixels(figure.axes[1])
        torch.testing.assert_close(shown[percent], as_shown(expected))
    assert not torch.equal(shown[2], shown[20])
    default = plot_methods(image, {"m": values})
    assert torch.equal(pixels(default.axes[1]), shown[2])


def test_a_constant_zero_map_is_the_image(image):
    figure = plot_methods(image[None], {"m": torch.zeros(1, 1, HEIGHT, WIDTH)})
    expected = image.expand(3, -1, -1)
    torch.testing.assert_close(pixels(figure.axes[1]), as_shown(expected))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_masks_show_what_they_keep_and_their_area(image):
    masks = torch.zeros(1, 1, HEIGHT, WIDTH)
    masks[..., :3] = 1
    masks[..., 3] = 0.4  # counts as outside
    figure = plot_methods(image[None], {}, masks={"left": masks})
    _, axes = figure.axes
    assert axes.get_title() == "left"
    assert texts(axes) == ["37.5 %"]
    assert len(axes.collections) == 1  # the outline
    kept = pixels(axes)
    torch.testing.assert_close(kept[:, :3], as_shown(image)[:, :3])
    ghost = 0.25 * image.mean(dim=0, keepdim=True).expand_as(image)
    torch.testing.assert_close(kept[:, 4:], as_shown(ghost)[:, 4:])


def test_of_a_result_the_masks_of_a_star_are_drawn_or_the_largest():
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    figure = plot_methods(images, {}, masks={"extremal": make_result()})
    axes = rows_of(figure, 2)
    # Of image 0 the upper half is enough, of image 1 nothing is.
    assert [texts(ax) for ax in axes[:, 1]] == [["a* = 50 %"], ["75 %"]]
    shown = pixels(axes[0, 1])
    torch.testing.assert_close(shown[:3], as_shown(images[0])[:3])
    assert shown[3:].max() < 0.3
    shown = pixels(axes[1, 1])
    torch.testing.assert_close(shown[:, 2:], as_shown(images[1])[:, 2:])


def test_long_names_and_captions_are_wrapped():
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    name = "a method with quite a long name"
    figure = plot_methods(images, {name: images}, captions=["class " * 8])
    assert figure.axes[1].get_title() == "a method with quite a\nlong name"
    assert figure.axes[0].get_xlabel().count("\n") == 1
    short = plot_methods(images, {"m": images}, captions=["class"])
    assert figure.get_figheight() > short.get_figheight()


METHODS_ERRORS = [
    ({"images": torch.rand(3, 8, 8)}, ValueError, "images must be of shape"),
    ({"attributions": {}}, ValueError, "attributions must hold at least one method"),
    ({"attributions": torch.rand(1, 1, 8, 8)}, TypeError, "attributions must be a dic"),
    (
        {"attributions": {"a": torch.rand(2, 1, 8, 8)}},
        ValueError,
        r"attributions\['a'\] must be of shape \(1, C, H, W\), got \(2, 1, 8, 8\)",
    ),
    (
        {"attributions": {"a": torch.full((1, 1, 8, 8), torch.nan)}},
        ValueError,
        r"attributions\['a'\] must be finite, got NaN or infinity",
    ),
    ({"masks": torch.rand(1, 1, 8, 8)}, TypeError, "masks must be a dict of masks by"),
    (
        {"masks": {"a": torch.rand(1, 1, 4, 4)}},
        ValueError,
        r"masks\['a'\] must be of shape \(1, 1, 8, 8\), got \(1, 1, 4, 4\)",
    ),
    (
        {"masks": {"a": make_result()}},
        ValueError,
        "images must be those of the result, 2, got 1",
    ),
    ({"captions": []}, ValueError, "captions must be one for each of 1 images, got 0"),
    (
        {"outlier_perc": 100},
        ValueError,
        r"outlier_perc must lie in \[0, 100\), got 100",
    ),
    ({"outlier_perc": -1}, ValueError, r"outlier_perc must lie in \[0, 100\), got -1"),
]


@pytest.mark.parametrize(("changes", "error", "message"), METHODS_ERRORS)
def test_methods_that_cannot_be_drawn(changes, error, message):
    images = torch.rand(1, 3, 8, 8)
    arguments = {"images": images, "attributions": {"a": images}} | changes
    with pytest.raises(error, match=message):
        plot_methods(**arguments)


# --- area growth (Fig. 5) ---


def bars_of(axes):
    """Lengths of the bars below a picture, and where the line of the input stands."""
    return [
        (bar.patches[0].get_width(), bar.lines[0].get_xdata()[0], bar.get_xlim())
        for bar in axes.child_axes
    ]


def test_area_growth_shows_what_is_kept_and_fractions_of_the_score():
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    figure = plot_area_growth(
        images, make_result(), captions=["a", "b"], title="Fig. 5"
    )
    axes = rows_of(figure, 2)
    titles = ["input", "25 %", "50 %", "75 %"]
    assert [ax.get_title() for ax in axes[0]] == titles
    labels = ["a", "40 %", "a*: 120 %", "200 %"]
    assert [ax.get_xlabel() for ax in axes[0]] == labels
    assert [ax.get_xlabel() for ax in axes[1]] == ["b", "6 %", "7 %", "8 %"]
    lengths = [bars_of(ax)[0][0] for ax in axes[0, 1:]]
    assert lengths == pytest.approx([0.4, 1.2, 2.0])
    assert bars_of(axes[0, 1])[0][1:] == (1, (0, 1.25))  # where it saturates
    assert bars_of(axes[0, 0]) == []
    shown = pixels(axes[1, 1])
    torch.testing.assert_close(shown[:, :2], as_shown(images[1])[:, :2])
    assert shown[:, 2:].max() < 0.3
    assert all(len(ax.collections) == 1 for ax in axes[:, 1:].flat)
    assert figure.get_suptitle() == "Fig. 5"
    assert "line: the input's" in figure.get_supxlabel()
    figure.canvas.draw()


def test_area_growth_frames_a_star():
    axes = rows_of(plot_area_growth(torch.rand(2, 1, HEIGHT, WIDTH), make_result()), 2)
    framed = [
        [to_hex(ax.spines["left"].get_edgecolor()) == UNTOUCHED.lower() for ax in row]
        for row in axes
    ]
    assert framed == [[False, False, True, False], [False] * 4]


def test_areas_grow_whatever_their_order():
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    result, order = make_result(), [2, 0, 1]
    shuffled = make_result(
        masks=result.masks[:, order],
        areas=tuple(result.areas[place] for place in order),
        scores=result.scores[:, order],
        complement_scores=result.complement_scores[:, order],
    )
    first, second = (plot_area_growth(images, one) for one in (result, shuffled))
    for one, other in zip(first.axes, second.axes, strict=True):
        assert one.get_xlabel() == other.get_xlabel()
        assert torch.equal(pixels(one), pixels(other))


def test_without_a_positive_score_of_the_input_there_are_no_fractions():
    result = make_result(input_score=torch.tensor([0.0, 2.0]))
    axes = rows_of(plot_area_growth(torch.rand(2, 3, HEIGHT, WIDTH), result), 2)
    labels = ["", "a*: score 1.00", "score 3.00", "score 5.00"]
    assert [ax.get_xlabel() for ax in axes[0]] == labels
    assert [len(bars_of(ax)) for ax in axes[:, 1]] == [0, 1]
    result = make_result(input_score=torch.tensor([-1.0, -2.0]))
    assert (
        plot_area_growth(torch.rand(2, 3, HEIGHT, WIDTH), result).get_supxlabel() == ""
    )


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (40, 40)])
def test_bars_lie_between_their_picture_and_its_number(size):
    masks = torch.zeros(2, 3, 1, *size)
    masks[..., :5] = 1
    figure = plot_area_growth(torch.rand(2, 3, *size), make_result(masks=masks))
    figure.canvas.draw()
    for axes in rows_of(figure, 2)[:, 1:].flat:
        (bar,) = axes.child_axes
        assert axes.bbox.y0 > bar.bbox.y1
        assert bar.bbox.y0 > axes.xaxis.label.get_window_extent().y1


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        ((1, 3, HEIGHT, WIDTH), None, "images must be those of the result, 2, got 1"),
        ((2, 3, HEIGHT, 3), None, "image must have the size of the masks"),
        ((2, 2, HEIGHT, WIDTH), None, r"images must be of shape \(N, 1 or 3, H, W\)"),
        ((2, 3, HEIGHT, WIDTH), ["a"], "captions must be one for each of 2 images"),
    ],
)
def test_area_growth_of_what_does_not_fit(images, captions, message):
    with pytest.raises(ValueError, match=message):
        plot_area_growth(torch.rand(images), make_result(), captions=captions)


def test_area_growth_of_a_tuple_of_masks():
    result = make_result()
    result = dataclasses.replace(result, masks=(result.masks,))
    with pytest.raises(TypeError, match="result must hold one tensor of masks"):
        plot_area_growth(torch.rand(2, 3, HEIGHT, WIDTH), result)


# --- what is not ready for display ---


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.full((3, 8, 8), -2.0), ValueError, r"must lie in \[0, 1\] .*got -2"),
        (torch.full((3, 8, 8), torch.nan), ValueError, r"must lie in \[0, 1\]"),
        (
            torch.zeros(3, 8, 8, dtype=torch.uint8),
            TypeError,
            r"must be .*got torch.uint8",
        ),
    ],
)
def test_a_picture_that_is_not_in_0_to_1_is_refused(image, error, message):
    result = ExtremalResult(
        torch.rand(1, 1, 1, 8, 8), (0.5,), *torch.zeros(2, 1, 1), *torch.zeros(2, 1)
    )
    with pytest.raises(error, match="image " + message):
        plot_result(image, result)
    with pytest.raises(error, match="images " + message):
        plot_methods(image[None], {"ig": torch.rand(1, 3, 8, 8)})
    with pytest.raises(error, match="images " + message):
        plot_area_growth(image[None], result)


def test_a_mask_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"masks\['half'\] must lie in \[0, 1\]"):
        plot_methods(
            torch.rand(1, 3, 8, 8),
            {},
            masks={"half": torch.full((1, 1, 8, 8), torch.nan)},
        )


def test_maps_of_any_size_are_drawn_alike():
    """Only places count, also beyond what float32 holds."""
    images, map_ = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8).double()

    def drawn(scale):
        axes = plot_methods(images, {"ig": scale * map_}).axes[1]
        return axes.images[0].get_array()

    for scale in (1e60, 1e-60):
        assert abs(drawn(scale) - drawn(1.0)).max() < 1e-5
    assert abs(drawn(1.0) - drawn(0.0)).max() > 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (200, 60)])
def test_titles_and_captions_of_plot_result_stay_inside(height, width):
    result = ExtremalResult(
        torch.rand(1, 1, 1, height, width),
        (0.5,),
        *torch.zeros(2, 1, 1),
        *torch.zeros(2, 1),
    )
    title = "IMG_20240101_123456_holiday_with_the_family: Blenheim spaniel (p = 0.93)"
    figure = plot_result(torch.rand(3, height, width), result, title=title)
    figure.canvas.draw()
    box = figure.bbox
    texts = [figure._suptitle, *(axes.xaxis.label for axes in figure.axes)]
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= box.x0
        assert extent.x1 <= box.x1
        assert extent.y1 <= box.y1
    assert figure._suptitle.get_text().replace("\n", " ") == title


def test_each_column_of_plot_class_channels_has_its_name():
    images = torch.rand(2, 3, 8, 8)
    figure = plot_class_channels(images, [images[:1], torch.rand(3, 3, 8, 8)])
    names = [axes.get_title() for axes in figure.axes]
    assert names == ["inversion", "example 1", "", "", "", "", "example 2", "example 3"]
