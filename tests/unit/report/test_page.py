"""The report in a real browser: every figure is drawn, the table sorts and filters, nothing is loaded, nothing overflows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysweep.report.comparison import read_sweeps, write_comparison
from raysweep.report.inputs import Inputs
from raysweep.report.report import write_report
from recorded import MemberJob, write_outputs, write_record
from reporting import made_up

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --force-prefers-reduced-motion --window-size=1400,1000"
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver")]
HOSTILE = '</script><img src="http://127.0.0.1:9/x.png" onerror="window.broken = 1"><b>x</b>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, folder: Path, outputs: dict[str, Any] | None = None, *, width: int = 1280, **sweep: Any) -> Inputs:
    """Write the report of a made-up sweep and open it as a file, at that width in pixels; returns when its figures are drawn."""
    inputs = made_up(folder, outputs, **sweep)
    write_report(inputs, folder / "report.html", folder / "figures", ROOT)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.get_log("performance")
    browser.get((folder / "report.html").as_uri())
    WebDriverWait(browser, 120).until(lambda b: b.execute_script("return document.documentElement.dataset.figures") == "drawn")
    return inputs


def complaints(browser: Any) -> list[str]:
    """What the browser's console says: errors of scripts, and whatever the policy forbade."""
    return [entry["message"] for entry in browser.get_log("browser")]


def column(browser: Any, number: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#trials tbody tr')].filter(r => !r.hidden).map(r => r.cells[arguments[0]].textContent)",
        number,
    )


def title(browser: Any, text: str) -> tuple[int, Any]:
    titles = browser.find_elements(By.CSS_SELECTOR, "#trials thead th")
    return next((i, t) for i, t in enumerate(titles) if t.text.startswith(text))


RICH: dict[str, Any] = {
    "num_trials": 30,
    "max_epochs": 6,
    "scheduler": {"name": "asha"},
    "nodes": ("node-1", "node-2"),
    "interruptions": 1,
    "failed": {3: "RuntimeError: out of memory", 9: HOSTILE},
    "search_space": {
        "lr": {"loguniform": [1e-4, 1e-1]},
        "net": {"width": {"randint": [16, 256]}, "act": {"choice": ["relu", HOSTILE]}},
        'a.b(0) "quoted"': {"uniform": [0, 1]},
    },
    "name": "sweep <i>one</i>",
}


CONFUSION = [[900 if true == predicted else (7 * true + predicted) % 20 for predicted in range(11)] for true in range(10)]
NUMBERS = [1200.5, 950.25, 1010.0, 990.0, 1100.0]
F1 = {"f1": {"mean": 0.81234, "standard_deviation": 0.0123}}


@pytest.mark.parametrize(
    ("sweep", "outputs"),
    [
        (RICH, {}),
        ({"num_trials": 1}, {"seeds": 1, "confirmed": {"predictions": {"confusion": CONFUSION}, "metrics": F1}}),
        ({"constant": 0.5, "max_epochs": 2}, {"spread": 0.0, "confirmed": {"predictions": {"true": [1.5], "predicted": [1.5]}}}),
        ({"num_trials": 4, "failed": {0: "x", 1: "x", 3: "x"}}, {}),
        ({"mode": "min", "metric": 'val/loss[0]@0.5 (B) {x} "y"', "max_epochs": 3}, {"on": "validation"}),
        (
            {"search_space": {"act": {"choice": ["relu", "tanh", None]}}},
            {"confirmed": {"predictions": {"true": NUMBERS, "predicted": [1100.0, 1000.5, float("nan"), 980.0, 1050.0]}}},
        ),
        ({"search_space": {}}, {}),
        ({"objectives": [{"metric": "accuracy"}, {"metric": HOSTILE, "mode": "min"}, {"metric": "a.b[0]", "mode": "min"}]}, {}),
        (RICH | {"num_trials": 45}, {}),
        ({"num_trials": 40, "constant": 0.5}, {}),
        ({"num_trials": 40, "jobs": (MemberJob("12_0", HOSTILE), MemberJob("12_1", "b", 40, 90)), "interruptions": 1}, {}),
        (
            {"num_trials": 40, "mode": "min", "search_space": {"act": {"choice": ["relu", "tanh", None]}, "n": {"choice": [[1], [2, 3]]}}},
            {},
        ),
    ],
)
def test_every_figure_is_drawn_without_a_word_from_the_browser(
    browser: Any, tmp_path: Path, sweep: dict[str, Any], outputs: dict[str, Any]
) -> None:
    opened(browser, tmp_path, outputs, **sweep)
    figures = browser.find_elements(By.CSS_SELECTOR, ".chart")
    assert len(figures) >= 3
    for figure in figures:
        assert figure.find_elements(By.CSS_SELECTOR, "svg .mark-symbol path, svg .mark-rect path, svg .mark-line path"), figure.text
        assert "NaN" not in figure.get_attribute("innerHTML")
    assert complaints(browser) == []


