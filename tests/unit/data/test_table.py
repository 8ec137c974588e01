"""Tables of the user's own, read with pandas in the environment of the trials: columns, categories, missing values, targets, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.common.errors import RaysweepError
from raysweep.data.manifest import Column, DataManifest, Validation, read_manifest
from raysweep.data.split import SPLITS, fold_dir, load_split
from staging import files_under, stage_into

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

ROWS = 60
CITIES = np.array(["Rome", "Oslo", "Bern"])[np.arange(ROWS) % 3].astype(object)


def table(**changes: Any) -> Any:
    """Return a table with numbers, text, missing values, a constant column and targets; a change to None leaves a column out."""
    generator = np.random.default_rng(0)
    columns = {
        "age": generator.normal(40, 10, ROWS),
        "city": CITIES,
        "member": np.arange(ROWS) % 2 == 0,
        "one": np.ones(ROWS),
        "kind": np.array(["oak", "ash"])[np.arange(ROWS) % 2],
        "price": generator.normal(1000, 200, ROWS),
    } | changes
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def write(folder: Path, data: Any, name: str = "own.csv") -> Path:
    path = folder / name
    data.to_parquet(path) if path.suffix == ".parquet" else data.to_csv(path, index=False)
    return path


def stage_table(folder: Path, data: Any, target: str, name: str = "own.csv", **values: Any) -> DataManifest:
    return stage_into(folder, write(folder, data, name), target=target, **values)


def test_numbers_are_standardised_and_texts_become_categories(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raysweep"):
        manifest = stage_table(tmp_path, table(kind=None), "price")
    assert read_manifest(tmp_path / "data") == manifest
    assert (manifest.kind, manifest.task, manifest.target_column, manifest.image_shape) == ("table", "regression", "price", (7,))
    assert [column.name for column in manifest.columns] == ["age", "city", "member", "one"]
    assert manifest.columns[1].categories == ("Bern", "Oslo", "Rome")
    assert "cifar10: inputs: 1 columns have one value in all training rows: one" in caplog.text
    x, y = load_split(tmp_path / "data", "train")
    assert (x.dtype, x.shape, y.dtype) == (np.float64, (43, 7), np.float64)
    assert (x[:, 1:4].sum(1) == 1).all()
    assert not x[:, 4].any(), "no training row has a text that training has not seen"
    assert manifest.inputs is not None
    np.testing.assert_allclose(manifest.inputs.mean, [x[:, 0].mean(), 0, 0, 0, 0, x[:, 5].mean(), 1], rtol=1e-12)
    np.testing.assert_allclose(manifest.inputs.deviation, [x[:, 0].std(), 1, 1, 1, 1, x[:, 5].std(), 1], rtol=1e-12)


def test_a_parquet_table_gives_the_data_of_the_csv_table(tmp_path: Path) -> None:
    manifest = stage_table(tmp_path, table(), "kind")
    assert (manifest.classes, manifest.task) == (("ash", "oak"), "classification")
    parquet = stage_table(tmp_path, table(city=pd.Categorical(CITIES)), "kind", "own.parquet")
    assert parquet.data_sha256 == manifest.data_sha256


def test_a_column_with_one_text_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raysweep"):
        stage_table(tmp_path, table(city="Oslo"), "price")
    assert "own.csv: 1 columns have one text in all training rows: city" in caplog.text


def test_missing_values_are_counted_and_filled_from_the_training_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = table(kind=None)
    data.loc[[3, 8, 20, 40, 41, 42, 43], "age"] = np.nan
    data.loc[[1, 9, 30, 50], "city"] = None
    data["member"] = data["member"].astype(object)
    data.loc[5, "member"] = None
    with caplog.at_level("INFO", "raysweep"):
        manifest = stage_table(tmp_path, data, "price")
    x, _ = load_split(tmp_path / "data", "train")
    age = manifest.columns[0]
    assert [column.missing for column in manifest.columns] == [7, 4, 1, 0]
    known = data["age"].to_numpy()
    in_training = x[x[:, 0] != age.fill, 0]
    assert np.isin(in_training.round(9), known.round(9)).all()
    assert age.fill == pytest.approx(in_training.mean())
    assert manifest.columns[1].fill in ("Bern", "Oslo", "Rome")
    assert all(np.isfinite(load_split(tmp_path / "data", split)[0]).all() for split in SPLITS)
    assert re.search(
        r"own\.csv: missing values are filled from the training part: age \(7, with 4\d\.\d+\), city \(4, with \w+\), member \(1, ",
        caplog.text,
    )


def test_a_text_that_training_has_not_seen_has_its_own_category(tmp_path: Path) -> None:
    rare = CITIES.copy()
    rare[:5] = [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]  # each in one row: of one of these at least one is not in the training part, which has 43 of the 60 rows
    manifest = stage_table(tmp_path, table(city=rare, kind=None), "price")
    [city] = [column for column in manifest.columns if column.name == "city"]
    unseen = {"a", "b", "c", "d", "e"} - set(city.categories)
    assert unseen
    x = np.concatenate([load_split(tmp_path / "data", split)[0] for split in ("validation", "test")])
    assert x[:, 1 + len(city.categories)].sum() == len(unseen)
    assert (x[:, 1 : 2 + len(city.categories)].sum(1) == 1).all()


def test_the_row_numbers_that_pandas_writes_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table().to_csv(tmp_path / "own.csv")
    with caplog.at_level("INFO", "raysweep"):
        manifest = stage_into(tmp_path, tmp_path / "own.csv", target="kind")
    assert [column.name for column in manifest.columns] == ["age", "city", "member", "one", "price"]
    assert "the first column has no name, so it counts as row numbers and is ignored" in caplog.text


def with_rows(name: str, values: dict[int, Any], dtype: Any = None) -> dict[str, Any]:
    column = table()[name] if dtype is None else table()[name].astype(dtype)
    for row, value in values.items():
        column[row] = value
    return {name: column}


@pytest.mark.parametrize(
    ("changes", "target", "line"),
    [
        (
            {},
            "cost",
            r"datasets\.cifar10\.target: .*own\.csv has no column 'cost'\. Allowed: 'age', 'city', 'member', 'one', 'kind', 'price'\.",
        ),
        ({}, "one", r"own\.csv: column 'one': all training targets are 1\.0\. Allowed: at least two values"),
        (
            with_rows("price", {7: None, 9: None}),
            "price",
            r"own\.csv: column 'price' has 2 missing targets, the first in row 7\. Remove these rows",
        ),
        (with_rows("kind", {7: None}, object), "kind", r"own\.csv: column 'kind' has 1 missing target, the first in row 7\."),
        (with_rows("age", {4: np.inf, 5: -np.inf}), "price", r"own\.csv: column 'age' has 2 infinite values, the first in row 4\."),
        ({"age": np.arange(ROWS) % 3 + 5}, "age", r"column 'age' has labels up to 7, but no row has the label 0\. .*`task: regression`"),
        (with_rows("kind", {9: "fir"}, object), "kind", r"each class needs at least 3 rows, .*: 'fir' \(1\)"),
        ({"age": [None] * ROWS}, "price", r"own\.csv: column 'age' has no value in any training row\. Remove the column"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], target: str, line: str) -> None:
    with pytest.raises(RaysweepError, match=line) as raised:
        stage_table(tmp_path, table(**changes), target)
    assert len(str(raised.value).splitlines()) == 1
    assert files_under(tmp_path) == ["own.csv"]


@pytest.mark.parametrize("largest", [2**63, 2**70])
def test_whole_numbers_that_need_more_than_64_bits_are_numbers_of_a_regression(tmp_path: Path, largest: int) -> None:
    targets = [largest + row * 2**50 for row in range(ROWS)]
    manifest = stage_table(tmp_path, table(age=targets), "age", task="regression")
    assert manifest.target is not None
    assert manifest.target.mean[0] == pytest.approx(float(largest), rel=0.1)


def test_columns_of_other_types_are_one_line(tmp_path: Path) -> None:
    days = pd.date_range("2026-01-01", periods=ROWS)
    with pytest.raises(
        RaysweepError, match=r"own\.parquet: column 'age' has values of the type datetime64\. Allowed: numbers, true and false, or text"
    ):
        stage_table(tmp_path, table(age=days), "price", "own.parquet")
    with pytest.raises(
        RaysweepError, match=r"column 'age' has values of the type datetime64\. Allowed: numbers, or text as names of classes"
    ):
        stage_table(tmp_path, table(age=days), "age", "own.parquet")
    with pytest.raises(RaysweepError, match=r"column 'id' has 300 different texts\. Allowed: at most 256"):
        stage_table(tmp_path, pd.DataFrame({"id": [f"row {row}" for row in range(300)], "y": np.arange(300) % 2}), "y")


def test_files_that_are_no_tables_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text('a,b\n1,2\n1,2,3,"4\n')
    (tmp_path / "own.parquet").write_text("no parquet")
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,1\n")
    (tmp_path / "long.csv").write_text("a,b,y\n0.5,0,1,0\n0.5,0,1,1\n")
    for name, line in {
        "own.csv": "cannot be read as a table",
        "twice.csv": "several columns have the name 'a'",
        "long.csv": "the rows have more values than the first line has names",
        "own.parquet": "cannot be read as a table",
        "empty.csv": "has no rows",
    }.items():
        with pytest.raises(RaysweepError, match=rf"{re.escape(name)}: {line}"):
            stage_into(tmp_path, tmp_path / name, target="a")
    with pytest.raises(RaysweepError, match=r"own\.csv: has no column beside 'price'"):
        stage_table(tmp_path, table()[["price"]], "price")


def test_how_the_columns_were_converted_stands_in_the_manifest(tmp_path: Path) -> None:
    manifest = stage_table(tmp_path, table(kind=None), "price")
    assert manifest.columns[1] == Column("city", manifest.columns[1].fill, 0, ("Bern", "Oslo", "Rome"))


def test_the_column_of_groups_is_no_input_and_each_fold_has_its_own_categories(tmp_path: Path) -> None:
    rare = CITIES.copy()
    rare[7] = "Rare"
    data = table(city=rare, site=[f"site {row // 6}" for row in range(ROWS)])
    manifest = stage_table(tmp_path, data, "price", group="site", validation=Validation(3))
    assert "site" not in [column.name for column in manifest.columns]
    manifests = [read_manifest(fold_dir(tmp_path / "data", fold)) for fold in range(3)]
    assert manifests[0] == manifest
    has_rare = ["Rare" in found.columns[1].categories for found in manifests]
    assert has_rare.count(False) == 1 or not any(has_rare), "one fold, or the test part, has the row"
    for fold, found in enumerate(manifests):
        assert {load_split(fold_dir(tmp_path / "data", fold), split)[0].shape[1] for split in SPLITS} == {found.image_shape[0]}
        ages = load_split(fold_dir(tmp_path / "data", fold), "train")[0][:, 0]
        assert found.inputs is not None
        assert found.inputs.mean[0] == pytest.approx(ages.mean())
    with pytest.raises(RaysweepError, match=r"^datasets\.cifar10\.group: .*own\.csv has no column 'shop'\. Allowed: 'age', "):
        stage_table(tmp_path, data, "price", group="shop")
    with pytest.raises(RaysweepError, match=r"column 'site' has 1 missing group, the first in row 3\. Remove these rows\."):
        stage_table(tmp_path, data.assign(site=[None if row == 3 else "a" for row in range(ROWS)]), "price", group="site")
