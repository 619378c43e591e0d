"""BEATs for mteb, the Massive Text Embedding Benchmark, which has audio tasks too (MAEB).

    import mteb
    from torchbeats.integrations.mteb import load

    results = mteb.evaluate(load("beats-iter3"), mteb.get_tasks(["ESC50"]))

A sound's embedding is the mean over its patches, in windows of 10 s where it is longer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from torchbeats import audio, loading
from torchbeats.errors import InputError
from torchbeats.files import sha256
from torchbeats.inference import embed
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE
from torchbeats.weights import hub

__all__ = ["METAS", "BEATsEncoder", "load", "torchbeats_name"]

_MB = 2**20


class BEATsEncoder(AbsEncoder):  # type: ignore[misc,unused-ignore]  # unknown where mteb is not installed
    """Sounds in, one embedding each out, as mteb asks for them.

    Args:
        model_name: a name that ``torchbeats models`` lists, a name of mteb in `METAS`, or a checkpoint file.
        revision: of the checkpoint; not used: a name of torchbeats stands for one file.
        device: where to compute; a GPU if there is one, where not given.
        pool: "mean", or "bands" for eight times as many values: the mean over time of each frequency band.
        **kwargs: not used; mteb passes the same options to every model.

    Attributes:
        mteb_model_meta: what mteb writes beside the results.

    Raises:
        CheckpointError: the model is a tokenizer, which gives labels rather than embeddings.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        revision: str | None = None,
        device: str | None = None,
        pool: str = "mean",
        **kwargs: Any,
    ) -> None:
        name = torchbeats_name(model_name)
        self.model: BEATs = loading.load(name, device=device or "auto", expect=BEATs)
        self.pool = pool
        meta = METAS.get(os.fspath(name)) or _meta_of_file(hub.resolve(name), self.model)
        if pool != "mean":  # mteb keeps the results of settings apart
            width = math.prod(self.model.outputs[pool].shape)
            meta = meta.model_copy(update={"embed_dim": width, "experiment_kwargs": {"pool": pool}})
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray[Any, Any]:
        """Embed the sounds of a data loader.

        Args:
            inputs: a ``DataLoader`` whose rows have an ``audio`` with ``array`` and ``sampling_rate``, at any rate; or,
                of a column of ``datasets.Audio(decode=False)``, with ``bytes`` or ``path``.
            task_metadata: not used, like all that follows: a sound's embedding does not depend on the task.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: not used.
            **kwargs: not used.

        Returns:
            ``(sounds, C)`` float32.

        Raises:
            InputError: rows without sounds, or a sound that cannot be embedded.
        """
        if "audio" not in inputs.dataset.features:
            raise InputError("BEATs embeds sounds only; the rows of this data set have no column called audio.")
        inputs.collate_fn = _rows  # sounds as they are: they are resampled by torchbeats, without torchaudio
        sums: dict[int, np.ndarray[Any, Any]] = {}
        seconds: dict[int, float] = {}
        count = 0

        def sounds() -> Iterator[tuple[np.ndarray[Any, Any], float]]:
            nonlocal count
            for batch in inputs:
                for row in batch:
                    count += 1
                    yield _samples(row["audio"])

        for embedding in embed(sounds(), self.model, pool=self.pool):
            index, length = int(embedding.path[1:-1]), embedding.end - embedding.start
            sums[index] = sums.get(index, 0.0) + length * embedding.embedding
            seconds[index] = seconds.get(index, 0.0) + length
        if missing := [index for index in range(count) if index not in sums]:
            raise InputError(f"Sound {missing[0]} of {count} cannot be embedded; a warning above says why.")
        return np.stack([sums[index] / seconds[index] for index in range(count)]).astype(np.float32)


def load(
    name_or_path: str | os.PathLike[str] = hub.BUILT_IN, device: str | None = None, pool: str = "mean"
) -> BEATsEncoder:
    """An encoder for `mteb.evaluate`. Arguments as for `BEATsEncoder`."""
    return BEATsEncoder(name_or_path, device=device, pool=pool)


