"""Sharded encoders in a process group of one: the numbers are those of whole ones, and what is saved is whole."""

import copy

import pytest
import torch
import torch.distributed as dist
from tiny import NAMES, pixels, tiny_model
from torch.distributed.tensor import DTensor

from fgaseg.training.sharding import (
    clip_gradients,
    load_optimizer_state,
    optimizer_state,
    shard_encoders,
    split_groups,
    unsharded,
    whole_encoders,
    whole_state,
)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trainable():
    return tiny_model(encoder={"finetune": "scratch"}).train()


def sharded_names(model):
    return {name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}


def optimizer(model):
    return torch.optim.AdamW(split_groups(model.parameter_groups(1e-3, 0.5, 0.1)), fused=True)


def backward(model):
    (model(pixels(2), model.encode(NAMES)).logits.square().mean() + model.embed_prompts(["a cat"]).sum()).backward()


def test_a_step_of_sharded_encoders_is_that_of_whole_ones(group):
    whole, model = trainable(), trainable()
    shard_encoders(model)
    parts = {
        name for name, _ in model.named_parameters() if "resblocks" in name and (".attn." in name or ".mlp." in name)
    }
    assert sharded_names(model) == parts and len(unsharded(model.parameters())) == len(
        dict(whole.named_parameters())
    ) - len(parts)
    adam, expected_adam = optimizer(model), optimizer(whole)
    for group in adam.param_groups:
        assert len({isinstance(parameter, DTensor) for parameter in group["params"]}) == 1
    for one, adams in ((whole, expected_adam), (model, adam)):
        backward(one)
        norm = clip_gradients(one.parameters(), 0.5)
        given = [p.grad for p in one.parameters() if p.grad is not None]
        left = torch.stack([g.full_tensor().norm() if isinstance(g, DTensor) else g.norm() for g in given]).norm()
        assert norm > 1 and left.item() == pytest.approx(0.5, rel=1e-4)
        adams.step()
    got, want = whole_state(model.state_dict()), whole.state_dict()
    assert got.keys() == want.keys() and not any(isinstance(value, DTensor) for value in got.values())
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)
    moments, expected = optimizer_state(model, adam), optimizer_state(whole, expected_adam)
    assert moments.keys() == expected.keys() and parts & moments.keys()
    for name, values in expected.items():
        for key, value in values.items():
            torch.testing.assert_close(moments[name][key], value, rtol=1e-3, atol=1e-6)
    # and back: an optimizer of sharded parameters takes what one of whole ones has saved
    again = optimizer(model)
    load_optimizer_state(model, again, copy.deepcopy(expected))
    for name, parameter in model.named_parameters():
        for key, value in again.state.get(parameter, {}).items():
            assert isinstance(value, DTensor) == (name in parts and key != "step")
    restored = optimizer_state(model, again)
    assert all(torch.equal(restored[name][key], value) for name in expected for key, value in expected[name].items())


def test_a_norm_is_that_before_clipping_and_small_gradients_stay(group):
    """By hand: 3, 4 and 12 make 13."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    parameters.append(torch.nn.Parameter(distribute_tensor(torch.zeros(2), mesh)))
    parameters[3].grad = distribute_tensor(torch.tensor([0.0, 12.0]), mesh)
    assert clip_gradients(parameters, 26.0) == 13 and parameters[1].grad[1] == 4
    assert clip_gradients(parameters[:3], 2.5) == 5 and parameters[2].grad is None
    assert parameters[1].grad[1].item() == pytest.approx(2) and parameters[3].grad.full_tensor()[1] == 12


def test_within_an_evaluation_the_encoders_are_whole(group):
    model = trainable()
    names = sharded_names(model)
    assert not names
    with whole_encoders(model):  # nothing is sharded: nothing to do
        pass
    shard_encoders(model)
    names = sharded_names(model)
    with pytest.raises(ZeroDivisionError), whole_encoders(model):
        assert not sharded_names(model)
        with torch.no_grad():
            model.encode(NAMES)
            model(pixels(), model.encode(NAMES))
        assert not sharded_names(model)  # and stay so from one picture to the next
        raise ZeroDivisionError
    assert sharded_names(model) == names
    backward(model)
    assert sharded_names(model) == names
