from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.common.errors import ConfigError
from raysweep.config.distributions import Normal, Numeric, parse_distribution, quantized
from raysweep.config.space import (
    DISTRIBUTIONS,
    configuration,
    fill,
    flattened,
    is_conditional,
    nested,
    num_combinations,
    parse_space,
    shown_key,
    values_in,
)

# One of each, with decimals that do not end in binary.
EXAMPLES: dict[str, list[Any]] = {
    "uniform": [-0.3, 0.7],
    "loguniform": [1e-4, 1e-1],
    "quniform": [0.1, 0.7, 0.1],
    "qloguniform": [0.001, 1, 0.001],
    "randint": [-2, 3],
    "lograndint": [1, 100],
    "normal": [5, 2],
    "choice": ["a", "b", "c"],
    "grid": [1, 2],
}
fractions = st.floats(0, 1, exclude_max=True)
seeds = st.integers(0, 2**64)
indices = st.integers(0, 10**6)


def test_there_is_an_example_of_each_distribution() -> None:
    assert tuple(EXAMPLES) == DISTRIBUTIONS


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("uniform", -0.3, 0.7),
        ("loguniform", 1e-4, 1e-1),
        ("quniform", 0.1, 0.7),
        ("qloguniform", 0.001, 1),
        ("randint", -2, 2),
        ("lograndint", 1, 99),
        ("choice", "a", "c"),
        ("grid", 1, 2),
    ],
)
def test_the_ends_of_the_range(name: str, first: Any, last: Any) -> None:
    distribution = parse_distribution(name, EXAMPLES[name])
    assert distribution.quantile(0) == pytest.approx(first)
    assert distribution.quantile(1) == last
    assert distribution.quantile(math.nextafter(1, 0)) == pytest.approx(last)


def test_the_ends_of_a_normal_distribution_are_finite() -> None:
    distribution = Normal(5, 2)
    assert -10 < distribution.quantile(0) < 5 < distribution.quantile(1) < 20
    assert distribution.quantile(0.5) == pytest.approx(5)
    assert distribution.cumulative(distribution.quantile(0.25)) == pytest.approx(0.25)


@given(fractions, st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.sampled_from(["uniform", "loguniform"]))
def test_numbers_lie_within_their_bounds(u: float, low: float, factor: float, name: str) -> None:
    assert low <= parse_distribution(name, [low, low * factor]).quantile(u) <= low * factor


@given(fractions, st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(["randint", "lograndint"]))
def test_integers_lie_below_the_upper_bound(u: float, low: int, width: int, name: str) -> None:
    value = parse_distribution(name, [low, low + width]).quantile(u)
    assert isinstance(value, int)
    assert low <= value < low + width


@given(fractions, st.integers(1, 500), st.integers(1, 500), st.integers(0, 4), st.sampled_from(["quniform", "qloguniform"]))
def test_a_step_gives_decimal_multiples_within_the_bounds(u: float, low: int, width: int, decimals: int, name: str) -> None:
    step = float(f"1e-{decimals}")
    lower, upper = (float(f"{n}e-{decimals}") for n in (low, low + width))
    value = parse_distribution(name, [lower, upper, step]).quantile(u)
    assert lower <= value <= upper
    assert len(repr(value).partition(".")[2]) <= max(decimals, 1), "no noise such as 0.30000000000000004"


def test_bounds_that_are_no_multiples_of_the_step_are_never_passed() -> None:
    distribution = parse_distribution("quniform", [0.25, 0.95, 0.2])
    assert {distribution.quantile(u) for u in np.linspace(0, 1, 101)} == {0.4, 0.6, 0.8}


@pytest.mark.parametrize(("value", "expected"), [(0.34, 0.3), (-1, 0.1), (9, 0.7), (0.7, 0.7)])
def test_quantized(value: float, expected: float) -> None:
    assert quantized(value, 0.1, 0.7, 0.1) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "whole"),
    [
        ("uniform", [1, 3], False),
        ("randint", [1, 3], True),
        ("lograndint", [1, 3], True),
        ("quniform", [1, 3, 1], True),
        ("quniform", [1, 3, 0.5], False),
        ("quniform", [0.5, 3.5, 2], True),
        ("qloguniform", [1, 64, 1.5], False),
    ],
)
def test_distributions_over_whole_numbers(name: str, arguments: list[float], whole: bool) -> None:
    distribution = parse_distribution(name, arguments)
    assert isinstance(distribution, Numeric)
    assert distribution.whole == whole == all(float(distribution.quantile(u)).is_integer() for u in np.linspace(0, 1, 50))


