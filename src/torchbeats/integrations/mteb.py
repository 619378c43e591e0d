"""An encoder for MTEB, the Massive Text Embedding Benchmark, whose audio tasks are MAEB.

    import mteb
    from torchbeats.integrations.mteb import BEATsEncoder, classification_task

    mteb.evaluate(BEATsEncoder("beats-iter3"), mteb.get_tasks(tasks=["ESC50"]))
    mteb.evaluate(BEATsEncoder("beats-iter3"), classification_task("sounds"))

Sounds are read by torchbeats, whatever their format, rate and channels: torchaudio is not needed, nor is torchcodec.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mteb
import numpy as np
import soundfile
import torch
from mteb.abstasks import AbsTaskClassification
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from torchbeats.audio import Floats
from torchbeats.config import SIZES, BEATsConfig
from torchbeats.data.fingerprint import fingerprint
from torchbeats.data.inputs import Piece
from torchbeats.data.labelled import Example, Labelled, read_labelled
from torchbeats.data.sounds import blocks
from torchbeats.embedder import Embedder
from torchbeats.errors import AudioError, InputError, ModelError
from torchbeats.loading import ready
from torchbeats.patches import SAMPLE_RATE
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.protocol import Layer, Model
from torchbeats.weights import hub

__all__ = ["METAS", "BEATsEncoder", "classification_task"]

ORGANISATION = "torchbeats"  # in front of every name, as MTEB wants one there

AUDIOSET = (
    "AudioSet",
    "AudioSetMini",
    "AudioSetStrongA2TRetrieval",
    "AudioSetStrongT2ARetrieval",
)  # MTEB's tasks of it

ESPNET = "https://github.com/espnet/espnet"
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
_AVES = Facts("base")
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
    "aves2-sl-beats-all": _AVES,
    "aves2-naturelm-beats": _AVES,
}


# By size; without a label head, which embeddings do not need.
PARAMETERS = {"nano": 5_072_008, "base": 90_311_792, "large": 311_376_576}


class BEATsEncoder(AbsEncoder):  # type: ignore[misc, unused-ignore]
    """One embedding a sound: the mean of its windows' embeddings, each counted by its length.

    Up to the window's length that is the row of `torchbeats.embed`.

    Args:
        model_name: a name that ``torchbeats models`` lists, with or without ``torchbeats/`` in front; whatever else
            `torchbeats.load` takes; or a model. The small built-in one where not given.
        revision: a commit, tag or branch on the Hugging Face Hub; where not given, that of the list of models.
        device: where to compute; a GPU if there is one.
        pool: see `EmbeddingPlan`.
        layer: see `EmbeddingPlan`.
        window: seconds that the model sees at once; None for all of a sound, however long.
        batch_seconds: audio in a batch of the model.
        dtype: to compute in.

    Attributes:
        mteb_model_meta: what MTEB keeps results under. Its revision is the Hub's commit where that is known, otherwise
            a hash of the weights, so results of one file are never taken for those of another.

    Raises:
        ModelError: it is a tokenizer, or has no such layer.
        HubError: no such name, or its file cannot be had.
        SettingsError: a setting that makes no sense.
    """

    def __init__(
        self,
        model_name: Model | str | os.PathLike[str] | None = None,
        revision: str | None = None,
        *,
        device: str | torch.device | None = None,
        pool: str = "mean",
        layer: Layer = None,
        window: float | None = WINDOW_SECONDS,
        batch_seconds: float = BATCH_SECONDS,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = _short(model_name)
        self.model = ready(_at(name, revision), device or "auto", dtype)
        plan = EmbeddingPlan(pool, layer, window=window, batch_seconds=batch_seconds)
        plan.check(self.model)
        self.embedder = Embedder(self.model, pool=pool, layer=layer, window=window, batch_seconds=batch_seconds)
        changed = {"pool": pool, "layer": layer, "window": window, "dtype": None if dtype is None else str(dtype)}
        usual = {"pool": "mean", "layer": None, "window": WINDOW_SECONDS, "dtype": None}
        settings = {key: value for key, value in changed.items() if value != usual[key]}
        self.mteb_model_meta = _loaded(name, self.model, revision, plan.row(self.model).width, settings)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        **options: Any,
    ) -> Floats:
        """Embed the sounds of a task.

        Args:
            inputs: MTEB's loader of a data set with a column ``audio``.
            task_metadata: of the task; errors name it.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: not used; a sound is the same as a query and as a document.
            batch_size: sounds that are read together. Batches of the model are by seconds.
            show_progress_bar: whether to show how far it is.
            options: of other encoders; not used.

        Returns:
            ``(sounds, D)`` float32.

        Raises:
            ModelError: the task has no sounds.
            AudioError: a sound that cannot be read.
        """
        from tqdm.auto import tqdm

        sounds = _undecoded(inputs.dataset, task_metadata.name)
        result = np.empty((len(sounds), int(self.mteb_model_meta.embed_dim)), np.float32)
        with tqdm(total=len(sounds), disable=not show_progress_bar, desc="Embedding sounds") as bar:
            for start in range(0, len(sounds), batch_size):
                batch = sounds[start : start + batch_size]["audio"]
                result[start : start + len(batch)] = list(self._rows(batch, start, task_metadata.name))
                bar.update(len(batch))
        return result

    def _rows(self, batch: Sequence[Any], start: int, task: str) -> Iterator[Floats]:
        """The embedding of each sound."""
        numbers = [str(number) for number in range(len(batch))]  # as names: paths need not differ, or be there at all
        columns = self.embedder({"audio": list(batch), "path": numbers})
        for number, sound in zip(numbers, batch, strict=True):
            own = [row for row, name in enumerate(columns["path"]) if name == number]
            if errors := [columns["error"][row] for row in own if columns["error"][row] is not None]:
                called = (sound or {}).get("path")
                name = f"Sound {start + int(number)} of {task}{f' ({called})' if called else ''}"
                raise AudioError(name, errors[0].removesuffix("."))
            if not own:
                raise AudioError(f"Sound {start + int(number)} of {task}", "it is empty")
            seconds = [columns["end"][row] - columns["start"][row] for row in own]
            rows = [columns["embedding"][row].reshape(-1) for row in own]
            yield rows[0] if len(rows) == 1 else np.average(rows, axis=0, weights=seconds)


def _undecoded(dataset: Any, task: str) -> Any:
    """The column of sounds, as files where they are files: reading them here takes neither torchcodec nor torchaudio."""
    import datasets

    if "audio" not in dataset.features:
        columns = ", ".join(dataset.features)
        raise ModelError(f"BEATs embeds sounds, and {task} has a part without any: its columns are {columns}.")
    sounds = dataset.select_columns("audio")
    if isinstance(sounds.features["audio"], datasets.Audio):
        sounds = sounds.cast_column("audio", datasets.Audio(decode=False))
    return sounds


def classification_task(
    sounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], name: str | None = None
) -> AbsTaskClassification:
    """A task for MTEB from sounds of your own, each of one class.

    Folders called train and test (or validation), or such a column of a list, are splits; MTEB trains its classifier on
    one and tests it on the others. Where there are none, it cross-validates in five parts. What it does by default, a
    classifier of 8 examples a class and the mean of 10 such, are the task's ``samples_per_label`` and ``n_experiments``.

    Args:
        sounds: a folder with a folder for each class in it; a list of files with labels; or several of these.
        name: of the task, under which MTEB keeps results; the first input's where not given. Results of other files
            under the same name are not taken for these.

    Raises:
        InputError: no sounds, a sound with several labels, or splits without one to train on.
    """
    inputs = [sounds] if isinstance(sounds, (str, os.PathLike)) else list(sounds)
    labelled = read_labelled(inputs, "single_label")
    splits = sorted({example.split or "train" for example in labelled.examples})
    tested = [split for split in splits if split != "train"]
    if "train" not in splits:
        raise InputError(f"There is no split called train, which MTEB's classifier learns from; there is {splits}.")
    first = os.path.abspath(os.fspath(inputs[0]))
    about = mteb.TaskMetadata(
        name=name or Path(first).stem,
        description=f"{len(labelled.examples):,} sounds of {len(labelled.classes):,} classes.",
        dataset={"path": first, "revision": fingerprint(labelled.examples)},
        type="AudioClassification",
        category="a2c",
        modalities=["audio"],
        eval_splits=tested or ["train"],
        eval_langs=["zxx-Zxxx"],  # no language
        main_score="accuracy",
    )

    class LocalTask(_LocalTask):
        metadata = about
        labelled_sounds = labelled
        is_cross_validation = not tested

    return LocalTask()


class _LocalTask(AbsTaskClassification):  # type: ignore[misc, unused-ignore]
    """A task whose sounds are on this machine."""

    labelled_sounds: Labelled
    input_column_name = "audio"

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """Make the data set: paths and labels, or the sound itself where that is a piece of something."""
        import datasets

        if self.data_loaded:
            return
        splits: dict[str, dict[str, list[Any]]] = {}
        for example in self.labelled_sounds.examples:
            columns = splits.setdefault(example.split or "train", {"audio": [], "label": []})
            columns["audio"].append(_stored(example))
            columns["label"].append(self.labelled_sounds.classes.index(example.labels[0]))
        # A plain column: casting it to datasets.Audio would want torchcodec.
        made = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
        self.dataset = datasets.DatasetDict(made)
        self.data_loaded = True


def _stored(example: Example) -> dict[str, Any]:
    """What stands for a sound in a data set."""
    if not example.start and example.end is None and example.content is None:
        return {"bytes": None, "path": example.path}
    piece = Piece(example.path, example.start, example.end, example.content)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(list(blocks(piece))), SAMPLE_RATE, "FLOAT", format="WAV")
    return {"bytes": file.getvalue(), "path": example.path}


# --- metadata ---------------------------------------------------------------------------------------------------------


class _Meta(ModelMeta):  # type: ignore[misc, unused-ignore]
    """MTEB's metadata of a model, which loads it without MTEB's extra for audio (it has torchaudio in it)."""

    def load_model(self, device: str | None = None, **options: Any) -> BEATsEncoder:
        """An encoder; options are those of `BEATsEncoder`."""
        return BEATsEncoder(self.name, self.revision, device=device, **{**self.loader_kwargs, **options})


def _meta(name: str, size: int | None, width: int, revision: str | None, settings: dict[str, Any]) -> _Meta:
    """The metadata of a model, ours by its short name or any other."""
    source, facts = hub.MODELS.get(name), FACTS.get(name)
    licence = None
    if facts is not None:
        licence = "mit" if source is None else LICENCES.get(source.licence, _page(source))
    return _Meta(
        loader=BEATsEncoder,
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


def _listed(name: str) -> _Meta:
    """The metadata of a model in the list, which need not be here."""
    size = FACTS[name].size
    revision = _commit(hub.MODELS[name].revision) if name in hub.MODELS else None
    return _meta(name, PARAMETERS[size], BEATsConfig(SIZES[size]).encoder_embed_dim, revision, {})


def _loaded(name: Any, model: Model, revision: str | None, width: int, settings: dict[str, Any]) -> _Meta:
    """The metadata of a model that is here."""
    parts = model.named_parameters() if isinstance(model, torch.nn.Module) else ()
    size = sum(parameter.numel() for part, parameter in parts if not part.startswith("predictor.")) or None
    if not isinstance(name, str):
        name, revision = f"{ORGANISATION}/{type(model).__name__}", None
    elif name in hub.BUILT_INS:
        revision = None
    elif name in hub.MODELS:
        revision = revision or hub.MODELS[name].revision
    elif os.path.exists(name):
        name, revision = f"{ORGANISATION}/{Path(os.path.abspath(name)).stem}", None
    return _meta(name, size, width, _commit(revision) or model.digest()[:40], settings)


def _short(name: Any) -> Any:
    """A name without ``torchbeats/`` in front."""
    if name is None:
        return hub.BUILT_IN
    if isinstance(name, os.PathLike):
        return os.fspath(name)
    if isinstance(name, str) and (short := name.removeprefix(f"{ORGANISATION}/")) in (*hub.MODELS, *hub.BUILT_INS):
        return short
    return name


def _at(name: Any, revision: str | None) -> Any:
    """What `torchbeats.load` takes, for a revision of a model."""
    source = hub.MODELS.get(name) if isinstance(name, str) else None
    if revision is None or not isinstance(name, str) or name in hub.BUILT_INS or os.path.exists(name):
        return name
    if source is None:
        return f"{name}@{revision}"
    file = f"/{source.file}" if source.file else ""
    return name if revision == source.revision else f"{source.repo}{file}@{revision}"


def _commit(revision: str | None) -> str | None:
    """A revision that is a commit; branches and tags move."""
    return revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None


def _page(source: hub.Source) -> str:
    return f"https://huggingface.co/{source.repo}"


METAS: dict[str, ModelMeta] = {name: _listed(name) for name in FACTS}
"""The metadata of each name in ``torchbeats models``, tokenizers left out. `mteb.evaluate` takes these like a model, and
loads one only if it has no results of it yet."""
