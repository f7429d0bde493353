"""Takes the picture of the page for docs/guides/app.md: `python docs/screenshot.py runs/demo/full-0/model`."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fgaseg.data import SceneDataset

PICTURE = Path(__file__).parent / "pictures/app.png"
SCENE = 12
COLOURS = 256  # of the picture: files of the repository are small


def main(model: str) -> None:
    command = [sys.executable, "-m", "fgaseg", "app", "--model", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            picture = draw(server.stdout.readline().split()[0])
        finally:
            server.terminate()
    PICTURE.parent.mkdir(exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def draw(address: str) -> Image.Image:
    scenes = SceneDataset("seen", size=(360, 480))
    item = scenes[SCENE]
    photo = io.BytesIO()
    Image.fromarray(item["image"].numpy()).save(photo, "PNG")
    names = ", ".join(scenes.names[label] for label in item["labels"].unique().tolist())
    with sync_playwright() as driver:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 900})
        page.goto(address)
        page.set_input_files("#fg-file", {"name": "scene.png", "mimeType": "image/png", "buffer": photo.getvalue()})
        page.fill("#names textarea", names)
        page.click("#run")
        page.wait_for_selector(".fg-stage[data-state=labelled]")
        page.locator("#threshold input[type=number]").fill("0.8")
        page.wait_for_selector(".fg-legend li:has-text('nothing')")
        page.wait_for_selector(".fg-stage[data-state=labelled]")
        page.locator(".fg-stage").hover(position={"x": 560, "y": 120})
        page.wait_for_timeout(500)
        return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1])