def test_every_value_of_a_list_is_drawn_alike() -> None:
    drawn = [parse_distribution("choice", EXAMPLES["choice"]).quantile(u) for u in np.linspace(0, 1, 300, endpoint=False)]
    assert [drawn.count(value) for value in "abc"] == [100, 100, 100]


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name != "grid"])
def test_a_distribution_means_what_it_means_in_ray_tune(name: str) -> None:
    """Compares the two cumulative distributions: with 4,000 draws of each they differ by 0.05 once in 10,000 times if they are the same."""
    from ray import tune

    theirs = {"normal": tune.randn}.get(name, getattr(tune, name, None))
    assert theirs is not None
    arguments = EXAMPLES[name]
    domain = theirs(arguments) if name == "choice" else theirs(*arguments)
    expected = np.array(domain.sample(size=4000, random_state=np.random.RandomState(7)))
    space = parse_space({"x": {name: arguments}})
    drawn = np.array([configuration(space, 0, index)["x"] for index in range(4000)])
    if name != "choice" and "q" not in name:  # Ray rounds with the noise of binary fractions
        points = np.union1d(expected, drawn)
    else:
        expected, drawn = (np.array([round(v, 6) if name != "choice" else v for v in values.tolist()]) for values in (expected, drawn))
        points = np.union1d(expected, drawn)
    below = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (expected, drawn)]
    assert np.abs(below[0] - below[1]).max() < 0.05


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("uniform", [1, 1], "the lower bound of uniform must be below the upper one"),
        ("uniform", [2, 1], "the lower bound of uniform must be below the upper one"),
        ("uniform", [1], "uniform takes [lower, upper], all of them numbers"),
        ("uniform", [1, 2, 3], "uniform takes [lower, upper], all of them numbers"),
        ("uniform", 1, "uniform takes [lower, upper], all of them numbers"),
        ("uniform", None, "uniform takes [lower, upper], all of them numbers"),
        ("uniform", {"low": 0}, "uniform takes [lower, upper], all of them numbers"),
        ("uniform", [False, True], "uniform takes [lower, upper], all of them numbers"),
        ("uniform", [0, "1"], "uniform takes [lower, upper], all of them numbers"),
        ("uniform", [0, math.inf], "uniform takes [lower, upper], all of them numbers"),
        ("uniform", [math.nan, 1], "uniform takes [lower, upper], all of them numbers"),
        ("loguniform", [-1, 1], "the bounds of loguniform must be above 0"),
        ("lograndint", [0, 5], "the bounds of lograndint must be above 0"),
        ("qloguniform", [0, 1, 0.1], "the bounds of qloguniform must be above 0"),
        ("randint", [0.5, 3], "the bounds of randint must be whole numbers (the upper one is excluded)"),
        ("randint", [3, 3], "the lower bound of randint must be below the upper one"),
        ("quniform", [0, 1], "quniform takes [lower, upper, step], all of them numbers"),
        ("quniform", [0, 1, 0], "the step of quniform must be above 0, and a multiple of it must lie within the bounds"),
        ("quniform", [0, 1, -0.1], "the step of quniform must be above 0, and a multiple of it must lie within the bounds"),
        ("quniform", [0.1, 0.9, 1], "the step of quniform must be above 0, and a multiple of it must lie within the bounds"),
        ("normal", [0, 0], "the standard deviation must be above 0"),
        ("normal", [0], "normal takes [mean, standard deviation], all of them numbers"),
        ("choice", [], "choice takes a list of at least one value"),
        ("choice", "abc", "choice takes a list of at least one value"),
        ("grid", {}, "grid takes a list of at least one value"),
        ("uniform", [datetime.date(2024, 1, 1), 2], "uniform takes [lower, upper], all of them numbers"),
    ],
)
def test_arguments_that_are_refused(name: str, arguments: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"outer": {"x": {name: arguments}}})
    assert str(caught.value) == f"search_space.outer.x.{name}: {arguments!r} is not allowed: {reason}"


@pytest.mark.parametrize("key", ["", "a/b", "_raysweep", 1, None])
def test_keys_that_are_refused(key: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"outer": {key: 1}})
    assert str(caught.value).startswith(f"search_space.outer: the key {key!r} is not allowed")


