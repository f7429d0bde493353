"""The configurations in configs/ are the protocol."""

import pytest
from paths import CONFIGS

from fgaseg import ModelConfig, load_config

PROTOCOL = {  # shared/spec/protocol.md, "Training"
    "lr": 2e-4, "encoder_lr_factor": 0.01, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0, "steps": 80_000,
    "batch": 8, "clip_norm": 0.01, "amp": "no", "eval_every": 5000, "classes_per_step": None, "accumulate": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, different, side",
    [
        ("vitb16", {}, 384),
        ("vitl14", {}, 336),
        *((f"released_{mode}", {"eval_every": 2000}, 384) for mode in ("fast_cat", "fast_add", "no_fast_add")),
        ("released_no_fast_cat", {"eval_every": 2000, "batch": 2}, 384),
    ],
)
def test_recipes_are_the_protocols(name, different, side):
    config = load_config(CONFIGS / f"{name}.yaml")
    recipe = config.train.dump()
    assert {key: recipe[key] for key in PROTOCOL} == PROTOCOL | different
    data = config.data
    assert (data.crop, data.short_edge or data.crop, data.scale) == (384, 384, (1, 1))
    assert data.flip and data.color_jitter and data.ignore == 255
    assert (config.train.image_size or data.crop) == config.model.image_size == side
    assert config.model.encoder.finetune == "attention" and config.model.encoder.pretrained == "openai"
    assert config.train.out.name == name
    if name.startswith("released"):
        assert config.model.preset == "released"
        assert name == f"released_{'fast' if config.model.fast else 'no_fast'}_{config.model.fusion}"
    else:
        assert config.model == ModelConfig(encoder=config.model.encoder, image_size=side)
