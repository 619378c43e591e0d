"""What MTEB asks about a model: its size, licence, revision, what it was trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mteb.models import ModelMeta

from torchbeats.config import SIZES, BEATsConfig
from torchbeats.errors import ModelError
from torchbeats.files import sha256
from torchbeats.protocol import Model
from torchbeats.weights import hub

ORGANISATION = "torchbeats"  # in front of every name, as MTEB wants one there

AUDIOSET = (
    "AudioSet",
    "AudioSetMini",
    "AudioSetStrongA2TRetrieval",
    "AudioSetStrongT2ARetrieval",
)  # MTEB's tasks of it

ESPNET = "https://github.com/espnet/espnet"
AVEX = "https://github.com/earthspecies/avex"
BEATS_PAPER = """@inproceedings{chen2023beats,
  title={{BEATs}: Audio Pre-Training with Acoustic Tokenizers},
  author={Chen, Sanyuan and Wu, Yu and Wang, Chengyi and Liu, Shujie and Tompkins, Daniel and Chen, Zhuo and Wei, Furu},
  booktitle={International Conference on Machine Learning},
  year={2023},
  url={https://arxiv.org/abs/2212.09058}
}"""
OPENBEATS_PAPER = """@inproceedings{bharadwaj2025openbeats,
  title={{OpenBEATs}: A Fully Open-Source General-Purpose Audio Encoder},
  author={Bharadwaj, Shikhar and Cornell, Samuele and Choi, Kwanghee and Fukayama, Satoru and Shim, Hye-jin and
    Deshmukh, Soham and Watanabe, Shinji},
  booktitle={IEEE Workshop on Applications of Signal Processing to Audio and Acoustics},
  year={2025},
  url={https://arxiv.org/abs/2507.14129}
}"""
WHAT_MATTERS_PAPER = """@misc{miron2025matters,
  title={What Matters for Bioacoustic Encoding},
  author={Miron, Marius and Robinson, David and Alizadeh, Milad and Gilsenan-McMahon, Ellen and Narula, Gagan and
    Chemla, Emmanuel and Cusimano, Maddie and Effenberger, Felix and Hagiwara, Masato and Hoffman, Benjamin and
    Keen, Sara and Kim, Diane and Lawton, Jane K. and Liu, Jen-Yu and Raskin, Aza and Pietquin, Olivier and
    Geist, Matthieu},
  year={2025},
  url={https://arxiv.org/abs/2508.11845}
}"""
NATURELM_PAPER = """@misc{robinson2024naturelm,
  title={{NatureLM-audio}: an Audio-Language Foundation Model for Bioacoustics},
  author={Robinson, David and Miron, Marius and Hagiwara, Masato and Pietquin, Olivier},
  year={2024},
  url={https://arxiv.org/abs/2411.07186}
}"""

LICENCES = {"MIT": "mit", "CC BY-NC-SA": "cc-by-nc-sa-4.0"}  # ours, and as MTEB writes them


class Facts(NamedTuple):
    """What MTEB asks about a model that nothing else here needs.

    Attributes:
        size: its name in `torchbeats.SIZES`.
        released: when the paper came out that the weights came with; None where there is none.
        trained_on: the tasks of MTEB with sounds that it was trained on; None where that is not known.
        code: where the training's program is, if it is public.
        paper: BibTeX.
    """

    size: str
    released: str | None = None
    trained_on: tuple[str, ...] | None = None
    code: str | None = None
    paper: str | None = None


_NANO = Facts("nano", None, ())
_BEATS = Facts("base", "2022-12-18", AUDIOSET, None, BEATS_PAPER)
_OPENBEATS = Facts("base", "2025-07-18", None, ESPNET, OPENBEATS_PAPER)
FACTS: dict[str, Facts] = {
    "beats-nano": _NANO,
    "beats-nano-tagger": _NANO,
    "beats-iter3": _BEATS,
    "beats-iter3-plus-as2m": _BEATS,
    "beats-iter3-plus-as2m-finetuned": _BEATS,
    "openbeats-base-i1": _OPENBEATS,
    "openbeats-base-i2": _OPENBEATS,
    "openbeats-base-i3": _OPENBEATS,
    "openbeats-large-i1": _OPENBEATS._replace(size="large"),
    "openbeats-large-i2": _OPENBEATS._replace(size="large"),
    "openbeats-large-i3": _OPENBEATS._replace(size="large"),
    "openbeats-large-i2-as20k": _OPENBEATS._replace(size="large"),
    "beats-base-as2m-iter0": _BEATS._replace(released=None, code=ESPNET),
    "beats-base-as2m-iter1": _BEATS._replace(released=None, code=ESPNET),
    # Both have heard AudioSet and animal sounds, of which it is not known which tasks have them too.
    "aves2-sl-beats-all": Facts("base", "2025-08-15", None, AVEX, WHAT_MATTERS_PAPER),
    "aves2-naturelm-beats": Facts("base", None, None, None, NATURELM_PAPER),
}


# By size; without a label head, which embeddings do not need.
PARAMETERS = {"nano": 5_072_008, "base": 90_311_792, "large": 311_376_576}


class Metadata(ModelMeta):
    """MTEB's metadata of a model, which loads it without MTEB's extra for audio (it has torchaudio in it)."""

    def load_model(self, device: str | None = None, **options: Any) -> Any:
        """An encoder; options are those of `BEATsEncoder`."""
        if self.loader is None:
            raise ModelError(f"{self.name} cannot be loaded by its name; give MTEB the encoder itself.")
        return self.loader(self.name, self.revision, device=device, **{**self.loader_kwargs, **options})


def _metadata(
    name: str,
    size: int | None,
    width: int,
    revision: str | None,
    settings: dict[str, Any],
    loader: Callable[..., Any] | None,
) -> Metadata:
    """The metadata of a model, ours by its short name or any other."""
    source, facts = hub.MODELS.get(name), FACTS.get(name)
    licence = None
    if facts is not None:
        licence = "mit" if source is None else LICENCES.get(source.licence, _page(source))
    return Metadata(
        loader=loader,
        loader_kwargs=settings,
        experiment_kwargs=settings or None,
        name=name if facts is None else f"{ORGANISATION}/{name}",
        revision=revision,
        release_date=facts and facts.released,
        languages=None,
        n_parameters=size,
        n_embedding_parameters=0,
        memory_usage_mb=None if size is None else round(4 * size / 2**20),
        max_tokens=float("inf"),  # longer sounds are cut into windows
        embed_dim=width,
        license=licence,
        open_weights=None if facts is None else True,
        public_training_code=facts and facts.code,
        public_training_data=None,
        training_datasets=None if facts is None or facts.trained_on is None else set(facts.trained_on),
        framework=["PyTorch"],
        reference=None if source is None else _page(source),
        similarity_fn_name="cosine",
        use_instructions=False,
        modalities=["audio"],
        citation=facts and facts.paper,
    )


def listed(name: str, loader: Callable[..., Any]) -> Metadata:
    """The metadata of a model in the list, which need not be here."""
    size = FACTS[name].size
    revision = _built_in(name) if name in hub.BUILT_INS else _commit(hub.MODELS[name].revision)
    return _metadata(name, PARAMETERS[size], BEATsConfig(SIZES[size]).encoder_embed_dim, revision, {}, loader)


def loaded(
    name: Any, model: Model, revision: str | None, width: int, settings: dict[str, Any], loader: Callable[..., Any]
) -> Metadata:
    """The metadata of a model that is here."""
    parts = model.named_parameters() if isinstance(model, torch.nn.Module) else ()
    size = sum(parameter.numel() for part, parameter in parts if not part.startswith("predictor.")) or None
    if not isinstance(name, str) or os.path.exists(name):  # nothing that MTEB could load by its name
        display = Path(os.path.abspath(name)).stem if isinstance(name, str) else type(model).__name__
        return _metadata(f"local/{display}", size, width, model.digest()[:40], settings, None)
    if name in hub.BUILT_INS:
        revision = _built_in(name)
    elif name in hub.MODELS:
        revision = revision or hub.MODELS[name].revision
    else:
        name, _, file = name.partition("@")
        revision = revision or file
    return _metadata(name, size, width, _commit(revision) or model.digest()[:40], settings, loader)


def short_name(name: Any) -> Any:
    """A name without ``torchbeats/`` in front."""
    if name is None:
        return hub.BUILT_IN
    if isinstance(name, os.PathLike):
        return os.fspath(name)
    if isinstance(name, str) and (short := name.removeprefix(f"{ORGANISATION}/")) in (*hub.MODELS, *hub.BUILT_INS):
        return short
    return name


def located(name: Any, revision: str | None) -> Any:
    """What `torchbeats.load` takes, for a revision of a model."""
    if revision is None or not isinstance(name, str) or name in hub.BUILT_INS or os.path.exists(name):
        return name
    source = hub.MODELS.get(name)
    if source is None:
        return name if "@" in name else f"{name}@{revision}"
    file = f"/{source.file}" if source.file else ""
    return name if revision == source.revision else f"{source.repo}{file}@{revision}"


def _commit(revision: str | None) -> str | None:
    """A revision that is a commit; branches and tags move."""
    return revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None


def _built_in(name: str) -> str:
    """What stands for the commit of a model that comes with the package."""
    return sha256(hub.BUILT_INS[name])[:40]


def _page(source: hub.Source) -> str:
    return f"https://huggingface.co/{source.repo}"
