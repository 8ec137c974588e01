"""Every private name of Ray and Tune that the package uses. A test fails when the name is gone or does something else."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import queue
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import train, tune
from ray.air.execution._internal import RayActorManager
from ray.train._internal.session import _TrainSession
from ray.train.v2._internal import constants as train_v2_constants
from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.trainable import trainable_fn_utils as tune_functions
from ray.tune.trainable import wrap_function

import raysweep
from raysweep.tune import private
from raysweep.tune.schedulers import RecordedStub
from raysweep.tune.trial import call

ROOT = Path(raysweep.__path__[0])


def trial_of(trial_id: str) -> Any:
    tune.register_trainable("nothing", lambda config: None)
    return TuneTrial("nothing", trial_id=trial_id)


def test_ray_init_takes_the_address_of_the_node() -> None:
    source = inspect.getsource(ray.init)
    assert 'kwargs.pop("_node_ip_address"' in source or "_node_ip_address:" in source


def test_tune_names_no_callbacks_and_so_imports_no_tracker() -> None:
    source = inspect.getsource(importlib.import_module("ray.tune.tune").run)
    assert "air_usage.tag_callbacks(callbacks)" in source
    assert importlib.import_module("ray.tune.tune").air_usage is private.usage
    with private.unnamed_callbacks():
        assert private.usage.tag_callbacks([tune.Callback()]) is False


def test_a_trial_has_an_actor_once_it_runs() -> None:
    trial = trial_of("00000")
    assert private.actor_of(trial) is None
    actor = SimpleNamespace(get_auto_filled_metrics=SimpleNamespace(remote=lambda **options: None))
    trial.set_ray_actor(actor)
    assert private.actor_of(trial) is actor


@pytest.mark.parametrize("set_checkpoint", [private.restore_from, private.continue_from])
def test_a_trial_continues_from_the_checkpoint_that_it_is_given(tmp_path: Path, set_checkpoint: Any) -> None:
    trial = trial_of("00000")
    set_checkpoint(trial, tmp_path, {"training_iteration": 2, "time_total_s": 20.0})
    restored = trial.latest_checkpoint_result
    assert restored.checkpoint.path == str(tmp_path)
    assert restored.metrics == {"training_iteration": 2, "time_total_s": 20.0}


def test_a_checkpoint_that_is_handed_over_comes_before_the_one_that_a_trial_started_from(tmp_path: Path) -> None:
    trial = trial_of("00000")
    private.restore_from(trial, tmp_path / "own", {})
    private.continue_from(trial, tmp_path / "handed over", {})
    assert trial.latest_checkpoint_result.checkpoint.path == str(tmp_path / "handed over")


def test_each_report_is_wrapped_once_however_often_a_process_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    session, calls = object.__new__(_TrainSession), []
    monkeypatch.setattr(private, "get_session", lambda: session)
    for name in ("first", "second"):
        private.wrap_report(
            lambda report, name=name: lambda metrics, checkpoint=None: calls.append((name, report.func, report.args, metrics))
        )
        session.report({"score": 1})
    assert calls == [(name, _TrainSession.report, (session,), {"score": 1}) for name in ("first", "second")]


def test_all_kinds_of_reports_go_through_the_session() -> None:
    assert "get_session().report(metrics, checkpoint=checkpoint)" in inspect.getsource(tune_functions)
    assert "self.report(inter_actor_item)" in inspect.getsource(_TrainSession._get_result_from_queues)
    assert "get_session().report(output)" in inspect.getsource(wrap_function)
    assert private.get_session is tune_functions.get_session


def test_ray_train_stores_files_and_finds_callbacks_where_this_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in private.TRAIN_ENVIRONMENT:
        monkeypatch.setenv(variable, "")  # so that the test leaves none behind
    monkeypatch.setattr(private.train_constants, "DEFAULT_STORAGE_PATH", "~")
    states: dict[str, Any] = {}
    session = SimpleNamespace(storage=SimpleNamespace(trial_fs_path="/state/00000"), set_state=states.__setitem__)
    monkeypatch.setattr(private, "get_session", lambda: session)
    private.join_train_runs(Path("/trials/a"))
    assert states == {private.COPIES: Path("/trials/a/.ray_train")}
    assert train.RunConfig(name="n").storage_path == "/state/00000/ray_train"
    variables = {value for name, value in vars(train_v2_constants).items() if name.endswith("_ENV_VAR")}
    assert private.TRAIN_ENVIRONMENT.keys() - variables <= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"}, "which Ray 2.53 does not know"


def test_a_run_of_ray_train_goes_on_from_the_checkpoint_of_the_trial_and_uses_the_bundles_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = SimpleNamespace(bundle_specs=[{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 2.0}])
    states: dict[str, Any] = {private.COPIES: tmp_path / "copies"}
    session = SimpleNamespace(
        loaded_checkpoint="checkpoint", _inter_actor_queue="queue", get_state=states.get, set_state=states.__setitem__
    )
    monkeypatch.setattr(private, "get_session", lambda: session)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: bundles)
    monkeypatch.setattr(ray.util, "placement_group", lambda bundles: bundles)
    for owner, name in (
        (private.CheckpointManager, "_maybe_load_state_from_storage"),
        (private.worker_group, "placement_group"),
        (private.worker_group, "PlacementGroupSchedulingStrategy"),
        (private.data_parallel_trainer, "PlacementGroupCleanerCallback"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # fails where a name is gone, and puts the name back
    (run,) = _initialize_env_callbacks_of(monkeypatch)
    assert private.data_parallel_trainer.PlacementGroupCleanerCallback() is not None
    assert private.TrainRunOfTrial().checkpoint is None, "a second run begins anew"
    run.__setstate__(dict(vars(run)))
    manager = SimpleNamespace()
    private.CheckpointManager._maybe_load_state_from_storage(manager)
    assert manager._latest_checkpoint_result.checkpoint == "checkpoint"
    group = private.worker_group.placement_group(bundles=[{"CPU": 1}] * 2, strategy="PACK")
    strategy = private.worker_group.PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=1)
    assert (strategy.placement_group, strategy.placement_group_bundle_index) == (bundles, 2)
    (tmp_path / "checkpoint_1").mkdir()
    run.after_report(SimpleNamespace(checkpoint=train.Checkpoint(tmp_path / "checkpoint_1")), [])
    assert private.copied_checkpoint("/elsewhere/checkpoint_1") == tmp_path / "copies" / "checkpoint_1"
    session._inter_actor_queue = None
    assert private.TrainRunOfTrial().copies is None, "no report reaches the trial"
    for wanted in ([{"CPU": 1}] * 3, [{"CPU": 3}], [{"CPU": 1, "GPU": 1}]):
        with pytest.raises(ValueError, match=r"ScalingConfig asks for . workers of .*, but trial_resources\.workers reserves 2 of"):
            private.worker_group.placement_group(bundles=wanted)


def test_a_program_that_a_trial_has_started_uses_ray_train_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    original = private.CheckpointManager._maybe_load_state_from_storage
    (run,) = _initialize_env_callbacks_of(monkeypatch)
    pickle.loads(pickle.dumps(run)).after_report(SimpleNamespace(checkpoint="checkpoint"), [])
    assert private.CheckpointManager._maybe_load_state_from_storage is original


def _initialize_env_callbacks_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the callbacks that Ray Train makes for a run in the process of a trial."""
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", private.TRAIN_ENVIRONMENT["RAY_TRAIN_CALLBACKS"])
    return private.data_parallel_trainer._initialize_env_callbacks()


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (private.CheckpointManager, "self._maybe_load_state_from_storage()"),
        (private.CheckpointManager, "self._latest_checkpoint_result"),
        (
            private.worker_group,
            "PlacementGroupSchedulingStrategy(\n                    placement_group=placement_group, placement_group_bundle_index=i",
        ),
        (private.worker_group, "bundles=[worker_group_context.resources_per_worker]"),
        (private.data_parallel_trainer, "PlacementGroupCleanerCallback()"),
    ],
)
def test_ray_train_calls_and_reads_what_is_set(owner: Any, words: str) -> None:
    assert words in inspect.getsource(owner)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HyperBandScheduler, "_process_bracket"),
        (PopulationBasedTraining, "_checkpoint_or_exploit"),
        (TuneController, "_cleanup_cached_actors"),
        (RayActorManager, "_try_kill_actor"),
        (RayActorManager, "_cleanup_actor_futures"),
        (RayActorManager, "_actor_stop_resolved"),
        (RayActorManager, "cleanup"),
        (private.TensorBoard.__mro__[1], "log_trial_start"),
    ],
)
def test_what_is_overridden_or_called_is_a_method_of_tune(owner: type, name: str) -> None:
    assert callable(vars(owner)[name])


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (HyperBandScheduler, "self._process_bracket(tune_controller, bracket)"),
        (HyperBandScheduler, "bracket.is_being_processed"),
        (PopulationBasedTraining, "self._checkpoint_or_exploit("),
        (PopulationBasedTraining, "self._num_perturbations"),
        (TuneController, "resource_manager_factory"),
        (TuneController, "if not self._reuse_actors:"),
        (TuneController, "self._scheduler_alg.choose_trial_to_run(self._wrapped())"),
        (TrialRunnerWrapper, "self._tune_controller = tune_controller"),
        (TuneController, "self._actor_manager"),
        (RayActorManager, "self._live_actors_to_kill"),
    ],
)
def test_tune_calls_and_reads_what_is_overridden_and_set(owner: type, words: str) -> None:
    assert words in inspect.getsource(owner)


