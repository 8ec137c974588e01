"""What a finished trial depends on: hashes that records of earlier versions hold, and the keys that run a sweep again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.common.typed_json import to_json
from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.record.events import SessionHeader
from raysweep.record.identity import EFFECT_OF_KEY, Effect, Identity, confirmation_triggers, rerun_triggers, sweep_identity

ROOT = Path(__file__).resolve().parents[3]


def sweep_of(path: str, name: str, **changes: Any) -> dict[str, Any]:
    """A sweep of the project's own configs, changed."""
    config = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    config["sweeps"][name] |= changes
    # The stages read the config into dataclasses, and compute the identity from the JSON of these.
    sweep: dict[str, Any] = to_json(Config.of(validated(config, [ROOT / path], ROOT)).sweeps[name])
    return sweep


def identity(sweep: dict[str, Any], **parts: str) -> Identity:
    return sweep_identity(sweep, **{"sources": "s", "data": "d", "lock": "l"} | parts)  # type: ignore[arg-type]


# Computed before the table of keys was made, when the formula stood in stages/sweep.py. Another value would set aside the state of every finished sweep.
LENET, DEMO = ("config/config.yaml", "lenet"), ("config/demo.yaml", "demo")
HASHES: list[tuple[tuple[str, str], dict[str, Any], str]] = [
    (LENET, {}, "458851442b00c430eedd10160d2649e32d8ad7b1eb397667b66c6c9f40a70aeb"),
    (LENET, {"stop": {"accuracy": {"at_least": 0.9}}}, "a1e8e7f3501ffec454dba33657aa5cf070a6a27ebf6d471d7ebd2c52deb5cb73"),
    (LENET, {"repeats": 2}, "810051952119ed145bf0de440ae53a060463a5859e5e37b32e2d04624a2429fb"),
    (LENET, {"search_algorithm": "optuna", "num_samples": 3}, "458851442b00c430eedd10160d2649e32d8ad7b1eb397667b66c6c9f40a70aeb"),
    (LENET, {"scheduler": "median"}, "fbe581e9e41c6c5dee83e368fd81898e95a93be86341581251000afa6e6fbf97"),
    (LENET, {"seed": 1}, "4fbf17115826cd0842030ed1ee91a5c638d68beb7bd7c4dc509b85a0a769049c"),
    (DEMO, {}, "d01e80ba47413cf6814084ab30dcf065061dd727ff24b77e6f7cc7abb817e55c"),
    (DEMO, {"stop": {"accuracy": {"at_least": 0.9}}}, "b0c5b6ef941c26ebf96c2967583ad2336a901a5c9ef2d00fe32afb95ae29c0a5"),
    (DEMO, {"repeats": 2}, "89da4a68a750acaa807796853343ead59a70f610c7e8da4962e8894ab3c1b857"),
]


@pytest.mark.parametrize(("source", "changes", "expected"), HASHES)
def test_the_identity_is_that_of_earlier_versions(source: tuple[str, str], changes: dict[str, Any], expected: str) -> None:
    assert identity(sweep_of(*source, **changes)).sha256_of_all == expected


def test_of_a_recipe_only_what_differs_from_the_defaults_counts() -> None:
    """So a key that a later version adds to the recipe sets aside no record."""
    before = sweep_of(*LENET)
    assert identity(sweep_of(*LENET, training={"label_smoothing": 0, "schedule": "constant"})) == identity(before)
    changed = sweep_of(*LENET, training={"schedule": "cosine", "warmup_epochs": 0})
    assert identity(changed).parts["training"] == {"schedule": {"name": "cosine", "epochs": None}}
    assert "training" not in rerun_triggers(before)
    # The versions in which the default of `epochs` was `max_epochs` of the present config gave this text to Snakemake.
    assert rerun_triggers(changed)["training"]["schedule"] == {"name": "cosine", "epochs": before["max_epochs"]}


@pytest.mark.parametrize("part", ["sources", "data", "lock"])
def test_code_data_and_lock_are_parts(part: str) -> None:
    sweep = sweep_of(*LENET)
    assert identity(sweep, **{part: "other"}) != identity(sweep)


