"""What several test files need: reference numbers, small models, sounds."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from torchbeats import BEATs, BEATsConfig, Tokenizers, TokenizersConfig

GOLDEN = Path(__file__).parent / "golden"

# Everything that published checkpoints switch on, at a size that computes in milliseconds.
SMALL = {
    "embed_dim": 32,
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "deep_norm": True,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 64,
    "gru_rel_pos": True,
}


def golden(name):
    """Configuration (parsed metadata) and tensors of a reference file."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        about = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if value.startswith("{")}
        return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def under(tensors, prefix):
    """The tensors whose names begin with ``prefix.``, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def small_model(seed=0, **fields):
    """A seeded `BEATs` whose every parameter matters: none is at its initial zero or one."""
    torch.manual_seed(seed)
    return shaken(BEATs(BEATsConfig(SMALL, **fields)))


def small_tokenizer(seed=0, **fields):
    torch.manual_seed(seed)
    model = shaken(Tokenizers(TokenizersConfig(SMALL, quant_n=64, quant_dim=16, **fields)))
    codes = torch.randn(model.quantize.embedding.weight.shape)
    model.quantize.embedding.weight.copy_(torch.nn.functional.normalize(codes, dim=-1))
    model.quantize.embedding.initted.fill_(1)
    return model


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tone(seconds, rate=16_000, hertz=440.0, level=0.3):
    """A sine, ``(samples,)`` float32."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds, rate=16_000, seed=0, level=0.1):
    """White noise, ``(samples,)`` float32."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (level * samples).astype(np.float32)
