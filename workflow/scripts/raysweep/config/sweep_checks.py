"""This module checks a sweep for mistakes that a JSON Schema cannot find.

Such a mistake is a contradiction between keys, or lies in a file that the sweep names. Each check yields mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from raysweep.common.bounds import BOUNDS
from raysweep.common.capacity import TrialResources, WorkerResources, capacity
from raysweep.common.durations import minutes
from raysweep.common.errors import ConfigError
from raysweep.common.machine import NodeSize
from raysweep.common.numeric import is_number
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.config.distributions import Choice, Distribution, Normal, Numeric
from raysweep.config.mistakes import Mistake
from raysweep.config.model import TUNE_NAMES
from raysweep.config.schema import definition, did_you_mean, hint, is_class, schema_mistakes
from raysweep.config.section import Section
from raysweep.config.space import grids_of, is_conditional, num_combinations, point_of, read_space, sets_training
from raysweep.config.tasks import LISTED, METRICS_TO_RAISE, TASKS, is_own_loss, listed_metrics_of, metrics_of, task_of
from raysweep.environment.requirements import lists
from raysweep.usercode.target import files_with_one_name, find_target, local_sources
from raysweep.usercode.target import is_class as target_is_class

# Packages that a sampler of Optuna needs beside Optuna and torch.
PACKAGES_OF_SAMPLER = {"gp": ("scipy",), "qmc": ("scipy",), "cmaes": ("cmaes",)}
RESERVED_NAMES = TUNE_NAMES | {NO_BETTER_FOR}  # names that a metric cannot have


def check_target(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the sweep has both or neither of `model` and `trainable`, or where the model or trainable cannot be found or read."""
    if sweep.is_of_model == ("trainable" in sweep.values):
        yield Mistake(sweep.path, "needs either model or trainable, and not both", unsound=(*sweep.path, "model"))
        return
    kind = "model" if sweep.is_of_model else "trainable"
    try:
        target = find_target(sweep.values[kind], sweep.root)
        local_sources(target)
        if kind == "trainable" and target_is_class(target):
            message = (
                "is a class. Allowed: a function that gets the configuration and calls tune.report (a tune.Trainable does not run here)"
            )
            yield sweep.mistake(f"{sweep.values[kind]!r} is not allowed: {target.name} {message}", kind)
    except ConfigError as error:
        yield sweep.mistake(str(error), kind)


