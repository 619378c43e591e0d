"""BEATs, for mteb/models/model_implementations/ of github.com/embeddings-benchmark/mteb.

Proposed as it is, with one line in mteb's pyproject.toml, under [project.optional-dependencies]:

    torchbeats = ["torchbeats>=0.2"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mteb import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader


class BEATsWrapper(AbsEncoder):
    """Mean of the last layer's patches, in windows of 10 s where a sound is longer."""

    def __init__(
        self, model_name: str, revision: str | None = None, device: str | None = None, *, checkpoint: str, **kwargs: Any
    ) -> None:
        import torchbeats

        self.model = torchbeats.load(checkpoint, device=device or "auto", expect=torchbeats.BEATs)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """One embedding a sound."""
        import torchbeats

        if "audio" not in inputs.dataset.features:
            raise ValueError("BEATs only supports audio inputs.")
        # as they are: torchbeats resamples, and a sound's embedding is the same in any batch
        inputs.collate_fn = lambda rows: rows
        totals: dict[int, np.ndarray] = {}
        seconds: dict[int, float] = {}
        count = 0

        def sounds() -> Iterator[tuple[np.ndarray, float]]:
            nonlocal count
            for batch in inputs:
                for row in batch:
                    count += 1
                    yield np.asarray(row["audio"]["array"]), row["audio"]["sampling_rate"]

        for row in torchbeats.embed(sounds(), self.model):
            index, length = int(row.path[1:-1]), row.end - row.start
            totals[index] = totals.get(index, 0.0) + length * row.embedding
            seconds[index] = seconds.get(index, 0.0) + length
        return np.stack([totals[index] / seconds[index] for index in range(count)])


_COMMON: dict[str, Any] = {
    "loader": BEATsWrapper,
    "extra_requirements_groups": ["torchbeats"],
    "modalities": ["audio"],
    "languages": ["zxx-Zxxx"],
    "n_embedding_parameters": 0,
    "max_tokens": float("inf"),
    "open_weights": True,
    "public_training_data": None,
    "framework": ["PyTorch"],
    "similarity_fn_name": "cosine",
    "use_instructions": False,
}
_BASE: dict[str, Any] = {"n_parameters": 90_311_792, "memory_usage_mb": 345, "embed_dim": 768}
_LARGE: dict[str, Any] = {"n_parameters": 311_376_576, "memory_usage_mb": 1188, "embed_dim": 1024}
_AUDIOSET = {"AudioSet", "AudioSetMini", "AudioSetStrongA2TRetrieval", "AudioSetStrongT2ARetrieval"}
_BEATS_CITATION = """@inproceedings{chen2023beats,
  title = {{BEATs}: Audio Pre-Training with Acoustic Tokenizers},
  author = {Chen, Sanyuan and Wu, Yu and Wang, Chengyi and Liu, Shujie and Tompkins, Daniel and Chen, Zhuo and
            Che, Wanxiang and Yu, Xiangzhan and Wei, Furu},
  booktitle = {Proceedings of the 40th International Conference on Machine Learning},
  year = {2023},
}"""

beats_iter3 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "beats-iter3"},
    name="microsoft/beats-iter3",
    revision="5b53b0404df452a3a607d7e67687227730e5bad1",
    release_date="2022-12-18",
    license="mit",
    public_training_code="https://github.com/microsoft/unilm/tree/master/beats",
    training_datasets=_AUDIOSET,
    reference="https://huggingface.co/lpepino/beats_ckpts",
    citation=_BEATS_CITATION,
)

beats_iter3_plus_as2m = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "beats-iter3-plus-as2m"},
    name="microsoft/beats-iter3-plus-as2m",
    revision="5b53b0404df452a3a607d7e67687227730e5bad1",
    release_date="2022-12-18",
    license="mit",
    public_training_code="https://github.com/microsoft/unilm/tree/master/beats",
    training_datasets=_AUDIOSET,
    reference="https://huggingface.co/lpepino/beats_ckpts",
    citation=_BEATS_CITATION,
)

