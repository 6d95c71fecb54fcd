"""The pictures of README.md and docs/ that show masks of the default, all made anew.

    python studies/pictures.py          # or: make pictures

One run of the demo gives ``camera.png`` (its masks, with their scores) and
``methods.jpg`` (six methods for three pictures); `analyses.py masks` gives
``meaningful.jpg`` and prints the table of docs/peers.md. With a Chromium that selenium
can start, ``page.jpg`` is a screenshot of the demo's page.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COMPARED = "gradient,guided-backprop,grad-cam,ig,occlusion"
QUALITY = 75


def run(*command: str) -> None:
    """A command, to the end."""
    subprocess.run(command, check=True)


@click.command()
@click.option("--page/--no-page", default=True, help="Take the screenshot as well.")
def main(page: bool) -> None:
    """Write the pictures into docs/images."""
    tool = str(Path(sys.executable).with_name("captum-extremal"))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        run(tool, "demo", "--threads=1", f"--output={folder}", f"--compare={COMPARED}")
        (made / "camera.png").replace(IMAGES / "camera.png")
        with Image.open(made / "methods.png") as figure:
            figure.convert("RGB").save(IMAGES / "methods.jpg", quality=QUALITY)
        if page:
            photograph(tool, made)
    run(sys.executable, str(Path(__file__).with_name("analyses.py")), "masks")


def photograph(tool: str, folder: Path) -> None:
    """The page of the coffee, as a browser shows it."""
    import skimage.data
    from selenium import webdriver

    picture, file = folder / "coffee.png", folder / "page.html"
    Image.fromarray(skimage.data.coffee()).save(picture)
    command = [tool, "explain", str(picture), "--threads=1", f"--output={folder}"]
    run(*command, f"--html={file}", "--areas=0.05,0.1,0.2,0.4", "--compare=grad-cam,ig")
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options=options) as driver:
        driver.set_window_size(1100, 1000)
        driver.get(file.as_uri())
        shown = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    shown.convert("RGB").save(IMAGES / "page.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
