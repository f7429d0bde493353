"""Photos and labels: reading, data sets, drawn scenes, the benchmark sets, their preparation and checks.

images.py          opening and decoding photos            benchmark_sets.py  each set's folders, classes and labels
label_formats.py   one reader per format of labels        set_files.py       finding a set's files below a root
class_names.py     names files; what label values mean    preparation.py     published labels to prepared ones
datasets.py        photo/label pairs as items             checks.py          are files there, readable, consistent
augmentation.py    random scale, crop, flip, jitter       prepared_sets.py   a prepared set as a data set
folders.py         your own folders, paired by path       from_config.py     the data sets of a configuration
scenes.py          the drawn scenes of `fgaseg demo`      workers.py         many files in worker processes
"""

from .benchmark_sets import BENCHMARK_SETS
from .checks import CheckReport, check, check_folders
from .class_names import read_names
from .folders import FolderDataset
from .from_config import VALIDATION_SCENES, data_sets
from .images import CLIP_MEAN, CLIP_STD, ImageSource, read_image, to_pixels
from .preparation import PrepareReport, prepare
from .prepared_sets import open_set, open_set_in_folders
from .scenes import SEEN, UNSEEN, SceneDataset
from .set_files import SplitFiles, default_root

__all__ = [
    "BENCHMARK_SETS",
    "CLIP_MEAN",
    "CLIP_STD",
    "SEEN",
    "UNSEEN",
    "VALIDATION_SCENES",
    "CheckReport",
    "FolderDataset",
    "ImageSource",
    "PrepareReport",
    "SceneDataset",
    "SplitFiles",
    "check",
    "check_folders",
    "data_sets",
    "default_root",
    "open_set",
    "open_set_in_folders",
    "prepare",
    "read_image",
    "read_names",
    "to_pixels",
]
