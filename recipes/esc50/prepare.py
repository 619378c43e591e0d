"""ESC-50 as it is distributed → a list for `torchbeats probe`, `finetune` and `evaluate`.

    python recipes/esc50/prepare.py --esc50 ESC-50-master --out build/esc50/list.csv

The columns are path, label, fold (1 to 5, those of the data set) and group (the recording that a clip was cut from).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from torchbeats.files import replacing


def main() -> None:
    """Writes the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc50", type=Path, required=True, metavar="FOLDER", help="with audio/ and meta/esc50.csv")
    parser.add_argument("--out", type=Path, default=Path("build/esc50/list.csv"), help="the list (%(default)s)")
    options = parser.parse_args()
    meta, sounds = options.esc50 / "meta" / "esc50.csv", options.esc50.resolve() / "audio"
    if not meta.exists():
        raise SystemExit(f"There is no {meta}. ESC-50 is at https://github.com/karolpiczak/ESC-50 (CC BY-NC 3.0).")
    with meta.open(newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    rows = [(str(sounds / clip["filename"]), clip["category"], clip["fold"], clip["src_file"]) for clip in clips]
    with replacing(options.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "fold", "group"), *rows])
    print(f"{options.out}: {len(rows):,} clips, {len({row[1] for row in rows})} classes.")


if __name__ == "__main__":
    main()
