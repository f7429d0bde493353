"""The page: what can be typed and chosen, and what happens then."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import gradio as gr

from .labelling import MOST_LETTERS, MOST_UPLOAD, Labeller, describe, in_words

WAITING = 30  # people who may wait for the model; others are told to come back
SESSIONS = 200  # whose components Gradio remembers
BACKGROUNDS = [
    ("none: every pixel gets a name", ""),
    ("other", "other"),
    ("stuff: wall, sky, grass, road, … (39 names)", "stuff"),
]
KINDS = [("labels", "labels"), ("S_g, global map", "global"), ("S_l, local map", "local")]
KEY = "async (key, ...rest) => [await window.fgaseg.key(), ...rest]"  # the photo that is shown, or on its way
HIGHEST = 0.99  # threshold
# the threshold is the last; while it is typed, its number may be missing or beyond the slider's ends
BOUNDED = f"""async (key, ...rest) => [
  await window.fgaseg.key(), ...rest.slice(0, -1), Math.min(Math.max(Number(rest.at(-1)) || 0, 0), {HIGHEST})
]"""
_TURN = itertools.count()


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def look() -> dict[str, Any]:
    """What is mounted with the page. Fonts are the browser's own: none has to be loaded."""
    theme = gr.themes.Soft(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    head = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return {"theme": theme, "css": _own("page.css"), "head": head}


def tell(**said: Any) -> str:
    """A message to the picture (view.js); no two are equal, since an equal one would not be noticed."""
    return json.dumps(said | {"turn": next(_TURN)})


class Answers:
    """What happens when something is pressed or chosen: messages to the picture, and new states of the controls."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller

    def label(self, key: str, typed: str, background: str | None, model: str, threshold: float) -> Iterator[Any]:
        keep = (gr.skip(), gr.skip())
        try:
            if model not in self.labeller.models:
                yield tell(status=f"{model} is being loaded: at its first use this takes a while"), *keep
            photo = self.labeller.label(key, typed, model, background or "", threshold)
            about = describe(photo, self.labeller.result(key))
            classes = list(zip(about["classes"], range(about["mapped"]), strict=False))
            largest = next((i for i, _ in about["shares"] if i < about["mapped"]), 0)
            yield tell(**about), gr.Radio(value="labels"), gr.Dropdown(choices=classes, value=largest)
        except Exception as error:
            yield tell(error=in_words(error)), *keep

    def decide(self, key: str, threshold: float) -> Any:
        try:
            answer = self.labeller.photos.get(key).answer if key else None
            if answer is None or answer.threshold == threshold:
                return gr.skip()
            return tell(**describe(self.labeller.decide(key, threshold), self.labeller.result(key)))
        except Exception as error:
            return tell(error=in_words(error))

    def maps(self, key: str, kind: str, index: int | None) -> str:
        try:
            if kind == "labels" or index is None:
                return tell(map=None)
            self.labeller.draw_map(key, kind, index)  # the picture is fetched when it is there
            return tell(map={"kind": kind, "index": index})
        except Exception as error:
            return tell(error=in_words(error))

    def example(self) -> tuple[str, str]:
        photo, names = self.labeller.example()
        return tell(**describe(photo)), ", ".join(names)


def build_page(labeller: Labeller) -> gr.Blocks:
    """The page of a labeller, to be mounted."""
    answers = Answers(labeller)
    with gr.Blocks(title="fgaseg", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# fgaseg\nA photo and any class names in, a label for every pixel out.")
        key = gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                names, background, model, example, run = _questions(list(labeller.models.sources))
            with gr.Column(scale=2, min_width=320):
                view, opacity, threshold, kind, chosen = _picture()

        private: dict[str, Any] = {"api_visibility": "private", "js": KEY}
        working: dict[str, Any] = private | {"concurrency_id": "model", "concurrency_limit": 1}
        # beside the queue, whose stream Gradio may close while the next question joins it
        quick: dict[str, Any] = private | {"js": BOUNDED, "show_progress": "hidden", "queue": False}
        asked = [key, names, background, model, threshold]
        labelled = gr.on([run.click, names.submit], answers.label, asked, [view, kind, chosen],
                         **working | {"js": BOUNDED})  # fmt: skip
        labelled.then(answers.decide, [key, threshold], view, **quick)  # it may have been moved meanwhile
        gr.on([kind.input, chosen.input], answers.maps, [key, kind, chosen], view, **working)
        threshold.change(answers.decide, [key, threshold], view, trigger_mode="always_last", **quick)
        example.click(answers.example, None, [view, names], api_visibility="private")
        opacity.change(None, opacity, None, js="(value) => { window.fgaseg.opacity(value); }")
    page.queue(max_size=WAITING, api_open=False)
    page.state_session_capacity = SESSIONS
    return page


def _questions(models: list[str]) -> tuple[Any, ...]:
    """The place for a photo, class names, background, model, and the two buttons; all but the first are returned."""
    gr.HTML(html_template=_own("photo.html"), js_on_load=_own("photo.js"), apply_default_css=False, most=MOST_UPLOAD)
    names = gr.Textbox(
        label="Class names",
        info="Commas between classes, | between synonyms of one. Shift+Enter labels.",
        placeholder="cat, sofa, wooden floor",
        lines=2,
        max_lines=8,
        max_length=MOST_LETTERS,
        elem_id="names",
    )
    background = gr.Dropdown(
        BACKGROUNDS,
        value="",
        allow_custom_value=True,
        label="Everything else",
        info="One more class for what is none of these; names of your own can be typed too.",
        elem_id="background",
    )
    model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1, elem_id="model")
    with gr.Row():
        example = gr.Button("Example", min_width=100, elem_id="example")
        run = gr.Button("Label", variant="primary", min_width=160, elem_id="run")
    return names, background, model, example, run


def _picture() -> tuple[Any, ...]:
    """The picture and what is shown of it: opacity, threshold, and maps of a class."""
    view = gr.HTML(html_template=_own("view.html"), js_on_load=_own("view.js"), apply_default_css=False, elem_id="view")
    with gr.Row():
        opacity = gr.Slider(0, 1, 0.7, step=0.05, label="Opacity", elem_id="opacity")
        threshold = gr.Slider(0, HIGHEST, 0, step=0.01, label="Threshold", elem_id="threshold")
    with gr.Accordion("Maps S_g and S_l", open=False):
        kind = gr.Radio(KINDS, value="labels", label="Show", elem_id="kind")
        chosen = gr.Dropdown([], label="of class", elem_id="chosen")
    return view, opacity, threshold, kind, chosen
