"""Multi-head attention against the reference numbers, `torch.nn.MultiheadAttention` and its own definition."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import golden, shaken, under
from torchbeats import kernels
from torchbeats.attention import MultiheadAttention

CLOSE = {"rtol": 0, "atol": 2e-5}  # what the reference numbers ask of outputs of unit scale
C, H = 32, 4  # channels and heads of all golden cases, and of most tests here
BIAS = {"has_relative_attention_bias": True, "num_buckets": 32, "max_distance": 64}
GATED = {**BIAS, "gru_rel_pos": True}
SELF = {"self_attention": True}


def attention(seed=0, **options):
    """A seeded module in evaluation mode, none of whose parameters is at its initial zero or one."""
    torch.manual_seed(seed)
    options = {"embed_dim": C, "num_heads": H, **options}
    return shaken(MultiheadAttention(**options)).eval()


def causal(T):
    return torch.full((T, T), -math.inf).triu(1)


def padding_behind(counts, S):
    return torch.arange(S) >= torch.tensor(counts).unsqueeze(1)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, **CLOSE)


# The reference numbers


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        "cross",
        "cross_kdim",
        "self_before_softmax",
        "self_causal",
        "self_gated",
        "self_head_weights",
        "self_weights",
    ],
)
def test_attention_is_that_of_the_reference(case, grad):
    about, tensors = golden(f"attention_{case}")
    module = MultiheadAttention(C, H, **about["init"]).eval()
    module.load_state_dict(under(tensors, "model"))
    with torch.set_grad_enabled(grad):
        attn, weights, bias = module(**under(tensors, "in"), **about["call"])
    close(attn.detach(), tensors["out.attn"])
    if "out.weights" in tensors:
        expected = tensors["out.weights"]
        close(weights.detach(), expected.transpose(0, 1) if case == "self_head_weights" else expected)
    else:
        assert weights is None
    if "out.bias" in tensors:  # the reference repeats it for every clip
        close(bias.detach().repeat(2, 1, 1), tensors["out.bias"])
    else:
        assert bias is None


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (320, 800), (320, 1280)])
@pytest.mark.parametrize("direction", ["buckets", "buckets_causal"])
def test_buckets_are_those_of_the_reference(buckets, farthest, direction):
    tensors = golden(f"buckets_{buckets}_{farthest}")[1]
    module = attention(has_relative_attention_bias=True, num_buckets=buckets, max_distance=farthest)
    actual = module._relative_positions_bucket(tensors["positions"], bidirectional=direction == "buckets")
    assert torch.equal(actual, tensors[direction])


PROJECTIONS = {f"{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")} | {
    "out_proj.weight",
    "out_proj.bias",
}


@pytest.mark.parametrize(
    ("options", "added", "removed"),
    [
        ({}, set(), set()),
        ({"kdim": 20, "vdim": 24}, set(), set()),
        ({"rescale_init": True}, set(), {"k_proj.bias"}),
        ({"bias": False}, set(), {"q_proj.bias", "v_proj.bias", "out_proj.bias"}),
        ({"add_bias_kv": True}, {"bias_k", "bias_v"}, set()),
        ({"add_zero_attn": True}, set(), set()),
        ({"q_noise": 0.1}, set(), set()),
        (BIAS, {"relative_attention_bias.weight"}, set()),
        (GATED, {"relative_attention_bias.weight", "grep_linear.weight", "grep_linear.bias", "grep_a"}, set()),
    ],
)
def test_state_dict_has_the_names_of_the_reference(options, added, removed):
    module = MultiheadAttention(C, H, **options)
    assert set(module.state_dict()) == (PROJECTIONS | added) - removed
    x = torch.randn(5, 2, module.embed_dim)
    assert module(x, torch.randn(6, 2, module.kdim), torch.randn(6, 2, module.vdim))[0].shape == x.shape


def test_state_dict_has_the_shapes_of_the_reference():
    shapes = {name: tuple(value.shape) for name, value in attention(**GATED, add_bias_kv=True).state_dict().items()}
    assert shapes["grep_linear.weight"] == (8, C // H)
    assert shapes["grep_a"] == (1, H, 1, 1)
    assert shapes["relative_attention_bias.weight"] == (32, H)
    assert shapes["bias_k"] == shapes["bias_v"] == (1, 1, C)


# torch.nn.MultiheadAttention as the oracle


def torch_twin(module, **options):
    """PyTorch's own module with the same weights."""
    twin = nn.MultiheadAttention(
        module.embed_dim, module.num_heads, kdim=module.kdim, vdim=module.vdim, **options
    ).eval()
    projections = [module.q_proj, module.k_proj, module.v_proj]
    with torch.no_grad():
        if module.qkv_same_dim:
            twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        else:
            for name, projection in zip("qkv", projections, strict=True):
                getattr(twin, f"{name}_proj_weight").copy_(projection.weight)
        if twin.in_proj_bias is not None:
            twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        twin.out_proj.load_state_dict(module.out_proj.state_dict())
        if module.bias_k is not None:
            twin.bias_k.copy_(module.bias_k)
            twin.bias_v.copy_(module.bias_v)
    return twin


