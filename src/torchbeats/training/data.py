"""A corpus of any size → batches of random crops, each a function of the seed and its number alone.

    inputs --(index)--> Corpus --(Batches)--> which crops --(Crops, in worker processes)--> samples --(collate)--> Batch

Nothing here has a state that would have to be saved: a run that goes on at batch n asks for batch n. What one process
would train on, several share clip by clip.
"""

from __future__ import annotations

import fnmatch
import io
import os
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchbeats import audio
from torchbeats.audio import AUDIO_SUFFIXES, AudioWarning
from torchbeats.batching import batches_of_like_length
from torchbeats.data.inputs import find_audio
from torchbeats.errors import AudioError, CorpusError
from torchbeats.fbank import Fbank
from torchbeats.files import replacing
from torchbeats.patches import SAMPLE_RATE, PatchGrid, frames, mask_behind
from torchbeats.training.augmentation import CURVE_TERMS, augment_waveform
from torchbeats.training.settings import Data

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

LOOKAHEAD_BATCHES = 32  # crops are sorted by length among this many batches' worth
UNKNOWN_SECONDS = 120.0  # what is decoded of a sound whose length no header tells
# Paths as the bytes that they are on disk, which need not be text.
_SCHEMA = pa.schema(
    {"path": pa.binary(), "seconds": pa.float32(), "shard": pa.binary(), "offset": pa.int64(), "size": pa.int64()}
)


# --- what there is ----------------------------------------------------------------------------------------------------


class Corpus:
    """The sounds that there are, and how long each is.

    Args:
        table: columns ``path``; ``seconds``, NaN where no header tells; and of a sound inside a WebDataset shard
            ``shard``, ``offset`` and ``size``, null elsewhere.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.seconds = table["seconds"].to_numpy()
        self._columns = {name: table[name].combine_chunks() for name in ("path", "shard", "offset", "size")}

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def hours(self) -> float:
        """Hours of sound whose length is known."""
        return float(np.nansum(self.seconds)) / 3600

    def path(self, row: int) -> str:
        """Name of a sound, for people."""
        shard = self._get("shard", row)
        return os.fsdecode((shard + b"#" if shard else b"") + self._get("path", row))

    def _get(self, column: str, row: int) -> Any:
        return self._columns[column][row].as_py()

    def read(self, row: int, start: float, seconds: float) -> Floats:
        """A piece of a sound; see `audio.excerpt`."""
        path, shard = self.path(row), self._get("shard", row)
        if shard is None:
            return audio.excerpt(path, start, seconds)
        import fsspec

        try:
            files, inside = fsspec.core.url_to_fs(os.fsdecode(shard))
            offset = self._get("offset", row)
            content = io.BytesIO(files.cat_file(inside, start=offset, end=offset + self._get("size", row)))
        except (OSError, ValueError) as error:
            raise AudioError(path, f"its shard cannot be read ({error})") from error
        content.name = path
        return audio.excerpt(content, start, seconds)

    def save(self, path: Path) -> None:
        """Write the index; the next run need not look at every file again."""
        with replacing(path) as temporary:
            pq.write_table(self.table, temporary)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote."""
        return cls(pq.read_table(path))


