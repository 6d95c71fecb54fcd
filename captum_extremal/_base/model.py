"""Using the caller's model without leaving a trace in it."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from captum_extremal._base.causes import Score, may_be_of_the_batch

# Layers that are named where a model is found to be in training mode.
_CHANGE_IN_TRAINING = ("BatchNorm", "Dropout", "InstanceNorm")
_ANOTHER = 0.02  # share of a score that rounding, even in bfloat16, leaves alone
_TIMES = 4  # a model that draws random numbers is asked for the same score


class Watch:
    """Whether what a model gives depends on chance or on the rest of a batch.

    It is told from what forwards do: that they move a random generator or, in training
    mode, the model's own statistics, or give one example another score.

    Args:
        forward_func: The caller's model.
        device: Where it runs.
        outputs: What is taken from the model, as the warning names it.
        found: What is made with it.
        warned: Whether a warning was given before; one is enough.

    Attributes:
        warned: Whether it is now.
        blind: Whether the model is a function, of which nothing else is known.

    Example:
        >>> model = nn.Dropout().train()
        >>> watch = Watch(model, torch.device("cpu"))
        >>> with watch.forwards():
        ...     first = model(torch.ones(1, 8))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     watch.warn(first, lambda: model(torch.ones(1, 8)))
        >>> print(caught[0].message)
        forward_func is in training mode (layers Dropout): its scores depend on the batch or on chance. Call forward_func.eval() for meaningful masks
    """  # noqa: E501

    def __init__(
        self,
        forward_func: Callable[..., Any],
        device: torch.device,
        outputs: str = "scores",
        found: str = "masks",
        warned: bool = False,
    ) -> None:
        self.warned = warned
        self._forward_func = forward_func
        self._device = device
        self._outputs = outputs
        self._found = found
        self._draws = False
        self._counts = False
        modules = modules_of(forward_func)
        self.blind = not modules
        self._training = any(getattr(module, "training", False) for module in modules)

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """Look at forwards: what is left changed when they are done."""
        # In training mode, what it may keep of a batch.
        looked_at = self._training and not self.warned
        buffers = _buffers(self._forward_func) if looked_at else []
        held = [buffer for buffer in buffers if buffer.is_floating_point()]
        before = [tensor.clone() for tensor in held]
        generators = _generators(self._device)
        yield
        self._draws |= generators != _generators(self._device)
        self._counts |= not all(map(torch.equal, held, before))

    def first_call(self, score: Score) -> Score:
        """The same score, whose first call is looked at."""
        looked = False

        def watched(inputs: tuple[Tensor, ...], examples: Tensor) -> Tensor:
            nonlocal looked
            if looked or self.warned:
                return score(inputs, examples)
            looked = True
            # Copies: the model may work in place.
            row = tuple(tensor[:1].detach().clone() for tensor in inputs)
            with self.forwards():
                found = score(inputs, examples)

            def again() -> Tensor:
                return score(tuple(tensor.clone() for tensor in row), examples[:1])

            with torch.no_grad():
                self.warn(found[:1], again)
            return found

        return watched

    def warn(
        self,
        first: Tensor,
        again: Callable[[], Tensor],
        together: Tensor | None = None,
    ) -> None:
        """Warn, once, if chance or the rest of a batch has been seen to matter.

        Args:
            first: What the model gave for an example, (1, ...).
            again: Asks it once more; called only where there is cause.
            together: What it gave in a batch of other examples, of which this was the
                first.
        """
        if self.warned:
            return
        other = together is not None and _differ(first, together, _ANOTHER)
        if self._training and (self._draws or self._counts):
            self._say(self._in_training())
        elif self._draws or other:
            if _changes(again):
                self._say(
                    f"forward_func gives another {self._outputs[:-1]} each time "
                    "(a part in training mode, or dropout or noise that is active in "
                    f"evaluation mode?): the {self._found} depend on chance"
                )
            elif other:
                self._say(
                    f"forward_func gives an example other {self._outputs} in other "
                    "batches (a part in training mode, or normalised over the batch?)"
                    f": the {self._found} depend on what is evaluated together"
                )

    def _in_training(self) -> str:
        layers = training_layers(self._forward_func)
        named = f" (layers {', '.join(layers[:3])}" if layers else ""
        return (
            f"forward_func is in training mode{named}"
            f"{', ...' if len(layers) > 3 else ''}{')' if layers else ''}: its "
            f"{self._outputs} depend on the batch or on chance. Call "
            f"forward_func.eval() for meaningful {self._found}"
        )

    def _say(self, text: str) -> None:
        self.warned = True
        warnings.warn(text, stacklevel=caller_level())


def _generators(device: torch.device) -> list[object]:
    """The states of the random generators that models share."""
    states: list[object] = [torch.get_rng_state().tolist(), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).tolist())
    if "numpy" in sys.modules:
        states.append(repr(sys.modules["numpy"].random.get_state()[1:3]))
    return states


def _differ(first: Tensor, other: Tensor, share: float) -> bool:
    """Whether the first rows differ by more than this share of all values."""
    a, b = first[:1].detach().cpu().double(), other.detach().cpu().double()
    scale = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b[:1]).abs().max() > share * scale)


def _changes(again: Callable[[], Tensor]) -> bool:
    """Whether the same call gives something else, beyond the order of a sum."""
    try:
        first = again()
        share = 64 * torch.finfo(first.dtype).eps
        return any(_differ(first, again(), share) for _ in range(_TIMES))
    except Exception as error:
        # It is asked for one example alone, which some normalisations refuse.
        if not may_be_of_the_batch(error):
            raise
        return False


def caller_level() -> int:
    """The ``stacklevel``, seen from the caller, of the first frame that is theirs."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001
    inside = ("captum", "captum_extremal", "contextlib")
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level


