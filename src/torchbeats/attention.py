"""Multi-head attention with T5-style relative position bias, gated by the query.

Sources: BEATs (arXiv 2212.09058, section 3), WavLM (arXiv 2110.13900, section 3.1) for the gate, T5 (arXiv 1910.10683,
section 2.1) for the buckets.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats import kernels
from torchbeats.layers import quant_noise

IncrementalState = dict[str, dict[str, Tensor | None]]


class MultiheadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017) with the additions that BEATs and fairseq models use.

    Args:
        embed_dim: channels of queries and outputs, C.
        num_heads: H; must divide ``embed_dim``.
        kdim: channels of keys; ``embed_dim`` where not given.
        vdim: channels of values; ``embed_dim`` where not given.
        dropout: probability for each attention weight.
        bias: the query, value and output projections have a bias.
        add_bias_kv: one learned key and value are appended, as in `torch.nn.MultiheadAttention`.
        add_zero_attn: a key and value of zeros are appended, likewise.
        self_attention: keys and values come from the query.
        encoder_decoder_attention: values come from ``key``.
        q_noise: probability of quantisation noise on the projections (`quant_noise`).
        qn_block_size: its block size.
        has_relative_attention_bias: a learned bias for each head and relative position is added to the scores.
        num_buckets: number of relative positions told apart.
        max_distance: all positions farther away than this share a bucket.
        gru_rel_pos: the position bias is gated by the query.
        rescale_init: the key projection has no bias.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        has_relative_attention_bias: bool = False,
        num_buckets: int = 32,
        max_distance: int = 128,
        gru_rel_pos: bool = False,
        rescale_init: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads}).")
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.qkv_same_dim = self.kdim == embed_dim and self.vdim == embed_dim
        if self_attention and not self.qkv_same_dim:
            raise ValueError(f"Self-attention has one input, so kdim ({kdim}) and vdim ({vdim}) must be {embed_dim}.")
        if has_relative_attention_bias and not (num_buckets >= 4 and max_distance > num_buckets // 4):
            raise ValueError(
                f"num_buckets ({num_buckets}) must be at least 4, and max_distance ({max_distance}) more than a "
                "quarter of it: that many distances have a bucket of their own."
            )
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.add_zero_attn = add_zero_attn
        self.has_relative_attention_bias = has_relative_attention_bias
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.gru_rel_pos = gru_rel_pos

        self.k_proj = quant_noise(nn.Linear(self.kdim, embed_dim, bias=not rescale_init), q_noise, qn_block_size)
        self.v_proj = quant_noise(nn.Linear(self.vdim, embed_dim, bias=bias), q_noise, qn_block_size)
        self.q_proj = quant_noise(nn.Linear(embed_dim, embed_dim, bias=bias), q_noise, qn_block_size)
        self.out_proj = quant_noise(nn.Linear(embed_dim, embed_dim, bias=bias), q_noise, qn_block_size)
        self.bias_k = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        if has_relative_attention_bias:
            self.relative_attention_bias = nn.Embedding(num_buckets, num_heads)
        if gru_rel_pos:
            self.grep_linear = nn.Linear(self.head_dim, 8)
            self.grep_a = nn.Parameter(torch.empty(1, num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: Xavier, the three input projections scaled down where they have one shape."""
        gain = 1 / math.sqrt(2) if self.qkv_same_dim else 1.0
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        for appended in (self.bias_k, self.bias_v):
            if appended is not None:
                nn.init.xavier_normal_(appended)
        if self.has_relative_attention_bias:
            nn.init.xavier_normal_(self.relative_attention_bias.weight)
        if self.gru_rel_pos:
            nn.init.ones_(self.grep_a)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
        position_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend from ``query`` to ``key``.

        Args:
            query: ``(T, B, C)``.
            key: ``(S, B, kdim)``; not looked at in self-attention, None where ``static_kv`` finds cached keys.
            value: ``(S, B, vdim)``; ``key`` where not given.
            key_padding_mask: ``(B, S)`` bool, True = padding. A row that is padding throughout attends to all of it:
                its output means nothing, but is finite.
            incremental_state: a dictionary of the caller's, for decoding step by step. This module keeps its keys,
                values and their padding there, puts those of earlier calls in front of the new ones, and counts
                positions on from them.
            need_weights: return the attention weights, averaged over heads.
            static_kv: take keys and values from ``incremental_state`` as they are, once they are there.
            attn_mask: ``(T, S)`` or ``(B * H, T, S)``, added to scores, or bool, True = hidden; ``S`` may
                count the cached keys or leave them out; in the latter case they are visible.
            before_softmax: return ``(scores, values, position_bias)``: scores ``(B * H, T, S)`` are scaled, less their
                row maximum, then masked, without position bias; values are ``(B * H, S, D)``.
            need_head_weights: return the attention weights of every head.
            position_bias: ``(H, T, S)`` or ``(B * H, T, S)``, used in place of the module's own; or by distance,
                ``(H, T + S - 1)``, as `bias_table` gives it.

        Returns:
            attn: ``(T, B, C)``.
            attn_weights: None, ``(B, T, S)``, or ``(B, H, T, S)`` with ``need_head_weights``; learned and zero keys at
                the end of S where the module appends them.
            position_bias: ``(H, T, S)``, to be given to the next layer, or what was given to this one; None where there
                is none.
        """
        T, B, C = query.shape
        if self.embed_dim != C:
            raise ValueError(f"query has {C} channels; this module was built for {self.embed_dim}.")
        key, value = self._sources(query, key, value, incremental_state, static_kv)
        k = None if key is None else kernels.linear(self.k_proj, key.transpose(0, 1))  # (B, S, C): batch first inside
        v = None if value is None else kernels.linear(self.v_proj, value.transpose(0, 1))
        k, v, key_padding_mask, cached = self._with_cache(k, v, key_padding_mask, incremental_state)
        S = k.size(1)

        if position_bias is None and self.has_relative_attention_bias:
            position_bias = self.compute_bias(T, S, offset=0 if static_kv else cached)
        attn_mask = self._float_mask(attn_mask, B, T, S, cached, k.dtype)
        k, v, attn_mask, key_padding_mask = self._append_keys(k, v, attn_mask, key_padding_mask)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.bool()
            key_padding_mask = key_padding_mask & ~key_padding_mask.all(-1, keepdim=True)

        q = self._heads(kernels.linear(self.q_proj, query.transpose(0, 1)))
        k, v = self._heads(k), self._heads(v)
        if before_softmax:
            scores = self._masked_scores(q, k, attn_mask, key_padding_mask)
            return scores.flatten(0, 1), v.flatten(0, 1), position_bias
        bias = self._full_bias(position_bias, B, T, S, appended=k.size(2) - S)
        gate = self._gate(q) if bias is not None and self.gru_rel_pos else None
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights or need_head_weights:
            weights = kernels.attention_weights(q, k, bias, gate, key_padding_mask, attn_mask)
            attn = kernels.drop(weights, dropout) @ v
        else:
            attn = kernels.attention(q, k, v, bias, gate, key_padding_mask, attn_mask, dropout)
        attn = kernels.linear(self.out_proj, attn.transpose(1, 2).reshape(B, T, C)).transpose(0, 1)
        if weights is not None and not need_head_weights:
            weights = weights.mean(1)
        return attn, weights, position_bias

    def compute_bias(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        """Position bias of every head.

        Args:
            query_length: T.
            key_length: S.
            offset: position of the first query among the keys.

        Returns:
            ``(H, T, S)``.
        """
        return kernels.spread(self.bias_table(query_length, key_length, offset), query_length, key_length)

    def bias_table(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        """All that there is to `compute_bias`, whose arguments it takes: the bias depends on the distance alone.

        Returns:
            ``(H, T + S - 1)``, the bias of key j and query i at ``j - i + T - 1``.
        """
        return self.bias_by_distance(1 - query_length - offset, key_length - offset).t().contiguous()

    def bias_between(self, positions: Tensor, length: int) -> Tensor:
        """Position bias of every head between some places of a sequence.

        Args:
            positions: ``(B, T)`` int64, of ``length`` that there are.
            length: of the sequence.

        Returns:
            ``(B, H, T, T)``.
        """
        values = self.bias_by_distance(1 - length, length)  # (2 * length - 1, H)
        distance = positions[:, None, :] - positions[:, :, None]  # key minus query
        return F.embedding(distance + (length - 1), values).permute(0, 3, 1, 2)

    def bias_by_distance(self, first: int, end: int) -> Tensor:
        """Position bias of every head for a range of distances, key minus query.

        Args:
            first: the smallest distance.
            end: one more than the largest.

        Returns:
            ``(end - first, H)``.
        """
        distances = torch.arange(first, end, device=self.relative_attention_bias.weight.device)
        return self.relative_attention_bias(self._relative_positions_bucket(distances))

    def gate_projection(self) -> tuple[Tensor, Tensor]:
        """The linear layer that the gate is computed with: weight ``(2, D)`` and bias ``(2,)``, of a query's D values.

        The eight outputs of ``grep_linear`` are only ever used as two sums of four, which is a layer of two outputs.
        """
        weight, bias = self.grep_linear.weight, self.grep_linear.bias
        return weight.unflatten(0, (2, 4)).sum(1), bias.unflatten(0, (2, 4)).sum(1)

    def _relative_positions_bucket(self, relative_positions: Tensor, bidirectional: bool = True) -> Tensor:
        """Bucket of each relative position (key minus query): exact up to a quarter of them, then logarithmic."""
        buckets = self.num_buckets
        if bidirectional:
            buckets //= 2
            first = (relative_positions > 0).long() * buckets
            distance = relative_positions.abs()
        else:
            first = torch.zeros_like(relative_positions)
            distance = (-relative_positions).clamp_min(0)
        exact = buckets // 2
        share = torch.log(distance.clamp_min(exact).float() / exact) / math.log(self.max_distance / exact)
        logarithmic = (exact + (share * (buckets - exact)).long()).clamp_max(buckets - 1)
        return first + torch.where(distance < exact, distance, logarithmic)

    def apply_bias(
        self,
        k: Tensor,
        v: Tensor,
        bsz: int,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Append the learned key and value, and a visible column to the masks. Without ``add_bias_kv``, change nothing.

        Args:
            k: ``(S, B, C)``.
            v: ``(S, B, C)``.
            bsz: B.
            attn_mask: ``(..., T, S)``.
            key_padding_mask: ``(B, S)``.
        """
        if self.bias_k is None or self.bias_v is None:
            return k, v, attn_mask, key_padding_mask
        k = torch.cat([k, self.bias_k.expand(1, bsz, -1).to(k.dtype)])
        v = torch.cat([v, self.bias_v.expand(1, bsz, -1).to(v.dtype)])
        return k, v, _visible_column(attn_mask), _visible_column(key_padding_mask)

    def _sources(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        incremental_state: IncrementalState | None,
        static_kv: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What keys and values are projected from; None where the cached ones are all there is."""
        if static_kv and self._cache(incremental_state) is not None:
            return None, None
        if self.self_attention:
            return query, query
        if key is None:
            raise ValueError("key is needed: this is not self-attention, and no static keys are cached.")
        if self.encoder_decoder_attention or value is None:
            value = key
        if key.shape[:2] != value.shape[:2] or key.size(1) != query.size(1):
            raise ValueError(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} must share the "
                "batch, the second axis, and key and value the first."
            )
        return key, value

    @property
    def _cache_key(self) -> str:
        return f"MultiheadAttention.{id(self)}"  # of the instance: copies of a layer must not share a cache

    def _cache(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None] | None:
        return None if incremental_state is None else incremental_state.get(self._cache_key)

    def _with_cache(
        self,
        k: Tensor | None,
        v: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Put the keys, values and padding of earlier calls in front, and remember the whole.

        Returns keys and values ``(B, S, C)``, padding ``(B, S)`` or None, and how many of S were cached.
        """
        cache = self._cache(incremental_state)
        cached = 0
        if cache is not None:
            past_k, past_v = cast("Tensor", cache["key"]), cast("Tensor", cache["value"])
            past_padding, cached = cache["padding"], past_k.size(1)
            if k is None or v is None:  # static keys
                return past_k, past_v, past_padding if key_padding_mask is None else key_padding_mask, cached
            new = k.size(1)
            k, v = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
            if past_padding is not None or (key_padding_mask is not None and key_padding_mask.size(1) == new):
                B = k.size(0)
                if past_padding is None:
                    past_padding = torch.zeros(B, cached, dtype=torch.bool, device=k.device)
                if key_padding_mask is None:
                    key_padding_mask = torch.zeros(B, new, dtype=torch.bool, device=k.device)
                if key_padding_mask.size(1) == new:
                    key_padding_mask = torch.cat([past_padding, key_padding_mask.bool()], dim=1)
        assert k is not None
        assert v is not None
        if key_padding_mask is not None and key_padding_mask.shape != k.shape[:2]:
            raise ValueError(
                f"key_padding_mask is {tuple(key_padding_mask.shape)}; the keys need {tuple(k.shape[:2])}."
            )
        if incremental_state is not None:
            padding = None if key_padding_mask is None else key_padding_mask.clone()  # the caller may reuse theirs
            incremental_state[self._cache_key] = {"key": k, "value": v, "padding": padding}
        return k, v, key_padding_mask, cached

    def _append_keys(
        self, k: Tensor, v: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The learned and the zero key behind all others, ``k`` and ``v`` being ``(B, S, C)``."""
        if self.bias_k is not None:
            k, v, attn_mask, key_padding_mask = self.apply_bias(
                k.transpose(0, 1), v.transpose(0, 1), k.size(0), attn_mask, key_padding_mask
            )
            k, v = k.transpose(0, 1), v.transpose(0, 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            attn_mask, key_padding_mask = _visible_column(attn_mask), _visible_column(key_padding_mask)
        return k, v, attn_mask, key_padding_mask

    def _float_mask(
        self, attn_mask: Tensor | None, B: int, T: int, S: int, cached: int, dtype: torch.dtype
    ) -> Tensor | None:
        """``attn_mask`` as ``(1 or B, 1 or H, T, S)``, added to scores; keys it leaves out in front are visible."""
        if attn_mask is None:
            return None
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=dtype, device=attn_mask.device).masked_fill(
                attn_mask, -math.inf
            )
        shape = tuple(attn_mask.shape)
        if shape[-2:] not in ((T, S), (T, S - cached)) or shape[:-2] not in ((), (B * self.num_heads,)):
            raise ValueError(
                f"attn_mask is {shape}; it must be ({T}, {S}) or ({B} * {self.num_heads}, {T}, {S})"
                + (f", or leave out the {cached} cached keys." if cached else ".")
            )
        attn_mask = F.pad(attn_mask.to(dtype), (S - shape[-1], 0))
        return attn_mask[None, None] if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, self.num_heads))

    def _full_bias(self, position_bias: Tensor | None, B: int, T: int, S: int, appended: int) -> Tensor | None:
        """``position_bias`` as ``(1 or B, H, T, S + appended)``, zero for appended keys; or as it is, by distance."""
        if position_bias is None:
            return None
        H = self.num_heads
        if tuple(position_bias.shape) not in ((H, T, S), (B * H, T, S), (H, T + S - 1)):
            raise ValueError(
                f"position_bias is {tuple(position_bias.shape)}; it must be ({H}, {T}, {S}), ({B} * {H}, {T}, {S}) or, "
                f"by distance, ({H}, {T} + {S} - 1)."
            )
        if position_bias.dim() == 2:
            if not appended:
                return position_bias
            position_bias = kernels.spread(position_bias, T, S)
        bias = position_bias.unflatten(0, (-1, H))
        return F.pad(bias, (0, appended)) if appended else bias

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, H, T, D)``."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gate(self, q: Tensor) -> Tensor:
        """What the position bias is multiplied with, ``(B, H, T, 1)``, from unscaled queries ``(B, H, T, D)``."""
        if kernels.is_plain_linear(self.grep_linear):
            # The transposes spare a copy: as (B, T, H, D) the queries lie in memory.
            sums = F.linear(q.transpose(1, 2), *self.gate_projection()).transpose(1, 2)
        else:
            sums = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1)
        a, b = torch.sigmoid(sums).chunk(2, dim=-1)
        return a * (b * self.grep_a - 1.0) + 2.0

    def _masked_scores(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor:
        """What ``before_softmax`` returns, ``(B, H, T, S)``."""
        scores = kernels.wide_scores(q, k)
        scores = (scores - scores.amax(-1, keepdim=True)).to(q.dtype)
        if attn_mask is not None:
            scores = scores + attn_mask
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None, None, :], -math.inf)
        return scores

    def extra_repr(self) -> str:
        """Heads and position bias, for ``print(model)``."""
        options: dict[str, Any] = {"num_heads": self.num_heads}
        if self.has_relative_attention_bias:
            options |= {"num_buckets": self.num_buckets, "max_distance": self.max_distance, "gated": self.gru_rel_pos}
        return ", ".join(f"{name}={value}" for name, value in options.items())


def _visible_column(mask: Tensor | None) -> Tensor | None:
    """One more column, of zeros or False, behind a mask's last."""
    return None if mask is None else F.pad(mask, (0, 1))
