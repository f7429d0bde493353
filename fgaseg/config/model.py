"""The `model` section: what decides what the network computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .architecture import check_architecture
from .reading import read_yaml
from .section import Section, is_saved

# open_clip's ViTs with OpenAI's weights; the list is here because a configuration is read without open_clip
OPENAI_NAMES: tuple[str, ...] = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
OPENAI_NAMES += tuple(f"{name}-quickgelu" for name in OPENAI_NAMES)
RELEASED_LOSS: dict[str, Any] = {"seg": "bce", "align": "bce", "aux_heads": 3}


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd (1, 3, 5, ...), so that a kernel has a centre; got {value}")
    return value


def _templates(templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
    several = [templates] if isinstance(templates, str) else templates
    if not several or len(several) > 1000:
        raise ValueError(f"must be a template or a list of 1 to 1000 of them; got {len(several) or 'none'}")
    for template in several:
        if len(template) > 1000:
            raise ValueError(f"must have 1000 characters at most; got {len(template)}")
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(f"must contain {{}} exactly once, where the class name goes; got {template!r}")
    return templates


def _by_preset(paper: Any, released: Any) -> Any:
    """A field whose default depends on the preset. Pydantic computes it from the fields above it, before validation."""
    return Field(default_factory=lambda above: released if above.get("preset") == "released" else paper)


def _default_top_k(above: dict[str, Any]) -> int | None:
    if not above.get("fast"):
        return None
    return 16 if above.get("preset") == "released" else 8


def _default_pretrained(above: dict[str, Any]) -> str | None:
    if above.get("architecture") is not None:
        return None
    return "openai" if above.get("name") in OPENAI_NAMES else "auto"


def _positive(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(values) <= 0:
        raise ValueError(f"must be positive; got {list(values)}")
    return values


def _read_weights(value: Any, info: ValidationInfo) -> Any:
    """A file as what is written in it, so that a saved configuration depends on no file, and can name none."""
    if isinstance(value, str | Path) and not is_saved(info):
        value = read_yaml(Path(value), "class names with their weights (car: 2.0)")
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{wrong[0]!r} is no class name: write it in quotes")
    return value


# bounds far above what anybody trains, since a saved model's configuration need not be trusted
Layers = Annotated[int, Field(ge=0, le=64)]
Channels = Annotated[int, Field(ge=1, le=8192)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Side = Annotated[int, Field(ge=1, le=1024)]  # of a window or a pool, in tokens
Classes = Annotated[int, Field(ge=1, le=2**20)]
OddInt = Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)]
Colour = tuple[float, float, float]


class EncoderConfig(Section):
    """The image and text towers (open_clip's, or your own). A plain string is short for {name: ...}."""

    name: str = "ViT-B-16"
    """open_clip model name, or that of a registered encoder; only a label when `architecture` is given."""
    architecture: Annotated[dict[str, Any], AfterValidator(check_architecture)] | None = None
    """An open_clip model configuration, inline: embed_dim, vision_cfg, text_cfg; null: that of `name`."""
    pretrained: str | None = Field(default_factory=_default_pretrained)
    """An open_clip tag, a local file, or a saved fgaseg model, whose encoder is taken; null: random weights; auto:
    openai where `name` has that tag, else its only tag. Default: auto, with `architecture` null."""
    quick_gelu: bool | None = None
    """Use QuickGELU, which OpenAI's weights need; null: as open_clip's model or tag says."""
    mean: Colour | None = None
    """Mean of RGB in 0..1 by which pixels are normalised; null: as the weights' tag or the family says."""
    std: Annotated[Colour, AfterValidator(_positive)] | None = None
    """Standard deviation, likewise."""
    dense: Literal["value", "qq", "csa"] | None = None
    """Dense features from the last attention, of the last block or the pooling head: its value path (value), or
    self-correlation of its q (qq), or of its q and of its k (csa); null: csa for EVA, else value."""
    guidance_blocks: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """The two visual blocks (0-based) whose outputs guide aggregation and decoder; null: after each of the first two
    thirds, (3, 7) of 12 and (7, 15) of 24."""
    finetune: Literal["attention", "prompt", "full", "none", "scratch"] = "attention"
    """Which parameters of the encoder train (Table VII): the q and v of attention, prompt tokens, all blocks, none, or
    (scratch) everything."""
    prompt_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    """Learned tokens per visual block, with finetune: prompt."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.guidance_blocks is not None and self.guidance_blocks[0] >= self.guidance_blocks[1]:
            raise ValueError(f"guidance_blocks: two ascending indices are needed; got {list(self.guidance_blocks)}")
        return self


class LossConfig(Section):
    """L = L_seg + lambda_align L_align + lambda_aux L_aux (eq. 11-13). In brackets: the defaults of preset released."""

    seg: Literal["ce", "bce"] = "ce"
    """ce: cross-entropy over classes, ignored pixels left out; bce: binary cross-entropy, for which ignored pixels are
    negatives (released: bce)."""
    align: Literal["mse", "bce"] = "mse"
    """Loss of the T2P branch (eq. 8) (released: bce)."""
    align_reduction: Literal["mean", "sum"] = "mean"
    """sum: literally as in eq. 8, per image."""
    aux_heads: Annotated[int, Field(ge=0, le=3)] = 1
    """With fast: how many of the three auxiliary heads are trained (released: 3)."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """ce: a pixel of a class with n pixels has the weight n ** -class_balance."""
    class_weights: Annotated[dict[str, NonNegativeFloat] | None, BeforeValidator(_read_weights)] = None
    """Weights of classes in L_seg, {name: weight}, or a YAML or JSON file of them; 1 where none is given. ce: of a
    pixel of that class; bce: of a positive (torch's pos_weight)."""
    lambda_align: NonNegativeFloat = 0.02
    """Weight of L_align; 0: not computed."""
    lambda_aux: NonNegativeFloat = 0.2
    """Weight of the first auxiliary head's loss."""


class ModelConfig(Section):
    """Everything that decides what the network computes, except its weights. Saved beside the weights."""

    preset: Literal["paper", "released"] = "paper"
    """Defaults of all fields here: the paper's, or the released code's."""
    encoder: EncoderConfig = EncoderConfig()
    """The image and text towers."""
    image_size: Annotated[int, Field(ge=1, le=8192)] = 384
    """Inference resizes a photo's short side (whole) or each window (windows) to this many pixels."""
    template: Annotated[str | tuple[str, ...], AfterValidator(_templates)] = _by_preset(
        "a photo of a {}", "A photo of a {} in the scene"
    )
    """Text around a class name; the embeddings of several templates are averaged."""
    first_synonym: bool = _by_preset(False, True)
    """Embed the first synonym of a class name only: "sofa, couch" as "sofa"."""
    synonyms: Literal["best", "average"] = "best"
    """Several prompts of one class ("car | automobile | van"): the largest of their logits counts, or their embeddings
    are averaged."""

    # pixel-level alignment (section III-B)
    p2t_layers: Layers = 1
    """Depth of P2Tformer; 0: off."""
    p2t_heads: Heads = 8
    """Attention heads of P2Tformer."""
    p2t_value_positions: bool = _by_preset(True, False)
    """Position embeddings on keys and values (eq. 5); false: on the keys only."""
    gamma: float = 0.1
    """Initial value of gamma (eq. 6)."""
    gamma_trainable: bool = True
    """Whether gamma trains."""
    t2p: bool = True
    """The T2P branch, which L_align trains (eq. 7-8)."""
    t2p_text: Literal["aligned", "text"] = "aligned"
    """Text input of the T2P branch: V_emb (Fig. 3) or V_T (eq. 7)."""
    t2p_kernel_size: OddInt | None = _by_preset(None, 3)
    """Kernel size of the T2P branch; null: `kernel_size`."""

    # category supplementation (section III-C)
    lcs: bool = True
    """The local cost supplement S_l."""
    kernel_size: OddInt = 3
    """K, the side of the text-conditioned kernels."""
    kernel_norm: Literal["taps", "channels", "none", "cosine"] = "taps"
    """Softmax of the kernels: over the taps of each channel, over the channels at each tap, or none; cosine: over the
    taps, and channel c of a class is weighted by the text's value t_c, as in S_g."""
    lcs_padding: Literal["zeros", "replicate"] = "zeros"
    """What the kernels see beyond the border of the image: zeros, or its nearest patch."""
    fusion: Literal["cat", "add"] = "cat"
    """How S_g and S_l are combined: concatenated, or added."""
    propagation: bool = True
    """Aggregation and decoder; false: the logits are S_g / 0.07 alone, the baseline."""

    # class selection (section III-D, Fig. 5)
    fast: bool = False
    """Drop classes on the way through the decoder, by the scores of the auxiliary heads."""
    top_k: Classes | None = Field(default_factory=_default_top_k)
    """Classes kept per pixel; null: all. Default with fast: 8 (released: 16)."""
    topk_union: Literal["image", "batch"] = _by_preset("image", "batch")
    """Keep the classes that any pixel of an image, or of the batch, keeps."""
    released_fast_scores: bool = Field(
        default_factory=lambda above: above.get("preset") == "released" and bool(above.get("fast"))
    )
    """With fast: the decoder ends in a sigmoid, and dropped classes score 0 (released: true)."""
    class_cap: Classes | None = _by_preset(None, 256)
    """Only the so many classes with the largest S_g enter aggregation; null: all."""
    pad_classes: Annotated[int, Field(ge=0, le=65536)] = _by_preset(0, 256)
    """Class attention over fewer classes than this is padded with a learned token; 0: no padding."""

    # aggregation and decoder
    hidden: Channels = 128
    """Channels of a class map in aggregation."""
    heads: Heads = 4
    """Attention heads of aggregation."""
    aggregation_layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Layers of spatial and class attention."""
    window: Side = 12
    """Side of an attention window, in tokens."""
    class_pooling: Side = 2
    """Pooling before class attention, in training."""
    class_pooling_eval: Side = 1
    """Pooling before class attention, in evaluation."""
    guidance_channels: tuple[Channels, Channels] = (256, 128)
    """Channels of the upsampled image guidance of the two decoder stages."""
    guidance_hidden: tuple[Channels, Channels] = (32, 16)
    """Channels of the image guidance that enters the two decoder stages."""
    decoder_channels: tuple[Channels, Channels] = (64, 32)
    """Channels of the two decoder stages."""
    inference: Literal["whole", "windows"] = _by_preset("whole", "windows")
    """Segment the photo as a whole, or as the released evaluation: four overlapping windows and the whole, averaged."""
    resize: Literal["logits", "scores"] = _by_preset("logits", "scores")
    """What a photo seen whole is labelled by: logits resized to its size, or scores (sigmoid, or softmax) resized to
    it, as the released code does. Windows are averaged as scores either way."""
    class_maps_budget: NonNegativeFloat | None = None
    """Limit of the memory for class maps in inference, in MB per image; beyond it, maps are computed again instead of
    kept. null: no limit."""
    checkpointing: bool = False
    """In training, compute aggregation and decoder again in the backward pass, to save memory."""
    loss: LossConfig = LossConfig()
    """The training loss."""

    @field_validator("loss", mode="after")
    @classmethod
    def _loss_of_preset(cls, loss: LossConfig, info: ValidationInfo) -> LossConfig:
        if info.data.get("preset") != "released":
            return loss
        given = loss.model_dump(exclude_unset=True)
        return LossConfig.model_construct(_fields_set=set(given), **(RELEASED_LOSS | given))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.propagation and (self.lcs or self.t2p or self.fast):
            raise ValueError(
                "propagation: false leaves the cosine maps alone; it needs lcs, t2p and fast to be false too"
            )
        if self.top_k is not None and not self.fast:
            raise ValueError(f"top_k: {self.top_k} needs fast: true (only fast mode has the heads that choose classes)")
        if self.fast and not self.loss.aux_heads:
            raise ValueError("loss.aux_heads: 0 leaves fast mode without a head to choose classes by; give 1 to 3")
        if self.class_maps_budget is not None and self.fast:
            raise ValueError("class_maps_budget: fast mode chooses among the maps of all classes; give fast: false")
        if self.released_fast_scores and not self.fast:
            raise ValueError("released_fast_scores: needs fast: true")
        if self.hidden % self.heads:
            raise ValueError(f"heads: hidden ({self.hidden}) must be divisible by heads; got {self.heads}")
        if any(channels % 16 for channels in self.decoder_channels):
            raise ValueError(
                f"decoder_channels: multiples of 16 are needed (GroupNorm); got {list(self.decoder_channels)}"
            )
        for stage, width in enumerate((self.hidden, self.decoder_channels[0])):
            if self.guidance_hidden[stage] >= width:
                raise ValueError(
                    f"guidance_hidden: value {stage + 1} must be smaller than the {width} channels that enter decoder "
                    f"stage {stage + 1}; got {self.guidance_hidden[stage]}"
                )
        return self
