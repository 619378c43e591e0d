"""BEATs and its kin for MTEB: a file for mteb/models/model_implementations/.

The encoder is in torchbeats, which this imports when a model is loaded. In mteb's pyproject.toml belongs, among the
optional dependencies, ``beats = ["torchbeats>=0.2"]``.
"""

from __future__ import annotations

from typing import Any

from mteb.models import ModelMeta

AUDIOSET = {
    "AudioSet",
    "AudioSetMini",
    "AudioSetStrongA2TRetrieval",
    "AudioSetStrongT2ARetrieval",
}

BEATS_CITATION = """@inproceedings{chen2023beats,
  title={{BEATs}: Audio Pre-Training with Acoustic Tokenizers},
  author={Chen, Sanyuan and Wu, Yu and Wang, Chengyi and Liu, Shujie and Tompkins, Daniel and Chen, Zhuo and Wei, Furu},
  booktitle={International Conference on Machine Learning},
  year={2023},
  url={https://arxiv.org/abs/2212.09058}
}"""

OPENBEATS_CITATION = """@inproceedings{bharadwaj2025openbeats,
  title={{OpenBEATs}: A Fully Open-Source General-Purpose Audio Encoder},
  author={Bharadwaj, Shikhar and Cornell, Samuele and Choi, Kwanghee and Fukayama, Satoru and Shim, Hye-jin and
    Deshmukh, Soham and Watanabe, Shinji},
  booktitle={IEEE Workshop on Applications of Signal Processing to Audio and Acoustics},
  year={2025},
  url={https://arxiv.org/abs/2507.14129}
}"""

WHAT_MATTERS_CITATION = """@misc{miron2025matters,
  title={What Matters for Bioacoustic Encoding},
  author={Miron, Marius and Robinson, David and Alizadeh, Milad and Gilsenan-McMahon, Ellen and Narula, Gagan and
    Chemla, Emmanuel and Cusimano, Maddie and Effenberger, Felix and Hagiwara, Masato and Hoffman, Benjamin and
    Keen, Sara and Kim, Diane and Lawton, Jane K. and Liu, Jen-Yu and Raskin, Aza and Pietquin, Olivier and
    Geist, Matthieu},
  year={2025},
  url={https://arxiv.org/abs/2508.11845}
}"""

NATURELM_CITATION = """@misc{robinson2024naturelm,
  title={{NatureLM-audio}: an Audio-Language Foundation Model for Bioacoustics},
  author={Robinson, David and Miron, Marius and Hagiwara, Masato and Pietquin, Olivier},
  year={2024},
  url={https://arxiv.org/abs/2411.07186}
}"""


def beats_loader(model_name: str, revision: str | None = None, *, device: str | None = None, **kwargs: Any) -> Any:
    """An encoder of torchbeats: one embedding a sound, the mean over its patches in windows of 10 s."""
    from torchbeats.integrations.mteb import BEATsEncoder

    return BEATsEncoder(model_name, revision, device=device, **kwargs)


COMMON = {
    "loader": beats_loader,
    "languages": None,
    "n_embedding_parameters": 0,
    "max_tokens": float("inf"),  # longer sounds are cut into windows
    "open_weights": True,
    "public_training_data": None,
    "framework": ["PyTorch"],
    "similarity_fn_name": "cosine",
    "use_instructions": False,
    "modalities": ["audio"],
    "extra_requirements_groups": ["beats"],
}

beats_iter3 = ModelMeta(
    name="torchbeats/beats-iter3",
    revision="5b53b0404df452a3a607d7e67687227730e5bad1",
    release_date="2022-12-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="mit",
    public_training_code=None,
    reference="https://huggingface.co/lpepino/beats_ckpts",
    training_datasets=AUDIOSET,
    citation=BEATS_CITATION,
    **COMMON,
)

beats_iter3_plus_as2m = ModelMeta(
    name="torchbeats/beats-iter3-plus-as2m",
    revision="5b53b0404df452a3a607d7e67687227730e5bad1",
    release_date="2022-12-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="mit",
    public_training_code=None,
    reference="https://huggingface.co/lpepino/beats_ckpts",
    training_datasets=AUDIOSET,
    citation=BEATS_CITATION,
    **COMMON,
)

