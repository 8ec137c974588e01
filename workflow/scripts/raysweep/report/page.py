"""Fills in the frame of a page. A page is one HTML file that contains all styles, scripts and figures, and loads no other file."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
from datetime import datetime
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raysweep.common.text import number, plural, value_text
from raysweep.report.charts.parts import CONFIG, Columns, Spec

TEMPLATES_DIR = Path(__file__).parent / "templates"


def when(at: str | None) -> str:
    """Return the text in which the page shows `at`, an ISO 8601 time in UTC. The text is empty if `at` is None."""
    return "" if at is None else datetime.fromisoformat(at).strftime("%-d %b %Y, %H:%M:%S UTC")


def html_page(template: str, specs: dict[str, Spec], data: dict[str, Columns], **values: Any) -> str:
    """Return the page as HTML, that is, the template filled in with `values`, the figures and the data of the figures.

    `specs` maps the id of each place on the page to the figure at that place. `data` maps the name of each data set to the columns of the data set.
    """
    # The page's Content-Security-Policy lists each allowed script by the script's hash, so that no other script can run.
    bundle, code = vega_bundle(), (TEMPLATES_DIR / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": number, "plural": plural, "when": when, "value": value_text}
    return environment.get_template(template).render(
        **values,
        charts={"config": CONFIG, "specs": specs, "data": data},
        made_with=f"Vega-Lite, bundled by vl-convert {importlib.metadata.version('vl-convert-python')}",
        css=Markup((TEMPLATES_DIR / "report.css").read_text(encoding="utf-8")),
        bundle=Markup(bundle),
        code=Markup(code),
        script_sources=f"{_sha256_source(bundle)} {_sha256_source(code)}",
    )


@functools.cache
def vega_bundle() -> str:
    """Return the program that draws the figures. The text depends only on the version of vl_convert, and vl_convert needs seconds to make the text."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _sha256_source(text: str) -> str:
    """Return the expression with which a Content-Security-Policy allows the script `text`."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