MASKS = {  # key 0 stays visible, without which PyTorch returns NaN
    "none": lambda B, H, T, S: None,
    "float": lambda B, H, T, S: torch.randn(T, S),
    "bool": lambda B, H, T, S: torch.rand(T, S).index_fill(1, torch.tensor([0]), 1) < 0.5,
    "float of each head": lambda B, H, T, S: torch.randn(B * H, T, S),
    "bool of each head": lambda B, H, T, S: torch.rand(B * H, T, S).index_fill(2, torch.tensor([0]), 1) < 0.5,
}


@st.composite
def cases(draw):
    """Options of a module, its inputs and its masks."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    B, heads, T, S = (draw(st.integers(1, top)) for top in (3, 3, 7, 7))
    options = {"embed_dim": 8 * heads, "num_heads": heads}
    if draw(st.booleans()):
        options |= {"kdim": 5, "vdim": 7}
    inputs = [torch.randn(T, B, 8 * heads)]
    inputs += [torch.randn(S, B, options.get(name, 8 * heads)) for name in ("kdim", "vdim")]
    masks = {"attn_mask": MASKS[draw(st.sampled_from(sorted(MASKS)))](B, heads, T, S)}
    if draw(st.booleans()):
        masks["key_padding_mask"] = torch.rand(B, S).index_fill(1, torch.tensor([0]), 1) < 0.5
    return options, inputs, masks


def assert_as_torch(case, **appended):
    options, inputs, masks = case
    module = attention(**options, **appended)
    twin = torch_twin(module, **appended)
    as_torch = dict(masks)
    if (mask := masks["attn_mask"]) is not None and mask.dtype == torch.float32 and "key_padding_mask" in masks:
        # PyTorch wants both masks of one dtype.
        padding = masks["key_padding_mask"]
        as_torch["key_padding_mask"] = torch.zeros(padding.shape).masked_fill(padding, -math.inf)
    expected, weights = twin(*inputs, **as_torch)
    head_weights = twin(*inputs, **as_torch, average_attn_weights=False)[1]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(module(*inputs, **masks, need_weights=False)[0], expected)
            attn, ours, _ = module(*inputs, **masks)
            close(attn, expected)
            close(ours, weights)
            close(module(*inputs, **masks, need_head_weights=True)[1], head_weights)


@settings(max_examples=25, deadline=None)
@given(cases(), st.booleans())
def test_attention_is_that_of_torch(case, bias):
    assert_as_torch(case, bias=True)


# SpeechBrain ignores it.
@settings(max_examples=15, deadline=None)
@given(cases())
def test_add_bias_kv_is_that_of_torch(case):
    assert_as_torch(case, add_bias_kv=True)


# SpeechBrain crashes.
@settings(max_examples=15, deadline=None)
@given(cases())
def test_add_zero_attn_is_that_of_torch(case):
    assert_as_torch(case, add_zero_attn=True)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_add_bias_kv_and_add_zero_attn_together_are_those_of_torch(case):
    assert_as_torch(case, add_bias_kv=True, add_zero_attn=True)


def test_without_biases_it_is_that_of_torch():
    module = attention(bias=False)
    nn.init.zeros_(module.k_proj.bias)  # PyTorch has none at all; a key bias shifts all scores of a query alike
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    expected = torch_twin(module, bias=False)(query, key, key)
    close(module(query, key)[:2], expected)


def test_apply_bias_appends_the_learned_key_and_visible_columns():
    module = attention(add_bias_kv=True)
    k, v, mask, padding = torch.randn(5, 2, C), torch.randn(5, 2, C), causal(5), torch.rand(2, 5) < 0.5
    new_k, new_v, new_mask, new_padding = module.apply_bias(k, v, 2, mask, padding)
    for new, old, learned in ((new_k, k, module.bias_k), (new_v, v, module.bias_v)):
        assert torch.equal(new, torch.cat([old, learned.expand(1, 2, C)]))
    assert torch.equal(new_mask, torch.cat([mask, torch.zeros(5, 1)], 1))
    assert torch.equal(new_padding, torch.cat([padding, torch.zeros(2, 1, dtype=torch.bool)], 1))
    assert module.apply_bias(k, v, 2)[2:] == (None, None)


def test_apply_bias_without_learned_keys_changes_nothing():
    given_ = torch.randn(5, 2, C), torch.randn(5, 2, C)
    returned = attention().apply_bias(*given_, 2)
    assert returned[0] is given_[0]
    assert returned[1] is given_[1]


# Where keys and values come from


def test_values_default_to_the_key():
    module, query, key = attention(), torch.randn(5, 2, C), torch.randn(7, 2, C)
    close(module(query, key)[0], module(query, key, key)[0])


def test_self_attention_looks_at_the_query_alone():
    module, x = attention(**SELF), torch.randn(5, 2, C)
    expected = attention()(x, x, x)[0]  # the same seed: the same weights
    close(module(x, None)[0], expected)
    close(module(x, torch.randn(7, 2, C), torch.randn(7, 2, C))[0], expected)


def test_encoder_decoder_attention_looks_at_the_key_alone():
    module, query, key = attention(encoder_decoder_attention=True), torch.randn(5, 2, C), torch.randn(7, 2, C)
    close(module(query, key, torch.randn(7, 2, C))[0], module(query, key)[0])


# Weights and scores


@pytest.mark.parametrize("options", [{}, BIAS, GATED, {**GATED, "add_bias_kv": True, "add_zero_attn": True}])
def test_weights_explain_the_output(options):
    module = attention(**options)
    query, key = torch.randn(5, 3, C), torch.randn(7, 3, C)
    padding = padding_behind([7, 4, 1], 7)
    S = 7 + 2 * ("add_bias_kv" in options)
    attn, heads, _ = module(query, key, key_padding_mask=padding, need_head_weights=True)
    assert heads.shape == (3, H, 5, S)  # (B, H, T, S): SpeechBrain has (H, B, T, S)
    torch.testing.assert_close(heads.sum(-1), torch.ones(3, H, 5))
    assert not heads[..., :7].masked_select(padding[:, None, None]).any()

    same, averaged, _ = module(query, key, key_padding_mask=padding, need_weights=True)
    assert averaged.shape == (3, 5, S)
    close(averaged, heads.mean(1))
    fast, none, _ = module(query, key, key_padding_mask=padding, need_weights=False)
    assert none is None
    close(same, attn)
    close(fast, attn)

    v = module(query, key, before_softmax=True)[1].unflatten(0, (3, H))
    mixed = (heads @ v).transpose(1, 2).reshape(3, 5, C).transpose(0, 1)
    close(attn, module.out_proj(mixed))


def test_before_softmax_returns_scores_and_values():
    module = attention(**GATED)
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    mask, padding = torch.randn(5, 7).masked_fill(torch.rand(5, 7) < 0.3, -math.inf), padding_behind([7, 4], 7)
    scores, v, bias = module(query, key, key_padding_mask=padding, attn_mask=mask, before_softmax=True)
    assert scores.shape == (2 * H, 5, 7)
    assert v.shape == (2 * H, 7, C // H)
    assert torch.equal(bias, module.compute_bias(5, 7))

    def heads(x):  # (T, B, C) to (B, H, T, D)
        return x.unflatten(-1, (H, C // H)).permute(1, 2, 0, 3)

    close(v.unflatten(0, (2, H)), heads(module.v_proj(key)))
    expected = heads(module.q_proj(query)) @ heads(module.k_proj(key)).transpose(-2, -1) / (C // H) ** 0.5
    expected = expected - expected.amax(-1, keepdim=True) + mask  # without position bias
    expected = expected.masked_fill(padding[:, None, None], -math.inf)
    close(scores.unflatten(0, (2, H)), expected)


def test_before_softmax_has_a_row_maximum_of_zero_without_masks():
    scores = attention()(torch.randn(5, 2, C), torch.randn(7, 2, C), before_softmax=True)[0]
    assert torch.equal(scores.amax(-1), torch.zeros(2 * H, 5))


@pytest.mark.parametrize("mode", [{"need_weights": False}, {"need_weights": True}, {"need_head_weights": True}])
@pytest.mark.parametrize("options", [{}, GATED])
@pytest.mark.parametrize("grad", [False, True])
def test_a_row_of_nothing_but_padding_is_finite_and_disturbs_no_other(mode, options, grad):
    module, x = attention(**SELF, **options), torch.randn(5, 3, C)
    padding = padding_behind([5, 0, 3], 5)
    with torch.set_grad_enabled(grad):
        attn, weights, _ = module(x, x, key_padding_mask=padding, **mode)
        alone = module(x[:, [0, 2]], None, key_padding_mask=padding[[0, 2]], **mode)[0]
    assert attn.isfinite().all()
    assert weights is None or weights.isfinite().all()
    close(attn[:, [0, 2]], alone)
    if grad:
        attn.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def test_dropout_acts_on_weights_in_training_only():
    x = torch.randn(5, 2, C)
    module = attention(**SELF, dropout=0.5)
    expected = attention(**SELF)(x, x)[0]
    for need_weights in (False, True):
        close(module.eval()(x, x, need_weights=need_weights)[0], expected)
        assert not torch.allclose(module.train()(x, x, need_weights=need_weights)[0], expected)
    close(module.train()(x, x)[1], attention(**SELF)(x, x)[1])  # returned as they were before


# Position bias


def bias_by_lookup(module, T, S, offset=0):
    """Bias of query i and key j from the reference's table of buckets, one pair at a time."""
    tensors = golden(f"buckets_{module.num_buckets}_{module.max_distance}")[1]
    bucket = dict(zip(tensors["positions"].tolist(), tensors["buckets"].tolist(), strict=True))
    table = module.relative_attention_bias.weight
    rows = [torch.stack([table[bucket[j - i - offset]] for j in range(S)]) for i in range(T)]
    return torch.stack(rows).permute(2, 0, 1)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (6, 6), (3, 40), (40, 3), (1, 30)])
