"""What the page does with photos and names, without the page: photos and results are kept here, bounded in memory."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image

from ..data import NamedBytes, SceneDataset, read_image, read_typed, with_background
from ..errors import FGASegError, ImageError, UsageError
from ..inference import (
    PseudoMasks,
    Result,
    ScoreRule,
    heat,
    label_names,
    note_doubts,
    palette,
    predict,
    pseudo_masks,
)
from ..model import FGASeg, load, set_precision
from ..notes import told_anew
from ..vocabulary import ClassPrompts, Vocabulary, check_names

MOST_PROMPTS = 500  # of one question: names, and synonyms of these
MOST_LETTERS = 20_000
MOST_UPLOAD = 50_000_000  # bytes of a photo's file
MOST_KEPT = 1_000_000_000  # bytes of the photos and results in memory, of all users together
KEPT_SECONDS = 3600.0  # since a photo was used last
MOST_MODELS = 1_000_000_000  # bytes of the models in memory, apart from the one in use
SHOWN_SIDE = 2048  # pixels of the longer side on the page; downloads have the photo's own size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a model said about a photo.

    labels     uint16 [H, W], indices into the vocabulary, before any threshold; a quarter of `Result.labels`
    scores     float32 [H, W]
    softmax    whether scores are shares among the classes
    threshold  0: none
    """

    model: str
    vocabulary: Vocabulary
    labels: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    softmax: bool
    notes: tuple[str, ...]
    threshold: float = 0.0
    maps: PseudoMasks | None = field(default=None, repr=False)

    def decide(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Labels of some pixels after the threshold: those with lower scores are none of the classes."""
        if not self.threshold:
            return labels
        nothing = label_names(self.vocabulary, self.threshold)[1]
        assert nothing is not None  # where there is a threshold
        return np.where(scores < self.threshold, np.uint16(nothing), labels)


@dataclass
class Photo:
    """A photo that somebody gave, under a key that nobody can guess, and the last answer about it."""

    name: str
    image: Image.Image = field(repr=False)
    notes: tuple[str, ...] = ()  # what was assumed when it was read
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    used: float = field(default_factory=time.monotonic)
    answer: Answer | None = None

    @property
    def bytes(self) -> int:
        size = self.image.width * self.image.height * 4  # Pillow keeps four for RGB
        if self.answer:
            size += self.answer.labels.nbytes + self.answer.scores.nbytes
            size += sum(maps.nbytes for maps in self.answer.maps or () if maps is not None)
        return size

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width on the page."""
        scale = min(SHOWN_SIDE / max(self.image.size), 1)
        return max(round(self.image.height * scale), 1), max(round(self.image.width * scale), 1)


class Photos:
    """Photos by key. The ones used least recently go beyond `MOST_KEPT` bytes, and all after `KEPT_SECONDS`."""

    def __init__(self) -> None:
        self._photos: OrderedDict[str, Photo] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, photo: Photo) -> Photo:
        with self._lock:
            self._photos[photo.key] = photo
        self.tidy()
        return photo

    def get(self, key: str) -> Photo:
        """Raises UsageError for one that is not here, or no more."""
        self.tidy()
        with self._lock:
            photo = self._photos.get(key)
            if photo is None:
                raise UsageError("this photo is not kept here any more: drop it again" if key else "drop a photo first")
            photo.used = time.monotonic()
            self._photos.move_to_end(key)
            return photo

    def drop(self, key: str) -> None:
        with self._lock:
            self._photos.pop(key, None)

    def tidy(self) -> None:
        """Let go of what is old or too much; the photo used last stays, however large it is."""
        with self._lock:
            oldest = time.monotonic() - KEPT_SECONDS
            total = sum(photo.bytes for photo in self._photos.values())
            for key, photo in list(self._photos.items()):
                last = len(self._photos) == 1
                if photo.used < oldest or (total > MOST_KEPT and not last):
                    total -= self._photos.pop(key).bytes

    def __len__(self) -> int:
        return len(self._photos)


