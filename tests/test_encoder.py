"""The Transformer and its layers against the reference numbers and their own definition."""

import copy
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import SMALL, golden, shaken, under
from torchbeats import BEATs, BEATsConfig, TransformerEncoder, TransformerSentenceEncoderLayer

CLOSE = {"rtol": 0, "atol": 2e-5}  # what the reference numbers ask of outputs of unit scale
VARIANTS = ["base", "finetuned", "prenorm", "plain_relu", "ungated_bias", "glu", "same_width"]
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
PRENORM = {"deep_norm": False, "layer_norm_first": True}
C, H = SMALL["encoder_embed_dim"], SMALL["encoder_attention_heads"]
LAYERS = SMALL["encoder_layers"]
TABLE = "layers.{}.self_attn.relative_attention_bias.weight"


def encoder(seed=0, **fields):
    """A seeded encoder without dropout, in evaluation mode, none of whose parameters is at its initial zero or one."""
    torch.manual_seed(seed)
    return shaken(TransformerEncoder({**SMALL, **NO_DROPOUT, **fields})).eval()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, **CLOSE)


def padding_behind(counts, T):
    return torch.arange(T) >= torch.tensor(counts).unsqueeze(1)


# The reference numbers


@pytest.fixture(params=VARIANTS)
def reference(request):
    """An encoder of the reference with its weights, and the numbers."""
    about, tensors = golden(f"beats_{request.param}")
    model = TransformerEncoder(about["cfg"]).eval()
    model.load_state_dict(under(tensors, "model.encoder"))
    return model, tensors, request.param


@pytest.mark.parametrize("grad", [False, True])
def test_encoder_is_that_of_the_reference(reference, grad):
    model, tensors, variant = reference
    x = tensors["encoder.input"]
    with torch.set_grad_enabled(grad):
        y, hiddens = model(x, output_all_hiddens=True)
        masked, none = model(x, tensors["encoder.padding_mask"])
    close(torch.stack(hiddens).detach(), tensors["encoder.hiddens"])
    if variant == "finetuned":  # whose output are probabilities
        close(y, hiddens[-1])
    else:
        close(y.detach(), tensors["output"])
    close(masked.detach(), tensors["encoder.masked_output"])
    assert none == []
    assert y.requires_grad == grad


def test_state_dict_has_the_names_and_shapes_of_the_reference(reference):
    model, tensors, _ = reference
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {name: value.shape for name, value in under(tensors, "model.encoder").items()}


