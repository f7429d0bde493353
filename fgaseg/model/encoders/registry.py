"""Encoders of one's own: modules with five attributes, by name or as an object."""

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import EncoderConfig
from ...data import CLIP_MEAN, CLIP_STD
from ...errors import EncoderError
from .interface import Encoder, ImageFeatures

GROUP = "fgaseg.encoders"  # of entry points
ATTRIBUTES: dict[str, Any] = {"patch": int, "channels": int, "width": int, "image": Callable, "text": Callable}
PROMPTS_PER_CALL = 256
_factories: dict[str, Callable[[], nn.Module]] = {}


def register_encoder(name: str, factory: Callable[[], nn.Module]) -> None:
    """Give an encoder of one's own a name, for `encoder.name` in configurations and in saved models.

    name     not one of open_clip's
    factory  called without arguments; returns an nn.Module with the attributes

        patch     side of a patch in pixels
        channels  C of the space that images and texts share
        width     D of the guidance maps
        image     pixels [B, 3, h, w], whole patches, to (V_I [B, C, H, W], early [B, D, H, W], late [B, D, H, W]), in
                  H = h / patch, W = w / patch
        text      a list of N prompts to a tensor [N, C]

    and, if its pixels are not normalised as CLIP's, `mean` and `std` of RGB in 0..1. Parameters train that have
    requires_grad. An installed package can register its encoders by entry points of the group "fgaseg.encoders"
    instead. Only registered names are ever called: a saved model names its encoder and cannot bring code along.

    Raises EncoderError for a name of open_clip's.
    """
    from open_clip import list_models

    if name in list_models():
        raise EncoderError(f"register_encoder: {name!r} is a model of open_clip; choose another name")
    _factories[name] = factory


def registered_names() -> list[str]:
    """Names given by `register_encoder` and by installed packages."""
    return [*_factories, *(point.name for point in importlib.metadata.entry_points(group=GROUP))]


def registered(name: str) -> nn.Module | None:
    """A new encoder of a registered name; None if there is none. Raises EncoderError where a package fails."""
    factory = _factories.get(name)
    if factory is None:
        points = importlib.metadata.entry_points(group=GROUP, name=name)
        if not points:
            return None
        try:
            factory = next(iter(points)).load()
        except Exception as error:
            package = next(iter(points)).value
            raise EncoderError(f"encoder.name: {name}, of {package}, cannot be imported: {error}") from error
    return factory()


class OwnEncoder(Encoder):
    """An encoder of one's own (`register_encoder`). Raises EncoderError for what it lacks and what it cannot do."""

    def __init__(self, module: Any, config: EncoderConfig, name: str):
        if missing := [key for key, kind in ATTRIBUTES.items() if not isinstance(getattr(module, key, None), kind)]:
            raise EncoderError(
                f"encoder: {type(module).__name__} lacks {', '.join(missing)}; an encoder has patch, channels and "
                "width (integers), image and text (methods): see fgaseg.register_encoder"
            )
        if not isinstance(module, nn.Module):
            raise EncoderError(f"encoder: {type(module).__name__} is not an nn.Module, which a model can save and load")
        self.module, self.name = module, name
        self.patch, self.channels, self.width = (int(getattr(module, key)) for key in ("patch", "channels", "width"))
        self.mean = config.mean or tuple(getattr(module, "mean", CLIP_MEAN))
        self.std = config.std or tuple(getattr(module, "std", CLIP_STD))
        self._refuse(config)
        if config.finetune in ("none", "scratch"):
            module.requires_grad_(config.finetune == "scratch")

    def _refuse(self, config: EncoderConfig) -> None:
        """Settings that would have no effect."""
        given = {
            "pretrained": config.pretrained not in (None, "auto"),
            "guidance_blocks": config.guidance_blocks is not None,
            "dense": config.dense is not None,
            "quick_gelu": config.quick_gelu is not None,
            f"finetune={config.finetune}": config.finetune in ("prompt", "full"),
        }
        if names := [name for name, is_given in given.items() if is_given]:
            raise EncoderError(
                f"encoder.{names[0]}: {self.name} is an encoder of your own, which decides that itself; leave it out "
                "(finetune: none freezes it, scratch trains all of it)"
            )

    def image(self, pixels: Tensor) -> ImageFeatures:
        features = ImageFeatures(*self.module.image(pixels))
        grid = (pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        for key, channels in (("embedding", self.channels), ("early", self.width), ("late", self.width)):
            expected, got = (len(pixels), channels, *grid), tuple(getattr(features, key).shape)
            if got != expected:
                raise EncoderError(f"encoder: {self.name}.image gives {key} {list(got)}; expected {list(expected)}")
        return features

    def text(self, prompts: Sequence[str]) -> Tensor:
        starts = range(0, len(prompts), PROMPTS_PER_CALL)
        out = torch.cat([self.module.text(list(prompts[i : i + PROMPTS_PER_CALL])) for i in starts])
        if out.shape != (len(prompts), self.channels):
            expected = [len(prompts), self.channels]
            raise EncoderError(f"encoder: {self.name}.text gives {list(out.shape)}; expected {expected}")
        return out

    def text_weights(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]
