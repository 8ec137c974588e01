"""Finds the facts about the ranking of the trials: ties, the luck of the winner, the seeds, and the confirmation of the winner."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep.common.text import number, plural, value_text
from raysweep.config.space import flattened
from raysweep.record.outputs import values_at
from raysweep.record.trials import Candidate
from raysweep.report.inputs import Inputs

MAX_NAMED = 5  # maximum number of trials or configurations that a sentence names


@dataclass(frozen=True)
class Note:
    """Describes one finding about a sweep.

    The kind `good` supports the result, `warn` is a reason to doubt the result, and `info` is background that the reader needs.
    """

    kind: Literal["good", "info", "warn"]
    title: str
    text: str


def compared_as(inputs: Inputs) -> str:
    """Return the noun for the compared candidates: "configuration" if each configuration has several seeds, otherwise "trial"."""
    return "configuration" if inputs.sweep.repeats > 1 else "trial"


def tied(inputs: Inputs) -> list[tuple[Candidate, float]]:
    """Return the other candidates that tie with the winner, with the value of each candidate, best candidate first.

    A candidate ties with the winner if the candidate's value differs from the winner's value by at most one standard deviation of the confirmation.
    """
    deviation, best = inputs.confirmed.standard_deviation, inputs.best.value
    if deviation is None or inputs.sweep.objectives:
        return []
    slack = 1e-12 * max(1.0, abs(best))  # needed because in binary numbers, 0.47 - 0.46 is slightly more than 0.01
    return [
        (candidate, value)
        for candidate, value in inputs.compared
        if inputs.winner not in candidate.members and abs(value - best) <= deviation + slack
    ]


def tie(inputs: Inputs) -> Note | None:
    """Return a note on the candidates whose values differ from the winner's value by at most one standard deviation of the confirmation."""
    if inputs.sweep.objectives:
        return None  # no single value ranks the candidates
    deviation, num_others = inputs.confirmed.standard_deviation, len(inputs.compared) - 1
    if num_others < 1:
        return Note("warn", "Nothing to compare with", "Only one trial has a result, so nothing was selected.")
    if deviation is None:
        advice = " Set confirm.seeds to 3 or more." if len(inputs.confirmed.seeds) < 2 else ""
        return Note(
            "warn",
            "How much luck is in the ranking is not known",
            "The winner was confirmed with fewer than two seeds. So no standard deviation exists to which the differences between trials could be"
            f" compared.{advice}",
        )
    others = plural(num_others, compared_as(inputs))
    noise = f"one standard deviation of the confirmation ({deviation:.2g}, from {plural(inputs.confirmed.n, 'seed')})"
    near = tied(inputs)
    if not near:
        return Note("good", "The winner stands alone", f"On validation, none of the other {others} lies within {noise} of the winner.")
    named = ", ".join(f"{candidate.trial_id} ({number(value)})" for candidate, value in near[:MAX_NAMED])
    named += " and others" if len(near) > MAX_NAMED else ""
    return Note(
        "warn",
        "It is a tie" if len(near) == 1 else f"It is a tie among {len(near) + 1:,}",
        f"On validation, {len(near):,} of the other {others} {'lies' if len(near) == 1 else 'lie'} within {noise} of the winner: {named}."
        " Chance decides their order as much as merit does. Take the cheapest or the simplest of them.",
    )


def front(inputs: Inputs) -> Note | None:
    """Return a note on the front of several objectives and on the choice from the front, or None with one objective."""
    objectives, choose = inputs.sweep.objectives, inputs.best.choose
    if not objectives:
        return None
    wishes = [f"{'high' if objective.mode == 'max' else 'low'} {objective.metric}" for objective in objectives]
    noun, size, num_compared = compared_as(inputs), len(inputs.best.front), len(inputs.points)
    reason = "is the knee of the front" if choose == "knee" else f"has the best {choose or objectives[0].metric}"
    return Note(
        "info",
        f"{size:,} of {plural(num_compared, noun)} {'is' if size == 1 else 'are'} on the front",
        f"The sweep looks for {' and '.join(wishes)}. For each {noun} that is not on the front, another {noun} is at least as good by all objectives and"
        f" better by one. {inputs.best.trial_id} was chosen because it {reason}. Another choice, which the key choose names, needs no new trial. The last"
        f" report of a {noun} counts. The figures below that show one metric show {inputs.metric}.",
    )


def optimism(inputs: Inputs) -> Note | None:
    """Return a note that compares the winner's validation value with the confirmed mean."""
    num_compared, best, mean = len(inputs.compared), inputs.best.value, inputs.confirmed.mean
    if num_compared < 2 or mean is None or inputs.sweep.objectives:
        return None
    on_test = inputs.confirmed.is_on_test
    where = "on the test set" if on_test else "with new seeds, on validation again"
    difference = f"{number(abs(best - mean))} {'below' if mean < best else 'above'} it" if mean != best else "equal to it"
    more_data = " (trained on the validation part as well)" if mean != best and on_test else ""
    return Note(
        "info",
        f"The winner’s validation {inputs.metric} is optimistic",
        f"{number(best)} is the {'highest' if inputs.mode == 'max' else 'lowest'} of {num_compared:,} validation figures. Whoever chooses the best also"
        f" chooses the luckiest; the effect grows with the number of trials. The confirmed mean {where}, {number(mean)}, is {difference}{more_data}:"
        " quote the mean.",
    )


