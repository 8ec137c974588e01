from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import ROOT, assert_refused, check, config, ids, num_trials, own, refusal, sweep
from raysweep.config.model import Config
from user_files import write_files


def test_a_trainable_has_neither_loss_nor_optimizer(root: Path) -> None:
    assert not {"loss", "optimizer"} & check(root, own())["sweeps"]["s"].keys()
    assert "sweeps.s.loss: 'nll_loss' is not allowed beside trainable" in refusal(root, own(loss="nll_loss"))


def with_folds(folds: Any, **changes: Any) -> dict[str, Any]:
    """A sweep on a data set with folds."""
    return config(**changes) | {"datasets": {"synthetic": {"source": "synthetic", "validation": {"folds": folds}}}}


def test_each_fold_is_one_trial_of_a_configuration(root: Path) -> None:
    whole = check(root, with_folds(5, num_samples=3, scheduler="asha", max_epochs=2))
    assert whole["sweeps"]["s"]["repeats"] == 5
    assert num_trials(whole) == 15
    assert check(root, whole) == whole, "the config that a sweep publishes is a config"


@pytest.mark.parametrize(
    "distribution",
    [
        {"randint": [1, 9]},
        {"lograndint": [1, 9]},
        {"quniform": [1, 9, 2]},
        {"qloguniform": [1, 9, 1]},
        {"choice": [4, 8.0]},
        {"grid": [4]},
        16,
    ],
)
def test_batch_sizes_that_are_whole(root: Path, distribution: Any) -> None:
    assert num_trials(check(root, config(search_space={"lr": 1, "batch_size": distribution}))) == 1


def test_numbers_of_the_recipe_are_searched_and_the_length_of_a_schedule_is_left_to_the_first_session(root: Path) -> None:
    space = {"lr": 1, "batch_size": 1, "training": {"label_smoothing": {"uniform": [0, 0.3]}, "schedule": {"gamma": {"choice": [0.5, 1]}}}}
    given = config(search_space=space, training={"schedule": "step", "clip_grad_norm": 2}, max_epochs=7)
    training = check(root, given)["sweeps"]["s"]["training"]
    assert training == {
        "schedule": {"name": "step", "epochs": None, "step_size": None, "gamma": 0.1},
        "warmup_epochs": 0,
        "label_smoothing": 0,
        "clip_grad_norm": 2,
        "ema_decay": 0,
        "class_weights": "none",
        "precision": "float32",
        "augment": [],
    }


def test_less_loss_is_better(root: Path) -> None:
    for metric in ("loss", "train_loss"):
        assert check(root, config(metric=metric, mode="min"))["sweeps"]["s"]["mode"] == "min"
    assert check(root, own(metric="loss"))["sweeps"]["s"]["mode"] == "max", "what a trainable calls loss is its own affair"


@pytest.mark.parametrize(
    "metric", ["metrics/mAP50-95(B)", "recall@5", "F1 score", "val[0].loss", "{x}", "-loss", "12", 'a "quoted" name', "Güte"]
)
def test_any_name_that_a_function_can_report_is_a_metric(root: Path, metric: str) -> None:
    assert check(root, own(metric=metric))["sweeps"]["s"]["metric"] == metric


def test_a_file_that_the_target_imports_is_no_python(root: Path) -> None:
    (root / "train.py").write_text("import helper\ndef train(config): ...\n")
    (root / "helper.py").write_text("x = 1\ndef f(:\n")
    assert refusal(root, own()) == (
        f"config.yaml: sweeps.s.trainable: 'train.py:train' is not allowed: {root}/helper.py is not Python that can be read: invalid syntax (line 2)"
    )


