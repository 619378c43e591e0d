"""All ways to compute attention agree, in values and in gradients; so do those of linear layers and rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import small_model
from torchbeats import kernels

# Outputs are means of values of unit scale, so float32 in another order differs by a few 1e-7; see the golden files.
CLOSE = {"rtol": 0, "atol": 2e-5}

TELLS_EXPORTING = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 never has the kernel of CUDA graphs"
)
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
        shape = (H, T + S - 1) if draw(st.booleans()) else (draw(st.sampled_from([1, B])), H, T, S)
        case["bias"] = torch.randn(shape)
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
        if bias.dim() == 2:  # by distance
            T, S = scores.shape[2:]
            bias = torch.stack([bias[:, T - 1 - i : T - 1 - i + S] for i in range(T)], dim=1)
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


def small_blocks(case, way):
    """With room for a clip or two, a head, or a few queries, as long sequences have it."""
    B, H, T, S = *case["q"].shape[:3], case["k"].size(2)
    for room in (2 * H * T * S, T * S, 2 * S):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "CACHED_SCORES", room)
            patch.setattr(kernels, "FEWEST_QUERIES", 1)
            patch.setattr(kernels, "SCORES_AT_ONCE", {"cpu": B * room, "cuda": B * room})
            yield way(**case)


def in_a_graph(q, k, v, bias, gate=None, key_padding_mask=None):
    with torch.no_grad():
        return kernels._flex(q, k, v, bias, gate, key_padding_mask)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_all_ways_agree(case):
    expected = by_definition(**case)
    for way in (without_autograd, fused, by_weights):
        torch.testing.assert_close(way(**case), expected, **CLOSE, msg=lambda text, way=way: f"{way.__name__}: {text}")


@settings(max_examples=40, deadline=None)
@given(cases())
def test_blocks_of_any_size_agree(case):
    expected = by_definition(**case)
    for way in (without_autograd, fused):
        for y in small_blocks(case, way):
            torch.testing.assert_close(y, expected, **CLOSE)


@TELLS_EXPORTING
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@settings(max_examples=15, deadline=None)
@given(cases())
def test_the_kernel_of_cuda_graphs_agrees(case):
    T, S = case["q"].size(2), case["k"].size(2)
    case["bias"] = torch.randn(case["q"].size(1), T + S - 1)
    case.pop("attn_mask", None)
    torch.testing.assert_close(in_a_graph(**case), by_definition(**case), **CLOSE)


@TELLS_EXPORTING
@pytest.mark.parametrize("how", ["compiled", "exported", "strictly exported"])
def test_only_compiled_graphs_have_the_kernel_of_cuda(monkeypatch, how):
    class Attention(nn.Module):
        def forward(self, *arguments):
            return kernels.attention(*arguments)

    asked = []
    monkeypatch.setattr(kernels, "_flex", lambda q, *_: asked.append(1) or q)
    assert not kernels._may_flex(torch.empty(0))
    # The same question, whatever the device.
    monkeypatch.setattr(kernels, "_may_flex", lambda _: torch.compiler.is_compiling() and not kernels._exporting())
    q = torch.randn(2, 3, 5, 16)
    arguments = (q, q, q, torch.randn(3, 9), torch.randn(2, 3, 5, 1))
    with torch.no_grad():
        if how == "compiled":
            torch.compiler.reset()
            torch.compile(Attention(), backend="eager")(*arguments)
        else:
            torch.export.export(Attention(), arguments, strict=how != "exported")
    assert bool(asked) == (how == "compiled")


@settings(max_examples=10, deadline=None)
@given(cases())
def test_gradients_of_blocks_agree(case):
    names = [name for name in ("q", "k", "v", "bias", "gate") if name in case]
    upstream = torch.randn(case["q"].shape)

    def gradients(way):
        leaves = {name: case[name].clone().requires_grad_() for name in names}
        for y in way({**case, **leaves}):
            y.backward(upstream)
        return [leaves[name].grad for name in names]

    expected = gradients(lambda case: [by_definition(**case)])
    of_blocks = gradients(lambda case: small_blocks(case, kernels.attention))
    torch.testing.assert_close([g / 3 for g in of_blocks], expected, rtol=0, atol=2e-4)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_blocks_is_like_float32(dtype, monkeypatch):
    torch.manual_seed(0)
    B, H, T, D = 2, 3, 40, 16
    q, k, v = torch.randn(3, B, H, T, D)
    case = {"bias": torch.randn(H, 2 * T - 1), "gate": torch.rand(B, H, T, 1)}
    half = {name: value.to(dtype) for name, value in case.items()}
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", {"cpu": 7 * B * H * T, "cuda": 0})
    y = kernels.attention(q.to(dtype), k.to(dtype), v.to(dtype), **half)
    assert y.dtype == dtype
    assert F.cosine_similarity(y.float(), kernels.attention(q, k, v, **case), dim=-1).min() >= 0.999


class Largest(TorchDispatchMode):
    """Notes the most memory that a tensor of any operation had, in float32 numbers."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "learning"])
