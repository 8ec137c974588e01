"""What helps to judge a sweep's result: ties, the winner's luck, the edges of the search space, what was seeded, what went wrong."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from raysweep.common.numeric import is_finite_number
from raysweep.common.text import duration, number, plural, value_text
from raysweep.config.space import Choice, Numeric, flattened
from raysweep.record.outputs import values_at
from raysweep.record.record import Judged, Trial
from raysweep.report.analysis import repeated_s
from raysweep.report.inputs import Inputs, Key, position_in_range

EDGE_FRACTION = 0.05  # of a range, at each end
FEW_STEPS = 20  # an integer range with fewer values has no outer 5 %: there its ends are judged as those of a list


@dataclass(frozen=True)
class Note:
    """One finding: `good` speaks for the result, `warn` against taking it at face value, `info` is what one should know."""

    kind: Literal["good", "info", "warn"]
    title: str
    text: str


@dataclass
class Failure:
    """A cause of failed trials."""

    cause: str  # in the words of the first trial that it ended
    trials: list[Trial] = field(default_factory=list)


def failures(trials: list[Trial]) -> list[Failure]:
    """The failed trials by cause, the most frequent first; texts that differ only in numbers are one cause."""
    found: dict[str, Failure] = {}
    for trial in trials:
        if trial.status == "ERROR":
            cause = trial.error or "no reason recorded"
            found.setdefault(re.sub(r"0x[0-9a-f]+|\d+", "#", cause), Failure(cause)).trials.append(trial)
    return sorted(found.values(), key=lambda f: -len(f.trials))


def notes(inputs: Inputs) -> list[Note]:
    """Everything that helps to judge the result, the most important first."""
    found = [
        _tie(inputs),
        _optimism(inputs),
        _confirmation(inputs),
        *_edges(inputs),
        _splits(inputs),
        *_errors(inputs),
        *_course(inputs),
        _seeded(inputs),
        _repeats(inputs),
        _constraint(inputs),
        _schedule(inputs),
    ]
    return [note for note in found if note is not None]


def tied(inputs: Inputs) -> list[tuple[Judged, float]]:
    """The other trials (or configurations) whose validation value lies within one confirmation standard deviation of the winner's, best first."""
    deviation, winning = inputs.confirmed["standard_deviation"], inputs.best["metric"]["value"]
    if deviation is None:
        return []
    slack = 1e-12 * max(1.0, abs(winning))  # 0.47 - 0.46 is a little more than 0.01
    return [
        (one, value) for one, value in inputs.compared if inputs.winner not in one.members and abs(value - winning) <= deviation + slack
    ]


def _tie(inputs: Inputs) -> Note | None:
    deviation, others = inputs.confirmed["standard_deviation"], len(inputs.compared) - 1
    if others < 1:
        return Note("warn", "Nothing to compare with", "Only one trial has a result, so nothing was selected.")
    if deviation is None:
        return Note(
            "warn",
            "How much luck is in the ranking is not known",
            "The winner was confirmed with fewer than two seeds, so there is no standard deviation to hold the differences between trials "
            "against. Set confirm.seeds to 3 or more.",
        )
    seeds = f"one standard deviation of the confirmation ({deviation:.2g}, from {plural(inputs.confirmed['n'], 'seed')})"
    near = tied(inputs)
    if not near:
        return Note(
            "good",
            "The winner stands alone",
            f"None of the other {plural(others, compared_as(inputs))} lies within {seeds} of it on validation.",
        )
    named = ", ".join(f"{trial.trial_id} ({number(value)})" for trial, value in near[:5]) + (" and others" if len(near) > 5 else "")
    return Note(
        "warn",
        "It is a tie" if len(near) == 1 else f"It is a tie among {len(near) + 1:,}",
        f"{len(near):,} of the other {plural(others, compared_as(inputs))} {'lies' if len(near) == 1 else 'lie'} within {seeds} of the winner on "
        f"validation: {named}. Chance decides their order as much as merit does; take the one that is cheapest or simplest.",
    )


