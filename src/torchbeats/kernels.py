"""Every fast path: attention with a gated position bias, dropout, linear layers, position convolution, work by rows.

This is the only place that chooses by device, dtype, length and autograd: the model never asks which way it got. All
ways agree to rounding. A graph that is compiled, exported or traced takes one path for every length.

Attention is ``softmax(q k' / sqrt(D) + gate * bias + masks) v``. The bias of a whole model depends on the distance
between key and query alone, so it comes as a table ``(H, T + S - 1)``, the bias of key j and query i standing at
``j - i + T - 1``. That of some consecutive queries is a slice of it; so nothing has to be as large as ``(T, S)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import modules
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from torchbeats.remembering import can_remember, forget, remembered

CACHED_SCORES = 2**19  # 2 MB: attention scores that a processor core's caches hold, more or less
FEWEST_QUERIES = 512  # at a time: each product rearranges all keys first
SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # gated bias made at once for a fused call, in numbers: 16 MB, 256 MB
ROWS_AT_ONCE = 1024  # of a feed-forward part: enough for a matrix product at full speed, few enough for the cache
SPECTRAL_TAPS = 32  # a kernel shorter than that is as fast as it is
# On a CPU with AMX, oneDNN's bfloat16 convolution is wrong by its own size for fewer channels a group (torch 2.13).
ONEDNN_CHANNELS = 16
SPECTRAL_STEPS = 1000  # in a batch; with fewer, the transform of a kernel beyond the cache costs more than is saved
SPECTRAL_STEPS_PER_WEIGHT = 2**-12  # with kernels that fit the cache, fewer do
SPECTRAL_PIECES = 64  # at a time, so that a long recording needs little memory besides its own


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend.

    Args:
        q: queries ``(B, H, T, D)``.
        k: keys ``(B, H, S, D)``.
        v: values ``(B, H, S, D)``.
        bias: position bias ``(1 or B, H, T, S)``, or by distance ``(H, T + S - 1)``, added to the scores.
        gate: ``(B, H, T, 1)``, multiplied with ``bias``.
        key_padding_mask: ``(B, S)`` bool, True = no query looks here. A row must not be True throughout.
        attn_mask: added to the scores, ``(1 or B, 1 or H, T, S)``.
        dropout: probability for each attention weight.

    Returns:
        ``(B, H, T, D)``.
    """
    differentiable = _differentiable(q, k, v, bias, gate, attn_mask)
    inference = not differentiable and dropout == 0
    plain = inference and q.device.type == "cpu" and q.dtype == torch.float32
    if plain and not in_graph() and (bias is not None or key_padding_mask is not None):
        return _in_cache(q, k, v, bias, gate, key_padding_mask, attn_mask)
    if inference and bias is not None and bias.dim() == 2 and attn_mask is None and _may_flex(q):
        return _flex(q, k, v, bias, gate, key_padding_mask)
    if in_graph() or (bias is None and attn_mask is None):
        return _fused(q, k, v, bias, gate, key_padding_mask, attn_mask, dropout)
    if (
        q.device.type == "cpu"
        and (torch.is_autocast_enabled("cpu") or (differentiable and q.dtype == torch.float32))
        and attn_mask is None
        and q.numel() // q.size(-1) * k.size(2) <= SCORES_AT_ONCE["cuda"]
    ):
        return _by_products(q, k, v, bias, gate, key_padding_mask, dropout)
    return _in_query_blocks(q, k, v, bias, gate, key_padding_mask, attn_mask, dropout, differentiable)


