"""What a fine-tuning begins with: a linear head fitted on the frozen model's embeddings (arXiv 2202.10054).

A fresh head sends gradients of noise through the layers below before it has learnt anything, which costs some of what
they knew; one that already fits leaves them as they are where they are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation.metrics import Array, accuracy, mean_average_precision
from torchbeats.evaluation.regression import limited_threads
from torchbeats.evaluation.rows import Rows, rows_of
from torchbeats.heads.fitting import FOLDS, Head, Linear, fit_head
from torchbeats.loading import ready
from torchbeats.model import BEATs
from torchbeats.plans import EmbeddingPlan
from torchbeats.training.examples import one_hot
from torchbeats.training.finetuning import USUAL_POOL, with_head
from torchbeats.training.listener import Listener
from torchbeats.training.settings import AUTO, FinetuneSettings, TrainerSettings

MOST_SOUNDS = 10_000  # a linear head has little to learn from more
MOST_VALUES = 5e7  # of all embeddings together
MOST_WORK = 2e9  # sounds × values × classes of a regression: a few minutes of one core
SEARCH_WORK = 2e7  # up to which the regularisation is chosen, in twenty fits more
USUAL_C = 0.01  # beyond that, and where poolings are compared
OF_EACH_CLASS = 20  # sounds that are drawn first
TO_COMPARE = 1_000  # sounds of either kind, learned from and held out, by which poolings are compared
COMPARE_FOLDS = 3
# From the embedding with mean and deviation of each band (2, bands, C), which is computed once.
_FROM_STATISTICS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x[:, 0].mean(1),
    "bands": lambda x: x[:, 0].reshape(len(x), -1),
    "statistics": lambda x: x.reshape(len(x), -1),
}


@dataclass
class Fitted:
    """A model with a linear head.

    Attributes:
        model: with the head.
        pool: what it sees.
        compared: of each pooling that was compared the share that is right, or mAP, of sounds held out; empty where
            none was.
    """

    model: BEATs
    pool: str
    compared: dict[str, float]


def linear_model(
    model: BEATs, labelled: Labelled, held_out: Labelled | None, settings: FinetuneSettings, listener: Listener
) -> Fitted | None:
    """The frozen model with a linear head; None, with a warning, where the sounds do not suffice for one.

    With ``model.pool=auto`` the head sees what does best on sounds that are held out: those of the validation, and of
    the training those of each of `COMPARE_FOLDS` folds in turn. Where all do alike, as by default in a probe.

    Args:
        model: to begin with.
        labelled: the sounds to train on.
        held_out: those to validate on.
        settings: of the fine-tuning.
        listener: told of the progress.
    """
    auto, seed = settings.model.pool == AUTO, settings.seed
    pool = USUAL_POOL if auto else settings.model.pool
    tuned = with_head(model, labelled.classes, labelled.problem_type, settings.model, pool)
    assert tuned.predictor is not None
    chosen = labelled.subset(drawn(labelled, tuned.predictor.in_features, seed))
    compared = dict[str, float]()
    try:
        rows = _embeddings(tuned, chosen, pool, settings, listener)
        x, chosen = rows.values, _grouped(chosen.subset(rows.indices.tolist()))
        if auto:
            x = x.reshape(len(x), 2, tuned.grid.bands, -1)
            compared = _compare(x, chosen, tuned, held_out, settings, listener)
            pool = max(compared, key=lambda name: (round(compared[name], 4), name == USUAL_POOL)) or USUAL_POOL
            x = _FROM_STATISTICS[pool](x)
            tuned = with_head(model, labelled.classes, labelled.problem_type, settings.model, pool)
        linear = _regression(x, chosen, settings, listener)
    except InputError as error:  # training may still do, and names what it cannot read
        listener.warn(f"The head begins untrained, as no linear one can be fitted: {error}")
        return None
    assert tuned.predictor is not None
    with torch.no_grad():
        tuned.predictor.weight.copy_(torch.from_numpy(linear.weight))
        tuned.predictor.bias.copy_(torch.from_numpy(linear.bias))
    return Fitted(tuned, pool, compared)


def _embeddings(model: BEATs, labelled: Labelled, pool: str, settings: FinetuneSettings, listener: Listener) -> Rows:
    """As the head sees them, in windows as long as validation has them."""
    plan = EmbeddingPlan(pool, window=settings.data.seconds)
    network = ready(model.eval(), device_of(settings.trainer))
    with listener.work("Embedding", len(labelled.examples), "sounds") as advance:
        return rows_of(labelled.examples, network, plan, progress=lambda _, share: advance(share, ""))


def device_of(t: TrainerSettings) -> str | None:
    """Where the process that leads trains, and so may embed; None for a processor, or what only Lightning knows."""
    if t.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    first, comma, _ = str(t.devices).partition(",")
    return f"cuda:{first}" if comma else "cuda"  # "2" are two of them, "2," is the third


def _grouped(labelled: Labelled) -> Labelled:
    """Pieces of a file are held out together, as are groups."""
    examples = [example._replace(group=example.group or example.path) for example in labelled.examples]
    return Labelled(examples, labelled.classes, labelled.problem_type)


def _compare(
    x: Array,
    labelled: Labelled,
    model: BEATs,
    held_out: Labelled | None,
    settings: FinetuneSettings,
    listener: Listener,
) -> dict[str, float]:
    """How well a linear head does with each pooling, on sounds that it did not learn from.

    Args:
        x: ``(N, 2, bands, C)``, of the sounds to train on.
        labelled: those.
        model: that makes the embeddings.
        held_out: sounds to validate on.
        settings: of the fine-tuning.
        listener: told of the progress.
    """
    some = drawn(labelled, 1, settings.seed, TO_COMPARE)
    x, labelled = x[some], labelled.subset(some)
    other, truth = None, None
    if held_out is not None:
        held_out = held_out.subset(drawn(held_out, 1, settings.seed, TO_COMPARE))
        try:
            rows = _embeddings(model, held_out, "statistics", settings, listener)
            other = rows.values.reshape(len(rows.values), *x.shape[1:])
            truth = held_out.subset(rows.indices.tolist()).targets()
        except InputError:  # the first validation says so
            other = None
    result = {}
    kind = "accuracy" if labelled.problem_type == "single_label" else "mAP"
    with listener.work("Comparing poolings", len(_FROM_STATISTICS), "") as advance:
        for name, function in _FROM_STATISTICS.items():
            values = function(x)
            with limited_threads(len(values), values.shape[1], len(labelled.classes)):
                head = fit_head(
                    values, labelled, folds=COMPARE_FOLDS, balance=settings.data.balance > 0, c=USUAL_C,
                    seed=settings.seed,
                )  # fmt: skip
            shares = [(head.figures[kind], len(values))] if kind in head.figures else []
            if other is not None and truth is not None:
                shares.append((_score(head, function(other), truth), len(truth)))
            shares = [(share, count) for share, count in shares if not np.isnan(share)]
            total = sum(count for _, count in shares)
            result[name] = sum(share * count for share, count in shares) / total if total else 0.0
            advance(1, "")
    return result


def _score(head: Head, x: Array, truth: Array) -> float:
    scores = head.probabilities(x.astype(np.float64))
    return accuracy(truth, scores) if truth.ndim == 1 else mean_average_precision(truth, scores)


def _regression(x: Array, labelled: Labelled, settings: FinetuneSettings, listener: Listener) -> Linear:
    classes = len(labelled.classes)
    search = len(x) * min(x.shape) * classes <= SEARCH_WORK
    with (
        listener.work("Linear head", 100.0, "%") as advance,
        limited_threads(len(x), x.shape[1], classes),
    ):
        done = 0.0

        def progress(fits: int, total: int) -> None:
            nonlocal done
            advance(100 * fits / total - done, "")
            done = 100 * fits / total

        return fit_head(
            x,
            labelled,
            folds=FOLDS if search else 2,
            balance=settings.data.balance > 0,
            c=None if search else USUAL_C,
            seed=settings.seed,
            progress=progress,
        ).linear


def drawn(labelled: Labelled, width: int, seed: int, most: int = MOST_SOUNDS) -> list[int]:
    """Which sounds a linear head is fitted on: all of them, or as many as keep the fit short, rare classes first.

    Args:
        labelled: the sounds.
        width: D, values of an embedding.
        seed: of the draw.
        most: of them.
    """
    count = len(labelled.examples)
    most = min(most, int(MOST_VALUES / width), max(100, int(MOST_WORK / (width * len(labelled.classes)))))
    if count <= most:
        return list(range(count))
    order = np.random.default_rng(seed).permutation(count)
    belongs = one_hot(labelled)[order] > 0
    first = (belongs & (belongs.cumsum(0) <= OF_EACH_CLASS)).any(1)
    return sorted(np.concatenate([order[first], order[~first]])[:most].tolist())
