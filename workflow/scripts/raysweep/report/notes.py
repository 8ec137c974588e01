"""Finds the facts that help to judge the result of a sweep: values at the edges of the search space, the seeds, and problems during the sweep.

The module `ranking` finds the facts about the ranking of the trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from raysweep.common.numeric import is_finite_number
from raysweep.common.text import duration, number, plural
from raysweep.config.distributions import Choice, Numeric
from raysweep.config.space import flattened
from raysweep.record.events import FusionPlan, NotFused, StepMode
from raysweep.record.node_times import used_hours
from raysweep.record.stagnation import has_stagnated
from raysweep.report import ranking
from raysweep.report.analysis import has_gpus, mean_gpu_use, repeated_s
from raysweep.report.inputs import Inputs
from raysweep.report.keys import Key, position_in_range
from raysweep.report.ranking import Note

EDGE_FRACTION = 0.05  # fraction of a range that counts as the edge, at each of the two ends
MIN_BUSY_PERCENT, MIN_MEASURED_S = 50, 600  # a large part of a shorter time is the start of the sweep, in which all GPUs are idle
MIN_STEPS = 20  # a range with fewer values has no outer 5 %, so the ends of this range are judged as the ends of a list


def notes(inputs: Inputs) -> list[Note]:
    """Return the findings about a sweep, the most important finding first."""
    optional = [
        ranking.front(inputs),
        ranking.tie(inputs),
        ranking.optimism(inputs),
        ranking.confirmation(inputs),
        ranking.next_best(inputs),
        *_edges(inputs),
        _splits(inputs),
        _errors(inputs),
        _unfinished(inputs),
        _warm_start(inputs),
        _not_begun(inputs),
        _stopped_early(inputs),
        _ended_by_stop(inputs),
        _more_epochs(inputs),
        _interruptions(inputs),
        _stacked(inputs),
        _lost_nodes(inputs),
        *_shared_gpus(inputs),
        _idle_gpus(inputs),
        _retries(inputs),
        _seeded(inputs),
        ranking.repeats(inputs),
        ranking.constraint(inputs),
        ranking.schedule(inputs),
        ranking.annealing(inputs),
    ]
    return [note for note in optional if note is not None]


# --- the search space ---------------------------------------------------------------------------------------------------------------


def _edges(inputs: Inputs) -> Iterator[Note]:
    """Yield a note for each key whose value in the winner's configuration lies at an edge of the search space."""
    config = flattened(inputs.winner.config)
    for key in inputs.keys:
        value = config.get(key.name)
        if is_finite_number(value) and (note := _edge(key, value)):
            yield note


def _edge(key: Key, value: float) -> Note | None:
    """Return a note if `value` lies at the edge of a range or of a list, otherwise None."""
    distribution = key.distribution
    if isinstance(distribution, Numeric):
        if distribution.log and value <= 0:  # the value was sampled before the range became logarithmic
            return None
        num_values = _num_values(distribution)
        if num_values >= MIN_STEPS:
            return _edge_of_range(key, distribution, value)
        return _edge_of_list(key, [distribution.low, distribution.high - distribution.integer], value) if num_values >= 3 else None
    if isinstance(distribution, Choice) and all(is_finite_number(v) for v in distribution.values):
        # In a list of two values, the best value always lies at an end, so such a list gives no note.
        return _edge_of_list(key, sorted(distribution.values), value) if len(set(distribution.values)) >= 3 else None
    return None


def _num_values(distribution: Numeric) -> float:
    """Return the number of different values that a distribution can give. The number is infinite for a continuous distribution."""
    width = distribution.high - distribution.low
    return width if distribution.integer else width / distribution.step + 1 if distribution.step else math.inf


def _edge_of_range(key: Key, distribution: Numeric, value: float) -> Note | None:
    """Return a note if `value` lies in the outer 5 % of a range, otherwise None."""
    position = position_in_range(distribution.low, distribution.high - distribution.integer, value, distribution.log)
    if EDGE_FRACTION < position < 1 - EDGE_FRACTION:
        return None
    part, beyond = ("upper", "above") if position > 0.5 else ("lower", "below")
    scale = ", on the log scale of the search" if distribution.log else ""
    return Note(
        "warn",
        f"{key.name} lies at the edge of its range",
        f"The best value, {number(value)}, lies in the {part} 5 % of {number(distribution.low)} to {number(distribution.high)}{scale}."
        f" The optimum may lie {beyond} the range: widen it and run again. Finished trials are kept.",
    )


