"""A file of weights -> the state dicts in it -> a model that holds one of them.

The format is told from the bytes, never from the name, and nothing in the file is
executed. Every mapping in it that holds tensors may be the model's state dict. In each,
the prefix is looked for under which the entries have the model's own names:
``{"state_dict": {"net._orig_mod.layer1.module.0.weight": ...}}`` holds
``layer1.0.weight`` below ``state_dict`` and ``net._orig_mod``. PyTorch's own strict
``load_state_dict`` decides whether one fits.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

_logger = logging.getLogger(__name__)

State = OrderedDict[str, Tensor]
FilePath = str | os.PathLike[str]

# What DataParallel, torch.compile, FSDP, activation checkpointing and DeepSpeed put
# into the names of a state dict: before them, or in the middle.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"}
_WRAPPERS |= {"_fpw_module", "_checkpoint_wrapped_module"}
# Words in the place of a state dict that settle which of several is taken.
_AVERAGED = {"ema", "swa", "averaged", "average", "avg"}
_LAST = {"teacher", "target", "momentum", "grad", "grads", "gradients"}
_LAST |= {"init", "initial", "old", "previous", "pretrained", "key"}
# Entries that are a trainer's, not a model's: of its loss and metrics, and heads that
# serve in training alone. The first part of a name that the model has is never one.
_TRAINERS = re.compile(
    r"([^.]*_)?(loss(es)?|lossfn|criteri(on|a|ons)|metrics?|acc|accuracy|precision"
    r"|recall|f1|auroc|auc|iou|top|confmat|confusion)([_\d][^.]*)?(\.|$)"
    r"|(class|pos)_weights?$|aux",
    re.IGNORECASE,
)
_COUNTED = {"total_ops", "total_params"}  # what thop adds to each module
_SAVE = "save model.state_dict() alone"
_DEFAULT_CLASSES = 1000
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # begins what torch.save wrote before 1.6
_SCAN = 1 << 20  # bytes of a file in which its kind shows
_PROTOBUF = "is a protocol buffer of"
_KINDS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file itself: "
     "git lfs pull"),
    (rb"\x89HDF\r\n", "is an HDF5 file, as Keras writes; PyTorch's weights are needed"),
    (rb"\x93NUMPY", "is a NumPy array; PyTorch's weights are needed"),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "is compressed"),
    (rb"(?s).{257}ustar", "is a tar archive"),
    (rb"GGUF|(?s:.{4})TFL3", "is of GGUF or TensorFlow Lite; PyTorch's are needed"),
    (rb"\x08\x01\x12", f"{_PROTOBUF} TensorFlow; PyTorch's weights are needed"),
    (rb"(?s)\n.{1,40}Placeholder", f"{_PROTOBUF} TensorFlow; PyTorch's are needed"),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", f"{_PROTOBUF} ONNX, a graph; "
     "PyTorch's weights are needed"),
    (rb"(?i)\s*(<!doctype|<html|<head|<\?xml|<!--|<error)", "is a page of a web site, "
     "as a download that failed leaves; fetch the file itself"),
)  # fmt: skip


class _Found(NamedTuple):
    """A mapping with tensors, and its place in the file."""

    place: str
    tensors: Mapping[str, Tensor]
    versions: Mapping[str, Any]  # of its modules: `state_dict()._metadata`


class _Candidate(NamedTuple):
    """What may be the model's state dict, under the model's own names."""

    place: str
    state: State
    matches: int  # names that the model has too


# --- bytes -> content ---


def read_checkpoint(path: FilePath) -> object:
    """Read whatever a checkpoint holds; nothing in the file is executed.

    Args:
        path: A file of ``torch.save`` (read with ``weights_only=True``) or of
            safetensors, under any name.

    Returns:
        What was saved.

    Raises:
        ValueError: If the file is of another kind, damaged, or holds objects that are
            not read for safety; the message tells which.
    """
    try:
        if Path(path).is_dir():
            raise ValueError(
                f"weights must be a file, got {os.fspath(path)}, a folder: name the "
                "file of weights in it"
            )
        with open(path, "rb") as file:
            return _content(file, os.fspath(path))
    except FileNotFoundError:
        raise ValueError(f"weights must be a file, got {os.fspath(path)}") from None
    except OSError as error:
        raise ValueError(
            f"weights must be a file, got {os.fspath(path)}: {error.strerror}"
        ) from None


def _content(file: BinaryIO, path: str) -> object:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_SCAN)
    file.seek(0)
    try:
        if _is_safetensors(head):
            if int.from_bytes(head[:8], "little") + 8 > size:
                raise _Refused("is cut off: fetch it again")
            return safetensors.torch.load(file.read())
        if head.startswith(b"PK"):
            _check_archive(file)
            file.seek(0)
        elif not head.startswith(b"\x80"):
            raise _Refused(_kind(head))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except _Refused as refused:
        cause = str(refused)
    except Exception as error:  # whatever the bytes of any other file lead a reader to
        cause = _cause(error, file, head)
    raise ValueError(
        "weights must be a state dict written by torch.save or safetensors, got "
        f"{path}, which {cause}"
    )


class _Refused(Exception):
    """The cause, as the end of `the file, which ...`."""


def _is_safetensors(head: bytes) -> bool:
    """The length of a header in JSON, then the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _kind(head: bytes) -> str:
    """What a file is that is none of the formats which are read."""
    if not head:
        return "is empty: fetch it again"
    for start, kind in _KINDS:
        if re.match(start, head):
            unpack = kind.endswith(("compressed", "archive"))
            return f"{kind}: unpack it" if unpack else kind
    if re.match(rb"\s*\{", head) and b'"weight_map"' in head:
        return (
            "is the index of a checkpoint in several files: load them and save their "
            "tensors together"
        )
    line = head[:64].decode(errors="replace").strip().partition("\n")[0]
    is_text = line.isprintable() and "\ufffd" not in line
    return f"is text: {line!r}" if is_text else f"starts with {head[:8]!r}"