def _optimism(inputs: Inputs) -> Note | None:
    tries, best, mean = len(inputs.compared), inputs.best["metric"]["value"], inputs.confirmed["mean"]
    if tries < 2:
        return None
    where = "on the test set" if inputs.confirmed["evaluated_on"] == "test" else "with new seeds, on validation again"
    difference = f"{number(abs(best - mean))} {'below' if mean < best else 'above'} it" if mean != best else "equal to it"
    more = " (trained on the validation part as well)" if mean != best and inputs.confirmed["evaluated_on"] == "test" else ""
    return Note(
        "info",
        f"The winner’s validation {inputs.metric} is optimistic",
        f"{number(best)} is the {'highest' if inputs.mode == 'max' else 'lowest'} of {tries:,} validation figures. Choosing the best also chooses the "
        f"luckiest, the more so the more trials there are. The confirmed mean {where}, {number(mean)}, is {difference}{more}: quote that one.",
    )


def _repeats(inputs: Inputs) -> Note | None:
    """With several seeds of each configuration: how far they are apart."""
    if inputs.sweep.repeats == 1:
        return None
    shown = []
    for one, value in inputs.compared[:5]:
        result = one.best(inputs.metric, inputs.mode)
        values = values_at(one, result, inputs.metric) if result else []
        shown.append(f"{one.trial_id}: {number(value)} ± {statistics.stdev(values):.2g} ({', '.join(map(number, values))})")
    return Note(
        "info",
        f"Each configuration was trained with {inputs.sweep.repeats} seeds",
        "They were stopped as one, and chosen by their mean at the same epoch; one that failed with a seed cannot win. The best, with the standard deviation"
        f" over their seeds: {'; '.join(shown)}.",
    )


def _constraint(inputs: Inputs) -> Note | None:
    """With bounds within which alone a report may win: how many never were there."""
    bounds = inputs.best.get("constraint")
    if not bounds:
        return None
    limits = [f"{metric} {kind.replace('_', ' ')} {number(value)}" for metric, bound in bounds.items() for kind, value in bound.items()]
    reported = sum(one.status != "ERROR" and one.has_reported(inputs.metric) for one in inputs.sweep.judged)
    return Note(
        "info",
        f"Only reports with {' and '.join(limits)} could win",
        f"{plural(reported - len(inputs.compared), compared_as(inputs))} of {reported:,} never had one. The scheduler saw {inputs.metric} alone.",
    )


def _schedule(inputs: Inputs) -> Note | None:
    """Of a population: by which settings the winner's weights came about."""
    schedule = inputs.best.get("schedule")
    if not schedule:
        return None
    first, *later = [flattened(one["config"]) for one in schedule]
    changed = [key for key in first if any(config.get(key) != first[key] for config in later)]
    steps = [
        f"from epoch {one['from_epoch'] + 1} " + ", ".join(f"{key} {value_text(config.get(key))}" for key in changed)
        for one, config in zip(schedule, [first, *later], strict=True)
    ]
    return Note(
        "info",
        "The winner’s settings changed on the way",
        f"It took over the weights of better trials, and settings near theirs: {'; '.join(steps)}.",
    )


def compared_as(inputs: Inputs) -> str:
    """What trials are compared as, in a word."""
    return "configuration" if inputs.sweep.repeats > 1 else "trial"


def _confirmation(inputs: Inputs) -> Note | None:
    if inputs.confirmed["evaluated_on"] != "test":
        return Note(
            "warn",
            "There is no test result",
            f"The confirmation was {inputs.confirmed['note']}. A function `confirm` beside the trainable gives one.",
        )
    return None


def _steps(distribution: Numeric) -> float:
    """How many different values a distribution has."""
    width = distribution.high - distribution.low
    return width if distribution.integer else width / distribution.step + 1 if distribution.step else math.inf


