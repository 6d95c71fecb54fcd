"""Attribution methods on the caller's model: left as found, one warning for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from captum_extremal._base.causes import Score
from captum_extremal._base.model import Watch, as_found


class OnModel:
    """A method that runs the caller's model: it leaves it as found and warns once."""

    forward_func: Any
    _warned_of_training = False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Always False, as attributions are not scaled by what they are of."""
        return False

    def attribute_future(self) -> NoReturn:
        """Not available, as for Captum's other perturbation methods."""
        raise NotImplementedError(
            f"attribute_future is not implemented for {type(self).__name__}"
        )

    @contextmanager
    def _model_as_found(self, device: torch.device) -> Iterator[Watch]:
        """Run the model, and put back what forwards change."""
        watch = Watch(self.forward_func, device, warned=self._warned_of_training)
        with as_found(self.forward_func, device), torch.inference_mode(False):
            try:
                yield watch
            finally:
                if watch.warned:
                    self._warned_of_training = True


def watched(
    watch: Watch, score: Score, levels: Sequence[Tensor], perturbations_per_eval: int
) -> Score:
    """The same score, which gives cause for a warning where there is any.

    For methods that do not score the untouched inputs: their first forward is looked
    at. Of a function that calls a model nothing is known, so that its first input is
    scored for this purpose, alone and beside its perturbed form.
    """
    if watch.warned or not watch.blind:
        return watch.first_call(score)
    images = torch.zeros(1, dtype=torch.long, device=levels[0].device)
    first = together = None

    def alone() -> Tensor:
        # A copy each time: the model may work in place.
        return score(tuple(level[:1, -1].clone() for level in levels), images)

    with torch.no_grad(), watch.forwards():
        try:
            first = alone()
            if perturbations_per_eval > 1:
                both = tuple(level[0, [-1, 0]] for level in levels)
                together = score(both, images.repeat(2))
        except Exception:  # the model's own, of any kind
            # It may take no such number of rows, and what else is wrong shows in the
            # run itself: to look for a warning must not fail it.
            if first is None:
                return score
    with torch.no_grad():
        watch.warn(first, alone, together)
    return score
