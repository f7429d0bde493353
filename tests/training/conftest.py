"""The data set and the uninterrupted run that the tests of training share."""

import numpy as np
import pytest
from PIL import Image
from runs import NAMES, PICTURES, configure, single_thread

from fgaseg.training import train


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder data set: noisy pictures of coloured stripes, most pixels of the first four ignored."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "names.txt").write_text("\n".join(NAMES))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(NAMES), 3))
    for index in range(PICTURES):
        labels = rng.integers(0, len(NAMES), 4).repeat(11)[None].repeat(40, 0)
        image = np.clip(colours[labels] + rng.normal(0, 20, (*labels.shape, 3)), 0, 255).astype(np.uint8)
        if index < 4:
            labels[: 36 - index] = 255
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


@pytest.fixture(scope="session")
def uninterrupted(data, tmp_path_factory):
    """The folder and the summary of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted")
    with single_thread():
        summary = train(configure(data, out), progress=False)
    return out, summary
