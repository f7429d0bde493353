"""Typed configuration: a YAML file plus dotted overrides, checked before anything is computed.

Defaults are the `paper` preset. `preset: released` changes defaults only, so a key that is written down always wins.
Relative paths are relative to the working directory. Objects are immutable; `Config.override` makes a changed copy.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .errors import ConfigError
from .files import atomic_write


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd (1, 3, 5, ...), so that a kernel has a centre; got {value}")
    return value


def _class_name_once(templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for template in [templates] if isinstance(templates, str) else templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(f"must contain {{}} exactly once, where the class name goes; got {template!r}")
    if not templates:
        raise ValueError("must be a template or a list of them; got none")
    return templates


OddInt = Annotated[PositiveInt, AfterValidator(_odd)]


class _Section(BaseModel):
    """What all sections share: unknown keys are errors, no assignment after construction, NaN is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def dump(self) -> dict[str, Any]:
        """Every key with its value, the preset's choices included, as plain JSON/YAML types."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The text `from_json` reads back to an equal object."""
        return json.dumps(self.dump(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read what `to_json` wrote. `source` (a file name) is what an error will name. Raises ConfigError."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{source}: not valid JSON: {error}") from None
        return _validate(cls, data, source)

    def override(self, overrides: list[str]) -> Self:
        """A copy with dotted keys changed, e.g. Config: ["train.steps=100", "model.fusion=add"]. Raises ConfigError.

        What was not written down before still follows the preset: overriding the preset moves those keys.
        """
        data = self.model_dump(mode="json", exclude_unset=True)
        return _validate(type(self), data, type(self).__name__, _apply_overrides(data, overrides))


class EncoderConfig(_Section):
    """The CLIP image and text towers (open_clip)."""

    name: str = "ViT-B-16"  # open_clip model name; only a label when `architecture` is given
    # an open_clip tag, a local file, or an fgaseg model (its encoder); None: random (the default with `architecture`)
    pretrained: str | None = "openai"
    quick_gelu: bool | None = None  # OpenAI's weights need it; None: as open_clip's model or tag says
    architecture: dict[str, Any] | None = None  # an open_clip model config, inline: embed_dim, vision_cfg, text_cfg
    guidance_blocks: tuple[NonNegativeInt, NonNegativeInt] | None = None  # None: (3, 7) of 12, (7, 15) of 24, thirds
    finetune: Literal["attention", "prompt", "full", "none", "scratch"] = "attention"  # Table VII; scratch: all of CLIP
    prompt_tokens: PositiveInt = 16  # per visual block, finetune="prompt" only

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.architecture is not None:
            missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in self.architecture]
            if missing:
                raise ValueError(f"architecture: an open_clip model config is needed; missing {', '.join(missing)}")
            if "pretrained" not in self.model_fields_set:
                self.__dict__["pretrained"] = None
        if self.guidance_blocks is not None and self.guidance_blocks[0] >= self.guidance_blocks[1]:
            raise ValueError(f"guidance_blocks: two ascending indices are needed; got {list(self.guidance_blocks)}")
        return self


class LossConfig(_Section):
    """L = L_seg + lambda_align L_align + lambda_aux L_aux (eq. 11-13)."""

    seg: Literal["ce", "bce"] = "ce"  # ce: over classes, ignored pixels left out; bce: ignored pixels are negatives
    align: Literal["mse", "bce"] = "mse"  # T2Ploss (eq. 8)
    align_reduction: Literal["mean", "sum"] = "mean"  # sum: eq. 8 to the letter, per image
    aux_heads: Annotated[int, Field(ge=0, le=3)] = 1  # fast mode: how many of the three heads are trained
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0  # ce: a class of n pixels weighs n^-this per pixel
    lambda_align: NonNegativeFloat = 0.02
    lambda_aux: NonNegativeFloat = 0.2


