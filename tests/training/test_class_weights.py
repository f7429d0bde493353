"""Weights of classes in the loss: torch's own weighted losses, on any number of processes, by name."""

import json

import pytest
import torch
import torch.nn.functional as F
from runs import NAMES, configure

import fgaseg.training.gradients
import fgaseg.training.losses
from fgaseg.config import LossConfig
from fgaseg.errors import ConfigError
from fgaseg.model.head import Output
from fgaseg.training import train
from fgaseg.training.losses import class_weights, segmentation_losses

CLASSES = ["road", "car", "sky"]
GIVEN = {"sky": 0.25, "road": 3.0}
WEIGHTS = torch.tensor([3.0, 1.0, 0.25])
LABELS = torch.tensor([[[0, 1, 2, 255], [2, 2, 255, 255], [1, 0, 0, 1], [2, 1, 0, 0]]]).repeat(2, 1, 1)


def logits(seed=0):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def both_losses(config, chunk, monkeypatch):
    monkeypatch.setattr(fgaseg.training.losses, "CLASSES_PER_CHUNK", chunk)
    ours, auxiliary, theirs, theirs_auxiliary = logits(), logits(1), logits(), logits(1)
    got = segmentation_losses(Output(ours, ours, None, None, [auxiliary], None), LABELS, config,
                              class_weights=class_weights(config, CLASSES))  # fmt: skip
    if config.seg == "ce":
        expected = [F.cross_entropy(x, LABELS, WEIGHTS, ignore_index=255) for x in (theirs, theirs_auxiliary)]
    else:
        target = torch.stack([LABELS == c for c in range(3)], 1).float()
        expected = [F.binary_cross_entropy_with_logits(x, target, pos_weight=WEIGHTS[:, None, None])
                    for x in (theirs, theirs_auxiliary)]  # fmt: skip
    return got, (ours, auxiliary), expected, (theirs, theirs_auxiliary)


