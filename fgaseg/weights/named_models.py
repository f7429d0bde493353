"""The models that have a name: where their weights are published, under which licence, and what is known of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import CheckpointError

NOT_RUN = (
    "loading is tested with made-up weights of this format and these shapes; the published file was never run here"
)


@dataclass(frozen=True)
class NamedModel:
    """Published weights. What is not known is empty or None.

    repo, repo_type  of the Hugging Face Hub
    file             the checkpoint in it, to be converted; empty: the repository's only one
    files            the files of which the first is fetched as it is, by `encoder.pretrained` of `config`
    config           for weights that are no checkpoint of this tree: the changes of the ModelConfig that uses them
    size             bytes
    sha256           the beginning of the checkpoint's SHA-256
    published        mIoU in percent by benchmark set, and where these figures are from
    """

    name: str
    description: str
    repo: str
    repo_type: str = "model"
    file: str = ""
    files: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    sha256: str = ""
    licence: str = "unknown"
    licence_id: str = ""  # as the hub's model cards name it
    trained_on: str = "unknown"
    base_model: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    published_in: str = ""
    verified: str = NOT_RUN

    @property
    def source(self) -> str:
        """Where the weights are, as `fgaseg.load` takes it too."""
        prefix = {"space": "spaces/"}.get(self.repo_type, "")
        return f"{prefix}{self.repo}/{self.file}" if self.file else f"{prefix}{self.repo}"

    def dump(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "files": list(self.files), "source": self.source}


BENCHMARKS = ("a847", "pc459", "a150", "pc59", "pas20", "pas20b")


def _figures(*percent: float) -> dict[str, float]:
    """By benchmark set, in their order; what the last sets would have may be missing."""
    return dict(zip(BENCHMARKS, percent, strict=False))


CAT_SEG: dict[str, Any] = {
    "repo": "hamacojr/CAT-Seg-weights",
    "repo_type": "space",
    "licence": "none stated for the weights (the Space names no licence; CAT-Seg's code is MIT)",
    "trained_on": "COCO-Stuff (118,287 images, 171 classes), on top of OpenAI's CLIP",
    "published_in": "the table of pretrained models in the README of github.com/cvlab-kaist/CAT-Seg",
}
PI_SEG: dict[str, Any] = {
    "licence": "Apache-2.0 (the repository of the weights; the code is MIT)",
    "licence_id": "apache-2.0",
    "verified": f"its file names are not known here: the repository's list of files is asked; {NOT_RUN}",
}
BASELINE = {"p2t_layers": 0, "lcs": False, "t2p": False, "propagation": False}
# qq: ClearCLIP's, published for weights that were not fine-tuned; the released head's rule, value, was trained with it
UNTRAINED = {"pretrained": "openai", "finetune": "none", "dense": "qq"}
OPENAI: dict[str, Any] = {
    "files": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "licence": "MIT (OpenAI's CLIP)",
    "licence_id": "mit",
    "trained_on": "OpenAI's 400 million pairs of image and text; nothing else",
    "verified": "fetching is tested with made-up weights of these shapes; the published ones were never run here",
}

MODELS: dict[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel(
            "cat-seg-b16",
            "CAT-Seg (CVPR 2024), CLIP ViT-B/16 at 384: FGAseg without P2Tformer, T2Ploss and LCS",
            file="model_base.pth",
            size=819_000_000,
            sha256="a201a50f",
            base_model="openai/clip-vit-base-patch16",
            published=_figures(12.0, 19.0, 31.8, 57.5, 94.6, 77.3),
            **CAT_SEG,
        ),
        NamedModel(
            "cat-seg-l14",
            "CAT-Seg (CVPR 2024), CLIP ViT-L/14 at 336: the better and slower of the two",
            file="model_large.pth",
            size=2_300_000_000,
            sha256="80722f4b",
            base_model="openai/clip-vit-large-patch14-336",
            published=_figures(16.0, 23.8, 37.9, 63.3, 97.0, 82.5),
            **CAT_SEG,
        ),
        NamedModel(
            "pi-seg-v1",
            "Pi-Seg for OVRSISBenchV1: remote sensing, CAT-Seg's tree trained with noise",
            "kkk2026/Pi-Seg_for_OVRSISBenchV1",
            trained_on="remote-sensing images (DLRSD or iSAID, by the file)",
            **PI_SEG,
        ),
        NamedModel(
            "pi-seg-v2",
            "Pi-Seg for OVRSISBenchV2: remote sensing, CAT-Seg's tree trained with noise",
            "kkk2026/Pi-Seg_for_OVRSISBenchV2",
            trained_on="OVRSIS95K (about 95,000 remote-sensing images, 35 classes)",
            **PI_SEG,
        ),
        NamedModel(
            "declip-eva-b16",
            "CAT-Seg on DeCLIP's EVA02-CLIP B/16 at 384: the best published figures at this size",
            "xiaomoguhzz/CATSeg_DeCLIP_EVA-B_DINOv2-B_csa_0.05_2.0",
            licence="none found, neither for the weights nor for the code",
            trained_on="COCO-Stuff (171 classes), on top of an EVA02-CLIP that DeCLIP trained on COCO's images",
            published=_figures(15.20, 21.47, 36.57, 60.89, 96.68),
            published_in="the README of the CAT-Seg branch of github.com/xiaomoguhz/DeCLIP, which says that the file "
            "was trained again after the first one was lost",
            verified="its file name is not known here: the repository's list of files is asked; of two public versions "
            f"of its dense features, that of its own branch is computed; {NOT_RUN}",
        ),
        NamedModel(
            "clip-b16",
            "no training: cosines of OpenAI's CLIP ViT-B/16, a baseline with coarse outlines",
            "timm/vit_base_patch16_clip_224.openai",
            config=BASELINE | {"encoder": {"name": "ViT-B-16"} | UNTRAINED},
            base_model="openai/clip-vit-base-patch16",
            **OPENAI,
        ),
        NamedModel(
            "clip-l14",
            "no training: cosines of OpenAI's CLIP ViT-L/14 at 336, a baseline with coarse outlines",
            "timm/vit_large_patch14_clip_336.openai",
            config=BASELINE | {"image_size": 336, "encoder": {"name": "ViT-L-14-336"} | UNTRAINED},
            base_model="openai/clip-vit-large-patch14-336",
            **OPENAI,
        ),
    )
}

# what people will try, and why it does not work
REFUSED = {
    "hamacojr/CAT-Seg": "is CAT-Seg of 2023, with a second image backbone (ResNet-101 or Swin) that this model does "
    "not have; use its successor, cat-seg-b16 or cat-seg-l14",
}


def find_named(name: str) -> NamedModel | None:
    """The model of a name; case does not matter, and _ and spaces are as good as -."""
    return MODELS.get(re.sub(r"[\s_]+", "-", name.strip().lower()))


def models_of(repo: str) -> list[NamedModel]:
    """The named models whose weights are in a repository ("owner/name", whatever its type and case)."""
    return [model for model in MODELS.values() if model.repo.lower() == repo.lower()]


def refuse_known(repo: str) -> None:
    """Raise CheckpointError, with the reason, for a repository that is known not to work."""
    for known, reason in REFUSED.items():
        if repo.lower() == known.lower():
            raise CheckpointError(f"{known} {reason}")


def name_hint(name: str) -> str:
    """What to say of a name that is not one: the nearest, or all."""
    near = difflib.get_close_matches(re.sub(r"[\s_]+", "-", name.lower()), MODELS, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known names are {', '.join(MODELS)}"
