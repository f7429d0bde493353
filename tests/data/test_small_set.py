"""A benchmark set of two drawn photos: prepared, opened, and refused where a part is missing."""

import errno
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image

from fgaseg.config import DataConfig
from fgaseg.data import preparation
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.checks import CheckReport, check, check_folders
from fgaseg.data.preparation import prepare, prepare_folders
from fgaseg.data.prepared_sets import open_set, open_set_in_folders
from fgaseg.data.set_files import SplitFiles
from fgaseg.errors import DataError

VALUES = np.arange(12 * 16).reshape(12, 16) % 151  # 0 is no class in ADE20K's files


@pytest.fixture
def files(tmp_path):
    files = SplitFiles(BENCHMARK_SETS["a150"], "val", tmp_path)
    for folder in (files.layout.images, files.layout.labels):
        (tmp_path / folder).mkdir(parents=True)
    for stem in ("ADE_val_00000001", "ADE_val_00000002"):
        Image.new("RGB", (16, 12)).save(tmp_path / files.layout.images / f"{stem}.jpg")
        Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / files.layout.labels / f"{stem}.png")
    return files


@pytest.fixture
def whole(files, monkeypatch):
    """As if the set had no more than those two."""
    small = replace(files.benchmark, splits={"val": replace(files.layout, count=2)})
    monkeypatch.setitem(BENCHMARK_SETS, "a150", small)
    return SplitFiles(small, "val", files.root)


@pytest.mark.filterwarnings("ignore:.*scores are not comparable")
def test_a_small_set_is_prepared_and_opened(files):
    with pytest.raises(DataError, match="the set is not prepared: run"):
        open_set("a150", files.root)
    (report,) = prepare(["a150"], files.root)
    assert (report.converted, report.already) == (2, 0)
    labels = [item["labels"].numpy() for item in open_set("a150", files.root)]
    assert len(labels) == 2 and all((one == np.where(VALUES, VALUES - 1, 255)).all() for one in labels)
    next((files.root / files.layout.prepared).glob("*")).unlink()
    with pytest.raises(DataError, match="1 of 2 labels are not prepared: run"):
        open_set("a150", files.root)