def _edge_of_list(key: Key, values: list[float], value: float) -> Note | None:
    """Return a note if `value` is the smallest or the largest of `values`, which are sorted. Otherwise return None."""
    if value not in (values[0], values[-1]):
        return None
    end, beyond = ("largest", "larger") if value == values[-1] else ("smallest", "smaller")
    text = f"The best value, {number(value)}, is the {end} of its list. A {beyond} value may do still better."
    return Note("info", f"{key.name} is the {end} on offer", text)


# --- data and seeds -----------------------------------------------------------------------------------------------------------------


def _splits(inputs: Inputs) -> Note:
    """Return a note on the number of examples in each split of the data, and on the standard error of an accuracy on the validation split."""
    if inputs.data is None:
        text = "The trainable decides how it splits its data, and on which part it measures its validation figure."
        return Note("info", "The trainable brings its own data", text)
    sizes, folds = inputs.data.splits, inputs.data.folds
    of_fold = f" in fold 0 of {folds}" if folds else ""
    num_compared = sizes["validation"] + (sizes["train"] if folds else 0)  # each row is a validation row of one fold
    use = "were kept for the confirmation, and nothing else reads them" if inputs.confirmed.is_on_test else "were not used"
    text = f"Trained on {sizes['train']:,}, compared on {sizes['validation']:,} validation examples{of_fold}; {plural(sizes['test'], 'test example')} {use}."
    value = inputs.best.value
    if inputs.metric == "accuracy" and 0 < value < 1 and num_compared:
        error = math.sqrt(value * (1 - value) / num_compared)
        text += f" From {num_compared:,} examples, an accuracy of {number(value)} has a standard error of {error:.2g}."
    return Note("info", "Split sizes", text)


def _seeded(inputs: Inputs) -> Note:
    """Return a note on the choices that the seed decides, and on the choices that may differ when the sweep runs again."""
    header, data = inputs.header, inputs.data
    split = f" the validation split (seed {data.seed})," if data is not None and data.split != "time" else ""
    text = f"From seed {header.seed}: the configurations,{split} each trial’s own seed"
    if header.model:
        text += ", with it a model’s first weights, and the order of the training data, which is the same for all trials."
    else:
        text += ", which the trainable gets as RAYSWEEP_SEED. The trainable decides whether it uses the seed."
    if header.search_algorithm.name not in ("random", "grid"):
        text += f" The proposals of {header.search_algorithm.name} depend also on which trials had ended by then."
    if header.scheduler.name != "none":
        decision = "From which other trial a trial takes over" if header.scheduler.name == "pbt" else "When a trial is stopped"
        text += f" {decision} depends on how far the other trials had come, so it may differ in another run."
    if has_gpus(inputs):
        text += " GPUs do not always add numbers in the same order, so values may differ in the last digits."
    return Note("info", "What was seeded", text)


# --- the course of the sweep --------------------------------------------------------------------------------------------------------


def _errors(inputs: Inputs) -> Note | None:
    """Return a note on the number of failed trials."""
    num_failed = sum(t.status == "ERROR" for t in inputs.trials)
    if not num_failed:
        return None
    return Note(
        "warn",
        f"{plural(num_failed, 'trial')} failed",
        f"{num_failed:,} of {plural(len(inputs.trials), 'trial')} ended with an error and cannot win. If they lie in one region of the search space,"
        " the ranking does not cover that region. The section Failures lists the causes.",
    )


def _unfinished(inputs: Inputs) -> Note | None:
    """Return a note on the number of planned trials that have no final result."""
    if not (missing := inputs.unfinished()):
        return None
    return Note(
        "warn",
        "The sweep is not finished",
        f"{missing:,} of {max(inputs.header.num_trials, len(inputs.trials)):,} planned trials have no final result yet. "
        "Running Snakemake again continues from the record.",
    )


def _stopped_early(inputs: Inputs) -> Note | None:
    """Return a note on the number of trials that the scheduler stopped."""
    num_stopped = sum(t.status == "STOPPED" for t in inputs.trials)
    if not num_stopped:
        return None
    return Note(
        "info",
        f"{plural(num_stopped, 'trial')} stopped early",
        f"The scheduler ({inputs.header.scheduler.name}) ended {num_stopped:,} of {plural(len(inputs.trials), 'trial')} before "
        f"{plural(inputs.header.max_epochs, 'epoch')}. A trial that learns slowly, and would have won in the end, is lost this way.",
    )


