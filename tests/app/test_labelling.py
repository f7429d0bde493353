"""What the page does with photos and names, without the page."""

import io
import json
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from app_photos import noise, png
from PIL import Image

from fgaseg import FGASeg
from fgaseg.app import Labeller, labelling
from fgaseg.app.labelling import Models, Photo, Photos, describe, in_words, title
from fgaseg.errors import DataError, FGASegError, ImageError, UsageError
from fgaseg.inference import heat, palette, pseudo_masks

NAMES = "cat, dog, wooden floor"


@pytest.fixture
def labelled(labeller):
    photo = labeller.add(png(noise()), "street.png")
    labeller.label(photo.key, NAMES, "mine/model")
    return labeller, photo


def test_labels_are_those_of_the_api(labelled, model_folder):
    labeller, photo = labelled
    result = labeller.result(photo.key)
    expected = FGASeg.from_pretrained(model_folder).segment(noise(), NAMES.split(", "))
    assert (result.labels == expected.labels).all() and result.labels.dtype == np.int64
    assert (result.scores == expected.scores).all() and result.classes == expected.classes
    assert len(expected.present) > 1


@pytest.mark.parametrize("background", ["", "other", "wall, sky | cloud", "Stuff", "dog"])
@pytest.mark.parametrize("half", [False, True])
def test_background_and_threshold_are_those_of_the_api(labelled, model_folder, background, half):
    labeller, photo = labelled
    given = {"": None, "wall, sky | cloud": ["wall", "sky", "cloud"], "Stuff": "stuff"}.get(background, background)
    model = FGASeg.from_pretrained(model_folder)
    expected = model.segment(noise(), NAMES.split(", "), background=given)
    threshold = float(np.median(expected.scores)) if half else 0
    if half:
        expected = model.segment(noise(), NAMES.split(", "), background=given, threshold=threshold)
    labeller.label(photo.key, NAMES, "mine/model", background, threshold)
    result = labeller.result(photo.key)
    assert result.classes == expected.classes and result.nothing == expected.nothing
    assert (result.labels == expected.labels).all() and (result.scores == expected.scores).all()
    assert not half or result.present[result.classes[result.nothing]] > 0.4


def test_a_threshold_does_not_run_the_model(labelled, model_folder, monkeypatch):
    labeller, photo = labelled
    model = FGASeg.from_pretrained(model_folder)
    monkeypatch.setattr(labelling, "predict", None)
    for threshold in (0.4, 0.36, 0, 0.36):
        expected = model.segment(noise(), NAMES.split(", "), threshold=threshold or None)
        result = labeller.result(labeller.decide(photo.key, threshold).key)
        assert (result.labels == expected.labels).all() and result.classes == expected.classes


def test_a_threshold_that_cannot_be_leaves_the_answer(labelled):
    labeller, photo = labelled
    before = labeller.result(photo.key).labels
    for wrong in (1.0, -1, 7, float("nan")):
        with pytest.raises(FGASegError, match="is not between 0 and 1"):
            labeller.decide(photo.key, wrong)
    labeller.label(photo.key, "nothing, cat", "mine/model")
    with pytest.raises(FGASegError, match="a class is called 'nothing'"):
        labeller.decide(photo.key, 0.5)
    labeller.label(photo.key, NAMES, "mine/model")
    assert (labeller.result(photo.key).labels == before).all()


def test_doubts_follow_the_threshold(labelled):
    labeller, photo = labelled
    about = describe(photo, labeller.result(photo.key))
    assert any("half of the photo has scores below" in note for note in about["notes"])
    labeller.decide(photo.key, 0.2)
    about = describe(photo, labeller.result(photo.key))
    assert [note for note in about["notes"] if "half of" in note] == []
    assert any("threshold 0.2: has no effect" in note for note in about["notes"])


def test_what_the_page_is_told(labelled):
    labeller, photo = labelled
    result = labeller.result(photo.key)
    about = describe(photo, result)
    assert {result.classes[i]: share for i, share in about["shares"]} == result.present
    assert [i for i, _ in about["shares"]] == [result.classes.index(name) for name in result.present]
    assert about["classes"] == ["cat", "dog", "wooden floor"] and about["colours"] == palette(3).tolist()
    assert about["size"] == about["shown"] == [30, 40] and about["name"] == "street.png"
    assert "classes" not in describe(photo, None)


def test_pixels_are_sent_as_they_are(labelled):
    labeller, photo = labelled
    result = labeller.result(photo.key)
    labels, scores = np.frombuffer(labeller.pack(photo.key), "<u2").reshape(2, 30, 40)
    assert (labels == result.labels).all()
    labeller.decide(photo.key, 0.36)
    decided, _ = np.frombuffer(labeller.pack(photo.key), "<u2").reshape(2, 30, 40)
    assert (decided == labeller.result(photo.key).labels).all() and (decided != labels).any()
    assert (scores == np.round(result.scores * 1000)).all() and scores.max() > 0