def test_what_is_missing_is_named(files, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        prepare(["a150"], tmp_path / "nowhere")
    (files.root / files.layout.images).rename(tmp_path / "photos")
    with pytest.raises(DataError, match="is missing; it comes from"):
        open_set("a150", files.root)


FIRST, SECOND = "ADE_val_00000001", "ADE_val_00000002"


def checked(files, **options):
    (report,) = check(["a150"], files.root, **options)
    return report


def test_a_check_counts_what_is_there_and_says_where_the_rest_comes_from(files):
    report = checked(files)
    assert (report.set, report.split, report.expected) == ("a150", "val", 2000)
    assert (report.photos, report.labels, report.pairs, report.prepared, report.empty) == (2, 2, 2, 0, 0)
    assert report.values == [0, 150] and report.state == "incomplete" and report.missing == []
    assert report.problems == {
        "count": [f"2 pairs, and the whole set has 2000; it comes from {files.layout.images_from}"]
    }
    assert checked(files, quick=True).values is None


def test_a_whole_set_is_to_be_prepared_and_then_ready(whole):
    assert checked(whole, quick=True).state == checked(whole).state == "not prepared"
    prepare(["a150"], whole.root)
    report = checked(whole)
    assert report.state == "ready" and report.problems == {} and report.prepared == 2
    shutil.rmtree(whole.root / whole.layout.labels)
    report = checked(whole)  # what was prepared is all that is needed
    assert (report.state, report.labels, report.pairs, report.values) == ("ready", 0, 2, [0, 255])
    (whole.root / whole.layout.prepared / f"{FIRST}.png").unlink()
    report = checked(whole)
    assert (report.state, report.pairs) == ("wrong", 1)
    assert report.problems["photos without labels (left out)"] == [FIRST]


def test_photos_and_labels_without_each_other_are_listed(whole):
    prepare(["a150"], whole.root)
    (whole.root / whole.layout.images / f"{FIRST}.jpg").unlink()
    report = checked(whole, quick=True)
    assert report.state == "wrong" and report.problems == {
        "labels without a photo (left out)": [FIRST],
        "count": [f"1 pairs, and the whole set has 2; it comes from {whole.layout.images_from}"],
        "prepared labels without a photo": [FIRST],
    }
    shutil.rmtree(whole.root / whole.layout.images)
    report = checked(whole, quick=True)
    assert report.missing == [f"{whole.layout.images}, from {whole.layout.images_from}"] and report.pairs == 0


def test_sets_that_are_not_there_are_absent_and_an_error_where_all_are(files, tmp_path):
    shutil.rmtree(files.root / files.layout.labels)
    with pytest.raises(DataError, match=rf"holds none of a150; needed: {files.layout.labels}, from ADEChallengeData20"):
        check(["a150"], files.root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds none of coco-stuff, a150, a847, .*; fgaseg data list shows which"):
        check([], tmp_path / "empty")
    with pytest.raises(DataError, match=r"holds none of pas20; needed: .*JPEGImages, from VOCtrainval_11.*; VOCdevkit"):
        check(["pas20"], tmp_path / "empty")
    for number in range(2):
        Image.new("L", (16, 12)).save(made(files.root / files.layout.labels / f"ADE_val_0000000{number + 1}.png"))
    reports = check(["pas20", "a150"], files.root)
    assert [report.state for report in reports] == ["absent", "incomplete"] and len(reports[0].missing) == 3


def made(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_a_photo_and_its_prepared_label_of_other_sizes_or_values_are_named(whole):
    prepare(["a150"], whole.root)
    label = whole.root / whole.layout.prepared / f"{SECOND}.png"
    photo = whole.root / whole.layout.images / f"{SECOND}.jpg"
    Image.fromarray(np.full((12, 15), 150, np.uint8)).save(label)
    problems = checked(whole).problems
    assert problems["sizes that differ"] == [f"{photo} is 16x12, {label} is 15x12"]
    assert problems["values that are not a class"] == [f"{label}: [150]"]
    assert any(kind.startswith("prepared labels that differ from their originals") for kind in problems)
    shutil.rmtree(whole.root / whole.layout.labels)
    report = checked(whole)
    assert report.values == [0, 255] and report.state == "wrong"
    assert report.problems.keys() == {"sizes that differ", "values that are not a class"}


def test_the_state_of_a_report():
    for problems, missing, unprepared, state in (
        ({}, [], False, "ready"), ({}, [], True, "not prepared"), ({}, ["photos"], True, "incomplete"),
        ({"count": ["1"]}, [], False, "incomplete"), ({"count": ["1"], "unreadable": ["x"]}, [], False, "wrong"),
    ):  # fmt: skip
        report = CheckReport("a150", "val", 2, problems=problems, missing=missing)
        report.conclude(unprepared)
        assert report.state == state


def test_own_folders_are_compared_with_the_size_of_a_set(whole):
    prepare(["a150"], whole.root)
    folders = whole.root / whole.layout.images, whole.root / whole.layout.prepared
    report = check_folders(*folders, set_name="a150")
    assert (report.set, report.split, report.expected, report.pairs, report.state) == ("a150", "val", 2, 2, "ready")
    assert (report.photos, report.labels, report.prepared, report.shares) == (2, 2, 2, {})
    (folders[0] / f"{SECOND}.jpg").unlink()
    report = check_folders(*folders, set_name="a150")
    assert report.problems["count"] == ["1 pairs, and the whole set has 2"] and report.state == "wrong"
    [left] = report.problems["left out"]
    assert SECOND in left


def test_nobody_sees_a_bar_who_did_not_ask_for_one(whole, tmp_path, monkeypatch):
    bars = []

    def track(items, title, total, *, shown=True, **options):
        bars.append((title, total, shown))
        yield from items

    monkeypatch.setattr("fgaseg.data.workers.track", track)
    config = DataConfig(
        images=whole.root / whole.layout.images, labels=whole.root / whole.layout.labels, label_map="a150"
    )
    for progress in ({}, {"progress": True}):
        prepare(["a150"], whole.root, **progress)
        check(["a150"], whole.root, **progress)
        check_folders(config.images, config.labels, label_map="a150", **progress)
        prepare_folders(config, tmp_path / "own", **progress)
    titles = [("preparing a150 val", 2), ("checking a150 val", 2), (f"checking {config.images}", 2),
              (f"preparing {config.images}", 2)]  # fmt: skip
    assert [bar[:2] for bar in bars[:4]] == titles and [shown for *_, shown in bars] == [False] * 4 + [True] * 4


def test_a_run_is_resumed_and_leaves_no_half_written_file(files):
    folder = files.root / files.layout.prepared
    made(folder / f".{FIRST}.png.abc.tmp").write_bytes(b"half")
    made(files.root / files.layout.images / "alone.jpg").write_bytes(b"")
    (report,) = prepare(["a150"], files.root)
    assert (report.set, report.split, report.converted, report.already, report.dropped) == ("a150", "val", 2, 0, 1)
    assert sorted(file.name for file in folder.iterdir()) == [f"{FIRST}.png", f"{SECOND}.png"]
    (folder / f"{FIRST}.png").unlink()
    (report,) = prepare(["a150"], files.root)
    assert (report.converted, report.already, report.empty, report.failed) == (1, 1, 0, {})
    shutil.rmtree(files.root / files.layout.labels)
    (report,) = prepare(["a150"], files.root)
    assert (report.converted, report.already, report.dropped) == (0, 2, 0)


@pytest.mark.parametrize("number, full", [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_full_disk_ends_the_run_and_other_errors_do_not(files, tmp_path, monkeypatch, number, full):
    def refuse(path, write):
        if path.suffix == ".png":
            raise OSError(number, "refused")

    monkeypatch.setattr(preparation, "atomic_write", refuse)
    config = DataConfig(images=files.root / files.layout.images, labels=files.root / files.layout.labels,
                        label_map="a150")  # fmt: skip
    for run, folder in ((lambda: prepare(["a150"], files.root)[0], files.root / files.layout.prepared),
                        (lambda: prepare_folders(config, tmp_path / "own"), tmp_path / "own")):  # fmt: skip
        if full:
            with pytest.raises(DataError, match=f"{folder}: .*refused. Free some space and run the same command again"):
                run()
        else:
            report = run()
            assert report.converted == 0 and all("refused" in text for text in report.failed.values())
            assert list(report.failed) == [FIRST, SECOND]


def test_originals_elsewhere_are_linked(files, tmp_path):
    photos, labels = files.root / files.layout.images, files.root / files.layout.labels
    out = tmp_path / "out"
    (report,) = prepare(["a150"], tmp_path / "no root", out=out, images=photos, labels=labels)
    assert report.converted == 2
    assert (out / files.layout.images).resolve() == photos and (out / files.layout.labels).resolve() == labels
    assert prepare(["a150"], tmp_path, out=out, images=photos, labels=labels)[0].already == 2
    with pytest.raises(DataError, match=r"nowhere: is missing: name the folder of a150's originals"):
        prepare(["a150"], tmp_path, out=tmp_path / "b", images=tmp_path / "nowhere", labels=labels)
    with pytest.raises(
        DataError, match=rf"{out / files.layout.images}: is in the way of a link to {labels}: remove it"
    ):
        prepare(["a150"], tmp_path, out=out, images=labels, labels=labels)
    with pytest.raises(DataError, match="images and labels are those of one set: give its name, and the split where"):
        prepare(["a150", "pas20"], tmp_path, images=photos, labels=labels)
    with pytest.raises(DataError, match="images and labels are those of one set"):
        prepare(["coco-stuff"], tmp_path, images=photos, labels=labels)
    with pytest.raises(DataError, match="no root: is missing"):
        prepare(["a150"], tmp_path / "no root", images=photos, labels=labels)


def test_splits_that_are_not_there_are_told_or_refused(files, tmp_path, recwarn):
    (tmp_path / "sets").mkdir()
    with pytest.raises(DataError, match="sets holds the labels of no benchmark set: fgaseg data list shows"):
        prepare([], tmp_path / "sets")
    assert [report.set for report in prepare([], files.root)] == ["a150"] and not recwarn.list
    with pytest.raises(
        DataError, match=r"pas20 val: cannot be prepared, missing: VOCdevkit/.*JPEGImages, from .*; VOCd"
    ):
        prepare(["a150", "pas20"], files.root)
    for folder in ("images", "annotations"):
        shutil.copytree(files.root / "ADEChallengeData2016" / folder / "validation",
                        files.root / "coco-stuff" / folder / "val2017")  # fmt: skip
    Image.new("L", (16, 12), 255).save(files.root / f"coco-stuff/annotations/val2017/{FIRST}.png")
    Image.new("L", (16, 12), 3).save(files.root / f"coco-stuff/annotations/val2017/{SECOND}.png")
    with pytest.warns(UserWarning, match="coco-stuff train: coco-stuff/annotations/train2017 is not there: left out"):
        (report,) = prepare(["coco-stuff"], files.root)
    assert (report.split, report.converted, report.empty) == ("val", 1, 1)
    assert (files.root / "coco-stuff/annotations_detectron2/val2017_empty.txt").read_text() == f"{FIRST}\n"


def test_labels_are_as_large_as_the_upright_photo(files):
    photo = files.root / files.layout.images / f"{FIRST}.jpg"
    for orientation, size, fits in ((6, (12, 16), True), (4, (16, 12), True), (6, (16, 12), False)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", size).save(photo, exif=exif)
        (report,) = prepare(["a150"], files.root)
        shutil.rmtree(files.root / files.layout.prepared)
        assert (FIRST not in report.failed) == fits
    assert report.failed[FIRST] == f"{photo} is 12x16, its labels are 16x12"


def test_prepared_files_are_written_as_the_protocol_writes_them(tmp_path):
    files = SplitFiles(BENCHMARK_SETS["a847"], "val", tmp_path)
    folder = tmp_path / files.layout.images
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (520, 600, 3), dtype=np.uint8))
    noise.save(made(folder / "a.jpg"), quality=95)
    coded = np.zeros((520, 600, 3), np.uint8)
    coded[..., 0], coded[..., 1] = 120, 84  # 12 * 256 + 84
    Image.fromarray(coded).save(folder / "a_seg.png")
    (report,) = prepare(["a847"], tmp_path)
    assert report.converted == 1
    with Image.open(tmp_path / files.layout.prepared / "a.tif") as label:
        assert (label.mode, label.size, label.info["compression"]) == ("I;16", (591, 512), "tiff_adobe_deflate")
        assert np.unique(np.asarray(label)).tolist() == [358]
    noise.save(tmp_path / "75.jpg", quality=75)
    with (
        Image.open(tmp_path / files.layout.prepared_images / "a.jpg") as photo,
        Image.open(tmp_path / "75.jpg") as same,
    ):
        assert photo.format == "JPEG" and photo.size == (591, 512) and photo.quantization == same.quantization
    (tmp_path / files.layout.prepared_images / "a.jpg").unlink()  # both are written again
    (report,) = prepare(["a847"], tmp_path)
    assert (report.converted, report.already) == (1, 0)


def test_prepared_photos_are_enough(tmp_path, monkeypatch):
    benchmark = BENCHMARK_SETS["a847"]
    small = replace(benchmark, splits={"val": replace(benchmark.splits["val"], count=1)})
    monkeypatch.setitem(BENCHMARK_SETS, "a847", small)
    files = SplitFiles(small, "val", tmp_path)
    folder = tmp_path / files.layout.images
    Image.new("RGB", (600, 520)).save(made(folder / "a.jpg"))
    Image.new("RGB", (600, 520)).save(folder / "a_seg.png")
    assert [report.state for report in check(["a847"], tmp_path)] == ["not prepared"]
    prepare(["a847"], tmp_path)
    (report,) = check(["a847"], tmp_path)
    assert (report.state, report.values, report.photos, report.prepared) == ("ready", [0, 0], 1, 1)
    shutil.rmtree(folder)
    (report,) = check(["a847"], tmp_path)
    assert (report.photos, report.labels, report.pairs, report.prepared) == (1, 0, 1, 1)
    (tmp_path / files.layout.prepared_images / "a.jpg").write_bytes(b"")
    (report,) = check(["a847"], tmp_path)
    [text] = report.problems["unreadable"]
    assert text.startswith(str(tmp_path / files.layout.prepared_images / "a.jpg"))


def test_an_empty_folder_of_labels_is_absent_too(files):
    for file in (files.root / files.layout.labels).iterdir():
        file.unlink()
    with pytest.raises(DataError, match=rf"needed: {files.layout.labels}, from ADEChallengeData2016.zip"):
        check(["a150"], files.root)


def test_photos_of_the_list_that_are_not_there(tmp_path):
    files = SplitFiles(BENCHMARK_SETS["pas20"], "val", tmp_path)
    for stem in "ab":
        Image.new("RGB", (4, 4)).save(made(tmp_path / files.layout.images / f"{stem}.jpg"))
        Image.new("L", (4, 4), 1).save(made(tmp_path / files.layout.labels / f"{stem}.png"))
    made(tmp_path / files.layout.stems).write_text("b\nc\nd\n")
    (report,) = check(["pas20"], tmp_path)
    assert report.problems == {
        "photos of the list that are not in VOCdevkit/VOC2012/JPEGImages": ["c", "d"],
        "count": [f"1 pairs, and the whole set has 1449; photos come from {files.layout.images_from}, labels from "
                  f"{files.layout.labels_from}"],
    }  # fmt: skip
    assert (report.state, report.photos, report.labels, report.values) == ("wrong", 1, 1, [1, 1])


def test_what_is_left_out_of_a_prepared_set_is_told(whole, tmp_path, recwarn):
    prepare(["a150"], whole.root)
    data = open_set("a150", whole.root)
    assert not recwarn.list and (data.name, len(data), data.augmentation, data.seed) == ("a150", 2, None, 0)
    folders = whole.root / whole.layout.images, whole.root / whole.layout.prepared
    other = open_set_in_folders("a150", *folders)
    assert not recwarn.list and [pair[0] for pair in other.pairs] == [pair[0] for pair in data.pairs] == [FIRST, SECOND]
    config = DataConfig(images=folders[0], labels=folders[1], label_map="a150", ignore=7, crop=8)
    trained = open_set("a150", whole.root, config=config, seed=4)
    assert (trained.augmentation.void, trained.augmentation.crop, trained.seed) == (255, 8, 4)
    (folders[0] / f"{SECOND}.jpg").rename(folders[0] / "z.jpg")
    with pytest.warns(UserWarning) as told:
        data = open_set("a150", whole.root)
        other = open_set_in_folders("a150", *folders)
    assert len(data) == len(other) == 1
    incomplete = "a150: 1 photos, and the whole set has 2: scores are not comparable"
    assert [str(one.message) for one in told] == [
        f"a150: 2 files without a partner left out: {SECOND}, z", incomplete,
        f"a150: 2 files left out, the first: {folders[1]}/{SECOND}.png: has no photo in {folders[0]}", incomplete,
    ]  # fmt: skip
    assert {one.filename for one in told} == {__file__}


def test_a_prepared_set_without_its_photos(whole):
    prepare(["a150"], whole.root)
    for photo in (whole.root / whole.layout.images).iterdir():
        photo.rename(photo.with_name(f"other_{photo.name}"))
    with pytest.raises(
        DataError, match=rf"a150: .*{whole.layout.images} has no photo for the labels in .*: run fgaseg d"
    ):
        open_set("a150", whole.root)
    shutil.rmtree(whole.root / whole.layout.images)
    with pytest.raises(DataError, match="a150: .* has no photo for the labels in"):
        open_set("a150", whole.root)
    shutil.rmtree(whole.root / whole.layout.prepared)
    with pytest.raises(
        DataError, match=rf"is missing; it comes from ADE.*fgaseg data check a150 --root {whole.root} shows"
    ):
        open_set("a150", whole.root)