def test_gradients_are_those_of_the_reference():
    about, tensors = golden("gradients")
    model = BEATs(BEATsConfig(about["cfg"]), freeze=False)
    assert model.training
    model.load_state_dict(under(tensors, "model"), strict=True)
    probabilities = model(tensors["wav"])[1]
    close(probabilities.detach(), tensors["probs"])
    loss = F.binary_cross_entropy(probabilities, tensors["target"])
    close(loss.detach(), tensors["loss"].squeeze())
    loss.backward()
    expected = under(tensors, "grad")
    actual = {name: parameter.grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert expected.keys() <= actual.keys()
    assert actual.keys() - expected.keys() <= {"encoder." + TABLE.format(i) for i in range(1, 3)}
    typical = torch.stack([value.abs().max() for value in expected.values()]).median()
    for name, value in expected.items():
        # A key bias shifts all scores of a query alike, which softmax ignores: its gradient is zero but for rounding.
        scale = typical if name.endswith("k_proj.bias") else value.abs().max()
        worst = (actual[name] - value).abs().max() / scale
        assert worst < 2e-4, f"{name}: {worst:.1e} of the largest"  # float32 sums over some hundred patches


# One layer


def layer(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"embedding_dim": 16, "ffn_embedding_dim": 24, "num_attention_heads": 2}
    return shaken(TransformerSentenceEncoderLayer(**{**sizes, **options})).eval()


RELATIVE = {"has_relative_attention_bias": True, "num_buckets": 8, "max_distance": 16, "gru_rel_pos": True}


def swish_gated(layer, x):
    value, gate = layer.fc1.linear(x).chunk(2, -1)
    return value * F.silu(gate)


@pytest.mark.parametrize(
    ("activation_fn", "inner"),
    [
        ("relu", lambda layer, x: layer.fc1(x).relu()),
        ("gelu", lambda layer, x: F.gelu(layer.fc1(x))),
        ("glu", swish_gated),  # SpeechBrain crashes
    ],
)
@pytest.mark.parametrize(
    ("options", "residual"),
    [({}, 1.0), ({"layer_norm_first": True}, 1.0), ({"deep_norm": True, "encoder_layers": 12}, 24**0.25)],
)
def test_layer_is_what_it_says(options, residual, activation_fn, inner):
    one, x = layer(activation_fn=activation_fn, **options, **RELATIVE), torch.randn(7, 2, 16)
    padding = padding_behind([7, 5], 7)
    norm1, norm2 = one.self_attn_layer_norm, one.final_layer_norm

    def attend(x):
        return one.self_attn(x, x, key_padding_mask=padding)[0]

    def feed_forward(x):
        return one.fc2(inner(one, x))

    if options.get("layer_norm_first"):
        middle = x + attend(norm1(x))
        expected = middle + feed_forward(norm2(middle))
    else:
        middle = norm1(residual * x + attend(x))
        expected = norm2(residual * middle + feed_forward(middle))
    close(one(x, self_attn_padding_mask=padding)[0], expected)


# SpeechBrain's pre-norm layers return none.
@pytest.mark.parametrize("options", [{}, {"layer_norm_first": True}])
def test_layer_returns_weights_where_asked(options):
    one, x = layer(**options, **RELATIVE), torch.randn(7, 2, 16)
    fast, none, _ = one(x)
    slow, weights, _ = one(x, need_weights=True)
    assert none is None
    close(slow, fast)
    inside = one.self_attn_layer_norm(x) if options else x
    close(weights, one.self_attn(inside, None)[1])
    assert weights.shape == (2, 7, 7)


def test_layer_adds_its_mask_to_the_scores():
    one, x, mask = layer(), torch.randn(7, 2, 16), torch.randn(7, 7)
    masked = one(x, self_attn_mask=mask)[0]
    close(masked, one(x, pos_bias=mask.expand(2, 7, 7))[0])  # of both heads, which is added too
    assert not torch.allclose(masked, one(x)[0], atol=1e-3)


def test_layer_with_a_causal_mask_does_not_look_ahead():
    one, x = layer(**RELATIVE), torch.randn(7, 2, 16)
    causal = torch.full((7, 7), -torch.inf).triu(1)
    changed = torch.cat([x[:4], torch.randn(3, 2, 16)])
    assert torch.equal(one(x, self_attn_mask=causal)[0][:4], one(changed, self_attn_mask=causal)[0][:4])


def test_layer_passes_its_position_bias_on():
    first, second, x = layer(**RELATIVE), layer(1, gru_rel_pos=True), torch.randn(7, 2, 16)
    bias = first(x)[2]
    assert bias.shape == (2, 7, 7)
    y, _, again = second(x, pos_bias=bias)
    assert again is bias
    assert not torch.allclose(y, second(x)[0], atol=1e-3)
    assert layer()(x)[2] is None


def test_layer_has_its_documented_defaults():
    one = TransformerSentenceEncoderLayer()
    assert one.fc1.weight.shape == (3072, 768)
    assert one.self_attn.num_heads == 8
    assert [one.dropout1.p, one.dropout2.p, one.dropout3.p, one.self_attn.dropout] == [0.1] * 4
    assert one.activation_fn is F.relu
    assert not one.self_attn.has_relative_attention_bias


@pytest.mark.parametrize("where", ["dropout", "attention_dropout", "activation_dropout"])
def test_layer_drops_out_in_training_only(where):
    none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    one, x = layer(**{**none, where: 0.5}), torch.randn(7, 2, 16)
    expected = layer(**none)(x)[0]
    close(one(x)[0], expected)
    assert not torch.allclose(one.train()(x)[0], expected, atol=1e-3)


# The encoder: arguments and hidden states


# SpeechBrain crashes on a dictionary.
@pytest.mark.parametrize("kind", [dict, BEATsConfig, lambda fields: Namespace(**fields)])
def test_encoder_takes_a_config_a_namespace_or_a_dictionary(kind):
    torch.manual_seed(0)
    model = TransformerEncoder(kind({**SMALL, "a_key_of_the_checkpoint": 1})).eval()
    torch.manual_seed(0)
    same = TransformerEncoder(BEATsConfig(SMALL)).eval()
    x = torch.randn(2, 5, C)
    assert torch.equal(model(x)[0], same(x)[0])
    assert model.dropout == 0.1  # what is left out has the config's default


def test_encoder_refuses_an_impossible_config():
    with pytest.raises(ValueError, match="encoder_attention_heads"):
        TransformerEncoder({**SMALL, "encoder_attention_heads": 5})


@pytest.mark.parametrize("fields", [{}, PRENORM])
def test_hiddens_are_the_input_and_every_layer(fields):
    model, x = encoder(**fields), torch.randn(2, 9, C)
    padding = padding_behind([9, 4], 9)
    y, hiddens = model(x, padding, output_all_hiddens=True)
    assert len(hiddens) == LAYERS + 1
    for block, before, after in zip(model.layers, hiddens[:-1], hiddens[1:], strict=True):
        close(block(before.transpose(0, 1), None, padding)[0].transpose(0, 1), after)  # the table is shared
    for asked in (None, False):
        again, none = model(x, padding, asked)
        assert none == []
        assert torch.equal(again, y)
    close(y, model.layer_norm(hiddens[-1]) if fields else hiddens[-1])


def test_input_of_the_first_layer_has_its_position_embedding():
    model, x = encoder(), torch.randn(2, 9, C)
    padding = padding_behind([9, 4], 9)
    zeroed = x.masked_fill(padding.unsqueeze(-1), 0)
    conv = model.pos_conv[0]
    kernel = conv.weight_v * conv.weight_g / conv.weight_v.norm(dim=(0, 1), keepdim=True)
    positions = F.conv1d(zeroed.transpose(1, 2), kernel, conv.bias, padding=8, groups=4)[..., :9].transpose(1, 2)
    expected = model.layer_norm(zeroed + F.gelu(positions))
    close(model(x, padding, output_all_hiddens=True)[1][0], expected)


@pytest.mark.parametrize("kernel", [15, 16])
def test_position_embedding_is_that_of_torchs_weight_norm(kernel):
    model, x = encoder(conv_pos=kernel), torch.randn(2, C, 9)
    conv = model.pos_conv[0]
    twin = nn.utils.parametrizations.weight_norm(nn.Conv1d(C, C, kernel, padding=kernel // 2, groups=4), dim=2)
    names = ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
    twin.load_state_dict(dict(zip(names, (conv.bias, conv.weight_g, conv.weight_v), strict=True)))
    close(model.pos_conv(x), F.gelu(twin(x)[..., :9]))


# SpeechBrain leaves it out.
@pytest.mark.parametrize("asked", [False, True])
def test_pre_norm_output_has_the_final_norm_and_its_last_hidden_does_not(asked):
    model, x = encoder(**PRENORM), torch.randn(2, 9, C)
    y = model(x, output_all_hiddens=asked)[0]
    bare, hiddens = model.extract_features(x, output_all_hiddens=True)
    close(y, model.layer_norm(bare))
    assert torch.equal(hiddens[-1], bare)
    assert not torch.allclose(y, bare, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, PRENORM])
@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_stopping_early_gives_the_hidden_state(fields, k):
    model, x = encoder(**fields), torch.randn(2, 9, C)
    whole, hiddens = model(x, output_all_hiddens=True)
    y, fewer = model(x, output_all_hiddens=True, layers=k)
    assert len(fewer) == k + 1
    close(y, whole if k == LAYERS else hiddens[k])  # which differ with a final norm


@pytest.mark.parametrize("k", [-1, LAYERS + 1])
def test_there_is_no_such_layer(k):
    with pytest.raises(ValueError, match=f"no layer {k}"):
        encoder()(torch.randn(2, 9, C), layers=k)


def test_stopping_early_runs_no_further_layer():
    model = encoder()
    model.layers[1] = None
    model(torch.randn(2, 9, C), layers=1)


# Padding


# SpeechBrain zeroes the padding in it.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padding", [None, padding_behind([9, 4], 9)])
@pytest.mark.parametrize("fields", [{}, PRENORM])
def test_the_callers_tensors_are_never_modified(fields, padding, training):
    model, x = encoder(**fields).train(training), torch.randn(2, 9, C)
    before, mask_before = x.clone(), None if padding is None else padding.clone()
    with torch.no_grad():
        _, hiddens = model(x, padding, output_all_hiddens=True)
        model(x, padding)
    assert torch.equal(x, before)
    assert padding is None or torch.equal(padding, mask_before)
    assert all(hidden.data_ptr() != x.data_ptr() for hidden in hiddens)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("junk", [1e3, torch.inf, torch.nan])
@pytest.mark.parametrize("padding", [padding_behind([9, 4], 9), torch.arange(18).view(2, 9) % 4 == 2])
def test_what_stands_at_padded_positions_does_not_matter(padding, junk, grad):
    model, x = encoder(), torch.randn(2, 9, C)
    with torch.set_grad_enabled(grad):
        y = model(x, padding)[0]
        again = model(x.masked_fill(padding.unsqueeze(-1), junk), padding)[0]
    assert torch.equal(y, again)


@pytest.mark.parametrize("fields", [{}, PRENORM, {"gru_rel_pos": False}, {"relative_position_embedding": False}])
@pytest.mark.parametrize("grad", [False, True])
def test_a_padded_clip_is_the_clip_alone(fields, grad):
    model, x = encoder(**fields), torch.randn(3, 9, C)
    counts = [9, 4, 1]
    with torch.set_grad_enabled(grad):
        y = model(x, padding_behind(counts, 9))[0]
        for clip, count in enumerate(counts):
            close(y[clip, :count], model(x[clip : clip + 1, :count])[0][0])


@pytest.mark.parametrize("grad", [False, True])
def test_a_row_of_nothing_but_padding_is_finite(grad):
    model, x = encoder(), torch.randn(2, 9, C)
    with torch.set_grad_enabled(grad):
        y = model(x, padding_behind([9, 0], 9))[0]
    assert y.isfinite().all()
    close(y[:1], model(x[:1])[0])


# Training


class Recorder(nn.Module):
    """Stands in for a layer, and notes when it runs."""

    def __init__(self, run, index):
        super().__init__()
        self.run, self.index = run, index

    def forward(self, x, **_):
        self.run.append(self.index)
        return x, None, None


@pytest.fixture
def dropping():
    """A function of layerdrop and mode, which runs an encoder of ten layers and returns the indices that ran."""
    torch.manual_seed(0)
    model, x = encoder(encoder_layers=10), torch.randn(1, 2, C)

    def run(layerdrop, training=True):
        model.layerdrop, indices = layerdrop, []
        model.layers = nn.ModuleList(Recorder(indices, index) for index in range(10))
        model.train(training)(x)
        return indices

    return run


def test_layerdrop_of_one_runs_no_layer_in_training_and_all_otherwise(dropping):
    assert dropping(1.0) == []
    assert dropping(1.0, training=False) == dropping(0.0) == list(range(10))
    y, hiddens = encoder(encoder_layerdrop=1.0).train()(torch.randn(2, 9, C), output_all_hiddens=True)
    assert len(hiddens) == LAYERS + 1
    assert all(torch.equal(hidden, y) for hidden in hiddens)


def test_layerdrop_leaves_each_layer_out_with_its_probability(dropping):
    left_out = 10 - torch.tensor([len(dropping(0.3)) for _ in range(100)])
    # 1000 draws: five standard errors of their mean. Drawn apart for each layer, not once a pass.
    assert abs(left_out.sum() / 1000 - 0.3) < 5 * (0.3 * 0.7 / 1000) ** 0.5
    assert len(left_out.unique()) > 2


def test_dropout_acts_in_training_only():
    model, x = encoder(dropout=0.5), torch.randn(2, 9, C)
    close(model(x)[0], encoder()(x)[0])
    model.train()
    first_input = model(x, output_all_hiddens=True)[1][0]
    share = (first_input == 0).float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / first_input.numel() ** 0.5


@pytest.mark.parametrize("training", [True, False])
def test_gradients_decay_from_layer_to_layer_in_training_only(training):
    ratio = 0.6 if training else 1.0
    fields = {"encoder_layers": 3, "relative_position_embedding": False, "gru_rel_pos": False}
    plain = encoder(**fields).train(training)
    decayed = encoder(**fields, layer_wise_gradient_decay_ratio=0.6).train(training)
    x, upstream = torch.randn(2, 9, C), torch.randn(2, 9, C)
    inputs = []
    for model in (plain, decayed):
        inputs.append(x.clone().requires_grad_())
        model(inputs[-1])[0].backward(upstream)
    relative = {"rtol": 1e-4, "atol": 1e-5}  # roundings of float32 sums
    for index in range(3):
        for name, parameter in plain.layers[index].named_parameters():
            expected = parameter.grad * ratio ** (2 - index)
            torch.testing.assert_close(decayed.layers[index].get_parameter(name).grad, expected, **relative)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad * ratio**3, **relative)


# Fresh weights


def deviation_over(weight, expected):
    """Deviation of normal values over the expected one; its standard error is sqrt(1 / 2n)."""
    return (weight.std() / expected - 1).abs() * (2 * weight.numel()) ** 0.5


def test_fresh_weights_are_those_of_bert():
    torch.manual_seed(0)
    model = TransformerEncoder({**SMALL, "deep_norm": False})
    for block in model.layers:
        attention = block.self_attn
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, block.fc1, block.fc2)
        assert all(deviation_over(linear.weight, 0.02) < 5 for linear in linears)
        assert not any(linear.bias.any() for linear in linears)
    assert deviation_over(model.layers[0].self_attn.relative_attention_bias.weight, 0.02) < 5


