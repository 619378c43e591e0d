"""From a clip's patches to its rows: every pooling mode, in this one place.

A new mode is a function and an entry of `POOLINGS`. Plans, commands, tables, label heads and probes take all else from
there; only the graph of an exported model is written out by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchbeats.errors import SettingsError


@dataclass(frozen=True)
class Pooling:
    """One pooling mode.

    Attributes:
        function: from features ``(B, T, C)``, their padding ``(B, T)``, each clip's number of patches ``(B,)`` and the
            number of bands to ``(B, D)``; or, by step, to ``(B, steps, D)``.
        shape: of a row, from the number of bands and the width C. D is its product.
        by_step: a row for every step of 160 ms, rather than for every window.
        about: what a row is, for help texts.
        linear: a mean of features. Dropout in front of it then leaves its expected value as it is; the others have
            theirs behind them.
    """

    function: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    shape: Callable[[int, int], tuple[int, ...]]
    by_step: bool
    about: str
    linear: bool = True


def masked_mean(x: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Mean over each row's own items: ``(B, T, C)``, ``(B, T)`` bool and ``(B,)`` to ``(B, C)``."""
    # The sum runs in float32, where half precision would lose the last of some hundred terms.
    total = x.masked_fill(mask.unsqueeze(-1), 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / counts.unsqueeze(-1)).to(x.dtype)


def by_step(x: Tensor, bands: int) -> Tensor:
    """Patches grouped by step, low frequencies first: ``(B, T, C)`` to ``(B, T / bands, bands, C)``."""
    return x.unflatten(1, (-1, bands))


def mean(x: Tensor, mask: Tensor, counts: Tensor, bands: int) -> Tensor:
    """Mean over a clip's own patches, ``(B, C)``."""
    return masked_mean(x, mask, counts)


def mean_by_band(x: Tensor, mask: Tensor, counts: Tensor, bands: int) -> Tensor:
    """Mean over time with the bands kept side by side, ``(B, bands * C)``."""
    return masked_mean(by_step(x, bands).flatten(2), mask[:, ::bands], counts // bands)


def mean_and_deviation(x: Tensor, mask: Tensor, counts: Tensor, bands: int) -> Tensor:
    """Mean over time and standard deviation about it, the bands kept: ``(B, 2 * bands * C)``, all means first.

    The deviation is that of a clip's own steps as they are (divided by their number, not by one less), so 0 for a
    clip of one step; there its gradient is 0 too.
    """
    x, mask, counts = by_step(x, bands).flatten(2), mask[:, ::bands], counts // bands
    exact = x.to(torch.promote_types(x.dtype, torch.float32))  # a difference of means in half precision is noise
    mean = masked_mean(exact, mask, counts)
    variance = masked_mean((exact - mean.unsqueeze(1)).square(), mask, counts)
    constant = variance == 0  # the square root has no gradient there
    deviation = variance.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)
    return torch.cat([mean, deviation], dim=1).to(x.dtype)


def steps(x: Tensor, mask: Tensor, counts: Tensor, bands: int) -> Tensor:
    """Mean over the bands of each step, ``(B, steps, C)``."""
    return by_step(x, bands).mean(2)


def patches(x: Tensor, mask: Tensor, counts: Tensor, bands: int) -> Tensor:
    """All bands of each step side by side, ``(B, steps, bands * C)``."""
    return by_step(x, bands).flatten(2)


def _one(bands: int, width: int) -> tuple[int, ...]:
    return (width,)


def _all_bands(bands: int, width: int) -> tuple[int, ...]:
    return (bands, width)


def _two_of_all_bands(bands: int, width: int) -> tuple[int, ...]:
    return (2, bands, width)


POOLINGS = {
    "mean": Pooling(mean, _one, by_step=False, about="mean over all patches of a window"),
    "bands": Pooling(mean_by_band, _all_bands, by_step=False, about="mean over time of each of the 8 frequency bands"),
    "statistics": Pooling(
        mean_and_deviation,
        _two_of_all_bands,
        by_step=False,
        about="mean and standard deviation over time of each of the 8 frequency bands",
        linear=False,
    ),
    "steps": Pooling(steps, _one, by_step=True, about="one row every 160 ms, the mean over its bands"),
    "patches": Pooling(patches, _all_bands, by_step=True, about="one row every 160 ms, all its bands"),
}
WINDOW_POOLINGS = tuple(name for name, pooling in POOLINGS.items() if not pooling.by_step)


def pooling(name: str) -> Pooling:
    """The pooling mode of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in POOLINGS:
        raise SettingsError(f"There is no pooling called {name!r}; choose one of {', '.join(POOLINGS)}.")
    return POOLINGS[name]
