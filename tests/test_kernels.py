"""All ways to compute attention agree, in values and in gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchbeats import kernels

# Outputs are means of values of unit scale, so float32 in another order differs by a few 1e-7; see the golden files.
CLOSE = {"rtol": 0, "atol": 2e-5}

PADDINGS = ("none", "behind", "scattered", "whole row but one")


def padding(kind, B, S):
    """``(B, S)`` bool, True = padding, at least one key of each row visible; None for "none"."""
    if kind == "none":
        return None
    if kind == "whole row but one":
        mask = torch.ones(B, S, dtype=torch.bool).index_fill(0, torch.arange(1, B), False)
    elif kind == "behind":
        mask = torch.arange(S) >= torch.randint(1, S + 1, (B, 1))
    else:
        mask = torch.rand(B, S) < 0.5
    mask[range(B), torch.randint(S, (B,)) if kind != "behind" else 0] = False
    return mask


@st.composite
def cases(draw):
    """Arguments of `kernels.attention`, by name."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    B, H, T, S, D = (draw(st.integers(1, top)) for top in (3, 3, 9, 9, 5))
    case = {"q": torch.randn(B, H, T, D), "k": torch.randn(B, H, S, D), "v": torch.randn(B, H, S, D)}
    if draw(st.booleans()):
        case["bias"] = torch.randn(draw(st.sampled_from([1, B])), H, T, S)
        if draw(st.booleans()):
            case["gate"] = torch.randn(B, H, T, 1)
    case["key_padding_mask"] = padding(draw(st.sampled_from(PADDINGS)), B, S)
    if draw(st.booleans()):
        case["attn_mask"] = torch.randn(draw(st.sampled_from([1, B])), draw(st.sampled_from([1, H])), T, S)
    return case


def by_definition(q, k, v, bias=None, gate=None, key_padding_mask=None, attn_mask=None):
    """The formula, in float64."""
    scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.size(-1))
    if bias is not None:
        scores = scores + (bias.double() if gate is None else gate.double() * bias.double())
    if attn_mask is not None:
        scores = scores + attn_mask.double()
    if key_padding_mask is not None:
        scores = scores.masked_fill(key_padding_mask[:, None, None], -math.inf)
    return (scores.softmax(-1) @ v.double()).float()


def by_weights(v, **rest):
    return kernels.attention_weights(**rest) @ v


def fused(q, **rest):
    return kernels.attention(q.detach().requires_grad_(), **rest).detach()


def without_autograd(**case):
    with torch.no_grad():
        return kernels.attention(**case)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_all_ways_agree(case):
    expected = by_definition(**case)
    for way in (without_autograd, fused, by_weights):
        torch.testing.assert_close(way(**case), expected, **CLOSE, msg=lambda text, way=way: f"{way.__name__}: {text}")


@settings(max_examples=25, deadline=None)
@given(cases())
def test_gradients_agree(case):
    names = [name for name in ("q", "k", "v", "bias", "gate") if name in case]
    upstream = torch.randn(case["q"].shape)
    gradients = []
    for way in (kernels.attention, by_weights, by_definition):
        leaves = {name: case[name].clone().requires_grad_() for name in names}
        way(**{**case, **leaves}).backward(upstream)
        gradients.append([leaves[name].grad for name in names])
    # Sums over up to 27 queries of unit scale: an order of magnitude more than the outputs' own rounding.
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=2e-4)
    torch.testing.assert_close(gradients[1], gradients[2], rtol=0, atol=2e-4)


@pytest.mark.parametrize("learned", ["q", "k", "v", "bias", "gate", "attn_mask"])
def test_every_float_argument_may_be_learned_alone(learned):
    B, H, T, D = 2, 2, 5, 4
    case = {name: torch.randn(B, H, T, D) for name in ("q", "k", "v")}
    case |= {"bias": torch.randn(1, H, T, T), "gate": torch.randn(B, H, T, 1), "attn_mask": torch.randn(1, 1, T, T)}
    case[learned].requires_grad_()
    kernels.attention(**case).sum().backward()
    assert case[learned].grad is not None


def test_weights_sum_to_one_and_hide_padding():
    mask = torch.tensor([[False, True, False, True], [False, False, False, True]])
    weights = kernels.attention_weights(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 4), key_padding_mask=mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert not weights[mask[:, None, None].expand_as(weights)].any()
    assert weights[~mask[:, None, None].expand_as(weights)].all()


def test_weights_of_float64_are_float64_throughout():
    q, k = torch.randn(2, 1, 2, 5, 4, dtype=torch.float64)
    expected = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    torch.testing.assert_close(kernels.attention_weights(q, k), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_large_scores(dtype, learned):
    # Products of 60 * 60 * 64 = 230,400, more than float16 holds, before the division by sqrt(64).
    q, k = torch.full((1, 2, 3, 64), 60.0, dtype=dtype), torch.full((1, 2, 4, 64), 60.0, dtype=dtype)
    v = torch.randn(1, 2, 4, 64).to(dtype)
    y = kernels.attention(q.requires_grad_(learned), k, v)
    assert y.dtype == dtype
    # All scores are equal: the mean of the values. Half precision has 8 or 11 bits.
    expected = v.float().mean(2, keepdim=True).expand(-1, -1, 3, -1)
    torch.testing.assert_close(y.detach().float(), expected, rtol=2**-7, atol=2**-7)
    weights = kernels.attention_weights(q, k)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights.detach(), torch.full_like(weights, 0.25))


def test_dropout_leaves_out_weights_and_scales_the_rest():
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 50, 4), torch.zeros(1, 1, 40, 4), torch.ones(1, 1, 40, 1)
    y = kernels.attention(q, k, v, dropout=0.4)
    # Each output is the kept share of 40 equal weights over 0.6; over 50 rows five standard errors are 0.09.
    assert abs(y.mean() - 1) < 5 * (0.4 / 0.6 / (50 * 40)) ** 0.5
    assert y.std() > 0
    torch.testing.assert_close(kernels.attention(q, k, v), torch.ones(1, 1, 50, 1))


def test_arguments_stay_as_they_are():
    B, H, T, D = 2, 2, 5, 4
    case = {name: torch.randn(B, H, T, D) for name in ("q", "k", "v")}
    case |= {"bias": torch.randn(1, H, T, T), "gate": torch.randn(B, H, T, 1), "attn_mask": torch.randn(1, 1, T, T)}
    case["key_padding_mask"] = padding("behind", B, T)
    before = {name: value.clone() for name, value in case.items()}
    for way in (without_autograd, fused, by_weights):
        way(**case)
        assert all(torch.equal(case[name], before[name]) for name in case)