class ModelConfig(_Section):
    """Everything that decides what the network computes, except its weights. Stored beside the weights."""

    preset: Literal["paper", "released"] = "paper"
    encoder: EncoderConfig = EncoderConfig()
    image_size: PositiveInt = 384  # what inference resizes a photo to: its short side (whole) or each window
    # several templates: their embeddings are averaged
    template: Annotated[str | tuple[str, ...], AfterValidator(_class_name_once)] = "a photo of a {}"
    first_synonym: bool = False  # "sofa, couch" -> "sofa"
    # pixel-level alignment (section III-B)
    p2t_layers: NonNegativeInt = 1  # depth of P2Tformer; 0: off
    p2t_heads: PositiveInt = 8
    p2t_value_positions: bool = True  # eq. 5: positions on keys and values; False: on the keys only
    gamma: float = 0.1  # eq. 6, initial value
    gamma_trainable: bool = True
    t2p: bool = True  # T2Ploss (eq. 7-8)
    t2p_text: Literal["aligned", "text"] = "aligned"  # V_emb (Fig. 3) or V_T (eq. 7)
    t2p_kernel_size: OddInt | None = None  # None: kernel_size
    # category supplementation (section III-C)
    lcs: bool = True
    kernel_size: OddInt = 3
    kernel_norm: Literal["taps", "channels", "none"] = "taps"
    fusion: Literal["cat", "add"] = "cat"
    propagation: bool = True  # False: logits are S_g / 0.07 alone, the baseline without aggregation and decoder
    # class selection (section III-D, Fig. 5)
    fast: bool = False
    top_k: PositiveInt | None = None  # classes kept per pixel; None: all. Default in fast mode: 8 (released: 16)
    topk_union: Literal["image", "batch"] = "image"
    released_fast_scores: bool = False  # sigmoid inside the decoder, dropped classes at 0
    class_cap: PositiveInt | None = None
    pad_classes: NonNegativeInt = 0
    # aggregation and decoder
    hidden: PositiveInt = 128
    heads: PositiveInt = 4
    aggregation_layers: PositiveInt = 2
    window: PositiveInt = 12
    class_pooling: PositiveInt = 2  # pooling before class attention while training
    class_pooling_eval: PositiveInt = 1
    guidance_channels: tuple[PositiveInt, PositiveInt] = (256, 128)
    guidance_hidden: tuple[PositiveInt, PositiveInt] = (32, 16)
    decoder_channels: tuple[PositiveInt, PositiveInt] = (64, 32)
    inference: Literal["whole", "windows"] = "whole"
    # MB an image, for `segment`, `stream` and a forward of one image without gradients: beyond, maps are made again
    class_maps_budget: NonNegativeFloat | None = None
    checkpointing: bool = False  # in training, aggregation and decoder are computed again for the backward pass
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _preset_then_check(self) -> Self:
        released = self.preset == "released"
        defaults: dict[str, Any] = {}
        if released:
            defaults = {
                "template": "A photo of a {} in the scene",
                "first_synonym": True,
                "p2t_value_positions": False,
                "t2p_kernel_size": 3,
                "topk_union": "batch",
                "released_fast_scores": self.fast,
                "class_cap": 256,
                "pad_classes": 256,
                "inference": "windows",
            }
            given = self.loss.model_dump(exclude_unset=True)
            # a new object: the default LossConfig is shared between models
            loss = LossConfig(**{"seg": "bce", "align": "bce", "aux_heads": 3, **given})
            loss.__pydantic_fields_set__.intersection_update(given)
            self.__dict__["loss"] = loss
        if self.fast:
            defaults["top_k"] = 16 if released else 8
        for key, value in defaults.items():
            if key not in self.model_fields_set:
                self.__dict__[key] = value  # not an assignment: model_fields_set keeps only what was written down
        self._check()
        return self

    def _check(self) -> None:
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


