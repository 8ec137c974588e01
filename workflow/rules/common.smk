# in:  the config
# out: the validated config, and the names that the other rules use
import re
import sys
from pathlib import Path

# Snakemake itself holds the name `workflow`, so the package is imported from its folder.
sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "scripts"))
from raysweep.allocation import slurm_extra
from raysweep.config import env_arguments, minutes, validated
from raysweep.controller import Run, answer_signals_in_a_thread, cancel_all_on_ctrl_c, quote_python, quote_words, say_as_much_as
from raysweep.environment import env_key
from raysweep.errors import ConfigError
from raysweep.files import write_yaml
from raysweep.sources import local_sources, target_of

ROOT = Path.cwd()

try:
    config = validated(config, [Path(path) for path in workflow.configfiles], ROOT)
except ConfigError as error:
    sys.exit(f"Error: {error}")

# Given to rules as paths: of these, unlike text, no change makes a job run again, so the project may be moved.
PYTHON = Path(sys.executable)
SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
# What trials may use: in a job what Slurm gave to it, else this machine.
ALLOCATION = Path("slurm" if workflow.remote_exec else "local")
RESULTS = Path(config["results_dir"])
STATE = Path(config["state_dir"])
DATA = Path(config["resources_dir"]) / "data"
ENV = Path(config["resources_dir"]) / "env" / env_key(**env_arguments(config, ROOT))
LOGS = Path("logs")
SWEEPS = config["sweeps"]

quote_python()
quote_words()
answer_signals_in_a_thread()
cancel_all_on_ctrl_c()
if not workflow.remote_exec:
    say_as_much_as(workflow.output_settings)
RUN = Run(ROOT, LOGS)
if workflow.is_main_process:
    RUN.clear_up()


wildcard_constraints:
    sweep="|".join(map(re.escape, SWEEPS)),
    dataset="|".join(map(re.escape, config["datasets"])) or "(?!)",


def config_of(sweep):
    """The merged config as far as it concerns one sweep."""
    dataset = SWEEPS[sweep]["dataset"]
    return {
        **config,
        "datasets": {name: values for name, values in config["datasets"].items() if name == dataset},
        "sweeps": {sweep: SWEEPS[sweep]},
    }


def config_file(sweep):
    """Where the stages of a sweep read its config. A path, so that only what a rule names as `trigger` makes it run again."""
    return STATE / ".config" / f"{sweep}.yaml"


# Written when jobs are about to start, so not in a dry run.
onstart:
    for sweep in SWEEPS:
        write_yaml(config_file(sweep), config_of(sweep))
    RUN.begin()
    if workflow.non_local_exec:
        RUN.use_slurm(Path(workflow.basedir) / "cluster" / "bin", STATE, workflow.dag.needrun_jobs())


onerror:
    RUN.explain([job for job in workflow.scheduler.failed if not job.is_local], log)


def sources_of(sweep):
    """The files that define what a sweep trains."""
    paths = local_sources(target_of(SWEEPS[sweep], ROOT))
    return [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in paths]


def imports_of(sweep):
    """What the driver and the trials of a sweep import: parts of this workflow, with the libraries behind them, and what the sweep trains."""
    section = SWEEPS[sweep]
    names = ["raysweep.bookkeeping", "raysweep.search", "raysweep.schedulers"]
    algorithm = section["search_algorithm"]["name"]
    if algorithm in ("optuna", "hyperopt", "ax") or ".py:" in algorithm:
        names.append(algorithm)
    elif ":" in algorithm:  # a library's class
        names.append(algorithm.rpartition(":")[0])
    names += [name for name in ("mlflow", "wandb") if section[name] is not None]
    return [*names, "raysweep.training", section["model"]] if "model" in section else [*names, section["trainable"]]


def staged(sweep, *splits):
    """The staged files of a sweep's data set: the manifest, and the arrays of the splits that a rule may open."""
    dataset = SWEEPS[sweep]["dataset"]
    if dataset is None:
        return []
    arrays = [DATA / dataset / split / f"{kind}.npy" for split in splits for kind in ("images", "labels")]
    return [DATA / dataset / "manifest.yaml", *arrays]


def source_of(dataset):
    """Where a data set comes from, and behind it what the config says of a folder of images."""
    options = [f"--{key.replace('_', '-')}={dataset[key]}" for key in ("image_size", "test_fraction") if dataset[key] is not None]
    return [dataset["source"], *options] if options else dataset["source"]


def only_on_slurm(wildcards):
    """Nothing; ends Snakemake where there is no cluster to look at."""
    if not (workflow.non_local_exec or workflow.remote_exec or workflow.dryrun):
        sys.exit("Error: check_cluster looks at a cluster: run it with --executor slurm --profile cluster")
    return []
