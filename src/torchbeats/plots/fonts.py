"""Words in any script: which of this machine's fonts can write them."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from torchbeats.files import one_line

FAMILY = "DejaVu Sans"  # which comes with matplotlib
LONGEST_LABEL = 36  # characters


def writable(words: str, longest: int = LONGEST_LABEL) -> tuple[str, list[str]]:
    """Words on one line, and the fonts that have them; what no font has becomes a box."""
    words = one_line(words)
    if len(words) > longest:
        words = words[: longest - 1] + "…"
    families, fonts = [FAMILY], _fonts()
    missing = set(words) - _characters(fonts[FAMILY])
    for family, path in fonts.items() if missing else ():
        if covered := missing & _characters(path):
            families.append(family)
            missing -= covered
    return "".join("□" if c in missing else c for c in words), families


@cache
def _fonts() -> dict[str, str]:
    """Upright fonts of normal weight on this machine, family to file; not those with a sign for "no such letter"."""
    from matplotlib.font_manager import fontManager

    return {
        font.name: font.fname
        for font in sorted(fontManager.ttflist, key=lambda font: font.fname, reverse=True)
        if font.style == "normal"
        and font.weight in ("normal", "regular", 400)
        and "last resort" not in font.name.lower()
    }


@cache
def _characters(path: str) -> frozenset[str]:
    """What a font can write; nothing where it cannot be had."""
    from matplotlib.ft2font import FT2Font

    with suppress(OSError, RuntimeError, ValueError):
        font = FT2Font(path)
        if font.scalable:  # pictures of emoji are not
            return frozenset(map(chr, font.get_charmap()))
    return frozenset()
