"""Finds the layers that need special treatment in training: batch normalisation, lazy layers, and layers that are computed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from raysweep.training.private import BatchNormBase


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model has a batch normalisation layer. Some batch normalisation layers cannot train on a batch of one row."""
    return any(isinstance(module, BatchNormBase) for module in model.modules())


def split_rows(rows: torch.Tensor, size: int, joins_last_row: bool) -> tuple[torch.Tensor, ...]:
    """Return the rows in batches of `size` rows.

    Where `joins_last_row` is true, a last batch of only one row is joined to the batch before it.
    """
    whole = len(rows) // size
    has_row_to_join = joins_last_row and whole and len(rows) % size == 1
    batches: tuple[torch.Tensor, ...] = rows.split([size] * (whole - 1) + [size + 1] if has_row_to_join else size)
    return batches


def calls_layers(model: nn.Module, action: Callable[[], object]) -> bool:
    """Call `action`, and return whether `action` computed the outputs of a layer of the model."""
    called: list[bool] = []
    hooks = [layer.register_forward_pre_hook(lambda *_: called.append(True)) for layer in model.modules()]
    try:
        action()
    finally:
        for hook in hooks:
            hook.remove()
    return bool(called)


def lazy_layers(model: nn.Module) -> list[str]:
    """Return the names of the lazy layers whose weights have no shape yet. Such a layer gets its shape when the model computes its first batch."""
    return [name for name, module in model.named_modules() if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()]


def materialize(model: nn.Module, images: torch.Tensor) -> None:
    """Give lazy layers their shapes and their initial weights, which are sampled with torch's global random number generator.

    `images` contains at least two normalised images. The model first computes `images` in evaluation mode, so that batch normalisation does not
    count these images in its statistics. If lazy layers without a shape are left, the model computes `images` again in training mode, because a model may
    use a layer only in training. Raises ValueError where the model uses a lazy layer in neither mode.
    """
    was_training = model.training
    for is_training in (False, True):
        if lazy_layers(model):
            with torch.no_grad():
                model.train(is_training)(images)
    model.train(was_training)
    if unused := lazy_layers(model):
        raise ValueError(f"forward() does not use the lazy layer {unused[0]}: remove that layer from the model")
