"""Fixtures shared by all tests: a thread, fixed seeds, devices, images, a browser."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import captum
import hypothesis
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)

# Without a deadline, which a busy machine breaks, and with the same examples each time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

DATA_VARIABLE = "CAPTUM_EXTREMAL_DATA"
BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",  # of which root, in a container, has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def pytest_report_header() -> str:
    data = os.environ.get(DATA_VARIABLE, "not set")
    return (
        f"captum {captum.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread, {DATA_VARIABLE}: {data}"
    )


def pytest_itemcollected(item) -> None:
    if "browser" in getattr(item, "fixturenames", ()):
        item.add_marker("browser")


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    """Each test starts from the same generator and a single thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="no CUDA device"
                ),
            ],
        ),
    ]
)
def device(request):
    """Each device in turn. Draw random tensors on the CPU, then move them."""
    return torch.device(request.param)


@pytest.fixture
def pythons_own_handler():
    """Where the tests run in the background, Ctrl-C may be switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Each floating type that results are promised for."""
    return request.param


@pytest.fixture(scope="session")
def data_root():
    """Folder of real images (imagenet_mini, coco_mini, voc_mini)."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(f"{DATA_VARIABLE} is not set: it names the folder of real images")
    root = Path(value)
    if not root.is_dir():
        pytest.fail(f"{DATA_VARIABLE} must name a folder, got {value}")
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, steered by selenium; its logs are kept."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"{name} is not installed: the page is not tried in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    driver = webdriver.Chrome(options, Service(programs["chromedriver"]))
    yield driver
    driver.quit()
