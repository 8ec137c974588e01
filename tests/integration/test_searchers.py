"""Search algorithms of Ray Tune's: asked, told, and gone on with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from raysweep.common.errors import RaysweepError
from raysweep.config.model import Named, SweepConfig
from raysweep.config.space import parse_space
from raysweep.record.file import Record
from raysweep.record.known_trials import KnownTrial, as_finished
from raysweep.record.sweep import Sweep
from raysweep.tune.classes import load_class
from raysweep.tune.searchers import TuneSampler
from sweeping import Project, sweep_of
from typed import sweep_config

SPACE = parse_space(
    {
        "lr": {"loguniform": [1e-4, 1e-1]},
        "net": {"width": {"randint": [2, 9]}, "depth": {"lograndint": [1, 5]}},
        "size": {"choice": ["small", [1, 2], {"a": 1}]},
        "noise": {"normal": [0, 2]},
        "rate": {"quniform": [0, 1, 0.25]},
        "fixed": 3,
    }
)
OPTUNA = "ray.tune.search.optuna:OptunaSearch"
HYPEROPT = "ray.tune.search.hyperopt:HyperOptSearch"
OWN = """
import pickle
from ray.tune.search import Searcher

class Counting(Searcher):
    \"\"\"Suggests 0, 1, 2 … of the whole numbers `x`, two at a time; has no more than `most`.\"\"\"
    def __init__(self, most=5):
        super().__init__()
        self.state = {"given": 0, "told": {}, "live": []}
        self.most = most

    def set_search_properties(self, metric, mode, config, **spec):
        self.x, self._metric = config["x"], metric
        return True

    def suggest(self, trial_id):
        if self.state["given"] == self.most:
            return Searcher.FINISHED
        if len(self.state["live"]) == 2:
            return None
        self.state["live"].append(trial_id)
        self.state["given"] += 1
        return {"x": self.state["given"] - 1}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.state["live"].remove(trial_id)
        self.state["told"][trial_id] = None if error else result[self.metric]

    def save(self, checkpoint_path):
        with open(checkpoint_path, "wb") as stream:
            pickle.dump(self.state, stream)

    def restore(self, checkpoint_path):
        with open(checkpoint_path, "rb") as stream:
            self.state = pickle.load(stream)

class NoSearcher:
    pass