@pytest.mark.parametrize("offset", [0, 1, 25])
def test_compute_bias_is_a_lookup_of_each_pair(T, S, offset):
    module = attention(has_relative_attention_bias=True, num_buckets=32, max_distance=128)
    actual = module.compute_bias(T, S, offset=offset) if offset else module.compute_bias(T, S)
    assert torch.equal(actual, bias_by_lookup(module, T, S, offset))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [BIAS, GATED])
def test_position_bias_is_returned_for_each_head_and_accepted_by_the_next_layer(options, need_weights):
    first, second = attention(**options), attention(1, **{**options, "has_relative_attention_bias": False})
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    bias = first(query, key, need_weights=need_weights)[2]
    assert bias.shape == (H, 5, 7)  # SpeechBrain has (B * H, T, S)
    assert torch.equal(bias, first.compute_bias(5, 7))
    expected, _, passed_on = second(query, key, need_weights=need_weights, position_bias=bias)
    assert torch.equal(passed_on, bias)
    assert not torch.allclose(expected, second(query, key, need_weights=need_weights)[0], atol=1e-3)
    repeated = second(query, key, need_weights=need_weights, position_bias=bias.repeat(2, 1, 1))[0]
    close(repeated, expected)
    # Where one is given, the module's own is not used.
    close(first(query, key, position_bias=torch.zeros(H, 5, 7))[0], first(query, key, position_bias=0 * bias)[0])
    assert not torch.allclose(first(query, key, position_bias=0 * bias)[0], first(query, key)[0], atol=1e-3)


