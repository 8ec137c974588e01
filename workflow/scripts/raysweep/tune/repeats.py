"""This module shows several trials of one configuration, which differ only in their seeds, to a scheduler as one trial."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from raysweep.record.sweep import Sweep
from raysweep.tune.schedulers import PassingScheduler, RecordedStub


class GroupedScheduler(PassingScheduler):
    """Shows the trials of one configuration to the scheduler `inner` as one trial.

    When all trials of a configuration have reached an epoch, `inner` gets the mean of the trials' metric. The decision of `inner` applies to all trials. If
    `inner` stops the configuration, a trial that is already at a later epoch ends at its next report.
    """

    def __init__(self, inner: TrialScheduler, recorded: Sweep, metric_name: str) -> None:
        super().__init__(inner)
        self.recorded, self.metric_name = recorded, metric_name
        # This state is empty until replay() has given the recorded reports to this scheduler.
        self.values: dict[int, dict[int, dict[str, float]]] = {}  # index of the configuration → epoch → trial_id → value
        self.last_epoch: dict[int, int] = {}  # index of the configuration → last epoch that `inner` knows
        self.added: set[int] = set()
        self.over: set[int] = set()  # indices of the configurations whose trials must not continue
        self.finished: dict[int, set[str]] = {}  # index of the configuration → ids of the trials that have completed

    def _note(self, index: int, epoch: int, trial_id: str, value: Any) -> None:
        if value is not None:
            self.values.setdefault(index, {}).setdefault(epoch, {})[trial_id] = value

    def _index(self, trial: TuneTrial) -> int:
        return self.recorded.trials[trial.trial_id].index

    def _stub(self, index: int) -> RecordedStub:
        return RecordedStub(self.recorded.groups[index].trial_id)

    def _mean(self, index: int, result: dict[str, Any]) -> dict[str, Any] | None:
        """Return the report of a configuration at the epoch of `result`, with the mean of the metric over the trials.

        Return None if some trials of the configuration have not reached this epoch yet, or if `inner` knows this epoch already.
        """
        epoch = result["training_iteration"]
        values = self.values.get(index, {}).get(epoch, {})
        if len(values) < self.recorded.repeats or epoch <= self.last_epoch.get(index, 0):
            return None
        self.last_epoch[index] = epoch
        return {**result, self.metric_name: sum(values.values()) / len(values)}

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Add the configuration to `inner` when Tune adds the first trial of the configuration."""
        index = self._index(trial)
        if index not in self.added:
            self.added.add(index)
            self.inner.on_trial_add(tune_controller, self._stub(index))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """End the configuration, because a configuration that fails with one seed cannot win."""
        index = self._index(trial)
        if index not in self.over:
            self.over.add(index)
            self.inner.on_trial_error(tune_controller, self._stub(index))

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Report the mean of the configuration to `inner` if all trials of the configuration have reached the epoch of `result`."""
        index = self._index(trial)
        self._note(index, result["training_iteration"], trial.trial_id, result.get(self.metric_name))
        mean = None if index in self.over else self._mean(index, result)
        if mean and self.inner.on_trial_result(tune_controller, self._stub(index), mean) == TrialScheduler.STOP:
            self.over.add(index)
        return str(TrialScheduler.STOP if index in self.over else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Complete the configuration in `inner` when the last trial of the configuration completes."""
        index = self._index(trial)
        if "training_iteration" in result:
            self._note(index, result["training_iteration"], trial.trial_id, result.get(self.metric_name))
        self.finished.setdefault(index, set()).add(trial.trial_id)
        if index not in self.over and len(self.finished[index]) == self.recorded.repeats:
            self.over.add(index)
            if mean := self._mean(index, result):
                self.inner.on_trial_complete(tune_controller, self._stub(index), mean)

    def reopen(self, index: int) -> None:
        """Let the trials of a configuration that has ended go on."""
        self.over.discard(index)
        self.added.discard(index)
        self.finished.pop(index, None)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Do nothing, because the other trials of the configuration may continue."""
