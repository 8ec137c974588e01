"""Reads what the config requires of the environment: the section `env`, the requirements file (node.in), and the lock beside this file (node.txt)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from raysweep.common.errors import ConfigError
from raysweep.usercode.target import SCRIPTS_DIR

ENVS_DIR = SCRIPTS_DIR.parent / "envs"


@dataclass(frozen=True)
class EnvironmentSpec:
    """Contains the section `env` of the config."""

    python: str
    modules: tuple[str, ...]
    requirements: Path
    wheels: str  # download, site, none, or the path of a folder of wheels
    torch_backend: str
    gpu: bool  # whether `torch_backend: auto` has to choose a build for GPUs of this machine or of other machines
    container: str | None = None

    @property
    def takes_python_as_it_is(self) -> bool:
        """Return whether the trials use the environment of `python` and the workflow installs nothing."""
        return self.wheels == "none"


def lock_of(requirements: Path) -> Path:
    """Return the path of the lock that lies beside a requirements file, for instance node.txt for node.in."""
    return requirements.with_suffix(".txt")


def lock_command(requirements: Path) -> str:
    """Return the command that makes the lock of a requirements file."""
    return f"uv pip compile --universal {requirements} -o {lock_of(requirements)}"


def env_key(spec: EnvironmentSpec) -> str:
    """Return the name of an environment's folder.

    The name is the first 12 hexadecimal digits of a digest of the section `env`, the requirements files and the lock. Login nodes and compute nodes
    compute an equal name, because the digest does not depend on the output of a program. Raises ConfigError for a missing file.
    """
    words = [spec.python, list(spec.modules), spec.wheels, spec.torch_backend, spec.gpu]
    digest = hashlib.sha256(json.dumps(words).encode())
    if spec.container is not None:
        image = Path(spec.container)
        if not image.exists():
            raise ConfigError(
                f"env.container: {spec.container!r} is not allowed: there is no such image. Make one from workflow/envs/image.def"
            )
        # The digest contains the size and the modification time of the image instead of its content, because reading a whole image takes longer than
        # all other work before a job.
        digest.update(f"{spec.container} {image.stat().st_size} {image.stat().st_mtime_ns}".encode())
    check_requirements_files(spec.requirements)
    for path in (*requirements_files(spec.requirements), lock_of(spec.requirements)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def check_requirements_files(requirements: Path) -> None:
    """Raise ConfigError where a requirements file, a file that it includes, or its lock is missing."""
    for path in (*requirements_files(requirements), lock_of(requirements)):
        if not path.is_file():
            raise _missing_file(path, requirements)


def _missing_file(path: Path, requirements: Path) -> ConfigError:
    """Return the ConfigError for a requirements file or a lock that does not exist."""
    if path.suffix == ".in":
        return ConfigError(
            f"{path} is missing, the requirements file (env.requirements): name one that exists; its lock lies beside it, as .txt"
        )
    return ConfigError(f"{path} is missing, the lock of env.requirements: make it with `{lock_command(requirements)}`")


def requirements_files(path: Path) -> list[Path]:
    """Return the path of a requirements file and the paths of all files that this file includes with `-r`."""
    files = [path]
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\s*(?:-r|--requirement)[ =]\s*(\S+)", line):
                files += requirements_files(path.parent / match[1])
    return files


def parse_requirements(path: Path) -> list[Requirement]:
    """Return the requirements of the file `path` and of the files that this file includes.

    Requirements whose markers exclude this machine are left out. Raises ConfigError for a line that is not a requirement.
    """
    requirements = []
    for file in requirements_files(path):
        for line in file.read_text(encoding="utf-8").splitlines():
            text = re.sub(r"(^|\s)#.*", "", line).strip()
            if not text or text.startswith("-"):
                continue
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                raise ConfigError(f"{file}: {text!r} is not a requirement: {error}") from None
            if requirement.marker is None or requirement.marker.evaluate():
                requirements.append(requirement)
    return requirements


def extras_of(requirements: Path, package: str) -> set[str]:
    """Return the extras that a requirements file lists for a package, for instance {"default", "tune"} for `ray[default,tune]`."""
    return {extra for r in parse_requirements(requirements) if canonicalize_name(r.name) == package for extra in r.extras}


def lists(requirements: Path, package: str) -> bool:
    """Return whether a requirements file lists a package."""
    return any(canonicalize_name(r.name) == package for r in parse_requirements(requirements))


def modules_to_try(path: Path) -> list[str]:
    """Return the modules whose import shows whether an environment works.

    These modules are the libraries whose wheels can be installed although they do not work on this machine, and the modules by which Ray detects
    its extras.
    """
    names = {canonicalize_name(r.name) for r in parse_requirements(path)}
    module_of_extra = {"tune": "ray.tune", "default": "ray.dashboard.optional_deps"}
    libraries = [name for name in ("torch", "torchvision", "ray") if canonicalize_name(name) in names]
    return libraries + [module for extra, module in module_of_extra.items() if extra in extras_of(path, "ray")]


def missing_requirements(path: Path, packages: dict[str, str]) -> list[str]:
    """Return the requirements of a file that the installed packages do not fulfil.

    `packages` maps normalised names to versions. Where a package is installed in a wrong version, the text of its requirement also names that version.
    """
    missing = []
    for requirement in parse_requirements(path):
        version = packages.get(canonicalize_name(requirement.name))
        if version is None:
            missing.append(str(requirement))
        elif not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement} (it has {version})")
    return missing


def untried_versions(packages: dict[str, str]) -> list[str]:
    """Return the packages of trials that are newer than any version that was tried, with both versions.

    `make test-versions` tries the versions of newest.txt. A local version, such as 2.9.0+computecanada, counts as the version 2.9.0.
    """
    newest = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in parse_requirements(ENVS_DIR / "newest.txt")}
    names = [canonicalize_name(r.name) for r in parse_requirements(ENVS_DIR / "node.in")]
    return [
        f"{name} {packages[name]} (tried: up to {newest[name]})"
        for name in names
        if name in packages and Version(Version(packages[name]).public) > Version(newest[name])
    ]
