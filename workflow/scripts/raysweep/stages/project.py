"""Computes the folders, files and options that the rules use from the validated config. The rule files import this module."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.cluster.lock import is_held
from raysweep.common.errors import ConfigError
from raysweep.common.files import disk_error, written_aside, yaml_text
from raysweep.config.load import env_arguments
from raysweep.config.model import Config
from raysweep.data.manifest import is_function, needs_packages
from raysweep.environment.requirements import env_key
from raysweep.slurm.notes import JOB_CONFIG
from raysweep.usercode.target import find_target, local_sources

DRIVER_MODULES = ("raysweep.tune.record_callback", "raysweep.tune.search", "raysweep.tune.schedulers")
TRACKERS = ("mlflow", "wandb")


class CommandLine(list[str]):
    """Contains options of a command, of which the last is no reason to run the command again.

    Snakemake runs a rule again where the text of a parameter (`repr`) has changed, so this text lacks the last option.
    """

    def __init__(self, options: list[str], last: str) -> None:
        super().__init__([*options, last])

    def __repr__(self) -> str:
        return repr(self[:-1])


@dataclass(frozen=True)
class Project:
    """Describes the config and the folders of one inclusion of this workflow in Snakemake.

    Another workflow can include this workflow several times, as modules with different configs.
    """

    config: dict[str, Any]  # validated config
    typed: Config  # validated config as a typed object
    root: Path  # folder in which Snakemake runs; the paths of files in the config are relative to this folder
    is_module: bool  # whether this workflow is a module of another workflow
    placed: Callable[[Path | str], Path]  # function that adds Snakemake's prefix for modules to the path of a folder

    @property
    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Return the sweeps of the config, as a map from the name of a sweep to the values of the sweep."""
        sweeps: dict[str, dict[str, Any]] = self.config["sweeps"]
        return sweeps

    @property
    def results(self) -> Path:
        """Return the folder of the results."""
        return Path(self.config["results_dir"])

    @property
    def state(self) -> Path:
        """Return the folder of the records."""
        return Path(self.config["state_dir"])

    @property
    def data(self) -> Path:
        """Return the folder of the staged data."""
        return Path(self.config["resources_dir"]) / "data"

    @property
    def env(self) -> Path:
        """Return the folder of the node environment."""
        return Path(self.config["resources_dir"]) / "env" / env_key(env_arguments(self.typed, self.root))

    def config_file(self, sweep: str) -> Path:
        """Return the path of the file from which the stages of a sweep read the config of the sweep.

        The rules have this path as a parameter and not the config itself, because Snakemake does not run a job again for a changed `Path`. Only a change
        of the parameter `trigger` runs a sweep again.

        A job that was submitted to Slurm has a copy of the file, because the user may change the config while the job waits or runs.
        """
        copy = os.environ.get(JOB_CONFIG)
        return Path(copy) if copy else self.placed(self.state) / ".config" / f"{sweep}.yaml"

    def config_of(self, sweep: str) -> dict[str, Any]:
        """Return the part of the config that one sweep needs."""
        dataset = self.sweeps[sweep]["dataset"]
        folders = (
            {key: str(self.placed(self.config[key])) for key in ("results_dir", "state_dir", "resources_dir")} if self.is_module else {}
        )
        datasets = {name: values for name, values in self.config["datasets"].items() if name == dataset}
        return {**self.config, **folders, "datasets": datasets, "sweeps": {sweep: self.sweeps[sweep]}}

    def write_configs(self) -> dict[str, str]:
        """Write the config file of each sweep whose lock no other run holds. Return a map from the path of each sweep's file to the config as YAML.

        Raises ConfigError where a folder of results or records cannot be written to.

        A job that Slurm starts again reads the file a second time, so the file must not change while the job runs. A sweep that another run has locked
        will stop this run with an error.
        """
        for key in ("results_dir", "state_dir"):
            self._check_writable(key)
        configs = {sweep: yaml_text(self.config_of(sweep)) for sweep in self.sweeps}
        for sweep, text in configs.items():
            if not is_held(self.placed(self.state) / sweep):
                with written_aside(self.config_file(sweep)) as stream:
                    stream.write(text)
        return {str(self.config_file(sweep)): text for sweep, text in configs.items()}

    def _check_writable(self, key: str) -> None:
        # Snakemake itself would notice such a folder only when the first job needs the folder, and would print a traceback.
        folder = self.placed(self.config[key])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            error = disk_error(folder)
        except OSError as error_of_mkdir:
            error = error_of_mkdir
        if error is not None:
            raise ConfigError(f"{key}: {folder} cannot be written to: {error.strerror}. Name another folder, or change this one")

    def sources_of(self, sweep: str) -> list[str]:
        """Return the paths of the files that define what a sweep trains, and its loss function. Paths below the root are relative to the root."""
        targets = [find_target(text, self.root) for text in self.typed.sweeps[sweep].targets]
        return self._relative(sorted({path for target in targets for path in local_sources(target)}))

    def _relative(self, paths: list[Path]) -> list[str]:
        return [str(path.relative_to(self.root) if path.is_relative_to(self.root) else path) for path in paths]

    def imports_of(self, sweep: str) -> list[str]:
        """Return the names that the driver and the trials of a sweep import.

        The names are modules of this package, libraries, and the model or function that the sweep trains.
        """
        section = self.sweeps[sweep]
        names = list(DRIVER_MODULES)
        for name in (section["search_algorithm"].get(key, "") for key in ("name", "sampler")):
            if name == "optuna" or ".py:" in name:
                names.append(name)
            elif ":" in name:  # a class of a library
                names.append(name.rpartition(":")[0])
        names += [name for name in TRACKERS if section[name] is not None]
        return [*names, *(["raysweep.training.trainer"] if "model" in section else []), *self.typed.sweeps[sweep].targets]

    def staged(self, sweep: str, *splits: str) -> list[Path]:
        """Return the paths of the manifest and of the arrays of `splits` in the staged data set of a sweep. A rule may open only these splits."""
        dataset = self.sweeps[sweep]["dataset"]
        if dataset is None:
            return []
        arrays = [self.data / dataset / split / f"{kind}.npy" for split in splits for kind in ("images", "labels")]
        return [self.data / dataset / "manifest.yaml", *arrays]

    def source_of(self, name: str) -> str | list[str]:
        """Return the source of a data set, followed by the command-line options for the user's own data where the config sets these options.

        A table or a function needs packages of the environment of the trials, so the options contain the folder of this environment.
        """
        dataset = self.config["datasets"][name]
        # A key with its default value is no option, because a new parameter of the rule would stage all data sets again.
        given = {key: dataset[key] for key in ("image_size", "test_fraction", "task", "target", "group", "split")}
        given |= {"split": None if given["split"] == "random" else given["split"]} | (dataset["validation"] or {})
        options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if value is not None]
        source: str = dataset["source"]
        if needs_packages(source):
            return CommandLine([source, *options], f"--env-dir={self.placed(self.env)}")
        return [source, *options] if options else source

    def environment_for(self, name: str) -> list[Path]:
        """Return the file that exists when the environment in which a data set is staged is complete, or no file where the controller stages the data set."""
        return [self.env / "env.yaml"] if needs_packages(self.config["datasets"][name]["source"]) else []

    def data_sources_of(self, name: str) -> list[str]:
        """Return the paths of the files that define the function that makes a data set, or no file where the data set has another source."""
        source = self.config["datasets"][name]["source"]
        return self._relative(local_sources(find_target(source, self.root))) if is_function(source) else []
