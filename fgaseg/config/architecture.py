"""What an architecture, open_clip's description of two towers, may hold: known keys, and sizes that towers can have.

A saved model brings its architecture along, and nobody has to trust it: nothing here is a path, a name to fetch or a
number that builds more than the largest published towers many times over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .messages import explain

TOKENS = 16384  # patches of an image, of which a positional table has one row each: 128 × 128


def _sides(value: Any) -> Any:
    """One size for both sides, or two."""
    sides = value if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2) or not all(type(side) is int and 1 <= side <= 4096 for side in sides):
        raise ValueError(f"must be a number of pixels, 1 to 4096, or two of them; got {value!r}")
    return value


Width = Annotated[int, Field(strict=True, ge=1, le=16384)]
Layers = Annotated[int, Field(strict=True, ge=1, le=256)]
Heads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Token = Annotated[int, Field(strict=True, ge=0, le=2**21)]
Number = Annotated[float, Field(strict=True)]
Ratio = Annotated[float, Field(strict=True, gt=0, le=64)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
# an integer is neither a boolean nor text nor 12.0
Sides = Annotated[Any, AfterValidator(_sides)]
Switch = Annotated[bool, Field(strict=True)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _NormOptions(_Described):
    eps: Annotated[float, Field(strict=True, gt=0, le=1)] = 1e-5


class _ActivationOptions(_Described):
    approximate: Literal["none", "tanh"] = "none"


class _TokenizerOptions(_Described):
    clean: Literal["canonicalize", "lower", "whitespace"] = "whitespace"
    strip_sep_token: Switch = False


class _Blocks(_Described):
    """What the blocks of both towers share."""

    mlp_ratio: Ratio = 4.0
    ls_init_value: Number | None = None
    final_ln_after_pool: Switch = False
    output_tokens: Switch = False
    act_kwargs: _ActivationOptions | None = None
    norm_kwargs: _NormOptions | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: Switch = False
    scaled_cosine_attn: Switch = False
    scale_heads: Switch = False
    scale_attn_inner: Switch = False
    scale_attn: Switch = False
    scale_fc: Switch = False


class _Vision(_Blocks):
    layers: Layers = 12
    width: Width = 768
    head_width: Annotated[int, Field(strict=True, ge=1, le=1024)] = 64
    patch_size: Sides | None = 16
    image_size: Sides = 224
    patch_dropout: Share = 0.0
    attentional_pool: Switch | Literal["parallel", "cascade"] = False
    attn_pooler_queries: Annotated[int, Field(strict=True, ge=1, le=TOKENS)] = 256
    attn_pooler_heads: Heads = 8
    no_ln_pre: Switch = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    pool_type: Literal["tok", "avg", "none"] = "tok"
    # a name that timm knows, built with random weights: no hub ("hf-hub:..."), no folder ("local-dir:...")
    timm_model_name: Annotated[str, Field(pattern=r"^\w+(\.\w+)?$", max_length=100)] | None = None
    timm_model_pretrained: Literal[False] = False
    timm_pool: Literal["", "avg", "map", "token", "abs_attn", "rot_attn"] = "avg"
    timm_proj: Literal["", "linear", "mlp", "none"] | None = "linear"
    timm_proj_bias: Switch = False
    timm_drop: Share = 0.0
    timm_drop_path: Share | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.timm_model_name is not None:
            return self  # timm's own sizes
        if self.patch_size is None:
            raise ValueError("patch_size: a number of pixels is needed; got null")
        if self.width % self.head_width:
            raise ValueError(f"head_width: must divide width ({self.width}); got {self.head_width}")
        patch, image = (x if isinstance(x, list | tuple) else (x, x) for x in (self.patch_size, self.image_size))
        if not 1 <= (image[0] // patch[0]) * (image[-1] // patch[-1]) <= TOKENS:
            raise ValueError(
                f"image_size: must hold 1 to {TOKENS} patches of {self.patch_size} pixels; got {self.image_size}"
            )
        return self


class _Text(_Blocks):
    context_length: Annotated[int, Field(strict=True, ge=1, le=2048)] = 77
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**21)] = 49408
    # where the tokenizer is on the hub, for a configuration; a saved model brings its tokenizer along
    hf_tokenizer_name: Annotated[str, Field(max_length=1000)] | None = None
    tokenizer_mode: Literal["clips"] | None = None
    tokenizer_kwargs: _TokenizerOptions | None = None
    width: Width = 512
    heads: Heads = 8
    layers: Layers = 12
    embed_cls: Switch = False
    pad_id: Token = 0
    eos_id: Token = 2
    no_causal_mask: Switch = False
    pool_type: Literal["argmax", "eos", "first", "last", "none"] = "argmax"
    proj_bias: Switch = False
    proj_type: Literal["linear", "none"] = "linear"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: must divide width ({self.width}); got {self.heads}")
        return self


class _Architecture(_Described):
    embed_dim: Width
    vision_cfg: _Vision
    text_cfg: _Text
    custom_text: Switch = False
    quick_gelu: Switch = False
    init_logit_scale: Number = 0.0
    init_logit_bias: Number | None = None
    nonscalar_logit_scale: Switch = False


def check_architecture(described: dict[str, Any]) -> dict[str, Any]:
    """The same description. Raises ValueError, a line for each unknown key, wrong type and size out of bounds."""
    try:
        _Architecture.model_validate(described)
    except ValidationError as error:
        raise ValueError(explain(_Architecture, error, "", {}).replace("\n: ", "; ").removeprefix(": ")) from None
    return described
