"""A benchmark set of two drawn photos: prepared, opened, and refused where a part is missing."""

import numpy as np
import pytest
from PIL import Image

from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.preparation import prepare
from fgaseg.data.prepared_sets import open_set
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