def searched(**recipe: Any) -> dict[str, Any]:
    return config(search_space={"lr": 1, "batch_size": 1, "training": recipe})


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (config(model=None), "s: needs either model or trainable, and not both"),
    (config(trainable="train.py:train"), "s: needs either model or trainable, and not both"),
    (config(model="lenet"), "model: 'lenet' is not allowed: write path/to/file.py:name or package.module:name"),
    (config(dataset=None), "dataset: missing: a model is trained on a data set, so name one of datasets"),
    (config(dataset="mnist"), "dataset: 'mnist' is not allowed: one of synthetic"),
    ({"sweeps": {"s": sweep()}}, "dataset: 'synthetic' is not allowed: there are no datasets"),
    (config(metric="loss"), "mode: 'max' is not allowed with metric loss, of which less is better: write mode: min"),
    (config(metric="train_loss", mode="max"), "mode: 'max' is not allowed with metric train_loss, of which less is better"),
    (config(metric="f1"), "metric: 'f1' is not allowed with model: one of accuracy, loss, train_loss"),
    (config(scheduler="pbt", max_concurrent=2), "max_concurrent: 2 is not allowed with scheduler pbt, which takes all trials"),
    (config(scheduler="pbt", search_algorithm="optuna"), "search_algorithm: 'optuna' is not allowed with scheduler pbt, which takes all"),
    (
        config(points_to_evaluate=[{"lr": 5}]),
        "points_to_evaluate.0: lr: 5 is not allowed: a number from 0.0001 to 0.1, as search_space says",
    ),
    (
        config(num_samples=2, points_to_evaluate=[{}, {"batch_size": 3}]),
        "points_to_evaluate.1: batch_size: 3 is not allowed: one of 2, 4, as search_space says",
    ),
    (config(points_to_evaluate=[{"depth": 3}]), "points_to_evaluate.0: depth: is not searched. Allowed: lr, batch_size"),
    (
        config(points_to_evaluate=[{1: 2}]),
        "points_to_evaluate.0: 1: is not allowed: a point is nested as search_space is, with text as keys",
    ),
    (config(constraint={"loss": {"below": 1}}), "constraint.loss: {'below': 1} is not allowed: {at_least: number} or {at_most: number}"),
    (own(metric="time_total_s"), "metric: 'time_total_s' is not allowed: Ray Tune sets this name in each report. Report your value under"),
    (own(constraint={"timestamp": {"at_most": 1}}), "constraint.timestamp: 'timestamp' is not allowed: Ray Tune sets this name in each"),
    (config(mlflow="local"), "mlflow: 'local' is not allowed: env.requirements, "),
    (config(wandb="mine"), "wandb: 'mine' is not allowed: env.requirements, "),
    (config(search_algorithm="hyperopt"), "search_algorithm.name: 'hyperopt' is not allowed: one of "),
    (config(search_algorithm="nosuch.py:Search"), "search_algorithm.name: 'nosuch.py:Search' is not allowed: there is no file nosuch.py"),
    (
        config(search_algorithm={"name": "optuna", "sampler": "nosuch.py:Search"}),
        "search_algorithm.sampler: 'nosuch.py:Search' is not allowed: there is no file nosuch.py",
    ),
    (config(search_algorithm={"name": "optuna", "sampler": "a b:C"}), "search_algorithm.sampler: 'a b:C' is not allowed: write path/to"),
    *(
        (
            config(search_algorithm={"name": "optuna", "sampler": sampler}, search_space={"lr": 0.1, "batch_size": 8}),
            f"search_algorithm.sampler: '{sampler}' is not allowed: env.requirements, {ROOT}/workflow/envs/node.in, does not list {package}."
            " Name workflow/envs/samplers.in there",
        )
        for sampler, package in (("gp", "scipy"), ("qmc", "scipy"), ("cmaes", "cmaes"))
    ),
    (
        config(search_algorithm={"name": "optuna", "sampler": "cmaes"}, search_space={"lr": 0.1, "batch_size": {"choice": [1, 2]}})
        | {"env": {"requirements": "workflow/envs/samplers.in"}},
        "search_space.batch_size: choice is not allowed with sampler cmaes, which takes only numbers: a distribution of numbers",
    ),
    (
        config(search_algorithm="a library:Search"),
        "search_algorithm.name: 'a library:Search' is not allowed: write path/to/file.py:Class or",
    ),
    (own(training={"label_smoothing": 0.1}), "is not allowed beside trainable: it belongs to model"),
    (config(training={"warmup": 1}), "training.warmup: unknown key. Did you mean warmup_epochs? Allowed: schedule, warmup_epochs, "),
    (
        config(training={"schedule": "cosin"}),
        "training.schedule.name: 'cosin' is not allowed: one of constant, cosine, onecycle, step, exponential. Did you mean cosine?",
    ),
    (config(training={"schedule": {"name": "cosine", "gamma": 1}}), "training.schedule.gamma: unknown option of cosine. Allowed: epochs"),
    (config(training={"schedule": {"epochs": 3}}), "training.schedule.name: missing. Allowed: one of constant, cosine"),
    (
        config(training={"schedule": {"name": "step", "gamma": 2}}),
        "training.schedule.gamma: 2 is not allowed: a number, above 0 and at most 1",
    ),
    (config(training={"label_smoothing": 1}), "training.label_smoothing: 1 is not allowed: a number, at least 0 and below 1"),
    (
        config(training={"schedule": "onecycle", "warmup_epochs": 0.5}),
        "training.warmup_epochs: 0.5 is not allowed with schedule onecycle, which has its own warm-up: 0",
    ),
    (
        config(training={"schedule": "cosine", "warmup_epochs": 1}),
        "training.warmup_epochs: 1 is not allowed: below the 1 epochs of the sch",
    ),
    (
        config(training={"label_smoothing": 0.1}, loss="nll_loss"),
        "training.label_smoothing: 0.1 is not allowed with loss nll_loss: 0, or loss cross_entropy",
    ),
    (
        searched(label_smoothing={"uniform": [0, 1]}),
        "search_space.training.label_smoothing: 1.0 is not allowed: a number, at least 0 and bel",
    ),
    (
        searched(smoothing=0.1),
        "search_space.training.smoothing: is no number of the recipe. Allowed: warmup_epochs, label_smoothing, clip_",
    ),
    (
        searched(schedule={"gamma": 0.5}),
        "search_space.training.schedule.gamma: is no number of the recipe. Allowed: warmup_epochs, label_sm",
    ),
    (
        searched(schedule={"choice": ["cosine", "step"]}),
        "search_space.training.schedule: is no number of the recipe. Allowed: warmup_epoch",
    ),
    (searched(clip_grad_norm={"choice": [1, "x"]}), "search_space.training.clip_grad_norm: 'x' is not allowed: a number or null, above 0"),
    (config(loss="cross_entropi"), "smooth_l1_loss, huber_loss, or path/to/file.py:function. Did you mean cross_entropy?"),
    (config(loss="losses.py:mine"), "loss: 'losses.py:mine' is not allowed: there is no file losses.py"),
    (
        config(loss="raysweep.models.lenet:LeNet"),
        "loss: 'raysweep.models.lenet:LeNet' is not allowed: LeNet is a class. Allowed: a function of",
    ),
    (
        config(loss="train.py:train", training={"label_smoothing": 0.1}),
        "training.label_smoothing: 0.1 is not allowed with loss train.py:train: 0, or loss cross_entropy",
    ),
    (
        config(training={"class_weights": "balanced"}, loss="multi_margin_loss"),
        "training.class_weights: balanced is not allowed with loss mul",
    ),
    (config(training={"precision": "fp16"}), "training.precision: 'fp16' is not allowed: one of float32, bf16"),
    (
        config(training={"augment": ["flop"]}),
        "training.augment.0: 'flop' is not allowed: one of flip, crop, translate, cutout, mixup, or a m",
    ),
    (config(training={"augment": [3]}), "training.augment.0: 3 is not allowed: flip, or a map of one operation"),
    (config(training={"augment": ["crop", {"crop": {"padding": 1}}]}), "training.augment.1: crop is not allowed twice"),
    (config(training={"augment": [{}]}), "training.augment.0: {} is not allowed: one of flip, crop, translate, cutout, mixup, or a m"),
    (config(training={"augment": [{"flip": {"p": 1}}]}), "training.augment.0.flip: {'p': 1} is not allowed: flip has no options"),
    (config(training={"augment": [{"crop": 4}]}), "training.augment.0.crop: 4 is not allowed: a map such as {padding: 4}"),
    (
        config(training={"augment": [{"crop": {"padding": 0.5}}]}),
        "training.augment.0.crop.padding: 0.5 is not allowed: a whole number of at least 1 (pixels)",
    ),
    (
        config(training={"augment": [{"translate": {"fraction": 2}}]}),
        "training.augment.0.translate.fraction: 2 is not allowed: a number, above 0 and at most 1",
    ),
    (
        config(training={"augment": [{"mixup": {"alpha": 0}}]}),
        "training.augment.0.mixup.alpha: 0 is not allowed: a number, above 0 and at most 1000",
    ),
    (
        config(training={"augment": ["flip", {"mixup": {"alpha": 1}}]}, loss="nll_loss"),
        "training.augment: mixup is not allowed with loss nll_loss: leave it out, or take loss cross_entropy",
    ),
    (config(optimizer="sgdm"), "nadam, radam, rmsprop, rprop. Did you mean sgd?"),
    (
        config(optimizer="rprop", search_space={"lr": 1, "batch_size": 1, "weight_decay": 0.1}),
        "search_space.weight_decay: is not allowed with optimizer rprop: it has no such setting",
    ),
    (
        config(optimizer="rprop", training={"schedule": "cosine"}),
        "training.schedule.name: 'cosine' is not allowed with optimizer rprop, which reads lr only at its beginning, or one step late: constant",
    ),
    (
        config(optimizer="asgd", training={"warmup_epochs": 1}),
        "training.warmup_epochs: 1 is not allowed with optimizer asgd, which reads lr",
    ),
    (
        config(optimizer="rprop", scheduler="pbt"),
        "scheduler.name: 'pbt' is not allowed with optimizer rprop, which reads lr only at its beg",
    ),
    (
        config(
            training={"schedule": "cosine"},
            search_space={"lr": 1, "batch_size": 1, "training": {"schedule": {"epochs": {"choice": [3, None]}}}},
        ),
        "search_space.training.schedule.epochs: None is not allowed: a number or null, above 0",
    ),
    (config(stop={"error": {"at_most": 1}}), "stop.error: 'error' is not allowed: one of accuracy, loss, train_loss, which model reports"),
    (own(stop={"no_better_for": 0}), "stop.no_better_for.epochs: 0 is not allowed: a whole number, at least 1"),
    (own(stop={"no_better_for": {"at_least": 3, "epochs": 1}}), "stop.no_better_for.at_least: unknown key. Allowed: epochs, min_delta"),
    (own(stop={"no_better_for": {"min_delta": 1}}), "stop.no_better_for.epochs: missing. Allowed: a whole number, at least 1"),
    (own(stop={"no_better_for": {"epochs": 1, "min_delta": -1}}), "min_delta: -1 is not allowed: a number, at least 0"),
    (own(stop={"no_better_for": "long"}), "stop.no_better_for: 'long' is not allowed: a number of epochs, or {epochs, min_delta}"),
    (own(stop={"no_better_for": 4}, max_epochs=3), "stop.no_better_for: 4 epochs are not allowed: at most max_epochs, 3"),
    (own(end_when={"no_better_for": 0}), "end_when.no_better_for.configurations: 0 is not allowed: a whole number, at least 1"),
    (own(end_when={"no_better_for": None}), "None is not allowed: a number of configurations, or {configurations, min_delta}"),
    (own(end_when={"no_better_for": {"configurations": 1, "epochs": 1}}), "no_better_for.epochs: unknown key"),
    (own(end_when={"better": 1}), "end_when.better: unknown key. Did you mean no_better_for?"),
    (own(end_when={"no_better_for": 7}, num_samples=6), "end_when.no_better_for: 7 configurations are not allowed: at most num_samples, 6"),
    (
        own(end_when={"no_better_for": 7}, num_samples=2, search_space={"x": {"grid": [1, 2, 3]}}),
        "7 configurations are not allowed: at most num_samples times the grid values, 6",
    ),
    (
        own(max_gpu_hours=5),
        "max_gpu_hours: 5 is not allowed: null with allocation.gpus_per_node 0, because a sweep without GPUs uses no GPU-hours",
    ),
    (own(max_gpu_hours=0, allocation={"gpus_per_node": 1}), "max_gpu_hours: 0 is not allowed: a number or null, above 0"),
    (own(warm_start="old.csv"), "warm_start: 'old.csv' is not allowed with search_algorithm 'random', which does not learn from results"),
    (own(warm_start="", search_algorithm="optuna"), "warm_start: '' is not allowed: a path, sqlite:///<file>, or null"),
    (own(metric="no_better_for"), "metric: 'no_better_for' is not allowed: stop has an entry of this name"),
    (own(constraint={"no_better_for": {"at_least": 1}}), "constraint.no_better_for: 'no_better_for' is not allowed: stop has an entry"),
    (config(stop={"loss": 0.1}), "stop.loss: 0.1 is not allowed: {at_least: number} or {at_most: number}"),
    (config(stop={"loss": {"at_most": "0.1x"}}), "stop.loss: {'at_most': '0.1x'} is not allowed: {at_least: number} or {at_most: number}"),
    (config(points_to_evaluate=[{}] * 2), "points_to_evaluate: 2 points are not allowed: at most num_samples, 1"),
    (
        config(points_to_evaluate=[{"lr": 0.01}], search_space={"lr": {"loguniform": [1e-4, 1]}, "batch_size": {"grid": [2]}}),
        "points_to_evaluate: is not allowed where search_space has grid values",
    ),
    (config(scheduler={"name": "asha", "grace_period": 2}), "scheduler.grace_period: 2 is not allowed: at most max_epochs, 1"),
    (
        config(scheduler="hyperband", search_algorithm="optuna"),
        "search_algorithm: 'optuna' is not allowed with scheduler hyperband, which takes all configurations before",
    ),
    (config(scheduler="hyperband", max_concurrent=2), "max_concurrent: 2 is not allowed with scheduler hyperband, which takes all trials"),
    (
        config(scheduler="hyperband", trial_resources={"gpu": "auto"}, allocation={"gpus_per_node": 1}),
        "trial_resources.gpu: auto is not allowed with scheduler hyperband, which starts all trials before one could be measured",
    ),
    (
        config(search_algorithm="grid", search_space={"lr": {"uniform": [0.1, 1]}, "batch_size": {"grid": [1]}}),
        "search_space.lr: uniform is not allowed with search_algorithm grid: grid, a nested space",
    ),
    (
        config(search_algorithm="optuna", search_space={"lr": 0.1, "batch_size": {"grid": [1]}}),
        "search_space.batch_size: grid is not allowed with search_algorithm optuna: choice, or search_algorithm random or grid",
    ),
    (own(search_algorithm="grid", search_space={"a": {"b": {"uniform": [0, 1]}}}), "search_space.a.b: uniform is not allowed with search"),
    (config(search_space={"lr": 0.1}), "search_space.batch_size: missing: the training of a model needs it"),
    (config(search_space={"lr": 0, "batch_size": 1}), "search_space.lr: 0 is not allowed: numbers above 0"),
    (config(search_space={"lr": {"uniform": [0, 1]}, "batch_size": 1}), "search_space.lr: 0.0 is not allowed: numbers above 0"),
    (config(search_space={"lr": {"choice": [0.1, "x"]}, "batch_size": 1}), "search_space.lr: 'x' is not allowed: numbers above 0"),
    (
        config(search_space={"lr": 1, "batch_size": {"uniform": [2, 16]}}),
        "batch_size: uniform is not allowed here: whole numbers of at least 1",
    ),
    (config(search_space={"lr": 1, "batch_size": {"loguniform": [2, 16]}}), "batch_size: loguniform is not allowed here: whole numbers"),
    (config(search_space={"lr": 1, "batch_size": {"quniform": [2, 16, 0.5]}}), "batch_size: quniform is not allowed here: whole numbers"),
    (
        config(search_space={"lr": 1, "batch_size": {"normal": [100, 1]}}),
        "batch_size: normal is not allowed here: whole numbers of at least 1",
    ),
    (config(search_space={"lr": 1, "batch_size": {"quniform": [0, 16, 2]}}), "batch_size: 0.0 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": {"choice": [2.5]}}), "batch_size: 2.5 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": {"choice": [0, 2]}}), "batch_size: 0 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": True}), "batch_size: True is not allowed: whole numbers of at least 1"),
    (
        config(optimizer="adam", search_space={"lr": 1, "batch_size": 1, "momentum": 0.9}),
        "search_space.momentum: is not allowed with optimizer adam: it has no such setting",
    ),
    (config(search_space={"lr": 1, "batch_size": 1, "betas": 0}), "search_space.betas: is not allowed with optimizer sgd"),
    (config(trial_resources={"cpu": 1.5}), "trial_resources.cpu: 1.5 is not allowed: a trial runs on one node, so at most"),
    (config(trial_resources={"gpu": "half"}), "trial_resources.gpu: 'half' is not allowed: a number of at least 0"),
    (
        config(trial_resources={"gpu": "auto"}),
        "trial_resources.gpu: auto is not allowed: a trial runs on one node, so at most allocation.gpus_per_node, 0",
    ),
    (
        config(trial_resources={"workers": {"num": 2}}),
        "trial_resources.workers: 2 workers of 1 CPUs and 0 GPUs are not allowed with model, which the workflow trains in one process",
    ),
    (
        own(trial_resources={"gpu": "auto", "workers": {"num": 1}}, allocation={"gpus_per_node": 1}),
        "trial_resources.gpu: auto is not allowed with workers, because the workflow cannot measure the GPU memory",
    ),
    (
        own(trial_resources={"workers": {"num": 2, "cpu": 4}}, allocation={"nodes": 2, "cpus_per_node": 4}),
        "trial_resources.workers: 2 workers of 4 CPUs and 0 GPUs are not allowed: allocation.nodes 2 with cpus_per_node 4 and gpus_per_node 0"
        " hold no trial of 1 CPUs and 0 GPUs with these workers",
    ),
    (
        own(trial_resources={"workers": {"num": 1, "gpu": 1}}, allocation={"cpus_per_node": 4}),
        "trial_resources.workers: 1 workers of 1 CPUs",
    ),
    (own(trial_resources={"workers": {"cpu": 1}}), "trial_resources.workers.num: missing. Allowed: a whole number, at least 1"),
    (own(trial_resources={"workers": 2}), "trial_resources.workers: 2 is not allowed: {num, cpu, gpu}, or null"),
    (own(trial_resources={"workers": {"num": 1, "cpus": 1}}), "trial_resources.workers.cpus: unknown key. Did you mean cpu?"),
    (config(trial_resources={"gpu": "some"}), "trial_resources.gpu: 'some' is not allowed: a number of at least 0, or auto"),
    (config(trial_resources={"gpu": 1}), "trial_resources.gpu: 1 is not allowed: a trial runs on one node, so at most allocation.gpus_per"),
    (
        config(trial_resources={"gpu": 1.5}, allocation={"gpus_per_node": 2}),
        "trial_resources.gpu: 1.5 is not allowed: a part of one GPU, or whole GPUs",
    ),
    (config(allocation={"nodes": 2, "min_nodes": 3}), "allocation.min_nodes: 3 is not allowed: at most allocation.nodes, 2"),
    (own(fuse="on"), "fuse: 'on' is not allowed: auto or off with a trainable, since only trials of a model can be trained together"),
    (
        config(repeats=3, scheduler="hyperband"),
        "repeats: 3 is not allowed with scheduler hyperband, which pauses trials one by one: 1, or scheduler asha",
    ),
    (
        with_folds(5, repeats=3),
        "repeats: 3 is not allowed with datasets.synthetic.validation.folds 5, because each fold is one trial of a configuration: leave repeats out",
    ),
    (with_folds(5, repeats=1), "repeats: 1 is not allowed with datasets.synthetic.validation.folds 5"),
    (with_folds(5, scheduler="hyperband"), "scheduler.name: 'hyperband' is not allowed with datasets.synthetic.validation.folds 5"),
    (with_folds(5, scheduler="pbt"), "scheduler.name: 'pbt' is not allowed with datasets.synthetic.validation.folds 5"),
    (
        with_folds(5, fuse="on"),
        "fuse: 'on' is not allowed with datasets.synthetic.validation.folds 5, because trials that are trained together",
    ),
    (
        config(allocation={"max_wait": 10, "resubmit": 2}),
        "allocation.max_wait: 10 is not allowed: null where resubmit is above 0, since Slurm counts it from the first start of a job",
    ),
    (
        config(allocation={"max_wait": 10, "runtime_min": 5}),
        "allocation.max_wait: 10 is not allowed: null where runtime_min is set, since Slurm would shorten a job that has waited long and not remove it",
    ),
    (
        config(allocation={"runtime": "1h", "runtime_min": "2h"}),
        "allocation.runtime_min: 2h is not allowed: at most allocation.runtime, 1h",
    ),
    (
        config(allocation={"partitions": ["gpu", "a b"]}),
        "allocation.partitions.1: 'a b' is not allowed: a name as `sinfo --summarize` shows it, such as gpu or gpu-preempt",
    ),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=ids(MISTAKES))
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


