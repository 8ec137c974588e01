"""Calls a function of the user's own that returns arrays or a torch Dataset, and saves what the function returns as .npy files.

This module runs in the environment of the trials, because the function may import any package of this environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.common.errors import ConfigError, RaysweepError, logger
from raysweep.usercode.freeze import load_target
from raysweep.usercode.target import find_target

ALLOWED = (
    "a map of arrays with the keys x and y (or x_train, y_train, x_test and y_test), a pair (x, y), or a Dataset whose items are pairs"
)


def save_arrays(source: str, folder: Path) -> None:
    """Call the function that `source` names, and write the arrays that the function returns to `folder`.

    Raises ConfigError where the function returns something else, and RaysweepError, with the name of the exception, where the function raises.
    """
    function, _ = load_target(find_target(source, Path.cwd()))
    try:
        arrays = _arrays_of(function(), source)
    except RaysweepError:
        raise
    except Exception as error:  # a user's function may raise every type of exception
        logger.debug("%s raised:", source, exc_info=True)
        raise RaysweepError(f"{source}: the function raised {type(error).__name__}: {error}. The log has the traceback.") from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _arrays_of(returned: Any, source: str) -> dict[str, np.ndarray]:
    """Return the arrays by name. Tensors of PyTorch become arrays, and a Dataset is read once, from its first to its last item."""
    if isinstance(returned, Mapping):
        arrays = {str(name): np.asarray(values) for name, values in returned.items()}
    elif isinstance(returned, tuple) and len(returned) == 2:
        arrays = {"x": np.asarray(returned[0]), "y": np.asarray(returned[1])}
    elif (
        hasattr(returned, "__getitem__")
        and hasattr(returned, "__len__")
        and not isinstance(returned, str | bytes | list | tuple | np.ndarray)
    ):
        items = [returned[number] for number in range(len(returned))]
        if any(not isinstance(item, tuple | list) or len(item) != 2 for item in items):
            raise ConfigError(f"{source}: an item of the Dataset is no pair of inputs and a target. Allowed: {ALLOWED}.")
        arrays = {name: np.stack([np.asarray(item[place]) for item in items]) for place, name in enumerate("xy")}
    else:
        raise ConfigError(f"{source}: the function returned {type(returned).__name__}. Allowed: {ALLOWED}.")
    if wrong := [name for name, array in arrays.items() if array.dtype == object]:
        raise ConfigError(f"{source}: {wrong[0]} has rows of different shapes, or objects. Allowed: {ALLOWED}.")
    return arrays
