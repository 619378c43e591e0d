"""WebDataset shards: the sounds in ``.tar`` files, by path or by URL, read where they lie."""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from torchbeats import remote
from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.data import urls
from torchbeats.decoders import opened
from torchbeats.errors import AudioError, InputError, MissingPackageError

MOST_BYTES = 2**28  # of a sound in a shard, which is read into memory
MOST_PADDING = 2**21  # bytes of nothing behind an archive; tar fills up blocks of 10 kB, or what it is told


class ShardSound(NamedTuple):
    """A sound that lies in a shard.

    Attributes:
        file: the shard, by path or URL.
        name: of the sound in it.
        offset: of its first byte.
        size: in bytes.
        version: of a shard at a URL; see `remote.Details`.
    """

    file: str
    name: str
    offset: int
    size: int
    version: str = ""

    @property
    def path(self) -> str:
        """What it is called."""
        return f"{self.file}#{self.name}"

    def open(self) -> BinaryIO:
        """The sound as an open file.

        Raises:
            AudioError: the shard cannot be read.
        """
        if self.size > MOST_BYTES:
            raise AudioError(self.path, f"a sound in a shard may have {MOST_BYTES >> 20} MB, this one is larger")
        try:
            if remote.is_url(self.file):
                data = remote.read(self.file, self.offset, self.offset + self.size)
            else:
                with opened(self.file) as file:
                    file.seek(self.offset)
                    data = file.read(self.size)
        except AudioError as error:
            raise AudioError(self.path, f"its shard cannot be read ({error.reason})") from error
        except (OSError, MissingPackageError) as error:
            raise AudioError(self.path, f"its shard cannot be read ({error})") from error
        if len(data) < self.size:
            raise AudioError(self.path, "its shard cannot be read (it breaks off within this sound)")
        content = io.BytesIO(data)
        content.name = self.path
        return content


class UnreadableShard(NamedTuple):
    """A shard, or the part of it behind a place, that cannot be read.

    Attributes:
        file: the shard, by path or URL.
        reason: why not, without the final full stop.
    """

    file: str
    reason: str

    def open(self) -> BinaryIO:
        """Raises an `AudioError` that says so."""
        raise AudioError(self.file, self.reason)


def is_shard(name: str) -> bool:
    """Whether an input is a shard, or a pattern of shards."""
    return urls.suffix_of(name) == ".tar"


def expand(pattern: str) -> Iterator[str]:
    """The shards that a pattern stands for, by path or by URL.

    Args:
        pattern: of ``*``, ``?``, ``[abc]``, ``{000..127}`` and ``{a,b}``; or the name of one shard.

    Raises:
        InputError: one of the alternatives names none, or the store cannot be asked.
        MissingPackageError: a package for that is not installed.
    """
    if os.path.exists(pattern):
        yield pattern
        return
    for one in urls.expand_braces(pattern):
        if remote.is_url(one):
            magic = urls.has_magic(one)
            names: Iterator[str] = (sound.url for sound in urls.matches(one)) if magic else iter([one])
        else:
            magic = glob.has_magic(one)
            names = iter(sorted(glob.glob(one, recursive=True)) if magic else [one])
        empty = True
        for name in names:
            empty = False
            yield name
        if empty:
            raise InputError(f"There are no shards {one}.")


def sounds_in(shard: str) -> Iterator[ShardSound]:
    """The sounds in a shard, in its order. Only the headers in the archive are looked at.

    Raises:
        AudioError: it cannot be read, breaks off or is damaged, behind the sounds that were given until then; or it
            holds no sounds.
        MissingPackageError: a package for its store is not installed.
    """
    version = remote.describe(shard).version if remote.is_url(shard) else ""
    count = 0
    with opened(shard) as file:
        try:
            for member in _members(shard, file):
                if os.path.splitext(member.name)[1].lower() in AUDIO_SUFFIXES:
                    count += 1
                    yield ShardSound(shard, member.name, member.offset_data, member.size, version)
        except (OSError, tarfile.TarError) as error:
            raise remote.failure_of(file) or AudioError(shard, f"it cannot be read ({error})") from error
    if not count:
        raise AudioError(shard, "it holds no sounds")


def _members(shard: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in an archive that are whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - holds nothing but the file
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # kept for names to be looked up
            if member.offset_data + member.size > size:
                raise AudioError(shard, f"it breaks off within {member.name}")
            if member.isfile():
                yield member
    except tarfile.ReadError as error:
        raise remote.failure_of(file) or AudioError(shard, f"it breaks off ({error})") from error
    if failure := remote.failure_of(file):
        raise failure
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a bad header for the end of the archive
        raise AudioError(shard, f"it breaks off or is damaged at byte {archive.offset}")
    for _ in range(MOST_PADDING // 2**16):
        if any(file.read(2**16)):  # a hole, or another archive joined to it
            raise AudioError(shard, f"it ends at byte {archive.offset}, and what lies behind is not read")