@pytest.mark.parametrize("activation_fn", ["gelu", "glu"])
def test_fresh_weights_of_deep_norm_are_smaller_where_values_pass(activation_fn):
    torch.manual_seed(0)
    model = TransformerEncoder({**SMALL, "encoder_layers": 3, "activation_fn": activation_fn})
    small = (8 * 3) ** -0.25
    for block in model.layers:
        attention = block.self_attn
        fc1 = block.fc1.linear if activation_fn == "glu" else block.fc1
        gains = {attention.q_proj: 1, attention.k_proj: 1}
        gains |= dict.fromkeys((attention.v_proj, attention.out_proj, fc1, block.fc2), small)
        for linear, gain in gains.items():
            xavier = gain * (2 / sum(linear.weight.shape)) ** 0.5
            assert deviation_over(linear.weight, xavier) < 5


def test_fresh_position_kernel_has_its_deviation():
    torch.manual_seed(0)
    conv = TransformerEncoder(SMALL).pos_conv[0]
    assert deviation_over(conv.weight, (4 / (16 * C)) ** 0.5) < 5
    assert not conv.bias.any()


# The shared table, and names that other writers use


@pytest.fixture
def shared():
    return encoder(encoder_layers=3), [TABLE.format(index) for index in range(3)]


def test_position_table_is_one_parameter_listed_under_every_layer(shared):
    model, names = shared
    assert [name for name in model.state_dict() if "relative_attention_bias" in name] == names
    assert [name for name, _ in model.named_parameters() if "relative_attention_bias" in name] == names[:1]
    assert len({model.get_parameter(name).data_ptr() for name in names}) == 1
    twin = copy.deepcopy(model)
    assert all(twin.get_parameter(name) is twin.get_parameter(names[0]) for name in names)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("assign", [False, True])
