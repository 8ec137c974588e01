"""This module loads a class that the config names as `file.py:Class` or `module:Class`: a searcher of Ray Tune, or a sampler of Optuna."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TypeVar

from raysweep.common.errors import ConfigError, RaysweepError
from raysweep.usercode.freeze import load_target
from raysweep.usercode.target import find_target

Base = TypeVar("Base")


def load_class(name: str, base: type[Base], root: Path, key: str) -> type[Base]:
    """Return the class that `name` names. Relative paths start at `root`. `key` names the key of the config in messages.

    Raises RaysweepError if the module cannot be imported or if the class is not derived from `base`.
    """
    module, _, class_name = name.rpartition(":")
    try:
        loaded, _ = load_target(find_target(name, root))
    except ConfigError:  # no file of the user contains the class, so a library must contain the class
        try:
            loaded = getattr(importlib.import_module(module), class_name, None)
        except ImportError as error:
            raise RaysweepError(f"{key} {name}: {error}. Add what it needs to env.requirements") from None
    if not (inspect.isclass(loaded) and issubclass(loaded, base)):
        raise RaysweepError(f"{key} {name}: it is no {base.__module__.rpartition('.')[0]}.{base.__name__}")
    return loaded
