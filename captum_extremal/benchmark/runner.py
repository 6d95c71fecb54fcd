"""Images, a model and methods -> a row in the store for each image, class and method.

Any number of processes share the images. The first looks at what any run before has
left in the folder and tells the others what is missing; each does its share and writes
to its own file. A run that was killed at any moment goes on when it is started again,
with as many processes as there are then. An image that cannot be read or explained is
recorded and tried again by the next run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from captum_extremal._base import files
from captum_extremal._base.checks import check_choice, check_count, check_non_negative
from captum_extremal.benchmark.datasets import Example, ImageSet
from captum_extremal.benchmark.pairs import Pair
from captum_extremal.benchmark.processes import Rank
from captum_extremal.benchmark.store import (
    Content,
    Failure,
    Row,
    Writer,
    configuration_of,
    read,
    writing,
)
from captum_extremal.benchmark.targets import Target, highest, outputs_of_classes
from captum_extremal.methods.adapters import (
    Explain,
    Explained,
    Options,
    last_feature_map,
)
from captum_extremal.methods.registry import (
    check_evaluation,
    explainer,
    names_of,
    settings_of,
)
from captum_extremal.metrics import energy_pointing_game, pointing_game
from captum_extremal.metrics._maps import near_one
from captum_extremal.models.networks import Preprocess
from captum_extremal.models.probabilities import check_rule

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["squash", "shorter"]
PAPER_AREAS = {
    "voc2007": (0.025, 0.05, 0.1, 0.2),
    "coco2014": (0.018, 0.025, 0.05, 0.1),
}
"""The areas of Sec. 4.2."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a benchmark is to do.

    Attributes:
        images: The data set.
        model: Normalised images (N, 3, H, W) -> scores (N, classes), in evaluation
            mode (``model.eval()``), on the device that is to compute.
        preprocess: How images are normalised, and the size of the input.
        methods: Names of methods.
        model_name: For the report.
        options: Of the methods.
        resize: ``"squash"``: every image gets the size of the model's input, the whole
            of it is seen, its proportions change. ``"shorter"``: the shorter side gets
            the input's length, for models that take any size; the published protocol.
        min_probability: Pairs below it are left out.
        pairs: Only these; None for all.
        difficult: The difficult ones; None for the rule of `difficult_classes`.
        limit: Only so many of the first images; None for all.
        save_maps: Whether saliency maps and masks are kept, in a safetensors file each.

    Raises:
        ValueError: If a method is unknown, ``resize`` is another word,
            ``min_probability`` is negative, ``limit`` is below 1, a name of an image is
            no text, or the model is in training mode.

    Example:
        >>> images = ImageSet("voc2007", ["000001", "000002"], read=print)
        >>> plan = Plan(images, nn.Identity().eval(), Preprocess(), ("ig",), limit=1)
        >>> plan.names
        ['000001']
    """

    images: ImageSet
    model: nn.Module
    preprocess: Preprocess
    methods: tuple[str, ...]
    model_name: str = "model"
    options: Options = field(default_factory=Options)
    resize: Resize = "squash"
    min_probability: float = 0.0
    pairs: list[Pair] | None = None
    difficult: list[Pair] | None = None
    limit: int | None = None
    save_maps: bool = False

    def __post_init__(self) -> None:
        names_of(self.methods)
        check_choice("resize", self.resize, ("squash", "shorter"))
        check_non_negative("min_probability", self.min_probability)
        if self.limit is not None:
            check_count("limit", self.limit)
        for name in self.images.images:
            if name != name.encode(errors="ignore").decode():  # no file could hold it
                raise ValueError(f"images must have names of text, got {name!r}")
        check_evaluation(self.model)

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Method -> all that a row of it depends on, beside image and class."""
        given = [list(pair) for pair in self.pairs or [] if pair.output is not None]
        given.sort()
        common = {
            "dataset": self.images.name,
            "model": self.model_name,
            "weights": digest_of(self.model),
            "size": list(self.preprocess.crop),
            "resize": self.resize,
            "normalisation": [
                list(self.preprocess.mean),
                list(self.preprocess.std),
                self.preprocess.interpolation,
            ],
            "targets": configuration_of({"pairs": given}) if given else "highest",
            "version": version("captum_extremal"),
        }
        if self.options.probability != "auto":  # left out where it is the usual one
            common["probability"] = self.options.probability
        return {
            name: {"common": common, "method": settings_of(name, self.options)}
            for name in names_of(self.methods)
        }

    @cached_property
    def configurations(self) -> dict[str, str]:
        """Method -> the hash of its settings."""
        return {name: configuration_of(it) for name, it in self.settings.items()}

    @cached_property
    def selection(self) -> str:
        """A hash of what decides which pairs of an image are dealt with."""
        pairs = None if self.pairs is None else [list(pair) for pair in self.pairs]
        return configuration_of({"p": self.min_probability, "pairs": pairs})

    @cached_property
    def wanted(self) -> dict[str, dict[str, int | None]] | None:
        """Image -> class -> the output that was asked for; None for all pairs."""
        if self.pairs is None:
            return None
        found: dict[str, dict[str, int | None]] = {}
        for pair in self.pairs:
            found.setdefault(pair.image, {})[pair.label] = pair.output
        return found

    @cached_property
    def names(self) -> list[str]:
        """The images to look at."""
        names = self.images.images
        if self.wanted is not None:
            names = [name for name in names if name in self.wanted]
        return names[: self.limit]

    def missing(self, found: Content) -> list[str]:
        """The images that are not dealt with by now."""
        wanted = self.configurations.values()
        flawed = {key[:2] for key in found.flaws}  # mended by now, perhaps
        return [
            image
            for image in self.names
            if not all((self.selection, it, image) in found.done for it in wanted)
            or any((it, image) in flawed for it in wanted)
        ]

    def unplayed(self, found: Content) -> list[Pair]:
        """The pairs that were asked for and have neither row nor failure."""
        played = {(row.image, row.label) for row in found.rows.values()}
        played |= {(failure.image, failure.label) for failure in found.failures}
        lost = {it.image for it in found.failures if not it.label}
        names = set(self.names) if self.limit else None
        return [
            pair
            for pair in self.pairs or []
            if (names is None or pair.image in names)
            and pair[:2] not in played
            and pair.image not in lost
        ]

    def own(self, found: Content) -> Content:
        """The rows of these pairs on this model, and what of these methods failed."""
        common = next(iter(self.settings.values()))["common"]
        same = {key for key, it in found.settings.items() if it["common"] == common}
        names, used = set(self.names), set(self.configurations.values())
        rows = {
            key: row
            for key, row in found.rows.items()
            if row.configuration in same
            and row.image in names
            and (self.wanted is None or row.label in self.wanted[row.image])
            and row.probability >= self.min_probability
        }
        failures = [
            it
            for it in found.failures
            if it.configuration in used and it.image in names
        ]
        flaws = {
            key: lines
            for key, lines in found.flaws.items()
            if key[0] in used and key[1] in names
        }
        return dataclasses.replace(found, rows=rows, failures=failures, flaws=flaws)

    def inputs(self, picture: Image) -> Tensor:
        """What the model sees of a picture, (1, 3, H, W)."""
        from torchvision import transforms as T
        from torchvision.transforms import functional as TF

        made = self.preprocess
        size = list(made.crop) if self.resize == "squash" else [min(made.crop)]
        resize = T.Resize(size, T.InterpolationMode(made.interpolation))
        image = TF.pil_to_tensor(resize(picture)).float() / 255
        normal = TF.normalize(image, list(made.mean), list(made.std))
        return normal[None].to(device_of(self.model), dtype_of(self.model))


