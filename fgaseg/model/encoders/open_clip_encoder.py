"""An encoder of open_clip's: both towers of one model, loaded, adapted, and partly frozen."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from ...config import EncoderConfig
from ...data import CLIP_MEAN, CLIP_STD
from ...errors import EncoderError
from .architecture import Request, resolve
from .attention import use_fused_linears
from .clip_vit import ClipViT
from .eva import EVA, PerceptionEncoder
from .image_tower import ImageTower, Unsupported
from .interface import Encoder, ImageFeatures
from .loading import load_towers, saved_normalization, weights_path
from .text_tower import TextTower
from .timm_vit import SigLIP, TimmViT
from .tokenizers import Tokenizer


class OpenClipEncoder(Encoder):
    """Image and text tower of an open_clip model of one of the families.

    image_tower, text_tower  what runs them

    tokenizer  a folder with its files, in place of those that open_clip names
    skeleton   without weights and tokenizer: to see shapes on the meta device
    """

    def __init__(self, config: EncoderConfig, tokenizer: str | Path | None = None, *, skeleton: bool = False):
        request = resolve(config)
        self.name, self.weights, self.architecture = config.name, request.weights, request.architecture
        family = family_of(request.architecture, config.name)
        self.module = instantiate(request.architecture, config.name)
        path = None
        if request.weights and not skeleton:
            path = weights_path(config.name, request.weights, request.tag)
        if tokenizer is None and path is not None and (path / "tokenizer").is_dir():
            tokenizer = path / "tokenizer"  # of a saved model
        text_config = request.architecture["text_cfg"]
        self.tokenizer = None if skeleton else Tokenizer(config.name, text_config, tokenizer)
        self.text_tower = TextTower(self.module, self.tokenizer)
        self.image_tower: ImageTower = family(self.module.visual)
        self.image_tower.separate()
        self.text_tower.separate()
        use_fused_linears(self.module)
        self._check_channels()
        if path is not None:
            load_towers(self.module, path)
        tower = self.image_tower
        tower.choose(config.dense, config.guidance_blocks)
        self.patch, self.channels, self.width = tower.patch, tower.channels, tower.width
        self.dense, self.guidance_blocks = tower.dense, tower.guidance_blocks
        self._choose_normalization(config, request, path)
        self._choose_trained(config)
        self.keep_statistics()

    def image(self, pixels: Tensor) -> ImageFeatures:
        return self.image_tower.features(pixels)

    def text(self, prompts: Sequence[str]) -> Tensor:
        return self.text_tower(prompts)

    def text_weights(self) -> list[Tensor]:
        return self.text_tower.weights()

    def towers(self) -> list[list[Any]]:
        return [list(self.image_tower.blocks), list(self.text_tower.blocks)]

    def keep_statistics(self) -> None:
        for module in self.module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def save_tokenizer(self, folder: Path) -> None:
        assert self.text_tower.tokenizer is not None
        self.text_tower.tokenizer.save(folder)

    def why_not_released(self) -> str:
        tower, text = self.image_tower, self.text_tower
        assert text.tokenizer is not None
        if not isinstance(tower, ClipViT):
            return f"{self.name} is a model of the family {tower.family}"
        if tower.dense != "value":
            return f"its dense features are by the rule {tower.dense!r}"
        if text.tokenizer.hugging_face or text.pool != "argmax" or not text.causal:
            return f"{self.name} has another text tower"
        if (tuple(self.mean), tuple(self.std)) != (CLIP_MEAN, CLIP_STD):
            return "its pixels are not normalised as CLIP's"
        return ""

    def _check_channels(self) -> None:
        image, text = self.image_tower.channels, self.text_tower.channels
        if image != text:
            raise EncoderError(
                f"encoder: the text tower gives {text} channels and the image tower {image}; the two towers must come "
                "from one CLIP"
            )

    def _choose_normalization(self, config: EncoderConfig, request: Request, path: Path | None) -> None:
        """As given, else as a saved model whose encoder is taken, else as the weights' tag, else as the family."""
        saved = (None, None) if path is None else saved_normalization(path)
        sources = ((config.mean, config.std), saved, (request.mean, request.std), self.image_tower.normalization)
        self.mean, self.std = (next(filter(None, values)) for values in zip(*sources, strict=True))

    def _choose_trained(self, config: EncoderConfig) -> None:
        """Which weights train (Table VII): attention (q, v), prompt, full (all blocks), none, scratch (everything)."""
        module, tower, text = self.module, self.image_tower, self.text_tower
        if config.finetune == "prompt":
            shape = (len(tower.blocks), config.prompt_tokens, tower.width)
            tower.stack.prompt_tokens = nn.Parameter(torch.randn(shape) * 0.02)
        fixed = [parameter for parameter in module.parameters() if not parameter.requires_grad]  # sine positions
        module.requires_grad_(config.finetune == "scratch")
        if config.finetune == "full":
            for part in (*tower.blocks, *tower.attention(), *text.blocks):
                part.requires_grad_(True)
        if config.finetune == "attention":
            for part in (*tower.attention(), *(block.attn for block in text.blocks)):
                for parameter in part.trained():
                    parameter.requires_grad_(True)
        if config.finetune == "prompt":
            tower.stack.prompt_tokens.requires_grad_(True)
        # the head uses cosines: scale and bias of the loss of pretraining have no gradient
        for parameter in (*fixed, module.logit_scale, module.logit_bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        if config.finetune != "none" and not any(p.requires_grad for p in module.parameters()):
            warnings.warn(f"encoder.finetune={config.finetune!r} trains no weight of this encoder", stacklevel=4)


def instantiate(architecture: dict[str, Any], name: str) -> CLIP | CustomTextCLIP:
    """open_clip's own model with random weights. Raises EncoderError."""
    arguments = {key: value for key, value in architecture.items() if key != "custom_text"}
    try:
        return (CustomTextCLIP if architecture.get("custom_text") else CLIP)(**arguments)
    except (TypeError, AssertionError, RuntimeError, ValueError, AttributeError) as error:
        raise EncoderError(f"encoder.architecture: open_clip refuses it: {error}") from error


def family_of(architecture: dict[str, Any], name: str) -> type[ImageTower]:
    """The family of an open_clip model, told by its modules on the meta device. Raises EncoderError with the reason."""
    try:
        if "multimodal_cfg" in architecture:
            raise Unsupported("it is a CoCa, whose text tower has a class token and a decoder")
        if architecture["text_cfg"].get("hf_model_name"):
            raise Unsupported("its text tower is a model of transformers")
        with torch.device("meta"):
            clip = instantiate(architecture, name)
        family = _family_of_tower(clip.visual)
        family.check(clip.visual)
        TextTower.check(clip)
    except Unsupported as reason:
        raise EncoderError(f"encoder: {name} is not supported: {reason}") from None
    return family


def _family_of_tower(visual: Any) -> Any:
    if type(visual) is VisionTransformer:
        return ClipViT
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    if type(trunk) is Eva:
        return EVA if trunk.attn_pool is None else PerceptionEncoder
    if type(trunk) is TimmVisionTransformer:
        return TimmViT if trunk.attn_pool is None else SigLIP
    raise Unsupported(f"its image tower is a {type(trunk).__name__}, not a ViT with one token per patch")
