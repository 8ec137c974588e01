# in:  the config
# out: the validated config, and the names that the other rules use
import re
import sys
from pathlib import Path

# This may be a module of another workflow, whose folder, config and prefix are not ours: docs/as-a-module.md.
RULES = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
if not RULES.is_dir():
    sys.exit(f"Error: {workflow.current_basedir} is no folder here, and its rules need the scripts beside it: name a clone's Snakefile")
CHECKOUT = RULES.parents[1]
SCRIPTS = CHECKOUT / "workflow" / "scripts"

# Snakemake itself holds the name `workflow`, so the package is imported from its folder.
sys.path.insert(0, str(SCRIPTS))
from raysweep.slurm.commands import slurm_extra
from raysweep.config.load import env_arguments, validated
from raysweep.config.model import Config
from raysweep.slurm.runs import the_run
from raysweep.slurm.snakemake_private import Inclusion, adapt_snakemake, inherit_verbosity
from raysweep.environment.requirements import env_key
from raysweep.common.durations import minutes
from raysweep.common.errors import ConfigError
from raysweep.common.files import write_yaml
from raysweep.common.machine import usable_cpus
from raysweep.common.typed_json import to_json
from raysweep.cluster.lock import is_held
from raysweep.record.identity import rerun_triggers
from raysweep.usercode.target import find_target, local_sources

sys.path.remove(str(SCRIPTS))  # another workflow may have files of such names

ROOT = Path.cwd()

INCLUSION = Inclusion.of(workflow, RULES, config)

try:
    config = validated(config, [Path(path) for path in workflow.configfiles], ROOT, INCLUSION.module)
except ConfigError as error:
    sys.exit(f"Error: {error}")

CONFIG = Config.of(config)

# Given to rules as paths: of these, unlike text, no change makes a job run again, so the project may be moved.
PYTHON = Path(sys.executable)
# What trials may use: in a job what Slurm gave to it, else this machine.
ALLOCATION = Path("slurm" if workflow.remote_exec else "local")
RESULTS = Path(config["results_dir"])
STATE = Path(config["state_dir"])
DATA = Path(config["resources_dir"]) / "data"
ENV = Path(config["resources_dir"]) / "env" / env_key(env_arguments(config, ROOT))
LOGS = Path("logs")
SWEEPS = config["sweeps"]

adapt_snakemake()
if not workflow.remote_exec:
    inherit_verbosity(workflow.output_settings)


placed = INCLUSION.placed
RUN = the_run(ROOT)
if workflow.is_main_process and not RUN.logs_dirs:  # once, though several modules may be this workflow
    RUN.clear_up()
RUN.logs_dirs.append(placed(LOGS))


wildcard_constraints:
    sweep="|".join(map(re.escape, SWEEPS)),
    dataset="|".join(map(re.escape, config["datasets"])) or "(?!)",


def config_of(sweep):
    """The merged config as far as it concerns one sweep."""
    dataset = SWEEPS[sweep]["dataset"]
    folders = {key: str(placed(config[key])) for key in ("results_dir", "state_dir", "resources_dir")} if INCLUSION.module else {}
    return {
        **config,
        **folders,
        "datasets": {name: values for name, values in config["datasets"].items() if name == dataset},
        "sweeps": {sweep: SWEEPS[sweep]},
    }


def config_file(sweep):
    """Where the stages of a sweep read its config. A path, so that only what a rule names as `trigger` makes it run again."""
    return placed(STATE) / ".config" / f"{sweep}.yaml"


# When jobs are about to start, so not in a dry run.
def begin():
    for sweep in SWEEPS:
        if not is_held(placed(STATE) / sweep):  # a job that is started again reads this file once more; another run will be refused
            write_yaml(config_file(sweep), config_of(sweep))
    RUN.begin()
    if workflow.non_local_exec:
        RUN.use_slurm(CHECKOUT / "cluster" / "bin", placed(STATE), INCLUSION.outputs_to_make())


def explain(log):
    RUN.explain(INCLUSION.submitted_jobs_that_failed(), log)


onstart:
    begin()


onerror:
    explain(log)


INCLUSION.call_in_time(begin, explain)


def sources_of(sweep):
    """The files that define what a sweep trains."""
    paths = local_sources(find_target(CONFIG.sweeps[sweep].target, ROOT))
    return [local(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)) for path in paths]


def imports_of(sweep):
    """What the driver and the trials of a sweep import: parts of this workflow, with the libraries behind them, and what the sweep trains."""
    section = SWEEPS[sweep]
    names = ["raysweep.tune.record_callback", "raysweep.tune.search", "raysweep.tune.schedulers"]
    algorithm = section["search_algorithm"]["name"]
    if algorithm in ("optuna", "hyperopt", "ax") or ".py:" in algorithm:
        names.append(algorithm)
    elif ":" in algorithm:  # a library's class
        names.append(algorithm.rpartition(":")[0])
    names += [name for name in ("mlflow", "wandb") if section[name] is not None]
    return [*names, "raysweep.training.trainer", section["model"]] if "model" in section else [*names, section["trainable"]]


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