def _check_archive(file: BinaryIO) -> None:
    """Refuse the zip archives that `torch.save` has not written."""
    try:
        names = zipfile.ZipFile(file).namelist()
    except zipfile.BadZipFile:
        raise _Refused("is cut off or damaged: fetch it again") from None
    leaves = {name.partition("/")[2] or name for name in names}
    if "archive_format" in leaves or any("exported_program" in x for x in leaves):
        kind = f"is of torch.export, a graph; {_SAVE}"
    elif "constants.pkl" in leaves:
        kind = f"is a TorchScript archive, which holds code; {_SAVE}"
    elif "data.pkl" in leaves:
        return
    elif names and all(name.endswith(".npy") for name in names):
        kind = "is a NumPy archive (.npz), as JAX writes; PyTorch's weights are needed"
    elif "model.weights.h5" in names:
        kind = "is of Keras; PyTorch's weights are needed"
    else:
        kind = "is a zip archive: unpack it"
    raise _Refused(kind)


def _cause(error: Exception, file: BinaryIO, head: bytes) -> str:
    """Why a reader could not read, from what it said and from the pickle itself."""
    if _is_safetensors(head):
        return f"is cut off or damaged, fetch it again ({error})"
    is_archive = head.startswith(b"PK")
    data = _pickle_of(file) if is_archive else head
    blocked = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    if not is_archive and len(head) > 64 and _LEGACY not in head[:64]:
        what = f", with {blocked[1]} in it" if blocked else ""
        return f"is a pickle not written by torch.save{what}; {_SAVE} with torch.save"
    if "Unsupported operand" in str(error) and data[:2] in (b"\x80\4", b"\x80\5"):
        return f"has another protocol of pickle than torch.save's own; {_SAVE}"
    if model := _pickled_model(data):
        return f"holds a whole model ({model}), not read for safety; {_SAVE}"
    if blocked:
        return f"holds {blocked[1]}, which is not read for safety; {_SAVE}"
    if isinstance(error, pickle.UnpicklingError) and data:
        return f"holds objects that are not read for safety; {_SAVE}"
    return "is cut off or damaged: fetch it again"