def torchbeats_name(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The name of torchbeats for one of mteb; any other as it is."""
    return _TORCHBEATS_NAMES.get(os.fspath(name), name)


def _rows(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return rows


def _samples(sound: Any) -> tuple[np.ndarray[Any, Any], float]:
    """Samples and their rate: of a dictionary, of the decoder that datasets gives, or of a file that it left alone."""
    if isinstance(sound, Mapping) and "array" not in sound:
        file = BytesIO(sound["bytes"]) if sound.get("bytes") else sound["path"]
        return audio.excerpt(file, 0, float("inf")), SAMPLE_RATE
    return np.asarray(sound["array"]), float(sound["sampling_rate"])


# --- what mteb writes beside the results ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """What published models have in common.

    Attributes:
        publisher: owner of the name in mteb, of models that have no repository of their publisher's own.
        parameters: without a label head.
        width: values of an embedding.
        training_datasets: by their names in mteb; None where the publisher's list is not known here.
        released: day of the first publication of the paper.
    """

    publisher: str | None
    parameters: int
    width: int
    training_datasets: frozenset[str] | None = None
    released: str | None = None
    code: str | None = None
    citation: str | None = None


_AUDIOSET = frozenset({"AudioSet", "AudioSetMini", "AudioSetStrongA2TRetrieval", "AudioSetStrongT2ARetrieval"})
_BEATS_PAPER = """@inproceedings{chen2023beats,
  title = {{BEATs}: Audio Pre-Training with Acoustic Tokenizers},
  author = {Chen, Sanyuan and Wu, Yu and Wang, Chengyi and Liu, Shujie and Tompkins, Daniel and Chen, Zhuo and
            Che, Wanxiang and Yu, Xiangzhan and Wei, Furu},
  booktitle = {Proceedings of the 40th International Conference on Machine Learning},
  year = {2023},
}"""
_BASE, _LARGE, _NANO = (90_311_792, 768), (311_376_576, 1024), (5_072_008, 256)
_ESPNET = "https://github.com/espnet/espnet"
_FAMILIES = {  # by the beginning of the name; the longest that fits
    "beats-iter3": _Family(
        "microsoft", *_BASE, _AUDIOSET, "2022-12-18", "https://github.com/microsoft/unilm/tree/master/beats",
        _BEATS_PAPER,
    ),
    "beats-nano": _Family("torchbeats", *_NANO, frozenset()),
    "beats-base-as2m": _Family(None, *_BASE, _AUDIOSET, code=_ESPNET),
    "openbeats-base": _Family(None, *_BASE, code=_ESPNET),
    "openbeats-large": _Family(None, *_LARGE, code=_ESPNET),
    "aves2": _Family(None, *_BASE, code="https://github.com/earthspecies/avex"),
}  # fmt: skip
_LICENCES = {"MIT": "mit", "CC BY-NC-SA": "cc-by-nc-sa-4.0"}


def _meta(name: str) -> ModelMeta:
    """What mteb is to know of a model that ``torchbeats models`` lists."""
    family = next(_FAMILIES[start] for start in sorted(_FAMILIES, key=len, reverse=True) if name.startswith(start))
    source = hub.MODELS.get(name)
    page = "https://huggingface.co/" + source.repo if source else "https://pypi.org/project/torchbeats"
    return _described(
        name=source.repo if source and family.publisher is None else f"{family.publisher}/{name}",
        revision=source.revision if source else sha256(hub.BUILT_INS[name])[:40],
        loader=BEATsEncoder,
        parameters=family.parameters,
        width=family.width,
        license=_LICENCES.get(source.licence, page) if source else "mit",
        open_weights=True,
        public_training_code=family.code or "https://pypi.org/project/torchbeats",
        training_datasets=None if family.training_datasets is None else set(family.training_datasets),
        release_date=family.released,
        reference=page,
        citation=family.citation,
    )


def _meta_of_file(path: Path, model: BEATs) -> ModelMeta:
    """What mteb is to know of a checkpoint of the user's own."""
    return _described(
        name=f"local/{path.stem if path.stem != 'model' else path.absolute().parent.name}",
        revision=sha256(path)[:40],
        loader=partial(_load_file, path),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        width=model.cfg.encoder_embed_dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        training_datasets=None,
    )


def _load_file(path: Path, model_name: str, **kwargs: Any) -> BEATsEncoder:
    return BEATsEncoder(path, **kwargs)


def _described(*, parameters: int, width: int, **fields: Any) -> ModelMeta:
    return ModelMeta(
        n_parameters=parameters,
        n_embedding_parameters=0,
        memory_usage_mb=round(4 * parameters / _MB),
        embed_dim=width,
        max_tokens=float("inf"),
        modalities=["audio"],
        languages=["zxx-Zxxx"],
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        **{"release_date": None, **fields},
    )


METAS: dict[str, ModelMeta] = {name: _meta(name) for name in (*hub.BUILT_INS, *hub.MODELS) if "tokenizer" not in name}
_TORCHBEATS_NAMES = {meta.name: name for name, meta in METAS.items()}
