"""What the studies share: pictures, times, memory, intervals, files and tables."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import captum
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from captum_extremal import __version__

Record = dict[str, Any]


def data() -> Path:
    """The folder of real images."""
    return Path(os.environ["CAPTUM_EXTREMAL_DATA"])


def labelled_images(count: int | None = None) -> list[dict[str, str]]:
    """The first images of imagenet_mini in the order of its list, or all."""
    with (data() / "imagenet_mini" / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))[:count]


def interleaved(
    cases: dict[str, Callable[[], object]],
    repeats: int,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of each case, A B A B, after one call each that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            wait(device)
            start = time.perf_counter()
            case()
            wait(device)
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def wait(device: torch.device | None) -> None:
    """Let an accelerator finish."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> Record:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        "median": statistics.median(values),
        "quartiles": [low, high],
        "repeats": len(values),
    }


def ratios(times: dict[str, list[float]], name: str, to: str) -> Record:
    """Spread of the ratio of two cases that were measured side by side."""
    pairs = zip(times[name], times[to], strict=True)
    return spread([one / other for one, other in pairs])


def peak_memory(case: Callable[[], object], device: torch.device) -> float:
    """The most megabytes that tensors made by a case take at once, beyond the start.

    On a CPU every allocation and release of PyTorch's allocator is recorded by
    `torch.profiler` and summed up in order: exact and repeatable, unlike the size of
    the process. Scratch memory inside oneDNN and MKL is not seen. On CUDA it is the
    allocator's own peak.
    """
    case()  # tables and caches are made once
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        case()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 1e6
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True) as recorded:
        case()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], order, event["args"]["Bytes"])
        for order, event in enumerate(events)
        if event.get("name") == "[memory]"
    )
    now = peak = 0
    for _, _, size in changes:
        now += size
        peak = max(peak, now)
    return peak / 1e6


def metadata(device: torch.device | None = None) -> Record:
    """What a figure depends on besides the code."""
    return {
        "date": date.today().isoformat(),
        "captum_extremal": __version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
    }


def processor(device: torch.device | None) -> str:
    """The name of the device."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return found[0] if found else platform.processor() or platform.machine()


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over images."""
    random = np.random.default_rng(0)
    samples = random.choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def write(file: Path, record: Record) -> None:
    """The whole record or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(file)


def save(file: Path, parts: dict[str, Record]) -> dict[str, Record]:
    """Replace these parts of a result file; all parts as they are now."""
    known = json.loads(file.read_text()) if file.exists() else {}
    write(file, known | parts)
    return known | parts


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill_in(text: str, name: str, content: str) -> str:
    """Replace what stands between the comments `<!-- name -->` and `<!-- end -->`."""
    start = f"<!-- {name} -->"
    before, _, rest = text.partition(start)
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"the text must hold {start} and <!-- end -->")
    return f"{before}{start}\n{content}\n{end}{after}"