def test_position_table_loads_when_stored_once(shared, kept, assign):
    model, names = shared
    state = {name: value for name, value in model.state_dict().items() if name not in names or name == names[kept]}
    listed = list(state)
    other = encoder(1, encoder_layers=3)
    other.load_state_dict(state, assign=assign)
    assert list(state) == listed  # the caller's dictionary stays as it is
    x = torch.randn(2, 9, C)
    close(other(x)[0], model(x)[0])
    assert all(other.get_parameter(name) is other.get_parameter(names[0]) for name in names)


def test_position_tables_that_differ_are_refused(shared):
    model, names = shared
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)  # equal copies are fine
    state[names[2]][0, 0] += 1
    with pytest.raises(RuntimeError, match="position tables differ"):
        model.load_state_dict(state)


def test_position_table_that_is_missing_is_missed(shared):
    model, names = shared
    state = {name: value for name, value in model.state_dict().items() if name not in names}
    with pytest.raises(RuntimeError, match="relative_attention_bias"):
        model.load_state_dict(state)


def test_names_of_newer_torch_load(shared):
    model, _ = shared
    theirs = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = model.state_dict()
    for ours, name in theirs.items():
        state[f"pos_conv.0.{name}"] = state.pop(f"pos_conv.0.{ours}")
    listed = list(state)
    other = encoder(1, encoder_layers=3)
    other.load_state_dict(state)
    assert list(state) == listed
    x = torch.randn(2, 9, C)
    close(other(x)[0], model(x)[0])
    assert "pos_conv.0.weight_g" in other.state_dict()
    assert other.pos_conv[0].weight_g.shape == (1, 1, 16)


