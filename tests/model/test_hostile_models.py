"""A saved model need not be trusted: it is loaded from its own files, or refused in one line, at once."""

import copy
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from small_encoders import SIZES, encoder_section, make_tokenizer
from tiny import tiny_model

import fgaseg
from fgaseg import FGASeg, ModelConfig
from fgaseg.errors import CheckpointError, ConfigError
from fgaseg.model.encoders.tokenizers import LARGEST_FILE
from fgaseg.weights import read_weights, write_weights

SECRET = "root:x:0:0:a file of somebody else"
VISION, TEXT = ("encoder", "architecture", "vision_cfg"), ("encoder", "architecture", "text_cfg")
TIMM = {"timm_model_name": "vit_base_patch16_clip_224", "timm_model_pretrained": True}
# key (or keys) and value; DEL: left out
DEL = object()
CONFIGS = {
    # what would fetch, or open another file
    "a tag": {("encoder", "pretrained"): "openai"},
    "a hub": {("encoder", "pretrained"): "hf-hub:someone/model"},
    "a file": {("encoder", "pretrained"): "{secret}"},
    "a name alone": {
        ("encoder", "architecture"): None,
        ("encoder", "name"): "ViT-B-16",
        ("encoder", "pretrained"): DEL,
    },
    "a name and a tag": {
        ("encoder", "architecture"): None,
        ("encoder", "name"): "EVA02-B-16",
        ("encoder", "pretrained"): "auto",
    },
    "a name of the hub": {("encoder", "architecture"): None, ("encoder", "name"): "hf-hub:someone/model"},
    "a folder as name": {("encoder", "architecture"): None, ("encoder", "name"): "local-dir:{folder}"},
    "timm's weights": {VISION: {"image_size": 32, **TIMM}},
    "timm's hub": {VISION: {"image_size": 32, "timm_model_name": "hf-hub:someone/model"}},
    "timm's hub with weights": {VISION: {"timm_model_name": "hf_hub:someone/model", "timm_model_pretrained": True}},
    "timm's folder": {VISION: {"image_size": 32, "timm_model_name": "local-dir:{folder}"}},
    "timm's path": {VISION: {"image_size": 32, "timm_model_name": "../../secret"}},
    "a tower of transformers": {(*TEXT, "hf_model_name"): "roberta-base"},
    "its weights": {(*TEXT, "hf_model_name"): "roberta-base", (*TEXT, "hf_model_pretrained"): True},
    "a tokenizer of the hub": {(*TEXT, "hf_tokenizer_name"): "someone/tokenizer"},
    "a tokenizer of a path": {(*TEXT, "hf_tokenizer_name"): "{folder}"},
    "the words of CLIP from a file": {(*TEXT, "tokenizer_kwargs"): {"bpe_path": "{secret}"}},
    "code with the tokenizer": {
        (*TEXT, "hf_tokenizer_name"): "x",
        (*TEXT, "tokenizer_kwargs"): {"trust_remote_code": True},
    },
    "a file of class weights": {("loss", "class_weights"): "{secret}"},
    # sizes
    "a million layers": {(*VISION, "layers"): 10**6},
    "as many layers as may be": {(*VISION, "layers"): 256, (*VISION, "width"): 16384, (*VISION, "head_width"): 1024},
    "a million layers of text": {(*TEXT, "layers"): 10**6},
    "as many layers of text as may be": {(*TEXT, "layers"): 256, (*TEXT, "width"): 16384, (*TEXT, "heads"): 1024},
    "many narrow layers": {(*VISION, "layers"): 256, (*VISION, "width"): 64, (*TEXT, "layers"): 256},
    "many patches at sines": {
        (*VISION, "image_size"): 1024,
        (*VISION, "width"): 16384,
        (*VISION, "layers"): 1,
        (*VISION, "head_width"): 1024,
        (*VISION, "pos_embed_type"): "sin_cos_2d",
    },
    "width": {(*VISION, "width"): 10**9},
    "embed_dim": {("encoder", "architecture", "embed_dim"): 10**9},
    "as wide as may be": {("encoder", "architecture", "embed_dim"): 16384},
    "image of towers": {(*VISION, "image_size"): 10**9},
    "image": {("image_size",): 10**9},
    "words": {(*TEXT, "vocab_size"): 10**9},
    "as many words as may be": {(*TEXT, "vocab_size"): 2**21},
    "context": {(*TEXT, "context_length"): 10**8},
    "as much context as may be": {(*TEXT, "context_length"): 2048},
    "hidden": {("hidden",): 10**9},
    "as hidden as may be": {("hidden",): 8192},
    "heads": {("heads",): 10**9},
    "kernel": {("kernel_size",): 100001},
    "as large a kernel as may be": {("kernel_size",): 63},
    "P2Tformer": {("p2t_layers",): 10**6},
    "as deep as may be": {("p2t_layers",): 64},
    "aggregation": {("aggregation_layers",): 10**6},
    "as many as may be": {("aggregation_layers",): 64},
    "window": {("window",): 10**9},
    "pad classes": {("pad_classes",): 10**9},
    "prompts": {("encoder", "prompt_tokens"): 10**9},
    "prompts of blocks": {("encoder", "finetune"): "prompt", ("encoder", "prompt_tokens"): 4096},
    "guidance": {("guidance_channels",): [10**9, 1]},
    "decoder": {("decoder_channels",): [16 * 10**8, 16]},
    "template": {("template",): "a" * 10**5 + "{}"},
    "templates": {("template",): ["a {}"] * 2000},
    # numbers and types
    "patch of nothing": {(*VISION, "patch_size"): 0},
    "patch of null": {(*VISION, "patch_size"): None},
    "heads of nothing": {(*VISION, "head_width"): 0},
    "text heads of nothing": {(*TEXT, "heads"): 0},
    "heads that do not divide": {(*TEXT, "heads"): 5},
    "patch larger than the image": {(*VISION, "patch_size"): 64},
    "no vision": {VISION: None},
    "vision in a list": {VISION: [1]},
    "text as text": {TEXT: "text"},
    "no text": {TEXT: DEL},
    "negative": {(*VISION, "layers"): -1},
    "text for a number": {(*VISION, "layers"): "3"},
    "true": {(*VISION, "layers"): True},
    "true for our number": {("hidden",): True},
    "true for a number that may be 1": {("aggregation_layers",): True},
    "text that would do": {("window",): "4"},
    "text for our number": {("hidden",): "32"},
    "null": {("hidden",): None},
    "a fraction": {("hidden",): 32.5},
    "nan": {("gamma",): float("nan")},
    "infinity": {("gamma",): float("inf")},
    "1e999": {("gamma",): "RAW1e999"},
    "a number of 10,000 digits": {("hidden",): "RAW" + "9" * 10_000},
    "nan in the tower": {(*VISION, "mlp_ratio"): float("nan")},
    "huge ratio": {(*VISION, "mlp_ratio"): 1e18},
    "guidance beyond": {("encoder", "guidance_blocks"): [0, 10**9]},
    "std 0": {("encoder", "std"): [0, 1, 1]},
    "unknown key": {("nonsense",): 1},
    "unknown of the architecture": {("encoder", "architecture", "output_dict"): True},
    "unknown of vision": {(*VISION, "depth"): 3},
    "unknown that paints": {(*TEXT, "\x1b[2J"): 3},
    "many unknown keys": {(f"key{i}",): i for i in range(5000)},
    "coca": {("encoder", "architecture", "multimodal_cfg"): {}},
    "another model": {("model_type",): "clip"},
    "no model": {("model_type",): DEL},
}
TEXTS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "deep inside": None,
    "huge": '{"model_type": "fgaseg", "template": "' + "a" * 10**7 + '"}',
    "list": "[1, 2]", "number": "3", "empty": "", "cut": '{"model_type": "fgaseg", ', "not text": "\udcff\udcfe",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model().save_pretrained(folder)
    return folder