@pytest.mark.parametrize("mode", [{"need_weights": False}, {"need_weights": True}, {"before_softmax": True}])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize("grad", [False, True])
def test_position_bias_may_be_given_by_distance(options, mode, grad):
    module = attention(**GATED, **options)
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    table = module.bias_table(5, 7)
    assert table.shape == (H, 5 + 7 - 1)
    with torch.set_grad_enabled(grad):
        *expected, bias = module(query, key, **mode)
        *actual, passed_on = module(query, key, position_bias=table, **mode)
    assert passed_on is table
    assert torch.equal(kernels.spread(table, 5, 7), bias)
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)


@pytest.mark.parametrize("need_weights", [False, True])
def test_position_bias_may_differ_from_clip_to_clip(need_weights):
    module = attention(gru_rel_pos=True)
    query, key, bias = torch.randn(5, 2, C), torch.randn(7, 2, C), torch.randn(2 * H, 5, 7)
    together = module(query, key, need_weights=need_weights, position_bias=bias)[0]
    for clip in range(2):
        one = slice(clip, clip + 1)
        alone = module(query[:, one], key[:, one], position_bias=bias[clip * H : (clip + 1) * H])[0]
        close(together[:, one], alone)


def test_position_bias_is_added_to_the_scores_times_its_gate():
    module = attention(**GATED)
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    q = module.q_proj(query).unflatten(-1, (H, C // H)).permute(1, 2, 0, 3)
    a, b = torch.sigmoid(module.grep_linear(q).view(2, H, 5, 2, 4).sum(-1)).unbind(-1)
    gate = a * (b * module.grep_a.squeeze(-1) - 1) + 2
    scores = module(query, key, before_softmax=True)[0].unflatten(0, (2, H))
    expected = (scores + gate.unsqueeze(-1) * module.compute_bias(5, 7)).softmax(-1)
    close(module(query, key, need_head_weights=True)[1], expected)


def test_the_gate_is_a_projection_of_two_outputs():
    module = attention(**GATED)
    q = torch.randn(2, H, 5, C // H)
    weight, bias = module.gate_projection()
    assert weight.shape == (2, C // H)
    close(torch.nn.functional.linear(q, weight, bias), module.grep_linear(q).unflatten(-1, (2, 4)).sum(-1))


def test_position_bias_by_distance_is_that_of_every_pair():
    module = attention(**GATED)
    table = module.bias_by_distance(-4, 7)  # of 5 queries and 7 keys
    pairs = [[table[key - query + 4] for key in range(7)] for query in range(5)]
    close(module.compute_bias(5, 7), torch.stack([torch.stack(row) for row in pairs]).permute(2, 0, 1))


@pytest.mark.parametrize("grad", [False, True])
def test_appended_keys_have_no_position_bias(grad):
    module = attention(**GATED, add_bias_kv=True, add_zero_attn=True)
    query, key = torch.randn(5, 2, C), torch.randn(7, 2, C)
    scores = module(query, key, before_softmax=True)[0].unflatten(0, (2, H))
    # The same scores and gates where the keys' bias is zero: the two appended ones keep their odds to each other.
    heads = module(query, key, need_head_weights=True)[1]
    odds = heads[..., 7].log() - heads[..., 8].log()
    close(odds, scores[..., 7] - scores[..., 8])
    unbiased = module(query, key, need_head_weights=True, position_bias=torch.zeros(H, 5, 7))[1]
    torch.testing.assert_close(unbiased, scores.softmax(-1))
    # With one huge bias for all real keys, the appended ones get nothing.
    biased = module(query, key, need_head_weights=True, position_bias=torch.full((H, 5, 7), 1e4))[1]
    assert not biased[..., 7:].any()
    with torch.set_grad_enabled(grad):
        close(module(query, key, need_weights=False)[0], module(query, key)[0])


# Decoding step by step: SpeechBrain crashes


def in_steps(modules, x, steps, padding=None, masks="whole", told=None):
    """Feeds ``x`` through a stack of modules, ``steps`` positions at a time, with one dictionary for all."""
    T, state, outputs, start = len(x), {}, [], 0
    full = causal(T)
    for size in steps:
        end = start + size
        # The mask may count the cached keys or leave them out; a single position needs none.
        mask = full[start:end, (0 if masks == "whole" else start) : end] if size > 1 or masks == "whole" else None
        hidden = None
        if padding is not None and (told is None or padding[:, start:end].any()):
            hidden = padding[:, start:end] if told != "all so far" else padding[:, :end]
        y = x[start:end]
        for module in modules:
            y = module(y, None, key_padding_mask=hidden, incremental_state=state, attn_mask=mask)[0]
        outputs.append(y)
        start = end
    return torch.cat(outputs)


def in_one_pass(modules, x, padding=None):
    for module in modules:
        x = module(x, None, key_padding_mask=padding, attn_mask=causal(len(x)), need_weights=False)[0]
    return x


@pytest.mark.parametrize("masks", ["whole", "new"])
@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 2, 1], [7], [1, 6]])
@pytest.mark.parametrize(
    "options",
    [{}, BIAS, GATED, {"add_bias_kv": True}, {"add_zero_attn": True}, {**GATED, "add_bias_kv": True}],
    ids=["plain", "bias", "gated", "bias_kv", "zero_attn", "gated, bias_kv"],
)
def test_step_by_step_equals_one_pass(options, steps, masks):
    modules, x = [attention(**SELF, **options)], torch.randn(7, 2, C)
    close(in_steps(modules, x, steps, masks=masks), in_one_pass(modules, x))


@pytest.mark.parametrize("told", [None, "where there is some", "all so far"])
@pytest.mark.parametrize("steps", [[1] * 7, [2, 2, 3]])
@pytest.mark.parametrize("options", [{}, GATED, {"add_bias_kv": True}])
def test_step_by_step_remembers_padding(options, steps, told):
    modules, x = [attention(**SELF, **options)], torch.randn(7, 2, C)
    padding = torch.tensor([[False] * 7, [False, False, True, True, False, False, True]])
    close(in_steps(modules, x, steps, padding, told=told), in_one_pass(modules, x, padding))


@pytest.mark.parametrize("other", [lambda module: attention(1, **SELF, **GATED), copy.deepcopy])
def test_modules_share_one_dictionary(other):
    first = attention(**SELF, **GATED)
    modules, x = [first, other(first)], torch.randn(6, 2, C)
    close(in_steps(modules, x, [1, 2, 1, 1, 1]), in_one_pass(modules, x))


def test_a_copy_does_not_see_what_its_original_has_cached():
    module, state = attention(**SELF, **GATED), {}
    module(torch.randn(3, 2, C), None, incremental_state=state)
    x = torch.randn(2, 2, C)
    close(copy.deepcopy(module)(x, None, incremental_state=state)[0], module(x, None)[0])


def test_cache_outlives_what_the_caller_does_to_the_mask():
    module, x = attention(**SELF), torch.randn(4, 2, C)
    padding = torch.tensor([[False, False], [False, True]])
    expected = module(x, None, key_padding_mask=torch.cat([padding, torch.zeros_like(padding)], 1))[0][2:]
    state = {}
    module(x[:2], None, key_padding_mask=padding, incremental_state=state)
    padding.fill_(False)
    close(module(x[2:], None, incremental_state=state)[0], expected)


def test_cached_keys_shift_the_position_bias():
    module, state = attention(**SELF, **BIAS), {}
    module(torch.randn(3, 2, C), None, incremental_state=state)
    bias = module(torch.randn(2, 2, C), None, incremental_state=state)[2]
    assert torch.equal(bias, module.compute_bias(5, 5)[:, 3:])


def test_static_keys_are_taken_from_the_cache():
    module, state = attention(encoder_decoder_attention=True, **GATED), {}
    query, key, padding = torch.randn(3, 2, C), torch.randn(7, 2, C), padding_behind([7, 4], 7)
    first = module(query, key, key_padding_mask=padding, incremental_state=state, static_kv=True)[0]
    close(first, module(query, key, key_padding_mask=padding)[0])
    for other in (None, torch.randn(7, 2, C), torch.randn(4, 2, C)):
        query = torch.randn(1, 2, C)
        attn, weights, _ = module(query, other, incremental_state=state, static_kv=True)
        expected = module(query, key, key_padding_mask=padding)
        close(attn, expected[0])  # the padding is remembered too
        close(weights, expected[1])


def test_without_keys_or_cache_it_says_so():
    with pytest.raises(ValueError, match="key is needed"):
        attention()(torch.randn(3, 2, C), None, incremental_state={}, static_kv=True)


# Quantisation noise: SpeechBrain crashes


def test_q_noise_acts_in_training_only():
    noisy, plain = attention(**SELF, **GATED, q_noise=0.5), attention(**SELF, **GATED)
    plain.load_state_dict(noisy.state_dict())
    x = torch.randn(5, 2, C)
    close(noisy(x, None)[0], plain(x, None)[0])
    stored = copy.deepcopy(noisy.state_dict())
    noisy.train()
    first, second = noisy(x, None)[0], noisy(x, None)[0]
    assert not torch.allclose(first, second)
    first.sum().backward()
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert getattr(noisy, name).weight.grad.isfinite().all()
    assert all(torch.equal(value, stored[name]) for name, value in noisy.state_dict().items())


def test_q_noise_reaches_every_projection():
    module, x = attention(q_noise=1.0), torch.randn(5, 2, C)  # of every weight: biases are all that is left
    assert torch.equal(module.train()(x, x)[0], module.out_proj.bias.expand(5, 2, C))
    scores, v, _ = module(x, x, before_softmax=True)
    assert not scores.any()
    assert torch.equal(v.unflatten(0, (2, H)), module.v_proj.bias.view(H, 1, -1).expand(2, H, 5, -1))


def test_q_noise_refuses_a_block_size_that_does_not_divide():
    with pytest.raises(ValueError, match="block_size"):
        MultiheadAttention(C, H, q_noise=0.1, qn_block_size=7)


# What is refused, and what is left alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"self_attention": True, "kdim": 20}, "kdim"),
        ({"self_attention": True, "vdim": 20}, "vdim"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attention(**options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(5, 2, C - 1)}, "query has 31 channels"),
        ({"key": None}, "key is needed"),
        ({"key": torch.zeros(7, 3, C)}, "batch"),
        ({"value": torch.zeros(6, 2, C)}, "second axis"),
        ({"key_padding_mask": torch.zeros(2, 6, dtype=torch.bool)}, "key_padding_mask"),
        ({"key_padding_mask": torch.zeros(3, 7, dtype=torch.bool)}, "key_padding_mask"),
        ({"attn_mask": torch.zeros(7)}, "attn_mask"),
        ({"attn_mask": torch.zeros(5, 8)}, "attn_mask"),
        ({"attn_mask": torch.zeros(5, 6)}, "attn_mask"),
        ({"attn_mask": torch.zeros(4, 7)}, "attn_mask"),
        ({"attn_mask": torch.zeros(3, 5, 7)}, "attn_mask"),
        ({"attn_mask": torch.zeros(3 * H, 5, 7)}, "attn_mask"),
        ({"attn_mask": torch.zeros(2, H, 5, 7)}, "attn_mask"),
        ({"position_bias": torch.zeros(5, 7)}, "position_bias"),
        ({"position_bias": torch.zeros(H, 5, 6)}, "position_bias"),
        ({"position_bias": torch.zeros(H - 1, 5, 7)}, "position_bias"),
        ({"position_bias": torch.zeros(3 * H, 5, 7)}, "position_bias"),
    ],
)
@pytest.mark.parametrize("need_weights", [False, True])
def test_wrong_shapes_are_refused(changed, message, need_weights):
    inputs = {"query": torch.zeros(5, 2, C), "key": torch.zeros(7, 2, C), "value": torch.zeros(7, 2, C)}
    with pytest.raises(ValueError, match=message), torch.no_grad():
        attention()(**{**inputs, **changed}, need_weights=need_weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attn_mask_may_have_another_dtype(dtype, need_weights):
    module, x = attention(**SELF, **GATED), torch.randn(5, 2, C)
    mask = torch.randint(-3, 3, (5, 5))
    with torch.no_grad():
        expected = module(x, None, attn_mask=mask.float(), need_weights=need_weights)[0]
        close(module(x, None, attn_mask=mask.to(dtype), need_weights=need_weights)[0], expected)


def test_padding_mask_may_be_of_numbers():
    module, x, padding = attention(**SELF), torch.randn(5, 2, C), padding_behind([5, 3], 5)
    expected = module(x, None, key_padding_mask=padding)[0]
    close(module(x, None, key_padding_mask=padding.to(torch.uint8))[0], expected)


@pytest.mark.parametrize("mode", [{"need_weights": False}, {"need_head_weights": True}, {"before_softmax": True}])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True, "gru_rel_pos": True}])
@pytest.mark.parametrize("state", [None, {}])
def test_the_callers_tensors_stay_as_they_are(mode, options, state):
    module = attention(**options)
    given_ = {"query": torch.randn(5, 2, C), "key": torch.randn(5, 2, C), "value": torch.randn(5, 2, C)}
    given_ |= {"key_padding_mask": padding_behind([0, 3], 5), "attn_mask": causal(5)}
    given_ |= {"position_bias": torch.randn(H, 5, 5)}
    before = {name: value.clone() for name, value in given_.items()}
    with torch.no_grad():
        module(**given_, incremental_state=state and dict(state), **mode)
    assert all(torch.equal(given_[name], before[name]) for name in given_)


