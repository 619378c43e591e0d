"""Warnings of training that would change nothing: a frozen model in training mode, or in an optimiser."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

_frozen: WeakSet[nn.Module] = WeakSet()
_checked: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # how many of its groups
_hooks: list[Any] = []

HOW = "To train it, build it with freeze=False or call its unfreeze()."


def warn_of_optimisers(model: nn.Module) -> None:
    """Look out for optimisers that are to change a frozen model, and warn of each once.

    Args:
        model: with an attribute ``frozen``, and ``frozen_by_default`` where nobody asked for it.
    """
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
    _frozen.add(model)


def warn_of_training_mode(model: nn.Module) -> None:
    """Say that ``train()`` has no effect on a model with fresh weights that is frozen because that is the default."""
    warnings.warn(
        f"This {type(model).__name__} has fresh weights and is frozen, which is the default: train() leaves it in "
        f"evaluation mode, and no optimiser changes it. {HOW}",
        stacklevel=3,
    )


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    """Before an optimiser's first step, and the first with groups that were added since."""
    groups = optimizer.param_groups[_checked.get(optimizer, 0) :]
    if not groups:
        return
    _checked[optimizer] = len(optimizer.param_groups)
    for model in list(_frozen):
        if getattr(model, "frozen", False) and _are_to_train(groups, model):
            warnings.warn(
                f"This optimiser is given parameters of a frozen {type(model).__name__}, which it cannot change. {HOW}",
                stacklevel=4,
            )


def _are_to_train(groups: list[dict[str, Any]], model: nn.Module) -> bool:
    """Whether an optimiser's groups are meant to change a frozen model.

    They are not where one has all parameters of a larger model, a frozen encoder among them; they are where one has
    those of the encoder alone, or where the model has fresh weights, which are of no use untrained.
    """
    frozen_parameters = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    for group in groups:
        frozen = sum(id(parameter) in frozen_parameters for parameter in group["params"])
        if frozen and (frozen == len(group["params"]) or getattr(model, "frozen_by_default", False)):
            return True
    return False
