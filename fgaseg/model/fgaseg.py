"""FGASeg, what users hold: encoders and head, prediction, loading and saving."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from torch import Tensor, nn

from ..config import EncoderConfig, ModelConfig
from ..data import Bands, ImageSource, ValueRange, read_image
from ..errors import CheckpointError, ConfigError, EncoderError, TrainingError, UsageError, VocabularyError
from ..inference import Result, ScoreRule, note_doubts, predict
from ..threads import adjust_threads
from ..vocabulary import ClassNames, Vocabulary
from ..weights import (
    ConversionReport,
    fetch_file,
    find_named,
    list_files,
    load_weights,
    read_released,
    read_weights,
    write_released,
    write_weights,
)
from ..weights.model_files import read_shapes
from ..weights.saved_config import read_config
from ..weights.sources import check_no_path
from .cuda_graphs import RecordedCalls
from .encoders import ImageFeatures, build_encoder, is_open_clip, own_encoder
from .fitting import check_fits, shapes_of
from .head import Head, Output
from .image_encoder import ImageEncoder
from .prompts import classes_of_rows
from .quantization import check_not_quantized, is_quantized
from .saving import encoder_facts, push_model, save_model
from .text_encoder import TextEncoder

# embeddings that are parameters of their own: of positions, class tokens, pooling queries
UNDECAYED = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "attn_pool.latent", "logit_scale")


class FGASeg(nn.Module):
    """Open-vocabulary segmentation: pixels and a vocabulary to one logit map per class.

        model = fgaseg.load("cat-seg-b16")  # or a folder, a file, a hub id
        result = model.segment("photo.jpg", ["cat", "sofa", "wooden floor"])
        result.overlay().save("out.png")

    Underneath, `model(pixels, model.encode(names)).logits` is [B, T, 4H, 4W] before any sigmoid or softmax.

    config  default: ModelConfig(). Its encoder fetches OpenAI's ViT-B/16 CLIP weights from the Hugging Face Hub, unless
            `encoder.pretrained` is a local file or None; the head starts from random weights and has to be trained. A
            trained model comes from `fgaseg.load` or `from_pretrained`.

    encoder    an encoder of one's own (`fgaseg.register_encoder`) in place of the one that the configuration names
    tokenizer  a folder with the tokenizer's files, for encoders whose tokenizer is on the Hugging Face Hub

    A new model is in training mode, as any nn.Module. Raises EncoderError where the encoder cannot be built.
    """

    clip: Any  # the encoder's weights
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig | None = None,
        encoder: nn.Module | None = None,
        *,
        tokenizer: str | Path | None = None,
    ):
        super().__init__()
        config = config or ModelConfig()
        if encoder is not None:
            config = _named_after(encoder, config)
        self.encoder = build_encoder(config.encoder, encoder, tokenizer)
        self.clip = self.encoder.module
        self.config = config
        self.architecture = self.encoder.architecture
        self.facts: dict[str, Any] = encoder_facts(self.encoder)
        self.normalization = (self.encoder.mean, self.encoder.std)
        self.image_encoder = ImageEncoder(self.encoder)
        self.text_encoder = TextEncoder(self.encoder, config.template, config.first_synonym, config.synonyms)
        channels = self.encoder.channels
        if channels % config.p2t_heads and config.p2t_layers:
            raise EncoderError(f"p2t_heads: {config.p2t_heads} does not divide the encoder's {channels} channels")
        self.head = Head(config, channels, self.encoder.width)
        self._recorded: RecordedCalls | None = None
        self.register_buffer("mean", torch.tensor(self.encoder.mean), persistent=False)
        self.register_buffer("std", torch.tensor(self.encoder.std), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """As of any nn.Module; BatchNorm in an encoder of open_clip's always uses its stored statistics.

        Raises TrainingError for a model that is to be trained and is quantized.
        """
        if mode and is_quantized(self):
            raise TrainingError("model: is quantized to int8 and has no gradients; train it before that")
        super().train(mode)
        self.encoder.keep_statistics()
        return self

    @property
    def quick_gelu(self) -> bool:
        """Whether the encoder has OpenAI's activation."""
        return bool((self.architecture or {}).get("quick_gelu"))

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.image_encoder.patch

    @property
    def device(self) -> torch.device:
        """Where the model is, and where `forward` expects pixels."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; `forward` converts pixels to it. In bfloat16 and float16 P2Tformer and LCS stay float32."""
        return self.mean.dtype

    @property
    def precision(self) -> str:
        """What the model computes in, in words: "float32", "bfloat16", ..., "int8, else float32"."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"int8, else {dtype}" if is_quantized(self) else dtype

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the image tower, aggregation and decoder in place, with the arguments of torch.compile.

        `forward`, `stream` and `segment` all use them. The first calls with new sizes take long.
        """
        self.image_encoder.compile(*args, **kwargs)
        self.head.compile(*args, **kwargs)

    def use_cuda_graphs(self, kept: int = 4) -> None:
        """Record all that a view launches on a GPU as a CUDA graph, once for every shape and type, and replay it.

        kept  how many graphs are kept, those that were used last; each holds the memory of a view. 0: use none any more

        `stream` and `segment` use them, without gradients: small launches then cost the host next to nothing. The first
        view of every size and number of prompts takes longer. What waits for the device in the middle runs as before:
        fast mode, `class_maps_budget`, and windows of more classes than `class_cap`. Results are the same. Raises
        UsageError for a model on a CPU.
        """
        if kept and self.device.type != "cuda":
            raise UsageError(f"cuda graphs: the model is on {self.device}: move it to a GPU first, model.to('cuda')")
        self._recorded = RecordedCalls(self._view, self._weights, kept) if kept else None

    def encode(self, names: ClassNames, background: str | Sequence[str] | None = None) -> Vocabulary:
        """Class names to a reusable vocabulary, cached until the text tower's weights change.

        names       a list of names, in which "car | automobile | van" is one class, car, with three prompts; or a
                    mapping from names to their prompts, {"car": ["car", "van"], "sky": "sky"}. `synonyms` of the
                    configuration says how the prompts of a class work together
        background  prompts for everything else, which are one more class, the last, of which always the best counts: a
                    list, or a text with commas or | between them. A single prompt is also its name; several are called
                    "background". "stuff" stands for 39 usual ones (wall, sky, grass, ...: those of PASCAL VOC with
                    background). The name of one of the classes makes that one the background

        Logged once are names that the text tower cannot tell apart, cuts or hardly knows, and underscores, which it
        reads as spaces.

        In training mode, if the text tower trains, it is computed with its autograd graph and not cached.
        """
        return self.text_encoder.encode(names, graph=self.training, background=background)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, C] of prompts, with a gradient as in `encode`, and without its cache and its notes."""
        return self.text_encoder.embed(prompts, graph=self.training)

    def forward(self, pixels: Tensor, vocabulary: Vocabulary) -> Output:
        """pixels [B, 3, h, w], normalised (`normalization`), padded to whole patches: H = ceil(h / patch)."""
        texts = self._check(pixels, vocabulary)
        adjust_threads()
        out: Output = self.head(self.image_encoder(pixels.to(self.dtype)), texts)
        return out if vocabulary.counts is None else out.of_classes(vocabulary.counts)

    def stream(self, pixels: Tensor, vocabulary: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]:
        """`forward` for inference with a vocabulary of any length: (classes [c], logits [B, c, 4H, 4W]), in parts.

        Classes ascend; those that no image has kept are left out. All come in one part while their maps fit
        `class_maps_budget`.
        """
        texts = self._check(pixels, vocabulary)
        adjust_threads()
        pixels = pixels.to(self.dtype)
        if self._recorded is not None and self._is_static(pixels, texts):
            classes, logits = self._recorded(pixels, texts)
            parts = iter([(classes, logits)])
        else:
            parts = self._views(pixels, texts)
        yield from parts if vocabulary.counts is None else classes_of_rows(parts, vocabulary.counts)

    def _views(self, pixels: Tensor, texts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        # on a CPU, a batch takes more memory and no less time than its images one by one
        encoded = [self.image_encoder(some) for some in pixels.split(len(pixels) if pixels.is_cuda else 1)]
        features = encoded[0] if len(encoded) == 1 else [torch.cat(x) for x in zip(*encoded, strict=True)]
        return self.head.stream(ImageFeatures(*features), texts)

    def _view(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        ((classes, logits),) = self._views(pixels, texts)
        return classes, logits

    def _weights(self) -> tuple[Tensor, ...]:
        return *self.parameters(), *self.buffers()

    def _is_static(self, pixels: Tensor, texts: Tensor) -> bool:
        """Whether nothing that is launched depends on values, so that a CUDA graph of it can be replayed."""
        config = self.config
        if not pixels.is_cuda or torch.is_grad_enabled() or self.training:
            return False
        capped = config.class_cap is not None and len(texts) > config.class_cap
        return not config.fast and config.class_maps_budget is None and not (capped and len(pixels) > 1)

    def _check(self, pixels: Tensor, vocabulary: Vocabulary) -> Tensor:
        """The vocabulary's embeddings on the pixels' device, in float32 or wider; an error if they do not fit."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or 0 in pixels.shape:
            raise ValueError(
                f"pixels: got {pixels.dtype} {list(pixels.shape)}; expected a floating [B, 3, h, w], normalised with "
                "the encoder's mean and standard deviation (model.segment takes photos as they are)"
            )
        texts = vocabulary.embeddings
        if texts.shape[-1] != self.encoder.channels:
            raise VocabularyError(
                f"vocabulary: its embeddings have {texts.shape[-1]} channels and this model's images "
                f"{self.encoder.channels}; encode the names with this model"
            )
        return texts.to(pixels.device, torch.promote_types(pixels.dtype, torch.float32))

    @overload
    def segment(
        self,
        image: list[Any] | tuple[Any, ...],
        names: ClassNames | Vocabulary,
        *,
        bands: Bands | None = ...,
        value_range: ValueRange | None = ...,
        background: str | Sequence[str] | None = ...,
        threshold: float | None = ...,
        probabilities: bool = ...,
    ) -> list[Result]: ...

    @overload
    def segment(
        self,
        image: ImageSource,
        names: ClassNames | Vocabulary,
        *,
        bands: Bands | None = ...,
        value_range: ValueRange | None = ...,
        background: str | Sequence[str] | None = ...,
        threshold: float | None = ...,
        probabilities: bool = ...,
    ) -> Result: ...

    @torch.inference_mode()
    def segment(
        self,
        image: Any,
        names: ClassNames | Vocabulary,
        *,
        bands: Bands | None = None,
        value_range: ValueRange | None = None,
        background: str | Sequence[str] | None = None,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Result | list[Result]:
        """Label every pixel of a photo (PIL image, path, array or tensor), or of each photo in a list.

        names               class names as `encode` takes them, or a vocabulary made by it; labels are indices into its
                            classes
        bands, value_range  which bands and values of the photo are shown, as in `read_image`
        background          prompts of a class for everything else, as `encode` takes them
        threshold           between 0 and 1: pixels whose score is below it are the background or, without one, get a
                            label of their own, "nothing", after the classes. What a score is, `Result` says
        probabilities       keep what `Result.probabilities` is made of: the model's maps, 4H/patch × 4W/patch values a
                            class

        A model in training mode is put into evaluation mode meanwhile. What was assumed, and answers that say little,
        are logged once. Raises ImageError and VocabularyError.
        """
        if isinstance(names, Vocabulary):
            if background is not None:
                raise VocabularyError("background: the vocabulary is made already: give the background to encode")
            vocabulary = names
        else:
            vocabulary = self.text_encoder.encode(names, background=background)
        several = isinstance(image, list | tuple)
        results = []
        for one in image if several else [image]:
            photo = read_image(one, bands=bands, value_range=value_range)
            source = str(one) if isinstance(one, str | os.PathLike) else ""
            results.append(
                predict(self, photo, vocabulary, threshold=threshold, probabilities=probabilities, source=source)
            )
            note_doubts(results[-1], ScoreRule.of(self.config).softmax, threshold, len(vocabulary))
        return results if several else results[0]

    @torch.inference_mode()
    def predict_labels(self, image: Any, vocabulary: Vocabulary) -> Tensor:
        """Labels [H, W] int64 at the photo's own size, on the model's device."""
        return torch.from_numpy(predict(self, read_image(image), vocabulary).labels).to(self.mean.device)

    def first_of_equals(self, vocabulary: Vocabulary) -> list[int]:
        """For every class of a vocabulary the first class with the same prompt, usually itself."""
        return list(vocabulary.first or self.text_encoder.first_of_equals(vocabulary.names))

    def parameter_groups(self, lr: float, encoder_lr_factor: float, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW groups: the encoder at lr · factor; no weight decay on norms and embeddings."""
        undecayed = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | nn.Embedding
        plain = {id(p) for m in self.modules() if isinstance(m, undecayed) for p in m.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decays = id(parameter) not in plain and not name.endswith(UNDECAYED)
                groups.setdefault((name.startswith("clip."), decays), []).append(parameter)
        return [
            {
                "params": p,
                "lr": lr * (encoder_lr_factor if clip else 1),
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (clip, decays), p in sorted(groups.items())
        ]

    def save_encoder(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the encoder alone, for `encoder.pretrained` of another model."""
        check_not_quantized(self)
        write_weights(path, {key: value.to(dtype) for key, value in self.clip.state_dict().items()})

    def save_pretrained(
        self,
        directory: str | Path,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        results: str | Path | None = None,
    ) -> None:
        """Write config.json, model.safetensors, a model card (README.md) and, unless open_clip brings it along, the
        tokenizer, each atomically.

        state_dict  in place of the model's own, where that is sharded over processes
        results     the folder that `fgaseg eval` wrote: the card shows its figures with the hashes of their records

        The card says what is known (`facts`) and that the rest is unknown. One that was edited is left as it is.
        Raises OSError, and CheckpointError for results that are not of these weights.
        """
        check_not_quantized(self)
        save_model(self, Path(directory), state_dict, results)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        results: str | Path | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub, and return the address of the commit.

        repo_id   "owner/name"; made if it does not exist
        private   for a new repository; None: as is usual there
        token     None: that of `hf auth login` or HF_TOKEN
        revision  a branch, made if it does not exist; None: main

        `fgaseg.load(repo_id)` then gives the model. A card that was edited there is left as it is. Raises
        CheckpointError, one line that says what to do.
        """
        check_not_quantized(self)
        return push_model(self, repo_id, private=private, token=token, revision=revision,
                          commit_message=commit_message, create_pr=create_pr, results=results)  # fmt: skip

    def save_released(self, path: str | Path) -> ConversionReport:
        """Write a checkpoint that the released FGAseg code (or, without FGAseg's parts, CAT-Seg's) loads, atomically.

        The report names what that code would compute differently. Raises CheckpointError for a model that has no
        counterpart there, and OSError.
        """
        check_not_quantized(self)
        if reason := self.encoder.why_not_released():
            raise CheckpointError(f"model: the released code has no counterpart of its encoder: {reason}")
        return write_released(path, self.state_dict(), self.config, quick_gelu=self.quick_gelu)

    @classmethod
    def from_pretrained(cls, source: str | Path, *words: str, revision: str | None = None, **values: Any) -> "FGASeg":
        """Load what `save_pretrained` wrote, from a folder or a hub id, in evaluation mode; `fgaseg.load` takes more.

        revision       a branch, tag or commit on the hub
        words, values  override the saved ModelConfig, in the form of `ModelConfig.override`: inference="windows", or
                       "inference=windows"

        Raises CheckpointError naming the file that is missing, damaged or does not fit, and ConfigError for overrides.
        """
        directory = Path(os.path.expanduser(source))
        if not directory.is_dir():
            directory = fetch_saved(str(source), revision)
        elif revision is not None:
            raise CheckpointError(f"{source}: is on this disk, where there are no revisions; leave revision out")
        config, facts = read_config(directory / "config.json", source)
        saved, config = config.encoder, config.override(*words, **values)
        if saved.architecture is not None and config.encoder.name != saved.name:
            raise ConfigError(f"override encoder.name: a saved model has its encoder, {saved.name}; leave it out")
        if config.encoder.pretrained not in (None, "auto"):
            raise ConfigError("override encoder.pretrained: a saved model has all its weights already; leave it out")
        config = config.override(**{"encoder.pretrained": None})
        weights, tokenizer = directory / "model.safetensors", directory / "tokenizer"
        if needs_files(config.encoder) and not tokenizer.is_dir():
            raise CheckpointError(f"{tokenizer}: is missing: this model's tokenizer comes with its weights; fetch both")
        own = own_encoder(config.encoder)
        if config.encoder.architecture is None and is_open_clip(config.encoder.name):
            raise CheckpointError(
                f"{directory / 'config.json'}: encoder.architecture: is missing: a saved model describes its towers, "
                f"whatever {config.encoder.name} may become; save it again"
            )
        check_fits(config, own, read_shapes(weights), weights)
        model = cls(config, own, tokenizer=tokenizer if tokenizer.is_dir() else None)
        model.load_weights(weights)
        model.facts = facts
        return model.eval()

    @classmethod
    def from_released(cls, source: str | Path | Mapping[str, Any], *words: str, **values: Any) -> "FGASeg":
        """Load a checkpoint of the released FGAseg code or of CAT-Seg's family, in evaluation mode.

        source         a file (.pth, .safetensors), or the state dict that it holds
        words, values  override the ModelConfig that keys, shapes and, for the rest, the `released` preset give, in the
                       form of `ModelConfig.override`

        Raises CheckpointError naming every key that does not fit, and ConfigError for overrides. `fgaseg convert` also
        reports what was assumed.
        """
        checkpoint = read_released(source, *words, **values)
        checkpoint.check_shapes(shapes_of(checkpoint.config))
        model = cls(checkpoint.config)
        checkpoint.load_into(model)
        return model.eval()

    def load_weights(self, path: str | Path) -> None:
        """Fill every weight from a safetensors (or weights-only torch) file.

        Raises CheckpointError listing the keys that do not fit; the model is then unchanged.
        """
        load_weights(self, read_weights(path), path)


def _named_after(encoder: nn.Module, config: ModelConfig) -> ModelConfig:
    """The configuration with the name of an encoder of one's own, under which a saved model looks it up."""
    if config.encoder.architecture is not None:
        raise EncoderError("encoder: give an encoder of your own or encoder.architecture, not both")
    name = config.encoder.name if "name" in config.encoder.model_fields_set else type(encoder).__name__
    return config.override(**{"encoder.name": name, "encoder.pretrained": None})


def needs_files(encoder: EncoderConfig) -> bool:
    """Whether the tokenizer of a saved model is not open_clip's, so that its files are in the folder `tokenizer`."""
    return bool((encoder.architecture or {}).get("text_cfg", {}).get("hf_tokenizer_name"))


def fetch_saved(repo: str, revision: str | None) -> Path:
    """The folder in the hub's cache of a saved model of one commit; the weights only if the configuration is ours."""
    if find_named(repo) is not None:
        raise CheckpointError(f"{repo!r} is a name for fgaseg.load")
    check_no_path(repo, repo)
    path = fetch_file(repo, "config.json", revision=revision)
    folder, commit = path.parent, path.parent.name
    config, _ = read_config(path, repo)
    fetch_file(repo, "model.safetensors", revision=commit)
    if needs_files(config.encoder):
        try:
            names = list_files(repo, revision=commit)
        except CheckpointError:
            if not (folder / "tokenizer").is_dir():
                raise
            names = []  # the hub cannot be asked, and they are here
        for name in names:
            if name.startswith("tokenizer/"):
                fetch_file(repo, name, revision=commit)
    return folder
