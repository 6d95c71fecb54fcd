"""Reading one layer of the caller's model, and overwriting it, through hooks.

`read` runs the model once and keeps what the layer takes in or gives out; within
`overwritten` the layer passes on what it is told to instead. What stands before the
layer then computes for nothing, and is passed over where that is safe:

A child of an `nn.Sequential` hands its output to the next child and to nobody else. So
the children before the layer, and before each `nn.Sequential` that holds it, compute
nothing that outlives the overwriting, provided that these containers run as they are
written, that each module is called once and that none of them has hooks (`_Skippable`).
What cannot be seen from there, such as a module that keeps something for a later one,
`compare` finds: the outputs with and without passing over must agree on rows that were
not read. If anything is otherwise, everything runs as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel.scatter_gather import scatter
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from captum_extremal._base.model import why_not_called

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


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
        >>> layer = Layer(model, model[1], at_input=False, device_ids=None)
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
        at_input: bool,
        device_ids: Sequence[int] | None,
    ) -> None:
        self._model = model
        self.module = module
        self.at_input = at_input
        self.device_ids = device_ids or getattr(model, "device_ids", None) or None
        self.values: tuple[Tensor, ...] = ()
        self._kind: type[tuple[Tensor, ...]] | None = None  # None: a tensor alone
        # Replicas are other modules than those of the model.
        whole = model if self.device_ids is None else None
        self._skippable = _Skippable(whole, module, at_input)

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
        parts = [self._read_once(forward) for forward in forwards]
        if any(len(part) != len(parts[0]) for part in parts):
            raise ValueError("layer must give the same number of tensors at each call")
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def compare(self, forward: Callable[[], object], *values: Tensor) -> None:
        """Pass over nothing from now on, unless the model gives the same either way.

        Args:
            forward: Runs the model on other rows than were read last, or in another
                order, so that nothing which a module kept from then can fit.
            values: What the layer is to pass on, one for each of its tensors.
        """
        modules = self._skippable.modules
        if not modules:
            return
        self.values = values
        try:
            short = self._outputs(forward)
        except Exception:  # the model's own, of any kind
            short = None
        self._skippable.modules = []
        if short is not None and _agree(short, self._outputs(forward)):
            self._skippable.modules = modules

    def _outputs(self, forward: Callable[[], object]) -> list[object]:
        """The tensors and numbers that the model gives while it is overwritten."""
        with self.overwritten(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            leaves: list[object] = tree_leaves(forward())
        return [x.clone() if isinstance(x, Tensor) else x for x in leaves]

    def _read_once(self, forward: Callable[[], object]) -> tuple[Tensor, ...]:
        found: list[tuple[Tensor, ...]] = []

        def keep(_module: nn.Module, *args: Any) -> None:  # noqa: ANN401
            tensors = self._tensors(args[-1])
            self._kind = type(args[-1]) if isinstance(args[-1], tuple) else None
            # Copies: the next module may work in place.
            found.append(tuple(tensor.detach().clone() for tensor in tensors))

        with self._skippable.watched(), self._hooked(keep), torch.no_grad():
            forward()
        if self.device_ids is None and len(found) > 1:
            raise ValueError(
                "layer must be called once in a forward of forward_func, got "
                f"{len(found)} calls: one mask cannot stand for several activations"
            )
        if not found:
            raise ValueError(
                "layer must be a part of forward_func that takes part in its forward, "
                f"got one that is not called: {type(self.module).__name__}; "
                f"{why_not_called(self._model, self.module)}"
            )
        return self._gathered(found)

    def _tensors(self, value: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        """What a hook sees as a tuple of tensors."""
        tensors = value if isinstance(value, tuple) else (value,)
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or "nothing"
            raise TypeError(
                f"layer must {'take' if self.at_input else 'return'} a tensor or a "
                f"tuple of tensors, got {kinds}"
            )
        return tensors

    def _gathered(self, found: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The parts of a batch, in the order of the devices that they are on."""
        if self.device_ids is not None:
            places = [torch.device("cuda", index) for index in self.device_ids]
            found = sorted(found, key=lambda tensors: places.index(tensors[0].device))
        home = found[0][0].device
        return tuple(
            torch.cat([part.to(home) for part in parts])
            for parts in zip(*found, strict=True)
        )

    @contextmanager
    def overwritten(self) -> Iterator[None]:
        """Let the layer pass on `values`, whatever the model is given."""

        def replace(_module: nn.Module, *args: Any) -> object:  # noqa: ANN401
            values = self._values_on(self._tensors_device(args))
            if self._kind is None:
                return values[0]
            named = hasattr(self._kind, "_fields")
            return self._kind(*values) if named else values

        with self._skippable.passed_over(), self._hooked(replace):
            yield

    def _tensors_device(self, args: tuple[Any, ...]) -> torch.device | None:
        """Where the replica that a hook is called by works; None if there is but one.

        Each part of a batch lies on the device of its replica.
        """
        if self.device_ids is None:
            return None
        return self._tensors(args[-1])[0].device

    def _values_on(self, device: torch.device | None) -> tuple[Tensor, ...]:
        if device is None or self.device_ids is None:
            return self.values
        parts = scatter(self.values, target_gpus=self.device_ids)
        return next(part for part in parts if part[0].device == device)

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        if self.at_input:
            handle = self.module.register_forward_pre_hook(hook)
        else:
            handle = self.module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Skippable:
    """The modules whose work goes nowhere once the layer is overwritten.

    Args:
        model: What is run; None if nothing may be passed over.
        layer: What is overwritten.
        at_input: Whether the layer itself is still needed.
    """

    def __init__(
        self, model: Callable[..., Any] | None, layer: nn.Module, at_input: bool
    ) -> None:
        self.modules: list[nn.Module] = [] if at_input else [layer]
        self.containers: list[nn.Module] = []
        parents = _parents(model) if isinstance(model, nn.Module) else {}
        child = layer
        while (parent := parents.get(child)) is not None and _is_plain(parent):
            siblings = list(parent.children())
            self.modules += siblings[: siblings.index(child)]
            self.containers.append(parent)
            child = parent
        bare = all(map(_is_bare, self._all())) and not any(_global_hooks())
        if at_input and layer._forward_pre_hooks:  # noqa: SLF001
            bare = False
        if not self.containers or not bare:
            self.modules = []

    def _all(self) -> list[nn.Module]:
        inside = [part for module in self.modules for part in module.modules()]
        return inside + self.containers

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at a forward: skip nothing that is not called once."""
        expected = [*self.modules, *self.containers]
        called: list[nn.Module] = []

        def count(module: nn.Module, _args: object) -> None:
            called.append(module)

        with ExitStack() as stack:
            for module in expected if self.modules else ():
                handle: RemovableHandle = module.register_forward_pre_hook(count)
                stack.callback(handle.remove)
            yield
        if sorted(map(id, called)) != sorted(map(id, expected)):
            self.modules = []

    @contextmanager
    def passed_over(self) -> Iterator[None]:
        """Let these modules hand on their input."""
        try:
            for module in self.modules:
                module.forward = _hand_on
            yield
        finally:
            for module in self.modules:
                vars(module).pop("forward", None)


def _hand_on(*args: Any, **_: Any) -> Any:  # noqa: ANN401
    return args[0]


def _agree(first: list[object], second: list[object]) -> bool:
    """Whether outputs are the same but for what a device may round."""
    return len(first) == len(second) and all(
        isinstance(b, Tensor)
        and a.shape == b.shape
        and torch.allclose(a, b.to(a.dtype), rtol=1e-4, atol=1e-6, equal_nan=True)
        if isinstance(a, Tensor)
        else a == b
        for a, b in zip(first, second, strict=True)
    )


def _global_hooks() -> list[Any]:
    """Hooks that are registered for every module there is."""
    module = torch.nn.modules.module
    names = ("_global_forward_hooks", "_global_forward_pre_hooks")
    return [hooks for name in names if (hooks := getattr(module, name, None))]


def _parents(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The parent of each module; none for a module with several."""
    found: dict[nn.Module, nn.Module] = {}
    several = set()
    for parent in model.modules():
        for child in parent.children():
            if child in found:
                several.add(child)
            found[child] = parent
    return {child: parent for child, parent in found.items() if child not in several}


def _is_plain(module: nn.Module) -> bool:
    """Whether it hands each child's output to the next child alone."""
    kind = type(module)
    return (
        not isinstance(module, torch.jit.ScriptModule)
        and getattr(kind, "forward", None) is nn.Sequential.forward
        and getattr(kind, "__iter__", None) is nn.Sequential.__iter__
        and kind.__call__ is nn.Module.__call__
    )


def _is_bare(module: nn.Module) -> bool:
    """Without hooks or a forward of its own, and no scripted one."""
    hooked = any(getattr(module, hooks, None) for hooks in _HOOKS)
    return not (
        hooked
        or "forward" in vars(module)
        or isinstance(module, torch.jit.ScriptModule)
    )
