"""`fgaseg.pipeline` gives what transformers' image-segmentation pipelines give."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES, tiny_model
from torch.utils.data import Dataset

import fgaseg
from fgaseg.errors import ImageError, VocabularyError
from fgaseg.model.segmentation_pipeline import segments_of

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return fgaseg.pipeline(tiny_model(), classes=NAMES)


ITS_OWN = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

answers = []
for labels, classes in json.load(sys.stdin):
    processor = SimpleNamespace(post_process_semantic_segmentation=lambda out, target_sizes: [torch.tensor(labels)])
    model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(classes))))
    itself = SimpleNamespace(image_processor=processor, model=model)
    found = ImageSegmentationPipeline.postprocess(itself, {"target_size": [np.shape(labels)]})
    answers.append([{**one, "mask": [one["mask"].mode, np.asarray(one["mask"]).tolist()]} for one in found])
print(json.dumps(answers))
"""


def of_transformers(results: list[fgaseg.Result]) -> list[list[dict]]:
    """What transformers' own code makes of the labels of a semantic segmentation.

    In a process of its own, away from this repository, whose folder `kernels` transformers takes for a package.
    """
    given = json.dumps([(one.labels.tolist(), one.classes) for one in results])
    done = subprocess.run([sys.executable, "-I", "-c", ITS_OWN], input=given, capture_output=True, text=True)
    if "No module named 'transformers'" in done.stderr:
        pytest.skip(reason="transformers, to compare with, is not installed")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_segments_are_those_of_transformers(pipe):
    labels = np.array([[2, 2, 0], [2, 0, 0]])
    scores = np.array([[0.5, 0.75, 1], [0.25, 0, 0.5]], np.float32)
    results, answers = [fgaseg.Result(labels, ("a", "b", "c"), scores, PHOTO)], []
    answers.append(segments_of(results[0]))
    for given in ({}, {"background": "other"}, {"threshold": 0.3}, {"background": "other", "threshold": 0.3}):
        results.append(pipe.model.segment(PHOTO, NAMES, **given))
        answers.append(pipe(PHOTO, **given))
    for result, got, want in zip(results, answers, of_transformers(results), strict=True):
        assert [list(one) for one in got] == [list(one) for one in want] and got
        for one, other in zip(got, want, strict=True):
            mask = np.asarray(one["mask"])
            assert isinstance(one["mask"], Image.Image) and type(one["label"]) is str and type(one["score"]) is float
            assert (one["label"], [one["mask"].mode, mask.tolist()]) == (other["label"], other["mask"])
            assert one["score"] == pytest.approx(result.scores[mask == 255].mean(), rel=1e-5)
        assert (sum(np.asarray(one["mask"], np.int64) for one in got) == 255).all()
    assert [(one["label"], one["score"]) for one in answers[0]] == [("a", 0.5), ("c", 0.5)]
    assert "other" in {one["label"] for one in answers[2]} and "nothing" in {one["label"] for one in answers[3]}


def assert_same(got: list[dict], want: list[dict]) -> None:
    assert [(one["label"], one["score"], one["mask"].tobytes()) for one in got] == [
        (one["label"], one["score"], one["mask"].tobytes()) for one in want
    ]


class Photos(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return PHOTO.rotate(90 * index)


def test_lists_give_lists_and_generators_iterators(pipe, tmp_path):
    PHOTO.save(tmp_path / "a.png")
    one = pipe(PHOTO)
    assert isinstance(one[0], dict)
    for alike in (str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(PHOTO), (tmp_path / "a.png").open("rb")):
        assert_same(pipe(alike), one)
    assert [len(found) for found in pipe([PHOTO])] == [len(one)] and pipe([]) == []
    taken = []

    def photos():
        for name in ("a.png", "a.png", "missing.png"):
            taken.append(name)
            yield str(tmp_path / name)

    answers = pipe(photos())
    assert not taken and not isinstance(answers, list)
    assert_same(next(answers), one)
    assert taken == ["a.png"]
    assert_same(next(answers), one)
    with pytest.raises(ImageError, match="missing"):
        next(answers)
    assert len(list(pipe(Photos()))) == 3 and len(list(pipe(map(str, [tmp_path / "a.png"])))) == 1


def test_classes_are_those_of_the_call(pipe, tmp_path):
    assert {one["label"] for one in pipe(PHOTO, classes=["cat | kitten", "floor"])} <= {"cat", "floor"}
    pipe.model.save_pretrained(tmp_path / "model")
    loaded = fgaseg.pipeline(tmp_path / "model", "inference=windows", device="cpu")
    assert loaded.model.config.inference == "windows" and loaded.task == "image-segmentation"
    with pytest.raises(VocabularyError, match=r"classes=\[\.\.\.\]"):
        loaded(PHOTO)
    with pytest.raises(VocabularyError):  # at the call, not at the first photo
        loaded(iter([PHOTO]), classes=[])
    with pytest.raises(VocabularyError, match="inference=windows"):
        fgaseg.pipeline(pipe.model, "inference=windows")
    assert Path(tmp_path / "model").is_dir()
