from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
)
from torchvision.models import VisionTransformer, get_model

from captum_extremal.models import load_model
from captum_extremal.models.checkpoints import (
    Maker,
    load_weights,
    num_classes,
    read_checkpoint,
    read_state_dict,
)

SMALL = "shufflenet_v2_x0_5"  # with BatchNorm, 338 tensors


def small(seed=0, classes=5):
    """A network whose every tensor tells it from that of another seed."""
    torch.manual_seed(seed)
    model = get_model(SMALL, num_classes=classes).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7 + seed)
    return model


@pytest.fixture(scope="module")
def state():
    return small().state_dict()


@pytest.fixture(scope="module")
def other():
    return small(1).state_dict()


@pytest.fixture
def load(tmp_path):
    def load(content, spec=f"torchvision:{SMALL}", save=torch.save):
        save(content, tmp_path / "weights")
        return load_model(spec, tmp_path / "weights").model

    return load


def same(model, state):
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def with_module(make):
    """The state dict of a network that a real wrapper has changed."""
    return lambda _: make(small()).state_dict()


def stage_compiled(model):
    model.stage2 = torch.compile(model.stage2)
    model.stage3[0] = torch.compile(model.stage3[0])
    return model


def stage_wrapped(model):
    model.stage2[1] = checkpoint_wrapper(model.stage2[1])
    return model


def inside(wrapper):
    """Each block wrapped, and the whole as well."""

    def wrap(state):
        return {
            f"{wrapper}." + re.sub(r"^(stage\d\.\d)", rf"\1.{wrapper}", name): value
            for name, value in state.items()
        }

    return wrap


def lightning(prefix, **more):
    def wrap(state):
        return {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": OrderedDict(prefixed(state, prefix) | more),
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [
                {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]}
            ],
        }

    return wrap


TRAINERS = {
    "plain": lambda state: state,
    "without versions": dict,
    "compiled": with_module(torch.compile),
    "parallel": with_module(nn.DataParallel),
    "averaged": with_module(torch.optim.swa_utils.AveragedModel),
    "a compiled stage": with_module(stage_compiled),
    "checkpointing of a part": with_module(stage_wrapped),
    "in a container": with_module(lambda model: nn.ModuleDict({"encoder": model})),
    **{
        prefix: lambda state, prefix=prefix: prefixed(state, prefix)
        for prefix in (
            "module.",
            "_orig_mod.module.",
            "module._orig_mod.",
            "model._orig_mod.",
            "net.",
            "backbone.",
            "encoder.",
            "_fsdp_wrapped_module.",
            "_forward_module.module.",
            "module.model.module.net._orig_mod.",
            "classifiers.0.",
        )
    },
    "FSDP of parts": inside("_fsdp_wrapped_module"),
    "compiled parts": inside("_orig_mod"),
    "FSDP, checkpointing": inside("_fsdp_wrapped_module._checkpoint_wrapped_module"),
    **{
        name: lambda state, name=name: {"epoch": 3, name: state, "loss": 0.5}
        for name in (
            "state_dict",
            "model_state_dict",
            "model",
            "net",
            "params",
            "params_ema",
            "ema",
            "state_dict_ema",
            "module",
            "network",
            "weights",
            "student",
            "my own name",
        )
    },
    "nested twice": lambda state: {"checkpoint": {"model": state}},
    "nested in a list": lambda state: [{"epoch": 1}, (state, 3)],
    "Lightning": lightning("model."),
    "Lightning, compiled": lightning("model._orig_mod."),
    "Lightning, loss": lightning("net.", **{"criterion.weight": torch.ones(3)}),
    "Lightning, metrics": lightning("net.", **{"val_acc.tp": torch.tensor(4)}),
    "Lightning, another part": lightning("net.", **{"head.bias": torch.ones(4)}),
    "loss beside": lambda state: state | {"criterion.weight": torch.ones(3)},
    "metrics beside": lambda state: state | {"train_accuracy.correct": torch.ones(3)},
    "counts beside": lambda state: state | {"n_averaged": torch.tensor(4)},
    "operations inside": lambda state: (
        state | {"total_ops": torch.ones(1), "stage2.0.total_ops": torch.ones(1)}
    ),
    "parameters": lambda state: {
        name: nn.Parameter(value, requires_grad=value.is_floating_point())
        for name, value in state.items()
    },
    "doubles": lambda state: {name: value.double() for name, value in state.items()},
    "a teacher that is another network": lambda state: {
        "teacher": get_model("squeezenet1_1", num_classes=5).state_dict(),
        "student": state,
    },
    "scalars in the state dict": lambda state: dict(state) | {"epoch": 3},
    "an EMA of parameters alone": lambda state: {
        "model": state,
        "ema": {name: -state[name] for name, _ in small().named_parameters()},
    },
}