def _pickle_of(file: BinaryIO) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            return archive.read(next(x for x in names if x.endswith("data.pkl")))
    except zipfile.BadZipFile:  # damaged
        return b""


def _pickled_model(data: bytes) -> str | None:
    """The class of the first module that is pickled with its code."""
    before, found, after = data.partition(b"_parameters")
    if not found or b"_modules" not in after:
        return None
    classes = re.findall(rb"c([\w.]+)\n([\w.]+)\n", before)
    return b".".join(classes[-1]).decode() if classes else None


# --- content -> candidates ---


def read_state_dict(path: FilePath) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; nothing in the file is executed.

    Args:
        path: A file of ``torch.save`` or of safetensors, under any name.

    Returns:
        Names and tensors of the largest state dict in the file, without what wrappers
        put into the names: ``module.``, ``_orig_mod.``, a ``model.`` before all.

    Raises:
        ValueError: If the file holds no state dict or cannot be read safely.
    """
    largest = max(_found(path), key=lambda found: len(found.tensors))
    state = {_plain(name): value for name, value in largest.tensors.items()}
    if all(name.startswith("model.") for name in state):
        return {name.removeprefix("model."): value for name, value in state.items()}
    return state


def _found(path: FilePath) -> list[_Found]:
    """The mappings with tensors in a file, those that are to be preferred first."""
    content = read_checkpoint(path)
    found = sorted(_state_dicts(content), key=lambda found: _rank(found.place))
    if found:
        return found
    what = type(content).__name__
    if isinstance(content, Mapping):
        names = ", ".join(str(name) for name in list(content)[:5])
        what += f" of {names}" if names else " that is empty"
        what += " (an optimizer's state)" if _of_optimizer(content) else ""
    raise ValueError(
        f"weights must hold a state dict, names and tensors, got {what} in "
        f"{os.fspath(path)}"
    )


def _of_optimizer(content: Mapping[Any, object]) -> bool:
    return "param_groups" in content


def _state_dicts(content: object) -> Iterator[_Found]:
    """All mappings with tensors, the outer ones first; not those of optimizers."""
    queue, seen = deque([("", content)]), set()
    while queue:
        place, value = queue.popleft()
        if id(value) in seen:
            continue
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping) and not _of_optimizer(value):
            items = value.items()
            tensors = {
                name: tensor
                for name, tensor in items
                if isinstance(name, str) and isinstance(tensor, Tensor)
            }
            if tensors:
                versions = getattr(value, "_metadata", None)
                yield _Found(
                    place, tensors, versions if isinstance(versions, Mapping) else {}
                )
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        seen.add(id(value))
        queue.extend(
            (f"{place}.{name}" if place else str(name), child)
            for name, child in items
            if isinstance(child, Mapping | list | tuple)
        )


def _rank(place: str) -> tuple[int, int]:
    """Averaged weights first, then all others, teachers and gradients last."""
    words = Counter(re.split(r"[\W_]+", place.lower()))
    return -sum(words[word] for word in _AVERAGED), sum(words[word] for word in _LAST)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _candidates(found: Iterable[_Found], model: nn.Module) -> list[_Candidate]:
    """The state dicts that may be the model's, those to be preferred first."""
    names = model.state_dict().keys()
    places = [
        (each, prefix, matches)
        for each in found
        for prefix, matches in _prefixes(each.tensors, names).items()
    ]
    most = max(matches for _, _, matches in places)
    if most == 0:  # names of another implementation, if any
        places = [max(places, key=lambda place: len(place[0].tensors))]
    candidates = [
        _Candidate(
            place=".".join(filter(None, (each.place, prefix))) or "the file itself",
            state=_under(prefix, each, model),
            matches=matches,
        )
        for each, prefix, matches in places
        if 2 * matches >= most
    ]
    return sorted(candidates, key=lambda candidate: _rank(candidate.place))