def check_dataset(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the config lacks the data set of the sweep, or where a sweep with a model names no data set."""
    datasets = sweep.config["datasets"]
    if sweep.values["dataset"] is None and sweep.is_of_model:
        yield sweep.mistake("missing: a model is trained on a data set, so name one of datasets", "dataset")
    elif sweep.values["dataset"] is not None and sweep.values["dataset"] not in datasets:
        names = "one of " + ", ".join(datasets) if datasets else "there are no datasets"
        yield sweep.mistake(f"{sweep.values['dataset']!r} is not allowed: {names}", "dataset")


def check_class_of_algorithm(sweep: Section, key: str) -> Iterator[Mistake]:
    """Yield a mistake where the search algorithm, or the sampler of Optuna, is written as a class, and this class cannot exist. `key` is `name` or `sampler`.

    For a class of a library, only the form of the name is checked. The rule build_env later imports the class, because only the environment of the
    trials has the library.
    """
    name = sweep.values["search_algorithm"].get(key)
    if not is_class("search_algorithm", name):
        return
    module, _, class_name = name.rpartition(":")
    if module.endswith(".py"):
        try:
            find_target(name, sweep.root)
        except ConfigError as error:
            yield sweep.mistake(str(error), "search_algorithm", key)
    elif not all(part.isidentifier() for part in [*module.split("."), class_name]):
        message = f"{name!r} is not allowed: write path/to/file.py:Class or package.module:Class"
        yield sweep.mistake(message, "search_algorithm", key)


def check_packages_of_sampler(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the environment lacks a package that the sampler of Optuna needs."""
    sampler = sweep.values["search_algorithm"].get("sampler")
    for package in PACKAGES_OF_SAMPLER.get(sampler, ()):
        if not lists(sweep.requirements, package):
            yield _missing_package(sweep, sampler, package, "samplers", "search_algorithm", "sampler")
            return


def check_tracker(sweep: Section, tracker: str) -> Iterator[Mistake]:
    """Yield a mistake where the sweep uses the tracker `tracker` and the environment lacks the package of the tracker."""
    value = sweep.values[tracker]
    if value is not None and not any(lists(sweep.requirements, package) for package in (tracker, f"{tracker}-skinny")):
        yield _missing_package(sweep, value, tracker, "trackers", tracker)


def _missing_package(sweep: Section, value: str, package: str, file: str, *keys: str) -> Mistake:
    """Return a mistake for a value that needs `package`. The requirements file workflow/envs/`file`.in contains this package."""
    message = f"{value!r} is not allowed: env.requirements, {sweep.config['env']['requirements']}, does not list {package}"
    return sweep.mistake(f"{message}. Name workflow/envs/{file}.in there, or add it and lock again", *keys)


def check_space(sweep: Section) -> Iterator[Mistake]:
    """Yield the mistakes in the search space of a sweep."""
    for mistake in read_space(sweep.values["search_space"])[1]:
        yield sweep.mistake(mistake.message, "search_space", *mistake.path)


def check_space_fits_algorithm(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each distribution that the search algorithm does not support."""
    algorithm = sweep.algorithm
    for key, distribution in sweep.space.items():
        if not isinstance(distribution, Distribution):
            continue
        is_grid = isinstance(distribution, Choice) and distribution.name == "grid"
        keys = ("search_space", *key.split("/"))
        if algorithm == "grid" and not is_grid:
            message = f"{distribution.name} is not allowed with search_algorithm grid: grid, a nested space or a constant"
            yield sweep.mistake(message, *keys)
        if algorithm not in ("random", "grid") and is_grid:
            message = f"grid is not allowed with search_algorithm {algorithm}: choice, or search_algorithm random or grid"
            yield sweep.mistake(message, *keys)
        elif isinstance(distribution, Choice) and sweep.values["search_algorithm"].get("sampler") == "cmaes":
            message = f"{distribution.name} is not allowed with sampler cmaes, which takes only numbers: a distribution of numbers, or sampler tpe"
            yield sweep.mistake(message, *keys)


def check_points(sweep: Section) -> Iterator[Mistake]:
    """Yield the mistakes in `points_to_evaluate`, the configurations that the sweep tries first."""
    points, key = sweep.values["points_to_evaluate"], "points_to_evaluate"
    if points and is_conditional(sweep.space):
        yield sweep.mistake("is not allowed where search_space has one_of: no points, or choice", key)
        return
    if points and grids_of(sweep.space):
        message = "is not allowed where search_space has grid values, which are all gone through: choice, or no points"
        yield sweep.mistake(message, key)
        return
    if len(points) > sweep.values["num_samples"]:
        yield sweep.mistake(f"{len(points)} points are not allowed: at most num_samples, {sweep.values['num_samples']}", key)
    for number, point in enumerate(points):
        try:
            point_of(sweep.space, point)
        except ConfigError as error:
            yield sweep.mistake(str(error), key, number)


def _reserved_name(sweep: Section, metric: str, *keys: str | int) -> Mistake:
    """Return the mistake for a metric whose name Tune or the key `stop` uses for something else. `keys` lead to the metric in the sweep."""
    if metric == NO_BETTER_FOR:
        return sweep.mistake(f"{metric!r} is not allowed: stop has an entry of this name. Report your value under another name", *keys)
    return sweep.mistake(f"{metric!r} is not allowed: Ray Tune sets this name in each report. Report your value under another name", *keys)


def check_bounds(sweep: Section, key: str) -> Iterator[Mistake]:
    """Yield a mistake for each metric that a model does not report, and for each bound with a wrong form. `key` is `stop` or `constraint`."""
    for metric, bound in sweep.values[key].items():
        if metric == NO_BETTER_FOR and key == "stop":
            schema = definition("no_better_for_of_stop")
            yield from schema_mistakes(bound, schema, (*sweep.path, key, metric))
        elif key == "constraint" and metric in RESERVED_NAMES:
            yield _reserved_name(sweep, metric, key, metric)
        elif not isinstance(metric, str) or (sweep.is_of_model and metric not in _metrics(sweep)):
            names = f"one of {', '.join(_metrics(sweep))}, which model reports" if sweep.is_of_model else "the name of a metric"
            yield sweep.mistake(f"{metric!r} is not allowed: {names}{_how_to_list(sweep, metric)}", key, metric)
        elif not (isinstance(bound, dict) and len(bound) == 1 and bound.keys() <= BOUNDS.keys() and all(map(is_number, bound.values()))):
            yield sweep.mistake(f"{bound!r} is not allowed: {{at_least: number}} or {{at_most: number}}", key, metric)


def check_patience_of_trials(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where `stop.no_better_for` waits longer than a trial trains, so that no trial could end by it."""
    patience, max_epochs = sweep.values["stop"].get(NO_BETTER_FOR), sweep.values["max_epochs"]
    if patience and patience["epochs"] > max_epochs:
        message = f"{patience['epochs']} epochs are not allowed: at most max_epochs, {max_epochs}, because no trial could end by it"
        yield sweep.mistake(message, "stop", NO_BETTER_FOR)


def check_patience_of_sweep(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where `end_when.no_better_for` waits for more configurations than the sweep has, so that the sweep could not end by it."""
    patience, total = sweep.values["end_when"].get(NO_BETTER_FOR), sweep.values["num_samples"] * num_combinations(sweep.space)
    if patience and patience["configurations"] > total:
        name = "num_samples" if total == sweep.values["num_samples"] else "num_samples times the grid values"
        message = (
            f"{patience['configurations']} configurations are not allowed: at most {name}, {total}, because the sweep could not end by it"
        )
        yield sweep.mistake(message, "end_when", NO_BETTER_FOR)


def _metrics(sweep: Section) -> tuple[str, ...]:
    """Return the metrics that the model reports. Where only the staged data will say the task, these are the metrics of all tasks."""
    return tuple(dict.fromkeys([*metrics_of(task_of(sweep.values, sweep.config)), *sweep.values["metrics"]]))


def _how_to_list(sweep: Section, metric: Any) -> str:
    """Return how the model can report `metric`, for the end of a message, or an empty text where no model reports `metric`."""
    if not sweep.is_of_model or metric not in listed_metrics_of(task_of(sweep.values, sweep.config)):
        return ""
    return f". To compute {metric}, write metrics: [{', '.join([*sweep.values['metrics'], metric])}]"


def check_metrics(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each name in `metrics` that is unknown, belongs to another task, or needs probabilities that the loss does not give."""
    task, loss = task_of(sweep.values, sweep.config), sweep.values["loss"]
    names = (*metrics_of(task), *listed_metrics_of(task))
    for number, metric in enumerate(sweep.values["metrics"]):
        if metric not in (*metrics_of(None), *LISTED):
            name_of_function = {listed.function.removeprefix("multiclass_"): name for name, listed in LISTED.items()}
            yield sweep.mistake(
                f"{metric!r} is not allowed. {hint(name_of_function.get(metric, metric.lower()), names)}", "metrics", number
            )
        elif task is not None and (refusal := TASKS[task].refusal_of_metric(metric)):
            yield sweep.mistake(refusal, "metrics", number)
        elif loss == "multi_margin_loss" and metric in LISTED and LISTED[metric].compares == "probabilities":
            message = "which gives no probabilities: loss cross_entropy or nll_loss, or leave the metric out"
            yield sweep.mistake(f"{metric!r} is not allowed with loss {loss}, {message}", "metrics", number)


def check_loss(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the loss is for another task than the config says, or where the user's own loss is no function or cannot be imported."""
    task, loss = task_of(sweep.values, sweep.config), sweep.values["loss"]
    known = [name for facts in TASKS.values() for name in facts.losses]
    if is_own_loss(loss):
        try:
            target, model = (find_target(text, sweep.root) for text in (loss, sweep.values["model"]))
            if target_is_class(target):
                yield sweep.mistake(f"{loss!r} is not allowed: {target.name} is a class. Allowed: a function of (outputs, targets)", "loss")
            if files := files_with_one_name(model, target):
                reason = f"the model needs {files[0]}, the loss needs {files[1]}, and Python would import only one of them. Rename one"
                yield sweep.mistake(f"{loss!r} is not allowed: {reason}", "loss")
        except ConfigError as error:
            yield sweep.mistake(str(error), "loss")
    elif loss not in known:
        names = f"one of {', '.join(known)}, or path/to/file.py:function{did_you_mean(loss, known)}"
        yield sweep.mistake(f"{loss!r} is not allowed: {names}", "loss")
    elif task is not None and (message := TASKS[task].refusal_of(loss)):
        yield sweep.mistake(message, "loss")


def check_metric(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where a trial cannot report a metric by which trials are compared, or where a mode is max although less of the metric is better."""
    objectives = sweep.values["objectives"]
    if not objectives:
        yield from _check_objective(sweep, sweep.values["metric"], sweep.values["mode"])
    for number, objective in enumerate(objectives):
        yield from _check_objective(sweep, objective["metric"], objective.get("mode", "max"), "objectives", number)


def _check_objective(sweep: Section, metric: str, mode: str, *keys: str | int) -> Iterator[Mistake]:
    """Yield the mistakes of an objective. `keys` lead to the map with `metric` and `mode`."""
    if not sweep.is_of_model:
        if metric in RESERVED_NAMES:
            yield _reserved_name(sweep, metric, *keys, "metric")
    elif metric not in _metrics(sweep):
        names = f"{', '.join(_metrics(sweep))}{_how_to_list(sweep, metric)}"
        yield sweep.mistake(f"{metric!r} is not allowed with model: one of {names}", *keys, "metric")
    elif metric not in METRICS_TO_RAISE and mode == "max":
        yield sweep.mistake(f"'max' is not allowed with metric {metric}, of which less is better: write mode: min", *keys, "mode")


def check_objectives(sweep: Section) -> Iterator[Mistake]:
    """Yield the mistakes of several objectives: a single one, a metric that is named twice, keys that contradict the objectives, and an unknown choice."""
    objectives, choose = sweep.values["objectives"], sweep.values["choose"]
    metrics = [objective["metric"] for objective in objectives]
    if len(objectives) == 1:
        yield sweep.mistake("one objective is not allowed: two or more, or metric and mode instead", "objectives")
    for number, metric in enumerate(metrics):
        if metric in metrics[:number]:
            yield sweep.mistake(
                f"{metric!r} is not allowed: another objective has this metric. Each metric once", "objectives", number, "metric"
            )
    if objectives and (sweep.values["metric"], sweep.values["mode"]) != (metrics[0], objectives[0].get("mode", "max")):
        yield sweep.mistake(f"{sweep.values['metric']!r} is not allowed beside objectives: leave metric and mode out", "metric")
    names = [*metrics, "knee"]
    if choose is not None and not objectives:
        yield sweep.mistake(f"{choose!r} is not allowed without objectives: leave it out", "choose")
    elif choose is not None and choose not in names:
        yield sweep.mistake(f"{choose!r} is not allowed: one of {', '.join(names)}{did_you_mean(choose, names)}", "choose")


def check_learning_rate(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the search space of a model lacks `lr`, or where a value of `lr` is not a number above 0."""
    if "lr" not in sweep.space:
        yield _missing_training_key(sweep, "lr")
        return
    wrong = [value for value in extremes(sweep.space["lr"]) if not (is_number(value) and value > 0)]
    if wrong:
        yield sweep.mistake(f"{wrong[0]!r} is not allowed: numbers above 0", "search_space", "lr")


def check_batch_size(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the search space of a model lacks `batch_size`, or where a batch size is not a whole number of at least 1."""
    if "batch_size" not in sweep.space:
        yield _missing_training_key(sweep, "batch_size")
        return
    batch_size = sweep.space["batch_size"]
    if isinstance(batch_size, Normal) or (isinstance(batch_size, Numeric) and not batch_size.whole):
        message = "whole numbers of at least 1, from randint, lograndint, choice, grid, or quniform or qloguniform with a whole step"
        yield sweep.mistake(f"{batch_size.name} is not allowed here: {message}", "search_space", "batch_size")
        return
    wrong = [value for value in extremes(batch_size) if not (is_number(value) and float(value).is_integer() and value >= 1)]
    if wrong:
        yield sweep.mistake(f"{wrong[0]!r} is not allowed: whole numbers of at least 1", "search_space", "batch_size")


def _missing_training_key(sweep: Section, key: str) -> Mistake:
    """Return a mistake for a search space that lacks `key`, which the training of a model needs."""
    return sweep.mistake("missing: the training of a model needs it, as a distribution or a constant", "search_space", key)


def extremes(value: Any) -> list[Any]:
    """Return the smallest and the largest value of a numeric or normal distribution, all values of a list, or a constant."""
    if isinstance(value, Numeric | Normal):
        return [value.quantile(0), value.quantile(1)]
    return list(value.values) if isinstance(value, Choice) else [value]


def check_grace_period(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where `grace_period` exceeds `max_epochs`, because the scheduler could then never stop a trial."""
    grace_period, max_epochs = sweep.values["scheduler"].get("grace_period", 1), sweep.values["max_epochs"]
    if grace_period > max_epochs:
        yield sweep.mistake(f"{grace_period} is not allowed: at most max_epochs, {max_epochs}", "scheduler", "grace_period")


def check_pbt(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the search space has a `one_of`, or has no setting that population based training can change during a training."""
    if sweep.scheduler != "pbt":
        return
    keys = [key for key, d in sweep.space.items() if isinstance(d, Distribution) and (not sweep.is_of_model or sets_training(key))]
    if is_conditional(sweep.space):
        yield sweep.mistake("'pbt' is not allowed where search_space has one_of: asha, or choice", "scheduler", "name")
    elif not keys:
        message = "'pbt' is not allowed: it changes settings in the middle of a training, and nothing that is searched can change then"
        yield sweep.mistake(f"{message}. Allowed: a distribution for lr, batch_size or the like", "scheduler", "name")


def check_allocation(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each key of the allocation that contradicts another key of the allocation."""
    allocation = sweep.values["allocation"]
    if allocation["max_wait"] is not None and allocation["resubmit"]:
        reason = "null where resubmit is above 0, since Slurm counts it from the first start of a job"
        yield sweep.mistake(f"{allocation['max_wait']} is not allowed: {reason}", "allocation", "max_wait")
    if allocation["runtime_min"] is not None:
        if minutes(allocation["runtime_min"]) > minutes(allocation["runtime"]):
            message = f"{allocation['runtime_min']} is not allowed: at most allocation.runtime, {allocation['runtime']}"
            yield sweep.mistake(message, "allocation", "runtime_min")
        if allocation["max_wait"] is not None:
            reason = "null where runtime_min is set, since Slurm would shorten a job that has waited long and not remove it"
            yield sweep.mistake(f"{allocation['max_wait']} is not allowed: {reason}", "allocation", "max_wait")
    if (allocation["min_nodes"] or 1) > allocation["nodes"]:
        message = f"{allocation['min_nodes']} is not allowed: at most allocation.nodes, {allocation['nodes']}"
        yield sweep.mistake(message, "allocation", "min_nodes")


def check_max_gpu_hours(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where `max_gpu_hours` stands in a sweep without GPUs, because such a sweep could not end by it."""
    if sweep.values["max_gpu_hours"] is not None and sweep.values["allocation"]["gpus_per_node"] == 0:
        reason = (
            "null with allocation.gpus_per_node 0, because a sweep without GPUs uses no GPU-hours. time_budget limits the time of any sweep"
        )
        yield sweep.mistake(f"{sweep.values['max_gpu_hours']} is not allowed: {reason}", "max_gpu_hours")


def check_gpus_of_trial(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the GPUs of a trial are not a number, or are more GPUs than one node has.

    A number above 1 that is not whole is also a mistake, because a trial uses whole GPUs or a part of one GPU.
    """
    gpu = sweep.values["trial_resources"]["gpu"]
    if isinstance(gpu, str) and gpu != "auto":
        yield sweep.mistake(f"{gpu!r} is not allowed: a number of at least 0, or auto", "trial_resources", "gpu")
        return
    too_many = list(check_fits_node(sweep, "gpu"))
    yield from too_many
    if not too_many and gpu != "auto" and gpu > 1 and not float(gpu).is_integer():
        yield sweep.mistake(f"{gpu} is not allowed: a part of one GPU, or whole GPUs", "trial_resources", "gpu")


def check_fits_node(sweep: Section, key: str) -> Iterator[Mistake]:
    """Yield a mistake where a trial needs more CPUs or GPUs than one node has. `key` is `cpu` or `gpu`. A trial with `auto` needs a GPU."""
    needed, on_node = sweep.values["trial_resources"][key], sweep.values["allocation"][f"{key}s_per_node"]
    if (1 if needed == "auto" else needed) > on_node:
        reason = f"a trial runs on one node, so at most allocation.{key}s_per_node, {on_node}"
        yield sweep.mistake(f"{needed} is not allowed: {reason}", "trial_resources", key)


def check_workers(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the nodes of the allocation cannot hold a trial with its workers."""
    resources, allocation = sweep.values["trial_resources"], sweep.values["allocation"]
    if resources["workers"] is None:
        return
    workers, key = WorkerResources(**resources["workers"]), ("trial_resources", "workers")
    node = NodeSize("", allocation["cpus_per_node"], allocation["gpus_per_node"])
    trial = TrialResources(resources["cpu"], resources["gpu"])
    if capacity([node], trial) and not capacity([node] * allocation["nodes"], replace(trial, workers=workers)):
        nodes = f"allocation.nodes {allocation['nodes']} with cpus_per_node {node.cpus} and gpus_per_node {node.gpus}"
        message = f"{workers} are not allowed: {nodes} hold no trial of {trial.cpu:g} CPUs and {trial.gpu:g} GPUs with these workers"
        yield sweep.mistake(f"{message}, each on one node", *key)