def test_a_large_photo_is_shown_smaller(labelled, monkeypatch):
    labeller, photo = labelled
    monkeypatch.setattr(labelling, "SHOWN_SIDE", 20)
    result = labeller.result(photo.key)
    labels, _ = np.frombuffer(labeller.pack(photo.key), "<u2").reshape(2, 15, 20)
    assert describe(photo, result)["shown"] == [15, 20] and describe(photo, result)["size"] == [30, 40]
    assert (labels == result.labels[1::2, 1::2]).all()


@pytest.mark.parametrize(
    "typed, words",
    [
        ("  ", "type the names of classes"),
        (", ,", "holds no name"),
        ("<img src=x onerror=alert(1)>", "looks like more than a name"),
        ("cat, " * 6000, "letters: give at most 20,000"),
        (", ".join(f"thing {i}" for i in range(501)), "these are 501 names and synonyms: give at most 500"),
        (" | ".join(f"t{i}" for i in range(501)), "these are 501 names and synonyms: give at most 500"),
    ],
)
def test_names_that_cannot_be_used_are_told_in_words(labeller, typed, words):
    photo = labeller.add(png(noise()), "street.png")
    with pytest.raises(FGASegError, match=words):
        labeller.label(photo.key, typed, "mine/model")
    assert "mine/model" not in labeller.models  # before anything is loaded


def test_as_many_names_as_are_allowed(labeller, monkeypatch):
    monkeypatch.setattr(labelling, "MOST_PROMPTS", 4)
    photo = labeller.add(png(noise()), "street.png")
    labeller.label(photo.key, "cat | kitten, dog, sky", "mine/model")
    assert labeller.result(photo.key).classes == ("cat", "dog", "sky")
    with pytest.raises(UsageError, match="these are 5 names and synonyms"):
        labeller.label(photo.key, "cat | kitten, dog, sky", "mine/model", "other")
    with pytest.raises(UsageError, match="these are 40 names"):
        labeller.label(photo.key, "cat", "mine/model", "stuff")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "SVG drawing: save it as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is PostScript"),
        (b"%PDF-1.7", "is a PDF"),
        (b"https://example.org/photo.jpg", "is not an image"),
        (b"/etc/passwd", "is not an image"),
        (png(noise())[:500], "truncated or corrupt"),
    ],
)
def test_files_that_are_no_photo_are_told_in_words(labeller, content, words):
    with pytest.raises(ImageError, match=rf"^street\.png: .*{words}"):
        labeller.add(content, "/home/somebody/street.png")
    assert len(labeller.photos) == 0


def test_limits_of_a_photo(labeller, monkeypatch):
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "1000")
    with pytest.raises(ImageError, match="40x30 is more than 1,000 pixels"):
        labeller.add(png(noise()), "street.png")
    monkeypatch.setattr(labelling, "MOST_UPLOAD", 1_000_000)
    with pytest.raises(ImageError, match="is larger than 1 MB"):
        labeller.add(b"x" * 1_000_001, "street.png")


def test_what_was_assumed_about_a_photo_is_told_to_everyone(labeller):
    file = io.BytesIO()
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(2)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    for _ in range(2):
        photo = labeller.add(file.getvalue(), "moving.gif")
        assert any("moving.gif" in note and "2" in note for note in describe(photo)["notes"])
    labeller.label(photo.key, NAMES, "mine/model")
    assert any("moving.gif" in note for note in describe(photo, labeller.result(photo.key))["notes"])


def test_the_example_is_drawn_with_its_names(labeller):
    photo, names = labeller.example()
    assert photo.image.size == (384, 288) and len(names) >= 2
    assert labeller.photos.get(photo.key) is photo


def test_files_are_those_of_the_api(labelled, tmp_path):
    labeller, photo = labelled
    labeller.decide(photo.key, 0.36)
    result = labeller.result(photo.key)
    result.save(tmp_path / "labels.png")
    assert labeller.save(photo.key, ".png") == (tmp_path / "labels.png").read_bytes()
    assert json.loads(labeller.save(photo.key, ".json")) == result.to_coco("street.png")


# ---- what is kept


def photo_of(side):
    return Photo("p", Image.new("RGB", (side, side)))


def test_photos_beyond_the_memory_go_the_least_used_first(monkeypatch):
    monkeypatch.setattr(labelling, "MOST_KEPT", 3 * 4 * 100)
    photos = Photos()
    first, second, third = (photos.add(photo_of(10)) for _ in range(3))
    photos.get(first.key)
    photos.add(photo_of(10))
    assert photos.get(first.key) and photos.get(third.key)
    with pytest.raises(UsageError, match="not kept here any more: drop it again"):
        photos.get(second.key)
    large = photos.add(photo_of(100))
    assert photos.get(large.key) and len(photos) == 1  # larger than all the memory, and the one in use


def test_results_count(labelled):
    _, photo = labelled
    assert photo.bytes == 30 * 40 * (4 + 2 + 4)


def test_photos_go_after_a_while(monkeypatch):
    photos = Photos()
    photo = photos.add(photo_of(10))
    now = time.monotonic()
    monkeypatch.setattr(labelling, "time", SimpleNamespace(monotonic=lambda: now + labelling.KEPT_SECONDS + 1))
    with pytest.raises(UsageError, match="drop it again"):
        photos.get(photo.key)
    assert len(photos) == 0


