"""A name → a file on this machine.

A name is a path, a short name in `MODELS`, or ``[datasets/]owner/repo[/path/in/repo][@revision]`` on the Hugging Face
Hub. Files come through `huggingface_hub` and lie in its cache, so ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and
``HF_TOKEN`` mean here what they mean everywhere else.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from torchbeats.errors import HubError
from torchbeats.files import sha256
from torchbeats.weights.checkpoint import READ_SUFFIXES, SUFFIXES
from torchbeats.weights.guard import HostileAnswer, guarded, is_inside, is_plain, within_time

if TYPE_CHECKING:
    from collections.abc import Iterable

PATHS = (*READ_SUFFIXES, ".onnx")  # what ends so reads as a path
SIDECARS = ("config.yaml", "config.json", "label_map.json")  # what some checkpoints cannot be read or named without

_NO_HUB = (  # a page to log in at, as networks of hotels send it, or a server that lies
    "what came is no answer of a Hub. See whether the network asks you to log in, and what HF_ENDPOINT is set to; then "
    "run the command again."
)

_HUB_NAME = re.compile(
    r"(?P<dataset>datasets/)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[^@]*[^@/]))?(?:@(?P<revision>[^@]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """Where on the Hugging Face Hub a checkpoint lies, and what it is."""

    name: str  # what people type
    repo: str  # owner/repo
    file: str | None = None  # its path there; None to take the one checkpoint that there is
    revision: str = "main"  # branch, tag or commit; a commit, once downloaded, never asks the network again
    repo_type: Literal["model", "dataset"] = "model"
    size: int | None = None  # bytes, approximately
    licence: str = "see the model card"
    about: str = ""


BUILT_IN, BUILT_IN_TAGGER = "beats-nano", "beats-nano-tagger"
BUILT_INS = {name: Path(__file__).parents[1] / "assets" / f"{name}.safetensors" for name in (BUILT_IN, BUILT_IN_TAGGER)}
BUILT_IN_NOTE = (
    f"Using the built-in model {BUILT_IN} (5 M parameters, free audio). For research name a larger one, such as "
    "beats-iter3-plus-as2m; `torchbeats models` lists them."
)
BUILT_IN_TAGGER_NOTE = (
    f"Using the built-in tagger {BUILT_IN_TAGGER}, which knows 17 coarse classes, from speech and drums to tone and "
    "silence. For the 527 classes of AudioSet name beats-iter3-plus-as2m-finetuned."
)

_BASE, _LARGE = 362_000_000, 1_250_000_000  # bytes of float32: 90.4 M and about 312 M parameters
_MICROSOFT = "lpepino/beats_ckpts", "5b53b0404df452a3a607d7e67687227730e5bad1"  # Microsoft's own links have died
_FINETUNED = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2"

MODELS: dict[str, Source] = {
    source.name: source
    for source in (
        Source("beats-iter3", _MICROSOFT[0], "BEATs_iter3.pt", _MICROSOFT[1], size=_BASE, licence="MIT",
               about="Microsoft's BEATs, third iteration, self-supervised on AudioSet-2M"),
        Source("beats-iter3-plus-as2m", _MICROSOFT[0], "BEATs_iter3_plus_AS2M.pt", _MICROSOFT[1], size=_BASE,
               licence="MIT", about="Microsoft's BEATs, third iteration, its tokenizer taught with AudioSet labels"),
        Source("beats-iter3-plus-as2m-finetuned", f"WeiChihChen/{_FINETUNED}", f"{_FINETUNED}.pt", size=363_145_291,
               licence="MIT", about="the same, fine-tuned to tag the 527 classes of AudioSet"),
        Source("beats-tokenizer-iter3", "Hoar012/lv_checkpoints", "audio_encoder/BEATs/Tokenizer_iter3.pt",
               licence="MIT", about="Microsoft's tokenizer of the third iteration: 1,024 acoustic labels"),
        *(
            Source(f"openbeats-{size.lower()}-i{i}", f"shikhar7ssu/OpenBEATs-{size}-i{i}",
                   size=_BASE if size == "Base" else _LARGE, about=f"OpenBEATs, iteration {i}: music and animals too")
            for size in ("Base", "Large")
            for i in (1, 2, 3)
        ),
        Source("openbeats-large-i2-as20k", "espnet/OpenBEATS-Large-i2-as20k", size=_LARGE,
               about="openbeats-large-i2, fine-tuned on AudioSet-20K to tag the 527 classes of AudioSet"),
        *(
            Source(f"beats-base-as2m-iter{i}", f"jaeyeonkim99/BEATs-base-AS2M-iter{i}", size=_BASE,
                   about=f"ESPnet's open reproduction of BEATs on AudioSet-2M, iteration {i} counted from 0")
            for i in (0, 1)
        ),
        Source("beats-tokenizer-as2m-iter1", "jaeyeonkim99/BEATs-tokenizer-AS2M-iter1", about="the tokenizer between"),
        Source("aves2-sl-beats-all", "EarthSpeciesProject/esp-aves2-sl-beats-all", "esp-aves2-sl-beats-all.safetensors",
               licence="CC BY-NC-SA", about="AVES 2: BEATs trained on animal sounds and AudioSet, with species labels"),
        Source("aves2-naturelm-beats", "EarthSpeciesProject/esp-aves2-naturelm-audio-v1-beats",
               "esp-aves2-naturelm-audio-v1-beats.safetensors", size=_BASE, licence="CC BY-NC-SA",
               about="AVES 2: the BEATs encoder of NatureLM-audio, for animal sounds"),
    )
}  # fmt: skip


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file that a name stands for; download it, and what it needs beside it, where it is not here yet.

    Args:
        name_or_path: a checkpoint's path, a folder with just one checkpoint in it, a name in `MODELS` or `BUILT_INS`,
            or ``[datasets/]owner/repo[/path/in/repo][@revision]``. What exists on this machine wins.

    Raises:
        FileNotFoundError: it reads as a path, and nothing is there.
        HubError: the name is unknown, or its file cannot be had.
    """
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        return path / _only_checkpoint(names, f"the folder {text}", prefix=f"{text.rstrip(os.sep)}/")
    if path.exists():
        return path
    if text in BUILT_INS:
        return BUILT_INS[text]
    if isinstance(name_or_path, str) and (source := MODELS.get(text) or _parse(text)):
        return _fetch(source)
    if not isinstance(name_or_path, str) or path.suffix in PATHS or path.name != text:
        published = [s.name for s in MODELS.values() if s.file and PurePosixPath(s.file).name == path.name]
        hint = f" The name {published[0]} downloads the published file." if published else ""
        raise FileNotFoundError(f"There is no checkpoint at {text} (that is {path.absolute()}).{hint}")
    close = difflib.get_close_matches(text.lower(), [*BUILT_INS, *MODELS], n=3)
    raise HubError(
        f"There is no model named {text!r}.{' Did you mean ' + ' or '.join(close) + '?' if close else ''} `torchbeats "
        "models` lists the names; a path to a checkpoint, or owner/repo on the Hugging Face Hub, does as well."
    )


