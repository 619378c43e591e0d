"""AudioSet's segment lists and a folder of downloaded clips → a list for `torchbeats finetune` and `evaluate`.

    python recipes/audioset/prepare.py --audio CLIPS --train balanced_train_segments.csv --test eval_segments.csv \
        --out build/audioset/as20k.parquet

A clip's file is found by the video's id: ID.wav, YID.flac, ID_30.000.m4a, ID_30000_40000.opus and so on, in any folder
below CLIPS. Segments without a file are counted: videos vanish. Labels are AudioSet's ids, /m/09x0r and the like. Lists
of strong labels, .tsv, do too: a clip gets the labels of all its events.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from torchbeats.data.inputs import find_audio
from torchbeats.files import replacing

_ID = re.compile(r"Y?(?P<id>[\w-]{11})(?=[._]|$)")  # a name that begins with Y and has twelve letters has a Y in front


def files_by_id(folder: Path) -> dict[str, str]:
    """Paths of the clips, by the id of the video."""
    found: dict[str, str] = {}
    for path in find_audio([folder]):
        if match := _ID.match(Path(path).name):
            found.setdefault(match["id"], path)
    return found


def segments(file: Path) -> dict[str, list[str]]:
    """Labels by the id of the video, of which a list has one segment each; a .tsv has a row for each event in it."""
    if not file.exists():
        raise SystemExit(f"There is no {file}. The lists are at https://research.google.com/audioset/download.html.")
    found: dict[str, list[str]] = {}
    with file.open(newline="", encoding="utf-8") as stream:
        if file.suffix == ".tsv":
            for row in csv.DictReader(stream, delimiter="\t"):  # segment_id is the video's id, _ and milliseconds
                labels = found.setdefault(row["segment_id"].rpartition("_")[0], [])
                labels += [row["label"]] if row["label"] not in labels else []
            return found
        rows = csv.reader((line for line in stream if not line.startswith("#")), skipinitialspace=True)
        return {row[0]: row[3].split(",") for row in rows if len(row) == 4}


def main() -> None:
    """Writes the list, and says what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="the clips")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="segment lists to train on")
    parser.add_argument("--test", type=Path, help="the segment list to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="the list, .parquet")
    options = parser.parse_args()
    files = files_by_id(options.audio)
    columns: dict[str, list[object]] = {"path": [], "labels": [], "split": []}
    for split, lists in (("train", options.train), ("test", [options.test] if options.test else [])):
        for file in lists:
            wanted = segments(file)
            there = [(files[video], labels) for video, labels in wanted.items() if video in files]
            columns["path"] += [path for path, _ in there]
            columns["labels"] += [labels for _, labels in there]
            columns["split"] += [split] * len(there)
            print(f"{file}: {len(there):,} of {len(wanted):,} segments are there.")
    if not columns["path"]:
        raise SystemExit(f"No file in {options.audio} is called after a segment of these lists.")
    with replacing(options.out) as temporary:
        pq.write_table(pa.table(columns), temporary)
    print(f"{options.out}: {len(columns['path']):,} clips.")


if __name__ == "__main__":
    main()