# Gradients


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradients_are_right(need_weights):
    options = {"embed_dim": 4, "num_heads": 2, **GATED, "num_buckets": 8, "add_bias_kv": True}
    module = attention(**options).double()
    query, key = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(4, 2, 4, dtype=torch.float64)
    padding, mask = padding_behind([4, 2], 4), torch.randn(3, 4, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def run(query, key, *parameters):
        inputs = (query, key)
        options = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": need_weights}
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), inputs, options)[0]

    inputs = [query.requires_grad_(), key.requires_grad_(), *module.parameters()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_batches_are_worked_on_clip_by_clip_where_that_is_fast(monkeypatch):
    """The comparisons above with and without autograd are of two different ways."""
    calls = []
    original = kernels._in_cache
    monkeypatch.setattr(kernels, "_in_cache", lambda *args: calls.append(1) or original(*args))
    module, x = attention(**SELF, **GATED), torch.randn(5, 2, C)
    for grad, need_weights in itertools.product([True, False], repeat=2):
        with torch.set_grad_enabled(grad):
            module(x, None, need_weights=need_weights)
        assert len(calls) == (not grad and not need_weights)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(0, 0), (3, 100), (32, 8)])
def test_buckets_that_cannot_be(num_buckets, max_distance):
    with pytest.raises(ValueError, match="num_buckets"):
        MultiheadAttention(8, 2, has_relative_attention_bias=True, num_buckets=num_buckets, max_distance=max_distance)