def _edges(inputs: Inputs) -> Iterator[Note]:
    config = flattened(inputs.winner.config)
    for key in inputs.keys:
        if key.name in config and is_finite_number(config[key.name]) and (note := _edge(key, config[key.name])):
            yield note


def _edge(key: Key, value: float) -> Note | None:
    distribution = key.distribution
    if isinstance(distribution, Numeric) and distribution.log and value <= 0:  # drawn before the range became what it is
        return None
    if isinstance(distribution, Numeric) and _steps(distribution) >= FEW_STEPS:
        position = position_in_range(distribution, value)
        if EDGE_FRACTION < position < 1 - EDGE_FRACTION:
            return None
        upper = position > 0.5
        scale = ", on the log scale it is searched on" if distribution.log else ""
        return Note(
            "warn",
            f"{key.name} lies at the edge of its range",
            f"The best value, {number(value)}, is in the {'upper' if upper else 'lower'} 5 % of "
            f"{number(distribution.low)} to {number(distribution.high)}{scale}. The optimum may lie "
            f"{'above' if upper else 'below'}: widen it and run again; finished trials are kept.",
        )
    if isinstance(distribution, Numeric):
        values = [distribution.low, distribution.high - 1 if distribution.integer else distribution.high]
        enough = _steps(distribution) >= 3
    elif isinstance(distribution, Choice) and all(is_finite_number(v) for v in distribution.values):
        values = sorted(distribution.values)
        enough = len(set(values)) >= 3  # of two values, one of them always lies at an end
    else:
        return None
    if not enough or value not in (values[0], values[-1]):
        return None
    largest = value == values[-1]
    end, beyond = ("largest", "larger") if largest else ("smallest", "smaller")
    return Note(
        "info",
        f"{key.name} is the {end} on offer",
        f"The best value, {number(value)}, is the {end} of its list; a {beyond} one may do better still.",
    )


def _splits(inputs: Inputs) -> Note | None:
    data = inputs.data
    if data is None:
        return Note(
            "info",
            "The trainable brings its own data",
            "How it splits them, and what its validation figure is measured on, is for it to say.",
        )
    sizes = data.splits
    text = (
        f"Trained on {sizes['train']:,}, compared on {sizes['validation']:,} validation examples; {plural(sizes['test'], 'test example')} "
        f"{'were kept for the confirmation, and nothing else reads them' if inputs.confirmed['evaluated_on'] == 'test' else 'were not used'}."
    )
    value = inputs.best["metric"]["value"]
    if inputs.metric == "accuracy" and 0 < value < 1 and sizes["validation"]:
        error = math.sqrt(value * (1 - value) / sizes["validation"])
        text += f" From {sizes['validation']:,} examples an accuracy of {number(value)} has a standard error of {error:.2g}."
    return Note("info", "Split sizes", text)


def _errors(inputs: Inputs) -> Iterator[Note]:
    failed = sum(t.status == "ERROR" for t in inputs.trials)
    if failed:
        yield Note(
            "warn",
            f"{plural(failed, 'trial')} failed",
            f"{failed:,} of {plural(len(inputs.trials), 'trial')} ended with an error and cannot win. If they share a region of the search space, the ranking "
            "says nothing about it. The causes stand under Failures.",
        )
    if missing := inputs.unfinished():
        yield Note(
            "warn",
            "The sweep is not finished",
            f"{missing:,} of {max(inputs.about['num_trials'], len(inputs.trials)):,} planned trials have no final result yet. "
            "Running Snakemake again goes on from the record.",
        )


