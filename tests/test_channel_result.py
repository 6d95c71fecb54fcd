"""`ChannelResult`: eq. 10 and eq. 11."""

from __future__ import annotations

import pytest
import torch

from captum_extremal import ChannelResult, ExtremalResult

MASKS = torch.tensor(
    [
        [[1.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]],
        [[0.0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]],
    ]
)


def result_of(**changes):
    activations = torch.arange(16.0).view(2, 4, 2)
    fields = {
        "masks": MASKS,
        "areas": (1, 0.5, 3),
        "scores": torch.tensor([[1.0, 3.0, 4.0], [0.0, 2.0, 1.0]]),
        "complement_scores": torch.tensor([[2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]),
        "input_score": torch.tensor([2.5, 5.0]),
        "perturbed_score": torch.tensor([0.0, -1.0]),
        "activations": activations,
        "history": {"reward": torch.rand(2, 3, 5)},
        "settings": {"game": "preservation", "seed": 3},
    }
    return ChannelResult(**(fields | changes))


def test_the_curve():
    assert result_of().counts == (1, 2, 3)


def test_the_smallest_sufficient_set():
    result = result_of()
    found = result.smallest_sufficient_count()
    torch.testing.assert_close(found, torch.tensor([2.0, torch.nan]), equal_nan=True)
    assert result.smallest_sufficient_count(0.5).tolist() == [1.0, 2.0]
    each = result.smallest_sufficient_count(torch.tensor([3.5, 0.0]))
    assert each.tolist() == [3.0, 1.0]


def test_the_mask_of_the_smallest_sufficient_set():
    found = result_of().smallest_sufficient_mask()
    assert found[0].tolist() == [1, 0, 1, 0]
    assert found[1].isnan().all()
    assert result_of().smallest_sufficient_mask(0.5)[1].tolist() == [0, 1, 0, 1]


def test_of_two_areas_with_one_count_the_better_one_is_meant():
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    result = result_of(
        masks=masks,
        areas=(1, 0.5),
        scores=torch.tensor([[1.0, 3.0]]),
        input_score=torch.tensor([2.0]),
    )
    assert result.smallest_sufficient_mask().tolist() == [[0.0, 1.0]]


def test_the_saliency_map():
    result = result_of()
    # Image 0: channels (0, 1), (2, 3), (4, 5), (6, 7) over two places.
    found = result.saliency()
    assert found[0].tolist() == [0 + 4, 1 + 5]
    assert found[1].isnan().all()
    assert result.saliency(MASKS[:, 2])[0].tolist() == [0 + 2 + 4, 1 + 3 + 5]
    assert result.saliency(torch.full((2, 4), 0.5))[1].tolist() == [22.0, 24.0]


def test_the_saliency_map_of_tokens():
    tokens = torch.arange(16.0).view(2, 4, 2).transpose(1, 2).contiguous()
    result = result_of(activations=tokens, channel_dim=2)
    assert torch.equal(result.saliency()[:1], result_of().saliency()[:1])


def test_the_saliency_map_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"masks must be of shape \(2, 4\), o"):
        result_of().saliency(MASKS)
    several = result_of(masks=(MASKS, MASKS), activations=(torch.ones(2, 4, 2),) * 2)
    with pytest.raises(TypeError, match="saliency needs a layer with one tensor"):
        several.saliency()


def test_monotonic():
    assert result_of().is_monotonic().tolist() == [True, False]


def test_the_readings_are_those_of_pixels():
    result = result_of(areas=(0.25, 0.5, 0.75))
    pixels = ExtremalResult(
        masks=MASKS[:, :, None],
        **{
            name: getattr(result, name)
            for name in (
                "areas", "scores", "complement_scores", "input_score",
                "perturbed_score",
            )
        },
    )  # fmt: skip
    torch.testing.assert_close(
        result.smallest_sufficient_count() / 4,
        pixels.smallest_sufficient_area(),
        equal_nan=True,
    )
    assert torch.equal(result.is_monotonic(), pixels.is_monotonic())
