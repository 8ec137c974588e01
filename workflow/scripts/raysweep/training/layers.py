"""Layers that a training has to treat with care: batch normalisation, and lazy layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from raysweep.training.private import BatchNormBase


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model has a layer of batch normalisation. Such a layer cannot train on a batch of one row."""
    return any(isinstance(module, BatchNormBase) for module in model.modules())


def split_rows(rows: torch.Tensor, size: int, joins_last_row: bool) -> tuple[torch.Tensor, ...]:
    """Return the rows in batches of `size`. `joins_last_row`: a last batch of one row joins the batch before it."""
    whole = len(rows) // size
    has_row_to_join = joins_last_row and whole and len(rows) % size == 1
    batches: tuple[torch.Tensor, ...] = rows.split([size] * (whole - 1) + [size + 1] if has_row_to_join else size)
    return batches


def lazy_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose weights have no size before the model has seen a first batch."""
    return [name for name, module in model.named_modules() if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()]


def materialize(model: nn.Module, images: torch.Tensor) -> None:
    """Give lazy layers their sizes and their first weights, which torch's global random number generator draws.

    `images` are two normalised images or more. The model sees them in evaluation mode, so that batch normalisation does not count them. A second look, in
    training mode, is for layers that the model uses only then. Raises ValueError where a lazy layer is used in neither.
    """
    was_training = model.training
    for is_training in (False, True):
        if lazy_layers(model):
            with torch.no_grad():
                model.train(is_training)(images)
    model.train(was_training)
    if unused := lazy_layers(model):
        raise ValueError(f"forward() does not use the lazy layer {unused[0]}: remove that layer from the model")
