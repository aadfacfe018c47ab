"""Takes docs/demo.png, a picture of the page of experiments.demo: `python -m docs.screenshot`.

It takes half a minute, and needs Gradio, Playwright and a Chromium of the system.
"""

import argparse
import io
import pathlib
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

from experiments.demo_page.models import FOLDER, Models
from experiments.demo_page.server import serve
from experiments.demo_page.work import Work

ROOT = pathlib.Path(__file__).parents[1]
WIDTH = 1280  # pixels


def take(path: pathlib.Path, color_scheme: str = "light") -> None:
    """Writes the first example with the shipped model, asks it, and takes a picture."""
    work = Work(Models([str(FOLDER / "babi_qa2")]))
    work.warm_up()
    with serve(work, "127.0.0.1", 0) as address, sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        size = {"width": WIDTH, "height": 900}
        page = browser.new_page(viewport=size, color_scheme=color_scheme)
        page.goto(address)
        page.click("#write-1")
        page.wait_for_selector('#view-1 [data-step="2"]')
        page.fill("#step-1 input[type=number]", "1")
        page.press("#step-1 input[type=number]", "Enter")
        page.wait_for_selector('#view-1 [data-step="1"]')
        page.click("#ask")
        page.wait_for_selector("#answers .gm-said")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until nothing moves
        content = page.screenshot(full_page=True)
        browser.close()
    Image.open(io.BytesIO(content)).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "demo.png")
    parser.add_argument("--color_scheme", choices=("light", "dark"), default="light")
    arguments = parser.parse_args()
    take(arguments.out, arguments.color_scheme)
