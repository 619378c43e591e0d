"""The encoder, with the research code's arguments and results by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from torchbeats import encoder
from torchbeats.attention import MultiheadAttention
from torchbeats.encoder import TransformerSentenceEncoderLayer, VisiblePatches, init_bert_params

__all__ = ["MultiheadAttention", "TransformerEncoder", "TransformerSentenceEncoderLayer", "init_bert_params"]


class TransformerEncoder(encoder.TransformerEncoder):
    """`torchbeats.TransformerEncoder`, called as in the research code.

    Its third argument is the index of a layer; what torchbeats itself passes goes by keyword.
    """

    # The third position has another meaning than in the class above: that is what this class is for.
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        layer: int | None = None,
        *,
        need_weights: bool = False,
        output_all_hiddens: bool | None = None,
        layers: int | None = None,
        visible: VisiblePatches | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """Encode.

        Args:
            x: ``(B, T, C)``; stays as it is.
            padding_mask: ``(B, T)`` bool, True = padding.
            layer: index of the last layer to run, from 0, without the final norm of models with ``layer_norm_first``;
                all layers run where none has this index.
            need_weights: with ``layer``, keep every layer's attention weights.
            output_all_hiddens: see `torchbeats.TransformerEncoder`, likewise ``layers`` and ``visible``.
            layers: see there.
            visible: see there.

        Returns:
            ``(B, T, C)``; and a list, empty without ``layer``: for the input to the first layer and for each layer that
            ran, a pair of its output ``(T, B, C)`` and its attention weights ``(B, T, T)``, the mean over heads, or
            None. With ``output_all_hiddens`` the list is the one that `torchbeats.TransformerEncoder` returns.
        """
        if layer is not None:
            return self.extract_features(x, padding_mask, layer, need_weights=need_weights)
        return super().forward(x, padding_mask, output_all_hiddens, layers=layers, visible=visible)

    def extract_features(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        tgt_layer: int | None = None,
        *,
        need_weights: bool = False,
        output_all_hiddens: bool | None = None,
        layers: int | None = None,
        visible: VisiblePatches | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """As `forward`, without the final norm; ``tgt_layer`` is its ``layer``."""
        if tgt_layer is None:
            return super().extract_features(x, padding_mask, output_all_hiddens, layers=layers, visible=visible)
        weights: dict[int, Tensor] = {}
        count = tgt_layer + 1 if 0 <= tgt_layer < len(self.layers) else None
        with ExitStack() as stack:
            if need_weights:
                weights = stack.enter_context(attention_weights(self.layers))
            x, hiddens = super().extract_features(x, padding_mask, True, layers=count)
        # The first is the input to layer 0, which has no weights.
        return x, [(hidden.transpose(0, 1), weights.get(index)) for index, hidden in enumerate(hiddens, -1)]


@contextmanager
def attention_weights(layers: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """Collects the attention weights of the layers that run while this is open.

    Args:
        layers: each a `TransformerSentenceEncoderLayer`.

    Yields:
        Index of a layer to its weights ``(B, T, T)``, the mean over heads. A layer that is dropped has none.
    """
    collected: dict[int, Tensor] = {}

    def ask(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True}

    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def keep(_layer: nn.Module, _args: Any, output: Any, index: int = index) -> None:
                collected[index] = output[1]

            stack.callback(layer.register_forward_pre_hook(ask, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(keep).remove)
        yield collected