def _warm_start(inputs: Inputs) -> Note | None:
    """Return a note on the trials that were known before the sweep."""
    known = inputs.header.warm_start
    if known is None:
        return None
    left_out = f" {plural(known.num_left_out, 'other trial')} of the source did not fit." if known.num_left_out else ""
    return Note(
        "info",
        f"{plural(known.num_trials, 'trial')} known before",
        f"The search algorithm learnt from {plural(known.num_trials, 'trial')} of {known.source}, the best with {inputs.metric} {number(known.best)}.{left_out}"
        " These trials are in no table and no figure, are not counted, and cannot win.",
    )


def _not_begun(inputs: Inputs) -> Note | None:
    """Return a note on the number of planned trials that the sweep did not begin, because `end_when` or a budget ended the sweep."""
    if not (num_saved := inputs.not_begun()):
        return None
    rule, more = inputs.header.no_better_for, "time_budget"
    reason = "The time budget was used up."
    if (limit := inputs.header.max_gpu_hours) is not None and used_hours(inputs.sweep, "gpus") >= limit:
        more, reason = "max_gpu_hours", f"The {number(limit)} GPU-hours of max_gpu_hours were used up."
    if rule is not None and has_stagnated(inputs.sweep, rule):
        by_more = f" by more than {number(rule.min_delta)}" if rule.min_delta else ""
        more = "end_when.no_better_for"
        reason = f"The best value did not become better{by_more} during the last {plural(rule.configurations, 'finished configuration')}."
    return Note(
        "info",
        f"{plural(num_saved, 'trial')} not begun",
        f"{reason} So {num_saved:,} of {inputs.header.num_trials:,} planned trials were saved. With a larger {more}, the sweep goes on.",
    )


def _ended_by_stop(inputs: Inputs) -> Note | None:
    """Return a note on the trials that `stop` ended, and on the epochs that these trials did not train."""
    epochs = [trial.epochs for trial in inputs.trials if trial.reason == "stop"]
    if not epochs:
        return None
    saved = sum(max(0, inputs.header.max_epochs - each) for each in epochs)
    return Note(
        "info",
        f"{plural(len(epochs), 'trial')} ended by stop",
        f"{len(epochs):,} of {plural(len(inputs.trials), 'trial')} ended before {plural(inputs.header.max_epochs, 'epoch')}, by a bound or by no_better_for"
        f" of the key stop. {plural(saved, 'epoch')} were not trained.",
    )


def _more_epochs(inputs: Inputs) -> Note | None:
    """Return a note on the sessions in which `max_epochs` was larger than before, so that finished trials went on."""
    lengths = [session.header.max_epochs for session in inputs.sessions]
    steps = [length for length, before in zip(lengths, [0, *lengths], strict=False) if length != before]
    reopened = [trial for trial in inputs.trials if trial.reopened_at]
    if not reopened:
        return None
    text = f"{plural(len(reopened), 'finished trial')} went on"
    text += f" from {' to '.join(map(str, steps))} epochs (max_epochs)." if len(steps) > 1 else ", because stop had changed."
    if inputs.header.scheduler.name != "none" and len(steps) > 1:
        text += " A trial that the scheduler had stopped before stayed stopped."
    return Note("info", "Finished trials went on", text)


def _interruptions(inputs: Inputs) -> Note | None:
    """Return a note on the interruptions of the sweep, and on the training time that was repeated because of the interruptions."""
    sessions = inputs.sessions
    if len(sessions) < 2:
        return None
    restarted = sum(len({inputs.clock.session_of(a.at) for a in t.attempts}) > 1 for t in inputs.trials)
    cut_off = sum(session.outcome is None for session in sessions)
    text = f"The sweep ran in {len(sessions)} sessions"
    text += f", {cut_off} of which {'was' if cut_off == 1 else 'were'} cut off." if cut_off else "."
    if restarted:
        text += f" {plural(restarted, 'trial')} started again, each from its last checkpoint where it had one."
    else:
        text += " No trial had to start again."
    if lost_s := round(repeated_s(inputs)):
        text += f" {duration(lost_s)} of training, over all trials, had to be done again."
    return Note("info", "Interruptions", text)


STEP_MODES: dict[StepMode, str] = {
    "alone": "one by one",
    "eager": "together with eager steps",
    "compiled": "together with compiled steps",
    "captured": "together as a CUDA graph",
}