def attention_weights(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """The weights themselves, ``(B, H, T, S)``, for callers who ask for them. Arguments as in `attention`."""
    scores = wide_scores(q, k)
    added = _added_to_scores(bias, gate, key_padding_mask, attn_mask, scores)
    if added is None:
        return torch.softmax(scores, dim=-1).to(q.dtype)
    weights = torch.softmax(scores + added, dim=-1)
    if attn_mask is not None:
        weights = weights.masked_fill(_fully_masked(added), 0)
    return weights.to(q.dtype)


def wide_scores(q: Tensor, k: Tensor) -> Tensor:
    """``q k' / sqrt(D)``, ``(B, H, T, S)``, in float32 at least: products of half precision overflow it."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return q.to(wide) * q.size(-1) ** -0.5 @ k.to(wide).transpose(-2, -1)


def bias_for_layers(table: Tensor, length: int) -> Tensor:
    """A model's position bias in the form in which `attention` takes it fastest, layer after layer.

    Args:
        table: by distance, ``(H, 2 * length - 1)``.
        length: T.

    Returns:
        ``table``; or ``(H, T, T)`` where every layer would have to spread it again, as for autograd.
    """
    if in_graph():
        by_distance = _may_flex(table) and not _differentiable(table)
    else:
        by_distance = not _differentiable(table) or len(table) * length**2 > SCORES_AT_ONCE["cuda"]
    return table if by_distance else spread(table, length, length)


def spread(table: Tensor, queries: int, keys: int) -> Tensor:
    """Bias by distance ``(H, queries + keys - 1)`` to ``(H, queries, keys)``."""
    column = torch.arange(keys, device=table.device)
    row = torch.arange(queries - 1, -1, -1, device=table.device)
    return table[:, row[:, None] + column]


def in_graph() -> bool:
    """Whether operations are being recorded, for any input, rather than done: compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _fully_masked(added: Tensor) -> Tensor:
    """Queries that no key is left for, ``(..., T, 1)``. They attend to nothing, as in the fused call."""
    return torch.isneginf(added).all(-1, keepdim=True)


def _added_to_scores(
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    scores: Tensor,
) -> Tensor | None:
    """All that is added to the scores, in one tensor of ``scores``' dtype that broadcasts to ``(B, H, T, S)``."""
    dtype = scores.dtype
    if bias is not None and bias.dim() == 2:
        queries = scores.size(2)
        bias = spread(bias, queries, bias.size(1) + 1 - queries)
    masks = attn_mask
    if key_padding_mask is not None:
        # Added rather than filled in, for torch.export's sake.
        hidden = torch.zeros(key_padding_mask.shape, dtype=dtype, device=key_padding_mask.device)
        hidden = hidden.masked_fill(key_padding_mask, -math.inf)[:, None, None, :]
        masks = hidden if masks is None else masks + hidden
    if bias is None or gate is None:
        added = bias if masks is None else masks if bias is None else bias + masks
        return None if added is None else added.to(dtype)
    if in_graph() and dtype != torch.float32:
        # Spelt out, or torch.export asks whether T is less than T squared, and gives up.
        gate = gate.repeat(1, 1, 1, bias.size(-1))
    gate, bias = gate.to(dtype), bias.to(dtype)
    return gate * bias if masks is None else torch.addcmul(masks.to(dtype), gate, bias)  # one tensor of that size


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    dropout: float,
) -> Tensor:
    """PyTorch's own call, which wants the gated bias of every clip spelt out."""
    added = _added_to_scores(bias, gate, key_padding_mask, attn_mask, q)
    return F.scaled_dot_product_attention(q, k, v, added, dropout)


def _by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    dropout: float,
) -> Tensor:
    """Spelt out, for training on a CPU, where PyTorch's own call is spelt out too, and looks for queries without keys.

    Under autocast that call goes back to float32; only the softmax has to.
    """
    scores = (q * q.size(-1) ** -0.5 @ k.transpose(-2, -1)).float()
    added = _added_to_scores(bias, gate, key_padding_mask, None, scores)
    weights = torch.softmax(scores if added is None else scores + added, dim=-1)
    return drop(weights, dropout) @ v


def drop(x: Tensor, p: float) -> Tensor:
    """`torch.nn.functional.dropout` in training, with a mask of random bits on a CPU.

    PyTorch draws two numbers of 32 bits for each element there, one after the other; here two do for four elements, and
    the probability is met to 2e-5.
    """
    if p in (0, 1) or x.device.type != "cpu" or in_graph():
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(max(round(p * 2**16), 1), 2**16 - 1)  # of the values that 16 bits have
    return x * ((bits >= dropped - 2**15) * (1 / (1 - dropped / 2**16))).to(x.dtype)