beats_iter3_plus_as2m_finetuned = ModelMeta(
    name="torchbeats/beats-iter3-plus-as2m-finetuned",
    revision=None,
    release_date="2022-12-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="mit",
    public_training_code=None,
    reference="https://huggingface.co/WeiChihChen/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
    training_datasets=AUDIOSET,
    citation=BEATS_CITATION,
    **COMMON,
)

openbeats_base_i1 = ModelMeta(
    name="torchbeats/openbeats-base-i1",
    revision=None,
    release_date="2025-07-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i1",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i1",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_base_i2 = ModelMeta(
    name="torchbeats/openbeats-base-i2",
    revision=None,
    release_date="2025-07-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i2",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i2",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_base_i3 = ModelMeta(
    name="torchbeats/openbeats-base-i3",
    revision=None,
    release_date="2025-07-18",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i3",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Base-i3",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_large_i1 = ModelMeta(
    name="torchbeats/openbeats-large-i1",
    revision=None,
    release_date="2025-07-18",
    n_parameters=311_376_576,
    memory_usage_mb=1188,
    embed_dim=1024,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i1",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i1",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_large_i2 = ModelMeta(
    name="torchbeats/openbeats-large-i2",
    revision=None,
    release_date="2025-07-18",
    n_parameters=311_376_576,
    memory_usage_mb=1188,
    embed_dim=1024,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i2",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i2",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_large_i3 = ModelMeta(
    name="torchbeats/openbeats-large-i3",
    revision=None,
    release_date="2025-07-18",
    n_parameters=311_376_576,
    memory_usage_mb=1188,
    embed_dim=1024,
    license="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i3",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/shikhar7ssu/OpenBEATs-Large-i3",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

openbeats_large_i2_as20k = ModelMeta(
    name="torchbeats/openbeats-large-i2-as20k",
    revision=None,
    release_date="2025-07-18",
    n_parameters=311_376_576,
    memory_usage_mb=1188,
    embed_dim=1024,
    license="https://huggingface.co/espnet/OpenBEATS-Large-i2-as20k",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/espnet/OpenBEATS-Large-i2-as20k",
    training_datasets=None,
    citation=OPENBEATS_CITATION,
    **COMMON,
)

beats_base_as2m_iter0 = ModelMeta(
    name="torchbeats/beats-base-as2m-iter0",
    revision=None,
    release_date=None,
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter0",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter0",
    training_datasets=AUDIOSET,
    citation=BEATS_CITATION,
    **COMMON,
)

beats_base_as2m_iter1 = ModelMeta(
    name="torchbeats/beats-base-as2m-iter1",
    revision=None,
    release_date=None,
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter1",
    public_training_code="https://github.com/espnet/espnet",
    reference="https://huggingface.co/jaeyeonkim99/BEATs-base-AS2M-iter1",
    training_datasets=AUDIOSET,
    citation=BEATS_CITATION,
    **COMMON,
)

aves2_sl_beats_all = ModelMeta(
    name="torchbeats/aves2-sl-beats-all",
    revision=None,
    release_date="2025-08-15",
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="cc-by-nc-sa-4.0",
    public_training_code="https://github.com/earthspecies/avex",
    reference="https://huggingface.co/EarthSpeciesProject/esp-aves2-sl-beats-all",
    training_datasets=None,
    citation=WHAT_MATTERS_CITATION,
    **COMMON,
)

aves2_naturelm_beats = ModelMeta(
    name="torchbeats/aves2-naturelm-beats",
    revision=None,
    release_date=None,
    n_parameters=90_311_792,
    memory_usage_mb=345,
    embed_dim=768,
    license="cc-by-nc-sa-4.0",
    public_training_code=None,
    reference="https://huggingface.co/EarthSpeciesProject/esp-aves2-naturelm-audio-v1-beats",
    training_datasets=None,
    citation=NATURELM_CITATION,
    **COMMON,
)
