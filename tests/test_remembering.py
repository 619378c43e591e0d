"""What is kept is what the weights are now."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from helpers import small_model
from torchbeats import remembering
from torchbeats.remembering import can_remember, forget, remembered


def fixed(*values):
    return nn.Parameter(torch.tensor(values), requires_grad=False)


def through_data(weight):
    weight.data.mul_(3)


def through_numpy(weight):
    weight.numpy()[0] = 7


def by_another_tensor(weight):
    weight.data = torch.tensor([5.0, 6.0])


def exchanged(weight):
    weight.data = weight.data.copy_(weight.data.flip(-1))


def in_place(weight):
    weight.add_(1)


@pytest.mark.parametrize("change", [through_data, through_numpy, by_another_tensor, exchanged, in_place])
@pytest.mark.parametrize("which", [0, 1])
def test_it_is_made_once_and_again_after_any_change(change, which):
    weights, made = (fixed(1.0, 2.0), fixed(3.0, 4.0)), []

    def total():
        made.append(1)
        return weights[0] + weights[1]

    for _ in range(2):
        assert torch.equal(remembered(total, *weights), weights[0] + weights[1])
    assert len(made) == 1
    change(weights[which])
    assert torch.equal(remembered(total, *weights), weights[0] + weights[1])
    assert len(made) == 2


def test_what_was_made_without_autograd_serves_it():
    weight = fixed(1.0, 2.0)
    with torch.inference_mode():
        made = remembered(lambda: 2 * weight, weight)
    x = torch.ones(2, requires_grad=True)
    (x * made).sum().backward()
    assert torch.equal(x.grad, torch.tensor([2.0, 4.0]))


def test_it_goes_with_its_weights_or_when_it_is_forgotten():
    weight = fixed(1.0, 2.0)
    kept = weakref.ref(remembered(lambda: 2 * weight.detach(), weight))
    assert kept() is not None
    forget(weight)
    gc.collect()
    assert kept() is None
    other = fixed(3.0)
    kept = weakref.ref(remembered(lambda: torch.ones(1), other))
    del other
    gc.collect()
    assert kept() is None


def test_only_plain_parameters_are_watched():
    weight = fixed(1.0)
    assert can_remember(weight)
    assert not can_remember(weight, weight.detach())
    assert not can_remember(nn.Parameter(torch.ones(1, device="meta")))
    with torch.inference_mode():
        assert not can_remember(nn.Parameter(torch.ones(1), requires_grad=False))


def test_a_model_is_the_same_model_after_it_was_used():
    model, wav = small_model(conv_pos=32, conv_pos_groups=4), 0.1 * torch.randn(1, 16_000)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = len(pickle.dumps(model))
    with torch.inference_mode():
        expected = model(wav)[0]
    assert model.encoder.pos_conv[0].weight_v in remembering._made
    assert len(pickle.dumps(model)) == size
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    twin = copy.deepcopy(model)
    twin.encoder.pos_conv[0].weight_v.data.neg_()
    with torch.inference_mode():
        assert torch.equal(model(wav)[0], expected)
        assert not torch.allclose(twin(wav)[0], expected)
        twin.load_state_dict(before)
        assert torch.equal(twin(wav)[0], expected)


def test_a_changed_weight_changes_the_next_result():
    model, wav = small_model(conv_pos=32, conv_pos_groups=4), 0.1 * torch.randn(1, 16_000)
    with torch.no_grad():
        model(wav)
        for name in ("weight_g", "weight_v"):
            getattr(model.encoder.pos_conv[0], name).data.mul_(torch.tensor(1.5))
            getattr(model.encoder.pos_conv[0], name).data[..., 0] = 0.3
            weight = model.encoder.pos_conv[0].weight_v
            model(wav)
            weight.data.copy_(weight.data.flip(-1))  # the same values in other places
            kept = model(wav)[0]
            remembering._made.clear()
            assert torch.equal(kept, model(wav)[0])
