"""A tagger's file → the same with a temperature folded into its head, and the threshold below which a sound is unknown.

    python recipes/nano/calibrate.py TAGGER.safetensors --list build/nano/tagger.csv --out CALIBRATED.safetensors

Both come from a split of the list (tagger_lists.py) that the tagger has not learned from, as far as it has the classes;
each class has the same weight for the temperature. Sounds are heard as `torchbeats tag` hears a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from everyday import OTHER
from train_tagger import temperature

import torchbeats
from torchbeats import BEATs
from torchbeats.abstention import SETTING, setting
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.evaluation.rows import rows_of
from torchbeats.plans import ScorePlan


def main() -> None:
    """Calibrates, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the tagger")
    parser.add_argument("--list", type=Path, required=True, help="tagger.csv of tagger_lists.py")
    parser.add_argument("--out", type=Path, required=True, help="file of the calibrated tagger")
    parser.add_argument("--split", default="validation", help="that the tagger has not learned from (%(default)s)")
    options = parser.parse_args()
    model = torchbeats.load(options.model, expect=BEATs)
    classes = model.labels or []
    listed = read_labelled([options.list], "single_label").select(options.split)
    chosen = [example for example in listed.examples if example.labels[0] in classes]
    labelled = Labelled(chosen, classes, "single_label")
    rows = rows_of(chosen, model, ScorePlan())
    truth = labelled.targets()[rows.indices]
    logits = torch.from_numpy(np.log(np.maximum(rows.values, 1e-12)))  # the softmax of these is what was heard
    scale = temperature(logits, torch.from_numpy(truth))
    other = OTHER if OTHER in classes else None
    known = truth != classes.index(other) if other else np.ones(len(truth), bool)
    probabilities = (logits / scale).softmax(1).numpy()[known]
    about = {**setting(probabilities, classes, other), "temperature": round(scale, 4)}
    assert model.predictor is not None
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.div_(scale)
    model.cfg.update({SETTING: about})
    torchbeats.save(model, options.out)
    print(f"{options.out}: {json.dumps(about)}")


if __name__ == "__main__":
    main()
