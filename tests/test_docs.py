"""The documentation: its code blocks run as they are printed, and the files and names that it mentions exist."""

import argparse
import functools
import glob
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from paths import ROOT
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import fgaseg
from fgaseg.cli import main
from fgaseg.cli.entry import build_parser, parse
from fgaseg.config import load_config
from fgaseg.export import PARTS
from fgaseg.export.exporting import SUFFIXES
from fgaseg.weights import MODELS

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
MARKER = re.compile(r"<!-- (?P<kind>not run|file|exit status): (?P<text>.+?) -->")
SHELL, RUN = ("bash", "console"), ("bash", "console", "python", "yaml")
READ = (".py", ".md", ".yaml", ".yml", ".toml", ".json", ".csv", ".sh", ".cpp", ".cu", ".h")
FILES = (*READ, ".jsonl", ".txt", ".safetensors", ".pth", ".png", ".svg", ".pkl", ".mat")
SHOWN = ("text", "json", "cpp")  # output, formulas, diagrams and source to read
ENCODER = {  # as small as a checkpoint of the released code can be: heads are 64 wide
    "name": "small",
    "architecture": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 64},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    },
    "pretrained": None,
    "finetune": "scratch",
}
MODEL = {"image_size": 32, "hidden": 32, "guidance_channels": [16, 16], "guidance_hidden": [16, 8],
         "decoder_channels": [32, 16], "window": 4}  # fmt: skip
TRAIN = {"steps": 2, "batch": 2, "warmup": 0, "tensorboard": False, "eval_every": 0, "save_every": 0}
SMALL = {"model": {"encoder": ENCODER, **MODEL}, "data": {"crop": 32, "workers": 0}, "train": TRAIN}


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*scores are not comparable"),
    pytest.mark.filterwarnings("ignore:.*validation photos are the training photos"),
]


@dataclass(frozen=True)
class Block:
    """A fenced code block, and the HTML comment right above it, if that says how the block is run."""

    language: str
    code: str
    line: int
    marker: str = ""  # "not run", "file" or "exit status"
    text: str = ""  # of the marker: the reason, the name of the file, the status and its reason


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    above, start = "", None
    for number, line in enumerate(lines):
        if start is None and line.lstrip().startswith("```"):
            start, marker = number, MARKER.search(above)
        elif start is not None and line.strip() == "```":
            indent = len(lines[start]) - len(lines[start].lstrip())
            code = "\n".join(text[indent:] for text in lines[start + 1 : number])
            language = lines[start].strip().strip("`")
            yield Block(language, code, start + 1, *((marker["kind"], marker["text"]) if marker else ()))
            start, above = None, ""
        elif start is None and line.strip():
            above = line
    assert start is None, f"{page.name}:{start}: the block is not closed"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Everything is small: more threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What the pages assume: photos, labels, names, configurations of a small model, and saved small models."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for place, count in (("photos", 4), ("val/photos", 2)):
        for number in range(count):
            draw(folder / place / f"{number}.jpg", rng.integers(0, 256, (48, 64, 3)))
            draw(folder / place.replace("photos", "labels") / f"{number}.png", rng.integers(0, 3, (48, 64)))
    draw(folder / "street.jpg", rng.integers(0, 256, (48, 64, 3)))
    draw_layouts(folder)
    draw(folder / "photo.jpg", rng.integers(0, 256, (48, 64, 3)))
    (folder / "names.txt").write_text("cat\nsofa\nwooden floor\n")
    save_models(folder)
    for config in (ROOT / "configs").glob("*.yaml"):
        write_small(folder / "configs" / config.name, config.read_text())
    voc = folder / "datasets/VOCdevkit/VOC2012"
    for stem in ("2007_000033", "2007_000042"):
        draw(voc / f"JPEGImages/{stem}.jpg", rng.integers(0, 256, (48, 64, 3)))
        draw(voc / f"SegmentationClassAug/{stem}.png", rng.integers(0, 21, (48, 64)))
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000042\n")
    return folder


