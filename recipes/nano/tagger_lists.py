"""The manifest of recipes/nano → lists for the built-in tagger: what it learns, and what it is asked about.

    python recipes/nano/tagger_lists.py --audio build/nano/audio --out build/nano

OUT/tagger.csv has three splits. test: the groups (speakers, source files) that the manifest holds out, and of rendered
instruments a seventh of the notes, chords and scales of each program. validation: an eighth of the other groups, and
another seventh of the notes; its temperature and its threshold come from there. train: the rest. Of a class no more
than `MOST` sounds are taken, evenly from its groups.

What is asked besides, and of which nothing is in tagger.csv: OUT/tagger-unheard.csv, programs that the manifest holds
out; OUT/tagger-sources.csv, sounds of known classes from collections that are held out whole, so by other recorders;
OUT/tagger-strange.csv, sounds of no class, from those collections and from groups that are held out.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from everyday import KINDS, OTHER, UNLABELLED, kind
from fetch import SOURCES

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
    **{name: name for name in (*KINDS, OTHER)},
}
# Programs of General MIDI's last family are no instruments.
PROGRAMS = {"program-122": "water", "program-123": "bird", "program-124": "bell", "program-125": "engine"}
HELD_OUT = 7  # of so many clips of a program, one for the test and one for the validation
VALIDATION = 8  # of so many groups, one
MOST = {"train": 400, "validation": 60, "test": 120}  # sounds of a class
ASKED = 250  # of a class, in the other lists
COLUMNS = ("path", "label", "split", "group")


class Row(NamedTuple):
    """A line of a list."""

    path: str
    label: str
    split: str
    group: str


def label_of(row: dict[str, str]) -> str:
    """The tagger's class of a file; `UNLABELLED` where it has none."""
    name, corpus = row["path"], row["corpus"]
    if corpus == "instruments" and row["label"] == "effects":
        return PROGRAMS.get(row["group"], OTHER)
    if corpus == "hedgewars" and "/voices/" in name and "laugh" in Path(name).stem.lower():
        return "laughter"
    if row["label"] == "effects":  # of games and desktops: named by hand, like everyday sounds
        found = kind(name, "effect")
        return "effect" if found == OTHER else found
    return CLASSES.get(row["label"], UNLABELLED)


def split_of(row: dict[str, str], label: str) -> str:
    """Where a file of a class goes, apart from what is held out in lists of its own."""
    if row["corpus"] == "instruments":
        draw = zlib.crc32(row["path"].encode()) % HELD_OUT
        return ("test", "validation")[draw] if draw < 2 else "train"
    if row["split"] == "heldout":
        return "test"
    draw = zlib.crc32(f"validation {row['corpus']} {row['group']}".encode()) % VALIDATION
    if draw == 1 and label in KINDS:  # of these there are few; a tenth would be too few to ask about
        return "test"
    return "validation" if draw == 0 else "train"


def spread(rows: Iterable[Row], most: int) -> list[Row]:
    """At most so many rows of each class, as even over its groups as they allow."""
    chosen: list[Row] = []
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row.label].append(row)
    for here in by_class.values():
        turn: Counter[str] = Counter()
        order = []
        for row in sorted(here, key=lambda row: zlib.crc32(row.path.encode())):
            order.append((turn[row.group], zlib.crc32(row.group.encode()), row))
            turn[row.group] += 1
        chosen += [row for _, _, row in sorted(order)[:most]]
    return chosen


def main() -> None:
    """Writes the lists, and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="what fetch.py made")
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder of the lists (%(default)s)")
    options = parser.parse_args()
    lists: dict[str, list[Row]] = defaultdict(list)
    with (options.audio / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            label = label_of(row)
            split = split_of(row, label)
            if label == UNLABELLED:
                continue
            name = "tagger.csv"
            if row["corpus"] == "instruments" and row["split"] == "heldout":
                name, split = "tagger-unheard.csv", "test"
            elif label == OTHER and (row["corpus"] in SOURCES or split == "test"):
                name, split = "tagger-strange.csv", "test"
            elif row["corpus"] in SOURCES:
                name = "tagger-sources.csv"
            path = str((options.audio / row["path"]).resolve())
            lists[name].append(Row(path, label, split, f"{row['corpus']} {row['group']}"))
    for name, rows in sorted(lists.items()):
        most = MOST if name == "tagger.csv" else {"test": ASKED}
        rows = [row for split, count in most.items() for row in spread((r for r in rows if r.split == split), count)]
        with replacing(options.out / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        counts = Counter((row.split, row.label) for row in rows)
        print(options.out / name)
        for (split, label), count in sorted(counts.items()):
            print(f"  {split:11}{label:14}{count:7,}")


if __name__ == "__main__":
    main()