"""


def searching(name: str, options: dict[str, Any]) -> SweepConfig:
    """Return a sweep with that search algorithm."""
    return replace(sweep_config(trainable="user.py:train"), search_algorithm=Named(name, options))


class Asked:
    """A record, and the sampler that proposes its trials."""

    def __init__(self, folder: Path, name: str, space: dict[str, Any], **options: Any) -> None:
        self.folder, self.name, self.space, self.options = folder, name, space, options
        self.record = Record(folder / "record.jsonl")
        self.record.write("session", sweep={}, host="h", pid=1, nodes=[])
        self.go_on()

    def go_on(self) -> None:
        self.sampler = TuneSampler(searching(self.name, self.options), self.space, self.record.sweep, self.folder, self.folder)

    def begin(self) -> dict[str, Any] | None:
        index = len(self.record.sweep.trials)
        config = self.sampler.propose(index)
        if config is not None:
            self.record.write("trial", trial=f"{index:05d}", index=index, repeat=0, seed=0, config=config)
            self.record.write("start", trial=f"{index:05d}", node="n", from_epoch=0)
        return config

    def end(self, index: int, score: float | None, tell: bool = True) -> None:
        trial = f"{index:05d}"
        if score is not None:
            self.record.write("result", trial=trial, epoch=1, metrics={"score": score}, time_s=1.0, node="n")
        self.record.write("finish", trial=trial, status="ERROR" if score is None else "TERMINATED", error=None)
        if tell:
            self.sampler.tell(self.record.sweep.trials[trial])


@pytest.fixture
def own(tmp_path: Path) -> Asked:
    (tmp_path / "mine.py").write_text(OWN)
    return Asked(tmp_path, "mine.py:Counting", parse_space({"x": {"randint": [0, 100]}}))


def test_a_searcher_of_the_users_own_is_asked_told_and_gone_on_with(own: Asked) -> None:
    assert [own.begin(), own.begin(), own.begin()] == [{"x": 0}, {"x": 1}, None]
    own.end(0, 0.5)
    assert own.begin() == {"x": 2}
    own.end(1, None)
    own.end(2, 0.7, tell=False)  # the driver is killed before it says so
    own.go_on()
    searcher: Any = own.sampler.searcher
    assert searcher.state == {"given": 3, "told": {"00000": 0.5, "00001": None, "00002": 0.7}, "live": []}
    assert own.begin() == {"x": 3}
    assert len(list(own.folder.glob("searcher-*"))) == 2  # what it saved, and what tells of it


def test_a_searcher_that_has_no_more_says_how_many_there_are(own: Asked) -> None:
    for index in range(5):
        own.begin()
        own.end(index, 0.1)
    with pytest.raises(RaysweepError, match=r"mine.py:Counting has no more than 5 configurations. Set num_samples to 5"):
        own.begin()


def test_a_state_that_is_torn_is_begun_anew(own: Asked, caplog: pytest.LogCaptureFixture) -> None:
    own.begin()
    [state] = [path for path in own.folder.glob("searcher-*") if path.suffix != ".json"]
    state.write_bytes(b"")
    own.go_on()
    assert "mine.py:Counting cannot read the state that it saved (EOFError: Ran out of input): it learns anew" in caplog.text
    searcher: Any = own.sampler.searcher
    assert searcher.state["given"] == 0


def test_one_that_cannot_be_told_of_other_trials_says_so(own: Asked, caplog: pytest.LogCaptureFixture) -> None:
    own.begin()
    own.end(0, 0.5)
    for path in own.folder.glob("searcher-*"):
        path.unlink()
    own.go_on()
    assert "mine.py:Counting cannot be told of 1 trials that it did not propose itself" in caplog.text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mine.py:NoSearcher", "it is no ray.tune.search.Searcher"),
        ("ray.tune.search.optuna:Nothing", "it is no ray.tune.search.Searcher"),
        ("no_such_library:Search", "No module named 'no_such_library'. Add what it needs to env.requirements"),
    ],
)
def test_what_is_no_searcher_is_one_line(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(RaysweepError, match=re.escape(f"search_algorithm {name}: {why}")):
        load_class(name, Searcher, tmp_path, "search_algorithm")


def test_options_that_it_does_not_know_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(RaysweepError, match=r"search_algorithm mine.py:Counting: TypeError: .*depth"):
        TuneSampler(searching("mine.py:Counting", {"depth": 1}), parse_space({"x": {"randint": [0, 9]}}), Sweep(), tmp_path, tmp_path)


@pytest.mark.parametrize("name", [OPTUNA, HYPEROPT])
def test_a_librarys_searcher_stays_within_the_space_and_learns(tmp_path: Path, name: str) -> None:
    asked = Asked(tmp_path, name, SPACE)
    for index in range(6):
        config = asked.begin()
        assert config is not None
        assert 1e-4 <= config["lr"] <= 1e-1
        assert config["net"]["width"] in range(2, 9)
        assert config["net"]["depth"] in range(1, 5)
        assert config["size"] in ("small", [1, 2], {"a": 1})
        assert isinstance(config["noise"], float)
        assert config["rate"] in (0, 0.25, 0.5, 0.75, 1)
        assert config["fixed"] == 3
        asked.end(index, config["lr"] if index else None)
        if index == 3:
            asked.go_on()
    assert asked.sampler.reported == {f"{index:05d}" for index in range(6)}


@pytest.mark.parametrize("name", [OPTUNA, HYPEROPT])
def test_a_librarys_searcher_goes_on_after_trials_that_failed(tmp_path: Path, name: str) -> None:
    asked = Asked(tmp_path, name, parse_space({"x": {"uniform": [0, 1]}}))
    for index in range(8):
        assert asked.begin() is not None
        asked.end(index, None)


def test_trials_of_another_search_algorithm_are_told_to_one_that_takes_them(tmp_path: Path) -> None:
    space = parse_space({"x": {"uniform": [0, 1]}, "y": {"choice": ["a", "b"]}})
    asked = Asked(tmp_path, OPTUNA, space)
    for path in tmp_path.glob("searcher-*"):
        path.unlink()
    for index, config in enumerate(({"x": 0.5, "y": "b"}, {"x": 7.0, "y": "a"})):
        asked.record.write("trial", trial=f"{index:05d}", index=index, repeat=0, seed=0, config=config)
        asked.record.write("start", trial=f"{index:05d}", node="n", from_epoch=0)
        asked.end(index, 0.5, tell=False)
    asked.go_on()
    searcher: Any = asked.sampler.searcher
    (known,) = searcher._ot_study.trials  # the other lies outside of the space
    assert (known.params, known.value) == ({"x": 0.5, "y": 1}, 0.5)


def test_what_was_known_before_is_told_once_to_a_searcher_that_takes_it(tmp_path: Path) -> None:
    space = parse_space({"x": {"uniform": [0, 1]}, "y": {"choice": ["a", "b"]}})
    known = as_finished([KnownTrial({"x": 0.5, "y": "b"}, 0.7), KnownTrial({"x": 0.25, "y": "a"}, 0.2)], "score")
    for _ in range(2):  # the second session restores what the searcher has learnt
        sampler = TuneSampler(searching(OPTUNA, {}), space, Sweep(), tmp_path, tmp_path, known)
        searcher: Any = sampler.searcher
        assert [(trial.params, trial.value) for trial in searcher._ot_study.trials] == [
            ({"x": 0.5, "y": 1}, 0.7),
            ({"x": 0.25, "y": 0}, 0.2),
        ]


def test_a_warm_start_is_refused_with_a_searcher_that_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    known = as_finished([KnownTrial({"x": 5}, 0.7)], "score")
    space = parse_space({"x": {"randint": [0, 100]}})
    with pytest.raises(
        RaysweepError, match=r"^warm_start is not allowed with search_algorithm mine.py:Counting: it accepts no trials that"
    ):
        TuneSampler(searching("mine.py:Counting", {}), space, Sweep(), tmp_path, tmp_path, known)


def test_a_sweep_with_a_librarys_searcher(project: Project) -> None:
    algorithm = {"name": OPTUNA, "seed": 3}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=3, search_algorithm=algorithm, max_epochs=2)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert [row["status"] for row in project.trials("s")] == ["TERMINATED"] * 3
    project.configure(sweeps={"s": sweep_of("climb", num_samples=5, search_algorithm=algorithm, max_epochs=2)})
    again = project.run("run_sweep", "s")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len({row["config/x"] for row in project.trials("s")}) == 5