def test_keys_cannot_be_guessed():
    keys = {photo_of(1).key for _ in range(100)}
    assert len(keys) == 100 and min(map(len, keys)) >= 20


def test_nothing_without_a_photo_or_an_answer(labeller):
    with pytest.raises(UsageError, match="drop a photo first"):
        labeller.label("", NAMES, "mine/model")
    photo = labeller.add(png(noise()), "street.png")
    with pytest.raises(UsageError, match="label the photo first"):
        labeller.result(photo.key)


# ---- models


class Fake:
    def __init__(self, size):
        self.size = size

    def parameters(self):
        return [torch.zeros(self.size, dtype=torch.uint8)]


def test_models_are_loaded_once_and_the_least_used_one_goes(monkeypatch):
    monkeypatch.setattr(labelling, "MOST_MODELS", 150)
    loaded = []
    models = Models(["a", "b", "c", "a"], lambda source: loaded.append(source) or Fake(100))
    assert list(models.sources) == ["a", "b", "c"] and "a" not in models
    for name in "abab":
        models.get(name)
    assert loaded == ["a", "b"]
    models.get("c")
    assert ("a" in models, "b" in models, "c" in models) == (False, True, True)
    with pytest.raises(UsageError, match="'d' is no model of this page: choose one of a, b, c"):
        models.get("d")


def test_titles_show_no_more_of_a_path_than_its_end(model_folder, tmp_path):
    assert title(str(model_folder)) == "mine/model" and title("cat-seg-b16") == "cat-seg-b16"
    other = tmp_path / "mine/model"
    other.mkdir(parents=True)
    both = [str(model_folder), str(other)]
    assert list(Models(both, Fake).sources) == both  # told apart


def test_a_model_that_cannot_be_loaded_leaves_the_others(model_folder, tmp_path):
    (tmp_path / "broken/model").mkdir(parents=True)
    (tmp_path / "broken/model/config.json").write_text("{}")
    labeller = Labeller([str(tmp_path / "broken/model"), str(model_folder)])
    photo = labeller.add(png(noise()), "street.png")
    with pytest.raises(FGASegError, match="not an fgaseg model"):
        labeller.label(photo.key, NAMES, "broken/model")
    labeller.label(photo.key, NAMES, "mine/model")


def test_overrides_reach_the_model(model_folder):
    labeller = Labeller([str(model_folder)], ["inference=windows"], "cpu")
    assert labeller.models.get("mine/model").config.inference == "windows"


# ---- maps


def test_maps_are_those_of_the_api_and_computed_once(labelled, model_folder, monkeypatch):
    labeller, photo = labelled
    model = FGASeg.from_pretrained(model_folder)
    expected = pseudo_masks(model, photo.image, model.encode(NAMES.split(", ")))
    drawn = labeller.draw_map(photo.key, "local", 2)
    monkeypatch.setattr(labelling, "pseudo_masks", None)
    assert (np.asarray(drawn) == np.asarray(heat(expected.lcs[2], (30, 40)))).all()
    assert (np.asarray(labeller.draw_map(photo.key, "global", 1)) == np.asarray(heat(expected.gcs[1], (30, 40)))).all()


def test_maps_that_are_not_there(labelled):
    labeller, photo = labelled
    for kind, index, words in (("other", 0, "no other map"), ("local", 3, "not among"), ("local", -1, "not among")):
        with pytest.raises(UsageError, match=words):
            labeller.draw_map(photo.key, kind, index)


def test_a_new_answer_has_new_maps(labelled):
    labeller, photo = labelled
    assert len(labeller.maps(photo.key).gcs) == 3
    labeller.label(photo.key, "sky, grass", "mine/model")
    assert len(labeller.maps(photo.key).gcs) == 2


# ---- what is told


def test_everyone_is_told_what_was_assumed(labeller, caplog):
    caplog.set_level(logging.INFO, "fgaseg")
    for _ in range(2):
        photo = labeller.add(png(noise()), "street.png")
        labeller.label(photo.key, "cat; dog; red_star", "mine/model")
        notes = describe(photo, labeller.result(photo.key))["notes"]
        told = ("read as 3 classes", "'red star'", "half of the photo has scores below")
        assert [sum(words in note for note in notes) for words in told] == [1, 1, 1], notes
    assert logging.getLogger("fgaseg").handlers == []


def test_a_full_memory_is_told_in_words(labeller, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    photo = labeller.add(png(noise()), "street.png")
    monkeypatch.setattr(labeller.models, "get", full)
    with pytest.raises(ImageError, match=r"street\.png: there is not enough memory"):
        labeller.label(photo.key, NAMES, "mine/model")


def test_words_for_errors(caplog):
    assert in_words(DataError("what is wrong")) == "what is wrong"
    secret = in_words(RuntimeError("/home/somebody/secret.py"))
    assert "secret" not in secret and "went wrong" in secret
    assert "/home/somebody/secret.py" in caplog.text  # whoever runs it can see why
