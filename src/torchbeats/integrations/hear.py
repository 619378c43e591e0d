"""The interface of HEAR, the Holistic Evaluation of Audio Representations (arXiv 2203.03022).

hear-validator torchbeats.integrations.hear -m BEATs_iter3_plus_AS2M.pt
python -m heareval.embeddings.runner torchbeats.integrations.hear --model BEATs_iter3_plus_AS2M.pt
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchbeats.integrations.steps import load_encoder, step_embeddings
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE


def load_model(model_file_path: str = "") -> BEATs:
    """Load a model, with the attributes that HEAR reads.

    Args:
        model_file_path: a file or a name, as `torchbeats.load` takes them; the built-in model where empty.

    Returns:
        A frozen `BEATs` with ``sample_rate`` in Hz and the sizes of its two kinds of embeddings.
    """
    model = load_encoder(model_file_path or None)
    size = model.cfg.encoder_embed_dim
    vars(model).update(sample_rate=SAMPLE_RATE, scene_embedding_size=size, timestamp_embedding_size=size)
    return model


def get_timestamp_embeddings(audio: Tensor, model: BEATs) -> tuple[Tensor, Tensor]:
    """A vector for every step of 160 ms.

    Args:
        audio: ``(sounds, samples)`` at 16 kHz, in [-1, 1].
        model: what `load_model` gave.

    Returns:
        ``(sounds, steps, C)`` float32; and ``(sounds, steps)`` float32, the middle of each step in milliseconds.
    """
    steps = step_embeddings(model, audio)
    times = (torch.arange(steps.size(1), device=steps.device) + 0.5) * (1000 * model.grid.step_seconds)
    return steps, times.expand(len(steps), -1)


def get_scene_embeddings(audio: Tensor, model: BEATs) -> Tensor:
    """One vector for each sound, ``(sounds, C)`` float32: the mean over its steps. Arguments as above."""
    return step_embeddings(model, audio).mean(1)
