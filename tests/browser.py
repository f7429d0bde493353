"""A browser that the machine has, and the page as a person uses it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def launch(playwright):
    """Chromium: the machine's, else playwright's own; the test is skipped if there is neither."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found and not Path(playwright.chromium.executable_path).exists():
        pytest.skip(f"no browser: neither {', '.join(NAMES)} is on PATH, nor did `playwright install chromium` run")
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


class Visit:
    """A person with a browser tab of their own, and what went wrong in it."""

    def __init__(self, browser, address, **context):
        self.address = address
        self.page = browser.new_context(accept_downloads=True, **context).new_page()
        self.wrong, self.requests = [], []
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#run")

    def give(self, photo, name="street.png", kind="image/png"):
        """Choose a file, given as bytes."""
        about = self.page.locator(".fg-about")
        self.page.set_input_files("#fg-file", {"name": name, "mimeType": kind, "buffer": photo})
        self.page.wait_for_function("(node) => !node.textContent.startsWith('reading')", arg=about.element_handle())

    def type(self, names):
        self.page.fill("#names textarea", names)

    def label(self):
        """Press the button, and wait for labels or an error."""
        before = self.turn()
        self.page.click("#run")
        self.wait(before)

    def turn(self):
        return int(self.page.get_attribute(".fg-view", "data-turn") or 0)

    def wait(self, before):
        """Until the picture has changed since a turn, and is complete."""
        done = f"""() => {{
            const view = document.querySelector('.fg-view');
            return Number(view.dataset.turn ?? 0) > {before} && view.ariaBusy === 'false';
        }}"""
        self.page.wait_for_function(done, timeout=60_000)

    @property
    def error(self):
        return self.page.inner_text(".fg-error") if self.page.is_visible(".fg-error") else ""

    @property
    def legend(self):
        return [tuple(text.split("\n")) for text in self.page.locator(".fg-legend li").all_inner_texts()]

    def canvas(self):
        """uint8 [H, W, 4], as it is before the browser scales it."""
        values = self.page.evaluate("""() => {
            const canvas = document.querySelector('.fg-labels');
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.height, canvas.width, Array.from(data)];
        }""")
        return np.array(values[2], np.uint8).reshape(values[0], values[1], 4)

    def save(self, link):
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name=link).click()
        return download.value

    def point_at(self, row, column, shape):
        """Once Gradio's progress has gone from above the picture."""
        self.page.wait_for_function("!document.querySelector('#view [data-testid=status-tracker]:not(.hide)')")
        self.page.locator(".fg-stage").scroll_into_view_if_needed()
        box = self.page.locator(".fg-stage").bounding_box()
        self.page.mouse.move(box["x"] + (column + 0.5) * box["width"] / shape[1],
                             box["y"] + (row + 0.5) * box["height"] / shape[0])  # fmt: skip
        self.page.wait_for_function("document.querySelector('.fg-pixel').textContent")

    @property
    def under_pointer(self):
        """Class, score, column and row as the page says them."""
        said = re.fullmatch(r"(.*), score ([\d.]+), at column (\d+), row (\d+)", self.page.inner_text(".fg-pixel"))
        return said[1], float(said[2]), int(said[3]), int(said[4])

    def leave(self):
        """Nothing failed, and nothing was asked of another host."""
        self.page.context.close()
        elsewhere = [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]
        assert not self.wrong and not elsewhere, [*self.wrong, *elsewhere]


@contextmanager
def visit(browser, address, **context):
    one = Visit(browser, address, **context)
    try:
        yield one
    finally:
        one.leave()


@contextmanager
def serving(*words):
    """`fgaseg app` in a process of its own, and its address."""
    command = [sys.executable, "-m", "fgaseg", "app", *map(str, words), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.send_signal(signal.SIGINT)
            messages = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in messages, (process.returncode, messages)