def test_a_class_is_no_trainable(root: Path) -> None:
    (root / "own.py").write_text(
        "from ray import tune\nclass Train(tune.Trainable):\n    def train(self): ...\n\nbuilt = Train\ndef train(config): ...\n"
    )
    assert refusal(root, own(trainable="own.py:Train")).endswith(
        "sweeps.s.trainable: 'own.py:Train' is not allowed: Train is a class. Allowed: a function that gets the configuration and calls tune.report"
        " (a tune.Trainable does not run here)"
    )
    for name in ("train", "built"):
        assert check(root, own(trainable=f"own.py:{name}"))["sweeps"]["s"]["trainable"] == f"own.py:{name}"
    (root / "net.py").write_text("class Net: ...\n")
    assert check(root, config(model="net.py:Net"))["sweeps"]["s"]["model"] == "net.py:Net"


def test_a_loss_whose_files_have_the_names_of_the_models_files_is_refused(root: Path) -> None:
    write_files(root, {"a/net.py": "class Net: ...\n", "b/net.py": "def mine(outputs, targets): ...\n"})
    text = refusal(root, config(model="a/net.py:Net", loss="b/net.py:mine"))
    assert (
        f"loss: 'b/net.py:mine' is not allowed: the model needs {root}/a/net.py, the loss needs {root}/b/net.py, and Python would" in text
    )