def test_the_controller_is_looked_up_where_it_is_exchanged() -> None:
    module: Any = importlib.import_module("ray.tune.tune")
    assert module.TuneController is TuneController
    with private.resources_managed_by(SimpleNamespace()):  # type: ignore[arg-type]
        assert module.TuneController is not TuneController
        assert issubclass(module.TuneController, TuneController)
    assert module.TuneController is TuneController


def test_a_population_keeps_what_is_noted_of_a_hand_over() -> None:
    scheduler = private.PopulationScheduler(metric="score", mode="max", resample_probability=0.3)
    trials = [trial_of("00000"), trial_of("00001")]
    controller = SimpleNamespace(search_alg=None)
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    scheduler._trial_state[trials[1]].last_perturbation_time = 7
    scheduler.note_exploit(trials[0], trials[1], 5)
    state = scheduler._trial_state[trials[0]]
    assert (state.last_perturbation_time, state.last_train_time, scheduler._num_perturbations) == (7, 5, 1)
    assert (scheduler.resample_probability, scheduler.perturbation_factors) == (0.3, (1.2, 0.8))


def test_a_population_learns_a_recorded_report_without_a_take_over() -> None:
    scheduler = private.PopulationScheduler(metric="score", mode="max", perturbation_interval=2)
    told, replaced = RecordedStub("00000"), RecordedStub("00000")
    scheduler.on_trial_add(SimpleNamespace(search_alg=None), told)
    for epoch in (1, 2, 3):
        scheduler.add_recorded(told, {"training_iteration": epoch, "score": epoch / 10})
    scheduler.on_trial_add(SimpleNamespace(search_alg=None), replaced)
    [(trial, state)] = scheduler._trial_state.items()
    assert trial is replaced
    assert (state.last_score, state.last_perturbation_time, state.last_train_time) == (0.2, 2, 2)