def test_no_square_of_a_long_sequence_is_ever_made(mode, padded, monkeypatch):
    T = 1600
    encoder = small_model(encoder_layers=2).encoder
    x = torch.randn(2, T, 48)
    mask = torch.arange(T) >= torch.tensor([[T], [1300]]) if padded else None
    monkeypatch.setattr(kernels, "CACHED_SCORES", 2**16)
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", {"cpu": 2**20, "cuda": 2**20})
    if mode == "learning":
        encoder.requires_grad_(True)
    with torch.set_grad_enabled(mode == "learning"), Largest() as largest:
        dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
        y = encoder.to(dtype)(x.to(dtype), mask)[0]
        if mode == "learning":
            y.sum().backward()
    assert T < largest.numbers < T * T / 2


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5)])
def test_linear_is_the_layer(shape, bias, gelu):
    layer, x = nn.Linear(5, 7, bias=bias), torch.randn(shape)
    expected = F.gelu(layer(x)) if gelu else layer(x)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = kernels.linear(layer, x, gelu=gelu)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
        assert y.requires_grad == grad


def test_linear_takes_other_axes_orders_and_what_is_no_linear_layer():
    layer, x = nn.Linear(5, 7), torch.randn(5, 3).t()
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(layer, x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-6)
        assert kernels.linear(nn.Identity(), x) is x

        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        doubled = Doubled(5, 7)
        torch.testing.assert_close(kernels.linear(doubled, x), doubled(x))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_convolution_is_the_convolution(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    B, groups, width = (data.draw(st.integers(1, 4)) for _ in range(3))
    taps, T, pieces = (
        data.draw(st.integers(32, 41)),
        data.draw(st.integers(1, 300)),
        data.draw(st.sampled_from([1, 5, 64])),
    )
    C = groups * width
    inputs = [torch.randn(B, T, C), torch.randn(C, width, taps) / (width * taps) ** 0.5, torch.randn(C)]
    for tensor in inputs:
        tensor.requires_grad_(data.draw(st.booleans()))
    x, *kernel = inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SPECTRAL_PIECES", pieces)
        patch.setattr(kernels, "SPECTRAL_STEPS", 1)
        patch.setattr(F, "conv1d", None)  # not called
        y = kernels.convolution(x.transpose(1, 2), lambda: kernel[0], kernel[1], groups)
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    expected = F.conv1d(wide[0].transpose(1, 2), *wide[1:], padding=taps // 2, groups=groups)
    torch.testing.assert_close(y.double(), expected, **CLOSE)
    if any(tensor.requires_grad for tensor in inputs):
        direction = torch.randn_like(y)
        y.backward(direction)
        expected.backward(direction.double())
        for ours, theirs in zip(inputs, wide, strict=True):
            if ours.requires_grad:  # of a weight: a sum over all steps of all clips, so errors add up
                torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("T", "taps", "dtype", "spectral"),
    [(600, 64, torch.float32, True), (15, 64, torch.float32, False), (600, 31, torch.float32, False),
     (600, 64, torch.float64, False), (600, 64, torch.bfloat16, False)],
)  # fmt: skip
def test_convolution_takes_the_way_that_pays(T, taps, dtype, spectral, monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "_spectral_convolution", lambda x, *_: calls.append(x) or x)
    x, kernel, bias = torch.randn(2, 64, T, dtype=dtype), torch.randn(64, 32, taps, dtype=dtype), torch.randn(64)
    kernels.convolution(x, lambda: kernel, bias.to(dtype), 2)
    assert len(calls) == spectral
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):  # as in float32, which is what is faster there
        kernels.convolution(x, lambda: kernel, bias.to(dtype), 2)
    assert len(calls) == (spectral or dtype == torch.bfloat16)


