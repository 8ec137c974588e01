# in:  the config
# out: the validated config, and the Python names that the other rule files use
import os
import re
import sys
from pathlib import Path

# This workflow may be a module of another workflow. The module then has another folder, config and prefix, see docs/as-a-module.md.
RULES = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
if not RULES.is_dir():
    sys.exit(f"Error: {workflow.current_basedir} is no folder here, and its rules need the scripts beside it: name a clone's Snakefile")
SCRIPTS = RULES.parent / "scripts"

# Snakemake already uses the name `workflow`, so `import workflow.scripts` is not possible. The folder of the package is on sys.path instead.
sys.path.insert(0, str(SCRIPTS))
from raysweep.common.durations import minutes
from raysweep.common.errors import VERBOSITY_ENV, ConfigError
from raysweep.common.machine import usable_cpus
from raysweep.common.typed_json import to_json
from raysweep.config.load import env_arguments, validated
from raysweep.config.model import Config
from raysweep.record.identity import confirmation_triggers, rerun_triggers
from raysweep.slurm.commands import slurm_extra, slurm_extra_of_sweep
from raysweep.slurm.runs import the_run
from raysweep.slurm.snakemake_private import Inclusion, adapt_snakemake, inherit_verbosity
from raysweep.stages.project import Project

if workflow.dryrun:  # only a dry run needs this module, and the import takes a tenth of a second
    from raysweep.stages.forecast import forecast

sys.path.remove(str(SCRIPTS))  # another workflow may have modules with equal names

ROOT = Path.cwd()
INCLUSION = Inclusion.of(workflow, RULES, config)
try:
    config_files = [Path(path) for path in workflow.configfiles]
    config = validated(config, config_files, ROOT, INCLUSION.module, INCLUSION.placed, INCLUSION.config_args)
except ConfigError as error:
    sys.exit("\n".join(f"Error: {line}" for line in error.lines))
CONFIG = Config.of(config)
PROJECT = Project(config, CONFIG, ROOT, is_module=INCLUSION.module is not None, placed=INCLUSION.placed)

# These parameters of the rules are of the type Path, because Snakemake does not run a job again for a changed Path. The project can thus be moved.
PYTHON = Path(sys.executable)
# "slurm" inside of a Slurm job, where trials use the nodes of the job. "local" otherwise, where trials use this machine.
ALLOCATION = Path("slurm" if workflow.remote_exec else "local")
LOGS = Path("logs")
RESULTS, STATE, DATA, ENV, SWEEPS = PROJECT.results, PROJECT.state, PROJECT.data, PROJECT.env, PROJECT.sweeps
placed, staged, config_file = PROJECT.placed, PROJECT.staged, PROJECT.config_file

adapt_snakemake()
if not workflow.remote_exec:
    inherit_verbosity(workflow.output_settings)
if workflow.dryrun and os.environ.get(VERBOSITY_ENV) != "little":
    for line in forecast(PROJECT):
        print(line, file=sys.stderr)
RUN = the_run(ROOT)
if workflow.is_main_process and not RUN.logs_dirs:  # only once, although this workflow may be included several times
    RUN.clear_up()
RUN.logs_dirs.append(placed(LOGS))


wildcard_constraints:
    sweep="|".join(map(re.escape, SWEEPS)),
    dataset="|".join(map(re.escape, config["datasets"])) or "(?!)",


# Write the config files and begin the run. Snakemake calls this function before jobs start, and not in a dry run.
def begin():
    try:
        RUN.configs |= PROJECT.write_configs()
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    RUN.begin()
    if workflow.non_local_exec:
        RUN.use_slurm(RULES.parents[1] / "cluster" / "bin", placed(STATE), INCLUSION.jobs_to_submit(RUN.configs))


# Explain the failed jobs to the user. Snakemake calls this function after jobs have failed.
def explain(log):
    RUN.explain(INCLUSION.submitted_jobs_that_failed(), log)


onstart:
    begin()


onerror:
    explain(log)


INCLUSION.call_in_time(begin, explain)  # Snakemake does not run `onstart` and `onerror` of a module


# Return the files that define what a sweep trains. The paths are marked as local, so that Snakemake does not add the prefix of a module.
def sources_of(sweep):
    return [local(path) for path in PROJECT.sources_of(sweep)]


# Return no input files, but end Snakemake with an error where Snakemake runs without Slurm.
def only_on_slurm(wildcards):
    if not (workflow.non_local_exec or workflow.remote_exec or workflow.dryrun):
        sys.exit("Error: check_cluster looks at a cluster: run it with --executor slurm --profile cluster")
    return []