@pytest.mark.parametrize(
    ("space", "begin"),
    [
        ({"lr": [1, 2]}, "search_space.lr: [1, 2] is not allowed: a distribution, a nested space or a constant"),
        ({"lr": {"logunifrom": [1, 2]}}, "search_space.lr.logunifrom: [1, 2] is not allowed: a distribution"),
        ({"lr": {}}, "search_space.lr: {} is not allowed: one of uniform, "),
        ({"a": {"uniform": [0, 1], "b": 1}}, "search_space.a.uniform: [0, 1] is not allowed"),
    ],
)
def test_spaces_that_are_refused(space: dict[str, Any], begin: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(space)
    assert str(caught.value).startswith(begin)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2024-01-31", "datetime.date(2024, 1, 31)"),
        ("2024-01-31T10:00:00", "datetime.datetime(2024, 1, 31, 10, 0)"),
        ("!!binary aGk=", "b'hi'"),
    ],
)
def test_values_that_json_does_not_hold(text: str, shown: str) -> None:
    value = yaml.safe_load(text)
    allowed = "text (a date stands in quotes), numbers, true, false, null"
    with pytest.raises(ConfigError) as caught:
        parse_space({"outer": {"x": value}})
    assert str(caught.value) == f"search_space.outer.x: {shown} is not allowed: a distribution, a nested space or a constant: {allowed}"
    for name in ("choice", "grid"):
        for inside, said in ((value, shown), ([1, value], f"[1, {shown}]"), ({"a": [value]}, f"{{'a': [{shown}]}}")):
            with pytest.raises(ConfigError) as caught:
                parse_space({"x": {name: ["first", inside]}})
            assert str(caught.value) == f"search_space.x.{name}: {said} is not allowed: {name} takes {allowed}, and lists and maps of those"


def test_a_map_among_the_choices_has_text_for_keys() -> None:
    with pytest.raises(ConfigError, match=r"x\.choice: \{1: 2\} is not allowed: choice takes text"):
        parse_space({"x": {"choice": [{1: 2}]}})


def test_constants_of_any_type_stay_what_they_are() -> None:
    constants = {"a": 1, "b": 1.5, "c": "text", "d": True, "e": None}
    assert configuration(parse_space(constants), 0, 0) == constants


def test_a_nested_space_gives_a_nested_configuration() -> None:
    space = parse_space({"optimizer": {"lr": {"uniform": [0, 1]}, "kind": {"name": "sgd"}}, "x": {"choice": [[1, 2], {"a": 3}]}})
    assert list(space) == ["optimizer/lr", "optimizer/kind/name", "x"]
    drawn = configuration(space, 0, 0)
    assert drawn["optimizer"]["kind"] == {"name": "sgd"}
    assert 0 <= drawn["optimizer"]["lr"] < 1
    assert drawn["x"] in ([1, 2], {"a": 3})


keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    st.dictionaries(keys, st.integers(), min_size=1), lambda inner: st.dictionaries(keys, inner | st.integers(), min_size=1), max_leaves=8
)


@settings(max_examples=25)  # nested maps are slow to draw
@given(trees)
def test_nested_undoes_flattened(tree: dict[str, Any]) -> None:
    assert nested(flattened(tree)) == tree


@given(seeds, indices, indices)
def test_a_configuration_does_not_depend_on_how_many_there_are(seed: int, index: int, count: int) -> None:
    """It is asked for by its index alone: asking for others first, as a longer sweep does, changes nothing."""
    space = parse_space({key: {key: arguments} for key, arguments in EXAMPLES.items()})
    alone = configuration(space, seed, index)
    configuration(space, seed, count)
    assert configuration(space, seed, index) == alone


@given(seeds, indices)
def test_a_key_that_is_added_or_changed_leaves_the_others_values(seed: int, index: int) -> None:
    space = {"lr": {"loguniform": [1e-4, 1]}, "momentum": {"uniform": [0, 1]}}
    before = configuration(parse_space(space), seed, index)
    after = configuration(parse_space({"first": {"uniform": [0, 1]}, **space, "momentum": {"uniform": [5, 6]}, "c": 1}), seed, index)
    assert after["lr"] == before["lr"]
    assert after["momentum"] == pytest.approx(before["momentum"] + 5)


