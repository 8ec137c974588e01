"""Says in a dry run what the next run will do to the trials of a sweep that are finished already."""

from __future__ import annotations

from collections.abc import Iterator

from raysweep.common.errors import RaysweepError
from raysweep.common.files import sha256_of_file
from raysweep.common.text import plural
from raysweep.environment.requirements import lock_of
from raysweep.record.budget import may_begin_trials
from raysweep.record.file import read_sweep
from raysweep.record.identity import Identity
from raysweep.record.reopening import reopening_of
from raysweep.record.sweep import Sweep
from raysweep.stages.project import Project
from raysweep.stages.stage import RECORD, identity_of, is_locked, with_horizon
from raysweep.stages.sweep import name_aside, reason_to_start_anew
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target


def forecast(project: Project) -> Iterator[str]:
    """Yield a line for each sweep that will go on from its record, or will start anew although the record has finished trials.

    A sweep whose record is complete and stays valid has no line. Version 0.1 recorded no parts of the identity, so a sweep of version 0.1 has no line either.
    """
    for name, sweep in project.typed.sweeps.items():
        state_dir = project.placed(project.state) / name
        try:
            recorded = read_sweep(state_dir / RECORD)
        except RaysweepError as error:
            yield f"{name}: {error}"
            continue
        if not recorded.sessions or not recorded.header.depends_on:
            continue
        recorded.set_goal(sweep.constraint, sweep.objectives, sweep.choose)
        reopening = reopening_of(recorded, state_dir, sweep.max_epochs, sweep.stop)
        done = sum(trial.finished for trial in recorded.trials.values())
        if reason := reason_to_start_anew(recorded, _identity(project, name, recorded), sweep.resume):
            aside = name_aside(state_dir, recorded.header.identity)
            yield f"{name}: the next run starts anew, since {reason}. {plural(done, 'finished trial')} will not count, and will be kept in {aside}."
        elif reopening.trials or not recorded.is_complete(sweep.num_trials, may_begin_trials(recorded, sweep)):
            finished = f"{done} of {plural(sweep.num_trials, 'trial')} are finished"
            if reopening.trials:
                yield f"{name}: the next run goes on: {finished}. {reopening}."
            else:
                yield f"{name}: the next run goes on, because {finished} and stay valid."


def _identity(project: Project, name: str, recorded: Sweep) -> Identity:
    """Return the identity of a sweep as the config and the user's files give the identity now.

    A dry run installs no packages and stages no data, so the recorded parts stand for parts of the identity that are not known yet.
    """
    sweep, parts, env = project.typed.sweeps[name], recorded.header.depends_on, project.typed.env
    code = Code.read(*[find_target(text, project.root) for text in sweep.targets])
    lock = sha256_of_file(lock_of(project.root / env.requirements)) if is_locked(env.wheels) else parts["lock"]
    sweep = with_horizon(sweep, project.placed(project.state) / name / RECORD)
    return identity_of(sweep, code, data=parts["data"], lock=lock)