@pytest.mark.parametrize("T", [1, 9, 40, 300])
@pytest.mark.parametrize("taps", [32, 35])
def test_a_kernel_that_is_not_trained_is_transformed_once(T, taps):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 3, taps) / 10, requires_grad=False)
    made = []

    def kernel():
        made.append(1)
        return 2 * weight

    for B in (1, 3):
        x, bias = torch.randn(B, 6, T, requires_grad=True), torch.randn(6)
        expected = F.conv1d(x, 2 * weight, bias, padding=taps // 2, groups=2)
        y = kernels.convolution(x, kernel, bias, 2, weight)
        torch.testing.assert_close(y, expected, **CLOSE)
        direction = torch.randn_like(y)
        gradients = [torch.autograd.grad(result, x, direction)[0] for result in (y, expected)]
        torch.testing.assert_close(*gradients, **CLOSE)
    assert len(made) == 1
    weight.requires_grad_()
    kernels.convolution(x, kernel, bias, 2, weight).sum().backward()  # trained: made anew, and what was kept is gone
    assert weight.grad is not None
    with torch.no_grad():
        kernels.convolution(x, kernel, bias, 2, weight)
    assert len(made) == 3


def test_who_watches_a_layer_sees_it_called_once_for_all_rows():
    model, x = small_model(encoder_layers=1).encoder, torch.randn(2, 1100, 48)
    with torch.no_grad():
        expected, seen = model(x)[0], []
        layer = model.layers[0]
        for part in (layer.fc1, layer.fc2, layer.self_attn.q_proj):
            part.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
        torch.testing.assert_close(model(x)[0], expected, **CLOSE)
    assert seen == [(2, 1100, 48), (2, 1100, 96), (2, 1100, 48)]


def test_rows_at_a_time_are_all_rows():
    x = torch.randn(3, 700, 2)
    sizes = []
    y = kernels.by_rows(lambda rows: sizes.append(rows.shape[:-1].numel()) or 2 * rows, x)
    assert torch.equal(y, 2 * x)
    assert sizes == [kernels.ROWS_AT_ONCE, kernels.ROWS_AT_ONCE, 3 * 700 - 2 * kernels.ROWS_AT_ONCE]
    assert torch.equal(kernels.by_rows(lambda rows: 2 * rows, x.transpose(0, 1)), 2 * x.transpose(0, 1))


def test_dropout_leaves_out_weights_and_scales_the_rest():
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 50, 4), torch.zeros(1, 1, 40, 4), torch.ones(1, 1, 40, 1)
    y = kernels.attention(q, k, v, dropout=0.4)
    # Each output is the kept share of 40 equal weights over 0.6; over 50 rows five standard errors are 0.09.
    assert abs(y.mean() - 1) < 5 * (0.4 / 0.6 / (50 * 40)) ** 0.5
    assert y.std() > 0
    torch.testing.assert_close(kernels.attention(q, k, v), torch.ones(1, 1, 50, 1))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_draws_elements_by_themselves(p):
    torch.manual_seed(0)
    x = torch.ones(7, 9, 5003, requires_grad=True)  # no multiple of the four that share a word
    y = kernels.drop(x, p)
    kept = (y > 0).flatten().float()
    deviation = (p * (1 - p) / len(kept)) ** 0.5
    assert kept.mean() == pytest.approx(1 - p, abs=5 * deviation + 1e-5)
    for place in range(4):  # in a word
        assert kept[place::4].mean() == pytest.approx(1 - p, abs=10 * deviation + 1e-5)
    for apart in (1, 2, 3, 4, 5003):
        both = (kept[apart:] * kept[:-apart]).mean()
        assert both == pytest.approx((1 - p) ** 2, abs=10 * deviation + 2e-5)
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    assert not torch.equal(kernels.drop(x, p), y)
    torch.manual_seed(0)
    assert torch.equal(kernels.drop(x, p), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dropout_keeps_the_dtype(dtype):
    y = kernels.drop(torch.ones(3, 5, dtype=dtype), 0.5)
    assert y.dtype == dtype
    assert set(y.flatten().tolist()) == {0.0, 2.0}


def test_dropout_at_its_ends_and_of_nothing():
    x = torch.randn(3, 5)
    assert torch.equal(kernels.drop(x, 0), x)
    assert torch.equal(kernels.drop(x, 1), torch.zeros(3, 5))
    assert kernels.drop(x[:0], 0.5).shape == (0, 5)


def test_arguments_stay_as_they_are():
    B, H, T, D = 2, 2, 5, 4
    case = {name: torch.randn(B, H, T, D) for name in ("q", "k", "v")}
    case |= {"bias": torch.randn(1, H, T, T), "gate": torch.randn(B, H, T, 1), "attn_mask": torch.randn(1, 1, T, T)}
    case["key_padding_mask"] = padding("behind", B, T)
    before = {name: value.clone() for name, value in case.items()}
    for way in (without_autograd, fused, by_weights):
        way(**case)
        assert all(torch.equal(case[name], before[name]) for name in case)


def test_under_autocast_on_a_cpu_attention_and_convolution_differ_by_rounding_only():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 16, requires_grad=True) for _ in range(3))
    table, gate = torch.randn(3, 39, requires_grad=True), torch.rand(2, 3, 20, 1, requires_grad=True)
    padding = torch.arange(20) >= torch.tensor([[20], [13]])
    x, kernel, bias = torch.randn(2, 32, 50, requires_grad=True), torch.randn(32, 8, 64) / 20, torch.randn(32)

    def results(half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            attended = kernels.attention(q, k, v, table, gate, padding).float()
            convolved = kernels.convolution(x, lambda: kernel, bias, 4).float()
        gradients = torch.autograd.grad((attended**2).sum() + (convolved**2).sum(), [q, k, v, table, gate, x])
        return [attended, convolved, *gradients]

    for exact, rounded in zip(results(False), results(True), strict=True):
        assert (exact - rounded).norm() < 0.02 * exact.norm()  # bfloat16 has eight bits: 0.004
