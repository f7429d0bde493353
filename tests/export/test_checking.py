"""Whether `check_export` says what a file of an export gets wrong."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from tiny import tiny_model

from fgaseg.errors import ExportError, UsageError
from fgaseg.export import check_export, checking, references, runtimes
from fgaseg.export.graphs import whole_part
from fgaseg.export.manifest import write_vocabulary
from fgaseg.export.references import Found, References, Sample

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the export with the ONNX files alone."""
    copied = tmp_path / "exported"
    shutil.copytree(exported, copied, ignore=shutil.ignore_patterns("*.xml", "*.bin", "*.pt2"))
    keep(copied, "onnx")
    return copied


def keep(folder, to, part=None):
    """Leave the files of one target, and of one part, in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items()
                         if entry["to"] == to and part in (None, entry["part"])}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage(path, change):
    """Change an ONNX file."""
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)


def test_every_file_passes(small, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "exported")
    rows = check_export(small, tmp_path / "exported", classes=[1, 3, 20])
    assert {(row["part"], row["runtime"]) for row in rows} == {
        (part, runtime) for part in ("image", "text", "head", "image+head")
        for runtime in ("onnxruntime", "openvino", "torch")
    }  # fmt: skip
    assert not [row for row in rows if row["failed"]]
    assert all(row["error"] < 1e-5 for row in rows)
    heads = [row for row in rows if row["part"] == "head" and row["runtime"] == "torch"]
    assert sorted((row["classes"], row["batch"], row["height"], row["width"]) for row in heads) == sorted(
        [(n, 1, *size) for n in (1, 3, 20) for size in ((64, 64), (64, 88), (92, 63))] + [(3, 2, 64, 64)]
    )
    assert all(row["labels_changed"] < 0.01 for row in heads)
    assert json.loads((tmp_path / "exported/manifest.json").read_text())["check"] == rows
    assert "check" not in json.loads((exported / "manifest.json").read_text())


def test_a_changed_weight_is_found(small, folder):
    keep(folder, "onnx", "head")

    def change(graph):
        weights = [one for one in graph.initializer if len(one.dims) > 1 and one.data_type == onnx.TensorProto.FLOAT]
        largest = max(weights, key=lambda one: onnx.numpy_helper.to_array(one).size)
        values = onnx.numpy_helper.to_array(largest).copy()
        values.flat[0] += 0.5
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))

    damage(folder / "head.onnx", change)
    rows = check_export(small, folder, classes=[3], sizes=1)
    assert [row["part"] for row in rows] == ["head", "head"]
    assert all(row["error"] > 1e-4 and "above 0.0001" in row["failed"] for row in rows)


def test_swapped_inputs_and_files_that_do_not_run_are_found(small, folder):
    def swap(graph):  # early and late have one shape
        for node in graph.node:
            names = {"early": "late", "late": "early"}
            node.input[:] = [names.get(name, name) for name in node.input]

    damage(folder / "head.onnx", swap)
    (folder / "text.onnx").write_bytes(b"no graph")
    rows = check_export(small, folder, classes=[3], sizes=1)
    by_part = {part: [row for row in rows if row["part"] == part] for part in ("image", "text", "head", "image+head")}
    assert all(row["error"] is None and row["failed"].startswith("text.onnx: ") for row in by_part["text"])
    assert all(row["error"] > 1e-3 and row["failed"] for row in by_part["head"] + by_part["image+head"])
    assert not any(row["failed"] for row in by_part["image"])


def test_a_head_that_fits_its_own_image_graph_only_is_seen_apart(small, folder):
    """The image graph is wrong, the head is right."""

    def change(graph):
        bias = next(one for one in graph.initializer if "conv1" in one.name or len(one.dims) == 4)
        values = onnx.numpy_helper.to_array(bias).copy() * 1.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    damage(folder / "image.onnx", change)
    rows = check_export(small, folder, classes=[3], sizes=1)
    failed = {row["part"] for row in rows if row["failed"]}
    assert failed == {"image", "image+head"}


def test_a_missing_program_is_one_line(small, folder, monkeypatch):
    keep(folder, "onnx", "text")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(runtimes.importlib, "import_module", missing)
    rows = check_export(small, folder)
    assert {row["failed"] for row in rows} == {"onnxruntime is not installed: pip install 'fgaseg[export]'"}
    for program in (runtimes.OnnxRuntime, runtimes.OpenVino):
        with pytest.raises(ExportError, match=f"{program.name} is not installed"):
            program()


def test_what_cannot_be_checked_is_refused(small, folder, tmp_path):
    with pytest.raises(UsageError, match=r"is no export: manifest\.json"):
        check_export(small, tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is of something else"):
        check_export(small, tmp_path)
    for classes in ([], [0], [3, 848]):
        with pytest.raises(UsageError, match="between 1 and 847"):
            check_export(small, folder, classes=classes)
    with pytest.raises(UsageError, match="give 1 to 3"):
        check_export(small, folder, sizes=4)


def test_a_head_that_does_not_fit_into_memory_is_not_run(small, folder, tmp_path, monkeypatch):
    keep(folder, "onnx", "head")
    monkeypatch.setattr(checking, "MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\n")
    rows = check_export(small, folder, classes=[1, 20], sizes=1)
    needed = 75 * 4 * 32 * 8 * 8 * 20
    assert needed > 2000 * 1024 > needed / 10
    assert [(row["classes"], row["batch"], bool(row["failed"])) for row in rows] == [
        (1, 1, False), (20, 1, True), (1, 2, False)]  # fmt: skip
    assert "not run: it takes about 0 GB of memory" in rows[1]["failed"]


@pytest.fixture(scope="module")
def capped():
    return tiny_model(class_cap=6)


def view_of(made, sample):
    """A case's comparison, and the model's own logits."""
    compare = made.case("head", "logits", sample).compare
    return compare, compare.args[1]


def test_other_classes_at_the_cap_are_counted_and_computed_alike(capped, tmp_path):
    with torch.inference_mode():
        made = References(capped, tmp_path)
        sample = Sample(20, 1, (64, 64))
        compare, exact = view_of(made, sample)
        view = compare.args[0]
        assert compare((exact,)) == Found(0.0, 0.0)
        own = made.chosen(exact)
        assert own.sum() == 6
        scores = capped.head.global_similarity(view.features.embedding, view.words.texts)[1].flatten(2).amax(-1)[0]
        last, next_best = scores.sort(descending=True).indices[5:7].tolist()
        other = own.clone()
        other[0, last], other[0, next_best] = False, True
        logits = made.logits(view, references.Chosen(other))
        found = compare((logits,))
        assert (found.error, found.classes_differ) == (0.0, 2)
        assert found.gap == pytest.approx(float(scores[last] - scores[next_best]))
        assert found.labels_changed == float((made.labels(logits, view) != made.labels(exact, view)).double().mean())
        assert (exact[other & own] - logits[other & own]).abs().max() > 0  # what a common comparison would call wrong
        assert "S_g" in checking.verdict(dataclasses.replace(found, gap=2e-5), "float32")["failed"]
        assert not checking.verdict(dataclasses.replace(found, gap=2e-5), "float16")["failed"]
        assert not checking.verdict(dataclasses.replace(found, gap=2e-6), "float32")["failed"]


def test_dropped_classes_do_not_count_as_large_values(tmp_path):
    """The released fast mode gives scores, 0 for what it drops, and leaves -100 for what the cap drops."""
    model = tiny_model(preset="released", fast=True, class_cap=6, pad_classes=8, top_k=1, loss={"aux_heads": 1})
    with torch.inference_mode():
        made = References(model, tmp_path)
        compare, exact = view_of(made, Sample(20, 1, (64, 64)))
        assert set(exact.unique()[:2].tolist()) >= {-100.0}
        assert 1 <= made.chosen(exact).sum() <= 6
        assert compare((torch.where(exact > 0, exact + 0.01, exact),)).error == pytest.approx(
            0.01 / float(exact.max()), rel=1e-4
        )


def test_values_that_are_not_finite_fail_in_every_precision(capped, tmp_path):
    with torch.inference_mode():
        compare, exact = view_of(References(capped, tmp_path), Sample(3, 1, (64, 64)))
        for value in (float("nan"), float("inf")):
            wrong = exact.clone()
            wrong[0, 0, 0, 0] = value
            found = checking.verdict(compare((wrong,)), "float16")
            assert (found["error"], found["failed"]) == (None, "its values are not finite")
        short = checking.verdict(compare((exact[:, :2],)), "float16")
        assert short["failed"] == "an output is [1, 2, 32, 32] where the model's is [1, 3, 32, 32]"


def test_labels_alone_have_a_bound():
    assert checking.verdict(Found(None, 0.006), "float32")["failed"] == "0.6% of the labels differ, more than 0.5%"
    assert checking.verdict(Found(None, 0.004), "float32")["failed"] == ""
    assert checking.verdict(Found(1e-3, 0.0), "int8")["failed"] == ""
    assert checking.verdict(Found(1e-3, 0.0), "float32")["failed"] == "the error 1.0e-03 is above 0.0001"


@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("size", [(64, 64), (62, 87)])
def test_the_whole_graph_is_compared_with_the_model(tmp_path, output, size):
    """With classes built in, of which some have several prompts and two are equal."""
    model = tiny_model(class_cap=6, resize="scores" if output == "labels" else "logits")
    vocabulary = model.encode(["cat", "car | van", "dog", "cat "])
    assert model.first_of_equals(vocabulary) == [0, 1, 2, 0]
    write_vocabulary(vocabulary, model.first_of_equals(vocabulary), tmp_path)
    with torch.inference_mode():
        case = References(model, tmp_path).case("whole", output, Sample(None, 2, size))
        outputs = whole_part(model, vocabulary, output).module(*case.inputs)
        found = checking.verdict(case.compare((outputs,)), "float32")
        assert not found["failed"]
        assert found["labels_changed"] == 0
        assert found["error"] is None if output == "labels" else found["error"] < 1e-5
        broken = outputs.roll(1, dims=2) if outputs.is_floating_point() else outputs.roll(9, dims=1)
        assert checking.verdict(case.compare((broken,)), "float32")["failed"]


def test_what_the_model_gives_is_what_segment_gives(small, tmp_path):
    """Labels of whole patches are those of `FGASeg.segment` for a photo of that size."""
    with torch.inference_mode():
        made = References(copy.deepcopy(small), tmp_path)
        sample = Sample(20, 1, (64, 88))
        compare, exact = view_of(made, sample)
        photo = (made.image(sample)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        expected = small.predict_labels(photo, small.encode(made.names[:20]))
        assert torch.equal(made.labels(exact, compare.args[0])[0], expected)
