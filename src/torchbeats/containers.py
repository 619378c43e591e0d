"""What the header of an uncompressed sound file declares, held against what is in the file.

WAV (RIFF, RIFX, RF64, BW64), Wave64, AIFF, AU and CAF files say how many bytes of sound they hold. Recorders that write
more than 4 GB store that number modulo 2^32, writers into a pipe cannot know it, and a file that was cut off has less
than it says. Here the place of the sound in the file is worked out; nothing of it is read.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

# Writers into a pipe cannot know the size: they leave 0 or the largest they dare (FFmpeg 2^32 - 1, SoX 2^31 - 4096,
# arecord 2^31, …). Such a header declares nothing.
_UNKNOWN_SIZES = (range(2**31 - 2**16, 2**31 + 2**16), range(2**32 - 2**16, 2**32), range(2**63 - 2**16, 2**64))

_WALK_CHUNKS = 10_000  # the most chunks that are looked at; real files have a few dozen
_NAME = re.compile(rb"[ -~]{4}")  # a chunk's name is printable
_KNOWN_CHUNKS = frozenset(
    b"fmt |data|LIST|list|fact|bext|cue |smpl|inst|iXML|axml|JUNK|junk|FLLR|PAD |PEAK|ds64|id3 |ID3 |_PMX|adtl|acid|"
    b"chna|umid|cart|DISP|plst|note|labl|levl|minf|elm1|regn|afsp|SSND|COMM|MARK|INST|COMT|NAME|AUTH|(c) |ANNO|APPL|"
    b"FVER|MIDI|AESD|guan|wamd|SMV0".split(b"|")
)
# What players and sellers put behind a file of any kind: no chunk, but no sound either.
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_PADDING = 2**16  # bytes; so many zeros may fill up the last block of a disk

# Encodings in the terms of libsndfile, by what the formats call them.
_WAV_CODES = {3: {4: "FLOAT", 8: "DOUBLE"}, 6: {1: "ALAW"}, 7: {1: "ULAW"}}
_PCM = {1: "PCM_S8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}
_WAV_PCM = {**_PCM, 1: "PCM_U8"}
_AU_CODES = {
    1: ("ULAW", 1), 2: ("PCM_S8", 1), 3: ("PCM_16", 2), 4: ("PCM_24", 3), 5: ("PCM_32", 4), 6: ("FLOAT", 4),
    7: ("DOUBLE", 8), 27: ("ALAW", 1),
}  # fmt: skip
_AIFF_CODES = {
    b"fl32": "FLOAT", b"FL32": "FLOAT", b"fl64": "DOUBLE", b"FL64": "DOUBLE", b"alaw": "ALAW", b"ALAW": "ALAW",
    b"ulaw": "ULAW", b"ULAW": "ULAW",
}  # fmt: skip


class Encoding(NamedTuple):
    """How samples are stored.

    Attributes:
        rate: frames a second.
        channels: samples in a frame.
        frame_bytes: size of a frame; 0 where the sound is compressed.
        subtype: libsndfile's name; None where the sound is compressed.
        little_endian: order of the bytes.
    """

    rate: float
    channels: int
    frame_bytes: int = 0
    subtype: str | None = None
    little_endian: bool = True


@dataclass(frozen=True)
class SoundChunk:
    """Where in a file its sound is.

    Attributes:
        encoding: of the samples.
        start: of the first frame, in bytes from the beginning of the file.
        end: behind the last byte of sound that is in the file.
        declared: bytes of sound by the header; None where it declares nothing.
        regular: any reader of the format comes to the same ``start`` and ``end``.
    """

    encoding: Encoding
    start: int
    end: int
    declared: int | None
    regular: bool

    @property
    def frames(self) -> int | None:
        """Whole frames in the file; None for compressed sound."""
        return (self.end - self.start) // self.encoding.frame_bytes if self.encoding.subtype else None

    @property
    def fault(self) -> str | None:
        """In which way the header is wrong about the size; None where it is right."""
        present = self.end - self.start
        if self.declared is None or self.declared == present:
            return None
        if present < self.declared:
            return f"the file breaks off: its header declares {self.declared} bytes, {present} are there"
        return f"its header declares {self.declared} bytes of sound, but {present} are there"


class Content:
    """An open file, any place of which can be looked at; its beginning is read only once.

    Args:
        file: open for reading, on a disk or not; its position is changed.

    Attributes:
        size: in bytes.
        head: the first bytes, as many as fit into a page of a disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.head = file.read(2**9)

    def at(self, position: int, count: int) -> bytes:
        """The bytes at a place; fewer than ``count`` where the file ends before."""
        position = max(0, position)
        if position + count <= len(self.head):
            return self.head[position : position + count]
        self._file.seek(position)
        return self._file.read(count)


