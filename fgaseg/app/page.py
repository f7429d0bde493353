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


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


STYLE = _own("page.css")
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'
KEY = "async (key, ...rest) => [await window.fgaseg.key(), ...rest]"  # the photo that is shown, or on its way
KINDS = [("labels", "labels"), ("S_g, global map", "global"), ("S_l, local map", "local")]
BACKGROUNDS = [("nothing: every pixel gets one of the names", ""), ("other", "other"),
               ("stuff: wall, sky, grass, road, … (39 names)", "stuff")]  # fmt: skip
_TURN = itertools.count()


def theme() -> Any:
    """Gradio's, with the fonts of the machine: its own are fetched from elsewhere."""
    fonts = ("system-ui", "sans-serif")
    return gr.themes.Soft(font=fonts, font_mono=("ui-monospace", "monospace"))


def tell(**said: Any) -> str:
    """A message to the picture (view.js); no two are equal, since an equal one would not be noticed."""
    return json.dumps(said | {"turn": next(_TURN)})


def build_page(labeller: Labeller) -> gr.Blocks:
    """The page of a labeller, to be mounted."""
    models = list(labeller.models.sources)
    with gr.Blocks(title="fgaseg", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# fgaseg\nA photo and any class names in, a label for every pixel out.")
        key = gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                gr.HTML(html_template=_own("photo.html"), js_on_load=_own("photo.js"), apply_default_css=False,
                        most=MOST_UPLOAD)  # fmt: skip
                names = gr.Textbox(label="Class names", placeholder="cat, sofa, wooden floor", lines=2, max_lines=8,
                                   max_length=MOST_LETTERS, elem_id="names",
                                   info="Commas between classes, | between synonyms of one.")  # fmt: skip
                background = gr.Dropdown(
                    BACKGROUNDS, value="", allow_custom_value=True, label="Everything else", elem_id="background",
                    info="One more class for what is none of these; names of your own can be typed too.",
                )
                model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1, elem_id="model")
                with gr.Row():
                    example = gr.Button("Example", min_width=100)
                    run = gr.Button("Label", variant="primary", min_width=160, elem_id="run")
            with gr.Column(scale=2, min_width=320):
                view = gr.HTML(html_template=_own("view.html"), js_on_load=_own("view.js"), apply_default_css=False,
                               elem_id="view")  # fmt: skip
                with gr.Row():
                    opacity = gr.Slider(0, 1, 0.7, step=0.05, label="Opacity", elem_id="opacity")
                    threshold = gr.Slider(0, 0.99, 0, step=0.01, label="Threshold", elem_id="threshold")
                with gr.Accordion("Maps S_g and S_l", open=False):
                    kind = gr.Radio(KINDS, value="labels", label="Show", elem_id="kind")
                    chosen = gr.Dropdown([], label="of class", elem_id="chosen")

        def answer(key: str, typed: str, background: str, model: str, threshold: float) -> Iterator[Any]:
            keep = (gr.skip(), gr.skip())
            try:
                if model not in labeller.models:
                    yield tell(status=f"{model} is being loaded: at its first use this takes a while"), *keep
                photo = labeller.label(key, typed, model, background or "", threshold)
                about = describe(photo, labeller.result(key))
                classes = list(zip(about["classes"], range(about["mapped"]), strict=False))
                largest = next((i for i, _ in about["shares"] if i < about["mapped"]), 0)
                yield tell(**about), gr.Radio(value="labels"), gr.Dropdown(choices=classes, value=largest)
            except Exception as error:
                yield tell(error=in_words(error)), *keep

        def decide(key: str, threshold: float) -> Any:
            try:
                photo = labeller.photos.get(key)
                if photo.answer is None:
                    return gr.skip()  # it counts from the first labels on
                return tell(**describe(labeller.decide(key, threshold), labeller.result(key)))
            except Exception as error:
                return tell(error=in_words(error))

        def maps(key: str, kind: str, index: int | None) -> str:
            try:
                if kind == "labels" or index is None:
                    return tell(map=None)
                labeller.draw_map(key, kind, index)
                return tell(map={"kind": kind, "index": index})
            except Exception as error:
                return tell(error=in_words(error))

        def draw_example() -> tuple[str, str]:
            photo, names = labeller.example()
            return tell(**describe(photo, None)), ", ".join(names)

        private: dict[str, Any] = {"api_visibility": "private", "js": KEY}
        working: dict[str, Any] = private | {"concurrency_id": "model", "concurrency_limit": 1}
        gr.on([run.click, names.submit], answer, [key, names, background, model, threshold], [view, kind, chosen], **working)
        gr.on([kind.input, chosen.input], maps, [key, kind, chosen], view, **working)
        threshold.change(decide, [key, threshold], view, trigger_mode="always_last", **private)
        example.click(draw_example, None, [view, names], api_visibility="private")
        opacity.input(None, opacity, None, js="(value) => { window.fgaseg.opacity(value); }")
    page.queue(max_size=WAITING, api_open=False)
    page.state_session_capacity = SESSIONS
    return page
