"""Provides the parts that figures share, which are the style, the colours, and the pieces of a specification.

Colours are CSS variables of the page. So a figure follows the page's theme, in print too, and the browser need not paint the figure again. Fields
have invented names (`config0`), because Vega reads dots and brackets in a name as a path. The user's own names appear only as titles and labels.
"""

from __future__ import annotations

import math
from typing import Any

from raysweep.report.inputs import CONTINUED, SweepResult
from raysweep.report.keys import Key

Spec = dict[str, Any]
Columns = dict[str, list[Any]]  # a data set for figures, which maps the name of each column to the values of the column

# The Vega configuration, which gives every figure its style, both on the page and in the figure's SVG file.
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--axis)",
        "tickColor": "var(--axis)",
        "labelFontSize": 11.5,
        "titleFontSize": 12.5,
        "titleFontWeight": 600,
        "titlePadding": 8,
        "labelPadding": 4,
    },
    "axisX": {"grid": False},
    # Vega's legends are disabled, because the page has its own legends, which wrap into several lines on a narrow screen.
    "legend": {"disable": True},
}

STATUS_COLOURS = {
    "TERMINATED": "var(--blue)",
    "STOPPED": "var(--sky)",
    "ERROR": "var(--red)",
    "RUNNING": "var(--grey)",
    "PENDING": "var(--grey)",
    CONTINUED: "var(--grey)",
}
STATUS_SHAPES = {"TERMINATED": "circle", "STOPPED": "triangle-up", "RUNNING": "square", "PENDING": "square"}
TIERS = ["best fifth", "second", "middle", "fourth", "worst fifth"]
TIER_COLOURS = [f"var(--tier{i})" for i in range(len(TIERS))]
WINNER_COLOUR = "var(--winner)"


def title_text(text: str) -> str:
    """Return `text` as a title. Vega-Lite writes a title into expressions, and escapes only the quotes.

    So a line break becomes a space, and a backslash becomes the sign "set minus".
    """
    return " ".join(text.splitlines()).replace("\\", "\u2216")


def _encoding(field: str, kind: str, options: Spec) -> Spec:
    if options.get("title"):
        options["title"] = title_text(options["title"])
    return {"field": field, "type": kind, **options}


def quantitative(field: str, **options: Any) -> Spec:
    """Return the Vega-Lite encoding of a field that contains numbers."""
    return _encoding(field, "quantitative", options)


def nominal(field: str, **options: Any) -> Spec:
    """Return the Vega-Lite encoding of a field that contains names."""
    return _encoding(field, "nominal", options)


def ordinal(field: str, **options: Any) -> Spec:
    """Return the Vega-Lite encoding of a field that contains ordered steps."""
    return _encoding(field, "ordinal", options)


def mark(kind: str, **style: Any) -> Spec:
    """Return a Vega-Lite mark with this style. `kind` is "point", "line", "bar" and so on."""
    return {"type": kind, **style}


def layer(shape: Spec, /, *, data: list[Spec] | None = None, transform: list[Spec] | None = None, **encoding: Any) -> Spec:
    """Return a layer of a figure. Without `data`, the layer shows the data of the whole figure."""
    source = {} if data is None else {"data": {"values": data}}
    return source | ({} if transform is None else {"transform": transform}) | {"mark": shape, "encoding": encoding}


def chart(description: str, height: int, layers: list[Spec], **options: Any) -> Spec:
    """Return a figure with a height of `height` pixels. The page decides the width of the figure."""
    return {"description": description, "width": "container", "height": height, "layer": layers} | options


def finite(value: Any) -> Any:
    """Return a copy of a figure or of data in which None stands in the place of each NaN and infinity, because JSON cannot contain these numbers."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def palette(colour_of: dict[str, str]) -> Spec:
    """Return a scale that gives each name its own colour or shape."""
    return {"domain": list(colour_of), "range": list(colour_of.values())}


COLOUR_BY_STATUS = nominal("status", scale=palette(STATUS_COLOURS))
SHAPE_BY_STATUS = nominal("status", scale=palette(STATUS_SHAPES))
COLOUR_BY_TIER = ordinal("tier", scale={"domain": TIERS, "range": TIER_COLOURS})
TRIAL: Spec = {"field": "trial"}
WINNER_MARK = mark("point", shape="diamond", filled=True, size=190, color=WINNER_COLOUR, stroke="var(--paper)", strokeWidth=1.5)
WITH_VALUE: Spec = {"filter": "isValid(datum.value)"}  # this filter leaves out failed trials, because failed trials have no value


def only_winner(result: SweepResult) -> Spec:
    """Return the transform that keeps only the data of the winning trial."""
    return {"filter": {"field": "trial", "equal": result.winner.trial_id}}


def metric_scale(result: SweepResult) -> Spec:
    """Return the scale for the values of the metric.

    The scale is logarithmic if all values are positive and the largest value is more than 1000 times the smallest value. A linear scale would press
    most of such values together. In all other cases the scale is linear.
    """
    low, high = result.value_range
    is_wide = low > 0 and high / low > 1000
    return {"type": "log"} if is_wide else {"zero": False, "nice": True}


def metric_axis(result: SweepResult, **options: Any) -> Spec:
    """Return the encoding of the metric as the y-axis."""
    return quantitative("value", title=result.metric, scale=metric_scale(result), **options)


def metric_tooltip(title: str) -> Spec:
    """Return the line of a tooltip that shows the metric's value at a point."""
    return quantitative("value", title=title, format=".4~g")


def trial_tooltip(result: SweepResult, keys: list[Key]) -> list[Spec]:
    """Return the lines of a tooltip that shows the id, status, value and configuration of a trial."""
    lines = [TRIAL, {"field": "status"}, metric_tooltip(result.metric)]
    for i, key in enumerate(keys):
        field = f"config{i}"
        lines.append(quantitative(field, title=key.name, format=".4~g") if key.numeric else nominal(field, title=key.name))
    return lines


def time_unit(total_s: float) -> tuple[float, str]:
    """Return the unit for a time axis with a length of `total_s` seconds, as a pair (seconds of the unit, name of the unit)."""
    return (1.0, "s") if total_s < 180 else (60.0, "min") if total_s < 3 * 3600 else (3600.0, "h")


def running_time_axis(field: str, total_s: float) -> Spec:
    """Return the encoding of an x-axis that covers the whole running time of a sweep."""
    unit_s, unit = time_unit(total_s)
    return quantitative(field, title=f"running time ({unit})", scale={"domain": [0, max(total_s, 1e-3) / unit_s], "nice": False})
