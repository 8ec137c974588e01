"""What a searcher of Ray Tune is told. Whole sweeps with a searcher run in tests/integration/test_searchers.py."""

from __future__ import annotations

from pathlib import Path

from raysweep.config.space import parse_space
from raysweep.record.events import finish
from raysweep.tune.searchers import TuneSampler
from records import new_record, report_scores
from typed import sweep_config

SEARCHER = """
from ray.tune.search import Searcher

class Strict(Searcher):
    def __init__(self):
        super().__init__(metric="score", mode="max")
        self.open = set()

    def set_search_properties(self, metric, mode, config, **spec):
        return True

    def suggest(self, trial_id):
        self.open.add(trial_id)
        return {"x": 0.5}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.open.remove(trial_id)

    def save(self, path):
        open(path, "w").write(",".join(self.open))

    def restore(self, path):
        self.open = {*open(path).read().split(",")}
"""


def test_a_searcher_is_told_once_of_a_trial_that_goes_on_in_a_later_session(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SEARCHER)
    space = parse_space({"x": {"uniform": [0, 1]}})
    sweep = sweep_config(trainable="user.py:train", search_algorithm={"name": "own.py:Strict"}, max_epochs=1, mode="max")
    with new_record(tmp_path, max_epochs=1) as record:
        sampler = TuneSampler(sweep, space, record.sweep, tmp_path, tmp_path)
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config=sampler.propose(0))
        record.write("start", trial="00000", node="n", from_epoch=0)
        for score in (0.5, 0.6):
            report_scores(record, "00000", score)
            record.write("finish", **finish("00000", "max_epochs"))
            sampler.tell(record.sweep.trials["00000"])
            record.write("reopen", trial="00000")
            sampler = TuneSampler(sweep, space, record.sweep, tmp_path, tmp_path)
        assert sampler.reported == {"00000"}