def test_the_figures_show_every_trial(browser: Any, tmp_path: Path) -> None:
    inputs = opened(browser, tmp_path, **RICH)
    valued = len(inputs.ranked)
    points = "return document.querySelectorAll(arguments[0]).length"
    # a point for each trial with a value, a cross for each failure, a diamond for the winner
    assert browser.execute_script(points, "#chart-key0 .mark-symbol path") == valued + 2 + 1
    assert browser.execute_script(points, "#chart-best_so_far .mark-symbol path") == valued
    assert browser.execute_script(points, "#chart-parallel .mark-line.role-mark path") == valued + 1
    assert browser.execute_script(points, "#chart-timeline .mark-rect path") >= len(inputs.attempts) + 1
    texts = browser.find_element(By.ID, "chart-parallel").text
    assert "net/width" in texts
    assert 'a.b(0) "quoted"' in browser.find_element(By.ID, "chart-key3").text


def test_what_mattered_is_said_from_thirty_trials_up(browser: Any, tmp_path: Path) -> None:
    space = {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [2, 4]}, "other": {"uniform": [0, 1]}}
    sweep = {"max_epochs": 4, "scheduler": {"name": "asha"}, "search_space": space}
    opened(browser, tmp_path / "few", num_trials=29, **sweep)
    assert (
        "29 trials with a value are too few to show which hyper-parameters mattered. A figure needs 30 trials."
        in browser.find_element(By.ID, "keys").text
    )
    assert browser.find_elements(By.ID, "chart-importance") == []
    opened(browser, tmp_path / "many", num_trials=60, **sweep)
    labels = [text.text for text in browser.find_elements(By.CSS_SELECTOR, "#chart-importance .role-axis-label text")]
    assert labels.index("lr") < min(labels.index("other"), labels.index("batch_size"))
    contour = browser.find_element(By.ID, "chart-contour")
    assert "lr (log scale)" in contour.text
    assert len(contour.find_elements(By.CSS_SELECTOR, ".mark-rect path")) > 30
    assert len(contour.find_elements(By.CSS_SELECTOR, ".mark-symbol path")) == 60 + 1
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-rungs .mark-rect path")) >= 2
    assert complaints(browser) == []


def test_the_page_that_compares_sweeps_draws_and_sorts_them(browser: Any, tmp_path: Path) -> None:
    names = [f"sweep-{i}" for i in range(8)]
    for i, name in enumerate(names):
        changes = {"metric": "loss", "mode": "min"} if i == 7 else {}
        write_outputs(tmp_path, write_record(tmp_path / "state" / name / "record.jsonl", name=name, seed=i, **changes))
    write_comparison(read_sweeps(names, tmp_path / "results", tmp_path / "state"), tmp_path / "comparison.html")
    browser.get((tmp_path / "comparison.html").as_uri())
    WebDriverWait(browser, 120).until(lambda b: b.execute_script("return document.documentElement.dataset.figures") == "drawn")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-confirmed0 .mark-symbol path")) == 7 + 7 * 3
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-cost0 .mark-line path")) == 7
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart svg")) == 4
    number, heading = title(browser, "confirmed mean")
    heading.find_element(By.TAG_NAME, "button").click()
    values = [float(text) for text in column(browser, number)]
    assert values == sorted(values)
    browser.find_element(By.ID, "filter").send_keys("loss")
    assert column(browser, 0) == ["sweep-7"]
    assert complaints(browser) == []


def test_a_users_text_is_shown_and_never_run(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, **RICH)
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.querySelectorAll('img, h1 i').length") == 0
    assert "<b>x</b>" in browser.find_element(By.ID, "failures").text
    assert browser.find_element(By.TAG_NAME, "h1").text == "Sweep sweep <i>one</i>"


