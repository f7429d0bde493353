"""The page in examples/web in a real browser, headless: its labels are those of FGASeg.segment."""

import functools
import http.server
import io
import json
import re
import shutil
import struct
import subprocess
import threading

import numpy as np
import pytest
from browser import launch
from paths import ROOT
from PIL import Image, PngImagePlugin
from runs import single_thread
from tiny import tiny_model

from fgaseg.export.manifest import describe, write_vocabulary

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

PAGE = ROOT / "examples/web"
NAMES = ["cat | kitten", "dog", "red star", "blue ring | ring", "Dog", "wooden floor"]  # synonyms, and one class twice
RULES = {"logits": {}, "softmax": {"resize": "scores"}, "sigmoid": {"resize": "scores", "loss": {"seg": "bce"}}}
DIFFERING, TIE = 2e-3, 1e-5  # share of labels that may differ, and by how much their probabilities then do
DONE = "#result:not([hidden]) #save[download='{}_labels.png'], #error:not([hidden])"


@pytest.fixture(scope="module")
def models():
    """Models of the same weights, which differ in what is resized."""
    with single_thread():
        yield {name: tiny_model(aggregation_layers=1, **rule) for name, rule in RULES.items()}


@pytest.fixture(scope="module")
def site(models, exported, tmp_path_factory):
    """The page with its packages, and a folder of the exported model for each of RULES."""
    site = tmp_path_factory.mktemp("site")
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copy(file, site)
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    command = ["npm", "install", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm install: {done.stderr.strip().splitlines()[0]}")
    for name, model in models.items():
        shutil.copytree(exported, site / name, ignore=shutil.ignore_patterns("*.bin", "*.pt2"))
        change(site / name, labels=describe(model, "", "float32")["labels"])
        vocabulary = model.encode(NAMES)
        write_vocabulary(vocabulary, model.first_of_equals(vocabulary), site / name)
    return site


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, isolated, **options):
        self.isolated = isolated
        super().__init__(*args, **options)

    def end_headers(self):
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def serve(site):
    """Starts a file server, and says its address."""
    servers = []

    def start(isolated=False):
        handler = functools.partial(Handler, directory=site, isolated=isolated)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def address(serve):
    return serve()


@pytest.fixture(scope="module")
def browser(site):
    with playwright.sync_playwright() as driver:
        one = launch(driver)
        yield one
        one.close()


class Visit:
    """A tab, what went wrong in it, and whom it asked."""

    def __init__(self, browser, address, model="logits", routes=(), **context):
        self.page = browser.new_context(**context).new_page()
        self.wrong, self.requests = [], []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        for pattern, answer in routes:
            self.page.route(pattern, answer)
        self.page.goto(f"{address}?model={model}")

    def give(self, content, name="photo.png", kind="image/png"):
        self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
        self.page.wait_for_selector(DONE.format(name.rsplit(".")[0]), timeout=60_000)

    def labels(self):
        assert not self.page.is_visible("#error"), self.page.inner_text("#error")
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name="Labels as PNG").click()
        image = Image.open(download.value.path())
        assert image.mode == "P"  # with the colours of the page
        return np.array(image)

    @property
    def error(self):
        self.page.wait_for_selector("#error:not([hidden])", timeout=30_000)
        return self.page.inner_text("#error")

    @property
    def under_pointer(self):
        said = re.fullmatch(r"(.+), probability ([\d.]+), at column (\d+), row (\d+)", self.page.inner_text("#pixel"))
        return said[1], float(said[2]), int(said[4]), int(said[3])


