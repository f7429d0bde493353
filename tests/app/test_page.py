"""The page in a real browser, headless: what is shown is what the API gives."""

import io
import re
import time

import numpy as np
import pytest
from app_photos import noise, png
from browser import launch, serving, visit
from PIL import Image
from proxy import Proxy
from runs import single_thread
from tiny import tiny_model

from fgaseg import FGASeg
from fgaseg.inference import heat, palette, pseudo_masks

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

NAMES = ["cat", "dog", "red star", "wooden floor"]
TYPED = ", ".join(NAMES)


def photo(seed=0, height=60, width=80):
    """Four grey or coloured areas with some noise: labels with regions, not single pixels."""
    areas = np.kron(noise(3, 4, seed), np.ones((height // 3, width // 4, 1), np.uint8))
    return (areas // 2 + noise(height, width, seed) // 8).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the server: with more, sums are rounded otherwise, and a pixel of two equal scores gets another label."""
    with single_thread():
        yield


@pytest.fixture(scope="module")
def folders(model_folder, tmp_path_factory):
    """A model, another one, and one whose weights are missing."""
    other = tmp_path_factory.mktemp("runs") / "other/model"
    tiny_model(seed=3).save_pretrained(other)
    broken = tmp_path_factory.mktemp("runs") / "broken/model"
    tiny_model(seed=3).save_pretrained(broken)
    (broken / "model.safetensors").unlink()
    return [model_folder, other, broken]


@pytest.fixture(scope="module")
def address(folders):
    with serving(*(word for folder in folders for word in ("--model", folder))) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        one = launch(driver)
        yield one
        one.close()


@pytest.fixture(scope="module")
def model(model_folder):
    return FGASeg.from_pretrained(model_folder)


def edges(labels):
    found = np.zeros(labels.shape, bool)
    found[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    found[1:] |= labels[1:] != labels[:-1]
    return found


def inner(labels):
    """Pixels with neighbours of the same label, none of them an edge: the browser scales these to one colour."""
    views = np.lib.stride_tricks.sliding_window_view(np.where(edges(labels), -1, labels), (3, 3))
    same = np.zeros(labels.shape, bool)
    same[1:-1, 1:-1] = (views == views[..., 1:2, 1:2]).all((2, 3)) & (views[..., 1, 1] >= 0)
    return same


def shown_labels(one, count):
    """Labels as the canvas shows them, -1 at edges, which are white."""
    canvas = one.canvas()
    assert (canvas[..., 3] == 255).all()
    colours = [tuple(colour) for colour in palette(count).tolist()] + [(255, 255, 255)]
    return np.array([colours.index(tuple(pixel)) for pixel in canvas[..., :3].reshape(-1, 3).tolist()]).reshape(
        canvas.shape[:2]
    )


def check_shown(one, result):
    """The picture and the legend are those of a result of the API."""
    got = shown_labels(one, len(result.classes))
    assert (got == np.where(edges(result.labels), len(result.classes), result.labels)).all()
    legend = [(name, "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %") for name, share in result.present.items()]
    assert one.legend == legend


def test_labels_are_those_of_the_api(browser, address, model):
    result = model.segment(photo(), NAMES)
    assert len(result.present) > 1
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        one.label()
        check_shown(one, result)
        assert one.error == ""
        assert (read_png(one.save("Index mask")) == result.labels).all()


def read_png(download):
    assert download.suggested_filename == "street_labels.png"
    return np.asarray(Image.open(download.path()))


def test_files_to_take_away(browser, address, model, tmp_path):
    """The mask is what the tool reads as labels, and the annotations what pycocotools reads."""
    from pycocotools.coco import COCO

    result = model.segment(photo(), NAMES, threshold=0.28)
    assert 0 < result.present["nothing"] < 1
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        one.page.locator("#threshold input[type=number]").fill("0.28")
        one.label()
        mask, annotations = one.save("Index mask"), one.save("COCO JSON")
        assert (read_png(mask) == result.labels).all()
        assert annotations.suggested_filename == "street_coco.json"
        annotations.save_as(tmp_path / "coco.json")
    coco = COCO(tmp_path / "coco.json")
    assert [one["file_name"] for one in coco.dataset["images"]] == ["street.png"]
    assert [one["name"] for one in coco.dataset["categories"]] == list(result.classes)
    assert len(coco.dataset["annotations"]) == len(result.present)
    for one in coco.dataset["annotations"]:
        assert (coco.annToMask(one) == (result.labels == one["category_id"] - 1)).all()


def test_the_picture_on_the_screen(browser, address, model):
    """Not only what the canvas holds: what a person sees, at opacity 0 and 1."""
    result = model.segment(photo(), NAMES)
    with visit(browser, address, viewport={"width": 1000, "height": 900}) as one:
        one.give(png(photo()))
        stage = one.page.locator(".fg-stage")
        one.page.wait_for_function("document.querySelector('.fg-photo').complete")

        def screen():
            return Image.open(io.BytesIO(stage.screenshot())).convert("RGB").resize((80, 60), Image.Resampling.BOX)

        assert np.abs(np.asarray(screen(), int) - photo()).mean() < 12  # JPEG, scaled twice
        one.type(TYPED)
        one.label()
        asked = len(one.requests)

        def set_opacity(value):
            one.page.locator("#opacity input[type=number]").fill(value)
            one.page.wait_for_function(
                f"getComputedStyle(document.querySelector('.fg-labels')).opacity === '{value}'", timeout=5000
            )

        set_opacity("1")
        one.page.mouse.move(1, 1)
        picture = Image.open(io.BytesIO(stage.screenshot())).convert("RGB")
        at = [(np.arange(n) * 2 + 1) * side // (2 * n) for n, side in ((60, picture.height), (80, picture.width))]
        seen = np.asarray(picture)[np.ix_(*at)]
        sure = inner(result.labels)
        assert sure.sum() >= 50 and len(np.unique(result.labels[sure])) > 1
        assert (seen[sure] == palette(4)[result.labels[sure]]).all()
        set_opacity("0")
        grey = np.asarray(screen(), int)
        assert np.ptp(grey, axis=2).max() <= 3 and np.abs(grey.mean(2) - photo() @ [0.2126, 0.7152, 0.0722]).mean() < 14
        assert one.requests[asked:] == []  # opacity is a matter of the browser


def test_class_and_score_under_the_pointer(browser, address, model):
    result = model.segment(photo(), NAMES)
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        one.label()
        asked = len(one.requests)
        for row, column in [(0, 0), (59, 79), (31, 40), (12, 66), (45, 3)]:
            one.point_at(row, column, (60, 80))
            name, score, *place = one.under_pointer
            assert (name, place) == (result.classes[result.labels[row, column]], [column, row])
            assert abs(score - result.scores[row, column]) <= 0.00051
            assert one.page.inner_text(".fg-tip") == f"{name} {score:.3f}"
        one.page.mouse.move(1, 1)
        assert one.page.inner_text(".fg-pixel") == "" and not one.page.is_visible(".fg-tip")
        assert one.requests[asked:] == []


def test_a_photo_larger_than_the_page(browser, address, model):
    large = photo(2, 30, 2400)
    result = model.segment(large, NAMES)
    with visit(browser, address) as one:
        one.give(png(large))
        one.type(TYPED)
        one.label()
        columns = (np.arange(2048) * 2 + 1) * 2400 // (2 * 2048)
        rows = (np.arange(26) * 2 + 1) * 30 // (2 * 26)
        shown = result.labels[np.ix_(rows, columns)]
        assert (shown_labels(one, 4) == np.where(edges(shown), 4, shown)).all()


def test_threshold_and_background_are_those_of_the_api(browser, address, model):
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        threshold = one.page.locator("#threshold input[type=number]")

        def set_threshold(value):
            before = one.turn()
            threshold.fill(value)
            one.wait(before)

        one.label()
        middle = f"{np.median(model.segment(photo(), NAMES).scores):.2f}"
        set_threshold(middle)
        result = model.segment(photo(), NAMES, threshold=float(middle))
        assert 0.2 < result.present["nothing"] < 0.8
        check_shown(one, result)
        for typed, kept in (("7", "0.99"), ("", "0")):
            set_threshold(typed)
            threshold.press("Tab")
            one.page.wait_for_timeout(500)
            assert threshold.input_value() == kept
            check_shown(one, model.segment(photo(), NAMES, threshold=float(kept) or None))
        set_threshold(middle)

        field = one.page.locator("#background input")
        field.fill("wall, sky | cloud")
        field.press("Enter")
        one.label()
        check_shown(one, model.segment(photo(), NAMES, background="wall, sky | cloud", threshold=float(middle)))
        set_threshold("0")
        check_shown(one, model.segment(photo(), NAMES, background="wall, sky | cloud"))
        field.click()
        one.page.get_by_role("option", name=re.compile("^stuff")).click()
        one.label()
        check_shown(one, model.segment(photo(), NAMES, background="stuff"))


def test_maps_are_those_of_the_api(browser, address, model):
    masks = pseudo_masks(model, Image.fromarray(photo()), model.encode(NAMES))
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        one.label()
        one.page.get_by_role("button", name=re.compile("Maps")).click()

        def choose(act):
            before = one.turn()
            act()
            one.wait(before)
            source = one.page.get_attribute(".fg-map", "src")
            return np.asarray(Image.open(io.BytesIO(one.page.request.get(source).body())))

        def by_class(name):
            one.page.locator("#chosen input").click()
            one.page.get_by_role("option", name=name).click()

        drawn = choose(lambda: one.page.get_by_label("S_l").check())
        largest = next(iter(model.segment(photo(), NAMES).present))
        assert (drawn == np.asarray(heat(masks.lcs[NAMES.index(largest)], (60, 80)))).all()
        assert one.page.is_visible(".fg-map") and not one.page.is_visible(".fg-labels")
        other = next(name for name in NAMES if name != largest)
        assert (choose(lambda: by_class(other)) == np.asarray(heat(masks.lcs[NAMES.index(other)], (60, 80)))).all()
        drawn = choose(lambda: one.page.get_by_label("S_g").check())
        assert (drawn == np.asarray(heat(masks.gcs[NAMES.index(other)], (60, 80)))).all()
        before = one.turn()
        one.page.get_by_role("radio", name="labels").check()
        one.wait(before)
        assert one.page.is_visible(".fg-labels") and not one.page.is_visible(".fg-map")


def test_models_are_chosen_and_loaded_when_they_are_used(browser, address, model, folders):
    other = FGASeg.from_pretrained(folders[1])
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(TYPED)
        seen = []
        one.page.expose_function("seen", lambda text: seen.append(text))
        one.page.evaluate("""() => new MutationObserver(() => seen(document.querySelector('.fg-status').textContent))
            .observe(document.querySelector('.fg-status'), { childList: true })""")
        for name, expected in (("other/model", other), ("mine/model", model), ("other/model", other)):
            one.page.locator("#model input").click()
            one.page.get_by_role("option", name=name).click()
            one.label()
            check_shown(one, expected.segment(photo(), NAMES))
        assert sum("other/model is being loaded" in text for text in seen) == 1
        one.page.locator("#model input").click()
        one.page.get_by_role("option", name="broken/model").click()
        one.label()
        assert "model.safetensors" in one.error and "Traceback" not in one.error
        one.page.locator("#model input").click()
        one.page.get_by_role("option", name="mine/model").click()
        one.label()
        check_shown(one, model.segment(photo(), NAMES))


def test_errors_appear_in_words(browser, address, model):
    with visit(browser, address) as one:
        one.label()
        assert one.error == "drop a photo first"
        one.give(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "x.svg", "image/svg+xml")
        one.page.wait_for_selector(".fg-error:not([hidden])")
        assert one.error == "x.svg: is an SVG drawing: save it as PNG"
        one.give(png(photo())[:900], "half.png")
        one.page.wait_for_function("document.querySelector('.fg-error').textContent.startsWith('half.png')")
        assert "truncated or corrupt" in one.error
        one.give(png(photo()))
        one.type("")
        one.label()
        assert one.error == "type the names of classes, with commas between them"
        one.type(", ".join(f"thing {i}" for i in range(501)))
        one.label()
        assert one.error == "these are 501 names and synonyms: give at most 500"
        one.type("<b>cat</b>, dog")
        one.label()
        assert "'<b>cat</b>' looks like more than a name" in one.error
        one.type(TYPED)
        one.label()
        assert one.error == ""
        check_shown(one, model.segment(photo(), NAMES))
        one.wrong = [text for text in one.wrong if "the server responded with a status of 404" not in text]


def test_a_file_that_is_too_large_is_not_sent(browser, address, tmp_path):
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(50_000_001)
    with visit(browser, address) as one:
        asked = len(one.requests)
        one.page.set_input_files("#fg-file", tmp_path / "large.jpg")
        one.page.wait_for_selector(".fg-error:not([hidden])")
        assert one.error == "large.jpg: is larger than 50 MB: make it smaller" and one.requests[asked:] == []


def test_names_are_text_and_never_html(browser, address):
    attack = "<img src=x onerror=document.title='hacked'>"
    with visit(browser, address) as one:
        one.give(png(photo()), f"{attack}.png")
        one.page.wait_for_selector(".fg-stage[data-state=photo]")
        assert one.page.inner_text(".fg-about").startswith(attack)
        one.type(f"\"{attack}\", 'javascript:alert(1)', '${{7*7}}', '{{{{7*7}}}}', '![x](http://192.0.2.1/x.png)'")
        one.label()
        assert one.error == ""
        shown = {name for name, _ in one.legend}
        assert shown <= {attack, "javascript:alert(1)", "${7*7}", "{{7*7}}", "![x](http://192.0.2.1/x.png)"}
        one.page.get_by_role("button", name=re.compile("Maps")).click()
        one.page.locator("#chosen input").click()
        assert attack in one.page.get_by_role("option").all_inner_texts()[0]
        one.page.keyboard.press("Escape")
        one.point_at(30, 40, (60, 80))
        assert one.page.title() == "fgaseg" and one.page.locator(".fg-view img[src='x']").count() == 0


def test_two_people_at_once(browser, address, model):
    """Photos, names and results do not mix."""
    with visit(browser, address) as one, visit(browser, address) as two:
        one.give(png(photo(1)))
        two.give(png(photo(2, 45, 60)))
        one.type(TYPED)
        two.type("sky, grass, blue ring")
        before = one.turn(), two.turn()
        one.page.click("#run")
        two.page.click("#run")
        one.wait(before[0])
        two.wait(before[1])
        check_shown(one, model.segment(photo(1), NAMES))
        check_shown(two, model.segment(photo(2, 45, 60), ["sky", "grass", "blue ring"]))


def test_what_changes_while_the_model_runs(browser, address, model):
    """A threshold that is moved meanwhile counts, and a photo that is dropped meanwhile stays."""
    names = [f"thing {number}" for number in range(200)]
    with visit(browser, address) as one:
        one.give(png(photo()))
        one.type(", ".join(names))
        one.page.click("#run")
        one.page.locator("#threshold input[type=number]").fill("0.5")
        expected = model.segment(photo(), names, threshold=0.5)
        one.page.wait_for_function("document.querySelector('.fg-legend').textContent.includes('nothing')")
        assert one.legend[0] == ("nothing", f"{100 * expected.present['nothing']:.1f} %")

        before = one.turn()
        one.page.click("#run")
        one.give(png(photo(1, 45, 60)), "other.png")
        one.wait(before + 1)  # the photo, then the answer about the one before
        assert one.page.inner_text(".fg-about") == "other.png, 60 × 45"
        assert one.page.get_attribute(".fg-stage", "data-state") == "photo"
        one.type(TYPED)
        one.label()
        check_shown(one, model.segment(photo(1, 45, 60), NAMES, threshold=0.5))


def test_who_waits_sees_the_position(browser, address):
    """The first has many names; the second waits for the model, and the third for the second."""
    with visit(browser, address) as one, visit(browser, address) as two, visit(browser, address) as three:
        for person in (one, two, three):
            person.give(png(photo()))
            person.type(", ".join(f"thing {number}" for number in range(490)))
        three.page.evaluate("""() => {
            const view = document.querySelector('#view');
            const look = () => (window.position ??= view.textContent.match(/queue: \\d+\\/\\d+/)?.[0]);
            new MutationObserver(look).observe(view, { childList: true, subtree: true, characterData: true });
        }""")
        before = [person.turn() for person in (one, two, three)]
        for person in (one, two, three):
            person.page.click("#run")
        for person, turn in zip((one, two, three), before, strict=True):
            person.wait(turn)
            assert person.error == "" and person.legend
        assert three.page.evaluate("window.position")


def test_a_photo_that_is_still_on_its_way_is_waited_for(browser, address, model):
    with visit(browser, address) as one:
        one.page.route("**/photos?*", lambda route: (time.sleep(1), route.continue_()))
        one.type(TYPED)
        one.page.set_input_files("#fg-file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo())})
        one.page.click("#run")
        one.page.wait_for_selector(".fg-stage[data-state=labelled]")
        check_shown(one, model.segment(photo(), NAMES))


def test_by_keyboard_on_a_phone(browser, address, model):
    with visit(browser, address, viewport={"width": 360, "height": 740}, has_touch=True) as one:
        page = one.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "fg-file"
        one.give(png(photo()))
        page.keyboard.press("Tab")
        page.keyboard.type(TYPED)
        before = one.turn()
        page.locator("#run").focus()
        page.keyboard.press("Enter")
        one.wait(before)
        result = model.segment(photo(), NAMES)
        check_shown(one, result)
        page.locator(".fg-stage").focus()
        page.keyboard.press("ArrowRight")
        _, _, column, row = one.under_pointer
        for key, by in (("ArrowDown", (1, 0)), ("Shift+ArrowLeft", (0, -10)), ("ArrowUp", (-1, 0))):
            page.keyboard.press(key)
            name, score, new_column, new_row = one.under_pointer
            assert (new_row - row, new_column - column) == by
            row, column = new_row, new_column
            assert name == result.classes[result.labels[row, column]]
            assert abs(score - result.scores[row, column]) <= 0.00051
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator(".fg-stage").tap(position={"x": 40, "y": 20})
        assert one.under_pointer[0] in NAMES


def test_the_example_is_one_press_away(browser, address):
    with visit(browser, address) as one:
        one.page.click("#example")
        one.page.wait_for_selector(".fg-stage[data-state=photo]")
        one.label()
        names = one.page.input_value("#names textarea").split(", ")
        assert len(names) >= 2 and {name for name, _ in one.legend} <= set(names)


def test_a_dropped_photo(browser, address, model):
    with visit(browser, address) as one:
        dropped = one.page.evaluate_handle(
            """(bytes) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.png', { type: 'image/png' }));
                return transfer;
            }""",
            list(png(photo())),
        )
        one.page.dispatch_event(".fg-drop", "drop", {"dataTransfer": dropped})
        one.page.wait_for_selector(".fg-stage[data-state=photo]")
        assert one.page.inner_text(".fg-about") == "dropped.png, 80 × 60"
        one.type(TYPED)
        one.label()
        check_shown(one, model.segment(photo(), NAMES))


def test_behind_a_proxy(browser, model_folder, model):
    with serving("--model", model_folder, "--root-path", "/labels") as inside, Proxy(inside, "/labels") as outside:
        with visit(browser, outside) as one:
            one.give(png(photo()))
            one.type(TYPED)
            one.label()
            check_shown(one, model.segment(photo(), NAMES))
            assert (read_png(one.save("Index mask")) == model.segment(photo(), NAMES).labels).all()
            # Gradio looks for its manifest and icon at the host's root
            one.wrong = [text for text in one.wrong if "status of 404" not in text]
            one.requests = [url for url in one.requests if not url.endswith(("/manifest.json", "/favicon.ico"))]