def draw_layouts(folder: Path) -> None:
    """The photos and labels above as the page on own data has them: in colours, with suffixes, as annotations, ..."""
    colours = np.array([[0, 0, 142], [128, 64, 128], [0, 0, 0]])
    (folder / "labelmap.txt").write_text("cat:0,0,142::\nsofa:128,64,128::\nwooden floor:0,0,0::\n")
    images, annotations, segments = [], [], []
    for file in sorted((folder / "labels").glob("*.png")):
        labels, photo, stem = (
            np.array(Image.open(file)),
            np.array(Image.open(folder / f"photos/{file.stem}.jpg")),
            file.stem,
        )
        draw(folder / "coloured" / file.name, colours[labels])
        draw(folder / "shifted" / file.name, (labels + 1) % 4)
        draw(folder / "black_white" / file.name, (labels > 0) * 255)
        draw(folder / f"all/{stem}.jpg", photo)
        draw(folder / f"all/{stem}_mask.png", labels)
        draw(folder / f"leftImg8bit/aachen/{stem}_leftImg8bit.png", photo)
        draw(folder / f"gtFine/aachen/{stem}_gtFine_labelIds.png", np.array([7, 11, 26])[labels])
        draw(folder / f"gtFine/aachen/{stem}_gtFine_color.png", colours[labels])
        draw(folder / "panoptic" / file.name, np.stack([labels + 1, 0 * labels, 0 * labels], -1))
        images.append({"id": int(stem), "file_name": f"{stem}.jpg", "height": 48, "width": 64})
        segments.append({"image_id": int(stem), "file_name": file.name,
                         "segments_info": [{"id": one + 1, "category_id": one + 1} for one in range(3)]})  # fmt: skip
        for category in (1, 2):
            square = [[category * 9, 4, category * 9 + 20, 4, category * 9 + 20, 40, category * 9, 40]]
            annotations.append({"id": len(annotations), "image_id": int(stem), "category_id": category, "iscrowd": 0,
                                "segmentation": square})  # fmt: skip
    coco = {
        "images": images,
        "categories": [{"id": n, "name": name} for n, name in ((1, "cat"), (2, "sofa"), (3, "floor"))],
    }
    (folder / "annotations.json").write_text(json.dumps(coco | {"annotations": annotations}))
    (folder / "panoptic.json").write_text(json.dumps(coco | {"annotations": segments}))


def save_models(folder: Path) -> None:
    """Two models of ours, and checkpoints as the released FGAseg code and CAT-Seg write them."""
    torch.manual_seed(0)
    parts = {"p2t_layers": 0, "t2p": False, "lcs": False}  # what CAT-Seg does not have
    for name, switches in {
        "mine": {},
        "released": {"preset": "released"},
        "catseg": {"preset": "released", **parts},
    }.items():
        config = fgaseg.ModelConfig(encoder=ENCODER, **MODEL, **switches)
        fgaseg.FGASeg(config).save_pretrained(folder / "runs" / name / "model")
    for name in MODELS:  # what is on the disk comes before the published model of the same name
        shutil.copytree(folder / "runs/catseg/model", folder / name)
    for name, file in {"released": "model_final.pth", "catseg": "model_base.pth"}.items():
        assert (
            main(["convert", str(folder / "runs" / name / "model"), "--to-released", "--out", str(folder / file)]) == 0
        )


