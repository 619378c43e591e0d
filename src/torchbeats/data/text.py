"""The bytes of a text file → text, whatever program wrote it."""

from __future__ import annotations

import codecs
import re

_MARKS = (  # of UTF-32 before UTF-16: the one begins like the other
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def decode(data: bytes) -> tuple[str, str]:
    """Text, and the name of its encoding: Unicode with or without a byte order mark, else Windows-1252 or Latin-1.

    Raises:
        ValueError: it is not text; the message says where.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _unmarked_utf16(data)
    if encoding:
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError as error:
            raise ValueError(f"it begins as {encoding.upper()}, but is not ({error.reason}).") from error
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if control := _CONTROL.search(data):
            line = data.count(b"\n", 0, control.start()) + 1
            raise ValueError(f"line {line} is not text (byte 0x{control[0][0]:02x}).") from error
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def _unmarked_utf16(data: bytes) -> str | None:
    """UTF-16 without its mark: every other byte of what is mostly ASCII is zero."""
    head = data[:1000]
    half = len(head) // 2
    if half < 2 or len(data) % 2:
        return None
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[first::2].count(0) > 0.7 * half and not head[1 - first :: 2].count(0):
            return encoding
    return None
