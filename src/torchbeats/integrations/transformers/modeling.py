"""The models: `torchbeats`' own network, with the arguments and outputs of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from torchbeats.backbone import Backbone, Encoded
from torchbeats.encoder import TransformerEncoder, WeightNormConv1d
from torchbeats.errors import InputError
from torchbeats.fbank import Fbank, mel_filters, povey_window
from torchbeats.integrations.transformers.configuration import BEATsConfig
from torchbeats.patches import mask_behind
from torchbeats.pooling import pooling
from torchbeats.waveform import prepare


class BEATsPreTrainedModel(PreTrainedModel):
    """What both models have in common: how they are named, initialised and saved."""

    config_class = BEATsConfig
    config: BEATsConfig
    base_model_prefix = "beats"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = False
    # One kernel computes attention, PyTorch's own where that is exact: both names mean the same here.
    _supports_sdpa = True
    _no_split_modules = ["TransformerSentenceEncoderLayer"]  # noqa: RUF012 - as in its parent

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh values for one module.

        `from_pretrained` calls this too, for what no file brings: it builds models without memory, and the front end's
        constants are in no file.
        """
        if isinstance(module, Fbank):
            init.copy_(module.window, povey_window())
            init.copy_(module.filters, mel_filters())
        elif callable(reset := getattr(module, "reset_parameters", None)) and not isinstance(
            module, TransformerEncoder
        ):
            reset()

    def initialize_weights(self) -> None:
        """Fresh values for whatever no file has brought."""
        super().initialize_weights()
        # The encoder sets its layers' weights last; transformers may pass over a module that has only
        # other modules. The guard leaves alone what has come from a file.
        with torch.no_grad(), init.guard_torch_init_functions():
            for module in self.modules():
                if isinstance(module, TransformerEncoder):
                    module.reset_parameters()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: a copy of this file is no use in a model's folder, which imports torchbeats instead."""


class BEATsModel(BEATsPreTrainedModel):
    """The encoder: waveforms in, features of patches out.

    Args:
        config: of the model.

    Attributes:
        backbone: front end, patch embedding and encoder, those of `torchbeats.BEATs`.
    """

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.settings())
        position: Any = self.backbone.encoder.pos_conv
        position[0] = ParametrizedConv1d(position[0])
        if config.relative_position_embedding:
            table = "backbone.encoder.layers.{}.self_attn.relative_attention_bias.weight"
            self._tied_weights_keys = {table.format(i): table.format(0) for i in range(1, config.encoder_layers)}
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Features of a batch of sounds; a sound's are the same alone and in any batch.

        Args:
            input_values: ``(B, samples)`` at 16 kHz, in [-1, 1].
            attention_mask: ``(B, samples)``, 1 where a sound is and 0 behind it.
            output_attentions: return ``attentions``, with any ``attn_implementation``.
            output_hidden_states: return ``hidden_states``.
            **kwargs: not used; trainers and pipelines pass on what they have.

        Returns:
            last_hidden_state: ``(B, T, C)``, ``patch = 8 * step + band``. What stands behind a sound's own patches
                means nothing; `patch_mask` tells which they are.
            pooler_output: ``(B, C)``, the mean over a sound's own patches.
            hidden_states: the encoder's input to the first layer and every layer's output, ``(B, T, C)`` each.
            attentions: of every layer, ``(B, heads, T, T)``; None for a layer that was dropped in training.

        Raises:
            InputError: a mask of another shape than the sounds.
        """
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        with_hiddens = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with ExitStack() as stack:
            layers = self.backbone.encoder.layers
            attentions = stack.enter_context(_attention_weights(layers)) if with_attentions else {}
            encoded, hiddens = self.encode(input_values, attention_mask, bool(with_hiddens))
        weights: Any = tuple(attentions.get(index) for index in range(len(layers)))
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.x,
            pooler_output=encoded.pooled(),
            # With the final norm, where there is one.
            hidden_states=(*hiddens[:-1], encoded.x) if with_hiddens else None,
            attentions=weights if with_attentions else None,
        )

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> tuple[Encoded, list[Tensor]]:
        """As `forward`, with all that torchbeats needs to pool the features; and every layer's output, or none."""
        mask = None
        if attention_mask is not None:
            if attention_mask.shape != input_values.shape:
                raise InputError(
                    f"attention_mask has the shape {tuple(attention_mask.shape)}; input_values of the shape "
                    f"{tuple(input_values.shape)} need the same."
                )
            mask = ~attention_mask.bool()
        wav, lengths = prepare(input_values, self.backbone.grid.min_samples, padding_mask=mask)
        return self.backbone.encode_features(self.backbone.preprocess(wav), lengths, output_hidden_states)

    def patch_mask(self, attention_mask: Tensor) -> Tensor:
        """Which patches are a sound's own: ``(B, samples)`` to ``(B, T)`` bool, True = its own."""
        grid = self.backbone.grid
        samples = max(attention_mask.size(1), grid.min_samples)
        counts = grid.patches(attention_mask.long().sum(1).clamp_min(grid.min_samples))
        return ~mask_behind(counts, grid.patches(samples))


