"""Computes the masks of dropout from counters, in the place of PyTorch's random number generator.

An element of a mask is a function of the trial's seed, the epoch, the batch, the call of dropout in the batch and the position of the element. So a trial
has the same masks alone, in a stack, on every device and after an interruption. PyTorch's generator has a state instead, which all members of a stack
would share.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _signed(number: int) -> int:
    """Return the int64 with the same 64 bits as the lowest bits of `number`."""
    return (number + 2**63) % 2**64 - 2**63


# Constants of the generator SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, https://doi.org/10.1145/2660193.2660195).
ELEMENT, MULTIPLIERS = _signed(0x9E3779B97F4A7C15), (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
CALL = 0xD1342543DE82EF95  # another odd number, so that two calls do not use the same numbers for shifted elements

# Maps each function to the number of dimensions of its mask. None means that the mask has all dimensions of the input. The other functions drop channels.
MASK_DIMS = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}
# Maps the functions that drop channels to the numbers of dimensions of inputs that have a dimension of the rows.
CHANNEL_INPUT_DIMS = {F.dropout1d: (3,), F.dropout2d: (3, 4), F.dropout3d: (5,)}


class DropoutMasks(TorchFunctionMode):
    """Provides a context in which the functions in MASK_DIMS use masks from counters.

    A context contains the computation of one batch, or of a micro-batch of `num_rows` rows, of which the first is the row `first_row` of the batch. A
    micro-batch has the masks of these rows where the first dimension of the inputs of dropout is that of the rows. `key` is the key of the batch, see
    seeds.dropout_keys. In a stack, `key` and `first_row` are tensors, int64 [].
    """

    def __init__(self, key: int | torch.Tensor, first_row: int | torch.Tensor = 0, num_rows: int = 1) -> None:
        super().__init__()
        self.key, self.first_row, self.num_rows = key, first_row, num_rows
        self.calls = 0  # number of calls of dropout in training

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in MASK_DIMS:
            return self._drop(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _drop(self, function: Any, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        """Return the result of a function in MASK_DIMS. The arguments are the arguments of F.dropout."""
        dims = MASK_DIMS[function]
        if not training or not 0 < p <= 1 or (dims and input.dim() not in CHANNEL_INPUT_DIMS[function]):
            result: torch.Tensor = function(input, p, training, inplace)
            return result
        self.calls += 1
        shape = input.shape if dims is None else (*input.shape[:dims], *[1] * (input.dim() - dims))
        scale = 1 / (1 - p) if p < 1 else 0.0
        # A CUDA graph cannot contain a tensor that is made of a number in Python, so the mask is multiplied by the number itself.
        mask = self._keeps(math.prod(shape), p, input.device).view(shape).to(input.dtype) * scale
        return input.mul_(mask) if inplace else input * mask

    def _keeps(self, count: int, p: float, device: torch.device) -> torch.Tensor:
        """Return whether each of `count` elements is kept, bool [count]. An element is dropped with the probability `p`."""
        first, second = MULTIPLIERS
        first_element = self.first_row * (count // self.num_rows)
        bits = (torch.arange(count, device=device) + first_element) * ELEMENT + _signed(self.calls * CALL) + self.key
        bits.bitwise_xor_(bits >> 30).mul_(first)
        bits.bitwise_xor_(bits >> 27).mul_(second)
        return bits >= min(int(p * 2**64) - 2**63, 2**63 - 1)
