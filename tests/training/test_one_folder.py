"""Two trainings that write to one folder."""

import pytest
from runs import configure

from fgaseg.errors import TrainingError
from fgaseg.files import folder_lock
from fgaseg.training import train


def test_two_trainings_in_one_folder_are_one_too_many(data, tmp_path):
    config = configure(data, tmp_path / "out")
    with folder_lock(tmp_path / "out") as free:
        assert free
        with pytest.raises(TrainingError, match="another training writes there"):
            train(config, progress=False)
