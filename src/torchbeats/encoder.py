"""The Transformer: convolutional position embedding, then layers of gated-bias attention (BEATs, section 3)."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from torchbeats import kernels
from torchbeats.attention import MultiheadAttention
from torchbeats.config import BEATsConfig
from torchbeats.layers import Dropout, GLU_Linear, GradMultiply, SamePad, gelu, get_activation_fn


class TransformerSentenceEncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual connection and a layer norm.

    Args:
        embedding_dim: C.
        ffn_embedding_dim: channels inside the feed-forward part.
        num_attention_heads: H.
        dropout: probability behind both parts.
        attention_dropout: probability for each attention weight.
        activation_dropout: probability inside the feed-forward part.
        activation_fn: a name that `get_activation_fn` knows; "glu" makes the first projection gated (swish).
        layer_norm_first: norm in front of each part rather than behind its residual.
        deep_norm: multiply residuals by ``(2 * encoder_layers) ** 0.25`` (DeepNet, arXiv 2203.00555, with the exponent
            that BEATs uses).
        has_relative_attention_bias: as in `MultiheadAttention`, likewise num_buckets, max_distance, rescale_init and
            gru_rel_pos.
        num_buckets: see there.
        max_distance: see there.
        rescale_init: see there.
        gru_rel_pos: see there.
        encoder_layers: number of layers in the encoder, for ``deep_norm``.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        ffn_embedding_dim: int = 3072,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        activation_fn: str = "relu",
        layer_norm_first: bool = False,
        deep_norm: bool = False,
        has_relative_attention_bias: bool = False,
        num_buckets: int = 0,
        max_distance: int = 0,
        rescale_init: bool = False,
        gru_rel_pos: bool = False,
        encoder_layers: int = 0,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(
            embedding_dim,
            num_attention_heads,
            dropout=attention_dropout,
            self_attention=True,
            has_relative_attention_bias=has_relative_attention_bias,
            num_buckets=num_buckets,
            max_distance=max_distance,
            rescale_init=rescale_init,
            gru_rel_pos=gru_rel_pos,
        )
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(activation_dropout)
        self.dropout3 = Dropout(dropout)
        self.layer_norm_first = layer_norm_first
        self.self_attn_layer_norm = nn.LayerNorm(embedding_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.fc1 = (
            GLU_Linear(embedding_dim, ffn_embedding_dim, "swish")
            if activation_fn == "glu"
            else nn.Linear(embedding_dim, ffn_embedding_dim)
        )
        self.fc2 = nn.Linear(ffn_embedding_dim, embedding_dim)
        self.final_layer_norm = nn.LayerNorm(embedding_dim)
        self.residual_scale = (2 * encoder_layers) ** 0.25 if deep_norm else 1.0

    def forward(
        self,
        x: Tensor,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        pos_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the layer.

        Args:
            x: ``(T, B, C)``.
            self_attn_mask: ``(T, T)``, added to the scores.
            self_attn_padding_mask: ``(B, T)`` bool, True = padding.
            need_weights: return attention weights.
            pos_bias: position bias of an earlier layer, ``(H, T, T)``, or by distance, ``(H, 2 * T - 1)``; made here
                where not given.

        Returns:
            ``x`` ``(T, B, C)``; weights averaged over heads ``(B, T, T)``, or None; ``pos_bias`` for the next layer.
        """
        # Batch first inside, so that a clip's values lie together in memory; the transposes are views.
        x = x.transpose(0, 1)
        residual = x
        if self.layer_norm_first:
            x = self.self_attn_layer_norm(x)
        x, weights, pos_bias = self.self_attn(
            query=x.transpose(0, 1),
            key=None,
            key_padding_mask=self_attn_padding_mask,
            need_weights=need_weights,
            attn_mask=self_attn_mask,
            position_bias=pos_bias,
        )
        x = self._add(residual, self.dropout1(x.transpose(0, 1)))
        if not self.layer_norm_first:
            x = self.self_attn_layer_norm(x)

        parts = (self.fc1, self.dropout2, self.fc2, self.dropout3, self.final_layer_norm)
        x = kernels.by_rows(self._feed_forward, x, *parts)
        return x.transpose(0, 1), weights, pos_bias

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The part behind attention, with its residual connection and its norm."""
        residual = x
        if self.layer_norm_first:
            x = self.final_layer_norm(x)
        if self.activation_fn is gelu:
            x = kernels.linear(self.fc1, x, gelu=True)
        else:
            x = self.activation_fn(kernels.linear(self.fc1, x))
        x = self._add(residual, self.dropout3(kernels.linear(self.fc2, self.dropout2(x))))
        return x if self.layer_norm_first else self.final_layer_norm(x)

    def _add(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual_scale * residual + x``, in one pass over memory."""
        return torch.add(x, residual, alpha=self.residual_scale)