def sound_chunk(content: Content) -> SoundChunk | None:
    """Finds the sound in an uncompressed sound file, before which there may be ID3 tags.

    Returns:
        None where the file is of another kind, or its header cannot be understood.
    """
    offset = 0
    while length := _tag_length(content.at(offset, 10)):
        offset += length
    read = _FORMATS.get(content.at(offset, 4))
    try:
        return read(content, offset) if read else None
    except (struct.error, ValueError, ZeroDivisionError, OverflowError):
        return None


def break_off(content: Content) -> str | None:
    """Why a video or a compressed sound file is known to be incomplete by its structure; None where it is not.

    AVI and Matroska files declare their size. An FLV file ends with the size of its last tag, and often declares its
    own.
    """
    head = content.head
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _break_off_avi(content)
    if head.startswith(b"FLV\x01"):
        return _break_off_flv(content)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _break_off_matroska(content)
    return None


def _tag_length(head: bytes) -> int:
    """Bytes of an ID3v2 tag (its section 3.1) at the beginning of a file; 0 where there is none."""
    if len(head) < 10 or not head.startswith(b"ID3") or head[3] == 0xFF or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


# --- chunks -----------------------------------------------------------------------------------------------------------


class _Rules(NamedTuple):
    """How a format writes its chunks."""

    head: struct.Struct  # name, size
    aligned: int  # chunks begin at multiples of it
    header_bytes: int = 0  # bytes of the head that count as part of the size
    last_may_be_endless: bool = False


_RIFF = _Rules(struct.Struct("<4sI"), 2)
_RIFX = _Rules(struct.Struct(">4sI"), 2)
_W64 = _Rules(struct.Struct("<16sQ"), 8, header_bytes=24)
_CAF = _Rules(struct.Struct(">4sQ"), 1)


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of its content
    size: int


def _chunk(content: Content, rules: _Rules, position: int) -> _Chunk | None:
    head = content.at(position, rules.head.size)
    if len(head) < rules.head.size:
        return None
    name, size = rules.head.unpack(head)
    return _Chunk(name[:4], position + len(head), size - rules.header_bytes)


def _position_after(content: Content, rules: _Rules, chunk: _Chunk, offset: int) -> int:
    """Where the chunk behind another begins. Some writers forget the byte that fills up an odd one."""
    end = chunk.start + chunk.size
    if rules.aligned == 2 and (end - offset) % 2 and content.at(end, 4) in _KNOWN_CHUNKS:
        return end
    return end + (offset - end) % rules.aligned


def _chunks_until(
    content: Content, rules: _Rules, position: int, offset: int, last: bytes
) -> tuple[dict[bytes, _Chunk], bool]:
    """The chunks up to and with one of a name; and whether every odd one is filled up."""
    chunks: dict[bytes, _Chunk] = {}
    padded = True
    for _ in range(_WALK_CHUNKS):
        chunk = _chunk(content, rules, position)
        if chunk is None or (chunk.size < 0):
            break
        chunks.setdefault(chunk.name, chunk)
        if chunk.name == last:
            break
        position = _position_after(content, rules, chunk, offset)
        padded = padded and not (position - offset) % rules.aligned
        if position > content.size:
            break
    return chunks, padded


def _only_chunks(content: Content, rules: _Rules, position: int, offset: int) -> bool:
    """Whether what lies from a position to the end of the file is chunks, tags or padding, and so no sound."""
    for _ in range(_WALK_CHUNKS):
        remaining = content.size - position
        if remaining < rules.head.size:
            return True
        begin = content.at(position, 16)
        if begin.startswith(_TAGS):
            return True
        if not any(begin) and remaining <= _PADDING:
            return not any(content.at(position, remaining))
        chunk = _chunk(content, rules, position)
        if chunk is None or not _NAME.fullmatch(chunk.name) or chunk.size < 0:
            return False
        if chunk.start + chunk.size > content.size:  # cut off within it
            return chunk.name in _KNOWN_CHUNKS
        position = _position_after(content, rules, chunk, offset)
    return False