@pytest.fixture
def visit(browser, address):
    visits = []

    def start(model="logits", at=address, **options):
        visits.append(Visit(browser, at, model, **options))
        return visits[-1]

    yield start
    for one in visits:
        one.page.context.close()
        elsewhere = [url for url in one.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert not one.wrong and not elsewhere


def photo(height, width):
    """Areas of colours, with noise."""
    random = np.random.default_rng(height)
    areas = np.kron(random.integers(0, 256, (3, 4, 3)), np.ones((-(-height // 3), -(-width // 4), 1)))[:height, :width]
    return (areas / 2 + random.integers(0, 256, (height, width, 3)) / 4).astype(np.uint8)


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def segment(model, content, names=NAMES):
    return model.segment(Image.open(io.BytesIO(content)), names, probabilities=True)


def check_labels(labels, result):
    """The same, but where two classes are equal, and rounding decides."""
    assert labels.shape == result.labels.shape
    differ = labels != result.labels
    assert differ.sum() <= max(DIFFERING * differ.size, 1)
    for label in np.unique(labels[differ]):
        mine = differ & (labels == label)
        assert (result.scores[mine] - result.probabilities[label][mine]).max() < TIE


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_those_of_segment(visit, models, rule):
    one, model = visit(rule), models[rule]
    for i, (height, width) in enumerate([(60, 80), (64, 68), (201, 130), (33, 131), (1, 3), (480, 640)]):
        content = file_of(photo(height, width))
        one.give(content, f"photo{i}.png")
        result = segment(model, content)
        check_labels(one.labels(), result)
    assert len(np.unique(result.labels)) >= 4
    one.page.hover("#stage", position={"x": 100, "y": 50})
    name, probability, row, column = one.under_pointer
    assert name == result.classes[result.labels[row, column]]
    assert probability == pytest.approx(result.scores[row, column], abs=6e-4)
    one.page.press("#stage", "ArrowRight")
    one.page.press("#stage", "Shift+ArrowDown")
    assert one.under_pointer[2:] == (row + 10, column + 1)
    shares = np.bincount(result.labels.ravel(), minlength=6) / result.labels.size
    legend = [text.split("\n") for text in one.page.locator("#legend li").all_inner_texts()]
    assert [name for name, _ in legend] == [result.classes[i] for i in np.argsort(-shares) if shares[i]]
    assert [float(share.strip(" %<")) for _, share in legend] == pytest.approx(
        sorted(100 * shares[shares > 0])[::-1], abs=0.11
    )


def test_a_photo_is_read_as_it_is_stored(visit, models):
    """Its values, without colour management; upright; on white where it is transparent."""
    one, model, values = visit(), models["logits"], photo(60, 80)
    linear = PngImagePlugin.PngInfo()
    linear.add(b"gAMA", struct.pack(">I", 100_000))
    clear = np.dstack([values, np.where(np.arange(80) < 30, 0, 255) * np.ones((60, 1), np.uint8)]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, content in (
        ("gamma.png", file_of(values, pnginfo=linear)),
        ("clear.png", file_of(clear)),
        ("turned.jpg", file_of(values, "JPEG", quality=95, exif=exif)),
    ):
        one.give(content, name)
        check_labels(one.labels(), segment(model, content))


TYPED = ["red_star | ruby", "traffic  light", "Red Star", "pond | lake"]


def use(page, typed):
    page.fill("#names", typed)
    page.click("#use")


def test_typed_class_names(visit, models):
    one, content = visit(), file_of(photo(60, 80))
    one.give(content)
    one.page.click("#typed summary")
    use(one.page, f"{TYPED[0]}, {TYPED[1]}\n{TYPED[2]},,{TYPED[3]}")
    one.page.wait_for_selector("#classes:text('traffic light')")
    one.page.wait_for_selector(DONE.format("photo"))
    check_labels(one.labels(), segment(models["logits"], content, TYPED))


def test_class_names_are_needed(visit, models):
    """Where the export has none, and the tokenizer."""
    one, content = (
        visit(routes=[("**/vocabulary.json", lambda route: route.fulfill(status=404))]),
        file_of(photo(60, 80)),
    )
    one.give(content)
    assert one.error == "class names: there are none: type some first"
    use(one.page, " , | ")
    one.page.wait_for_selector("#error:text('type at least one')")
    use(one.page, "cat " * 20)
    one.page.wait_for_selector("#error:text('26 tokens; the model reads 16')")
    use(one.page, ",".join(TYPED))
    one.page.wait_for_selector("#classes:text('traffic light')")
    one.give(content)
    check_labels(one.labels(), segment(models["logits"], content, TYPED))


def test_more_threads_where_the_server_allows_them(visit, serve, models):
    one, content = visit(at=serve(isolated=True)), file_of(photo(60, 80))
    one.give(content)
    assert int(re.search(r"Threads: (\d+)", one.page.inner_text("#about"))[1]) > 1
    check_labels(one.labels(), segment(models["logits"], content))


def test_a_narrow_screen(visit):
    one = visit(viewport={"width": 320, "height": 600})
    one.give(file_of(photo(60, 80)))
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize(
    "content, words",
    [
        (b"text", "this browser cannot read it as a picture"),
        (file_of(photo(20, 81)), "81x20 is more than 4 times as long as broad"),
    ],
)
def test_photos_that_are_refused(visit, content, words):
    one = visit()
    one.give(content)
    assert one.error.startswith("photo.png: ") and words in one.error
    one.give(file_of(photo(60, 80)), "other.png")
    assert not one.page.is_visible("#error")
    assert one.labels().shape == (60, 80)


def answer(content):
    return lambda route: route.fulfill(body=content, content_type="text/javascript")


@pytest.mark.parametrize(
    "pattern, routed, words",
    [
        ("**/manifest.json", lambda route: route.fulfill(status=404), "404"),
        ("**/manifest.json", answer("{}"), "is not that of a folder that `fgaseg export` wrote"),
        ("**/manifest.json", answer('{"format": "fgaseg-export", "version": 2}'), "has version 2 of the format"),
        ("**/manifest.json", answer("<html>"), "is not JSON"),
        ("**/vocabulary.f32", answer(b"1234"), "vocabulary.f32: has 1 values"),
        ("**/head.onnx", answer(b"1234"), "head.onnx: is not the file that manifest.json lists"),
        ("**/image.onnx", lambda route: route.abort(), "image.onnx: cannot be fetched"),
        ("**/onnxruntime-web/**", lambda route: route.fulfill(status=404), "run `npm install`"),
        ("**/worker.js", lambda route: route.fulfill(status=404), "worker.js: is missing"),
        ("**/worker.js", answer("delete self.WebAssembly;" + (PAGE / "worker.js").read_text()), "has no WebAssembly"),
    ],
)
def test_failures_are_told_in_a_line(visit, pattern, routed, words):
    one = visit(routes=[(pattern, routed)])
    assert words in one.error and "\n" not in one.error


def test_models_of_other_servers_are_refused(visit):
    assert "another server" in visit("https://example.org/model").error


def test_what_the_browser_has_stored_is_not_used(visit, site, models):
    """A model that was exported again to the same folder."""
    shutil.copytree(site / "logits", site / "again")
    one, content = visit("again"), file_of(photo(60, 80))
    one.give(content)
    labels, path = one.labels(), site / "again/vocabulary.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["names"][0], vocabulary["first"][0] = "tiger", 1  # whose pixels the second class gets
    path.write_text(json.dumps(vocabulary))
    one.page.reload()
    one.page.wait_for_selector("#classes:text('tiger')")
    one.give(content)
    assert 0 in labels and (one.labels() == np.where(labels == 0, 1, labels)).all()
