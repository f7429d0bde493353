"""What a stranger hands over is recognised by its keys: one line that says what it seems to be and what to do."""

import pytest
import torch
from tiny import tiny_model

from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.errors import CheckpointError
from fgaseg.weights import read_released, to_released, warm_start, write_weights
from fgaseg.weights.recognition import CAT_SEG, recognise

CATSEG = {"preset": "released", "p2t_layers": 0, "t2p": False, "lcs": False}
CLIP = ["visual.conv1.weight", "visual.transformer.resblocks.0.attn.in_proj_weight", "visual.proj", "logit_scale",
        "token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.weight"]  # fmt: skip
MASK2FORMER = ["sem_seg_head.pixel_decoder.input_proj.0.0.weight", "sem_seg_head.predictor.query_feat.weight",
               "criterion.empty_weight"]  # fmt: skip
RESNET = ["backbone.stem.conv1.weight", "backbone.res2.0.conv1.weight", "backbone.res2.0.conv1.norm.running_mean"]
SWIN = ["backbone.patch_embed.proj.weight", "backbone.layers.0.blocks.0.attn.qkv.weight", "backbone.norm0.weight"]

# keys as the public code of each registers them -> words of the line
STRANGERS = {
    "CLIP of OpenAI or open_clip": (CLIP, "CLIP.* alone.*model.encoder.pretrained"),
    "open_clip with a timm tower": (
        ["visual.trunk.blocks.0.attn.q_proj.weight", "text.ln_final.weight"],
        "alone.*model.enc",
    ),
    "EVA-CLIP": (
        ["visual.blocks.0.attn.q_bias", "visual.cls_token", "text.ln_final.weight", "logit_scale"],
        "EVA-CLIP alone.*model.encoder.name=EVA02-B-16",
    ),
    "CLIP of transformers": (
        [
            "vision_model.encoder.layers.0.layer_norm1.weight",
            "text_model.final_layer_norm.weight",
            "visual_projection.weight",
        ],
        "transformers.*open_clip",
    ),
    "CLIPSeg": (["clip.vision_model.embeddings.class_embedding", "decoder.reduces.0.weight"], "CLIPSeg"),
    "SAN": (
        ["side_adapter_network.query_embed", "clip_visual_extractor.conv1.weight", "ov_classifier.bg_embed"],
        "SAN",
    ),
    "ODISE": ([*MASK2FORMER, "category_head.text_proj.weight"], "ODISE"),
    "OVSeg": ([*SWIN, *MASK2FORMER, "clip_adapter.clip_model.visual.conv1.weight"], "OVSeg"),
    "FC-CLIP": ([*MASK2FORMER, "backbone.clip_model.visual.trunk.stem.0.weight", "void_embedding.weight"], "FC-CLIP"),
    "FC-CLIP, its head": ([*MASK2FORMER, "void_embedding.weight"], "FC-CLIP"),
    "ViT of transformers": (["embeddings.cls_token", "encoder.layer.0.norm1.weight"], "image encoder alone"),
    "ViT of timm, without a class token": (["blocks.0.attn.qkv.weight", "norm.weight"], "image encoder alone"),
    "Mask2Former": ([*RESNET, *MASK2FORMER], "Mask2Former"),
    "detectron2": ([*RESNET, "proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight"], "detectron2"),
    "SAM": (
        ["image_encoder.pos_embed", "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"],
        "Segment An",
    ),
    "mmsegmentation": (
        ["backbone.stem.0.weight", "decode_head.conv_seg.weight", "auxiliary_head.conv_seg.bias"],
        "mmseg",
    ),
    "SegFormer": (["segformer.encoder.patch_embeddings.0.proj.weight", "decode_head.classifier.weight"], "SegFormer"),
    "torchvision": (["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "classifier.4.weight"], "torchvision"),
    "ResNet": (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "image classifier"),
    "DINO": (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight"], "image encoder alone"),
    "LoRA (PEFT)": (["base_model.model.visual.blocks.0.attn.q_proj.lora_A.weight"], "LoRA.*merge"),
    "LoRA (kohya)": (
        ["lora_unet_down_blocks_0_attn.lora_down.weight", "lora_unet_down_blocks_0_attn.alpha"],
        "LoRA.*merge",
    ),
    "diffusers": (["down_blocks.0.resnets.0.conv1.weight", "mid_block.attentions.0.norm.weight"], "diffusion"),
    "latent diffusion": (
        ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.bias"],
        "diffu",
    ),
    "something else": (
        [f"stages.{n}.weight" for n in range(300)],
        r"300 of its 300 keys are unknown here, such as stages\.0",
    ),
}


@pytest.mark.parametrize("keys, words", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_named_in_one_line(keys, words, tmp_path):
    write_weights(tmp_path / "x.safetensors", {key: torch.zeros(2) for key in keys})
    for read in (read_released, lambda file: warm_start(tiny_model(), file, encoder={"quick_gelu": True})):
        with pytest.raises(CheckpointError, match=f"x.safetensors: .*{words}") as caught:
            read(tmp_path / "x.safetensors")
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def catseg_weights() -> dict[str, torch.Tensor]:
    model = tiny_model(**CATSEG)
    return to_released(model.state_dict(), model.config, quick_gelu=True)[0]


@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["ResNet", "Swin"])
def test_catseg_of_2023_is_refused_with_an_explanation(backbone):
    weights = {key: x for key, x in catseg_weights().items() if not key.startswith("upsample") and "padding" not in key}
    weights |= {key: torch.zeros(2) for key in backbone}
    with pytest.raises(CheckpointError, match="CAT-Seg of 2023, with a second image backbone.*cat-seg-b16") as caught:
        FGASeg.from_released(weights)
    assert len(str(caught.value).splitlines()) == 1


def test_a_catseg_with_a_backbone_besides_can_be_read_without_it():
    weights = catseg_weights() | {key: torch.zeros(2) for key in RESNET}
    read = read_released(weights)
    with pytest.raises(CheckpointError, match="3 unknown to CAT-Seg: backbone.stem.conv1.weight"):
        read.load_into(tiny_model(**CATSEG))
    assert read.load_into(tiny_model(**CATSEG), allow_foreign=True).foreign == RESNET


def test_copies_of_the_weights_beside_them_can_be_left_aside():
    weights = catseg_weights()
    weights |= {f"{name}.{key}": x for name in ("ema", "teacher") for key, x in weights.items()}
    report = read_released(weights).load_into(tiny_model(**CATSEG), allow_foreign=True)
    assert 2 * (len(report.mapped) + len(report.ignored)) == len(report.foreign)


def test_rskt_seg_is_refused_although_most_of_its_keys_are_known():
    other = {"sem_seg_head.predictor.clip_model_remote.visual.proj": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="RSKT-Seg model, with a second CLIP"):
        FGASeg.from_released(catseg_weights() | other)


@pytest.mark.parametrize(
    "data", [{"state": {}, "param_groups": []}, {"optimizer": {"state": {}, "param_groups": []}, "step": 3}]
)
def test_an_optimizer_alone_is_named(data, tmp_path):
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth: the state of an optimizer, without the weights"):
        FGASeg.from_released(tmp_path / "x.pth")


def test_models_of_fgaseg_are_sent_to_from_pretrained():
    for model in (tiny_model(), tiny_model(propagation=False, p2t_layers=0, t2p=False, lcs=False)):
        with pytest.raises(CheckpointError, match="an fgaseg model already.*from_pretrained"):
            read_released(model.state_dict())


def test_half_of_the_keys_may_be_unknown():
    known = ["transformer.conv1.weight", "sem_seg_head.predictor.transformer.conv1.bias"]
    assert recognise([*known, "a", "b"], "file") is CAT_SEG
    with pytest.raises(CheckpointError, match="^file: 3 of its 5 keys are unknown here, such as a, b, c; only"):
        recognise([*known, "a", "b", "c"], "file")


def test_many_keys_that_do_not_fit_are_listed_once_each():
    weights = catseg_weights()
    weights |= {f"sem_seg_head.predictor.transformer.experts.{n}.gate.weight": torch.zeros(2) for n in range(40)}
    read = read_released(weights)
    with pytest.raises(CheckpointError, match=r"40 unknown to CAT-Seg: \S*experts\.#\.gate\.weight \(40\)$"):
        read.load_into(tiny_model(**CATSEG))


def test_the_command_says_it_too(tmp_path, capsys):
    write_weights(tmp_path / "san.safetensors", {"side_adapter_network.query_embed": torch.zeros(2)})
    assert main(["convert", str(tmp_path / "san.safetensors"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "seems to be a SAN model" in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