def changed(saved, folder, name, changes):
    """A copy of a saved model, with another config.json."""
    path = folder / name.replace(" ", "-").replace("/", "-")
    path.mkdir()
    (path / "model.safetensors").hardlink_to(saved / "model.safetensors")
    (folder / "secret").write_text(SECRET)
    config = json.loads((saved / "config.json").read_text())
    for keys, value in changes.items():
        part = config
        for key in keys[:-1]:
            part = part[key]
        if value is DEL:
            del part[keys[-1]]
        else:
            part[keys[-1]] = copy.deepcopy(value)
    text = json.dumps(config).replace("{secret}", str(folder / "secret")).replace("{folder}", str(folder))
    for raw in [value for value in changes.values() if isinstance(value, str) and value.startswith("RAW")]:
        text = text.replace(f'"{raw}"', raw[3:])
    (path / "config.json").write_text(text)
    return path


def load_all(tmp_path, saved, paths):
    """What `hostile_loading` says of every folder."""
    listed = tmp_path / "list"
    listed.write_text("\n".join(map(str, [saved, *paths])))
    run = subprocess.run([sys.executable, str(ROOT / "tests" / "hostile_loading.py"), str(listed)], capture_output=True,
                         text=True, timeout=600)  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) == len(paths) + 1, run.stderr[-2000:]
    assert lines[0]["outcome"] == "loaded" and not lines[0]["opened"] and not lines[0]["reached"], lines[0]
    return dict(zip([path.name for path in paths], lines[1:], strict=True))