@pytest.mark.parametrize("third", [3, 0, 1, 12, torch.tensor(3)])
def test_a_layer_in_the_third_place_is_refused_by_name(third):
    """The research code's third argument is a layer; taken for a flag, every number but 0 would mean all layers."""
    model, x = encoder(), torch.randn(2, 9, C)
    for method in (model, model.extract_features):
        with pytest.raises(TypeError, match=r"output_all_hiddens must be True, False or None.*layers="):
            method(x, None, third)


def test_layouts_are_those_in_the_docs():
    """docs/weights.md has this table, for hooks."""
    model = shaken(BEATs(BEATsConfig(SMALL))).eval()
    B, T = 2, 48
    expected = {
        "patch_embedding": (B, SMALL["embed_dim"], T // 8 + 1, 8),  # with the padding behind the last step
        "layer_norm": (B, T, SMALL["embed_dim"]),
        "post_extract_proj": (B, T, C),
        "encoder": (B, T, C),
        "encoder.pos_conv": (B, C, T),
        "encoder.layers.1": (T, B, C),
        "encoder.layers.1.self_attn": (T, B, C),
        "encoder.layers.1.self_attn.q_proj": (B, T, C),
        "encoder.layers.1.self_attn.out_proj": (B, T, C),
        "encoder.layers.1.self_attn.grep_linear": (B, H, T, 8),
        "encoder.layers.1.final_layer_norm": (B, T, C),
        "encoder.layers.1.fc1": (B, T, SMALL["encoder_ffn_embed_dim"]),
    }
    shapes = {}

    def note(name):
        return lambda _, __, out: shapes.update({name: tuple((out[0] if isinstance(out, tuple) else out).shape)})

    for name in expected:
        model.get_submodule(name).register_forward_hook(note(name))
    bias = []
    model.encoder.layers[0].register_forward_hook(lambda _, __, out: bias.append(tuple(out[2].shape)))
    with torch.no_grad():
        model(torch.randn(B, 16_000))
    assert shapes == expected
    assert bias == [(H, 2 * T - 1)]
