"""Training of the encoders alone by pictures and captions."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from own_encoder import Words
from runs import assert_same_run, configure, fail_at
from tiny import tiny_config

import fgaseg.training.captions
from fgaseg import Config, FGASeg
from fgaseg.errors import ConfigError, TrainingError
from fgaseg.notes import told_anew
from fgaseg.training import train
from fgaseg.training.captions import contrastive_loss, train_temperature
from fgaseg.training.random_streams import torch_seed
from fgaseg.training.trainer import Trainer

ALONE = ["model.propagation=false", "model.p2t_layers=0", "model.lcs=false", "model.t2p=false",
         "train.objective=captions", "model.encoder.finetune=scratch"]  # fmt: skip


def test_the_loss_is_the_mean_of_two_cross_entropies():
    torch.manual_seed(0)
    images, texts, scale = torch.randn(3, 8), torch.randn(7, 8), torch.tensor(5.0)
    loss, matched = contrastive_loss(images, texts, scale)
    cosine = F.cosine_similarity(images.double()[:, None], texts.double()[None], dim=-1) * 5
    by_image = -(cosine.softmax(1).diagonal().log()).mean()
    by_text = -(cosine[:, :3].softmax(0).diagonal().log()).mean()
    assert loss.item() == pytest.approx(((by_image + by_text) / 2).item(), rel=1e-6)
    assert matched.item() == pytest.approx((cosine.argmax(1) == torch.arange(3)).double().mean().item())
    perfect, found = contrastive_loss(images, torch.cat([images, -images]), torch.tensor(100.0))
    assert perfect < 1e-3 and found == 1


def test_gradients_of_the_loss():
    inputs = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5)]

    def loss(images, texts):
        # in float32 inside: compared with the gradient of the same formula in float64
        return contrastive_loss(images, texts, torch.tensor(3.0))[0]

    found = torch.autograd.grad(loss(*inputs), inputs)
    a, b = (F.normalize(x, dim=-1) for x in inputs)
    logits = 3.0 * a @ b.T
    expected = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits[:, :3].T, torch.arange(3))) / 2
    for one, other in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_encoders_learn_to_tell_pictures_by_captions(tmp_path):
    alone = {"propagation": False, "p2t_layers": 0, "lcs": False, "t2p": False}
    config = Config(
        model=tiny_config(**alone),
        data={"scenes": True, "crop": 32, "val_count": 2},
        train={"objective": "captions", "out": tmp_path, "steps": 40, "batch": 16, "lr": 2e-3, "encoder_lr_factor": 1.0,
               "eval_every": 0, "log_every": 5, "tensorboard": False},
    )  # fmt: skip
    summary = train(config, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.4 and set(summary.losses) >= {"loss", "matched"}
    before, after = FGASeg(config.model), FGASeg.from_pretrained(summary.model)
    assert after.clip.logit_scale != before.clip.logit_scale  # the temperature trains
    assert not after.clip.logit_scale.requires_grad  # and no other objective reads it


def test_only_classes_of_the_label_maps_reach_the_loss(data, tmp_path):
    """Where in a picture a class is makes no difference."""
    trainer = Trainer(configure(data, tmp_path, [*ALONE, "train.accumulate=1"]), progress=False)
    trainer._prepare()
    batch = trainer.batches.next(1)
    flipped = batch._replace(labels=batch.labels.flip(-1, -2))
    assert trainer.gradients.captions(batch.labels, 0) == trainer.gradients.captions(flipped.labels, 0)
    losses = [trainer.gradients.compute(one, 0)["loss"] for one in (batch, flipped)]
    assert losses[0] == losses[1]
    assert trainer.gradients.captions(batch.labels, 0)[1] != trainer.gradients.captions(batch.labels, 1)[1]


def test_classes_with_prompts_are_named_by_their_names_and_crops_are_resized(data, tmp_path):
    names = tmp_path / "prompts.txt"
    names.write_text((data / "names.txt").read_text().replace("grass", "grass | lawn | meadow"))
    given = [*ALONE, f"data.names={names}", "train.image_size=64"]
    trainer = Trainer(configure(data, tmp_path / "out", given), progress=False)
    trainer._prepare()
    batch = trainer.batches.next(1)
    sizes, tower = [], trainer.model.encoder.image_tower
    tower.pooled = lambda pixels: sizes.append(tuple(pixels.shape[-2:])) or type(tower).pooled(tower, pixels)
    trainer.gradients.compute(batch, 0)
    assert sizes == [(64, 64)]
    texts = [text for step in range(40) for text in trainer.gradients.captions(batch.labels, step)[1]]
    assert any("grass" in text for text in texts)
    assert not any(word in text for text in texts for word in ("lawn", "|", ":"))


def test_pictures_without_classes_are_left_out(data, tmp_path):
    trainer = Trainer(configure(data, tmp_path, ALONE), progress=False)
    trainer._prepare()
    batch = trainer.batches.next(1)
    labels = batch.labels.clone()
    labels[1] = 255
    shown, right, wrong = trainer.gradients.captions(labels, 0)
    assert shown == [0, 2, 3] and len(right) == 3 and len(wrong) == 3 * 3
    assert torch.isfinite(trainer.gradients.compute(batch._replace(labels=labels), 0)["loss"])
    labels[0] = 255
    assert trainer.gradients.captions(labels, 0)[0] == [2, 3]
    labels[2] = 255
    with pytest.raises(TrainingError, match="1 of the 4 pictures of step 1 show any class"):
        trainer.gradients.compute(batch._replace(labels=labels), 0)


def test_the_temperature_is_limited_and_a_step_draws_numbers_of_its_own(data, tmp_path, monkeypatch):
    trainer = Trainer(configure(data, tmp_path, ALONE), progress=False)
    trainer._prepare()
    batch, scales = trainer.batches.next(1), []
    monkeypatch.setattr(fgaseg.training.captions, "contrastive_loss", lambda images, texts, scale: scales.append(
        scale.item()) or contrastive_loss(images, texts, scale))  # fmt: skip
    for logarithm in (4.0, 10.0):
        with torch.no_grad():
            trainer.model.clip.logit_scale.fill_(logarithm)
        trainer.gradients.compute(batch, 5)
        assert torch.initial_seed() == torch_seed(0, 5, 0)
    assert scales == [pytest.approx(math.exp(4)), 100]


def test_where_pictures_cannot_be_compared_is_said(monkeypatch):
    own = FGASeg(tiny_config(encoder={"name": "words", "architecture": None, "finetune": "attention"}), Words())
    with pytest.raises(TrainingError, match=r"captions: .* has no embedding of whole pictures"):
        train_temperature(own)
    model = FGASeg(tiny_config())
    monkeypatch.setattr(fgaseg.training.captions, "world_size", lambda: 2)
    with pytest.raises(TrainingError, match="run it in one process"):
        train_temperature(model)


def test_captions_longer_than_the_context_are_told_once(data, tmp_path):
    for words, told in (("grass", 0), ("grass " * 90, 1)):
        names = tmp_path / "names.txt"
        names.write_text((data / "names.txt").read_text().replace("grass", words.strip()))
        trainer = Trainer(configure(data, tmp_path / "out", [*ALONE, f"data.names={names}"]), progress=False)
        trainer._prepare()
        batch = trainer.batches.next(1)
        with told_anew() as notes:
            for step in range(10):
                trainer.gradients.compute(batch, step)
        assert len([note for note in notes if "captions are cut after" in note]) == told


def test_an_interrupted_run_ends_in_the_same_weights(data, tmp_path):
    config = configure(data, tmp_path / "whole", ALONE)
    train(config, progress=False)
    broken = config.override(**{"train.out": tmp_path / "parts"})
    with pytest.raises(ZeroDivisionError):
        train(broken, progress=False, callbacks=[fail_at(5)])
    train(broken, progress=False)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["train.objective=captions"],
            "model.propagation, lcs, t2p to false and p2t_layers to 0 (now model.propagation",
        ),
        ([*ALONE, "train.accumulate=2"], "accumulate: captions compares the pictures of a batch"),
        (["train.objective=names"], "objective"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(data, tmp_path, overrides, words):
    with pytest.raises(ConfigError) as caught:
        configure(data, tmp_path, overrides)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