def test_no_configuration_fetches_opens_or_builds_anything_else(tmp_path, saved):
    folder = tmp_path / "models"
    folder.mkdir()
    paths = [changed(saved, folder, name, changes) for name, changes in CONFIGS.items()]
    for name, text in TEXTS.items():
        path = changed(saved, folder, name, {})
        if text is None:
            deep = '"facts": ' + "[" * 9000 + "]" * 9000
            text = (path / "config.json").read_text().replace('"encoder"', f'{deep}, "encoder"')
        (path / "config.json").write_text(text, errors="surrogateescape")
        paths.append(path)
    wrong = {}
    for name, found in load_all(tmp_path, saved, paths).items():
        lines = found["text"].splitlines()
        most = 21 if name == "many-unknown-keys" else 5 if "do not fit" in found["text"] else 2
        right = (
            found["outcome"] == "refused" and not found["opened"] and not found["reached"] and found["seconds"] < 5
            and 1 <= len(lines) <= most and all(line.isprintable() and len(line) < 600 for line in lines)
            and SECRET[:8] not in found["text"] and "Traceback" not in found["text"]
        )  # fmt: skip
        if not right:
            wrong[name] = found
    assert not wrong, json.dumps(wrong, indent=1)


def test_weights_that_are_flipped_cut_or_relabelled(tmp_path, saved):
    """Seeded damage to the file of weights: the header above all. Refused, or loaded with finite weights."""
    whole, chance, folder = (saved / "model.safetensors").read_bytes(), random.Random(0), tmp_path / "models"
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    first = next(key for key in header if key != "__metadata__")
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(8)]
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(8 + length)] ^= 1 << chance.randrange(8)
        damaged.append(bytes(data))

    def with_header(**entry):
        text = json.dumps({**header, first: {**header[first], **entry}}).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    damaged += [with_header(shape=[10**18]), with_header(shape=[-1]), with_header(dtype="BOOL"),
                with_header(data_offsets=[0, 10**15]), with_header(shape=[]), with_header(dtype="F8_E4M3"),
                struct.pack("<Q", 2**63) + whole[8:], struct.pack("<Q", 10**8) + b"{" * 200,
                whole[:8] + b"{" + b"[" * (length - 1) + whole[8 + length :]]  # fmt: skip
    paths = []
    for i, data in enumerate(damaged):
        path = folder / str(i)
        path.mkdir(parents=True)
        shutil.copy(saved / "config.json", path)
        (path / "model.safetensors").write_bytes(data)
        paths.append(path)
    for name, found in load_all(tmp_path, saved, paths).items():
        assert found["outcome"] in ("refused", "loaded") and not found["opened"], (name, found)
        assert found["outcome"] == "loaded" or len(found["text"].splitlines()) <= 5, (name, found)


def test_what_save_pretrained_wrote_before_still_loads(tmp_path, saved):
    """Without the keys that later versions added, and with encoders whose tokenizer comes along."""
    old = {("encoder", key): DEL for key in ("mean", "std", "dense", "pretrained")} | {("synonyms",): DEL}
    same = FGASeg.from_pretrained(changed(saved, tmp_path, "old", old)).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in tiny_model().state_dict().items())
    with pytest.raises(ConfigError, match="override encoder.pretrained: a saved model has all its weights"):
        fgaseg.load(saved, "encoder.pretrained=openai")
    with pytest.raises(ConfigError, match="override encoder.name: a saved model has its encoder, "):
        fgaseg.load(saved, "encoder=ViT-L-14")


