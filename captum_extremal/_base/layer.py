"""One layer of the caller's model -> the tensors that it takes in or gives out.

All that reads or overwrites a layer does so here, through hooks: `Layer.read` gives
copies, `Layer.read_one` a copy with its graph, `Layer.watched` hands the tensors to
whoever changes them, and within `Layer.overwritten` the layer passes on what it is told
to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel.scatter_gather import scatter
from torch.utils._pytree import tree_leaves

from captum_extremal._base.model import modules_of
from captum_extremal._base.skipping import passed_over, skippable


class _Reached(BaseException):
    """Ends a forward at the layer asked for, unseen by ``except Exception``."""


class Layer:
    """One layer of a model, by its output or by its input.

    Args:
        model: What is run; an `nn.Module` if anything is to be passed over.
        module: The layer.
        at_input: Whether its positional arguments are meant, not its output.
        device_ids: Of a model that is replicated on several devices, in the order of
            the parts of a batch; None for those of the model itself, if it has any.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Flatten())
        >>> layer = Layer(model, model[1])
        >>> (found,) = layer.read([lambda: model(torch.zeros(1, 2))])
        >>> with layer.overwritten():
        ...     layer.values = (torch.tensor([[3.0, -4.0]]),)
        ...     model(torch.zeros(1, 2))
        tensor([[ 3., -4.]])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        module: nn.Module,
        at_input: bool = False,
        device_ids: Sequence[int] | None = None,
    ) -> None:
        self._model = model
        self.module = module
        self.at_input = at_input
        self.device_ids = device_ids or getattr(model, "device_ids", None) or None
        self.values: tuple[Tensor, ...] = ()
        self._kind: type[tuple[Tensor, ...]] | None = None  # None: a tensor alone
        self._skipped: list[nn.Module] = []

    def read(self, forwards: Sequence[Callable[[], object]]) -> tuple[Tensor, ...]:
        """Run the model; what the layer took in or gave out, without gradient.

        Args:
            forwards: Each runs the model on a part of the batch.

        Returns:
            For each tensor of the layer its values, of all parts in a row.

        Raises:
            ValueError: If a forward does not call the layer exactly once.
            TypeError: If what is read is not made of tensors.
        """
        with torch.no_grad():
            parts = [self._read_once(forward) for forward in forwards]
        if any(len(part) != len(parts[0]) for part in parts):
            raise ValueError("layer must give the same number of tensors at each call")
        return tuple(torch.cat(part).detach() for part in zip(*parts, strict=True))

    def read_one(self, forward: Callable[[], object], go_on: bool = True) -> Tensor:
        """Run the model; the only tensor that the layer took in or gave out.

        Args:
            forward: Runs the model.
            go_on: Whether the rest of the model runs too, so that a second call of the
                layer is noticed. If not, its first call ends the forward.

        Returns:
            The tensor with its graph, safe from what later layers do to it in place.

        Raises:
            ValueError: If the forward does not call the layer exactly once.
            TypeError: If it is not one tensor, alone or in a tuple.
        """
        (tensor,) = self._read_once(forward, only_one=True, go_on=go_on)
        return tensor

    @contextmanager
    def watched(
        self,
        see: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...] | None],
        only_one: bool = False,
    ) -> Iterator[None]:
        """Show what the layer takes in or gives out in a forward of the model.

        Args:
            see: Called with the layer's tensors; what it returns goes on instead.
            only_one: Whether the layer must have one tensor.

        Raises:
            ValueError: In the end, if the layer was not called exactly once.
            TypeError: If what it has is not made of tensors.
        """
        calls: list[None] = []

        def show(value: Any) -> object:  # noqa: ANN401
            calls.append(None)
            tensors = self._tensors(value, only_one)
            self._kind = type(value) if isinstance(value, tuple) else None
            changed = see(tensors)
            return None if changed is None else self._in_form(changed)

        with self._hooked(show):
            yield
        # Each replica calls it.
        if len(calls) != 1 and (self.device_ids is None or not calls):
            why = "" if calls else f": {why_not_called(self._model, self.module)}"
            raise ValueError(
                f"layer must be called once in a forward of forward_func, got "
                f"{len(calls)} calls of {type(self.module).__name__}{why}"
            )

    def compare(self, forward: Callable[[], object], *values: Tensor) -> None:
        """Pass over what computes for nothing, if the model gives the same either way.

        Args:
            forward: Runs the model on other rows than were read last, or in another
                order, so that nothing which a module kept from then can fit.
            values: What the layer is to pass on, one for each of its tensors.
        """

        def outputs() -> list[object]:
            with self.overwritten(), torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                leaves: list[object] = tree_leaves(forward())
            return [x.clone() if isinstance(x, Tensor) else x for x in leaves]

        self.values = values
        if self.device_ids is None:  # replicas are other modules than the model's
            self._skipped = skippable(self._model, self.module, self.at_input, outputs)

    @contextmanager
    def overwritten(self) -> Iterator[None]:
        """Let the layer pass on `values`, whatever the model is given."""

        def replace(value: Any) -> object:  # noqa: ANN401
            if self.device_ids is None:
                return self._in_form(self.values)
            # Each part of a batch lies on the device of its replica.
            device = self._tensors(value)[0].device
            parts = scatter(self.values, target_gpus=self.device_ids)
            return self._in_form(next(p for p in parts if p[0].device == device))

        with passed_over(self._skipped), self._hooked(replace):
            yield

    def _read_once(
        self, forward: Callable[[], object], only_one: bool = False, go_on: bool = True
    ) -> tuple[Tensor, ...]:
        found: list[tuple[Tensor, ...]] = []
        # The end of a replica's thread would be the end of the model.
        go_on |= len(self.device_ids or ()) > 1

        def keep(tensors: tuple[Tensor, ...]) -> None:
            # Copies: the next module may work in place.
            found.append(tuple(tensor.clone() for tensor in tensors))
            if not go_on:
                raise _Reached

        with self.watched(keep, only_one), suppress(_Reached):
            forward()
        return self._gathered(found)

    def _tensors(self, value: Any, only_one: bool = False) -> tuple[Tensor, ...]:  # noqa: ANN401
        """What a hook sees as a tuple of tensors."""
        tensors = value if isinstance(value, tuple) else (value,)
        whole = bool(tensors) and all(isinstance(tensor, Tensor) for tensor in tensors)
        if not whole or (only_one and len(tensors) > 1):
            legal = "one tensor" if only_one else "a tensor or a tuple of tensors"
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or "nothing"
            raise TypeError(
                f"layer must {'take' if self.at_input else 'return'} {legal}, got "
                f"{kinds}; choose another module, such as one inside it"
            )
        return tensors

    def _in_form(self, tensors: tuple[Tensor, ...]) -> object:
        """As the layer has them: one alone, a tuple or a named tuple."""
        if self._kind is None:
            return tensors[0]
        return self._kind(*tensors) if hasattr(self._kind, "_fields") else tensors

    def _gathered(self, found: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The parts of a batch, in the order of the devices that they are on."""
        if self.device_ids is None:
            return found[0]
        places = [torch.device("cuda", index) for index in self.device_ids]
        found.sort(key=lambda tensors: places.index(tensors[0].device))
        home = found[0][0].device
        return tuple(
            torch.cat([part.to(home) for part in parts])
            for parts in zip(*found, strict=True)
        )

    @contextmanager
    def _hooked(self, hook: Callable[[Any], Any]) -> Iterator[None]:
        def run(_module: nn.Module, *args: Any) -> object:  # noqa: ANN401
            return hook(args[-1])

        if self.at_input:
            handle = self.module.register_forward_pre_hook(run)
        else:
            handle = self.module.register_forward_hook(run)
        try:
            yield
        finally:
            handle.remove()


def check_module(layer: object) -> None:
    """Refuse what is no module.

    Example:
        >>> check_module("layer4")
        Traceback (most recent call last):
        ...
        TypeError: layer must be a torch.nn.Module, got str
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a torch.nn.Module, got {type(layer).__name__}")


def why_not_called(forward_func: Callable[..., Any], layer: nn.Module) -> str:
    """What may keep the hooks of a layer from being called, as the end of a message."""
    modules = modules_of(forward_func)
    if modules and all(module is not layer for module in modules):
        return (
            "it is none of forward_func.modules(), so that it belongs to another "
            "model, or to another copy of it (as of copy.deepcopy or torch.export)"
        )
    if modules and isinstance(modules[0], torch.fx.GraphModule):
        return (
            "a GraphModule runs the operations that it was traced to; explain the "
            "model that it was traced from"
        )
    return (
        "PyTorch passes a layer's hooks by where it is called as layer.forward(x), "
        "where another module uses its weights (as MultiheadAttention those of "
        "out_proj), and in a compiled model that has run (explain the model that was "
        "compiled, model._orig_mod, or call torch._dynamo.reset() first)"
    )