def objectives(*metrics: str, **changes: Any) -> dict[str, Any]:
    """Return the config of a model with several objectives, of which less is better where the metric is a loss."""
    modes = ({"metric": metric, "mode": "min"} if "loss" in metric else {"metric": metric} for metric in metrics)
    return config(metric=None, objectives=list(modes), **changes)


OBJECTIVES: list[tuple[dict[str, Any], str]] = [
    (objectives("accuracy"), "objectives: one objective is not allowed: two or more, or metric and mode instead"),
    (
        objectives("accuracy", "accuracy"),
        "objectives.1.metric: 'accuracy' is not allowed: another objective has this metric. Each metric once",
    ),
    (objectives("accuracy", "speed"), "objectives.1.metric: 'speed' is not allowed with model: one of accuracy"),
    (
        config(metric=None, objectives=[{"metric": "accuracy"}, {"metric": "loss"}]),
        "objectives.1.mode: 'max' is not allowed with metric loss, of which less is better: write mode: min",
    ),
    (
        own(metric=None, objectives=[{"metric": "a"}, {"metric": "time_total_s"}]),
        "objectives.1.metric: 'time_total_s' is not allowed: Ray Tune sets",
    ),
    (objectives("accuracy", "loss", choose="speed"), "choose: 'speed' is not allowed: one of accuracy, loss, knee"),
    (objectives("accuracy", "loss", choose="kne"), "choose: 'kne' is not allowed: one of accuracy, loss, knee. Did you mean knee?"),
    (config(choose="knee"), "choose: 'knee' is not allowed without objectives: leave it out"),
    (
        config(metric="loss", mode="min", objectives=[{"metric": "accuracy"}, {"metric": "loss", "mode": "min"}]),
        "metric: 'loss' is not allowed beside objectives",
    ),
    (config(metric=None, objectives=[]), "metric: missing. Allowed: the name of a metric as the trials report it"),
    (
        config(metric=None, objectives=[{"mode": "max"}, {"metric": "loss", "mode": "min"}]),
        "objectives.0.metric: missing. Allowed: the name of",
    ),
    (
        objectives("accuracy", "loss", scheduler="asha"),
        "scheduler.name: 'asha' is not allowed with several objectives, because a scheduler",
    ),
]


@pytest.mark.parametrize(("given", "expected"), OBJECTIVES, ids=ids(OBJECTIVES))
def test_mistakes_of_objectives(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


def test_the_first_objective_is_the_metric_of_the_sweep(root: Path) -> None:
    made = check(root, objectives("loss", "accuracy", choose="knee"))["sweeps"]["s"]
    assert (made["metric"], made["mode"]) == ("loss", "min")
    assert Config.of(check(root, objectives("loss", "accuracy"))).sweeps["s"].compared_metrics == ("loss", "accuracy")