def index(
    inputs: Sequence[str],
    jobs: int = 8,
    on_found: Callable[[Failure | None], None] = lambda failure: None,
) -> Corpus:
    """Find all sounds that the inputs name and look at their headers.

    Args:
        inputs: what `find_audio` takes; and WebDataset shards, ``.tar`` files, by path or by any URL that fsspec reads,
            where ``*`` and ``{000..127}`` stand for many.
        jobs: threads that look.
        on_found: called for every file and shard; with what is wrong where it is of no use.

    Raises:
        InputError: an input names no files.
        CorpusError: none of them can be read.
    """
    shards = [given for given in inputs if _is_shard(given)]
    files = [given for given in inputs if not _is_shard(given)]
    tasks: list[tuple[Callable[[str], list[_Row]], str]] = []
    if files:
        tasks += [(_look, path) for path in find_audio(files)]
    tasks += [(_members, url) for given in shards for url in _expand(given)]

    def attempt(task: tuple[Callable[[str], list[_Row]], str]) -> list[_Row] | Failure:
        look, path = task
        try:
            return look(path)
        except AudioError as error:
            return Failure(path, error.reason)
        except (OSError, tarfile.TarError, ValueError, ImportError) as error:
            return Failure(path, f"it cannot be read ({error})")

    rows: list[_Row] = []
    failures: list[Failure] = []
    with ThreadPoolExecutor(jobs, thread_name_prefix="index") as pool:
        for result in pool.map(attempt, tasks):
            if isinstance(result, Failure):
                failures.append(result)
                on_found(result)
            else:
                rows += result
                on_found(None)
    if not rows:
        raise CorpusError(
            f"There is nothing to learn from: none of the {len(tasks):,} files could be read. The first, {failures[0]}."
        )
    return Corpus(pa.table(dict(zip(_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), schema=_SCHEMA))


_Row: TypeAlias = "tuple[bytes, float, bytes | None, int | None, int | None]"


def _look(path: str) -> list[_Row]:
    seconds = audio.duration(path)
    return [(os.fsencode(path), float("nan") if seconds is None else seconds, None, None, None)]


def _is_shard(given: str) -> bool:
    return given.endswith(".tar") or "://" in given


def _expand(given: str) -> list[str]:
    """The shards that a pattern stands for."""
    if os.path.exists(given):
        return [given]
    import fsspec
    from braceexpand import braceexpand

    urls: list[str] = []
    try:
        for pattern in braceexpand(given):
            if not any(sign in pattern for sign in "*?["):
                urls.append(pattern)
                continue
            files, path = fsspec.core.url_to_fs(pattern)
            found = sorted(name for name in files.glob(path) if fnmatch.fnmatch(name, path))
            if not found:
                raise CorpusError(f"There are no shards {pattern}.")
            urls += [files.unstrip_protocol(name) if "://" in pattern else name for name in found]
    except CorpusError:
        raise
    except (ValueError, ImportError, OSError) as error:  # braces that do not match, no client for the protocol, …
        raise CorpusError(f"The shards {given} cannot be found: {error}") from error
    return urls


def _members(url: str) -> list[_Row]:
    """The sounds in a shard. Only their headers in the archive are read, so that their lengths stay unknown."""
    import fsspec

    rows: list[_Row] = []
    fault = None
    with fsspec.open(url, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            shard = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - holds nothing but the file
            for member in shard:
                if member.offset_data + member.size > size:
                    fault = f"it breaks off within {member.name}"
                    break
                if member.isfile() and os.path.splitext(member.name)[1].lower() in AUDIO_SUFFIXES:
                    rows.append(
                        (os.fsencode(member.name), float("nan"), os.fsencode(url), member.offset_data, member.size)
                    )
            file.seek(shard.offset)
            if not fault and any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a bad header for the end of the archive
                fault = f"it breaks off or is damaged at byte {shard.offset}"
        except tarfile.ReadError as error:
            fault = f"it breaks off ({error})"
    if rows and fault:
        warnings.warn(f"{url}: {fault}; the {len(rows):,} sounds before are used.", AudioWarning, stacklevel=2)
    elif fault:
        raise ValueError(fault)
    if not rows:
        raise ValueError("it holds no sounds")
    return rows


# --- which crops make a batch -----------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One crop of a batch: of which sound, how long at most, and what seeds all else about it."""

    row: int
    seconds: float
    seed: tuple[int, int, int]  # of the run, the epoch, the crop in the epoch
    counts: bool = True  # False: it only fills up a process that would have nothing to do


class Batches:
    """Goes through the corpus in epochs without end: each sound once for every crop length that it has room for.

    Args:
        corpus: the sounds.
        data: settings.
        seed: of the run and the phase.
        grid: of the model's patches.
        first: number of the first batch wanted.
        rank: which share of each batch.
        world: how many there are.
        weights: ``(len(corpus),)``, how often each sound is drawn, beside the others; where given, an epoch draws
            with replacement.
        fill: go through a corpus of only a few batches several times in an epoch, so that batches are full.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: Data,
        seed: int,
        grid: PatchGrid,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        weights: np.ndarray[Any, np.dtype[np.float64]] | None = None,
        fill: bool = True,
    ) -> None:
        self.crop_seconds = np.array(data.crop_seconds)
        self.batch_samples = data.batch_seconds * SAMPLE_RATE
        self.seed, self.grid = seed, grid
        self.first, self.rank, self.world = first, rank, world
        longest = np.nan_to_num(corpus.seconds, nan=float(self.crop_seconds.max()))
        self.known = np.where(np.isnan(corpus.seconds), np.inf, corpus.seconds)
        crop = self.crop_seconds.mean()
        rows: Integers = np.repeat(np.arange(len(corpus)), np.maximum(1, np.rint(longest / crop)).astype(int))
        samples = np.maximum(np.minimum(longest[rows], crop) * SAMPLE_RATE, grid.min_samples).sum()
        self.once = rows
        self.rows = np.tile(rows, max(1, round(LOOKAHEAD_BATCHES * self.batch_samples / samples))) if fill else rows
        self.weights = weights

    def __iter__(self) -> Iterator[list[Draw]]:
        number = 0
        for epoch in range(2**62):
            for batch in self._epoch(epoch, self.rows):
                if number >= self.first:
                    # A process without a share trains on a clip that does not count, so that all keep step.
                    share = batch[self.rank :: self.world] or [batch[0]._replace(counts=False)]
                    yield share
                number += 1

    def pass_once(self) -> Iterator[list[Draw]]:
        """Each sound as in `rows`, though a small corpus only once."""
        return self._epoch(0, self.once)

    def _epoch(self, epoch: int, rows: Integers) -> Iterator[list[Draw]]:
        random = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            order = random.permutation(len(rows))
        else:
            odds = self.weights[rows] / np.bincount(rows)[rows]  # a long sound has several rows
            order = random.choice(len(rows), len(rows), p=odds / odds.sum())
        seconds = random.choice(self.crop_seconds, len(order))
        lengths = np.minimum(self.known[rows[order]], seconds) * SAMPLE_RATE
        samples = np.maximum(np.ceil(lengths).astype(int), self.grid.min_samples)
        ahead = (np.cumsum(samples) // (LOOKAHEAD_BATCHES * self.batch_samples)).astype(int)
        for chosen in np.split(np.arange(len(order)), np.flatnonzero(np.diff(ahead)) + 1):
            batches = list(batches_of_like_length(samples[chosen].tolist(), self.batch_samples))
            for number in random.permutation(len(batches)):
                picks = chosen[batches[number]]
                yield [Draw(int(rows[order[i]]), float(seconds[i]), (self.seed, epoch, int(i))) for i in picks]


# --- the crops themselves ---------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A sound that could not be read."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Crop(NamedTuple):
    """A piece of a sound, and which of its patches are hidden from the model."""

    samples: Floats
    hidden: np.ndarray[Any, np.dtype[np.bool_]]  # (T,)
    shift: int = 0  # mel bins that the model hears it higher
    curve: tuple[float, ...] = ()  # of the equaliser that it hears it through; see `augment.equalise`
    counts: bool = True


class Crops(Dataset["Crop | Failure"]):
    """Reads crops.

    Args:
        corpus: the sounds.
        data: settings; whether and how sounds are changed among them.
        grid: of the model's patches.
        mask: share of the patches that are hidden.
        mel_shift: the model is to hear each clip up to this many mel bins higher or lower.
        equaliser_db: and through an equaliser of about this depth.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: Data,
        grid: PatchGrid,
        mask: float = 0.0,
        mel_shift: int = 0,
        equaliser_db: float = 0.0,
    ) -> None:
        self.corpus, self.data, self.grid = corpus, data, grid
        self.mask, self.mel_shift, self.equaliser_db = mask, mel_shift, equaliser_db

    def __getitem__(self, draw: Draw) -> Crop | Failure:
        random = np.random.default_rng(draw.seed)
        samples = self.sound(draw, random)
        if isinstance(samples, Failure):
            return samples
        samples = augment_waveform(samples, random, self.data.gain_db, self.data.band_limited)
        patches = int(self.grid.patches(max(len(samples), self.grid.min_samples)))
        shift = int(random.integers(-self.mel_shift, self.mel_shift + 1))
        hidden = random_mask(patches, self.mask, random)
        curve = random.normal(0.0, self.equaliser_db, CURVE_TERMS) / np.sqrt(np.arange(1, CURVE_TERMS + 1))
        return Crop(samples, hidden, shift, tuple(curve.tolist()), draw.counts)

    def sound(self, draw: Draw, random: np.random.Generator) -> Floats | Failure:
        """A crop as it is in the file, or why there is none."""
        try:
            return self._read(draw, random.random())
        except AudioError as error:
            return Failure(self.corpus.path(draw.row), error.reason)
        except Exception as error:  # a decoder's surprise must not end the run
            return Failure(self.corpus.path(draw.row), f"decoding failed with {error!r}")

    def _read(self, draw: Draw, where: float) -> Floats:
        """The crop that begins at the share ``where`` of what the sound has room for."""
        seconds = float(self.corpus.seconds[draw.row])
        if np.isnan(seconds):  # then it has to be decoded to be known
            samples = self.corpus.read(draw.row, 0.0, UNKNOWN_SECONDS)
            wanted = round(draw.seconds * SAMPLE_RATE)
            first = int(where * max(0, len(samples) - wanted))
            return samples[first : first + wanted]
        start = where * max(0.0, seconds - draw.seconds)
        try:
            return self.corpus.read(draw.row, start, draw.seconds)
        except AudioError:
            if not start:
                raise
            return self.corpus.read(draw.row, 0.0, draw.seconds)  # the file is shorter than its header says


def random_mask(patches: int, share: float, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Hide a share of the patches, but never all of them: ``(patches,)``, True = hidden (BEATs, section 3.3)."""
    hidden = np.zeros(patches, bool)
    hidden[random.permutation(patches)[: min(round(share * patches), patches - 1)]] = True
    return hidden


class Batch(NamedTuple):
    """Crops of like length, padded to the longest.

    Attributes:
        wav: ``(B, samples)``, zero behind each crop.
        samples: ``(B,)`` int64, length of each.
        kept: ``(B, K)`` int64, the patches that the model sees, in order; 0 behind each row's own.
        kept_counts: ``(B,)`` int64, how many those are.
        hidden: ``(B, T)`` bool, the patches that it does not see.
        asked: ``(M,)`` int64, the patches whose labels it is to say, as indices into ``B * T``.
        shifts: ``(B,)`` int64, mel bins that the model is to hear each crop higher.
        curves: ``(B, K)``, the equaliser that it hears each through.
        failures: sounds that could not be read, and are not in the batch.
    """

    wav: Tensor
    samples: Tensor
    kept: Tensor
    kept_counts: Tensor
    hidden: Tensor
    asked: Tensor
    shifts: Tensor
    curves: Tensor
    failures: list[Failure]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors: Any = [part.to(device) if isinstance(part, Tensor) else part for part in self]
        return Batch(*tensors)


def collate(items: Iterable[Crop | Failure], grid: PatchGrid) -> Batch:
    """Put crops together. Where none could be read, one of silence stands in, of which nothing is asked."""
    items = list(items)
    crops = [item for item in items if isinstance(item, Crop)]
    if not crops:
        crops = [Crop(np.zeros(grid.min_samples, np.float32), np.zeros(grid.bands, bool), counts=False)]
    lengths = [max(len(crop.samples), grid.min_samples) for crop in crops]
    wav = torch.zeros(len(crops), max(lengths))
    hidden = torch.zeros(len(crops), int(grid.patches(max(lengths))), dtype=torch.bool)
    asked = torch.zeros_like(hidden)
    kept = torch.zeros(len(crops), max(int((~crop.hidden).sum()) for crop in crops), dtype=torch.long)
    kept_counts = torch.zeros(len(crops), dtype=torch.long)
    for row, crop in enumerate(crops):
        wav[row, : len(crop.samples)] = torch.from_numpy(crop.samples)
        hidden[row, : len(crop.hidden)] = torch.from_numpy(crop.hidden)
        if crop.counts:  # where nothing is hidden, every patch is asked for
            asked[row, : len(crop.hidden)] = torch.from_numpy(crop.hidden | ~crop.hidden.any())
        visible = np.flatnonzero(~crop.hidden)
        kept[row, : len(visible)] = torch.from_numpy(visible)
        kept_counts[row] = len(visible)
    return Batch(
        wav,
        samples=torch.tensor(lengths),
        kept=kept,
        kept_counts=kept_counts,
        hidden=hidden,
        asked=asked.flatten().nonzero().squeeze(1),
        shifts=torch.tensor([crop.shift for crop in crops]),
        curves=torch.tensor([crop.curve or (0.0,) * CURVE_TERMS for crop in crops]),
        failures=[item for item in items if isinstance(item, Failure)],
    )


def loader(crops: Crops, batches: Batches, workers: int) -> DataLoader[Any]:
    """Batches without end, made in ``workers`` other processes or, with 0, in this one."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        collate_fn=_Collate(crops.grid),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass
class _Collate:
    """`collate` for one grid; a class, so that it can be sent to another process."""

    grid: PatchGrid

    def __call__(self, items: list[Crop | Failure]) -> Batch:
        return collate(items, self.grid)


# --- the corpus's loudness --------------------------------------------------------------------------------------------


@torch.no_grad()
def fbank_statistics(corpus: Corpus, data: Data, seed: int, on_batch: Callable[[Batch], None]) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel features of a sample of the corpus, frames of padding apart.

    Args:
        corpus: the sounds.
        data: settings: ``statistics_seconds`` of audio are looked at, unless an epoch has less.
        seed: of the run.
        on_batch: called behind every batch.

    Raises:
        CorpusError: none of the sounds looked at can be decoded, or all are digital silence.
    """
    grid, fbank = PatchGrid(), Fbank()
    plain = Data(crop_seconds=data.crop_seconds, batch_seconds=max(60.0, *data.crop_seconds))
    count, total, squares, seconds = 0, 0.0, 0.0, 0.0
    crops, failures = Crops(corpus, plain, grid), []
    for draws in Batches(corpus, plain, seed, grid).pass_once():
        batch = collate((crops[draw] for draw in draws), grid)
        on_batch(batch)
        failures += batch.failures
        if len(batch.failures) == len(draws):
            continue
        features = fbank(batch.wav).double()
        real = features[~mask_behind(frames(batch.samples), features.size(1))]
        count, total, squares = count + real.numel(), total + float(real.sum()), squares + float(real.square().sum())
        seconds += float(batch.samples.sum()) / SAMPLE_RATE
        if seconds >= data.statistics_seconds:
            break
    if not count:
        raise CorpusError(f"There is nothing to learn from: no sound could be decoded. The first, {failures[0]}.")
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5
    if deviation < 1e-3:
        raise CorpusError("There is nothing to learn from: all of the sounds looked at are silence.")
    return mean, deviation