class Models:
    """Models by their titles on the page: loaded at the first use, and only some of them at once."""

    def __init__(self, sources: Sequence[str], loader: Callable[[str], FGASeg]) -> None:
        sources = list(dict.fromkeys(sources))
        short = [title(source) for source in sources]
        self.sources = {name if short.count(name) == 1 else source: source
                        for name, source in zip(short, sources, strict=True)}  # fmt: skip
        self._loader = loader
        self._loaded: OrderedDict[str, tuple[FGASeg, int]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        """Whether it is in memory."""
        return name in self._loaded

    def get(self, name: str) -> FGASeg:
        """Raises UsageError for a model that the page does not offer, and what `fgaseg.load` raises."""
        if name not in self.sources:
            raise UsageError(f"{name!r} is no model of this page: choose one of {', '.join(self.sources)}")
        if name not in self._loaded:
            while self._loaded and sum(size for _, size in self._loaded.values()) > MOST_MODELS:
                self._loaded.popitem(last=False)
            model = self._loader(self.sources[name])
            self._loaded[name] = model, sum(p.numel() * p.element_size() for p in model.parameters())
        self._loaded.move_to_end(name)
        return self._loaded[name][0]


def title(source: str) -> str:
    """A model's name on the page: of a path, no more than its end."""
    path = Path(os.path.expanduser(source))
    return "/".join(path.parts[-2:]).lstrip("/") if path.exists() else source


class Labeller:
    """Photos in, labels out, for several people at once: a model runs for one of them at a time.

    models     what `fgaseg.load` takes, in the order in which they are offered
    overrides  key=value words for all of them
    precision  one of PRECISIONS, for all of them
    """

    def __init__(
        self,
        models: Sequence[str],
        overrides: Sequence[str] = (),
        device: str | None = None,
        precision: str = "float32",
    ) -> None:
        def loaded(source: str) -> FGASeg:
            model = load(source, *overrides, device=device)
            set_precision(model, precision)
            return model

        self.models = Models(models, loaded)
        self.photos = Photos()
        self._running = threading.Lock()
        self._notes: WeakKeyDictionary[Vocabulary, tuple[str, ...]] = WeakKeyDictionary()

    def add(self, content: bytes, name: str) -> Photo:
        """Read a photo's file. Raises ImageError."""
        name = PurePosixPath(name.replace("\\", "/")).name[:100] or "photo"
        if len(content) > MOST_UPLOAD:
            raise too_large(name)
        with told_anew() as notes:
            image = read_image(NamedBytes(content, name))
        return self.photos.add(Photo(name, image, tuple(notes)))

    def example(self) -> tuple[Photo, list[str]]:
        """A drawn scene, another one each time, and names for it."""
        scenes = SceneDataset("seen", length=1000, size=(288, 384))
        item = scenes[secrets.randbelow(len(scenes))]
        names = [scenes.names[label] for label in item["labels"].unique().tolist()]
        return self.photos.add(Photo("drawn scene.png", Image.fromarray(item["image"].numpy()))), names

    def label(self, key: str, typed: str, model: str, background: str = "", threshold: float = 0.0) -> Photo:
        """Label a photo with the names that were typed, read as `fgaseg segment --classes` reads them.

        background  typed as after --background; "": none
        threshold   as `decide` takes it

        Raises ImageError, UsageError, VocabularyError, DataError, and what `fgaseg.load` raises.
        """
        photo = self.photos.get(key)
        with told_anew() as told:
            classes = check_names(read_typed(_bounded(typed)))
            rest = _bounded(background) if background.strip() else None
            count = sum(len(prompts) for _, prompts in (with_background(classes, rest)[0] if rest else classes))
            if count > MOST_PROMPTS:
                raise UsageError(f"these are {count} names and synonyms: give at most {MOST_PROMPTS}")
            with self._running, _memory(photo.name):
                network = self.models.get(model)
                vocabulary = self._encode(network, classes, rest)
                label_names(vocabulary, threshold or None)  # refused before the work is done
                with torch.inference_mode():
                    result = predict(network, photo.image, vocabulary)
        notes = dict.fromkeys([*told, *self._notes[vocabulary]])
        photo.answer = Answer(model, vocabulary, result.labels.astype(np.uint16), result.scores,
                              ScoreRule.of(network.config).softmax, tuple(notes), threshold)  # fmt: skip
        self.photos.tidy()
        return photo

    def decide(self, key: str, threshold: float) -> Photo:
        """Pixels whose score is below a threshold (0: none) are none of the classes; the model does not run again."""
        photo, answer = self._answered(key)
        label_names(answer.vocabulary, threshold or None)
        photo.answer = replace(answer, threshold=threshold)
        return photo

    def _encode(self, network: FGASeg, classes: tuple[ClassPrompts, ...], background: str | None) -> Vocabulary:
        """A vocabulary that was made before comes out of the model's cache, without the notes about it."""
        with told_anew() as told:
            vocabulary = network.encode(classes, background)
        self._notes.setdefault(vocabulary, tuple(told))
        return vocabulary

    def maps(self, key: str) -> PseudoMasks:
        """S_g and S_l of a labelled photo; they are computed once for an answer."""
        photo, answer = self._answered(key)
        if answer.maps is None:
            with self._running, _memory(photo.name):
                maps = pseudo_masks(self.models.get(answer.model), photo.image, answer.vocabulary)
            if photo.answer is answer:  # nothing else was asked meanwhile
                photo.answer = replace(answer, maps=maps)
            return maps
        return answer.maps

    def result(self, key: str) -> Result:
        """The answer as `model.segment` gives it."""
        photo, answer = self._answered(key)
        classes, nothing = label_names(answer.vocabulary, answer.threshold or None)
        labels = answer.decide(answer.labels, answer.scores).astype(np.int64)
        return Result(labels, classes, answer.scores, photo.image, nothing, photo.name)

    def pack(self, key: str) -> bytes:
        """Labels, then scores in thousandths, each uint16 [h, w] in little-endian order, at the size of the page."""
        photo, answer = self._answered(key)
        (height, width), (rows, columns) = photo.shown, answer.labels.shape
        middle = (np.arange(height) * 2 + 1) * rows // (2 * height), (np.arange(width) * 2 + 1) * columns // (2 * width)
        scores = answer.scores[np.ix_(*middle)]
        labels = answer.decide(answer.labels[np.ix_(*middle)], scores)
        thousandths = (np.nan_to_num(scores).clip(0, 1) * 1000).round()
        return labels.astype("<u2").tobytes() + thousandths.astype("<u2").tobytes()

    def save(self, key: str, suffix: str) -> bytes:
        """The file that `Result.save` writes: an index PNG (".png") or COCO annotations (".json")."""
        result = self.result(key)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"labels{suffix}")
            result.save(path)
            return path.read_bytes()

    def draw_map(self, key: str, kind: str, index: int) -> Image.Image:
        """S_g ("global") or S_l ("local") of a class in false colours, at the size of the page."""
        maps = self.maps(key)
        chosen = {"global": maps.gcs, "local": maps.lcs}.get(kind)
        if chosen is None:
            raise UsageError(f"this model has no {kind} map")
        if not 0 <= index < len(chosen):
            raise UsageError("this class is not among the names any more")
        return heat(chosen[index], self.photos.get(key).shown)

    def _answered(self, key: str) -> tuple[Photo, Answer]:
        photo = self.photos.get(key)
        if photo.answer is None:
            raise UsageError("label the photo first")
        return photo, photo.answer