def _in_query_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    dropout: float,
    differentiable: bool,
) -> Tensor:
    """As `_fused`, for so many queries at a time that their gated bias takes a bounded room, with autograd too."""
    B, H, T, _ = q.shape
    S = k.size(2)
    limit = SCORES_AT_ONCE["cpu" if q.device.type == "cpu" and not differentiable else "cuda"]
    size = max(1, min(T, limit // (B * H * S)))
    if size == T:
        return _fused(q, k, v, bias, gate, key_padding_mask, attn_mask, dropout)
    blocks = []
    for first in range(0, T, size):
        rows = slice(first, min(first + size, T))
        arguments = (
            q[:, :, rows],
            k,
            v,
            _bias_of(bias, rows, T, S),
            None if gate is None else gate[:, :, rows],
            key_padding_mask,
            None if attn_mask is None else attn_mask[:, :, rows],
            dropout,
        )
        # Autograd would keep the gated bias of every block: it makes it again instead.
        blocks.append(checkpoint(_fused, *arguments, use_reentrant=False) if differentiable else _fused(*arguments))
    return torch.cat(blocks, dim=2)


def _bias_of(bias: Tensor | None, rows: slice, T: int, S: int) -> Tensor | None:
    """The part of ``bias``, in either form, for some of the T queries."""
    if bias is None or bias.dim() == 4:
        return None if bias is None else bias[:, :, rows]
    return bias[:, T - rows.stop : T - rows.start + S - 1]


def _may_flex(scores: Tensor) -> bool:
    """Whether a graph for this tensor's device can have an attention kernel that makes the bias itself.

    On a CPU, torch 2.13 cannot lower this score function; outside of a graph, FlexAttention is not fused at all.
    """
    return scores.device.type == "cuda" and torch.compiler.is_compiling() and not _exporting()


def _exporting() -> bool:
    # torch 2.6 cannot tell exporting from compiling: there no graph has this kernel.
    is_exporting: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)
    return is_exporting is None or is_exporting()


def _flex(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, gate: Tensor | None, key_padding_mask: Tensor | None
) -> Tensor:
    """FlexAttention (arXiv 2412.05496): bias, gate and padding are looked up score by score, inside the kernel."""
    T = q.size(2)

    def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bias = table[h, j - i + (T - 1)]
        score = score + (bias if gate is None else gate[b, h, i, 0] * bias)
        return score if key_padding_mask is None else torch.where(key_padding_mask[b, j], -math.inf, score)

    attended = flex_attention(q, k, v, score_mod=score)
    assert isinstance(attended, Tensor)
    return attended


def _in_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Tensor:
    """For float32 on a CPU without autograd: as many clips, heads or queries at a time as have their scores in cache.

    They are worked on in place there: bias, product, softmax. Memory grows with T + S.
    """
    B, H, T, D = q.shape
    S = k.size(2)
    reverse = bias is not None and bias.dim() == 2
    if bias is not None and bias.dim() == 2:
        # With the keys in reverse, the bias of key j and query i stands at i + j of the reversed table: each query's
        # row is a piece of the table, one further on than the row before, and the square a view of them.
        bias = bias.flip(1).unfold(1, S, 1).unsqueeze(0)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.flip(1)
        attn_mask = None if attn_mask is None else attn_mask.flip(3)
    clips = max(1, min(B, CACHED_SCORES // (H * T * S)))
    heads_at_once = max(1, min(H, CACHED_SCORES // (T * S)))
    queries = min(T, max(FEWEST_QUERIES, CACHED_SCORES // S))
    out = q.new_empty(B, T, H, D).transpose(1, 2)  # as the projection behind wants it
    buffer = q.new_empty(clips * heads_at_once * queries * S)

    for b in (slice(first, first + clips) for first in range(0, B, clips)):
        keys, hidden = slice(0, S), None
        if key_padding_mask is not None:
            # Keys that are hidden in all of these clips, at either end, are left out.
            hidden = key_padding_mask[b]
            visible = (~hidden).any(0).nonzero()
            keys = slice(int(visible[0]), int(visible[-1]) + 1)
            hidden = hidden[:, None, None, keys] if bool(hidden[:, keys].any()) else None
        S_b = keys.stop - keys.start
        own = slice(S - keys.stop, S - keys.start) if reverse else keys  # where they are in k and v
        for h in (slice(first, first + heads_at_once) for first in range(0, H, heads_at_once)):
            key, value = k[b, h, own], v[b, h, own]
            if reverse:  # few at a time, so that the copies stay in cache
                key, value = key.flip(2), value.flip(2)
            key, value = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
            weigh = _onednn_weighing(value)
            for t in (slice(first, first + queries) for first in range(0, T, queries)):
                query = q[b, h, t]
                shape = (*query.shape[:3], S_b)
                scores = buffer[: math.prod(shape)].view(shape)
                if bias is not None:
                    block = bias[b if len(bias) > 1 else slice(1), h, t, keys]
                    if gate is None:
                        scores.copy_(block)
                    else:
                        torch.mul(gate[b, h, t], block, out=scores)
                if attn_mask is not None:
                    block = attn_mask[
                        b if attn_mask.size(0) > 1 else slice(1), h if attn_mask.size(1) > 1 else slice(1), t, keys
                    ]
                    scores = scores.copy_(block) if bias is None else scores.add_(block)
                flat = scores.flatten(0, 1)
                flat.baddbmm_(query.flatten(0, 1), key, beta=bias is not None or attn_mask is not None, alpha=D**-0.5)
                if hidden is not None:
                    scores.masked_fill_(hidden, -math.inf)
                fully_masked = None if attn_mask is None else _fully_masked(scores)
                torch.softmax(scores, dim=-1, out=scores)
                if fully_masked is not None:
                    scores.masked_fill_(fully_masked, 0)
                if weigh is not None:
                    out[b, h, t] = weigh(flat)
                elif len(query) == 1:
                    torch.bmm(flat, value, out=out[b, h, t][0])
                else:
                    out[b, h, t] = torch.bmm(flat, value).view_as(query)
    return out


def _onednn_weighing(value: Tensor) -> Callable[[Tensor], Tensor] | None:
    """``weights @ value`` by oneDNN, for one long sequence at a time: there it is a fifth faster than MKL's product.

    Args:
        value: ``(clips * heads, S, D)``.
    """
    if len(value) > 1 or _ONEDNN_PRODUCT is None or not torch.backends.mkldnn.enabled:
        return None
    product, transposed = _ONEDNN_PRODUCT, value[0].T.contiguous()
    return lambda weights: product(weights[0], transposed, None, "none", [], "none")


def linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """``layer(x)``, and the GELU of that where asked.

    Args:
        layer: `nn.Linear`, or what somebody has put in the place of one.
        x: ``(..., channels)``.
        gelu: apply `torch.nn.functional.gelu` too.
    """
    if (product := _onednn_product(layer, x)) is not None:
        return product(x.contiguous(), layer.weight, layer.bias, "gelu" if gelu else "none", [], "none")
    y: Tensor = layer(x)
    return F.gelu(y.float()).type_as(y) if gelu else y


def _onednn_product(layer: nn.Module, x: Tensor) -> Callable[..., Tensor] | None:
    """OneDNN's matrix product, where it can stand for ``layer(x)``, in float32 on a CPU with AVX-512.

    PyTorch takes MKL's, which on an AMD EPYC leaves a fifth of the speed unused; TorchInductor takes this one too. Its
    GELU costs next to nothing, applied while the product is in cache.
    """
    if not (
        _ONEDNN_PRODUCT is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not in_graph()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and is_plain_linear(layer)
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and layer.weight.is_contiguous()
        and not _differentiable(x, *layer.parameters(recurse=False))
        and x.numel()
    ):
        return None
    return _ONEDNN_PRODUCT


def _find_onednn_product() -> Callable[..., Tensor] | None:
    available = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if available else None


_ONEDNN_PRODUCT = _find_onednn_product()


def convolution(x: Tensor, kernel: Callable[[], Tensor], bias: Tensor, groups: int, *weights: Tensor) -> Tensor:
    """Grouped convolution of long kernels, over time; where it is spared work, in the frequency domain.

    Args:
        x: ``(B, C, T)``; half of the kernel's length is padded on both sides.
        kernel: makes the kernel ``(C, C / groups, K)``.
        bias: ``(C,)``.
        groups: of channels.
        weights: of whose values alone the kernel is made, K being the length of the first one's last axis. Where they
            are not trained and long enough, the spectrum of the kernel is remembered.

    Returns:
        ``(B, C, T + 1 - K % 2)``.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not in_graph() and x.dtype != torch.float64:
        # OneDNN's in bfloat16 takes many times as long, above all on the way back.
        with torch.autocast("cpu", enabled=False):
            return convolution(x.float(), lambda: kernel().float(), bias.float(), groups, *weights).to(x.dtype)
    eager = x.device.type == "cpu" and x.dtype == torch.float32 and not in_graph()
    if eager and type(x) is Tensor and _may_remember(weights):
        size = 2 * weights[0].shape[-1]
        spectra = remembered(lambda: _spectra(kernel(), size, groups), *weights)
        return _spectral_convolution(x, spectra, size, size // 2, bias)
    if not in_graph():
        for weight in weights[:1]:
            forget(weight)
    made = kernel()
    K = made.shape[2]
    if (
        eager
        and x.shape[0] * x.shape[2] >= min(SPECTRAL_STEPS, SPECTRAL_STEPS_PER_WEIGHT * made.numel())
        and K >= SPECTRAL_TAPS
        and made.dtype == torch.float32
    ):
        size = min(2 * K, -(-(x.shape[2] + K - K % 2) // 16) * 16)  # fast, as it has small factors
        return _spectral_convolution(x, _spectra(made, size, groups), size, K, bias)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and made.shape[1] < ONEDNN_CHANNELS:
        convolved = F.conv1d(x.float(), made.float(), bias.float(), padding=K // 2, groups=groups)
        return convolved.to(x.dtype)
    return F.conv1d(x, made, bias, padding=K // 2, groups=groups)


def _may_remember(weights: tuple[Tensor, ...]) -> bool:
    return bool(
        weights
        and weights[0].shape[-1] >= SPECTRAL_TAPS
        and all(weight.dtype == torch.float32 for weight in weights)
        and not _differentiable(*weights)
        and can_remember(*weights)
    )


def _spectra(kernel: Tensor, size: int, groups: int) -> Tensor:
    """Transforms of a kernel ``(C, C / groups, K)``: ``(frequencies, groups, C / groups in, C / groups out)``."""
    # Turned round, as what is called a convolution here is a correlation.
    spectra = torch.fft.rfft(kernel.flip(2), n=size)
    return spectra.unflatten(0, (groups, -1)).permute(3, 0, 2, 1).contiguous()


def _spectral_convolution(x: Tensor, spectra: Tensor, size: int, K: int, bias: Tensor) -> Tensor:
    """In pieces that overlap ("overlap-save"); for each frequency a small matrix product over the group's channels."""
    (B, C, T), groups = x.shape, spectra.shape[1]
    steps = T + 1 - K % 2
    step = size - K + 1  # what is good of each piece; the rest of its result has wrapped around
    pieces = -(-steps // step)
    x = F.pad(x, (K // 2, pieces * step + K - 1 - T - K // 2))
    y, at_once = [], max(1, SPECTRAL_PIECES // B)
    for first in range(0, pieces, at_once):
        part = x[..., first * step : (first + at_once - 1) * step + size]
        parts = torch.fft.rfft(part.unfold(2, size, step), n=size)  # (B, C, n, frequencies)
        n = parts.shape[2]
        parts = parts.unflatten(1, (groups, -1)).permute(4, 1, 0, 3, 2).reshape(-1, B * n, C // groups)
        products = torch.bmm(parts, spectra.flatten(0, 1)).view(-1, groups, B, n, C // groups)
        products = products.permute(2, 1, 4, 3, 0).reshape(B, C, n, -1)
        y.append(torch.fft.irfft(products, n=size)[..., K - 1 :].flatten(2))
    return torch.cat(y, 2)[..., :steps] + bias[:, None]


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether ``layer(x)`` may be computed without calling it: it is linear, not quantised, adapted or hooked."""
    return type(layer).forward is nn.Linear.forward and not _has_hooks(layer)


_HOOKS = ("forward_pre", "forward", "backward_pre", "backward")


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which only see what goes in and out where it is called.

    By a hook of the module's, by a hook on every module, or by a function in the place of its ``forward``.
    """
    if any(getattr(modules.module, f"_global_{kind}_hooks") for kind in _HOOKS):
        return True
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in part.__dict__
        for part in module.modules()
    )


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> Tensor:
    """``function(x)`` for a function that treats every row alike, some rows at a time where that helps.

    On a CPU without autograd what it makes in between then stays in cache, and its size does not grow with the batch.

    Args:
        function: ``(..., C)`` to ``(..., C)``.
        x: ``(B, T, C)``.
        modules: all that it calls.
    """
    B, T, C = x.shape
    if (
        in_graph()
        or x.device.type != "cpu"
        or B * T <= ROWS_AT_ONCE
        or _differentiable(x, *(parameter for module in modules for parameter in module.parameters()))
        or any(_has_hooks(module) for module in modules)
    ):
        return function(x)
    rows = x.reshape(B * T, C)
    out = torch.empty_like(rows)
    for first in range(0, B * T, ROWS_AT_ONCE):
        chunk = slice(first, first + ROWS_AT_ONCE)
        out[chunk] = function(rows[chunk])
    return out.view(B, T, C)