@pytest.mark.parametrize("wrap", TRAINERS.values(), ids=TRAINERS)
def test_what_trainers_write_is_read(state, load, wrap, caplog):
    same(load(wrap(state)), state)
    assert caplog.records == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(state, load, dtype):
    half = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    whole = {name: value.to(state[name].dtype) for name, value in half.items()}
    same(load(half), whole)


@pytest.mark.parametrize(
    ("wrap", "taken", "place"),
    [
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, 1, "state_dict_ema"),
        (lambda a, b: {"model_ema": a, "model": b}, 0, "model_ema"),
        (lambda a, b: {"params_ema": b, "params": a}, 1, "params_ema"),
        (
            lambda a, b: {
                "model": a,
                "ema": prefixed(a, "online_model.") | prefixed(b, "ema_model."),
            },
            1,
            "ema.ema_model",
        ),
        (
            lambda a, b: prefixed(a, "net.") | prefixed(b, "swa_model.module."),
            1,
            "swa_model.module",
        ),
        (lambda a, b: {"teacher": a, "student": b}, 1, "student"),
        (lambda a, b: prefixed(a, "teacher.") | prefixed(b, "student."), 1, "student"),
        (lambda a, b: {"gradients": a, "weights": b}, 1, "weights"),
        (lambda a, b: {"history": [{"x": b}], "best": a}, 0, "best"),
        (lambda a, b: {"first": a, "second": b}, 0, "first"),
        (lambda a, b: {"old": dict(a), "new": {n: v.half() for n, v in b.items()}}, 1,
         "new"),
    ],
)  # fmt: skip
def test_which_of_several_is_taken_and_said(
    state, other, load, caplog, wrap, taken, place
):
    model = load(wrap(state, other))
    expected = (state, other)[taken]["fc.weight"]
    torch.testing.assert_close(model.fc.weight.data, expected, rtol=1e-3, atol=1e-3)
    assert f"{place} is taken, not " in caplog.records[0].getMessage()
    assert caplog.records[0].levelno == logging.WARNING


def test_equal_weights_under_two_names_are_no_choice(state, load, caplog):
    copy = {name: value.clone() for name, value in state.items()}
    same(load({"model": state, "ema": copy}), state)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "fc.bias"},
         "1 of 338 tensors missing, 0 unknown, 0 of another shape: fc.bias is miss"),
        (lambda state: state | {"stage2.4.branch2.0.weight": torch.ones(3)},
         "0 of 338 tensors missing, 1 unknown, 0 of another shape: stage2.4"),
        (lambda state: prefixed(state, "net.") | {"net.reg_token": torch.ones(3)},
         "1 unknown, 0 of another shape: reg_token is unknown"),
        (lambda state: state | {"conv1.0.weight": torch.ones(24, 1, 3, 3)},
         "0 unknown, 1 of another shape: conv1.0.weight is of another shape"),
        (lambda state: {"model": state | {"fc.weight": torch.ones(5, 1024).int()}},
         "0 of another shape, 1 of another type"),
        (lambda state: state | {"fc.weight": torch.ones(5, 1024, device="meta")},
         "0 of another shape, 1 of another type"),
        (lambda state: state | {"fc.weight": torch.ones(5, 1024).to_sparse()},
         "0 of another shape, 1 of another type"),
        (
            lambda state: (
                {n: v for n, v in state.items() if n not in ("fc.weight", "fc.bias")}
                | {"fc.scale": torch.ones(()), "fc.zero_point": torch.zeros(())}
            ),
            "2 unknown, 0 of another shape, of a quantised network",
        ),
    ],
)  # fmt: skip
def test_what_is_not_quite_the_model_is_refused(state, load, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(change(state))


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_a_bigger_network_of_the_family_is_refused(load, prefix):
    bigger = get_model("resnet34", num_classes=2).state_dict()
    message = "0 of 122 tensors missing, 96 unknown, 0 of another shape: layer1.2"
    with pytest.raises(ValueError, match=message):
        load(prefixed(bigger, prefix), "torchvision:resnet18")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(state, load, value):
    wrong = {name: tensor.clone() for name, tensor in state.items()}
    wrong["stage3.0.branch1.1.running_var"][3] = value
    message = r"finite, got NaN or infinity in stage3\.0\.branch1\.1\.running_var of"
    with pytest.raises(ValueError, match=message):
        load({"model": wrong})


# --- classes ---


@pytest.mark.parametrize("prefix", ["", "module.", "net._orig_mod."])
@pytest.mark.parametrize("classes", [1, 2, 1000, 1001])
def test_the_number_of_classes_is_that_of_the_file(load, classes, prefix):
    model = small(classes=classes)
    same(load(prefixed(model.state_dict(), prefix)), model.state_dict())


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("classes", [1, 7])
def test_the_classes_of_transformers_and_of_two_heads(load, name, classes):
    timm = pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    model = timm.create_model(name, num_classes=classes)
    same(load({"model": model.state_dict()}, f"timm:{name}"), model.state_dict())


def test_layers_as_wide_as_the_classes_do_not_count():
    expected = {"hidden.weight": torch.zeros(10, 4), "fc.weight": torch.zeros(10, 10)}
    state = {"hidden.weight": torch.zeros(10, 4), "fc.weight": torch.zeros(3, 10)}
    assert num_classes(expected, state, own=10) == 3
    assert num_classes(expected, {"hidden.weight": torch.zeros(2, 5)}, own=10) == 10


# --- steps of their own ---


@pytest.mark.parametrize(
    ("name", "heads"),
    [("googlenet", True), ("googlenet", False), ("inception_v3", True)],
)
def test_heads_for_training_alone_may_be_there_or_not(load, name, heads):
    """A fine-tuned network: of 5 classes, its auxiliary heads still of 1000."""
    options = {"init_weights": False, "transform_input": True}
    model = get_model(name, aux_logits=heads, **options).eval()
    model.fc = nn.Linear(model.fc.in_features, 5)
    loaded = load(model.state_dict(), f"torchvision:{name}")
    inputs = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), model(inputs))


