"""The `train` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from .section import Section


def _no_from_yaml(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare no as false


def _full_name(value: Any) -> Any:
    return "miou_gt" if value == "miou" else value


Figure = Literal["miou_gt", "miou_union", "fwiou", "mean_accuracy", "pixel_accuracy"]


def _default_keep_best(above: dict[str, Any]) -> Figure | None:
    return "miou_gt" if above.get("patience") else None


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


TrackerName = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"
]  # those of accelerate


class TrainConfig(Section):
    """The training recipe. Defaults are the paper's (protocol: 80,000 steps, total batch 8)."""

    out: Path = Path("runs/fgaseg")
    """Folder for checkpoints, logs, summary.json and the final model."""
    objective: Literal["pixels", "captions"] = "pixels"
    """What is trained for: labels of pixels (eq. 11-13), or, for the encoders alone, captions of whole pictures, made
    of the classes in their label maps, in CLIP's contrastive loss (eq. 3-4)."""
    init: str | None = None
    """Start from these weights, anything that fgaseg.load takes: a published model's name (cat-seg-b16), a saved model,
    a checkpoint of CAT-Seg; parts that it lacks start from random weights. null: from the pretrained encoder alone."""
    steps: PositiveInt = 80_000
    """Number of optimizer steps."""
    batch: PositiveInt = 8
    """Photos per step, over all processes and micro-batches together."""
    accumulate: PositiveInt = 1
    """Micro-batches per step, one after the other on each process; only BatchNorm (in the T2P branch) can tell."""
    lr: PositiveFloat = 2e-4
    """Learning rate of everything outside CLIP."""
    encoder_lr_factor: NonNegativeFloat = 0.01
    """CLIP's parameters train at `lr` times this."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's weight decay, of all but norms and embeddings."""
    clip_norm: PositiveFloat | None = 0.01
    """Largest gradient norm over the whole model; null: no clipping."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up; cosine: down to 0 at the last step."""
    warmup: NonNegativeInt = 0
    """Steps of linear warm-up."""
    amp: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_from_yaml)] = "no"
    """Automatic mixed precision."""
    fsdp: bool = False
    """Shard CLIP's blocks, with their gradients and optimizer state, over the processes; one process keeps them all."""
    image_size: PositiveInt | None = None
    """Resize crops to this side before the model sees them, and compare at the labels' size; null: `data.crop`."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, order of photos, augmentation and vocabularies."""
    deterministic: bool = False
    """Use PyTorch's deterministic algorithms only: two runs are equal to the bit, and slower."""
    skip_unreadable: NonNegativeInt = 0
    """Replace up to so many unreadable photos, over the whole run, by the next one in the data set."""
    eval_every: NonNegativeInt = 5000
    """Steps between evaluations; 0: only after the last step."""
    save_every: NonNegativeInt = 1000
    """Steps between checkpoints; 0: only after the last step."""
    patience: PositiveInt | None = None
    """Stop early, when the figure of `keep_best` has not risen in so many evaluations; null: train all `steps`."""
    keep_best: Annotated[Figure | None, BeforeValidator(_full_name)] = Field(default_factory=_default_keep_best)
    """Keep the model of the best evaluation in <out>/best, by this figure (miou is short for miou_gt), its mean where
    there are several validation sets; null: only the last model. Default with patience: miou_gt."""
    classes_per_step: PositiveInt | None = None
    """Vocabulary of a step: the classes in its batch and random others, so many in all; null: all classes."""
    log_every: PositiveInt = 20
    """Steps between lines of the log."""
    tensorboard: bool = True
    """Write TensorBoard files to <out>/tensorboard."""
    pictures: NonNegativeInt = 2
    """Photos of each validation set that are drawn for TensorBoard after every evaluation."""
    trackers: Annotated[tuple[TrackerName, ...], BeforeValidator(_one_or_several)] = ()
    """Experiment trackers, one or a list, that are sent the configuration, losses and scores; tensorboard is as above.
    Nothing is sent anywhere by default."""
    project: str = "fgaseg"
    """Name of the project, or experiment, in the trackers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup: must be below steps ({self.steps}); got {self.warmup}: lower train.warmup too")
        if self.patience and not self.keep_best:
            raise ValueError(f"patience: {self.patience} needs keep_best, the figure that has to rise")
        if self.patience and not self.eval_every:
            raise ValueError(f"patience: {self.patience} needs evaluations to count: give eval_every above 0")
        if self.objective == "captions" and self.accumulate > 1:
            raise ValueError(f"accumulate: captions compares the pictures of a batch; give 1, not {self.accumulate}")
        if self.fsdp and self.amp == "fp16":
            raise ValueError("fsdp: its gradients are not scaled as amp=fp16 needs; give amp=bf16 or amp=no")
        return self
