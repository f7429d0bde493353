"""What each key may be, what it is when it is left out, and how a long list of mistakes is cut."""

import pytest

from fgaseg.config import Config, DataConfig, EncoderConfig, LossConfig, ModelConfig, TrainConfig, load_config
from fgaseg.errors import ConfigError


def refused(*words, **values):
    with pytest.raises(ConfigError) as caught:
        load_config(None, *words, **values)
    return str(caught.value)


def test_what_is_left_out():
    """The rest of the paper's protocol is in test_config.py."""
    data, train, model, loss, encoder = DataConfig(), TrainConfig(), ModelConfig(), LossConfig(), EncoderConfig()
    assert (data.ignore, data.void, data.crop, data.scale, data.flip, data.color_jitter) == (
        255,
        255,
        384,
        (1, 1),
        True,
        True,
    )
    assert (data.workers, data.scenes) == (0, False)
    assert (train.accumulate, train.fsdp, train.seed, train.deterministic, train.skip_unreadable) == (
        1,
        False,
        0,
        False,
        0,
    )
    assert (train.eval_every, train.save_every, train.log_every, train.pictures) == (5000, 1000, 20, 2)
    assert train.tensorboard and train.keep_best is None and train.trackers == () and train.amp == "no"
    assert model.gamma_trainable and model.t2p and model.lcs and model.propagation and not model.checkpointing
    assert (model.image_size, model.hidden, model.heads, model.aggregation_layers, model.window) == (384, 128, 4, 2, 12)
    assert (model.class_pooling, model.class_pooling_eval) == (2, 1)
    assert (model.guidance_channels, model.guidance_hidden, model.decoder_channels) == ((256, 128), (32, 16), (64, 32))
    assert (loss.aux_heads, loss.class_balance, encoder.prompt_tokens, encoder.finetune) == (1, 0, 16, "attention")
    for name, pretrained in {"ViT-B-16": "openai", "ViT-L-14-336-quickgelu": "openai", "EVA02-B-16": "auto"}.items():
        assert EncoderConfig(name=name).pretrained == pretrained


# key -> the least and the largest value; words that make the key matter
BOUNDS = {
    "model.p2t_layers": (0, 64, []),
    "model.p2t_heads": (1, 1024, []),
    "model.image_size": (1, 8192, []),
    "model.window": (1, 1024, []),
    "model.class_pooling": (1, 1024, []),
    "model.class_cap": (1, 2**20, []),
    "model.top_k": (1, 2**20, ["model.fast=true"]),
    "model.pad_classes": (0, 65536, []),
    "model.hidden": (64, 8192, ["model.guidance_hidden=[1, 1]"]),
    "model.heads": (1, 128, ["model.hidden=128"]),
    "model.aggregation_layers": (1, 64, []),
    "model.kernel_size": (1, 63, []),
    "model.encoder.prompt_tokens": (1, 4096, []),
    "model.loss.aux_heads": (0, 3, []),
    "model.loss.class_balance": (0, 1, []),
}


@pytest.mark.parametrize("key", BOUNDS)
def test_numbers_have_bounds(key):
    least, largest, words = BOUNDS[key]
    for value in (least, largest):
        load_config(None, *words, **{key: value})
    beyond = {"model.hidden": 8196, "model.heads": 1025, "model.kernel_size": 65}.get(key, largest + 1)
    assert f"override '{key}={beyond}': {key}: should be less than or equal to" in refused(*words, **{key: beyond})
    if key != "model.hidden":
        assert "should be greater than or equal to" in refused(*words, **{key: least - 1})
    else:
        assert "should be greater than or equal to 1" in refused(**{key: 0})