def run(
    plan: Plan,
    output: str | Path,
    rank: Rank | None = None,
    show_progress: bool = False,
) -> Content:
    """Do what is missing, and return all that there is then.

    Args:
        plan: What to do.
        output: Folder of the results, shared by all ranks.
        rank: This process among others; None for the only one. See `processes`.
        show_progress: Show a bar with the rate and the remaining time on stderr, on
            rank 0, for its share.

    Returns:
        What ``output`` holds of this plan after all ranks are done: the rows of its
        pairs on its model, of whatever method, and what failed. On other ranks than the
        first, nothing.

    Raises:
        ValueError: If the model does not fit the data set or a method, or ``output``
            holds other files by these names.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from captum_extremal.benchmark.datasets import Example
        >>> objects = {"dog": torch.ones(8, 8).triu().bool()}
        >>> def picture(name):
        ...     return Example(name, Image.new("RGB", (8, 8)), objects, {"dog": False})
        >>> images = ImageSet("voc2007", ["a", "b"], picture)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20)).eval()
        >>> plan = Plan(images, model, Preprocess(crop=(8, 8)), ("centre",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = run(plan, folder).rows.values()
        >>> [(row.image, row.label, row.target, row.hit) for row in rows]
        [('a', 'dog', 11, 1.0), ('b', 'dog', 11, 1.0)]
    """
    rank, output = Rank() if rank is None else rank, Path(output)
    outputs_of = _outputs_of(plan)
    explain = {name: explainer(name, plan.model, plan.options) for name in plan.methods}
    wanted = plan.configurations

    def look() -> tuple[list[str], set[_Key], dict[_Key, list[str]]]:
        found = read(output)
        missing = plan.missing(found)
        images, here = set(missing), set(wanted.values())
        keys = {it for it in found.rows if it[0] in here and it[1] in images}
        flaws = {
            it: lines
            for it, lines in found.flaws.items()
            if it[0] in here and it[1] in images
        }
        return missing, keys, flaws

    missing, present, flaws = rank.told(look)
    todo = rank.share(missing)
    with writing(output, rank.number) as writer:
        listed = plan.difficult
        difficult = (
            None if listed is None else [[pair.image, pair.label] for pair in listed]
        )
        for name, configuration in wanted.items():
            writer.configure(configuration, plan.settings[name], difficult)
        here = _Here(plan, outputs_of, explain, wanted, present, flaws, writer, output)
        for image in tqdm(
            todo,
            desc="images" if rank.total == 1 else f"images of 1 of {rank.total} ranks",
            unit="image",
            disable=not show_progress or rank.number > 0,
        ):
            here.play(image)
    rank.wait()
    if rank.number > 0:
        return Content()
    return plan.own(read(output))


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: the device of its first tensor.

    Args:
        model: Any model.

    Returns:
        The device; the CPU for a model without tensors.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model computes in: the type of its first floating-point parameter.

    Args:
        model: Any model.

    Returns:
        The type; float32 for a model without one.

    Example:
        >>> dtype_of(nn.Linear(1, 1).double())
        torch.float64
    """
    types = [it.dtype for it in model.parameters() if it.is_floating_point()]
    return types[0] if types else torch.float32


def digest_of(model: nn.Module) -> str:
    """A short hash of all weights and buffers of a model.

    Args:
        model: Any model.

    Returns:
        12 hexadecimal digits.

    Example:
        >>> digest_of(nn.Linear(1, 1)) == digest_of(nn.Linear(1, 1))
        False
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):  # of a module's own `get_extra_state`
            found.update(f"{name} {tensor!r}".encode())
            continue
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