def _located(
    content: Content,
    rules: _Rules | None,
    encoding: Encoding,
    start: int,
    declared: int | None,
    offset: int,
    regular: bool = True,
) -> SoundChunk:
    """Decides where the sound ends that a header declares to have a number of bytes.

    Args:
        content: of the file.
        rules: of the chunks that may follow; None for a format where nothing may.
        encoding: of the samples.
        start: of the sound.
        declared: its bytes; None for all up to the end of the file.
        offset: of the format's own beginning in the file.
        regular: nothing before the sound is unusual.
    """
    size = content.size
    regular = regular and not offset
    present = max(0, size - start)
    if declared is not None and declared > present and any(declared in sizes for sizes in _UNKNOWN_SIZES):
        declared = None
    if declared is None or declared >= present:
        return SoundChunk(encoding, start, max(start, size), declared, regular)

    def ends_at(length: int) -> bool:
        if rules is None:
            return length == present
        following = _position_after(content, rules, _Chunk(b"", start, length), offset)
        return _only_chunks(content, rules, following, offset)

    if ends_at(declared):
        return SoundChunk(encoding, start, start + declared, declared, regular)
    if not declared:  # a writer that never came back to fill in the size
        return SoundChunk(encoding, start, size, None, False)
    if rules is not None and rules.head.size == 8:  # its sizes have 32 bits
        for length in range(declared + 2**32, present, 2**32):
            if ends_at(length):
                return SoundChunk(encoding, start, start + length, declared, False)
    return SoundChunk(encoding, start, size, declared, False)


# --- the formats ------------------------------------------------------------------------------------------------------


def _wav(content: Content, offset: int) -> SoundChunk | None:
    head = content.at(offset, 12)
    if head[8:] != b"WAVE":
        return None
    rules = _RIFX if head.startswith(b"RIFX") else _RIFF
    chunks, padded = _chunks_until(content, rules, offset + 12, offset, b"data")
    if b"data" not in chunks or b"fmt " not in chunks:
        return None
    data, declared = chunks[b"data"], chunks[b"data"].size
    if declared == 2**32 - 1 and b"ds64" in chunks:
        (declared,) = struct.unpack("<Q", content.at(chunks[b"ds64"].start + 8, 8))
    encoding = _wav_encoding(_inside(content, chunks[b"fmt "]), rules is _RIFF)
    # libsndfile does not know BW64 (ITU-R BS.2088), which is RF64 with more chunks
    regular = padded and not head.startswith(b"BW64")
    return _located(content, rules, encoding, data.start, declared, offset, regular)


def _wav_encoding(header: bytes, little_endian: bool) -> Encoding:
    order = "<" if little_endian else ">"
    code, channels, rate, _, block, _ = struct.unpack(order + "HHIIHH", header[:16])
    if code == 0xFFFE and len(header) >= 26:  # WAVE_FORMAT_EXTENSIBLE: its subformat begins with the code
        (code,) = struct.unpack(order + "H", header[24:26])
    bytes_each = block // channels
    kinds = _WAV_PCM if code == 1 else _WAV_CODES.get(code, {})
    subtype = kinds.get(bytes_each) if block == bytes_each * channels else None
    return Encoding(rate, channels, block if subtype else 0, subtype, little_endian)


def _wave64(content: Content, offset: int) -> SoundChunk | None:
    if content.at(offset + 24, 4) != b"wave":
        return None
    chunks, padded = _chunks_until(content, _W64, offset + 40, offset, b"data")
    if b"data" not in chunks or b"fmt " not in chunks:
        return None
    data = chunks[b"data"]
    encoding = _wav_encoding(_inside(content, chunks[b"fmt "]), True)
    return _located(content, _W64, encoding, data.start, data.size, offset, padded)


def _aiff(content: Content, offset: int) -> SoundChunk | None:
    form = content.at(offset + 8, 4)
    if form not in (b"AIFF", b"AIFC"):
        return None
    chunks, padded = _chunks_until(content, _RIFX, offset + 12, offset, b"SSND")
    if b"SSND" not in chunks:
        return None
    data = chunks[b"SSND"]
    if b"COMM" not in chunks:  # it may come behind the sound
        following = _position_after(content, _RIFX, data, offset)
        chunks |= _chunks_until(content, _RIFX, following, offset, b"COMM")[0]
    common = _inside(content, chunks[b"COMM"]) if b"COMM" in chunks else b""
    channels, _, bits, exponent, mantissa = struct.unpack(">hIhHQ", common[:18])
    rate = mantissa * 2.0 ** (exponent - 16383 - 63) if exponent < 0x4400 else float("inf")
    kind = common[18:22] if form == b"AIFC" else b"NONE"
    bytes_each = (bits + 7) // 8
    subtype = _PCM.get(bytes_each) if kind in (b"NONE", b"twos", b"sowt") else _AIFF_CODES.get(kind)
    if kind.lower() in (b"alaw", b"ulaw"):
        bytes_each = 1
    elif subtype in ("FLOAT", "DOUBLE"):
        bytes_each = 4 if subtype == "FLOAT" else 8
    encoding = Encoding(rate, channels, bytes_each * channels if subtype else 0, subtype, kind == b"sowt")
    (skipped,) = struct.unpack(">I", content.at(data.start, 4))
    start, declared = data.start + 8 + skipped, max(0, data.size - 8 - skipped)
    return _located(content, _RIFX, encoding, start, declared, offset, padded)


