"""What is computed from weights alone, kept as long as they stay as they are.

Nothing of it is part of a module: a state dict, a pickle or a deep copy of a model knows nothing of it. It goes when
the weights go, when they are trained, or with `forget`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class _Remembered(NamedTuple):
    stamp: tuple[object, ...]
    made: Tensor


_made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remembered(make: Callable[[], Tensor], *weights: Tensor) -> Tensor:
    """What ``make()`` gave for these very weights before, or gives now.

    Args:
        make: computes it, of the values of ``weights`` alone. For the first of them the last thing made is kept.
        weights: as `can_remember` wants them.

    Returns:
        A tensor that must not be changed.
    """
    stamp = tuple(part for weight in weights for part in _state(weight))
    found = _made.get(weights[0])
    if found is None or found.stamp != stamp:
        with torch.inference_mode(False), torch.no_grad():
            found = _Remembered(stamp, make())
        _made[weights[0]] = found
    return found.made


def can_remember(*weights: Tensor) -> bool:
    """Whether a change of these would be noticed: parameters of a CPU model, nothing that stands for one."""
    return all(
        type(weight) is nn.Parameter and weight.device.type == "cpu" and not weight.is_inference() for weight in weights
    )


def forget(weight: Tensor) -> None:
    """Give back the memory of what was made of this weight and others."""
    if type(weight) is nn.Parameter:
        _made.pop(weight, None)


def _state(weight: Tensor) -> tuple[object, ...]:
    """What differs where the values do, but for changes that rounding hides.

    Autograd counts what it sees. It sees nothing of what is written through ``.data``, NumPy or shared memory, so a sum
    of the values is part of it, each with a factor of its own, or values that change places would leave it as it is: a
    read at the speed of memory, far from what is spared.
    """
    rows = weight.detach().flatten(1) if weight.ndim > 1 else weight.detach().flatten()[None]
    total = (rows @ _factors(rows.shape[1], weight.dtype)) @ _factors(rows.shape[0], weight.dtype)
    return weight.data_ptr(), weight._version, weight.dtype, tuple(weight.shape), float(total)


@lru_cache(16)
def _factors(count: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64).to(dtype)