def test_the_page_asks_the_network_for_nothing(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, **RICH)
    requests = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert requests == [(tmp_path / "report.html").as_uri()]
    # What the policy is there for: a script or a request that gets into the page nevertheless.
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
    )
    assert browser.execute_script("return window.injected") is None
    said: list[str] = []

    def both_refused(browser: Any) -> bool:
        said.extend(complaints(browser))
        return len(said) >= 2

    WebDriverWait(browser, 10).until(both_refused)
    assert all("Content Security Policy" in message for message in said)


def test_a_click_sorts_the_table_and_a_second_one_turns_it_round(browser: Any, tmp_path: Path) -> None:
    inputs = opened(browser, tmp_path, **RICH)
    number, head = title(browser, "accuracy")
    values = column(browser, number)
    assert column(browser, 0)[0] == inputs.winner.trial_id
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    there = sorted((v for v in values if v), key=float)
    assert column(browser, number) == there + [""] * values.count("")
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(browser, number) == there[::-1] + [""] * values.count("")  # empty ones last, either way


def test_the_keyboard_sorts_too_and_one_column_is_sorted_at_a_time(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, **RICH)
    number, head = title(browser, "lr")
    _, other = title(browser, "status")
    other.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("ascending", "none")
    assert [float(v) for v in column(browser, number)] == sorted(float(v) for v in column(browser, number))


def test_the_filter_keeps_rows_that_hold_all_words(browser: Any, tmp_path: Path) -> None:
    inputs = opened(browser, tmp_path, **RICH)
    field = browser.find_element(By.ID, "filter")
    field.send_keys("node-1 STOPPED")
    expected = sorted(t.trial_id for t in inputs.trials if t.node == "node-1" and t.status == "STOPPED")
    assert sorted(column(browser, 0)) == expected != []
    assert browser.find_element(By.ID, "shown").text == f"{len(expected)} of 30 shown"
    field.send_keys(" no-such-word")
    assert column(browser, 0) == []
    field.clear()
    field.send_keys(" ")
    assert len(column(browser, 0)) == 30


@pytest.mark.parametrize("width", [380, 1280])
def test_the_page_is_never_wider_than_the_window(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, width=width, **RICH)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    figure = browser.find_element(By.CSS_SELECTOR, "#chart-best_so_far svg")
    assert figure.size["width"] <= width
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    WebDriverWait(browser, 10).until(lambda b: 500 < b.find_element(By.CSS_SELECTOR, "#chart-best_so_far svg").size["width"] < 700)


def test_figures_follow_the_colour_scheme_without_being_drawn_again(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    colour = "return getComputedStyle(document.querySelector('#chart-best_so_far .mark-symbol path')).fill"
    seen = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        seen.append((browser.execute_script(colour), browser.execute_script("return getComputedStyle(document.body).backgroundColor")))
    # On paper it is the light one, whatever the screen shows.
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    printed = browser.execute_script(colour)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert seen[0][0] == printed == "rgb(0, 114, 178)"
    assert seen[1][0] != seen[0][0]
    assert seen[1][1] != seen[0][1]


def test_the_copy_button_selects_or_copies_the_snippet(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    button = browser.find_element(By.CSS_SELECTOR, ".copy")
    button.click()
    WebDriverWait(browser, 10).until(lambda _: button.text in ("Copied", "Press Ctrl-C"))
    selected = browser.execute_script("return getSelection().toString()")
    assert selected.startswith("import runpy")


def test_a_thousand_trials_are_drawn(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, num_trials=1000, max_epochs=4, slots=20)
    assert browser.execute_script("return document.querySelectorAll('#chart-key0 .mark-symbol path').length") == 1001
    assert browser.execute_script("return document.querySelectorAll('#chart-parallel .mark-line.role-mark path').length") == 200 + 1
    assert "200 of 1,000 lines are drawn: the best 50, and the others at even steps of rank." in browser.find_element(By.ID, "keys").text
    number, head = title(browser, "lr")
    head.find_element(By.TAG_NAME, "button").click()
    values = [float(v) for v in column(browser, number)]
    assert values == sorted(values)
    assert len(values) == 1000
    assert complaints(browser) == []
