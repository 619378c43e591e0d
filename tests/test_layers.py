"""Activations, gated units, padding, gradient scaling, initial weights and quantisation noise."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import golden, under
from torchbeats import layers
from torchbeats.attention import MultiheadAttention
from torchbeats.encoder import init_bert_params
from torchbeats.layers import GLU_Linear, GradMultiply, SamePad, Swish, get_activation_fn, quant_noise

ULPS = {"rtol": 1e-6, "atol": 1e-6}  # a few float32 roundings of values of unit scale
FUNCTIONS = golden("functions")[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Activations


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_accurate", "tanh", "linear", "glu"])
def test_activation_is_that_of_the_reference(name):
    torch.testing.assert_close(get_activation_fn(name)(FUNCTIONS["x"]), FUNCTIONS[f"activation.{name}"], **ULPS)


def test_gelu_fast_is_a_deprecated_alias():
    with pytest.warns(DeprecationWarning, match="gelu_accurate"):
        assert get_activation_fn("gelu_fast") is layers.gelu_accurate


def test_other_activations_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_activation_fn("gelu_accurate")


def test_unknown_activation_names_itself_and_the_choices():
    with pytest.raises(RuntimeError, match="'mish'") as error:
        get_activation_fn("mish")
    choices = ["relu", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear", "glu"]
    assert all(choice in str(error.value) for choice in choices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gelu_computes_in_float32_and_returns_the_dtype_it_got(dtype):
    x = FUNCTIONS["x"].to(dtype)
    y = layers.gelu(x)
    assert y.dtype == dtype
    assert torch.equal(y, F.gelu(x.float()).to(dtype))
    if dtype == torch.float64:  # the only dtype in which float32 arithmetic shows
        assert not torch.equal(y, F.gelu(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gelu_accurate_is_the_tanh_form_in_the_dtype_it_got(dtype):
    x = FUNCTIONS["x"].to(dtype)
    wide = x.double()
    expected = wide / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    torch.testing.assert_close(layers.gelu_accurate(x), expected.to(dtype))


def test_swish():
    x = FUNCTIONS["x"]
    torch.testing.assert_close(Swish()(x), x / (1 + torch.exp(-x)), **ULPS)


# GLU_Linear


@pytest.mark.parametrize("glu_type", ["swish", "bilinear"])
def test_glu_linear_is_that_of_the_reference(glu_type):
    case = under(FUNCTIONS, f"glu_{glu_type}")
    layer = GLU_Linear(6, 4, glu_type)
    layer.load_state_dict({"linear.weight": case["weight"], "linear.bias": case["bias"]})
    torch.testing.assert_close(layer(case["x"]), case["y"], **ULPS)


GATES = {
    "sigmoid": torch.sigmoid,
    "swish": lambda gate: gate * torch.sigmoid(gate),
    "relu": lambda gate: gate.clamp_min(0),
    "gelu": F.gelu,
    "bilinear": lambda gate: gate,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("glu_type", GATES)
def test_glu_linear_gates_its_first_half_with_its_second(glu_type, bias):
    layer, x = GLU_Linear(6, 4, glu_type, bias_in_glu=bias), torch.randn(2, 5, 6)
    assert (layer.linear.bias is not None) == bias
    value, gate = layer.linear(x)[..., :4], layer.linear(x)[..., 4:]
    torch.testing.assert_close(layer(x), value * GATES[glu_type](gate), **ULPS)


def test_glu_linear_is_gated_by_sigmoid_with_bias_by_default():
    layer = GLU_Linear(6, 4)
    assert layer.glu_type == "sigmoid"
    assert layer.linear.bias is not None


def test_glu_linear_refuses_an_unknown_gate():
    with pytest.raises(ValueError, match=r"'tanh'.*sigmoid, swish, relu, gelu, bilinear"):
        GLU_Linear(6, 4, "tanh")


# GradMultiply and SamePad


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 3.0])
def test_grad_multiply_scales_the_gradient_and_nothing_else(scale):
    x = torch.randn(3, 4, requires_grad=True)
    y = GradMultiply.apply(x, scale)
    assert torch.equal(y, x)
    upstream = torch.randn(3, 4)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, scale * upstream, rtol=0, atol=0)


def test_grad_multiply_is_differentiated_right():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: GradMultiply.apply(x.square(), 1.0), x)
    (first,) = torch.autograd.grad(GradMultiply.apply(x, 0.5).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)  # the gradient is scaled on its way back each time
    torch.testing.assert_close(second, 0.5 * 6 * x * 0.5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 8, 9, 16])
@pytest.mark.parametrize("causal", [False, True])
def test_same_pad_keeps_the_length(kernel, causal):
    padding = kernel - 1 if causal else kernel // 2
    x = torch.randn(1, 1, 20)
    convolved = F.conv1d(x, torch.randn(1, 1, kernel), padding=padding)
    y = SamePad(kernel, causal)(convolved)
    assert torch.equal(y, convolved[..., :20])  # the surplus goes at the end


# Initial weights


def assert_bert_normal(weight):
    """N(0, 0.02), to five standard errors of the mean, the deviation and the share beyond two deviations."""
    values, n = weight.detach().flatten() / 0.02, weight.numel()
    assert abs(values.mean()) < 5 / n**0.5
    assert abs(values.std() - 1) < 5 / (2 * n) ** 0.5
    tail = 0.0455  # of a normal distribution; none of a uniform one with this deviation lies there
    assert abs((values.abs() > 2).float().mean() - tail) < 5 * (tail / n) ** 0.5


def test_init_bert_params_of_linear():
    layer = nn.Linear(200, 150)
    init_bert_params(layer)
    assert_bert_normal(layer.weight)
    assert not layer.bias.any()
    init_bert_params(nn.Linear(4, 4, bias=False))


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_init_bert_params_of_embedding(padding_idx):
    layer = nn.Embedding(200, 150, padding_idx=padding_idx)
    init_bert_params(layer)
    zero_rows = (layer.weight == 0).all(-1).nonzero().flatten().tolist()
    assert zero_rows == ([] if padding_idx is None else [padding_idx])
    assert_bert_normal(layer.weight[:3])
    assert_bert_normal(layer.weight[4:])


def test_init_bert_params_of_attention():
    attention = MultiheadAttention(128, 4, add_bias_kv=True)
    before = copy.deepcopy(attention)
    init_bert_params(attention)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert_bert_normal(projection.weight)
    assert torch.equal(attention.out_proj.weight, before.out_proj.weight)  # `apply` reaches it as a Linear
    assert torch.equal(attention.bias_k, before.bias_k)


def test_init_bert_params_leaves_other_modules_alone():
    norm = nn.LayerNorm(8)
    init_bert_params(norm)
    assert (norm.weight == 1).all()


# Quantisation noise

P = 0.3
NOISY = {  # layer, block size, number of blocks
    "linear": (lambda: nn.Linear(64, 96, bias=False), 8, 8 * 96),
    "linear, blocks of one": (lambda: nn.Linear(64, 96, bias=False), 1, 64 * 96),
    "embedding": (lambda: nn.Embedding(96, 64), 8, 8 * 96),
    "embedding with padding": (lambda: nn.Embedding(96, 64, padding_idx=0), 8, 8 * 96),
    "1x1": (lambda: nn.Conv2d(64, 96, 1, bias=False), 8, 8 * 96),
    "1x1 in groups": (lambda: nn.Conv2d(64, 96, 1, bias=False, groups=4), 8, 2 * 96),
    "3x3": (lambda: nn.Conv2d(32, 64, 3, bias=False), 9, 32 * 64),
    "3x3 in groups": (lambda: nn.Conv2d(32, 64, 3, bias=False, groups=4), 9, 8 * 64),
}


@pytest.fixture(params=NOISY)
def noisy(request):
    """A layer in training with noise on its weight, its plain twin, its block size and its number of blocks."""
    make, block, blocks = NOISY[request.param]
    plain = make()
    with torch.no_grad():
        plain.weight[plain.weight == 0] = 1  # the padding row: shows whether a zero was drawn
    return quant_noise(copy.deepcopy(plain), P, block), plain, block, blocks


def some_input(layer):
    if isinstance(layer, nn.Embedding):
        return torch.randint(layer.num_embeddings, (4, 5))
    if isinstance(layer, nn.Linear):
        return torch.randn(3, layer.in_features)
    return torch.randn(2, layer.in_channels, 5, 5)


def weight_of_one_pass(layer):
    """The weight that a forward pass uses, read from the outputs for unit inputs."""
    if isinstance(layer, nn.Embedding):
        return layer(torch.arange(layer.num_embeddings))
    if isinstance(layer, nn.Linear):
        return layer(torch.eye(layer.in_features)).t()
    channels, k = layer.in_channels, layer.kernel_size[0]
    units = F.pad(torch.eye(channels)[..., None, None], [k - 1] * 4)
    dense = layer(units).transpose(0, 1).flip(-1, -2)  # (out, in, k, k)
    out, inside = layer.out_channels // layer.groups, channels // layer.groups
    groups = dense.unflatten(0, (layer.groups, out)).unflatten(2, (layer.groups, inside))
    return groups.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)


def test_quant_noise_zeroes_blocks_and_scales_the_rest(noisy):
    layer, plain, block, blocks = noisy
    torch.testing.assert_close(weight_of_one_pass(plain), plain.weight)
    factor = (weight_of_one_pass(layer) / plain.weight).detach()
    factor = factor.flatten(1).unflatten(1, (-1, block))  # a 3 x 3 kernel is a block of nine
    dropped = factor[..., 0] == 0
    assert dropped.numel() == blocks
    expected = torch.where(dropped, 0, 1 / (1 - P)).unsqueeze(-1).expand_as(factor)
    torch.testing.assert_close(factor, expected, rtol=1e-4, atol=0)  # cancellation where weights are small
    # Five standard errors, for the share of blocks and for that of like neighbours: they are drawn independently.
    assert abs(dropped.float().mean() - P) < 5 * (P * (1 - P) / blocks) ** 0.5
    alike = (dropped[:, 1:] == dropped[:, :-1]).float().mean()
    assert abs(alike - (P**2 + (1 - P) ** 2)) < 5 * (0.25 / (blocks - len(dropped))) ** 0.5


def test_quant_noise_draws_anew_in_every_pass(noisy):
    layer, *_ = noisy
    assert not torch.equal(weight_of_one_pass(layer), weight_of_one_pass(layer))


def test_quant_noise_is_off_in_evaluation(noisy):
    layer, plain, *_ = noisy
    x = some_input(layer)
    assert torch.equal(layer.eval()(x), plain(x))
    assert not torch.equal(layer.train()(x), plain(x))


def test_quant_noise_keeps_the_stored_weight_and_passes_the_gradient_straight_through(noisy):
    layer, plain, *_ = noisy
    x = some_input(layer)
    y = layer(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    plain(x).backward(upstream)  # linear in its weight: the gradient does not depend on the values
    assert torch.equal(layer.weight, plain.weight)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=0, atol=0)


def test_quant_noise_keeps_the_bias_and_the_input_gradient_noisy():
    layer = quant_noise(nn.Linear(8, 8), 1.0, 8)
    x = torch.randn(2, 8, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias.expand(2, 8))  # every block is gone
    y.sum().backward()
    assert not x.grad.any()


# SpeechBrain returns None.
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.Embedding(8, 8), lambda: nn.Conv2d(8, 8, 1)])
def test_quant_noise_always_returns_the_module(make, p):
    layer = make()
    assert quant_noise(layer, p, 4) is layer


def test_quant_noise_of_probability_zero_changes_nothing():
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    expected = layer(x)
    assert torch.equal(quant_noise(layer, 0, 8)(x), expected)  # nor need the block size divide
    assert type(layer) is nn.Linear


def test_quant_noise_keeps_the_state_dict(noisy):
    layer, plain, *_ = noisy
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    layer.load_state_dict(plain.state_dict())


def by_torch(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), by_torch])
def test_quant_noise_survives_copies(noisy, copied):
    layer, plain, *_ = noisy
    twin, x = copied(layer), some_input(layer)
    assert torch.equal(twin.eval()(x), plain(x))
    assert not torch.equal(twin.train()(x), plain(x))
    assert twin.weight is not layer.weight


@pytest.mark.parametrize(
    ("make", "block", "message"),
    [
        (lambda: nn.Linear(10, 16), 8, r"inputs of Linear \(10\); 8"),
        (lambda: nn.Embedding(16, 10), 8, r"inputs of Embedding \(10\); 8"),
        (lambda: nn.Conv2d(10, 16, 1), 8, r"inputs of Conv2d \(10\); 8"),
        (lambda: nn.Conv2d(16, 16, 1, groups=4), 8, r"inputs of Conv2d \(4\); 8"),
        (lambda: nn.Conv2d(16, 16, 3), 8, r"kernel's elements of Conv2d \(9\); 8"),
        (lambda: nn.Linear(16, 16), 0, "0 does not"),
    ],
)
def test_quant_noise_refuses_blocks_that_do_not_divide(make, block, message):
    with pytest.raises(ValueError, match=message):
        quant_noise(make(), P, block)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_quant_noise_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        quant_noise(nn.Linear(8, 8), p, 8)


def test_quant_noise_refuses_other_modules():
    with pytest.raises(TypeError, match=r"Linear, Embedding, Conv2d, not Conv1d"):
        quant_noise(nn.Conv1d(8, 8, 1), P, 8)


def test_quant_noise_refuses_a_module_with_a_forward_of_its_own():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match="Scaled"):
        quant_noise(Scaled(8, 8), 0.5, 4)