def test_hyperband_keeps_the_place_of_a_trial_that_is_added_again_and_forgets_its_report() -> None:
    hyperband = private.HyperBand(time_attr="training_iteration", max_t=9, reduction_factor=3, metric="score", mode="max")
    first, again = StatedTrial("0"), StatedTrial("0")
    hyperband.on_trial_add(None, first)
    assert hyperband.on_trial_result(None, first, {"training_iteration": 1, "score": 0.5}) == "CONTINUE"
    hyperband.on_trial_add(None, again)
    bracket, _ = hyperband._trial_info[again]
    [(live, result)] = bracket._live_trials.items()
    assert (live is again, result["training_iteration"]) == (True, 1)
    hyperband.forget_report(first)
    assert bracket._live_trials == {again: None}
    hyperband.on_trial_error(None, again)
    hyperband.forget_report(first)
    assert not hyperband.has_place(first)
    assert hyperband.on_trial_result(None, first, {"training_iteration": 2, "score": 0.5}) == "CONTINUE", "a record of an older version"
    assert hyperband.has_place(first)


def test_the_median_rule_compares_with_what_is_added() -> None:
    rule = MedianStoppingRule(time_attr="training_iteration", metric="score", mode="max", grace_period=1, min_samples_required=2)
    for number, score in enumerate((0.5, 0.6)):
        private.add_median_result(rule, trial_of(f"{number:05d}"), {"training_iteration": 1, "score": score}, "CONTINUE")
    controller = SimpleNamespace(get_live_trials=lambda: [])
    decisions = {
        score: rule.on_trial_result(controller, trial_of(f"{score}"), {"training_iteration": 1, "score": score}) for score in (0.1, 0.9)
    }
    assert decisions == {0.1: "STOP", 0.9: "CONTINUE"}