def _stacked(inputs: Inputs) -> Note | None:
    """Return a note on the trials that were trained together in one process, or on the reason why not. Return None if the driver did not try."""
    fused = inputs.sweep.fused
    if not fused:
        return None
    earlier = {session.fused.step_mode for session in inputs.sweep.sessions[:-1] if session.fused} - {fused.step_mode, None}
    otherwise = ""
    if earlier:
        ways = ", ".join(STEP_MODES[step_mode] for step_mode in STEP_MODES if step_mode in earlier)
        otherwise = (
            f" Earlier sessions trained their trials in another way ({ways}), so the results of these trials are rounded differently."
        )
    if isinstance(fused, NotFused):
        text = f"Trials could not be trained together, or not faster: {fused.reason}.{otherwise}"
        return Note("info", "Trials were trained one by one", text)
    where = "one process" if fused.processes == 1 else f"each of {fused.processes} processes"
    return Note(
        "info",
        "Trials were trained together",
        f"Up to {fused.slots} at a time in {where}, {fused.speed_up:.1f} times as fast as one by one ({fused.way}). The computation is the same,"
        f" which was checked before the sweep began. The time of a trial is the time of the rounds in which the trial took part.{otherwise}",
    )


def _lost_nodes(inputs: Inputs) -> Note | None:
    """Return a note on the nodes that were lost, and on the number of trials that had to move to another node."""
    lost = list(dict.fromkeys(event.node for event in inputs.sweep.nodes if event.state == "lost"))
    if not lost:
        return None
    moved = sum(any(not failure.counted for failure in t.failures) for t in inputs.trials)
    return Note(
        "info",
        f"{plural(len(lost), 'node')} lost",
        f"The sweep went on without {', '.join(lost)}. {plural(moved, 'trial')} had to move, and went on from the last checkpoint where one existed.",
    )


def _shared_gpus(inputs: Inputs) -> Iterator[Note]:
    """Yield notes on the sharing of GPUs by several trials."""
    sweep = inputs.sweep
    if measured := sweep.gpu_memory_mb:
        share = min(1.0, sweep.gpu_share or 1.0)
        yield Note(
            "info",
            "GPUs were shared",
            f"The first trial took {measured[0]:,} of {measured[1]:,} MB of its GPU, so {1 / share:.0f} trials shared a GPU from then on."
            " The key trial_resources.gpu sets the share.",
        )
    if sweep.is_crowded:
        yield Note(
            "warn",
            "GPUs were too full",
            "Trials did not find room in the memory of a GPU beside their neighbours. So each trial got"
            f" {sweep.gpu_share:.3g} of a GPU from then on. Set trial_resources.gpu: {sweep.gpu_share:.3g} to spare the attempts.",
        )


def _idle_gpus(inputs: Inputs) -> Note | None:
    """Return a note where the GPUs were idle for most of the time, if they were measured for at least MIN_MEASURED_S, and trials were not trained together."""
    percent, resources = mean_gpu_use(inputs), inputs.header.trial_resources
    measured_s: dict[str, float] = {}  # agent → time of the measurements
    for use in inputs.gpu_use:
        measured_s[use.agent] = measured_s.get(use.agent, 0.0) + use.seconds
    is_long = max(measured_s.values(), default=0.0) >= MIN_MEASURED_S
    if percent is None or percent >= MIN_BUSY_PERCENT or not is_long or isinstance(inputs.sweep.fused, FusionPlan):
        return None
    text = "If the trials wait for their data, a larger trial_resources.cpu may help."
    if resources.gpu == 0 and resources.workers is None:
        text = "The trials asked for no GPU: set trial_resources.gpu to a number, or to auto."
    elif resources.gpu != "auto":
        text = f"If a GPU has free memory, let more trials share the GPU: set trial_resources.gpu to a smaller number, or to auto. {text}"
    return Note("info", f"On average, a GPU was busy for {percent:.0f} % of the time", text)


def _retries(inputs: Inputs) -> Note | None:
    """Return a note on the number of trials that failed at first, but did not fail when they were tried again."""
    retried = sum(t.num_failures > 0 and t.status != "ERROR" for t in inputs.trials)
    if not retried:
        return None
    text = "They raised an error, died, hung or reported NaN, and did not fail when they were tried again."
    return Note("info", f"{plural(retried, 'trial')} tried again", text)