@pytest.mark.parametrize(
    ("changes", "parts", "expected"),
    [
        ({}, {}, None),
        ({"num_samples": 99, "search_algorithm": "optuna", "time_budget": "1h"}, {}, None),
        ({"seed": 9}, {}, "seed changed"),
        (
            {"repeats": 2, "seed": 9},
            {"sources": "other", "lock": "other"},
            "the code and the installed packages and seed and repeats changed",
        ),
        ({"max_epochs": 99, "scheduler": "median", "stop": {"loss": {"at_most": 1}}}, {}, None),
        ({"scheduler": "hyperband"}, {}, "scheduler changed"),
        ({"scheduler": "pbt", "max_epochs": 99}, {}, "max_epochs and scheduler changed"),
        ({}, {"data": "other"}, "the data changed"),
    ],
)
def test_the_parts_that_changed_are_named(changes: dict[str, Any], parts: dict[str, str], expected: str | None) -> None:
    before = identity(sweep_of(*LENET))
    header = SessionHeader.from_json(json.loads(json.dumps({"identity": before.sha256, "depends_on": before.parts})))
    assert identity(sweep_of(*LENET, **changes), **parts).change_since(header) == expected


def test_a_sweep_of_a_pausing_scheduler_depends_on_its_epochs_and_its_bounds() -> None:
    before = identity(sweep_of(*LENET, scheduler="hyperband", max_epochs=9))
    header = SessionHeader(identity=before.sha256, depends_on=before.parts)
    assert before.change_since(header) is None
    for changes, expected in (
        ({"max_epochs": 27}, "max_epochs changed"),
        ({"stop": {"loss": {"at_most": 1}}}, "stop changed"),
        ({"scheduler": "asha"}, "scheduler changed"),
    ):
        changed = identity(sweep_of(*LENET, **{"scheduler": "hyperband", "max_epochs": 9, **changes}))
        assert changed.change_since(header) == expected
        assert changed.sha256 != before.sha256


def test_the_epochs_are_a_part_where_the_code_reads_them() -> None:
    parts = identity(sweep_of(*LENET)).parts
    before, after = (Identity({**parts, "max_epochs": epochs}, reads_max_epochs=True) for epochs in (1, 2))
    assert after.change_since(SessionHeader(identity=before.sha256, depends_on=before.parts)) == "max_epochs changed"
    assert after.sha256 != before.sha256


def test_the_identity_of_an_earlier_version_is_recognised() -> None:
    present, longer = identity(sweep_of(*LENET)), identity(sweep_of(*LENET, max_epochs=99))
    assert present.sha256 == longer.sha256
    assert present.is_identity(present.sha256_of_all)
    assert not longer.is_identity(present.sha256_of_all)


def test_a_record_of_version_0_1_has_only_the_checksum_of_the_parts() -> None:
    before = identity(sweep_of(*LENET))
    header = SessionHeader(identity=before.sha256)
    assert before.change_since(header) is None
    assert identity(sweep_of(*LENET, seed=9)).change_since(header) == "what its trials depend on has changed"


def test_a_part_that_a_later_version_adds_only_counts_where_it_is_there() -> None:
    header = SessionHeader(identity="by another formula", depends_on={"seed": 1})
    assert Identity({"seed": 1}).change_since(header) is None
    assert Identity({"seed": 1, "split": "time"}).change_since(header) == "split changed"
    assert Identity({"seed": 1.0}).change_since(header) == "seed changed"


CHANGES: dict[str, Any] = {
    "dataset": "other",
    "model": "m.py:Other",
    "trainable": "t.py:f",
    "loss": "other",
    "optimizer": "other",
    "search_space": {"lr": 1},
    "search_algorithm": {"name": "optuna"},
    "num_samples": 99,
    "repeats": 3,
    "metric": "other",
    "mode": "min",
    "max_epochs": 99,
    "stop": {"accuracy": {"at_least": 1}},
    "constraint": {"size": {"at_most": 1}},
    "scheduler": {"name": "median"},
    "seed": 99,
    "time_budget": "1h",
    "keep_checkpoints": 9,
    "training": {"label_smoothing": 0.1},
    "objectives": [{"metric": "accuracy"}, {"metric": "loss", "mode": "min"}],
    "choose": "knee",
    "end_when": {"no_better_for": {"configurations": 9, "min_delta": 0}},
    "warm_start": "old.csv",
    "max_gpu_hours": 5,
}


