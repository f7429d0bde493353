"""A configuration is right, or one line says where it is wrong."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from tiny import ARCHITECTURE

from fgaseg.config import Config, LossConfig, ModelConfig, load_config
from fgaseg.errors import ConfigError


def refused(*overrides, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, *overrides)
    return str(caught.value)


def test_defaults_are_the_paper():
    config = Config()
    model, train = config.model, config.train
    assert model.preset == "paper" and model.template == "a photo of a {}"
    assert (model.p2t_layers, model.p2t_heads, model.gamma, model.p2t_value_positions) == (1, 8, 0.1, True)
    assert (model.kernel_size, model.kernel_norm, model.fusion, model.fast, model.top_k) == (
        3,
        "taps",
        "cat",
        False,
        None,
    )
    assert (model.class_cap, model.pad_classes, model.inference) == (None, 0, "whole")
    assert model.loss == LossConfig(seg="ce", align="mse", align_reduction="mean", lambda_align=0.02, lambda_aux=0.2)
    assert (train.steps, train.batch, train.lr, train.encoder_lr_factor) == (80_000, 8, 2e-4, 0.01)
    assert (train.weight_decay, train.clip_norm, train.schedule, train.warmup) == (1e-4, 0.01, "cosine", 0)


def test_released_changes_every_default_that_differs():
    model = load_config(None, "model.preset=released").model
    assert model.template == "A photo of a {} in the scene" and model.first_synonym
    assert not model.p2t_value_positions and model.t2p_kernel_size == 3
    assert (model.topk_union, model.class_cap, model.pad_classes, model.inference) == ("batch", 256, 256, "windows")
    assert (model.top_k, model.released_fast_scores) == (None, False)
    assert model.loss == LossConfig(seg="bce", align="bce", aux_heads=3)
    fast = load_config(None, "model.preset=released", "model.fast=true").model
    assert (fast.top_k, fast.released_fast_scores) == (16, True)
    assert load_config(None, "model.fast=true").model.top_k == 8


def test_explicit_keys_win_over_the_preset():
    overrides = ["class_cap=null", "top_k=null", "template=a {}", "loss.seg=ce", "pad_classes=0", "fast=true"]
    model = load_config(None, "model.preset=released", *(f"model.{text}" for text in overrides)).model
    assert model.class_cap is None and model.top_k is None and model.template == "a {}" and model.pad_classes == 0
    assert model.loss.seg == "ce" and model.loss.align == "bce" and model.first_synonym
    given = ModelConfig(preset="released", loss=LossConfig(lambda_align=0.5))
    assert (given.loss.lambda_align, given.loss.seg) == (0.5, "bce")
    assert ModelConfig().loss.seg == "ce"  # the released model's loss is its own


def test_the_preset_is_followed_until_a_key_is_written_down():
    released = load_config(None, "model.preset=released", "model.fast=true", "model.hidden=64")
    paper = released.override("model.preset=paper")
    assert (paper.model.top_k, paper.model.template, paper.model.loss.seg) == (8, "a photo of a {}", "ce")
    assert paper.model.hidden == 64
    assert released.override("model.fast=false").model.top_k is None


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.preset=released"], ["model.preset=released", "model.fast=true", "model.top_k=null"],
     ["train.out=some/where", "data.images=a", "model.encoder.guidance_blocks=[1,2]", "train.clip_norm=null"],
     ["model.encoder.architecture={embed_dim: 8, vision_cfg: {layers: 2}, text_cfg: {layers: 2}}"]],
)  # fmt: skip
def test_round_trips(tmp_path, overrides):
    config = load_config(None, *overrides)
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert Config.from_json(config.to_json(), "here") == config
    assert ModelConfig.from_json(config.model.to_json(), "here") == config.model
    assert json.loads(json.dumps(config.dump())) == config.dump()


def test_yaml_then_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  kernel_size: 5\n  loss:\n    lambda_align: 1\ntrain:\n  lr: 1e-3\n  amp: no\n")
    config = load_config(
        path, "model.kernel_size=7", "data.scale=[0.5, 2]", "train.steps=3", "model.template=one {}, two"
    )
    assert (config.model.kernel_size, config.model.loss.lambda_align, config.train.lr) == (7, 1.0, 1e-3)
    assert (config.train.amp, config.data.scale, config.train.steps) == ("no", (0.5, 2.0), 3)
    assert config.model.template == "one {}, two"
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    "override, nearest",
    [("model.gama=1", "model.gamma"), ("model.loss.lamda_align=1", "model.loss.lambda_align"),
     ("lr=1", "train.lr"), ("model.lr=1", "train.lr"), ("train.kernel_size=3", "model.kernel_size"),
     ("trian.lr=1", "train"), ("model.encoder.fine_tune=full", "model.encoder.finetune"),
     ("data.colour_jitter=true", "data.color_jitter"), ("train.Batch-Size=3", "train.batch"),
     ("model.loss.seg.kind=ce", None)],
)  # fmt: skip
def test_unknown_key_names_the_nearest(override, nearest):
    message = refused(override)
    assert f"override '{override}'" in message and len(message.splitlines()) == 1
    if nearest:
        assert f"did you mean '{nearest}'?" in message and "unknown key" in message


def test_paths_that_begin_with_a_dot_are_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    data = {"images": "./images", "labels": "../labels", "names": "names.txt", "label_map": "./map.yaml", "ignore": 0}
    (tmp_path / "set" / "data.yaml").write_text(yaml.safe_dump({"data": data, "train": {"out": "./runs"}}))
    config = load_config("set/data.yaml", "data.val_images=./mine")
    assert config.data.images == Path("set/images") and config.data.labels.resolve() == tmp_path / "labels"
    assert (config.data.names, config.data.label_map) == (Path("names.txt"), "set/map.yaml")
    # what is typed, and what a run writes, is where one is
    assert (config.data.val_images, config.train.out) == (Path("mine"), Path("runs"))


def test_misspelt_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"fuson": "add", "kernel_size": 3}, "train": {"steps": 5}}))
    assert refused(path=path) == f"{path}: unknown key 'model.fuson'; did you mean 'model.fusion'?"
    # each of several mistakes is named with the place it came from
    lines = refused("train.stepps=7", "model.kernel_size=4", path=path).splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{path}: ") and "model.fuson" in line for line in lines)
    assert any(line.startswith("override 'train.stepps=7': ") for line in lines)
    assert any(line.startswith("override 'model.kernel_size=4': ") and "odd" in line for line in lines)


@pytest.mark.parametrize(
    "override, words",
    [("model.kernel_size=4", "model.kernel_size: must be odd"), ("model.kernel_size=-1", "greater than or equal to 1"),
     ("model.t2p_kernel_size=2", "odd"), ("model.fusion=concat", "'cat' or 'add'"),
     ("model.kernel_norm=softmax", "'taps'"),
     ("model.top_k=4", "needs fast: true"), ("model.released_fast_scores=true", "needs fast: true"),
     ("model.heads=3", "divisible"), ("model.decoder_channels=[64, 24]", "multiples of 16"),
     ("model.guidance_hidden=[128, 16]", "value 1 must be smaller than the 128"),
     ("model.template=a photo", "exactly once"),
     ("model.encoder.guidance_blocks=[7, 3]", "ascending"), ("model.encoder.architecture={embed_dim: 3}", "vision_cfg"),
     ("model.encoder.finetune=some", "'attention'"), ("model.gamma=nan", "finite"), ("model.gamma=.inf", "finite"),
     ("model.loss.aux_heads=4", "less than or equal to 3"), ("model=3", "model: should be a valid dictionary"),
     ("train.lr=fast", "valid number"), ("train.steps=0", "greater than 0"), ("train.warmup=80000", "below steps"),
     ("train.amp=fp8", "'bf16'"), ("data.scale=[2, 1]", "smallest first"), ("data.scale=[0, 1]", "greater than 0"),
     ("data.ignore=70000", "65535"), ("train", "expected key=value"), ("=3", "expected key=value"),
     ("train..lr=3", "expected key=value"), ("data.scale=[1", "not valid YAML"),
     ("train.seed=-1", "greater than or equal to 0"), ("model.preset=papers", "'paper' or 'released'")],
)  # fmt: skip
def test_bad_values_are_one_clear_line(override, words):
    message = refused(override)
    assert words in message and override in message and len(message.splitlines()) == 1


def test_fsdp_and_fp16_exclude_each_other():
    with pytest.raises(ConfigError, match="fsdp: its gradients are not scaled as amp=fp16 needs"):
        load_config(None, "train.fsdp=true", "train.amp=fp16")


@pytest.mark.parametrize(
    "text, words",
    [("model: [", "not valid YAML"), ("- a\n- b\n", "expected sections"), ("just words", "expected sections"),
     ("model: " + "[" * 3000, "nested too deeply"), ("a: &a\n  b: *a\n", "an alias stands for what it is a part of"),
     ("a0: &a0 [x, y]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)), "aliases stand for"),
     ("train:\n  lr: !!int ''\n", "a value cannot be read"), ("? [a]\n: b\n", "a key is a list or a mapping"),
     ("train:\n  lr: 1\n  lr: 2\n", "key 'lr' stands twice"),
     ("train: !!python/object/apply:os.getcwd []", "not valid YAML"),
     (b"\xff\xfe\x00", "UTF-8")],
)  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(path=path)
    assert words in message and message.startswith(str(path)) and len(message.splitlines()) == 1


def test_missing_file_and_bad_json(tmp_path):
    assert "nowhere.yaml" in refused(path=tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        ModelConfig.from_json("{", "config.json")
    with pytest.raises(ConfigError, match=r"config\.json: unknown key 'kernel_sise'; did you mean 'kernel_size'"):
        ModelConfig.from_json('{"kernel_sise": 3}', "config.json")


def test_overrides_as_keyword_arguments(tmp_path):
    config = Config().override("train.steps=7", **{"train.out": tmp_path, "model.kernel_size": 5, "data.scale": (1, 2)})
    assert (config.train.steps, config.train.out, config.model.kernel_size) == (7, tmp_path, 5)
    assert config.data.scale == (1.0, 2.0)
    assert config == load_config(None, "train.steps=7", "model.kernel_size=5", "data.scale=[1, 2]",
                                 **{"train.out": tmp_path})  # fmt: skip
    model = ModelConfig().override(inference="windows", template=["one {}", "two {}"])
    assert (model.inference, model.template) == ("windows", ("one {}", "two {}"))
    with pytest.raises(ConfigError, match=r"override 'train.steps=no number': train.steps: .*'no number'"):
        Config().override(**{"train.steps": "no number"})
    with pytest.raises(ConfigError, match="override 'stepps=3': unknown key 'stepps'; did you mean 'train.steps'"):
        load_config(stepps=3)


def test_what_is_written_down_is_known():
    """A converted model reports the rest as assumed."""
    model = ModelConfig(preset="released", fast=True, loss={"lambda_align": 1})
    assert model.model_fields_set == {"preset", "fast", "loss"} and model.loss.model_fields_set == {"lambda_align"}
    encoder = ModelConfig(encoder={"architecture": ARCHITECTURE}).encoder
    assert encoder.pretrained is None and encoder.model_fields_set == {"architecture"}


def test_changes_are_what_differs_from_the_paper():
    """Results of the ablations are found again by their hash."""
    config = Config(model={"encoder": {"architecture": ARCHITECTURE}, "fusion": "cat"}, train={"out": "here"})
    assert config.changes() == {"model": {"encoder": {"architecture": ARCHITECTURE, "pretrained": None}},
                                "train": {"out": "here"}}  # fmt: skip
    assert ModelConfig(preset="released", class_cap=None).changes()["loss"] == {
        "seg": "bce", "align": "bce", "aux_heads": 3,
    }  # fmt: skip
    assert Config().changes() == {}


def sections(cls):
    nested = [field.annotation for field in cls.model_fields.values()]
    return [cls, *(one for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)
                   for one in sections(kind))]  # fmt: skip


@pytest.mark.parametrize("section", sections(Config), ids=lambda section: section.__name__)
def test_every_key_is_described(section):
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_configuration_cannot_be_changed_behind_its_back():
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3
    assert config.override("train.steps=3").train.steps == 3 and config.train.steps == 80_000


OWN = {
    "label_map without photos": ("data.label_map=cityscapes", "label_map: is for photos and labels of your own"),
    "suffix without photos": ("data.label_suffix=_mask", "label_suffix: is for photos and labels of your own"),
    "a list": (
        "data.label_map=[a, b]",
        "or a mapping such as {7: road, 11: car}; got ['a', 'b']",
    ),
    "a number": ("data.label_map=7", "give a file, a preset, or a mapping"),
    "ignore as text": ("data.ignore=0,255", "give a label value from 0 to 65535, or a list of them; got '0,255'"),
    "ignore below": ("data.ignore=[0, -1]", "got [0, -1]"),
}


@pytest.mark.parametrize("override, words", OWN.values(), ids=OWN)
def test_keys_of_own_labels(override, words):
    message = refused(override)
    assert words in message and len(message.splitlines()) == 1


def test_label_maps_and_void_values_survive_saving(tmp_path):
    words = ["data.images=x", "data.label_map={0: background, 255: crack}", "data.ignore=[0, 300]"]
    config = load_config(None, *words)
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config == Config.from_json(config.to_json(), "x")
    assert config.data.label_map == {"0": "background", "255": "crack"}
    for ignore, values, void in ((255, (255,), 255), (0, (0,), 65535), ((0, 255), (0, 255), 255), ((), (), 65535)):
        data = config.override(**{"data.ignore": ignore}).data
        assert (data.void_values, data.void) == (values, void)