WRONG = [
    ({"model.template": "a" * 999 + "{}"}, "model.template: must have 1000 characters at most; got 1001"),
    ({"model.template": ["a {}"] * 1001}, "must be a template or a list of 1 to 1000 of them; got 1001"),
    ({"model.template": []}, "model.template: must be a template or a list of 1 to 1000 of them; got none"),
    ({"model.template": ["a {}", "a"]}, "must contain {} exactly once, where the class name goes; got 'a'"),
    ({"model.template": "a {} {}"}, "exactly once"),
    ({"model.template": "a {} {"}, "exactly once"),
    ({"model.template": "a {} }"}, "exactly once"),
    ({"model.encoder.std": [0, 1, 1]}, "model.encoder.std: must be positive; got [0.0, 1.0, 1.0]"),
    ({"model.encoder.guidance_blocks": [3, 3]}, "guidance_blocks: two ascending indices are needed; got [3, 3]"),
    ({"model.loss.class_weights": {3: 1.0}}, "model.loss.class_weights: 3 is no class name: write it in quotes"),
    ({"model.loss.class_weights": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
    ({"model.kernel_size": 4}, "model.kernel_size: must be odd (1, 3, 5, ...), so that a kernel has a centre; got 4"),
    ({"model.fast": True, "model.loss.aux_heads": 0}, "loss.aux_heads: 0 leaves fast mode without a head"),
    ({"model.fast": True, "model.class_maps_budget": 1}, "class_maps_budget: fast mode chooses among the maps"),
    ({"model.propagation": False}, "propagation: false leaves the cosine maps alone"),
    ({"model.propagation": False, "model.t2p": False}, "propagation: false"),
    ({"model.propagation": False, "model.lcs": False}, "propagation: false"),
    ({"model.decoder_channels": [60, 32]}, "decoder_channels: multiples of 16 are needed"),
    ({"model.guidance_hidden": [32, 64]}, "guidance_hidden: value 2 must be smaller than the 64 channels that enter"),
    ({"data.scale": [1.1, 1]}, "data.scale: smallest first"),
    ({"data.set": "a150", "data.images": "x"}, "data.set: a150 and images are two training sets: give one"),
    ({"data.set": "a150", "data.scenes": True}, "data.set: a150 and scenes are two training sets: give one"),
    ({"data.set": "a150", "data.ignore": 0}, "data.ignore: a150 ignores label 255; got 0"),
    ({"data.image_suffix": "_x"}, "data.image_suffix: is for photos and labels of your own: give images too"),
    ({"data.ignore": 65536}, "give a label value from 0 to 65535, or a list of them; got 65536"),
    ({"data.ignore": -1}, "got -1"),
    ({"data.ignore": True}, "got True"),
    ({"data.bands": [1, 2]}, "data.bands: 1,2: give one or three, counted from 1, for example 1,2,3"),
    ({"data.value_range": ["a", 2]}, "value_range"),
    ({"data.value_range": ["2%", "101%"]}, "value_range: 2%,101%: give two values, 0,4095, or percentiles, 2%,98%"),
    ({"data.value_range": ["-1%", "98%"]}, "give two values"),
    ({"data.value_range": [5, 5]}, "data.value_range: 5.0,5.0: give the smaller limit first"),
    ({"data.value_range": ["9%", "2%"]}, "give the smaller limit first"),
    ({"train.warmup": 10, "train.steps": 10}, "train.warmup: must be below steps (10); got 10: lower train.warmup"),
    ({"train.patience": 3, "train.keep_best": None}, "train.patience: 3 needs keep_best, the figure that has to rise"),
    ({"train.patience": 3, "train.eval_every": 0}, "train.patience: 3 needs evaluations to count"),
    ({"train.objective": "captions"}, "captions trains the encoders alone; set model.propagation, lcs, t2p to false "
     "and p2t_layers to 0 (now model.propagation=true, model.p2t_layers=1)"),
    ({"train.objective": "captions", "model.p2t_layers": 0}, "(now model.propagation=true)"),
    ({"train.objective": "captions", "train.accumulate": 2}, "train.accumulate: captions compares the pictures"),
]  # fmt: skip


@pytest.mark.parametrize("values, words", WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_said_in_one_line(values, words):
    message = refused(**values)
    assert words in message and len(message.splitlines()) == 1


ENCODERS_ALONE = {"model.propagation": False, "model.lcs": False, "model.t2p": False, "model.p2t_layers": 0}
RIGHT = [
    {"model.template": "a" * 998 + "{}"},
    {"model.template": ["a {}"] * 1000},
    {"model.encoder.guidance_blocks": [2, 3]},
    {"model.encoder.std": [0.5, 1, 1]},
    {"model.class_maps_budget": 0},
    {"model.loss.aux_heads": 0},
    {"model.top_k": None},
    {"model.fast": True, "model.released_fast_scores": True},
    {"model.guidance_hidden": [127, 63]},
    {"data.set": "coco-stuff"},
    {"data.set": "a150", "data.val_images": "x"},
    {"data.val_images": "x", "data.label_map": "cityscapes"},
    {"data.images": "x", "data.ignore": [0, 65535]},
    {"data.bands": [1]},
    {"data.bands": [3, 1, 1]},
    {"data.value_range": [0, 4095]},
    {"data.value_range": [" 0% ", "100%"]},
    {"data.value_range": ["2%", 1]},
    {"train.warmup": 9, "train.steps": 10},
    {"train.patience": 1},
    {"train.fsdp": True, "train.amp": "bf16"},
    {"train.amp": "fp16"},
    {"train.accumulate": 2},
    ENCODERS_ALONE | {"train.objective": "captions"},
    ENCODERS_ALONE,
]


@pytest.mark.parametrize("values", RIGHT, ids=str)
def test_what_is_just_right(values):
    config = load_config(None, **values)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        found = config
        for part in section.split("."):
            found = getattr(found, part)
        given = getattr(found, name)
        assert given == type(given)(value) if given is not None else value is None


def test_short_forms():
    train = load_config(None, "train.amp=no", "train.keep_best=miou", "train.trackers=wandb").train
    assert (train.amp, train.keep_best, train.trackers) == ("no", "miou_gt", ("wandb",))
    assert load_config(None, "train.patience=3", "train.trackers=null").train.keep_best == "miou_gt"
    assert load_config(None, "train.trackers=null").train.trackers == ()
    assert load_config(None, "train.trackers=[aim, mlflow]").train.trackers == ("aim", "mlflow")
    assert load_config(None, "encoder=EVA02-B-16", " encoder.dense=qq").model.encoder.dense == "qq"
    assert load_config(encoder="EVA02-B-16", **{"encoder.dense": "qq"}).model.encoder.name == "EVA02-B-16"
    assert Config().override("encoder=x", **{"encoder.dense": "qq"}).model.encoder == EncoderConfig(
        name="x", dense="qq"
    )
    with pytest.raises(ConfigError, match="override 'model=x'"):
        load_config(None, "model=x")


def test_weights_of_classes_come_from_a_file_and_not_from_a_saved_model(tmp_path):
    (tmp_path / "w.yaml").write_text("car: 2\n")
    words = f"model.loss.class_weights={tmp_path / 'w.yaml'}"
    config = load_config(None, words)
    assert config.model.loss.class_weights == {"car": 2.0}
    assert Config.from_json(config.to_json(), "x") == config
    (tmp_path / "w.yaml").write_text("- car\n")
    assert "expected class names with their weights (car: 2.0), got list" in refused(words)
    with pytest.raises(ConfigError, match="^x: loss.class_weights: "):
        ModelConfig.from_json('{"loss": {"class_weights": "w.yaml"}}', "x")


def test_a_saved_configuration_is_read_as_it_was_written():
    text = Config().to_json()
    assert text.endswith("}\n") and '\n  "model": {\n    "preset": "paper",' in text
    for wrong, words in {
        '{"hidden": "128"}': "x: hidden: got '128' where 128 is meant",
        '{"aggregation_layers": true}': "x: aggregation_layers: got True where 1 is meant",
        '{"guidance_hidden": [128, 1]}': "x: guidance_hidden: value 1 must be smaller than the 128 channels",
        '{"guidance_channels": [256, "128"]}': "x: guidance_channels: got '128' where 128 is meant",
        '{"encoder": {"prompt_tokens": "3"}}': "x: encoder.prompt_tokens: got '3' where 3 is meant",
    }.items():
        with pytest.raises(ConfigError) as caught:
            ModelConfig.from_json(wrong, "x")
        assert str(caught.value).startswith(words), str(caught.value)
    assert ModelConfig.from_json('{"gamma": 1, "guidance_channels": [3, 4]}', "x").guidance_channels == (3, 4)


def test_it_is_written_in_its_order_and_script(tmp_path):
    config = load_config(None, "model.template=ein grünes {}")
    config.save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert text.startswith("model:\n  preset: paper\n") and "ein grünes {}" in text and "\ndata:\n" in text


def test_long_values_and_long_lists_of_mistakes_are_cut():
    for length, shown in ((198, f"got '{'a' * 198}'"), (199, f"got '{'a' * 199}... (201 characters)")):
        assert refused(**{"train.lr": "a" * length}).endswith(shown)
    for count, more in ((20, []), (21, ["and 1 more"]), (300, ["and 180 more"])):
        lines = refused(**{f"train.key{n}": n for n in range(count)}).splitlines()
        assert [line.partition(": ")[2] for line in lines[20:]] == more and len(lines) == min(count, 20) + len(more)
        assert lines[0].startswith("override 'train.key0=0': unknown key 'train.key0'; did you mean 'train.")