class WeightNormConv1d(nn.Module):
    """Grouped 1-d convolution whose kernel has a direction and, for each of its taps, a length (arXiv 1602.07868).

    Args:
        channels: C, in and out.
        kernel_size: K; the input is padded by half of it on both sides.
        groups: must divide ``channels``.
    """

    def __init__(self, channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_v = nn.Parameter(torch.empty(channels, channels // groups, kernel_size))
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_accept_parametrized_names)

    def reset_parameters(self) -> None:
        """Draw fresh weights: normal, with the lengths that they happen to have."""
        channels, _, kernel_size = self.weight_v.shape
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (kernel_size * channels)))
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight_g.copy_(self._lengths())

    def _lengths(self) -> Tensor:
        """Norm of each tap over the channels, ``(1, 1, K)``, in float32 at least."""
        wide = torch.promote_types(self.weight_v.dtype, torch.float32)
        return self.weight_v.to(wide).square().sum((0, 1), keepdim=True).sqrt()

    @property
    def weight(self) -> Tensor:
        """The kernel, ``(C, C / groups, K)``."""
        return self.weight_v * (self.weight_g / self._lengths()).to(self.weight_v.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T)`` to ``(B, C, T + 1 - K % 2)``."""
        return kernels.convolution(x, lambda: self.weight, self.bias, self.groups, self.weight_v, self.weight_g)


# Newer torch writes the two parts of a weight-normed kernel under these names, and so do checkpoints made with it.
PARAMETRIZED_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def _accept_parametrized_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename what newer torch wrote, before a state dict is loaded."""
    for parametrized, plain in PARAMETRIZED_NAMES.items():
        if prefix + parametrized in state_dict:
            state_dict[prefix + plain] = state_dict.pop(prefix + parametrized)


class VisiblePatches(NamedTuple):
    """Which patches of a longer sequence are there; in masked modelling the encoder sees no others.

    Attributes:
        indices: ``(B, T)`` int64, the place of each; of those that are padding, any.
        length: of the longer sequence, L.
    """

    indices: Tensor
    length: int

    def spread(self, x: Tensor) -> Tensor:
        """``(B, T, C)``, zero where it is padding, to ``(B, L, C)``, zero where nothing is there."""
        B, _, C = x.shape
        # Added: padding may name a place that is taken.
        return x.new_zeros(B, self.length, C).scatter_add(1, self.indices.unsqueeze(-1).expand_as(x), x)

    def pick(self, x: Tensor) -> Tensor:
        """``(B, L, C)`` to the ``(B, T, C)`` that are there."""
        return x.gather(1, self.indices.unsqueeze(-1).expand(-1, -1, x.size(2)))