def old_densenet(state):
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", name): value
        for name, value in state.items()
    }


@pytest.mark.parametrize("wrap", [dict, lambda x: {"model": prefixed(x, "module.")}])
def test_a_published_densenet_has_older_names(load, wrap):
    model = get_model("densenet121", num_classes=3)
    published = wrap(old_densenet(model.state_dict()))
    same(load(published, "torchvision:densenet121"), model.state_dict())


def test_timm_reads_the_names_of_torchvision(load):
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    model = get_model("regnet_y_400mf", num_classes=3).eval()
    loaded = load({"model": model.state_dict()}, "timm:regnety_004")
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), model(inputs), atol=1e-4, rtol=1e-4)


def test_timm_reads_buffers_of_older_versions(load):
    timm = pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3)
    state = model.state_dict()
    old = state | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    same(load({"model": old}, "timm:swin_tiny_patch4_window7_224"), state)


def test_timm_does_not_resize_for_us(load):
    """`checkpoint_filter_fn` would interpolate the positions of other input sizes."""
    timm = pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    state = timm.create_model("test_vit", img_size=192).state_dict()
    with pytest.raises(ValueError, match="1 of another shape: pos_embed is of another"):
        load(state, "timm:test_vit")


# --- versions of modules ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model.state_dict(),
        lambda model: {"state_dict": nn.DataParallel(model).state_dict()},
        lambda model: nn.ModuleDict({"net": model}).state_dict(),
        lambda model: dict(model.state_dict()),
    ],
)
def test_a_model_that_asks_for_its_version(load, wrap):
    """MNASNet refuses what does not tell its version."""
    model = get_model("mnasnet0_5", num_classes=3)
    same(load(wrap(model), "torchvision:mnasnet0_5"), model.state_dict())


def test_a_model_that_asks_for_its_version_in_safetensors(load):
    state = get_model("mnasnet0_5", num_classes=3).state_dict()
    same(load(state, "torchvision:mnasnet0_5", save_file), state)


def without_counts(state, version):
    old = OrderedDict(
        (name, value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    )
    if version is not None:
        old._metadata = {
            name: {"version": version if "version" in of else 1}
            for name, of in state._metadata.items()
        }
    return old


@pytest.mark.parametrize("version", [None, 1])
def test_a_batch_norm_of_the_time_before_counts(state, load, version):
    loaded = load({"model": without_counts(state, version)}).state_dict()
    for name, value in state.items():
        count = name.endswith("num_batches_tracked")
        assert torch.equal(loaded[name], torch.tensor(0) if count else value)


def test_versions_that_are_none_are_passed_over(state, load):
    odd = OrderedDict(state)
    odd._metadata = {"": 3, 4: {}, "conv1.1": {"version": 2}}
    same(load(odd), state)


def test_a_batch_norm_without_its_counts_is_refused_as_by_pytorch(state, load):
    with pytest.raises(ValueError, match="56 of 338 tensors missing"):
        load(without_counts(state, 2))


def test_old_names_within_a_module_are_pytorchs_to_change(tmp_path):
    """`linear_1` of a transformer's MLP is `0` since version 2 of it."""

    def build(classes):
        return VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=classes or 1000)

    model = build(4)
    old = {
        "model."
        + name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for name, v in model.state_dict().items()
    }
    assert old.keys() != set(prefixed(model.state_dict(), "model."))
    torch.save({"state_dict": old}, tmp_path / "weights")
    loaded, classes = load_weights(tmp_path / "weights", "vit", Maker(build, None))
    assert classes == 4
    same(loaded, model.state_dict())


