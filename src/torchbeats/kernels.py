"""Attention with a gated position bias, ``softmax(q k' / sqrt(D) + gate * bias + masks) v``, as suits the case.

This is the only place that chooses: the model never asks which way it got. All ways agree to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_SCORES = 2**20  # 4 MB: attention scores that a processor core's caches hold, more or less


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
        bias: position bias ``(1 or B, H, T, S)``, added to the scores.
        gate: ``(B, H, T, 1)``, multiplied with ``bias``.
        key_padding_mask: ``(B, S)`` bool, True = no query looks here. A row must not be True throughout.
        attn_mask: added to the scores, ``(1 or B, 1 or H, T, S)``.
        dropout: probability for each attention weight.

    Returns:
        ``(B, H, T, D)``.
    """
    tensors = [t for t in (q, k, v, bias, gate, attn_mask) if t is not None]
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    plain = q.device.type == "cpu" and q.dtype == torch.float32 and not differentiable and dropout == 0
    if plain and not torch.compiler.is_compiling() and (bias is not None or key_padding_mask is not None):
        return _in_cache(q, k, v, bias, gate, key_padding_mask, attn_mask)

    added = _added_to_scores(bias, gate, key_padding_mask, attn_mask, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, added, dropout)


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
    added = _added_to_scores(bias, gate, key_padding_mask, attn_mask, scores.dtype)
    if added is None:
        return torch.softmax(scores, dim=-1).to(q.dtype)
    weights = torch.softmax(scores + added, dim=-1)
    if attn_mask is not None:
        weights = weights.masked_fill(_blind(added), 0)
    return weights.to(q.dtype)


def wide_scores(q: Tensor, k: Tensor) -> Tensor:
    """``q k' / sqrt(D)``, ``(B, H, T, S)``, in float32 at least: products of half precision overflow it."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return q.to(wide) * q.size(-1) ** -0.5 @ k.to(wide).transpose(-2, -1)


def _blind(added: Tensor) -> Tensor:
    """Queries that no key is left for, ``(..., T, 1)``. They attend to nothing, as in the fused call."""
    return torch.isneginf(added).all(-1, keepdim=True)


def _added_to_scores(
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Everything that is added to the scores, in one tensor that broadcasts to ``(B, H, T, S)``."""
    added = bias
    if bias is not None and gate is not None:
        if torch.compiler.is_compiling() and dtype != torch.float32:
            # Spelt out, or torch.export asks whether T is less than T squared, and gives up.
            gate = gate.repeat(1, 1, 1, bias.size(-1))
        added = gate * bias
    if attn_mask is not None:
        added = attn_mask if added is None else added + attn_mask
    if key_padding_mask is not None:
        # Added rather than filled in, for torch.export's sake again.
        hidden = torch.zeros(key_padding_mask.shape, dtype=dtype, device=key_padding_mask.device)
        hidden = hidden.masked_fill(key_padding_mask, -math.inf)[:, None, None, :]
        added = hidden if added is None else added + hidden
    return None if added is None else added.to(dtype)


def _in_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Tensor:
    """For float32 on a CPU without autograd: as many clips at a time as have their scores in cache, worked on in place.

    The scores of a whole batch do not fit there, and a fused call wants the gated bias of the whole batch spelt out.
    """
    B, H, T, D = q.shape
    S = k.size(2)
    at_once = max(1, min(B, CACHED_SCORES // max(1, H * T * S)))
    q = q * D**-0.5
    out = q.new_empty(B, H, T, D)
    buffer = q.new_empty(at_once * H * T * S)
    for first in range(0, B, at_once):
        clips = slice(first, first + at_once)
        query, key, value = q[clips], k[clips], v[clips]
        hidden, keys = None, S
        if key_padding_mask is not None:
            hidden = key_padding_mask[clips]
            # Keys behind the longest of these clips are left out; with one clip at a time, no other is hidden.
            keys = int((~hidden).any(0).nonzero()[-1]) + 1
            key, value, hidden = key[:, :, :keys], value[:, :, :keys], hidden[:, :keys]
            if not bool(hidden.any()):
                hidden = None
        added = _added_to_scores(
            None if bias is None else (bias if bias.size(0) == 1 else bias[clips])[..., :keys],
            None if gate is None else gate[clips],
            hidden,
            None if attn_mask is None else (attn_mask if attn_mask.size(0) == 1 else attn_mask[clips])[..., :keys],
            q.dtype,
        )
        n = len(query)
        scores = buffer[: n * H * T * keys].view(n * H, T, keys)
        query, key = query.reshape(n * H, T, D), key.reshape(n * H, keys, D).transpose(1, 2)
        if added is None:
            torch.bmm(query, key, out=scores)
        else:
            torch.baddbmm(added.expand(n, H, T, keys).reshape(n * H, T, keys), query, key, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        if attn_mask is not None and added is not None:
            scores.view(n, H, T, keys).masked_fill_(_blind(added), 0)
        torch.bmm(scores, value.reshape(n * H, keys, D), out=out[clips].view(n * H, T, D))
    return out