def draw(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def write_small(file: Path, text: str) -> None:
    """A configuration as it is on the page, checked, and written with a small model and few steps."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    load_config(file)
    data = yaml.safe_load(text)
    for section, values in SMALL.items():
        data.setdefault(section, {}).update(values)
    file.write_text(yaml.safe_dump(data))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_blocks_run(page, prepared, tmp_path, monkeypatch):
    """Page by page, in order, in one folder and one namespace. A block that cannot run says why in a comment."""
    shutil.copytree(prepared, folder := tmp_path / "here")
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert block.language in (*RUN, *SHOWN), f"{where}: name the block's language"
        if block.marker == "not run" or block.language in SHOWN:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, where, "exec"), namespace)
        elif block.language == "yaml":
            write_small(folder / (block.text or "block.yaml"), block.code)
        else:
            run_commands(block, where)


def run_commands(block: Block, where: str) -> None:
    expected = int(block.text.split()[0].strip(",:;")) if block.marker == "exit status" else 0
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "fgaseg", f"{where}: {line!r} is no command of ours: say why it is not run"
            words = [found for word in words[1:] for found in (sorted(glob.glob(word)) or [word])]
            assert (main(words) or 0) == expected, f"{where}: {line}"


def documented() -> dict[str, str]:
    """Docstrings that the reference shows, by name: of the public packages, what they export, and methods of these."""
    packages = ("config", "data", "evaluation", "inference", "kernels", "model", "training", "weights")
    found: dict[str, str] = {}
    for module in (fgaseg, *(importlib.import_module(f"fgaseg.{name}") for name in packages)):
        found[module.__name__] = inspect.getdoc(module) or ""
        for name in module.__all__:
            thing = getattr(module, name)
            members = vars(thing).items() if inspect.isclass(thing) else ()
            shown = [("", thing), *((f".{key}", getattr(thing, key)) for key, _ in members if key[0] != "_")]
            found |= {
                f"{module.__name__}.{name}{key}": inspect.getdoc(one) or "" for key, one in shown if callable(one)
            }
    return found


def test_examples_in_docstrings_run(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, folder := tmp_path / "here")
    monkeypatch.chdir(folder)
    to_markdown = runpy.run_path(str(ROOT / "docs/docstrings.py"))["to_markdown"]
    names = {name: getattr(fgaseg, name) for name in fgaseg.__all__}
    count = 0
    for name, docstring in documented().items():
        for code in re.findall(r"^```python$(.*?)^```$", to_markdown(docstring), re.MULTILINE | re.DOTALL):
            exec(compile(code, name, "exec"), {"fgaseg": fgaseg, **names, "folder": folder / "runs/docstring"})
            count += 1
    assert count >= 3


def test_blocks_that_do_not_run_are_few_and_say_why(record_property, capsys):
    """Listed with `pytest -s`; a bound, so that a page does not stop being tested unnoticed."""
    found = [(page, block) for page in PAGES for block in blocks(page) if block.marker == "not run"]
    for page, block in found:
        print(f"{page.relative_to(ROOT)}:{block.line}: {block.text}")
    assert all(len(block.text) > 10 for _, block in found)
    run = sum(block.language in RUN and block.marker != "not run" for page in PAGES for block in blocks(page))
    assert len(found) * 3 <= run, f"{len(found)} blocks are not run, {run} are"


# ---- what the pages mention


@functools.cache
def sources() -> str:
    """All text in which a name that a page mentions can be defined."""
    folders = ("fgaseg", "kernels", "csrc", "hub", "tests", "benchmarks", "configs", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in READ]
    files += [ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "mkdocs.yml", *(ROOT / ".ci").glob("*")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file != Path(__file__))


def commands(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """Every command by its words, such as "fgaseg data check"."""
    parser = parser or build_parser()
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= commands(command)
    return found


def fields(section: type[BaseModel] = fgaseg.Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every configuration key with its field, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def resolves(dotted: str) -> bool:
    """Whether a.b.c is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            fields = getattr(found, "__dataclass_fields__", {}) | getattr(found, "model_fields", {})
            if name not in fields and not hasattr(found, name):
                return False
            found = getattr(found, name, None)
        return True
    return False


def mentioned(page: Path) -> list[str]:
    """The inline code of a page, each once."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return list(dict.fromkeys(" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)))


def problem(span: str, here: Path) -> str:
    """Why a piece of inline code refers to nothing, or ""."""
    if span.startswith("fgaseg "):
        return wrong_command(span)
    if span.startswith("--"):
        option = re.match(r"[-\w]+", span)[0]  # type: ignore[index]
        known = {word for parser in commands().values() for action in parser._actions for word in action.option_strings}
        return "" if option in known or f'"{option}"' in sources() else "no command has this option"
    if re.fullmatch(r"[\w.<>*/\-]+", span) and ("/" in span or Path(span).suffix in FILES):
        return wrong_path(span, here)
    if re.fullmatch(r"[a-zA-Z_][\w.]*\.[\w.]+(=.*|\(.*\))?", span):
        return wrong_name(re.split(r"[=(]", span)[0])
    name = re.match(r"[A-Za-z_]\w*", span)
    if name and "_" in name[0] and not re.search(rf"\b{name[0]}\b", sources()):
        return "occurs nowhere in the sources"
    return ""


def wrong_command(span: str) -> str:
    words = span.split()
    known = commands()
    command = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known), None)
    if command is None:
        return "no such command"
    options = {word for action in known[command]._actions for word in action.option_strings}
    wrong = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
    return f"{command} has no {wrong[0]}" if wrong else ""


def wrong_path(span: str, here: Path) -> str:
    pattern = re.sub(r"<\w+>", "*", span).rstrip("/")
    if next(ROOT.glob(pattern), None) or next(here.glob(pattern), None):
        return ""
    first, last = Path(pattern).parts[0], Path(pattern).name
    if first != "*" and (ROOT / first).exists():
        return "no such file in the repository"
    written = last in sources() or any(ROOT.glob(f"*/**/{last}"))
    return "" if written else "neither a file of the repository nor one that the sources name"


def wrong_name(dotted: str) -> str:
    first = dotted.split(".")[0]
    owners = {
        "model": "fgaseg.FGASeg",
        "result": "fgaseg.Result",
        "vocabulary": "fgaseg.Vocabulary",
        "F": "torch.nn.functional",
    }
    choices = [dotted, f"fgaseg.{dotted}", dotted.replace(first, owners.get(first, first), 1), f"torch.{dotted}"]
    if dotted in dict(fields()) or any(resolves(choice) for choice in choices):
        return ""
    if f'"{dotted}"' in sources() or (first in PARTS and Path(dotted).suffix in SUFFIXES.values()):
        return ""  # a key of a file's metadata, or a file of an export
    return "neither a name of fgaseg or torch nor a configuration key"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_what_a_page_mentions_exists(page, prepared):
    own = {block.text for block in blocks(page) if block.marker == "file"}
    wrong = {span: why for span in mentioned(page) if span not in own and (why := problem(span, prepared))}
    assert not wrong, f"{page.relative_to(ROOT)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    """Those to files; MkDocs checks the others."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    generated = ("reference/configuration.md", "reference/command_line.md", "reference/api.md", "contributing.md")
    for target in targets:
        if target and "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists() or any(str(path).endswith(name) for name in generated), target


@pytest.mark.parametrize("command", commands())
def test_examples_in_help_texts_are_understood(command):
    """Every example is read by the parser; a line ends where its explanation begins, after two spaces."""
    for line in (commands()[command].description or "").splitlines():
        if found := re.match(r"  (?:torchrun .*-m )?fgaseg (\S.*?)(?:  .*| \.\.\.)?$", line):
            parse(shlex.split(found[1]))


def test_every_key_and_option_is_described():
    """The reference pages are made from these texts."""
    sections = ("model", "data", "train", "model.encoder", "model.loss")
    assert [key for key, field in fields() if not field.description and key not in sections] == []
    for name, parser in commands().items():
        options = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
        assert [action.dest for action in options if not action.help] == [], name


def test_every_op_and_every_public_name_has_a_page():
    ops = {folder.name for folder in (ROOT / "kernels").iterdir() if (folder / "__init__.py").exists()}
    pages = {page.stem for page in (ROOT / "docs/kernels").glob("*.md")} - {"index"}
    assert pages == ops
    undocumented = [name for name in fgaseg.__all__ if not inspect.getdoc(getattr(fgaseg, name)) and name[0] != "_"]
    assert undocumented == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