# --- one image ---


_Key = tuple[str, str, str]  # configuration, image, class: that of a `Row`


class _Judged(NamedTuple):
    """What a saliency map is worth on an object."""

    row: int | None
    column: int | None
    hit: float
    inside: float
    energy: float | None


@dataclass(frozen=True, eq=False)
class _Here:
    """All that is needed to play one image."""

    plan: Plan
    outputs_of: Mapping[str, list[int]]
    explain: Mapping[str, Explain]
    configurations: Mapping[str, str]
    present: set[_Key]
    flaws: Mapping[_Key, list[str]]
    writer: Writer
    folder: Path

    def play(self, image: str) -> None:
        """Each class with each method, and a row for each that is not there yet."""
        try:
            example = self.plan.images.read(image)
            inputs = self.plan.inputs(example.picture)
            with torch.no_grad():
                outputs = self.plan.model(inputs)[0]
            check_rule(outputs, self.plan.options.probability)
            targets = self.targets(image, list(example.objects), outputs)
        except Exception as error:  # whatever a broken file leads to
            for name in self.configurations:
                self.fail(image, "", name, error)
            return
        flaws = _by_class(example)
        failed = set()
        for label, target in targets.items():
            for name, configuration in self.configurations.items():
                key, lines = (configuration, image, label), flaws.get(label, [])
                known = self.flaws.get(key, [])
                if key in self.present and lines == known:
                    continue
                objects, difficult = example.objects[label], example.difficult[label]
                try:
                    row = self.row(
                        image, label, name, target, inputs, objects, difficult
                    )
                except Exception as error:
                    self.fail(image, label, name, error)
                    failed.add(configuration)
                else:
                    self.writer.add(row)
                    if lines or known:  # after the row that it tells of
                        self.writer.flaw(key, lines)
        self.tell_unplayed(image, set(targets), flaws)
        complete = [it for it in self.configurations.values() if it not in failed]
        self.writer.finish(self.plan.selection, complete, image)

    def tell_unplayed(
        self, image: str, played: set[str], flaws: Mapping[str, list[str]]
    ) -> None:
        """The flaws of classes without a row; those of the others come with it."""
        before = {key[2] for key in self.flaws if key[1] == image}
        for label in {*before, *flaws} - played:
            for configuration in self.configurations.values():
                key, lines = (configuration, image, label), flaws.get(label, [])
                if key not in self.present and lines != self.flaws.get(key, []):
                    self.writer.flaw(key, lines)

    def targets(
        self, image: str, labels: list[str], outputs: Tensor
    ) -> dict[str, Target]:
        """The classes that are played in this image, and the output of each."""
        wanted = self.plan.wanted
        given = None if wanted is None else wanted[image]
        found = {}
        for label in labels:
            if given is not None and label not in given:
                continue
            index = None if given is None else given[label]
            known = self.outputs_of.get(label, [])  # a class of its own has none
            indices = known if index is None else [index]
            if indices:
                rule = self.plan.options.probability
                found[label] = highest(outputs, indices, rule)
        least = self.plan.min_probability
        return {name: it for name, it in found.items() if it.probability >= least}

    def row(
        self,
        image: str,
        label: str,
        name: str,
        target: Target,
        inputs: Tensor,
        objects: Tensor,
        difficult: bool,
    ) -> Row:
        """Explain and judge."""
        index = torch.tensor([target.output], device=inputs.device)
        start = _now(inputs.device)
        explained = self.explain[name](inputs, index)
        seconds = _now(inputs.device) - start
        judged = _judge(explained.saliency, objects)
        configuration = self.configurations[name]
        if self.plan.save_maps:
            _save(self.folder / "maps" / configuration, image, label, explained)
        return Row(
            configuration=configuration,
            image=image,
            label=label,
            method=name,
            target=target.output,
            difficult=difficult,
            score=target.score,
            probability=target.probability,
            **judged._asdict(),
            curve=explained.curve,
            seconds=seconds,
        )

    def fail(self, image: str, label: str, name: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        configuration = self.configurations[name]
        failure = Failure(configuration, image, label, name, text)
        self.writer.fail(self.plan.selection, failure)


def _by_class(example: Example) -> dict[str, list[str]]:
    """Class -> a line for each flaw of its objects."""
    found: dict[str, list[str]] = {}
    for flaw in example.flaws:
        text = f"{flaw.object}: {flaw.reason}"
        # What a file or JSON may hold and no database takes.
        line = text.encode(errors="backslashreplace").decode()
        found.setdefault(flaw.label, []).append(line)
    return found


def _outputs_of(plan: Plan) -> dict[str, list[int]]:
    """The outputs of each class; an error now if the model cannot play at all."""
    height, width = plan.preprocess.crop
    if plan.resize == "shorter":
        width = width * 4 // 3  # as most images have it
    blank = torch.zeros(1, 3, height, width)
    blank = blank.to(device_of(plan.model), dtype_of(plan.model))
    try:
        with torch.no_grad():
            outputs = plan.model(blank)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"model must take images of {height} x {width} pixels, got {error}"
        ) from None
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise ValueError("model must return one row of class scores for each image")
    check_rule(outputs, plan.options.probability)
    need_maps = {"grad-cam", "mwp", "cmwp"} & set(plan.methods)
    if need_maps and plan.options.layer is None:
        last_feature_map(plan.model, blank)
    for pair in plan.pairs or []:
        if pair.output is not None and not 0 <= pair.output < outputs.shape[1]:
            raise ValueError(
                f"pairs must have indices in 0..{outputs.shape[1] - 1}, got "
                f"{pair.output}"
            )
    return outputs_of_classes(plan.images.name, outputs.shape[1])