def training_layers(forward_func: Callable[..., Any]) -> list[str]:
    """Names of the layers in training mode that behave otherwise in evaluation mode."""
    model = module_of(forward_func)
    if model is None:
        return []
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        # A frozen scripted module has no mode.
        if getattr(module, "training", False) and _changes_in_training(module)
    ]


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """The model itself, or the one whose method it is."""
    owner = getattr(forward_func, "__self__", forward_func)
    return owner if isinstance(owner, nn.Module) else None


def modules_of(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """The model first, then all that is in it; none of a function."""
    model = module_of(forward_func)
    return [] if model is None else list(model.modules())


def _buffers(forward_func: Callable[..., Any]) -> list[Tensor]:
    model = module_of(forward_func)
    return [] if model is None else list(model.buffers())


def _changes_in_training(module: nn.Module) -> bool:
    """Told by the name of the class, which a scripted module keeps."""
    name = getattr(module, "original_name", type(module).__name__)
    if "InstanceNorm" in name:
        return bool(getattr(module, "track_running_stats", False))
    return any(kind in name for kind in _CHANGE_IN_TRAINING)


def uncompiled() -> AbstractContextManager[object]:
    """Where models run as they are written, even if torch.compile compiled them.

    What has been compiled ignores hooks that are added later.
    """
    compiler = getattr(torch.compiler, "set_stance", None)
    if "torch._dynamo" not in sys.modules or compiler is None:
        return nullcontext()
    stance: AbstractContextManager[object] = compiler("force_eager")
    return stance


def check_differentiable(forward_func: Callable[..., Any]) -> None:
    """Refuse a model through which no gradient can ever pass."""
    model = module_of(forward_func)
    state = () if model is None else (*model.parameters(), *model.buffers())
    if any(tensor.is_inference() for tensor in state):
        raise RuntimeError(
            "forward_func was made inside torch.inference_mode(), so no gradient "
            "can pass through it; create or load the model outside of it"
        )


@contextmanager
def as_found(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Put back what forwards may change: the global RNGs and the model's buffers.

    A model in training mode counts every forward into its running statistics, and
    its dropout draws from the global generators (PyTorch's, Python's or NumPy's). Of a
    function that merely calls a model nothing is known, and nothing of that model is
    put back.
    """
    buffers = [(buffer, buffer.clone()) for buffer in _buffers(forward_func)]
    cuda = [device] if device.type == "cuda" else []
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            with torch.no_grad():
                for buffer, before in buffers:
                    # Not touched where nothing was: other threads may be using it.
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