class StatedTrial(RecordedStub):
    """A trial with a status, as HyperBand reads it."""


def test_a_bracket_of_hyperband_goes_on_when_its_last_runner_fails() -> None:
    hyperband = private.HyperBand(time_attr="training_iteration", max_t=9, reduction_factor=3, metric="score", mode="max")
    added = [StatedTrial(f"{number}") for number in range(17)]
    for trial in added:
        hyperband.on_trial_add(None, trial)
    largest, _ = hyperband._trial_info[added[-1]]
    trials = [trial for trial in added if hyperband._trial_info[trial][0] is largest]
    stopped: list[StatedTrial] = []

    def stop(trial: StatedTrial) -> None:
        stopped.append(trial)
        trial.status = "TERMINATED"
        hyperband.on_trial_remove(controller, trial)

    controller = SimpleNamespace(stop_trial=stop, _set_trial_status=lambda trial, status: setattr(trial, "status", status))

    def report(trial: StatedTrial, epoch: int) -> None:
        trial.status = "RUNNING"
        action = hyperband.on_trial_result(controller, trial, {"training_iteration": epoch, "score": float(trial.trial_id)})
        trial.status = {"PAUSE": "PAUSED", "CONTINUE": "RUNNING", "STOP": "TERMINATED"}[action]

    for trial in trials:
        report(trial, 1)
    assert (len(trials), stopped) == (9, trials[:6])
    *waiting, last = trials[6:]
    for trial in waiting:
        report(trial, 4)
    assert {trial.status for trial in waiting} == {"PAUSED"}
    last.status = "ERROR"
    hyperband.on_trial_error(controller, last)
    assert stopped[6:] == waiting[:1], "it was halved once more"
    assert waiting[1] in largest.trials_to_unpause


def test_tensorboard_writes_to_a_folder_for_each_trial(tmp_path: Path) -> None:
    callback = private.TensorBoard(tmp_path)
    trial = trial_of("00003")
    for epoch in (1, 2):  # a trial that continues has another file
        callback.log_trial_start(trial)
        callback.log_trial_result(epoch, trial, {"training_iteration": epoch, "time_total_s": 1.0, "score": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["00003"]
    assert list((tmp_path / "00003").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_mlflow_names_runs_and_parameters_as_the_sweep_does(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    callback: Any = private.mlflow_callback(f"sqlite:///{tmp_path / 'mlflow.db'}", "s", lambda trial: {"a/b": 1})
    for name in ("_trial_runs", "mlflow_util", "tags"):
        assert name in inspect.getsource(type(callback).__mro__[1])


def test_wandb_starts_an_actor_for_each_trial(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    callback: Any = private.wandb_callback("project", "s", tmp_path, lambda trial: "id")
    assert "self._start_logging_actor(" in inspect.getsource(type(callback).__mro__[1])


def private_names(path: Path) -> set[str]:
    """Return the private names of Ray that a module imports, and the private attributes that it uses of anything but itself (os._exit is public)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            names |= {part for part in parts if part.startswith("_")}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")
            names |= set() if is_own else {node.attr}
    return names


@pytest.mark.parametrize(
    "path", [path for room in ("tune", "training") for path in sorted((ROOT / room).rglob("*.py"))], ids=lambda path: path.stem
)
def test_no_other_module_uses_a_private_name(path: Path) -> None:
    if path.name != "private.py":
        assert private_names(path) == set()


def test_the_exit_with_which_ray_ends_the_thread_of_a_stopped_trial_is_recognised() -> None:
    session = SimpleNamespace(stop_event=threading.Event(), continue_lock=threading.Semaphore(1), result_queue=queue.Queue())
    session.stop_event.set()
    with pytest.raises(SystemExit) as of_ray:
        _TrainSession._report_training_result(session, SimpleNamespace(checkpoint=None))
    with pytest.raises(SystemExit) as of_user:
        sys.exit(0)
    assert of_ray.value.code == 0
    assert [private.ends_thread(caught.traceback[-1].frame.raw) for caught in (of_ray, of_user)] == [True, False]
    session.stop_event.set()
    session.continue_lock.release()
    with pytest.raises(SystemExit):
        call(lambda config: _TrainSession._report_training_result(session, config), SimpleNamespace(checkpoint=None))
