"""Photos and labels: reading, folder data sets, drawn scenes, benchmark sets, preparation and checks."""

from .benchmark_sets import SETS, default_root, open_set, set_in_folders
from .class_names import read_names
from .folders import FolderDataset
from .images import CLIP_MEAN, CLIP_STD, ImageSource, read_image, to_pixels
from .preparation import check, check_folder, list_sets, list_table, prepare, print_checked, print_prepared
from .scenes import SEEN, UNSEEN, SceneDataset
from .selection import SCENES_SCORED, data_sets

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "SCENES_SCORED",
    "SEEN",
    "SETS",
    "UNSEEN",
    "FolderDataset",
    "ImageSource",
    "SceneDataset",
    "check",
    "check_folder",
    "data_sets",
    "default_root",
    "list_sets",
    "list_table",
    "open_set",
    "prepare",
    "print_checked",
    "print_prepared",
    "read_image",
    "read_names",
    "set_in_folders",
    "to_pixels",
]