beats_iter3_plus_as2m_finetuned = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "beats-iter3-plus-as2m-finetuned"},
    name="microsoft/beats-iter3-plus-as2m-finetuned",
    revision="main",
    release_date="2022-12-18",
    license="mit",
    public_training_code="https://github.com/microsoft/unilm/tree/master/beats",
    training_datasets=_AUDIOSET,
    reference="https://huggingface.co/WeiChihChen/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
    citation=_BEATS_CITATION,
)

openbeats_base_i1 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "openbeats-base-i1"},
    name="shikhar7ssu/OpenBEATs-Base-i1",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i1",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i1",
    citation=None,
)

openbeats_base_i2 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "openbeats-base-i2"},
    name="shikhar7ssu/OpenBEATs-Base-i2",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i2",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i2",
    citation=None,
)

openbeats_base_i3 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "openbeats-base-i3"},
    name="shikhar7ssu/OpenBEATs-Base-i3",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i3",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i3",
    citation=None,
)

openbeats_large_i1 = ModelMeta(
    **_COMMON,
    **_LARGE,
    loader_kwargs={"checkpoint": "openbeats-large-i1"},
    name="shikhar7ssu/OpenBEATs-Large-i1",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i1",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i1",
    citation=None,
)

openbeats_large_i2 = ModelMeta(
    **_COMMON,
    **_LARGE,
    loader_kwargs={"checkpoint": "openbeats-large-i2"},
    name="shikhar7ssu/OpenBEATs-Large-i2",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i2",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i2",
    citation=None,
)

openbeats_large_i3 = ModelMeta(
    **_COMMON,
    **_LARGE,
    loader_kwargs={"checkpoint": "openbeats-large-i3"},
    name="shikhar7ssu/OpenBEATs-Large-i3",
    revision="main",
    release_date=None,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i3",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i3",
    citation=None,
)

openbeats_large_i2_as20k = ModelMeta(
    **_COMMON,
    **_LARGE,
    loader_kwargs={"checkpoint": "openbeats-large-i2-as20k"},
    name="espnet/OpenBEATS-Large-i2-as20k",
    revision="main",
    release_date=None,
    license="https://huggingface.co/espnet/OpenBEATS-Large-i2-as20k",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=None,
    reference="https://huggingface.co/espnet/OpenBEATS-Large-i2-as20k",
    citation=None,
)

beats_base_as2m_iter0 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "beats-base-as2m-iter0"},
    name="jaeyeonkim99/BEATs-base-AS2M-iter0",
    revision="main",
    release_date=None,
    license="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter0",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=_AUDIOSET,
    reference="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter0",
    citation=None,
)

beats_base_as2m_iter1 = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "beats-base-as2m-iter1"},
    name="jaeyeonkim99/BEATs-base-AS2M-iter1",
    revision="main",
    release_date=None,
    license="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter1",
    public_training_code="https://github.com/espnet/espnet",
    training_datasets=_AUDIOSET,
    reference="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter1",
    citation=None,
)

aves2_sl_beats_all = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "aves2-sl-beats-all"},
    name="EarthSpeciesProject/esp-aves2-sl-beats-all",
    revision="main",
    release_date=None,
    license="cc-by-nc-sa-4.0",
    public_training_code="https://github.com/earthspecies/avex",
    training_datasets=None,
    reference="https://huggingface.co/EarthSpeciesProject/esp-aves2-sl-beats-all",
    citation=None,
)

aves2_naturelm_beats = ModelMeta(
    **_COMMON,
    **_BASE,
    loader_kwargs={"checkpoint": "aves2-naturelm-beats"},
    name="EarthSpeciesProject/esp-aves2-naturelm-audio-v1-beats",
    revision="main",
    release_date=None,
    license="cc-by-nc-sa-4.0",
    public_training_code="https://github.com/earthspecies/avex",
    training_datasets=None,
    reference="https://huggingface.co/EarthSpeciesProject/esp-aves2-naturelm-audio-v1-beats",
    citation=None,
)
