"""What a server has and does, whoever asks for it: models, a table, decoding, computing."""

from __future__ import annotations

import asyncio
import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from torchbeats.errors import ModelError, RequestError, SettingsError
from torchbeats.inference import Group
from torchbeats.loading import load
from torchbeats.plans import Plan
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.protocol import PROBABILITIES, Model
from torchbeats.search.queries import model_of
from torchbeats.serve.batching import Batcher
from torchbeats.serve.decoding import Decoded, Decoders
from torchbeats.serve.limits import Limits
from torchbeats.serve.metrics import Metrics
from torchbeats.serve.uploads import Upload
from torchbeats.tables.reading import Table
from torchbeats.weights import hub

BACKLOG_SECONDS = 0.02  # from one look at a backlog that is too long to the next

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Served:
    """A model under the name by which requests ask for it.

    Attributes:
        name: as it was named at the start; of a file, its own name without the folder.
        model: that computes.
        created: when its file was last changed, in seconds since 1970.
    """

    name: str
    model: Model
    created: int


class Service:
    """Models, decoders and the thread that computes.

    Args:
        model: for embeddings; the small built-in one where not given.
        tagger: for tags; the built-in one where not given.
        table: of embeddings, to search.
        limits: of what comes.
        device: where to compute.

    Raises:
        TorchbeatsError: a model or a table that cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        tagger: str | None = None,
        table: str | os.PathLike[str] | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        device: str | torch.device | None = None,
    ) -> None:
        self.limits, self.metrics = limits, Metrics()
        died = self.metrics.counter("torchbeats_decoders_died_total", "Decoding processes that died over a sound.")
        self.decoders = Decoders(limits, lambda: died(1))
        self.decoders.start()  # it takes a second or two, and so does what follows
        self.embedder = _served(model or hub.BUILT_IN, device)
        self.tagger = _served(tagger or hub.BUILT_IN_TAGGER, device)
        if not set(WINDOW_POOLINGS) & set(self.embedder.model.outputs):
            raise ModelError(f"{self.embedder.name} makes no embeddings; name a BEATs model with --model.")
        self.tagger.model.check(PROBABILITIES)
        self.models = {served.name: served for served in (self.embedder, self.tagger)}
        if len(self.models) < 2 and self.embedder.model.digest() != self.tagger.model.digest():
            raise SettingsError(f"Two models are called {self.tagger.name}; rename one of the files.")
        self.table = None if table is None else Table(table)
        self.table_model = None if self.table is None else self._model_of(self.table, device)
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.batcher = Batcher(self.metrics)

    def model_called(self, name: str | None, default: Served) -> Served:
        """The model that a request asks for.

        Raises:
            RequestError: there is no such model.
        """
        if name is None:
            return default
        if name not in self.models:
            names = " and ".join(self.models)
            raise RequestError(404, "model_not_found", f"There is no model {name[:100]!r} here; there are {names}.")
        return self.models[name]

    async def decode(self, uploads: Sequence[Upload]) -> list[Decoded]:
        """Decode sounds, one after the other, as far as there is room for what is decoded.

        Raises:
            RequestError: one cannot be read, or there is too much of them.
        """
        if len(uploads) > self.limits.inputs:
            raise RequestError(
                422, "too_many_inputs", f"A request may have {self.limits.inputs} sounds, not {len(uploads)}."
            )
        result: list[Decoded] = []
        left = self.limits.audio_seconds
        for upload in uploads:
            while self.batcher.backlog() > self.limits.waiting_seconds:
                await asyncio.sleep(BACKLOG_SECONDS)
            result.append(await asyncio.wrap_future(self.decoders.submit(*upload, left)))
            left -= result[-1].seconds
        return result

    async def compute(
        self, uploads: Sequence[Upload], sounds: Sequence[Decoded], model: Model, plan: Plan
    ) -> list[Group]:
        """A plan's rows of sounds.

        Raises:
            RequestError: it would take too much computing, or a sound has no rows.
        """
        try:
            plan.check(model)
        except ModelError as error:
            raise RequestError(422, "wrong_model", str(error)) from error
        computed = sum(_computed_seconds(plan, sound.seconds) for sound in sounds)
        if computed > self.limits.computed_seconds:
            raise RequestError(
                413,
                "too_much_work",
                f"The windows of these sounds have {computed:,.0f} s in all, and {self.limits.computed_seconds:,.0f} s "
                "may be computed in a request; take longer hops or rows, or fewer sounds.",
            )
        futures = [
            asyncio.wrap_future(self.batcher.submit(upload.name, sound.samples, model, plan))
            for upload, sound in zip(uploads, sounds, strict=True)
        ]
        try:
            return [await future for future in futures]
        finally:
            for future in futures:
                future.cancel()

    async def search(self, function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Call something that goes through the table, in the one thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, lambda: function(*arguments, **options))

    def busy(self) -> float:
        """Seconds until what waits will be computed, by the speed of late."""
        backlog = self.batcher.backlog()
        return backlog / (self.batcher.speed() or 1.0)

    def close(self) -> None:
        """End all threads and processes, when no request is worked on any more."""
        self.decoders.close()
        self.batcher.close()
        self._searches.shutdown()

    def _model_of(self, table: Table, device: str | torch.device | None) -> Model:
        """The model that computed a table: one of the server's, if it is among them."""
        for served in self.models.values():
            if table.about.get("weights") == f"sha256:{served.model.digest()}":
                return served.model
        model = model_of(table, None, device)
        table.plan.check(model)
        return model


def _served(name: str, device: str | torch.device | None) -> Served:
    path = hub.resolve(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command says which models there are
        model = load(name, device=device)
    shown = Path(name).name if os.path.exists(name) else name
    return Served(shown, model, int(path.stat().st_mtime))


def _computed_seconds(plan: Plan, seconds: float) -> float:
    """Seconds of all windows of a sound."""
    window, hop = plan.window, getattr(plan, "hop", None)
    if window is None or hop is None or hop >= window:
        return seconds
    return max(1, math.ceil(seconds / hop)) * min(window, seconds)