def is_cached(source: Source) -> bool:
    """Whether a model is on this machine already; never asks the network."""
    return _cached(source) is not None


def _parse(text: str) -> Source | None:
    """Read ``[datasets/]owner/repo[/path/in/repo][@revision]``; None where it reads as a path."""
    match = _HUB_NAME.fullmatch(text)
    if match is None or (not match["file"] and match["repo"].endswith(PATHS)) or Path(match["repo"]).is_dir():
        return None
    repo, file, revision = match["repo"], match["file"], match["revision"] or "main"
    if not is_inside(file or "the one") or not is_inside(revision):
        return None
    return Source(text, repo, file, revision, "dataset" if match["dataset"] else "model")


def _fetch(source: Source) -> Path:
    if source.file and _COMMIT.fullmatch(source.revision) and (path := _cached(source)):
        return path  # a commit does not change: no need to ask

    from huggingface_hub import HfApi, errors

    info = HfApi().dataset_info if source.repo_type == "dataset" else HfApi().model_info
    try:
        with guarded():
            listing = within_time(lambda: info(source.repo, revision=source.revision, timeout=10))
        files = [sibling.rfilename for sibling in listing.siblings or () if is_inside(sibling.rfilename)]
        commit = listing.sha if is_plain(listing.sha) else None
    except HostileAnswer as error:
        raise _explain(error, source) from error
    except Exception as error:  # the client has had three HTTP libraries, each with exceptions of its own
        if path := _cached(source):
            return path
        final = isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError)
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if final or not source.file or not 400 <= status < 500:
            raise _explain(error, source) from error
        files, commit = [], None  # perhaps a mirror that has files but cannot list them

    file = source.file or _only_checkpoint(files, _name(source), prefix=f"{_name(replace(source, revision='main'))}/")
    if files and file not in files:
        raise HubError(f"There is no file {file} in {_name(replace(source, file=None))}. It has: {', '.join(files)}.")
    # The weights come last, so that where they are, what they need is there as well.
    for name in _sidecars(file, files):
        _get(replace(source, file=name), name, commit)
    return _get(replace(source, file=file), file, commit)