def _judge(saliency: Tensor, objects: Tensor) -> _Judged:
    """Bring a map (1, 1, h, w) to the size of the image (H, W), and play."""
    wide = saliency.to(torch.promote_types(saliency.dtype, torch.float32))
    (scaled,) = near_one([wide])  # no sum of finite values leaves the range
    # A map that shrinks must not lose a single high pixel between two samples.
    maps = F.interpolate(scaled, objects.shape, mode="bilinear", antialias=True)
    truth = objects[None]
    energy = float(energy_pointing_game(maps, truth))
    row, column = divmod(int(maps.argmax()), maps.shape[3])
    points = bool(maps.amin() < maps.amax())  # false for a NaN as well
    return _Judged(
        row if points else None,
        column if points else None,
        hit=float(pointing_game(maps, truth)),
        inside=float(pointing_game(maps, truth, tolerance=0)),
        energy=energy if energy == energy else None,
    )


def _save(folder: Path, image: str, label: str, explained: Explained) -> None:
    """Keep the map, and the masks where there are some, in the size of the input."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"saliency": explained.saliency}
    if explained.masks is not None:
        tensors["masks"] = explained.masks
    name = quote(f"{image}-{label.replace(' ', '_')}", safe="")
    files.write(
        folder / f"{name}.safetensors", tensors, {"image": image, "class": label}
    )


def _now(device: torch.device) -> float:
    """Seconds, after all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