# --- formats ---


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def name_of_bytes(folder):
    return Path(os.fsdecode(os.fsencode(folder) + b"/weights-\xff"))


@pytest.mark.parametrize("save", [torch.save, legacy, save_file])
@pytest.mark.parametrize(
    "name", ["x.pth", "x.safetensors", "x.SAFETENSORS", "model.bin", "x", "x.ckpt.zip"]
)
def test_the_format_is_told_from_the_bytes(tmp_path, save, name):
    state = {"a.weight": torch.rand(2, 3), "a.bias": torch.rand(2)}
    save(state, tmp_path / "file")
    path = (tmp_path / "file").rename(tmp_path / name)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("save", [torch.save, legacy, save_file])
def test_a_name_that_is_no_text(tmp_path, save):
    save({"a": torch.arange(3)}, tmp_path / "file")
    path = (tmp_path / "file").rename(name_of_bytes(tmp_path))
    assert torch.equal(read_state_dict(path)["a"], torch.arange(3))


class Config:
    """A class of the user's own."""


def saved(content, **options):
    return lambda path: torch.save(content, path, **options)


def written(content):
    return lambda path: path.write_bytes(content)


def cut(save, bytes_):
    def write(path):
        save({"a": torch.rand(100)}, path)
        path.write_bytes(path.read_bytes()[:bytes_])

    return write


def archive(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"x")

    return write


def script(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def export(path):
    program = torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),))
    with path.open("wb") as file:
        torch.export.save(program, file)


def npz(path):
    with path.open("wb") as file:
        np.savez(file, kernel=np.ones(3))


def tar(path):
    with tarfile.open(path, "w") as file:
        file.add(__file__, "weights.pth")


def damaged(path):
    torch.save({"a": torch.rand(100)}, path)
    content = path.read_bytes()
    start = content.index(b"data.pkl") + 20
    path.write_bytes(content[:start] + b"\xff" * 30 + content[start + 30 :])