def _course(inputs: Inputs) -> Iterator[Note]:
    stopped = sum(t.status == "STOPPED" for t in inputs.trials)
    if stopped:
        yield Note(
            "info",
            f"{plural(stopped, 'trial')} stopped early",
            f"The scheduler ({inputs.about['scheduler']['name']}) ended {stopped:,} of {plural(len(inputs.trials), 'trial')} before "
            f"{plural(inputs.about['max_epochs'], 'epoch')}. One that learns slowly and would have won in the end is lost this way.",
        )
    if len(inputs.sweep.sessions) > 1:
        again = sum(len({inputs.clock.session_of(a["at"]) for a in t.attempts}) > 1 for t in inputs.trials)
        broken = sum("outcome" not in s for s in inputs.sweep.sessions)
        text = f"The sweep ran in {len(inputs.sweep.sessions)} sessions"
        text += f", {broken} of which {'was' if broken == 1 else 'were'} cut off." if broken else "."
        text += (
            f" {plural(again, 'trial')} started again, from the last checkpoint where there was one."
            if again
            else " No trial had to start again."
        )
        if lost_s := round(repeated_s(inputs)):
            text += f" {duration(lost_s)} of training, over all trials, had to be done again."
        yield Note("info", "Interruptions", text)
    if fused := inputs.sweep.fused:
        if fused["why_not"]:
            yield Note("info", "Trials were trained one by one", f"Together they could not be, or not faster: {fused['why_not']}.")
        else:
            where = "one process" if fused["processes"] == 1 else f"each of {fused['processes']} processes"
            yield Note(
                "info",
                "Trials were trained together",
                f"Up to {fused['seats']} at a time in {where}, {fused['speed_up']:.1f} times as fast as one by one ({fused['way']}). It is the same"
                " computation, as was seen before the sweep began. A trial’s time is that of the rounds in which it took part.",
            )
    if lost := list(dict.fromkeys(node["node"] for node in inputs.sweep.nodes if node["state"] == "lost")):
        moved = sum(any(not failure["counted"] for failure in t.failures) for t in inputs.trials)
        yield Note(
            "info",
            f"{plural(len(lost), 'node')} lost",
            f"The sweep went on without {', '.join(lost)}. {plural(moved, 'trial')} had to move, and went on from the last checkpoint where there was one.",
        )
    if measured := inputs.sweep.gpu_memory_mb:
        share = min(1.0, inputs.sweep.gpu_share or 1.0)
        yield Note(
            "info",
            "GPUs were shared",
            f"The first trial took {measured[0]:,} of {measured[1]:,} MB of its GPU, so that {1 / share:.0f} shared one from then on. It may be"
            " set: trial_resources.gpu.",
        )
    if inputs.sweep.is_crowded:
        yield Note(
            "warn",
            "GPUs were too full",
            f"Trials did not find room in the memory of a GPU beside their neighbours, so that each got {inputs.sweep.gpu_share:.3g} of one from then on."
            f" With trial_resources.gpu: {inputs.sweep.gpu_share:.3g} they would not have to try.",
        )
    if again := sum(t.num_failures > 0 and t.status != "ERROR" for t in inputs.trials):
        yield Note(
            "info",
            f"{plural(again, 'trial')} tried again",
            "They raised, died, hung or reported NaN, and succeeded when they were tried again.",
        )


def _seeded(inputs: Inputs) -> Note:
    about = inputs.about
    split = f" the validation split (seed {inputs.data.seed})," if inputs.data is not None else ""
    searcher = about["search_algorithm"]["name"]
    text = f"From seed {about['seed']}: the configurations,{split} each trial’s own seed"
    if about.get("model"):
        text += ", with it a model’s first weights, and the order of the training data, which is the same for all trials."
    else:
        text += ", which the trainable gets as RAYSWEEP_SEED; whether it uses it is for it to say."
    if searcher not in ("random", "grid"):
        text += f" What {searcher} proposes depends also on which trials had ended by then."
    if about["scheduler"]["name"] != "none":
        what = "From which other a trial takes over" if about["scheduler"]["name"] == "pbt" else "When a trial is stopped"
        text += f" {what} depends on which others had got that far, so it may differ in another run."
    if any(node["gpus"] for session in inputs.sweep.sessions for node in session["nodes"]):
        text += " On GPUs sums are not always added in the same order, so that values may differ in the last digits."
    return Note("info", "What was seeded", text)
