"""Builds the figure that compares the predictions of the published model for the test set with the targets."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.common.numeric import is_finite_number
from raysweep.record.results import Predictions
from raysweep.report.charts.parts import Spec, chart, layer, mark, nominal, quantitative

ROW_HEIGHT = 26  # height of a row of the confusion matrix, in pixels
# The largest opacity leaves the numbers legible in both themes.
SHADE = quantitative("share", scale={"domain": [0, 1], "range": [0.03, 0.6]})


def confusion_matrix(predictions: Predictions, classes: Sequence[str]) -> Spec:
    """Return the confusion matrix. `classes` contains the names of the classes. A class that only the model has is named by its number."""
    counts = predictions.confusion
    columns = [*classes, *(f"class {number}" for number in range(len(classes), len(counts[0])))]
    values = [
        {"true": true, "predicted": predicted, "rows": count, "share": round(count / max(sum(row), 1), 4)}
        for true, row in zip(classes, counts, strict=True)
        for predicted, count in zip(columns, row, strict=True)
    ]
    axis = {"labelLimit": 110, "ticks": False, "domain": False}
    x = nominal("predicted", sort=columns, title="predicted class", axis={**axis, "labelAngle": -40})
    y = nominal("true", sort=list(classes), title="true class", axis=axis)
    tooltip = [
        x | {"title": "predicted"},
        y | {"title": "true"},
        {"field": "rows"},
        quantitative("share", title="share of the class", format=".1%"),
    ]
    layers = [
        layer(mark("rect", color="var(--blue)", stroke="var(--line)"), x=x, y=y, opacity=SHADE, tooltip=tooltip),
        layer(mark("text", color="var(--ink)", fontSize=11), transform=[{"filter": "datum.rows > 0"}], x=x, y=y, text={"field": "rows"}),
    ]
    return chart("Confusion matrix of the published model on the test set", ROW_HEIGHT * len(classes), layers, data={"values": values})


def predicted_against_true(predictions: Predictions, num_rows: int) -> tuple[Spec, str]:
    """Return the figure with the predicted number against the true number of each row, and a sentence on the rows that are left out.

    The figure also has the line on which both numbers are equal. `num_rows` is the number of rows of the test set.
    """
    values = [{"true": true, "predicted": predicted} for true, predicted in zip(predictions.true, predictions.predicted, strict=True)]
    numbers = [number for value in values for number in value.values() if is_finite_number(number)]
    ends = [min(numbers), max(numbers)]
    scale = {"domain": ends, "nice": True, "zero": False}
    x, y = (quantitative(field, title=title, scale=scale) for field, title in (("true", "true value"), ("predicted", "predicted value")))
    tooltip = [quantitative(field, format=".4~g") for field in ("true", "predicted")]
    points = mark("point", filled=True, size=34, opacity=0.5, color="var(--blue)")
    line = mark("line", strokeWidth=1.5, strokeDash=[5, 4], color="var(--ink)")
    layers = [
        layer(points, transform=[{"filter": "isValid(datum.predicted)"}], x=x, y=y, tooltip=tooltip),
        layer(line, data=[{"true": end, "predicted": end} for end in ends], x=x, y=y),
    ]
    left_out = f"{len(values)} of {num_rows:,} rows are drawn, at even steps." if len(values) < num_rows else ""
    return chart("Predicted against true values of the test set", 300, layers, data={"values": values}), left_out