def repeats(inputs: Inputs) -> Note | None:
    """Return a note on the differences between the seeds or folds of one configuration, or None if each configuration has only one trial."""
    if inputs.sweep.repeats == 1:
        return None
    noun, preposition = ("fold", "on") if inputs.header.has_folds else ("seed", "with")
    shown = []
    for candidate, value in inputs.compared[:MAX_NAMED]:
        report = candidate.best(inputs.metric, inputs.mode)
        values = values_at(candidate, report, inputs.metric) if report else []
        shown.append(f"{candidate.trial_id}: {number(value)} ± {statistics.stdev(values):.2g} ({', '.join(map(number, values))})")
    return Note(
        "info",
        f"Each configuration was trained {preposition} {inputs.sweep.repeats} {noun}s",
        f"The scheduler stopped the {noun}s of a configuration together, and configurations were compared by their mean at the same epoch. A configuration"
        f" that failed {preposition} a {noun} cannot win. The best configurations, with the standard deviation over their {noun}s: {'; '.join(shown)}.",
    )


def constraint(inputs: Inputs) -> Note | None:
    """Return a note on the number of candidates that never reported values within the constraint."""
    bounds = inputs.best.constraint
    if not bounds:
        return None
    limits = [f"{metric} {kind.replace('_', ' ')} {number(value)}" for metric, bound in bounds.items() for kind, value in bound.items()]
    reported = sum(c.status != "ERROR" and c.has_reported(inputs.metric) for c in inputs.sweep.candidates)
    return Note(
        "info",
        f"Only reports with {' and '.join(limits)} could win",
        f"{plural(reported - len(inputs.compared), compared_as(inputs))} of {reported:,} never had such a report."
        + ("" if inputs.sweep.objectives else f" The scheduler saw {inputs.metric} alone."),
    )


def schedule(inputs: Inputs) -> Note | None:
    """Return a note on the changes of the winner's settings during population based training, or None if the settings did not change."""
    schedule = inputs.best.schedule
    if not schedule:
        return None
    configs = [flattened(step.config) for step in schedule]
    changed = [key for key, value in configs[0].items() if any(config.get(key) != value for config in configs[1:])]
    stages = [
        f"from epoch {step.from_epoch + 1} " + ", ".join(f"{key} {value_text(config.get(key))}" for key in changed)
        for step, config in zip(schedule, configs, strict=True)
    ]
    return Note(
        "info",
        "The winner’s settings changed on the way",
        f"The winner took over the weights of better trials, and settings near theirs: {'; '.join(stages)}.",
    )


def annealing(inputs: Inputs) -> Note | None:
    """Return a note if the best epoch lies before the end of the learning rate's schedule, or None if the rate had come to its end."""
    if not inputs.header.model or inputs.header.training.schedule.name == "constant":
        return None
    recipe = inputs.header.training.with_values(inputs.winner.config.get("training", {}))
    schedule, epoch = recipe.schedule, inputs.best.epochs
    if epoch >= (schedule.epochs or 0):
        return None
    percent = 100 * float(recipe.rates(np.array([epoch]))[0])
    text = (
        f"The schedule {schedule.name} is {schedule.epochs:g} epochs long, and the best value is of epoch {epoch}. The learning rate was then"
        f" {percent:.3g} % of lr. The confirmation also ends at this epoch of the same schedule."
    )
    if inputs.header.scheduler.name != "none":
        text += (
            f" The scheduler {inputs.header.scheduler.name} compared trials before the end of their schedules. A trial with a high learning rate often"
            " gains most near the end."
        )
    return Note("info", "The best epoch lies inside the learning-rate schedule", text)


def next_best(inputs: Inputs) -> Note | None:
    """Return a note on the next best configurations that were confirmed too, or None if only the winner was confirmed."""
    others = inputs.confirmed.others
    if not others:
        return None
    sentences = [other.sentence(inputs.mode) for other in others]
    verdicts = [other.verdict(inputs.mode) for other in others]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    intervals = " The intervals hold together in 19 of 20 cases." if len(others) > 1 else ""
    stays = (
        " The winner stays the configuration that validation chose, because a choice by the confirmed values would make these values too good."
        if better
        else ""
    )
    return Note(
        "warn" if better else "good" if worse == len(others) else "info",
        "A configuration is better than the winner on the new seeds"
        if better
        else "The next configuration was confirmed too"
        if len(others) == 1
        else f"The next {len(others)} configurations were confirmed too",
        f"{' '.join(sentences)}{intervals}{stays}",
    )


def confirmation(inputs: Inputs) -> Note | None:
    """Return a warning if the confirmation failed with a seed, or was not measured on a test set."""
    seeds = inputs.confirmed.seeds
    failed = [seed for seed in seeds if seed.value is None]
    if failed:
        return Note(
            "warn",
            "The winner is not confirmed" if len(failed) == len(seeds) else "A part of the confirmation failed",
            f"The training of the best configuration failed with {len(failed)} of {plural(len(seeds), 'new seed')}: {failed[0].error}. To train the"
            " confirmation again after the fault is corrected, add -R confirm to the command.",
        )
    if inputs.confirmed.is_on_test:
        return None
    return Note(
        "warn",
        "There is no test result",
        f"The confirmation was {inputs.confirmed.note}. A function `confirm` beside the trainable gives a test result.",
    )