def _prefixes(tensors: Iterable[str], names: Iterable[str]) -> Mapping[str, int]:
    """Prefix -> how many of the model's names follow it."""
    names, count = set(names), Counter({"": 0})
    for name in tensors:
        parts = name.split(".")
        for start, part in enumerate(parts):
            if part not in _WRAPPERS and _plain(".".join(parts[start:])) in names:
                count[".".join(parts[:start])] += 1
    return count


def _under(prefix: str, found: _Found, model: nn.Module) -> State:
    """The entries after a prefix, with the versions of their modules."""
    start = f"{prefix}." if prefix else ""
    children = {name for name, _ in chain(model.named_children(), _direct(model))}
    state: State = OrderedDict()
    for name, value in found.tensors.items():
        if name.startswith(start):
            own = _plain(name.removeprefix(start))
            if not _is_trainers(own, value, children):
                state[name if own in state else own] = value
    versions = {
        _plain(name.removeprefix(prefix).removeprefix(".")): version
        for name, version in found.versions.items()
        if isinstance(name, str) and isinstance(version, dict)
        if f"{name}.".startswith(start)
    }
    # A file without versions is taken as written by the installed model.
    versions.setdefault("", {"version": getattr(model, "_version", 1)})
    state._metadata = versions  # type: ignore[attr-defined]  # noqa: SLF001
    return state