@pytest.mark.parametrize("chunk", [1, 2, 32])
@pytest.mark.parametrize("seg", ["ce", "bce"])
def test_they_are_torchs_weighted_losses_with_their_gradients(seg, chunk, monkeypatch):
    config = LossConfig(seg=seg, class_weights=GIVEN)
    got, ours, expected, theirs = both_losses(config, chunk, monkeypatch)
    torch.testing.assert_close(got["seg"], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(got["aux"], expected[1], rtol=1e-6, atol=0)
    got["loss"].backward()
    (expected[0] + config.lambda_aux * expected[1]).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("switches", [{}, {"class_balance": 0.5}, {"seg": "bce"}], ids=str)
def test_those_of_two_processes_add_up(switches):
    config, maps = LossConfig(class_weights=GIVEN, **switches), logits()
    weights, counts, parts = class_weights(config, CLASSES), ([], []), []
    labels = torch.stack([LABELS[0], LABELS[0].flip(0).where(LABELS[0] != 1, 255)])

    def part(rows, world):
        out = Output(maps[rows], maps[rows], None, None, [], None)
        return segmentation_losses(out, labels[rows], config, sum_over_ranks=world, class_weights=weights)["loss"]

    whole = part(slice(0, 2), None)
    halves = (slice(0, 1), slice(1, 2))
    for rows, own in zip(halves, counts, strict=True):
        part(rows, lambda count, own=own: own.append(count) or count)
    for rows in halves:
        left = iter([sum(pair) for pair in zip(*counts, strict=True)])
        parts.append(part(rows, lambda _, left=left: next(left)))
    torch.testing.assert_close(sum(parts), whole)


def test_weights_of_one_change_nothing_and_a_weight_of_zero_leaves_a_class_out():
    out = Output(logits(), logits(), None, None, [], None)
    plain = segmentation_losses(out, LABELS, LossConfig())["loss"]
    ones = LossConfig(class_weights={"car": 1.0})
    assert torch.equal(
        segmentation_losses(out, LABELS, ones, class_weights=class_weights(ones, CLASSES))["loss"], plain
    )
    zero = LossConfig(class_weights={"car": 0.0})
    without = segmentation_losses(out, LABELS.where(LABELS != 1, 255), LossConfig())["loss"]
    got = segmentation_losses(out, LABELS, zero, class_weights=class_weights(zero, CLASSES))["loss"]
    torch.testing.assert_close(got, without)


def test_a_configuration_with_weights_is_never_trained_without_them():
    out = Output(logits(), logits(), None, None, [], None)
    with pytest.raises(ValueError, match="class_weights"):
        segmentation_losses(out, LABELS, LossConfig(class_weights=GIVEN))


def test_equal_names_have_one_weight_and_an_unknown_one_is_named():
    config = LossConfig(class_weights={"bank": 2.0})
    assert class_weights(config, ["bank", "car", "bank"]).tolist() == [2.0, 1.0, 2.0]
    assert class_weights(LossConfig(), CLASSES) is None and class_weights(LossConfig(class_weights={}), CLASSES) is None
    with pytest.raises(ConfigError, match=r"class_weights: 'cars' is none of the 3 classes; did you mean 'car'\?"):
        class_weights(LossConfig(class_weights={"cars": 2.0}), CLASSES)
    with pytest.raises(ConfigError, match="'xyz' is none of the 3 classes; did you mean '"):  # like none of them
        class_weights(LossConfig(class_weights={"xyz": 2.0}), ["abc", "def", "ghi"])
    with pytest.raises(ConfigError, match="every class has weight 0"):
        class_weights(LossConfig(class_weights=dict.fromkeys(CLASSES, 0.0)), CLASSES)


@pytest.mark.parametrize("name, text", [("w.yaml", "sky: 0.5\ncat: 4\n"), ("w.json", '{"sky": 0.5, "cat": 4}')])
def test_a_file_becomes_part_of_the_configuration(data, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = configure(data, tmp_path / "out", [f"model.loss.class_weights={tmp_path / name}"])
    assert config.model.loss.class_weights == {"sky": 0.5, "cat": 4.0}
    assert json.loads(config.to_json())["model"]["loss"]["class_weights"] == {"sky": 0.5, "cat": 4.0}
    (tmp_path / name).unlink()
    assert config.override("train.steps=9").model.loss.class_weights == {"sky": 0.5, "cat": 4.0}


@pytest.mark.parametrize(
    "value, words",
    [("{sky: -1}", "greater than or equal to 0"), ("{sky: much}", "valid number"), ("{sky: .inf}", "finite"),
     ("gone.yaml", "gone.yaml: cannot be read"), ("{7: 2.0}", "7 is no class name: write it in quotes"),
     ("{no: 2.0}", "False is no class name: write it in quotes"),
     ("list.yaml", "list.yaml: expected class names with their weights (car: 2.0), got list")],
)  # fmt: skip
def test_what_is_no_weight_is_one_line(data, tmp_path, monkeypatch, value, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1.0\n- 2.0\n")
    with pytest.raises(ConfigError) as caught:
        configure(data, tmp_path, [f"model.loss.class_weights={value}"])
    assert words in str(caught.value) and "class_weights" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_step_trains_with_those_of_its_own_classes(data, tmp_path, monkeypatch):
    """With classes_per_step the classes of a step are a part of the names."""
    original, seen = fgaseg.training.gradients.segmentation_losses, []

    def spying(out, labels, config, ignore, world, batch_labels, weights):
        seen.append((out.logits.shape[1], weights))
        return original(out, labels, config, ignore, world, batch_labels, weights)

    chosen, choose = [], fgaseg.training.gradients.StepVocabulary.choose

    def remembering(self, labels, step):
        found = choose(self, labels, step)
        chosen.append([NAMES[index] for index in found[1]])
        return found

    monkeypatch.setattr(fgaseg.training.gradients, "segmentation_losses", spying)
    monkeypatch.setattr(fgaseg.training.gradients.StepVocabulary, "choose", remembering)
    given = {name: float(2 + index) for index, name in enumerate(NAMES)}
    words = [f"model.loss.class_weights={json.dumps(given)}", "train.classes_per_step=2", "train.steps=4",
             "train.batch=1", "train.eval_every=0"]  # fmt: skip
    train(configure(data, tmp_path, words), progress=False)
    assert len(seen) == 4 and len({tuple(names) for names in chosen}) > 1
    for (classes, weights), names in zip(seen, chosen, strict=True):
        assert classes == len(names) < len(NAMES) and weights.tolist() == [given[name] for name in names]
    with pytest.raises(ConfigError, match="'catt' is none of the 6 classes; did you mean 'cat'"):
        train(configure(data, tmp_path / "other", ["model.loss.class_weights={catt: 2}"]), progress=False)