def test_facts_of_others_are_text_in_a_card(tmp_path, saved):
    """The card of a model that was loaded and saved again holds no HTML, no line and no block that its facts bring."""
    hostile = "x\x1b[2J\n\n<script>alert(1)</script>```\n# Heading"
    rows = {hostile: {"images": hostile, "miou_gt": 0.5, "record": hostile}}
    training = {"data": hostile, "steps": 1, "batch": 1, "processes": 1, "recipe": {hostile: hostile}}
    facts = {key: hostile for key in ("name", "description", "source", "licence", "licence_id", "verified")}
    facts |= {"training": training, "results": rows, "published": {hostile: hostile}, "encoder": {"name": 3}}
    model = FGASeg.from_pretrained(changed(saved, tmp_path, "facts", {("facts",): facts}))
    model.save_pretrained(tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "<script" not in card and "\x1b" not in card and "\n# Heading" not in card and "&lt;script" in card
    assert card.count("```") == 6
    for wrong in ("text", [1], {"training": "x"}, {"results": {"a": {"miou_gt": "x"}}}, {"name": 3}, {"unknown": {}}):
        model = FGASeg.from_pretrained(changed(saved, tmp_path, str(hash(str(wrong))), {("facts",): wrong}))
        assert model.facts == {}
        model.save_pretrained(tmp_path / "again")


@pytest.fixture
def with_tokenizer(tmp_path):
    """A saved model that brings its tokenizer along."""
    source = make_tokenizer(tmp_path / "source")
    FGASeg(ModelConfig(encoder=encoder_section("SigLIP", source), **SIZES)).save_pretrained(tmp_path / "saved")
    shutil.rmtree(source)
    return tmp_path / "saved"


def test_tokenizers_of_saved_models(with_tokenizer, tmp_path):
    proof, settings = tmp_path / "proof", with_tokenizer / "tokenizer" / "tokenizer_config.json"
    (tmp_path / "secret").write_text(SECRET)
    (with_tokenizer / "tokenizer" / "mine.py").write_text(f"open({str(proof)!r}, 'w')\nclass Mine: pass\n")
    known = json.loads(settings.read_text())
    assert FGASeg.from_pretrained(with_tokenizer).encode(["cat"])
    for extra in ({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}, {"vocab_file": str(tmp_path / "secret")},
                  {"tokenizer_file": str(tmp_path / "secret")}, {"fast_tokenizer_files": ["../../secret"]},
                  {"init_inputs": [str(tmp_path / "secret")]}):  # fmt: skip
        settings.write_text(json.dumps(known | extra))
        with pytest.raises(fgaseg.errors.EncoderError, match="names other files or code; .* it is refused") as caught:
            FGASeg.from_pretrained(with_tokenizer)
        assert next(iter(extra)) in str(caught.value) and not proof.exists()
    settings.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="tokenizer_config.json: .*nested too deeply|Expecting"):
        FGASeg.from_pretrained(with_tokenizer)
    settings.write_text(json.dumps(known))
    for name in [one.name for one in settings.parent.iterdir()]:
        kept = (settings.parent / name).read_bytes()
        with (settings.parent / name).open("ab") as sparse:
            sparse.truncate(LARGEST_FILE + 1)
        with pytest.raises(fgaseg.errors.EncoderError, match=rf"{name}: has 134,217,729 bytes; .* at most 134,217,728"):
            FGASeg.from_pretrained(with_tokenizer)
        (settings.parent / name).write_bytes(kept)
    shutil.rmtree(with_tokenizer / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer: is missing: this model's tokenizer comes with its weights"):
        FGASeg.from_pretrained(with_tokenizer)


def test_a_saved_encoder_that_another_model_takes(tmp_path, saved):
    """`encoder.pretrained` and `train.init` read the same files in the same way."""
    path = changed(saved, tmp_path, "other", {("encoder", "mean"): "secret"})
    config = ModelConfig(encoder={**tiny_model().config.dump()["encoder"], "pretrained": str(path)})
    with pytest.raises(ConfigError, match="encoder.mean"):
        FGASeg(config)
    weights = read_weights(saved)
    weights["clip.visual.proj"][0, 0] = float("nan")
    write_weights(tmp_path / "nan.safetensors", weights)
    with pytest.raises(CheckpointError, match="NaN or infinite values: visual.proj"):
        FGASeg(config.override(**{"encoder.pretrained": str(tmp_path / "nan.safetensors")}))
    with pytest.raises(CheckpointError, match=r"NaN or infinite values: clip\.visual\.proj"):
        fgaseg.weights.warm_start(tiny_model(), tmp_path / "nan.safetensors", encoder={})


def test_released_checkpoints_with_sizes_that_are_not_there(tmp_path):
    """Shapes decide what is built from a file without a configuration: they have to be stored, and to fit."""
    from catseg import catseg_model

    from fgaseg.weights import to_released

    model = catseg_model()
    good, _ = to_released(model.state_dict(), model.config, quick_gelu=True)
    layer = next(key for key in good if "visual.transformer.resblocks.0.ln_1.weight" in key)
    words = next(key for key in good if key.endswith("token_embedding.weight"))
    for change in (
        {layer.replace("resblocks.0", "resblocks.1000000000"): good[layer]},
        {layer.replace("resblocks.0", "resblocks.200"): good[layer]},
        {words: good[words].new_zeros(1).expand(10**6, *good[words].shape[1:])},
    ):
        torch.save(good | change, Path(tmp_path / "model.pth"))
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            fgaseg.load(tmp_path / "model.pth")
        assert "model.pth" in str(caught.value) and len(str(caught.value).splitlines()) <= 3