class DataConfig(_Section):
    """A data set: a folder of photos, a folder of label PNGs, a names file; a benchmark set that `fgaseg data prepare`
    made ready; or procedurally drawn scenes."""

    images: Path | None = None
    labels: Path | None = None  # pixel value = index into names; pairs are the intersection of file stems
    names: Path | None = None  # one name a line, or a JSON list
    train_list: Path | None = None  # file of stems or file names, one a line; None: every pair
    val_list: Path | None = None
    val_images: Path | None = None  # None: the same folder as images
    val_labels: Path | None = None
    set: Literal["coco-stuff", "a150"] | None = None  # train on this set's training split (the paper: coco-stuff)
    val_set: Literal["coco-stuff", "a150", "a847", "pc59", "pc459", "pas20", "pas20b"] | None = None  # evaluate on it
    root: Path | None = None  # where the benchmark sets are; None: $DETECTRON2_DATASETS, or ./datasets
    val_count: PositiveInt | None = None  # evaluate on the first so many only; None: all (scenes: 100)
    ignore: Annotated[int, Field(ge=0, le=65535)] = 255  # label value that is neither trained on nor scored
    crop: PositiveInt = 384  # training crop, and the size of a scene
    short_edge: PositiveInt | None = None  # resize the short edge to this before the random scale; None: to crop
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # random scale, uniform in this range
    flip: bool = True
    color_jitter: bool = True
    workers: NonNegativeInt = 0  # loader processes per training process; never changes results
    scenes: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: smallest first is needed, e.g. [0.5, 2.0]; got {list(self.scale)}")
        if self.set and (self.images or self.scenes):
            raise ValueError(
                f"set: {self.set} and {'images' if self.images else 'scenes'} are two training sets: give one"
            )
        if self.set and self.ignore != 255:
            raise ValueError(f"ignore: {self.set} ignores label 255; got {self.ignore}")
        return self


def _yaml_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare no as false


class TrainConfig(_Section):
    """The training recipe. Defaults are the paper's (protocol: 80,000 steps, total batch 8)."""

    out: Path = Path("runs/fgaseg")  # checkpoints, TensorBoard, summary.json and the final model
    # start from these weights, a saved model's or CAT-Seg's (what it lacks starts fresh); None: from the encoder alone
    init: Path | None = None
    steps: PositiveInt = 80_000
    batch: PositiveInt = 8  # total over all processes and micro-batches
    # micro-batches that a process takes one after the other in a step; only BatchNorm (T2P) tells them from one batch
    accumulate: PositiveInt = 1
    lr: PositiveFloat = 2e-4
    encoder_lr_factor: NonNegativeFloat = 0.01  # CLIP parameters train at lr times this
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = 0.01  # gradient norm over the whole model; None: no clipping
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: to 0 at the last step
    warmup: NonNegativeInt = 0  # steps of linear warm-up
    amp: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_yaml_no)] = "no"
    # FSDP: each process keeps a part of CLIP's blocks, of their gradients and Adam state (one process alone: all of it)
    fsdp: bool = False
    image_size: PositiveInt | None = None  # the model sees crops resized to this side, labels stay; None: data.crop
    seed: NonNegativeInt = 0
    deterministic: bool = False  # PyTorch's deterministic algorithms alone: two runs are equal to the bit, and slower
    skip_unreadable: NonNegativeInt = 0  # so many unreadable pictures in all are left out, the next one in their place
    eval_every: NonNegativeInt = 5000  # 0: only after the last step
    save_every: NonNegativeInt = 1000  # 0: only after the last step
    classes_per_step: PositiveInt | None = None  # vocabulary of a step: classes present plus random others; None: all
    log_every: PositiveInt = 20
    tensorboard: bool = True
    pictures: NonNegativeInt = 2  # of each validation set, drawn for TensorBoard after every evaluation

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup: must be below steps ({self.steps}); got {self.warmup}: lower train.warmup too")
        if self.fsdp and self.amp == "fp16":
            raise ValueError("fsdp: its gradients are not scaled as amp=fp16 needs; give amp=bf16 or amp=no")
        return self