class BEATsForAudioClassification(BEATsPreTrainedModel):
    """The encoder with a label head over a whole sound, that of `torchbeats.BEATs`.

    Args:
        config: of the model; ``num_labels`` is the number of classes.

    Attributes:
        beats: a `BEATsModel`.
        classifier: the head.
    """

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__(config)
        self.beats = BEATsModel(config)
        shape = pooling(config.predictor_pool).shape(self.beats.backbone.grid.bands, config.encoder_embed_dim)
        self.dropout = nn.Dropout(config.predictor_dropout)
        self.classifier = nn.Linear(math.prod(shape), config.num_labels or 0)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits of a batch of sounds.

        Args:
            input_values: ``(B, samples)`` at 16 kHz, in [-1, 1].
            attention_mask: ``(B, samples)``, 1 where a sound is and 0 behind it.
            labels: ``(B,)`` class indices, or ``(B, classes)`` of zeros and ones for several labels a sound.
            output_attentions: see `BEATsModel.forward`.
            output_hidden_states: see `BEATsModel.forward`.
            **kwargs: not used.

        Returns:
            loss: with ``labels``: cross-entropy, or binary cross-entropy for several labels a sound, by
                ``config.problem_type``; where that is None, by the labels' type, which is then kept there.
            logits: ``(B, classes)``.
            hidden_states, attentions: see `BEATsModel.forward`.

        Raises:
            InputError: labels or a mask of another shape than the sounds need.
        """
        # Not through the base model's forward, which gives no counts of patches; its pooled mean is only one of heads'.
        outputs = self.beats(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self._pooled(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            several = self.config.problem_type == "multi_label_classification"
            if several and labels.shape != logits.shape:
                raise InputError(
                    f"labels has the shape {tuple(labels.shape)}; a model for several labels a sound needs zeros and "
                    f"ones of the shape {tuple(logits.shape)}. For one class a sound, give from_pretrained "
                    'problem_type="single_label_classification".'
                )
            labels = labels.to(logits.device, logits.dtype if several else None)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _pooled(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What the head sees of a sound, ``(B, D)``."""
        B, T, _ = x.shape
        bands = self.beats.backbone.grid.bands
        mask = x.new_ones(B, T, dtype=torch.bool) if attention_mask is None else self.beats.patch_mask(attention_mask)
        encoded = Encoded(self.dropout(x), ~mask, mask.sum(1), bands)
        return encoded.pool(self.config.predictor_pool)


class ParametrizedConv1d(WeightNormConv1d):
    """The convolutional position embedding under newer torch's names for the two parts of its kernel.

    transformers renames tensors that end in ``weight_g`` and ``weight_v`` to these when it reads a file, whatever the
    model calls them.

    Args:
        conv: whose parameters become this one's.
    """

    def __init__(self, conv: WeightNormConv1d) -> None:
        nn.Module.__init__(self)
        self.groups = conv.groups
        self.bias = conv.bias
        parts = nn.Module()
        parts.original0, parts.original1 = conv.weight_g, conv.weight_v
        self.parametrizations = nn.ModuleDict({"weight": parts})

    def reset_parameters(self) -> None:
        """As the parent's, except for what was loaded from a file."""
        loaded = getattr(self.weight_g, "_is_hf_initialized", False)
        lengths = self.weight_g.detach().clone()
        super().reset_parameters()
        if loaded:
            self.weight_g.copy_(lengths)

    @property
    def weight_g(self) -> Any:  # type: ignore[override]
        """Length of each tap, ``(1, 1, K)``."""
        return self.parametrizations["weight"].original0

    @property
    def weight_v(self) -> Any:  # type: ignore[override]
        """Direction of each tap, ``(C, C / groups, K)``."""
        return self.parametrizations["weight"].original1


@contextmanager
def _attention_weights(layers: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """Collects the attention weights ``(B, heads, T, T)`` of the layers that run while this is open, by index."""
    collected: dict[int, Tensor] = {}

    def ask(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_head_weights": True}

    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def keep(_module: nn.Module, _args: Any, output: Any, index: int = index) -> None:
                collected[index] = output[1]

            attention: Any = layer.self_attn
            stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
            stack.callback(attention.register_forward_hook(keep).remove)
        yield collected
