"""The manifest of recipes/nano → lists for the built-in tagger: what it learns, and what it is asked about.

    python recipes/nano/tagger_lists.py --audio build/nano/audio --out build/nano

OUT/tagger.csv has the split train, and the split test: the groups (speakers, source files) that the manifest holds out,
and of rendered instruments a seventh of the notes, chords and scales of each program. OUT/tagger-unheard.csv has the
instruments' programs that the manifest holds out: what the tagger makes of an instrument that it never heard.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections import Counter
from pathlib import Path

from torchbeats.files import replacing

# What the manifest calls it → the tagger's class. "world" instruments have nothing in common.
CLASSES = {
    "ambience": "noise",
    "bass": "bass",
    "brass": "brass",
    "choir": "choir",
    "chromatic_percussion": "mallets",
    "drums": "drums",
    "effects": "effect",
    "electronic": "synthesiser",
    "guitar": "guitar",
    "music": "music",
    "noise": "noise",
    "organ": "organ",
    "piano": "piano",
    "silence": "silence",
    "speech": "speech",
    "strings": "strings",
    "tones": "tone",
    "woodwind": "woodwind",
}
HELD_OUT = 7  # of so many clips of a program, one


def main() -> None:
    """Writes the lists, and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="what fetch.py made")
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder of the lists (%(default)s)")
    options = parser.parse_args()
    lists: dict[str, list[tuple[str, str, str]]] = {"tagger.csv": [], "tagger-unheard.csv": []}
    with (options.audio / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["label"] not in CLASSES:
                continue
            rendered, held_out = row["corpus"] == "instruments", row["split"] == "heldout"
            name = "tagger-unheard.csv" if rendered and held_out else "tagger.csv"
            if rendered and not held_out:
                held_out = zlib.crc32(row["path"].encode()) % HELD_OUT == 0
            path = str((options.audio / row["path"]).resolve())
            lists[name].append((path, CLASSES[row["label"]], "test" if held_out else "train"))
    for name, rows in lists.items():
        with replacing(options.out / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        counts = Counter((split, label) for _, label, split in rows)
        print(options.out / name)
        for (split, label), count in sorted(counts.items()):
            print(f"  {split:6}{label:14}{count:7,}")


if __name__ == "__main__":
    main()
