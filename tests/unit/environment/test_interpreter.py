from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from environments import define_module, fake
from raysweep.common.errors import ConfigError
from raysweep.environment.interpreter import find_python
from raysweep.environment.requirements import EnvironmentSpec


def test_python_that_does_not_exist(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match=r"env\.python: 'python4' cannot be run \(No such file or directory\)"):
        find_python(replace(spec, python="python4"))


def test_python_that_is_too_old(spec: EnvironmentSpec, tmp_path: Path) -> None:
    fake(tmp_path, "python3.8", """echo '{"python": "/usr/bin/python3.8", "version": "3.8.18"}'""")
    with pytest.raises(ConfigError, match=r"env\.python: 'python3.8' is Python 3\.8\.18: name a Python 3\.11 or newer"):
        find_python(replace(spec, python="python3.8"))


def test_module_that_does_not_exist(spec: EnvironmentSpec, tmp_path: Path) -> None:
    define_module(tmp_path, "echo 'no such module: gc' >&2; return 1")
    with pytest.raises(ConfigError, match=r"env\.modules: \['gc'\] does not lead to a Python that runs: no such module: gc"):
        find_python(replace(spec, modules=("gc",)))
