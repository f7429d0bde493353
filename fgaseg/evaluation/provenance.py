"""Evaluation provenance: the record of everything that decides a figure, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import CLIP_NORMALIZATION
from ..environment import version
from ..inference import LONGEST, LONGEST_ASPECT, STRIDE, WINDOW, WINDOWS_SIZE
from ..model import FGASeg
from ..vocabulary import check_names

TRAINING_ONLY = ("preset", "checkpointing", "class_pooling", "t2p", "t2p_text", "t2p_kernel_size")
# what safetensors calls the types of tensors, in the order in which its files have them
TYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
         torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
ABSENT = {"lcs_padding": "zeros"}  # of a record with this value: the switch is younger than other records
RESOLVED_ELSEWHERE = ("pretrained", "name", "mean", "std", "dense")
# part of the record: a changed word changes every hash
METRICS = {
    "miou_gt": "mean IoU over the classes that occur in the ground truth",
    "miou_union": "mean IoU over the classes that occur in the ground truth or the prediction",
    "matrix": "one confusion matrix for the set; pixels ignored in the ground truth leave both axes",
    "prediction": "argmax of the scores after bilinear upsampling to the size of the labels",
}


def weights_hash(model: FGASeg) -> str:
    """SHA-256 of the model's weights as safetensors: for float32 weights, of the file that `save_pretrained` writes."""
    return state_hash(model.state_dict())


def state_hash(state_dict: Mapping[str, Tensor]) -> str:
    """`weights_hash` of a model with these weights. The file is hashed as it would be written, one tensor at a time."""
    order = list(TYPES)
    tensors = sorted(state_dict.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {}
    begin = 0
    for name, value in tensors:
        end = begin + value.numel() * value.element_size()
        header[name] = {"dtype": TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for _, value in tensors:
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def provenance(
    model: FGASeg, dataset: Any, name: str, count: int | None = None, weights: str | None = None
) -> dict[str, Any]:
    """Everything that decides a model's figures on a data set, except the samples themselves; JSON-able.

    name     of the data set
    count    number of images that are scored; None: all
    weights  `weights_hash(model)`, where it is known

    Call it inside the autocast that the evaluation runs in. Left out because they change no figure: threads that read
    ahead, number of processes, location of the files, the GPU's model, and switches that only training reads. A result
    adds the `samples_hash` of its scores, as "pictures" in "data"; `short_hash` of that is printed beside the figures.
    """
    config = {key: value for key, value in model.config.dump().items() if key not in TRAINING_ONLY}
    config = {key: value for key, value in config.items() if key not in ABSENT or value != ABSENT[key]}
    encoder = {key: value for key, value in config.pop("encoder").items() if key not in RESOLVED_ELSEWHERE}
    encoder |= _unlike_clip(model)
    template, synonyms = config.pop("template"), config.pop("synonyms")
    several = any(len(one.prompts) > 1 for one in check_names(dataset.names))
    return {
        "data": _data(dataset, name, count),
        "text": {
            "templates": [template] if isinstance(template, str) else template,
            "first_synonym": config.pop("first_synonym"),
            **({"synonyms": synonyms} if several else {}),
        },
        "input": _input(config.pop("inference"), config.pop("image_size"), config.pop("resize"), model.patch),
        "model": config | {"encoder": encoder, "loss": {"seg": config["loss"]["seg"]}},
        "weights": weights or weights_hash(model),
        "numerics": _numerics(model.mean.device.type, model.precision),
        "metrics": METRICS,
        "versions": {package: version(package) for package in ("fgaseg", "torch", "open_clip_torch")},
    }


def _unlike_clip(model: FGASeg) -> dict[str, Any]:
    """What the encoder decides where a configuration leaves it open, if it is not what CLIP's ViTs have always had."""
    found: dict[str, Any] = {} if model.encoder.dense in (None, "value") else {"dense": model.encoder.dense}
    if model.architecture is None:
        found["own"] = model.encoder.name
    if model.normalization != CLIP_NORMALIZATION:
        found["mean"], found["std"] = map(list, model.normalization)
    return found


def _data(dataset: Any, name: str, count: int | None) -> dict[str, Any]:
    names, class_of = list(dataset.names), getattr(dataset, "class_of", None)
    return {
        "set": name,
        "images": min(len(dataset), count or len(dataset)),
        "images_of_set": len(dataset),
        "prompts": len(names),
        "classes": len(getattr(dataset, "classes", names)),
        "names": _hash([names, class_of]),
        "ignore": getattr(dataset, "ignore", 255),
    }


def _input(inference: str, image_size: int, resize: str, patch: int) -> dict[str, Any]:
    if inference == "windows":
        view = {"view": image_size // patch * patch, "patch": patch}
        return {"inference": "windows", "side": WINDOWS_SIZE, "window": WINDOW, "stride": STRIDE,
                "longest": LONGEST, **view}  # fmt: skip
    scores = {"resize": "scores"} if resize == "scores" else {}
    return {"inference": "whole", "longest": LONGEST_ASPECT * image_size, "view": image_size, "patch": patch, **scores}


def _numerics(device: str, precision: str) -> dict[str, Any]:
    lower = {} if precision == "float32" else {"precision": precision}
    return {
        "device": device,
        "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "no",
        "float32_products": torch.get_float32_matmul_precision() if device == "cuda" else "highest",
        "tf32_convolutions": device == "cuda" and torch.backends.cudnn.allow_tf32,
        **lower,
    }


def short_hash(record: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that identify a record."""
    return _hash(record)[:8]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_state(dataset: Any) -> str:
    """Changes when a file of the data set does, and then an interrupted evaluation must not resume.

    From sizes and modification times of the files in `dataset.pairs`, not their location, and from the label map;
    without `pairs`, from the length alone.
    """
    pairs = getattr(dataset, "pairs", [])
    # labels are a file, or a part of a COCO file
    stats = [
        (stem, [file.stat() for file in (photo, *getattr(labels, "files", [labels]))]) for stem, photo, labels in pairs
    ]
    space = getattr(dataset, "label_space", None)
    meaning = space.fingerprint() if space is not None else None
    return _hash(
        [
            len(dataset),
            *([meaning] if meaning else []),
            [(stem, [(s.st_size, s.st_mtime_ns) for s in files]) for stem, files in stats],
        ]
    )


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Where two JSON-able values differ, as "key was x, now y"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        found = [differences(before.get(k), now.get(k), f"{key}.{k}" if key else k) for k in keys]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{key} was {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
