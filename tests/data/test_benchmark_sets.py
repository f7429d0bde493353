"""The registry of benchmark sets: names, classes and prompts."""

import json
import pickle

import torch
from sample_data import SAMPLES, needs_samples

from fgaseg.data import set_files
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.set_files import SplitFiles


def test_names_classes_and_prompts():
    sizes = {name: (len(one.names), len(one.classes)) for name, one in BENCHMARK_SETS.items()}
    assert sizes == {"coco-stuff": (171, 171), "a150": (150, 150), "a847": (847, 847), "pc59": (59, 59),
                     "pc459": (459, 459), "pas20": (20, 20), "pas20b": (59, 21)}  # fmt: skip
    assert sum(", " in name for name in BENCHMARK_SETS["a847"].names) == 217
    assert BENCHMARK_SETS["pas20b"].label_space.class_of == [*range(20), *[20] * 39]
    assert BENCHMARK_SETS["pas20b"].classes[20] == "background"
    assert all(one.label_space.class_of is None for name, one in BENCHMARK_SETS.items() if name != "pas20b")


@needs_samples
def test_names_are_those_of_the_protocol_up_to_spaces_that_the_tokenizer_drops():
    import open_clip

    tokenize = open_clip.get_tokenizer("ViT-B-16")
    for one in BENCHMARK_SETS.values():
        published = json.loads((SAMPLES.parent / "classes" / one.names_file).read_text())
        assert one.names == [name.strip() for name in published]
    assert "bed" in BENCHMARK_SETS["a150"].names
    assert torch.equal(tokenize("A photo of a bed  in the scene"), tokenize("A photo of a bed in the scene"))


def test_sets_can_be_sent_to_another_process():
    for one in BENCHMARK_SETS.values():
        copy = pickle.loads(pickle.dumps(one))
        assert copy.names == one.names and (copy.table == one.table).all()


def test_labels_in_one_file_are_read_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(set_files, "read_run_lengths", lambda path: {path.name: "labels"})
    monkeypatch.setattr(SplitFiles, "_listed_ones", lambda self, found: found)
    files = SplitFiles(BENCHMARK_SETS["pc59"], "val", tmp_path)
    assert files.published_labels() == {}
    place = tmp_path / files.layout.labels
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    assert files.published_labels() == {"trainval_merged.json": "labels"}