def _get(source: Source, file: str, commit: str | None) -> Path:
    if commit and (path := _cached(replace(source, revision=commit))):
        return path

    from huggingface_hub import hf_hub_download

    try:
        # By the revision's name, not its commit: so the cache learns what the name stands for when we are offline.
        with guarded(sidecar=PurePosixPath(file).name in SIDECARS):
            path = Path(
                within_time(
                    lambda: hf_hub_download(source.repo, file, repo_type=source.repo_type, revision=source.revision)
                )
            )
    except Exception as error:  # as above, and those of its Rust client
        raise _explain(error, source) from error
    # The cache names a large file by the SHA-256 that the Hub promised, but over plain HTTP nobody compares.
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if _SHA256.fullmatch(blob.name) and (digest := sha256(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise HubError(
            f"{_name(source)} arrived damaged and has been deleted: its SHA-256 is {digest}, not {blob.name}. Run the "
            f"command again. {_download_hint(source)}"
        )
    return path


def _cached(source: Source) -> Path | None:
    """The file in the client's cache, which keeps ``refs/<revision>`` (a commit) and ``snapshots/<commit>/``."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"{source.repo_type}s--{source.repo.replace('/', '--')}")
    ref = folder / "refs" / source.revision
    snapshot = folder / "snapshots" / (ref.read_text() if ref.is_file() else source.revision)
    names = (entry.relative_to(snapshot).as_posix() for entry in snapshot.rglob("*") if entry.is_file())
    checkpoints = [source.file] if source.file else _checkpoints(names)
    return snapshot / checkpoints[0] if len(checkpoints) == 1 and (snapshot / checkpoints[0]).is_file() else None


def _checkpoints(names: Iterable[str]) -> list[str]:
    """The checkpoints among file names: only the safetensors where there are any, and trainers' files only alone."""
    existing = sorted(name for name in names if name.endswith(READ_SUFFIXES))
    for kind in (SUFFIXES[:1], SUFFIXES):
        if of_kind := [name for name in existing if name.endswith(kind)]:
            return of_kind
    return existing


def _only_checkpoint(names: Iterable[str], place: str, prefix: str) -> str:
    names = list(names)
    checkpoints = _checkpoints(names)
    if len(checkpoints) == 1:
        return checkpoints[0]
    if any(name.endswith(".safetensors.index.json") for name in names):
        raise HubError(
            f"The weights in {place} are one model in {len(checkpoints)} files, and torchbeats reads one. Write them "
            "with save_pretrained and a larger max_shard_size."
        )
    if not checkpoints:
        raise HubError(f"There is no checkpoint ({', '.join(SUFFIXES)}) in {place}.")
    raise HubError(
        f"There are {len(checkpoints)} checkpoints in {place}. Name one: {', '.join(prefix + n for n in checkpoints)}."
    )


def _sidecars(file: str, files: list[str]) -> list[str]:
    """Those of `SIDECARS` that a repository has, each from the checkpoint's own folder or else from the top."""
    candidates = ((PurePosixPath(file).with_name(name).as_posix(), name) for name in SIDECARS)
    return [next(path for path in paths if path in files) for paths in candidates if not set(paths).isdisjoint(files)]


def _name(source: Source) -> str:
    """How people would type it."""
    repo = "datasets/" * (source.repo_type == "dataset") + source.repo
    return repo + (f"/{source.file}" if source.file else "") + f"@{source.revision}" * (source.revision != "main")


def _page(source: Source) -> str:
    return f"https://huggingface.co/{_name(replace(source, file=None, revision='main'))}"  # HF_ENDPOINT may be down


def _download_hint(source: Source) -> str:
    file = PurePosixPath(source.file or "the-checkpoint.pt").name
    link = f"{_page(source)}/{'resolve' if source.file else 'tree'}/{source.revision}/{source.file or ''}".rstrip("/")
    return (
        f"Or download {file} (and a config or label_map beside it, if any) by hand from {link}, save it anywhere, and "
        f"pass its path: `torchbeats … --model /path/to/{file}`."
    )


def _explain(error: Exception, source: Source) -> HubError:
    """Say in a sentence or two what went wrong between us and the Hub, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    login = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case errors.RepositoryNotFoundError() if not isinstance(error, errors.GatedRepoError):
            message = f"is neither on the Hub nor on this machine. Check the name; if it is private, {login}."
        case errors.RevisionNotFoundError():
            message = f"does not exist: the repository has no revision {source.revision}."
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            message = f"does not exist. {_page(source)}/tree/{source.revision} shows what does."
        case _ if status in (401, 403):  # GatedRepoError among them
            message = f"was refused by the Hub. If {_page(source)} asks you to accept a licence, do so; then {login}."
        case errors.OfflineModeIsEnabled():
            hint = _download_hint(source)
            message = f"is not on this machine, and HF_HUB_OFFLINE forbids to download it. Unset that. {hint}"
        case HostileAnswer():
            message = (
                f"was not downloaded: {error}. Whatever answers is no Hub to trust; see what HF_ENDPOINT is set to."
            )
        case json.JSONDecodeError() | TypeError() | KeyError() | AttributeError() | RecursionError():
            message = f"was not downloaded: {_NO_HUB}"
        case ValueError() if type(error) is ValueError:  # a date or a number; others have kinds
            message = f"was not downloaded: {_NO_HUB}"
        case OSError(errno=int()) if not isinstance(error, ConnectionError):
            message = f"could not be stored: {error}. Make room, or set HF_HOME to another folder."
        case _:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            hint = _download_hint(source)
            message = f"could not be downloaded: {reason}. Check the connection and run the command again. {hint}"
    return HubError(f"{_name(source)} {message}")
