"""Photos and labels: reading, data sets, drawn scenes, the benchmark sets, their preparation and checks.

images.py          opening and decoding image files; the pixels that the network takes
rasters.py         TIFFs of any kind and 16-bit PNGs, of which Pillow keeps too little
samples.py         which bands are shown, and which values are black and white
addresses.py       images at web addresses
file_kinds.py      what files are that are no photos
label_formats.py   how labels are stored: a reader for every format
names_files.py     files of class names and label maps: a reader for every format
name_lines.py      the same line by line
class_tables.py    what such files say: names, values, colours, prompts
typed_names.py     class names as people type them
backgrounds.py     the prompts of a class for everything else
class_names.py     class names of a file; what the values in label images mean
label_maps.py      files that name the values or colours in label images, and presets of them
label_spaces.py    the same for a configuration's own folders, from names, label map, ignored values and COCO categories
coco.py            COCO annotations as labels
datasets.py        photo/label pairs as items for training and evaluation
augmentation.py    random scale, crop, flip and colour jitter
pairing.py         which photo and which labels belong together
folders.py         a user's own photos and labels as a data set
label_survey.py    what label files hold
label_suspicions.py  what looks wrong about it, why, and how it is cured
captions.py        captions of pictures, from their label maps
scenes.py          the drawn scenes of `fgaseg demo`
benchmark_sets.py  which folders and classes each benchmark set has, and what its labels mean
set_files.py       finding the files of a benchmark set below a root folder
preparation.py     `fgaseg data prepare`: published labels, and a user's own, to those that are scored
checks.py          `fgaseg data check`, and what training begins with: files that are missing, unreadable or wrong
prepared_sets.py   opening a prepared benchmark set
from_config.py     the data sets that a configuration names
workers.py         applying a function to many files, in worker processes or in threads that read ahead
"""

from .addresses import NamedBytes, is_address
from .backgrounds import stuff_names, with_background
from .benchmark_sets import BENCHMARK_SETS
from .captions import CaptionWriter, classes_in
from .checks import CheckReport, check, check_folders, check_labels
from .class_names import percent, read_classes, read_names
from .datasets import PairDataset
from .folders import FolderDataset
from .from_config import VALIDATION_SCENES, data_sets
from .images import (
    CLIP_MEAN,
    CLIP_NORMALIZATION,
    CLIP_STD,
    ImageSource,
    Normalization,
    georeferenced_size,
    pixel_limit,
    plain_suffix,
    read_image,
    to_pixels,
)
from .names_files import names_text
from .preparation import PrepareReport, prepare, prepare_folders
from .prepared_sets import open_set, open_set_in_folders
from .samples import Bands, ValueRange, View
from .scenes import SEEN, UNSEEN, SceneDataset
from .set_files import SplitFiles, default_root
from .typed_names import read_typed
from .workers import read_ahead

__all__ = [
    "BENCHMARK_SETS",
    "CLIP_MEAN",
    "CLIP_NORMALIZATION",
    "CLIP_STD",
    "SEEN",
    "UNSEEN",
    "VALIDATION_SCENES",
    "Bands",
    "CaptionWriter",
    "CheckReport",
    "FolderDataset",
    "ImageSource",
    "NamedBytes",
    "Normalization",
    "PairDataset",
    "PrepareReport",
    "SceneDataset",
    "SplitFiles",
    "ValueRange",
    "View",
    "check",
    "check_folders",
    "check_labels",
    "classes_in",
    "data_sets",
    "default_root",
    "georeferenced_size",
    "is_address",
    "names_text",
    "open_set",
    "open_set_in_folders",
    "percent",
    "pixel_limit",
    "plain_suffix",
    "prepare",
    "prepare_folders",
    "read_ahead",
    "read_classes",
    "read_image",
    "read_names",
    "read_typed",
    "stuff_names",
    "to_pixels",
    "with_background",
]