def _au(content: Content, offset: int) -> SoundChunk | None:
    little_endian = content.at(offset, 4) == b"dns."  # DEC's, for its own order of bytes
    start, declared, code, rate, channels = struct.unpack(
        ("<" if little_endian else ">") + "IIIII", content.at(offset + 4, 20)
    )
    subtype, bytes_each = _AU_CODES.get(code, (None, 0))
    encoding = Encoding(rate, channels, bytes_each * channels, subtype, little_endian)
    return _located(content, None, encoding, offset + start, declared, offset)


def _caf(content: Content, offset: int) -> SoundChunk | None:
    chunks, _ = _chunks_until(content, _CAF, offset + 8, offset, b"data")
    if b"data" not in chunks or b"desc" not in chunks:
        return None
    data = chunks[b"data"]
    rate, kind, flags, packet, _, channels, bits = struct.unpack(">d4sIIIII", _inside(content, chunks[b"desc"])[:32])
    bytes_each = packet // channels
    if kind == b"lpcm":
        subtype = ({4: "FLOAT", 8: "DOUBLE"} if flags & 1 else _PCM).get(bytes_each)
    else:
        subtype = {b"alaw": "ALAW", b"ulaw": "ULAW"}.get(kind)
    if bytes_each * channels != packet or bits > 8 * bytes_each:
        subtype = None
    encoding = Encoding(rate, channels, packet if subtype else 0, subtype, bool(flags & 2))
    endless = data.size == 2**64 - 1  # -1: up to the end of the file
    declared = None if endless else max(0, data.size - 4)
    return _located(content, _CAF, encoding, data.start + 4, declared, offset)  # behind the number of edits


def _inside(content: Content, chunk: _Chunk) -> bytes:
    return content.at(chunk.start, min(chunk.size, 256))


_FORMATS: dict[bytes, Callable[[Content, int], SoundChunk | None]] = {
    b"RIFF": _wav,
    b"RIFX": _wav,
    b"RF64": _wav,
    b"BW64": _wav,
    b"riff": _wave64,
    b"FORM": _aiff,
    b".snd": _au,
    b"dns.": _au,
    b"caff": _caf,
}


# --- formats that FFmpeg reads ----------------------------------------------------------------------------------------


def _break_off_avi(content: Content) -> str | None:
    """A long AVI is several RIFF lists in a row (OpenDML)."""
    position, size = 0, content.size
    for _ in range(_WALK_CHUNKS):
        chunk = _chunk(content, _RIFF, position)
        if chunk is None or chunk.name != b"RIFF" or not chunk.size:
            return None
        end = chunk.start + chunk.size
        if end > size and not any(chunk.size in sizes for sizes in _UNKNOWN_SIZES):
            return f"the file breaks off: its header declares {end} bytes, {size} are there"
        position = end + end % 2
    return None


def _break_off_flv(content: Content) -> str | None:
    """Every tag of an FLV is followed by its own size (Adobe's FLV specification, annex E.3)."""
    size = content.size
    if declared := re.search(rb"\0\x08filesize\0(.{8})", content.at(0, 2**13), re.DOTALL):
        (length,) = struct.unpack(">d", declared[1])
        if size < length < 2**63:
            return f"the file breaks off: its header declares {int(length)} bytes, {size} are there"
    last = int.from_bytes(content.at(size - 4, 4), "big")
    tag = content.at(size - 4 - last, 11)
    if len(tag) == 11 and tag[0] & 0x1F in (8, 9, 18) and int.from_bytes(tag[1:4], "big") == last - 11:
        return None
    position = 9 + 4  # some writers leave out the last size, which only going from tag to tag can tell
    while len(tag := content.at(position, 4)) == 4:
        end = position + 11 + int.from_bytes(tag[1:4], "big")
        if end == size:
            return None
        position = end + 4
    return "the file breaks off within an FLV tag"


def _break_off_matroska(content: Content) -> str | None:
    """A Matroska file is an EBML header and a segment (RFC 9559); both say how long they are, unless they are live."""
    position, size = 0, content.size
    for signature in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):
        head = content.at(position, 12)
        width = 9 - head[4].bit_length() if len(head) == 12 and head[4] else 0
        if not head.startswith(signature) or not width:
            return None
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown
            return None
        position += 4 + width + value
    return f"the file breaks off: its header declares {position} bytes, {size} are there" if position > size else None
