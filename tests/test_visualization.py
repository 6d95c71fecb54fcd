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


def test_area_growth_breaks_many_areas_into_rows():
    count = 23
    result = make_result(
        masks=torch.rand(2, count, 1, HEIGHT, WIDTH),
        areas=tuple((place + 1) / count for place in range(count)),
        scores=torch.arange(2.0 * count).view(2, count),
        complement_scores=torch.zeros(2, count),
        input_score=torch.tensor([20.0, 100.0]),
    )
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    axes = rows_of(plot_area_growth(images, result, captions=["a", "b"]), 6)
    assert [len(row) for row in axes] == [9] * 6  # the image and 8, 8 and 7 areas
    assert [row[0].get_xlabel() for row in axes] == ["a", "", "", "b", "", ""]
    assert axes[1][1].get_xlabel() == "area 39.1 %\n40 %"
    assert axes[2][4].get_xlabel() == "area 87 %\n95 %"
    assert axes[2][5].get_xlabel() == "area 91.3 %\na*: 100 %"
    assert bars_of(axes[2][4])[0][0] == pytest.approx(0.95)
    assert not axes[2][8].axison
    torch.testing.assert_close(pixels(axes[5][0]), as_shown(images[1]))


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


# --- what is not ready for display ---


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


# --- what cannot be drawn ---


def result_of(images, **options):
    return lambda: plot_result(images, make_result(**options))


def compare(**changes):
    return lambda: plot_comparison(**comparison() | changes)


def class_channels(**options):
    examples = {"examples": [torch.rand(2, 3, 8, 8)]}
    return lambda: plot_class_channels(torch.rand(1, 3, 8, 8), **examples | options)


def methods(**changes):
    images = torch.rand(1, 3, 8, 8)
    arguments = {"images": images, "attributions": {"a": images}}
    return lambda: plot_methods(**arguments | changes)


def growth(images, captions=None, result=None):
    result = result or make_result()
    return lambda: plot_area_growth(images, result, captions=captions)


def channels_of(image, *index, **changes):
    return lambda: plot_channels(image, channel_result(**changes), *index)


def overlay(image, saliency, function=overlay_saliency):
    return lambda: function(torch.rand(image), saliency)