def _direct(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(recurse=False)
    yield from model.named_buffers(recurse=False)


def _is_trainers(name: str, value: Tensor, children: set[str]) -> bool:
    """Whether an entry is the trainer's, and nothing that the model computes with."""
    if name.rpartition(".")[2] in _COUNTED:
        return True
    if name.partition(".")[0] in children:
        return False
    is_count = value.dim() == 0 and not value.is_floating_point() and "." not in name
    return is_count or bool(_TRAINERS.match(name))


# --- candidates -> model ---


class Maker:
    """Makes new models of one architecture.

    Args:
        build: A number of classes, None for the architecture's own -> a new model.
        convert: The tensors under the names of another implementation, and a model ->
            the same under the model's names.
    """

    def __init__(
        self,
        build: Callable[[int | None], nn.Module],
        convert: Callable[[State, nn.Module], Mapping[str, Tensor]] | None,
    ) -> None:
        self.like = build(None)  # for its names and shapes
        self.own: int = getattr(self.like, "num_classes", _DEFAULT_CLASSES)
        self.expected = self.like.state_dict()
        self._build = build
        self._convert = convert
        self._fresh = [self.like]

    def model(self, classes: int) -> nn.Module:
        """A model that no weights were loaded into."""
        if classes != self.own:
            return self._build(classes)
        return self._fresh.pop() if self._fresh else self._build(None)

    def readings(self, state: State) -> Iterator[Mapping[str, Tensor]]:
        """The tensors as they are, and under the names that a library gives them."""
        yield state
        if self._convert is not None:
            try:
                converted = self._convert(OrderedDict(state), self.like)
            except Exception:  # whatever the names of another model lead a library to
                return
            if not _resized(state, converted):
                yield converted


def load_weights(path: FilePath, spec: str, maker: Maker) -> tuple[nn.Module, int]:
    """Make a model with the weights of a checkpoint.

    Where several state dicts of the file fit with different values, averaged ones (with
    ``ema`` or ``swa`` in their place) come first, then the outer ones and the first in
    the file, those of a teacher last; which one was taken is logged.

    Args:
        path: The file.
        spec: The name of the model, for messages.
        maker: Of models with this name.

    Returns:
        The model and its number of classes.

    Raises:
        ValueError: If the file cannot be read, none of its state dicts is the model's,
            or a weight is not finite.
    """
    candidates = _candidates(_found(path), maker.like)
    for candidate in candidates:
        fitted = _fitted(candidate.state, maker)
        if fitted is not None:
            _check_finite(fitted[0], path)
            _tell_others(candidate, candidates, maker.expected, path)
            return fitted
    closest = max(candidates, key=lambda candidate: candidate.matches)
    raise ValueError(
        f"weights must be those of {spec}, got {os.fspath(path)} with "
        f"{_difference(closest.state, maker)}"
    )


def _fitted(state: State, maker: Maker) -> tuple[nn.Module, int] | None:
    """A new model with these weights, as they are or renamed; None if none fits."""
    for reading in maker.readings(state):
        # PyTorch fills in and renames a few entries of old files, never half of them.
        shared = maker.expected.keys() & reading.keys()
        if 2 * len(shared) < len(maker.expected):
            continue
        if _of_another_type(maker.expected, reading):
            continue
        classes = num_classes(maker.expected, reading, maker.own)
        model = maker.model(classes)
        try:
            model.load_state_dict(reading)
        except (RuntimeError, ValueError, TypeError):  # TypeError: odd versions
            continue
        return model, classes
    return None


def _resized(state: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> bool:
    """Whether a tensor was interpolated to the size that the model has."""
    sizes = {value.numel() for value in state.values()}
    return any(
        state[name].numel() != value.numel() and value.numel() not in sizes
        for name, value in converted.items()
        if name in state
    )


def num_classes(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], own: int
) -> int:
    """The classes that weights are for.

    The layers that end in classes are those whose first dimension is the model's number
    of classes, and one other number in all of the weights.

    Args:
        expected: The state dict of the model.
        state: The weights, under the names of the model.
        own: The model's number of classes.

    Returns:
        Their number of classes; ``own`` where they tell no other.

    Example:
        >>> head = {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
        >>> num_classes(head, {"fc.weight": torch.zeros(3, 4)}, own=10)
        3
    """
    found = {
        len(state[name])
        for name, value in expected.items()
        if name in state and value.dim() == state[name].dim() > 0
        if len(value) == own and state[name].shape[1:] == value.shape[1:]
    } - {own}
    return found.pop() if len(found) == 1 else own


def _of_another_type(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> list[str]:
    """Entries that hold no weights: quantised, integer, complex, without data."""
    return [
        name
        for name in expected.keys() & state.keys()
        if expected[name].is_floating_point()
        and (
            not state[name].is_floating_point()
            or state[name].is_meta
            or state[name].layout != torch.strided
        )
    ]


def _difference(state: State, maker: Maker) -> str:
    classes = num_classes(maker.expected, state, maker.own)
    expected = maker.model(classes).state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shared = expected.keys() & state.keys()
    reshaped = [name for name in shared if expected[name].shape != state[name].shape]
    text = (
        f"{len(missing)} of {len(expected)} tensors missing, {len(unknown)} unknown, "
        f"{len(reshaped)} of another shape"
    )
    if retyped := _of_another_type(expected, state):
        text += f", {len(retyped)} of another type (quantised, integer or without data)"
    if any(name.endswith(".zero_point") for name in unknown):
        text += ", of a quantised network: save it before it is quantised"
    examples = [
        f"{names[0]} is {what}"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (sorted(reshaped), "of another shape"),
        )
        if names
    ]
    return f"{text}: {', '.join(examples)}" if examples else text


def _check_finite(model: nn.Module, path: FilePath) -> None:
    wrong = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise ValueError(
            f"weights must be finite, got NaN or infinity in {wrong[0]}{more} of "
            f"{os.fspath(path)}"
        )


def _tell_others(
    taken: _Candidate,
    all_: list[_Candidate],
    expected: Mapping[str, Tensor],
    path: FilePath,
) -> None:
    """Log which state dict was taken where another one would do as well."""
    others = [
        other.place
        for other in all_
        if other is not taken
        if other.state.keys() == taken.state.keys()
        if not _of_another_type(expected, other.state)
        if not _equal(other.state, taken.state)
    ]
    if others:
        _logger.warning(
            "%s holds several weights that fit: %s is taken, not %s",
            os.fspath(path),
            taken.place,
            ", ".join(others),
        )


def _equal(state: State, other: State) -> bool:
    return all(torch.equal(v.to(other[n].dtype), other[n]) for n, v in state.items())