def describe(photo: Photo, result: Result | None = None) -> dict[str, Any]:
    """What the page is told about a photo and its answer, apart from the pixels: all of it can be written as JSON."""
    height, width = photo.shown
    about: dict[str, Any] = {"photo": photo.key, "name": photo.name, "shown": [height, width],
                             "size": [photo.image.height, photo.image.width],
                             "notes": list(photo.notes)}  # fmt: skip
    if result is None or photo.answer is None:
        return about
    answer = photo.answer
    with told_anew() as doubts:
        note_doubts(result, answer.softmax, answer.threshold or None, len(answer.vocabulary))
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return about | {
        "classes": list(result.classes),
        "colours": palette(len(result.classes)).tolist(),
        "shares": [[i, float(counts[i] / result.labels.size)] for i in order],
        "mapped": len(answer.vocabulary),  # classes that have maps: "nothing" has none
        "notes": list(dict.fromkeys([*photo.notes, *answer.notes, *doubts])),
    }


def too_large(name: str) -> ImageError:
    return ImageError(f"{name}: is larger than {MOST_UPLOAD // 1_000_000} MB: make it smaller")


def _bounded(typed: str) -> str:
    if not typed.strip():
        raise UsageError("type the names of classes, with commas between them")
    if len(typed) > MOST_LETTERS:
        raise UsageError(f"the names have {len(typed):,} letters: give at most {MOST_LETTERS:,}")
    return typed


@contextlib.contextmanager
def _memory(name: str) -> Iterator[None]:
    """Turns the errors of a full memory into one that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ImageError(f"{name}: there is not enough memory for it: make it smaller, or give fewer names") from error


def in_words(error: Exception) -> str:
    """An error as it is shown on the page; what is none of ours is logged, and not shown."""
    if isinstance(error, FGASegError | OSError):
        return str(error)
    log.error("the page: %s", type(error).__name__, exc_info=error)
    return "something went wrong; the messages of `fgaseg app` say what"