RGB, BATCH = torch.rand(3, HEIGHT, WIDTH), torch.rand(2, 3, HEIGHT, WIDTH)
BLANK = torch.ones(1, 4, 4)
IN_A_TUPLE = {"masks": (make_result().masks,) * 2}
SINGLE = ExtremalResult(
    torch.rand(1, 1, 1, 8, 8), (0.5,), *torch.zeros(2, 1, 1), *torch.zeros(2, 1)
)
NO_TUPLE = "result must hold one tensor of masks"
PICTURE = r"image must be of shape \(1 or 3, H, W\)"
PICTURES = r"images must be of shape \(N, 1 or 3, H, W\)"
SALIENCY = r"saliency must be of .* \(1, 4, 4\), got"
UNFIT = {
    torch.full((3, 8, 8), -2.0): r"must lie in \[0, 1\] .*got -2",
    torch.full((3, 8, 8), torch.nan): r"must lie in \[0, 1\]",
    torch.zeros(3, 8, 8, dtype=torch.uint8): r"must be .*got torch.uint8",
}
REFUSED = [
    (result_of(torch.rand(2, HEIGHT, WIDTH)), PICTURE),
    (result_of(torch.rand(HEIGHT, WIDTH)), PICTURE),
    (result_of(torch.rand(1, 3, 6, 8)), PICTURE),
    (result_of(RGB.mT),
     r"image must have the size of the masks, \(6, 8\), got \(8, 6\)"),
    (result_of(RGB, masks=torch.rand(2, 3, 1, 8)),
     r"size of the masks, \(8,\), got \(6, 8\)"),
    (lambda: plot_result(RGB, make_result(), -1), "index must lie in 0..1, got -1"),
    (lambda: plot_result(RGB, make_result(), 2), "index must lie in 0..1, got 2"),
    (result_of(RGB, **IN_A_TUPLE), NO_TUPLE),
    (channels_of(torch.rand(3, 2, 4), 1), r"index must lie in 0\.\.0, got 1"),
    (channels_of(torch.rand(2, 4)), "image must be of shape"),
    (channels_of(torch.rand(3, 2, 4), masks=(channel_result().masks,) * 2), NO_TUPLE),
    (overlay((3, 4, 4), torch.nan * BLANK), "saliency must be finite"),
    (overlay((3, 4, 4), torch.inf * BLANK), "saliency must be finite"),
    (overlay((3, 4, 4), BLANK[0]), rf"{SALIENCY} \(4"),
    (overlay((3, 4, 4), BLANK[:, :2]), SALIENCY),
    (overlay((3, 4, 4), BLANK.expand(3, 4, 4)), SALIENCY),
    (overlay((2, 4, 4), BLANK), r"image must be of .* \(1 or 3, H, W\), no"),
    (overlay((4, 4), BLANK), r"image must be of .* \(1 or 3, H, W\), none"),
    (overlay((3, 4, 4), torch.rand(1, 4, 5), overlay_signed), SALIENCY),
    (compare(images=torch.rand(2, 2, 6, 8)), PICTURES),
    (compare(masked=torch.rand(2, 3, 6, 7)), r"masked must be of shape \("),
    (compare(original=torch.rand(1, 3, 6, 8)),
     "original must be of shape .*, as images are"),
    (compare(saliency=BATCH), r"saliency must be of shape \(2, 1, 6, 8"),
    (compare(captions=["a"]), "captions must be one for each of 2 images, got 1"),
    (class_channels(examples=[]),
     "examples must be given for each of 1 channels, got 0"),
    (class_channels(examples=[torch.rand(3, 8, 8)]),
     r"examples must be of shape \(N, 1 or 3"),
    (class_channels(captions=[]), "captions must be one for each of 1 images, got 0"),
    (class_channels(example_captions=[["a"]]),
     "example_captions must be one for each of 2"),
    (class_channels(example_captions=[]),
     "example_captions must be given for each of 1"),
    (methods(images=torch.rand(3, 8, 8)), "images must be of shape"),
    (methods(attributions={}), "attributions must hold at least one method"),
    (methods(attributions=torch.rand(1, 1, 8, 8)), "attributions must be a dic"),
    (methods(attributions={"a": torch.rand(2, 1, 8, 8)}),
     r"attributions\['a'\] must be of shape \(1, C, H, W\), got \(2, 1, 8, 8\)"),
    (methods(attributions={"a": torch.full((1, 1, 8, 8), torch.nan)}),
     r"attributions\['a'\] must be finite, got NaN or infinity"),
    (methods(masks=torch.rand(1, 1, 8, 8)), "masks must be a dict of masks by"),
    (methods(masks={"a": torch.rand(1, 1, 4, 4)}),
     r"masks\['a'\] must be of shape \(1, 1, 8, 8\), got \(1, 1, 4, 4\)"),
    (methods(masks={"a": make_result()}),
     "images must be those of the result, 2, got 1"),
    (methods(masks={"half": torch.full((1, 1, 8, 8), torch.nan)}, attributions={}),
     r"masks\['half'\] must lie in \[0, 1\]"),
    (methods(captions=[]), "captions must be one for each of 1 images, got 0"),
    (methods(outlier_perc=100), r"outlier_perc must lie in \[0, 100\), got 100"),
    (methods(outlier_perc=-1), r"outlier_perc must lie in \[0, 100\), got -1"),
    (growth(BATCH[:1]), "images must be those of the result, 2, got 1"),
    (growth(BATCH[..., :3]), "image must have the size of the masks"),
    (growth(BATCH[:, :2]), PICTURES),
    (growth(BATCH, ["a"]), "captions must be one for each of 2 images"),
    (growth(BATCH, result=make_result(**IN_A_TUPLE)), NO_TUPLE),
    *[
        case
        for image, text in UNFIT.items()
        for case in (
            (lambda image=image: plot_result(image, SINGLE), f"image {text}"),
            (methods(images=image[None]), f"images {text}"),
            (growth(image[None], result=SINGLE), f"images {text}"),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("draw", "message"), REFUSED)
def test_what_cannot_be_drawn_is_named(draw, message):
    is_type = any(it in message for it in (NO_TUPLE, "be a dic", "uint8"))
    with pytest.raises(TypeError if is_type else ValueError, match=message):
        draw()