class Config(_Section):
    """The whole configuration of a training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def save(self, path: str | Path) -> None:
        """Write every key as YAML, atomically. `load_config(path)` gives an equal object."""
        text = yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)
        atomic_write(Path(path), lambda file: file.write(text.encode()))


S = TypeVar("S", bound=_Section)


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file (None: the defaults alone) and apply dotted overrides to it.

    overrides  e.g. ["model.kernel_size=5", "train.out=runs/k5", "data.scale=[0.5, 2.0]"]; values are YAML
    Raises ConfigError naming the file or override, the key, and for an unknown key the nearest right one.
    """
    source, data = "defaults", {}
    if path is not None:
        source, data = str(path), _read_yaml(Path(path))
    return _validate(Config, data, source, _apply_overrides(data, overrides or []))


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 text file: {error}") from None
    try:
        data = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_problem(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections (model:, data:, train:), got {type(data).__name__}")
    return data


def _apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[tuple[str, ...], str]:
    """Set each a.b=c in data; returns which override wrote which key, for error messages."""
    written: dict[tuple[str, ...], str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = tuple(key.strip().split("."))
        if not equals or not all(parts):
            raise ConfigError(f"override {text!r}: expected key=value with a dotted key, e.g. train.steps=100")
        section = data
        for part in parts[:-1]:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        try:
            section[parts[-1]] = yaml.load(value, _UniqueKeyLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {text!r}: the value is not valid YAML: {_problem(error)}") from None
        written[parts] = text
    return written


def _problem(error: yaml.YAMLError) -> str:
    """One line of a YAML error that spans several."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).replace("\n", " ")


def _validate(cls: type[S], data: Any, source: str, written: dict[tuple[str, ...], str] | None = None) -> S:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, dict(item), source, written or {}) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain(cls: type[_Section], item: dict[str, Any], source: str, written: dict[tuple[str, ...], str]) -> str:
    """One line for one pydantic error: where it came from, which key, what is wrong, what would be right."""
    # pydantic adds type names and indices to the location of unions and tuples: keep the keys that the user can write
    path = _written_part(cls, item["loc"])
    by = next((text for parts, text in written.items() if parts[: len(path)] == path[: len(parts)]), None)
    where = f"override {by!r}" if by else source
    key = ".".join(path) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; did you mean {_nearest(cls, path)!r}?"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if item["type"] == "value_error":
        return f"{where}: {key}{'.' if message.split(':')[0].isidentifier() else ': '}{message}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}; got {item['input']!r}"


def _written_part(cls: type[_Section], location: tuple[int | str, ...]) -> tuple[str, ...]:
    path: list[str] = []
    section: type[_Section] | None = cls
    for part in location:
        if section is None:
            break
        path.append(str(part))
        section = _sections(section).get(str(part))
    return tuple(path)


def _sections(cls: type[_Section]) -> dict[str, type[_Section]]:
    types = {name: field.annotation for name, field in cls.model_fields.items()}
    return {name: kind for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, _Section)}


def _all_keys(cls: type[_Section], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for name in cls.model_fields:
        keys.append((*prefix, name))
        if name in (sections := _sections(cls)):
            keys += _all_keys(sections[name], (*prefix, name))
    return keys


def _nearest(cls: type[_Section], path: tuple[str, ...]) -> str:
    """The right key nearest to a wrong one: a misspelt sibling, else the same or a similar name in another section."""
    keys = _all_keys(cls)
    siblings = {".".join(key): key[-1] for key in keys if key[:-1] == path[:-1]}
    others = {".".join(key): key[-1] for key in keys}
    wrong = path[-1].lower().replace("-", "_")
    for choices, cutoff in ((siblings, 0.7), (others, 0.7), (siblings, 0.0), (others, 0.0)):
        close = difflib.get_close_matches(wrong, choices.values(), n=1, cutoff=cutoff)
        if close:
            return next(dotted for dotted, name in choices.items() if name == close[0])
    return ".".join(keys[0])