def test_each_key_does_what_the_table_says() -> None:
    sweep = sweep_of(*LENET)
    assert list(CHANGES) == list(EFFECT_OF_KEY)
    starts_anew = {key for key, value in CHANGES.items() if identity(sweep | {key: value}).sha256 != identity(sweep).sha256}
    extends = (Effect.EXTENDS, Effect.EXTENDS_UNLESS_PAUSING)
    assert starts_anew == {key for key, effect in EFFECT_OF_KEY.items() if effect not in extends}


def test_the_keys_of_the_table_are_keys_of_the_config() -> None:
    schema = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text(encoding="utf-8"))
    keys = schema["properties"]["sweeps"]["additionalProperties"]["properties"]
    assert set(EFFECT_OF_KEY) <= set(keys)


def test_the_document_names_the_keys_of_the_identity() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    [paragraph] = [part for part in text.split("\n\n") if part.startswith("A finished trial depends on")]
    documented = paragraph.split("When one of these changes")[0]
    for key, effect in EFFECT_OF_KEY.items():
        assert (f"`{key}`" in documented) == (effect not in (Effect.EXTENDS, Effect.EXTENDS_UNLESS_PAUSING)), key
        assert (f"`{key}`" in paragraph) or effect is not Effect.EXTENDS_UNLESS_PAUSING, key


def test_the_end_of_a_sweep_runs_the_sweep_again_and_extends_it() -> None:
    before, changed = sweep_of(*LENET), sweep_of(*LENET, end_when={"no_better_for": 3})
    assert identity(changed) == identity(before)
    assert "end_when" not in rerun_triggers(before)
    assert rerun_triggers(changed)["end_when"] == {"no_better_for": {"configurations": 3, "min_delta": 0}}


def test_more_gpu_hours_run_the_sweep_again_and_extend_it() -> None:
    before, changed = sweep_of(*LENET), sweep_of(*LENET, max_gpu_hours=5, allocation={"gpus_per_node": 1})
    assert identity(changed) == identity(before)
    assert "max_gpu_hours" not in rerun_triggers(before)
    assert rerun_triggers(changed)["max_gpu_hours"] == 5


def test_another_warm_start_runs_the_sweep_again_and_extends_it() -> None:
    before, changed = sweep_of(*LENET, search_algorithm="optuna"), sweep_of(*LENET, search_algorithm="optuna", warm_start="old.csv")
    assert identity(changed) == identity(before)
    assert "warm_start" not in rerun_triggers(before)
    assert rerun_triggers(changed)["warm_start"] == "old.csv"


def test_the_short_form_of_patience_is_the_same_part_of_the_identity() -> None:
    parts = [identity(sweep_of(*DEMO, stop={"no_better_for": value})).parts for value in (2, {"epochs": 2}, {"epochs": 2, "min_delta": 0})]
    assert parts[0] == parts[1] == parts[2]
    assert parts[0]["stop"] == {"no_better_for": {"epochs": 2, "min_delta": 0}}


def test_metrics_run_only_the_confirmation_again() -> None:
    before, changed = sweep_of(*DEMO), sweep_of(*DEMO, metrics=["f1"])
    assert (rerun_triggers(changed), identity(changed)) == (rerun_triggers(before), identity(before))
    assert confirmation_triggers(before) == before["confirm"]["seeds"], "the value that earlier versions gave to Snakemake"
    assert confirmation_triggers(changed) == [before["confirm"]["seeds"], ["f1"]]
    more = sweep_of(*DEMO, confirm={"top": 2})
    assert (rerun_triggers(more), identity(more)) == (rerun_triggers(before), identity(before))
    assert confirmation_triggers(more) == [before["confirm"]["seeds"], [], 2]


def test_the_rules_parameter_has_the_values_in_the_order_of_the_table() -> None:
    """Snakemake compares the parameter's text."""
    triggers = rerun_triggers(sweep_of(*DEMO))
    assert list(triggers) == [
        *(
            "dataset",
            "model",
            "trainable",
            "loss",
            "optimizer",
            "search_space",
            "search_algorithm",
            "num_samples",
            "repeats",
            "metric",
            "mode",
        ),
        *("max_epochs", "stop", "constraint", "scheduler", "seed", "time_budget", "keep_checkpoints"),
    ]
    assert (triggers["num_samples"], triggers["trainable"]) == (12, None)