SAFE = "which is not read for safety; save model.state_dict() alone"
REFUSED = {
    "Namespace": (
        saved({"args": argparse.Namespace(lr=1)}),
        f"holds argparse.Namespace, {SAFE}",
    ),
    "Namespace, legacy": (
        saved({"args": argparse.Namespace()}, _use_new_zipfile_serialization=False),
        f"holds argparse.Namespace, {SAFE}",
    ),
    "class": (saved([Config()]), f"holds {__name__}.Config, {SAFE}"),
    "path": (saved({"p": Path("x")}), "holds pathlib."),
    "number": (saved({"best": np.float64(1)}), "holds numpy."),
    "array": (saved({"w": np.ones(3)}), "holds numpy."),
    "builtin": (saved({"f": print}), f"holds print, {SAFE}"),
    "system": (saved({"f": os.system}), f"holds posix.system, {SAFE}"),
    "long integer": (saved({"n": 1 << 4000}), "holds objects that are not read"),
    "whole model": (
        saved(nn.Linear(2, 2)),
        "holds a whole model (torch.nn.modules.linear.Linear), not read for safety",
    ),
    "whole model, legacy": (
        saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "holds a whole model (torch.nn.modules.linear.Linear), not read for safety",
    ),
    "whole model, inside": (
        saved({"args": argparse.Namespace(), "model": nn.Sequential(nn.ReLU())}),
        "holds a whole model (torch.nn.modules.container.Sequential)",
    ),
    "protocol": (
        saved({"a": torch.ones(3)}, pickle_protocol=4),
        "has another protocol of pickle than torch.save's own",
    ),
    "protocol, legacy": (
        saved({"a": 1}, pickle_protocol=4, _use_new_zipfile_serialization=False),
        "has another protocol of pickle than torch.save's own",
    ),
    "pickle": (
        written(pickle.dumps({"a": torch.ones(30)}, protocol=2)),
        "is a pickle not written by torch.save, with torch.storage._load_from_bytes",
    ),
    "pickle of numbers": (
        written(pickle.dumps({"a": list(range(99))}, protocol=2)),
        "is a pickle not written by torch.save; save model.state_dict() alone",
    ),
    "TorchScript": (script, "is a TorchScript archive, which holds code; save model."),
    "torch.export": (export, "is of torch.export, a graph; save model.state_dict()"),
    "npz": (npz, "is a NumPy archive (.npz), as JAX writes"),
    "npy": (written(b"\x93NUMPY\1\0v\0{'descr': '<f8'"), "is a NumPy array"),
    "Keras": (archive("metadata.json", "model.weights.h5"), "is of Keras"),
    "zip": (archive("weights.pth"), "is a zip archive: unpack it"),
    "gzip": (written(gzip.compress(b"x")), "is compressed: unpack it"),
    "tar": (tar, "is a tar archive: unpack it"),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n\0\0\0"), "is an HDF5 file"),
    "ONNX": (written(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:"), "buffer of ONNX"),
    "SavedModel": (written(b"\x08\x01\x12\x80\x93\x01"), "buffer of TensorFlow"),
    "frozen graph": (written(b"\n?\n\x05input\x12\x0bPlaceholder*"), "of TensorFlow"),
    "LFS": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9"),
        "is a pointer of Git LFS, not the file itself: git lfs pull",
    ),
    "HTML": (written(b"\n<!DOCTYPE html><html>"), "is a page of a web site, as"),
    "XML": (written(b'<?xml version="1.0"?><Error>'), "is a page of a web site"),
    "index": (
        written(json.dumps({"weight_map": {"a": "model-00001.bin"}}).encode()),
        "is the index of a checkpoint in several files",
    ),
    "JSON": (written(b'{"a": 1}'), "is text: '{\"a\": 1}'"),
    "text": (written(b"Access denied\n"), "is text: 'Access denied'"),
    "other bytes": (written(b"\xff\0\1\2"), "starts with b'\\xff"),
    "empty": (written(b""), "is empty: fetch it again"),
    "cut archive": (cut(torch.save, 700), "is cut off or damaged: fetch it again"),
    "cut archive, short": (cut(torch.save, 9), "is cut off or damaged: fetch it"),
    "cut legacy file": (cut(legacy, 700), "is cut off or damaged: fetch it again"),
    "cut legacy file, short": (cut(legacy, 40), "is cut off or damaged: fetch it"),
    "cut safetensors": (cut(save_file, 100), "is cut off or damaged, fetch it again ("),
    "cut safetensors, short": (cut(save_file, 20), "is cut off: fetch it again"),
    "damaged archive": (damaged, "is cut off or damaged: fetch it again"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(pickle|deprecated)")
@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_its_cause(tmp_path, write, message):
    path = tmp_path / "weights.safetensors"
    write(path)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_checkpoint(path)
    start = "weights must be a state dict written by torch.save or safetensors, got "
    assert str(raised.value).startswith(f"{start}{path}, which ")
    assert "\n" not in str(raised.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a file, got .*, a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict(),
            r"dict of state, param_groups \(an optimizer's state\)",
        ),
        (
            {"optimizer": {"state": {0: {"a": torch.ones(3)}}, "param_groups": []}},
            "dict of optimizer",
        ),
        ({"epoch": 3, "metrics": [1, 2]}, "dict of epoch, metrics"),
        ({}, "dict that is empty"),
        ([torch.ones(3)], "list"),
    ],
)
def test_a_file_without_weights_tells_what_it_holds(load, content, what):
    with pytest.raises(ValueError, match=f"must hold a state dict.*, got {what} in"):
        load(content)


@pytest.mark.filterwarnings("ignore:.*quantize.* are deprecated")
def test_a_quantised_model_is_refused(load):
    tensor = torch.quantize_per_tensor(torch.rand(5, 1024), 0.1, 0, torch.qint8)
    state = small().state_dict() | {"fc.weight": tensor}
    with pytest.raises(ValueError, match=r"1 of another type \(quantised"):
        load(state)


def test_content_that_holds_itself_is_read_once(tmp_path):
    content = {"a": torch.arange(2)}
    content["itself"] = [content]
    torch.save(content, tmp_path / "weights")
    assert torch.equal(read_state_dict(tmp_path / "weights")["a"], torch.arange(2))


def test_without_a_model_the_largest_state_dict_is_read(tmp_path):
    state = {"model.module.a": torch.arange(2), "model.b": torch.arange(3)}
    torch.save({"loss": {"weight": torch.ones(1)}, "x": state}, tmp_path / "weights")
    read = read_state_dict(tmp_path / "weights")
    assert {name: value.tolist() for name, value in read.items()} == {
        "a": [0, 1],
        "b": [0, 1, 2],
    }