class TransformerEncoder(nn.Module):
    """Embedded patches in, contextual features out.

    Args:
        args: a `BEATsConfig`, a namespace or a dictionary with its fields; what is left out has the config's default.
    """

    def __init__(self, args: BEATsConfig | Namespace | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(args, BEATsConfig):
            args = BEATsConfig(args if isinstance(args, Mapping) else vars(args))
        args.check()
        self.dropout = args.dropout
        self.embedding_dim = args.encoder_embed_dim
        self.pos_conv = nn.Sequential(
            WeightNormConv1d(args.encoder_embed_dim, args.conv_pos, args.conv_pos_groups),
            SamePad(args.conv_pos),
            nn.GELU(),
        )
        self.layers = nn.ModuleList(
            TransformerSentenceEncoderLayer(
                embedding_dim=args.encoder_embed_dim,
                ffn_embedding_dim=args.encoder_ffn_embed_dim,
                num_attention_heads=args.encoder_attention_heads,
                dropout=args.dropout,
                attention_dropout=args.attention_dropout,
                activation_dropout=args.activation_dropout,
                activation_fn=args.activation_fn,
                layer_norm_first=args.layer_norm_first,
                deep_norm=args.deep_norm,
                has_relative_attention_bias=args.relative_position_embedding,
                num_buckets=args.num_buckets,
                max_distance=args.max_distance,
                gru_rel_pos=args.gru_rel_pos,
                encoder_layers=args.encoder_layers,
            )
            for _ in range(args.encoder_layers)
        )
        if args.relative_position_embedding:  # one table for all layers, listed under each of them
            for attention in self._attentions()[1:]:
                attention.relative_attention_bias = self._attentions()[0].relative_attention_bias
        self.layer_norm_first = args.layer_norm_first
        self.layer_norm = nn.LayerNorm(args.encoder_embed_dim)
        self.layerdrop = args.encoder_layerdrop
        self.layer_wise_gradient_decay_ratio = args.layer_wise_gradient_decay_ratio
        self.deep_norm = args.deep_norm
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_spread_shared_table)

    def _attentions(self) -> list[MultiheadAttention]:
        return [cast("MultiheadAttention", layer.self_attn) for layer in self.layers]

    def reset_parameters(self) -> None:
        """Draw fresh weights for linear layers and the position table; others keep what they have."""
        self.apply(init_bert_params)
        if self.deep_norm:
            self._init_deep_norm()

    def _init_deep_norm(self) -> None:
        """Xavier weights, smaller where values pass through (DeepNet, section 4)."""
        small = (8 * len(self.layers)) ** -0.25
        for module in self.layers:
            layer = cast("TransformerSentenceEncoderLayer", module)
            fc1 = layer.fc1.linear if isinstance(layer.fc1, GLU_Linear) else layer.fc1
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                nn.init.xavier_normal_(linear.weight)
            for linear in (layer.self_attn.v_proj, layer.self_attn.out_proj, fc1, layer.fc2):
                nn.init.xavier_normal_(linear.weight, gain=small)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        output_all_hiddens: bool | None = None,
        *,
        layers: int | None = None,
        visible: VisiblePatches | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            x: ``(B, T, C)``; stays as it is.
            padding_mask: ``(B, T)`` bool, True = padding.
            output_all_hiddens: return every layer's output too.
            layers: run only this many layers, and no final norm behind fewer than all.
            visible: where these T patches lie in a longer sequence, the rest of which is left out: the convolution sees
                zeros there, and distances are those of the longer sequence.

        Raises:
            TypeError: ``output_all_hiddens`` is a number, as in the research code, where it names a layer.

        Returns:
            ``(B, T, C)``; and the input to the first layer followed by every layer's output, ``(B, T, C)`` each, or an
            empty list. With ``layer_norm_first`` the last of them is still without the final norm.
        """
        x, hiddens = self.extract_features(
            x, padding_mask, output_all_hiddens=output_all_hiddens, layers=layers, visible=visible
        )
        if self.layer_norm_first and layers in (None, len(self.layers)):
            x = self.layer_norm(x)
        return x, hiddens

    def extract_features(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        output_all_hiddens: bool | None = None,
        *,
        layers: int | None = None,
        visible: VisiblePatches | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, without the final norm of models with ``layer_norm_first``."""
        # The research code's third argument is a layer; as a flag, any number would mean all hiddens.
        if not (output_all_hiddens is None or isinstance(output_all_hiddens, bool)):
            raise TypeError(
                f"output_all_hiddens must be True, False or None, not {output_all_hiddens!r}. To stop behind a layer, "
                f"name it: layers={output_all_hiddens!r}."
            )
        if layers is not None and not 0 <= layers <= len(self.layers):
            raise ValueError(f"This model has {len(self.layers)} layers; there is no layer {layers}.")
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
        before = x if visible is None else visible.spread(x)
        position = self.pos_conv(before.transpose(1, 2)).transpose(1, 2)
        if visible is not None:
            position = visible.pick(position)
        x = x + position.contiguous()  # a sum of two memory layouts is slow, and more than torch.export can prove
        if not self.layer_norm_first:
            x = self.layer_norm(x)
        x = kernels.drop(x, self.dropout) if self.training else x

        hiddens = [x] if output_all_hiddens else []
        pos_bias = self._position_bias(x, visible)
        for layer in self.layers[:layers]:
            if self.training and self.layer_wise_gradient_decay_ratio != 1.0:
                x = GradMultiply.apply(x, self.layer_wise_gradient_decay_ratio)
            if not (self.training and self.layerdrop > 0 and torch.rand(()) < self.layerdrop):
                x, _, pos_bias = layer(x.transpose(0, 1), self_attn_padding_mask=padding_mask, pos_bias=pos_bias)
                x = x.transpose(0, 1)
            if output_all_hiddens:
                hiddens.append(x)
        return x, hiddens

    def _position_bias(self, x: Tensor, visible: VisiblePatches | None) -> Tensor | None:
        """What all layers add to their scores, made once from the table they share."""
        first = getattr(self.layers[0], "self_attn", None)
        if not (isinstance(first, MultiheadAttention) and first.has_relative_attention_bias):
            return None
        if visible is not None:
            return first.bias_between(visible.indices, visible.length).flatten(0, 1)
        T = x.size(1)
        return kernels.bias_for_layers(first.bias_table(T, T), T)


def _spread_shared_table(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Before a state dict is loaded: a file that stores the shared table once serves every layer; two tables cannot."""
    names = [
        f"{prefix}layers.{i}.self_attn.relative_attention_bias.weight"
        for i, attention in enumerate(cast("TransformerEncoder", module)._attentions())
        if attention.has_relative_attention_bias
    ]
    tables = [state_dict[name] for name in names if name in state_dict]
    if any(table is not tables[0] and not torch.equal(table, tables[0]) for table in tables[1:]):
        error_msgs.append("The layers' relative position tables differ, but a BEATs encoder has one for all layers.")
    elif tables:
        state_dict.update(dict.fromkeys(names, tables[0]))


def init_bert_params(module: nn.Module) -> None:
    """Fresh weights as in BERT, for use with `nn.Module.apply`.

    N(0, 0.02) for the weights of Linear and Embedding and for the q, k and v projections; biases and the padding row of
    an embedding are zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, MultiheadAttention):
        for projection in (module.q_proj, module.k_proj, module.v_proj):
            nn.init.normal_(projection.weight, std=0.02)
