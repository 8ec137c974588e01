"""The folders, files and options that the rules name, worked out from the validated config. The rule files import this module when Snakemake reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.cluster.lock import is_held
from raysweep.common.files import write_yaml
from raysweep.config.load import env_arguments
from raysweep.config.model import Config
from raysweep.environment.requirements import env_key
from raysweep.usercode.target import find_target, local_sources

DRIVER_MODULES = ("raysweep.tune.record_callback", "raysweep.tune.search", "raysweep.tune.schedulers")
TRACKERS = ("mlflow", "wandb")


@dataclass(frozen=True)
class Project:
    """One inclusion of the workflow in Snakemake, with its config and its folders."""

    config: dict[str, Any]  # validated
    typed: Config  # the same
    root: Path  # where Snakemake runs; the files that the config names are relative to this folder
    is_module: bool  # of another workflow
    placed: Callable[[Path | str], Path]  # where Snakemake puts a folder of a module

    @property
    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Return the sweeps of the config, by name."""
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
        """Return the file from which the stages of a sweep read its config.

        The rules get a path, because Snakemake runs no job again for a changed path: only the parameter `trigger` makes a sweep run again.
        """
        return self.placed(self.state) / ".config" / f"{sweep}.yaml"

    def config_of(self, sweep: str) -> dict[str, Any]:
        """Return the part of the config that concerns one sweep."""
        dataset = self.sweeps[sweep]["dataset"]
        folders = (
            {key: str(self.placed(self.config[key])) for key in ("results_dir", "state_dir", "resources_dir")} if self.is_module else {}
        )
        datasets = {name: values for name, values in self.config["datasets"].items() if name == dataset}
        return {**self.config, **folders, "datasets": datasets, "sweeps": {sweep: self.sweeps[sweep]}}

    def write_configs(self) -> None:
        """Write the config file of each sweep that no other run is at work on.

        A job that Slurm starts again reads the file once more, so the file must not change while the job is at work. The job will refuse this run.
        """
        for sweep in self.sweeps:
            if not is_held(self.placed(self.state) / sweep):
                write_yaml(self.config_file(sweep), self.config_of(sweep))

    def sources_of(self, sweep: str) -> list[str]:
        """Return the files that define what a sweep trains, relative to the root where they lie below the root."""
        paths = local_sources(find_target(self.typed.sweeps[sweep].target, self.root))
        return [str(path.relative_to(self.root) if path.is_relative_to(self.root) else path) for path in paths]

    def imports_of(self, sweep: str) -> list[str]:
        """Return what the driver and the trials of a sweep import: modules of this package, libraries, and the trained model or function."""
        section = self.sweeps[sweep]
        names = list(DRIVER_MODULES)
        algorithm = section["search_algorithm"]["name"]
        if algorithm == "optuna" or ".py:" in algorithm:
            names.append(algorithm)
        elif ":" in algorithm:  # a class of a library
            names.append(algorithm.rpartition(":")[0])
        names += [name for name in TRACKERS if section[name] is not None]
        return [*names, "raysweep.training.trainer", section["model"]] if "model" in section else [*names, section["trainable"]]

    def staged(self, sweep: str, *splits: str) -> list[Path]:
        """Return the staged files of a sweep's data set: the manifest, and the arrays of the splits that a rule may open."""
        dataset = self.sweeps[sweep]["dataset"]
        if dataset is None:
            return []
        arrays = [self.data / dataset / split / f"{kind}.npy" for split in splits for kind in ("images", "labels")]
        return [self.data / dataset / "manifest.yaml", *arrays]

    def source_of(self, name: str) -> str | list[str]:
        """Return the source of a data set, followed by the options for a folder of images, if the config has any."""
        dataset = self.config["datasets"][name]
        options = [f"--{key.replace('_', '-')}={dataset[key]}" for key in ("image_size", "test_fraction") if dataset[key] is not None]
        source: str = dataset["source"]
        return [source, *options] if options else source