@given(seeds, indices)
def test_keys_seeds_and_indices_draw_for_themselves(seed: int, index: int) -> None:
    space = parse_space({"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}})
    one = configuration(space, seed, index)
    assert one["a"] != one["b"]
    assert configuration(space, seed, index + 1)["a"] != one["a"]
    assert configuration(space, seed + 1, index)["a"] != one["a"]


def test_the_first_configurations_are_what_they_were() -> None:
    """A record lists what was drawn: with another version of this code the same index must not stand for something else."""
    space = parse_space({"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [2, 4, 8, 16]}})
    drawn = [configuration(space, 0, index) for index in range(3)]
    assert [c["batch_size"] for c in drawn] == [2, 8, 4]
    assert [c["lr"] for c in drawn] == pytest.approx([0.0388834, 0.000116331, 0.0004484], rel=1e-5)


def test_a_grid_is_gone_through_once_for_each_sample_the_last_key_fastest() -> None:
    space = parse_space({"a": {"grid": [1, 2]}, "x": {"uniform": [0, 1]}, "b": {"c": {"grid": ["u", "v", "w"]}}})
    assert num_combinations(space) == 6
    pairs = [(c["a"], c["b"]["c"]) for c in (configuration(space, 0, index) for index in range(12))]
    assert pairs == [(a, c) for a in (1, 2) for c in "uvw"] * 2


def test_a_space_without_a_grid_has_one_combination() -> None:
    assert num_combinations(parse_space({"x": {"choice": [1, 2]}})) == 1


def test_fill_draws_once_for_each_distribution_under_its_whole_key() -> None:
    asked = []
    fill(parse_space({"a": {"b": {"uniform": [0, 1]}}, "c": 1, "d": {"grid": [1]}}), lambda key, _: asked.append(key))
    assert asked == ["a/b", "d"]


CONDITIONAL = {
    "lr": {"uniform": [0, 1]},
    "net": {
        "one_of": [
            {"kind": "flat", "width": {"randint": [1, 9]}},
            {
                "kind": "deep",
                "width": {"choice": [16, 32]},
                "tail": {"one_of": [{"drop": {"uniform": [0, 0.5]}}, {"pool": {"choice": ["max", "mean"]}}]},
            },
        ]
    },
}


def test_a_branch_brings_its_own_keys_and_no_others() -> None:
    space = parse_space(CONDITIONAL)
    assert is_conditional(space)
    assert [shown_key(key) for key in space] == [
        "lr",
        "net",
        "net/kind",
        "net/width",
        "net/kind",
        "net/width",
        "net/tail",
        "net/tail/drop",
        "net/tail/pool",
    ]
    forms = set()
    for index in range(60):
        config = configuration(space, 0, index)
        net = config["net"]
        if net["kind"] == "flat":
            assert net.keys() == {"kind", "width"}
            assert net["width"] in range(1, 9)
        else:
            assert net["width"] in (16, 32)
            assert set(net["tail"]) in ({"drop"}, {"pool"})
        forms.add((net["kind"], *net.get("tail", ())))
        values = values_in(space, config)
        assert values is not None
        assert fill(space, lambda key, d, values=values: values[key]) == config
    assert forms == {("flat",), ("deep", "drop"), ("deep", "pool")}


@pytest.mark.parametrize(
    "config",
    [
        {"lr": 2.0, "net": {"kind": "flat", "width": 3}},
        {"lr": 0.5, "net": {"kind": "flat", "width": 16}},
        {"lr": 0.5, "net": {"kind": "flat"}},
        {"lr": 0.5, "net": {"kind": "deep", "width": 16, "tail": {"drop": 0.9}}},
        {"lr": 0.5},
    ],
)
def test_what_is_of_no_branch_is_of_another_space(config: dict[str, Any]) -> None:
    assert values_in(parse_space(CONDITIONAL), config) is None


@pytest.mark.parametrize(
    ("branches", "begin"),
    [
        ([{"a": 1}], "search_space.net.one_of: [{'a': 1}] is not allowed: a list of at least two spaces"),
        ([{"a": 1}, 3], "search_space.net.one_of: [{'a': 1}, 3] is not allowed: a list of at least two spaces"),
        ([{"a": 1}, {"b": {"grid": [1, 2]}}], "search_space.net.one_of.1: grid is not allowed below one_of: choice"),
        ([{"a": 1}, {"b": {"uniform": [2, 1]}}], "search_space.net.one_of.1.b.uniform: "),
    ],
)
def test_branches_that_are_refused(branches: list[Any], begin: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_space({"net": {"one_of": branches}})
    assert str(refused.value).startswith(begin)
