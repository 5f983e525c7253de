"""The report of a lake that dbt has built, and how a browser shows it.

One build serves all tests. Its lake holds every verdict, and texts that would take over a page
that lets them. The browser is the Chromium of the system, driven by Selenium; where there is none,
its tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory
from chromium import CONTRAST, chromium, fetched, prefer
from deltalake import write_deltalake

from orchestration.report.page import REASONS

TRAJLAKE = Path(sys.executable).with_name("trajlake")
HUTS = "Which mountain hut lies higher, Ansel Hut or Kite Refuge?"
ADDRESS = "ann@lee.org"
HOSTILE = (
    "</pre></bdi></style></title><script>document.title = 'taken'; window.taken = 1;</script>"
    "<img src='https://example.org/x.png' onerror='window.taken = 1'>"
    "<iframe src='https://example.org'></iframe><svg onload='window.taken = 1'>"
    "<a href='javascript:window.taken = 1'>here</a><base href='https://example.org/'>"
    "<style>body { display: none }</style><meta http-equiv='refresh' content='0;https://example.org'>"
    "\x1b[31mred \u202egnp.exe\u202c Z\u0351\u0352\u0353algo"
)
REFUSED = "Invalid action. Valid actions are search[query], finish[answer]."
SEEN = {"source": "environment", "name": None, "call_id": None}
CALL = {"call_id": None, "name": "search", "arguments": '{"query": "x"}'}

Done = subprocess.CompletedProcess[str]


def words(number: int, change: str = "") -> str:
    """A text that is long enough to be compared, and unlike that of any other number."""
    return " ".join(f"word{number}x{place}" for place in range(60)) + change


def rows() -> list[dict[str, Any]]:
    """Two dozen trajectories: kept ones of three sources, and some for every verdict."""
    kept = [
        trajectory(
            number,
            source=("desk", "shop", "<b>web</b>")[number % 3],
            rater_score=4 + number % 3 / 2,
            score=number % 4 / 3,
            steps=[
                step(f"Thought: I look.\nAction: look[{number}]", input=words(number),
                     thought="I look.", tool_calls=[CALL]),
                step(f"Action: finish[{number}]", is_trainable=number % 2 == 0),
            ],
        )
        for number in range(15)
    ]  # fmt: skip
    spoilt = [
        trajectory(50, user_query=HOSTILE, source="shop", steps=[step(HOSTILE, input=HOSTILE)]),
        trajectory(51, source="shop", rater_score=1.0, user_query=HOSTILE,
                   steps=[step(HOSTILE + "y" * 5_000_000, input=HOSTILE, thought=HOSTILE)]),
        trajectory(52, source="desk", rating_status=None, rater_score=None),
        trajectory(53, source="desk", user_query=HUTS),
        trajectory(54, source="desk", steps=[step("Action: x", is_trainable=False)]),
        kept[0] | {"trajectory_id": "f" * 64, "raw_record_id": "f" * 64, "source": "shop"},
        trajectory(56, source="desk", steps=[step(words(3), input=words(1, " and more"))]),
        trajectory(57, source="desk", steps=[step(words(3), input=words(1))]),
        trajectory(58, source="secret"),
        trajectory(59, source="crowded"),
        trajectory(60, source="crowded", user_query=f"Write to {ADDRESS}, please."),
        trajectory(61, source="unwanted"),
        trajectory(62, source="desk", rater_score=2.0, user_query="Mend it.",
                   steps=[step("Action: open[kite]", next_observation=REFUSED,
                               observations=[SEEN | {"content": REFUSED}]), step()]),
    ]  # fmt: skip
    return [*kept, *spoilt]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("report"))
    benchmarks = workspace.folder / "benchmarks"
    benchmarks.mkdir(exist_ok=True)
    (benchmarks / "huts.jsonl").write_text(json.dumps({"id": "1", "question": HUTS}) + "\n")
    workspace.environment["TRAJLAKE_BENCHMARKS"] = str(benchmarks)
    workspace.write_recipes(
        [RECIPE | {"drops_near_duplicates": True}],
        [EVERY_SOURCE, EVERY_SOURCE | {"source": "unwanted", "weight": 0}],
        [{"recipe": "default", "dimension": "source", "value": "crowded", "max_trajectories": 1}],
    )
    workspace.write_trajectories(rows(), [{"raw_record_id": "refused", "source": "desk"}])
    workspace.build(variables={"exclude_sources": ["secret"]})
    # The fixtures' quarantine has no reasons.
    refused = {"raw_record_id": "refused", "source": "desk", "reason": "invalid_json"}
    write_deltalake(
        workspace.lake / "quarantine",
        pa.Table.from_pylist([refused | {"detail": HOSTILE}]),
        mode="overwrite",
        schema_mode="overwrite",
    )
    return workspace


def trajlake(lake: Workspace, *arguments: str, **environment: str) -> Done:
    return subprocess.run(
        [str(TRAJLAKE), *arguments],
        cwd=lake.project,
        env=lake.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def page(lake: Workspace) -> Path:
    done = trajlake(lake, "report")
    assert done.returncode == 0, done.stdout + done.stderr
    return lake.exports / "default-report.html"


def test_the_lake_has_every_verdict(lake: Workspace) -> None:
    found = lake.query("select distinct reason from curated_trajectories")
    assert {row["reason"] for row in found} == {*REASONS, "kept"}


def test_the_page_has_every_section(page: Path) -> None:
    html = page.read_text("utf-8")
    for said in (
        *(f"without {reason}" for reason in REASONS),
        "Records in quarantine",
        "rater_score by source",
        "Runs with both scores",
        "share of trained tokens",
        "mean passes",
        "The most copied contents",
        "Contents of the cluster",
        "huts",
        "Steps with a flag",
        "Findings by kind and field",
        "Licences and origin",
        "10 kept beside 10 dropped",
    ):
        assert said in html, said
    assert "another version" not in html


def test_no_personal_data_is_shown(page: Path) -> None:
    html = page.read_text("utf-8")
    assert ADDRESS not in html
    assert "[EMAIL]" in html


def test_the_same_lake_gives_the_same_bytes(lake: Workspace, page: Path) -> None:
    other = lake.folder / "elsewhere" / "again.html"
    done = trajlake(lake, "report", "default", "--output", str(other), "--json")
    assert json.loads(done.stdout) == {
        "file": str(other),
        "bytes": page.stat().st_size,
        "problems": {},
    }
    assert other.read_bytes() == page.read_bytes()


def test_a_table_that_an_older_lake_does_not_have_is_said(lake: Workspace, page: Path) -> None:
    older = lake.folder / "older"
    shutil.copytree(lake.lake, older)
    for name in ("near_duplicates", "personal_data", "trajectory_flags"):
        shutil.rmtree(older / name)
    file = lake.folder / "older.html"
    done = trajlake(lake, "report", "--output", str(file), TRAJLAKE_LAKE=str(older))
    assert done.returncode == 0, done.stderr
    html = file.read_text("utf-8")
    for name in ("near_duplicates", "personal_data", "trajectory_flags"):
        assert f"This lake has no table {name}. `dbt build` makes it." in html
        assert f"left out: This lake has no table {name}." in done.stdout
    assert "without filtered" in html


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["nobody"], {}, "There is no recipe 'nobody' in the lake; there are: default."),
        ([], {"TRAJLAKE_LAKE": "nowhere", "TRAJLAKE_DB": "none.duckdb"}, "has not been built yet"),
        (["--output", "."], {}, "cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_said(
    lake: Workspace, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = trajlake(lake, "report", *arguments, **environment)
    assert done.returncode == 1
    assert said in done.stderr


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from chromium(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def test_nothing_is_fetched_and_nothing_runs(opened: Any, page: Path) -> None:
    assert opened.title == "Trajlake report: default"
    assert opened.get_log("browser") == []
    assert fetched(opened) == {page.as_uri()}
    assert opened.execute_script(
        "return [window.taken === undefined, document.scripts.length]"
    ) == [
        True,
        0,
    ]
    assert opened.execute_script(
        "return document.querySelectorAll('img, iframe, base, object, link, [onerror], [onload], "
        "a:not([href^=\"#\"])').length"
    ) == 0  # fmt: skip
    # What the hostile texts say is there to be read.
    assert "<script>document.title = 'taken'" in opened.find_element("tag name", "body").text
    assert opened.find_element("tag name", "main").is_displayed()


def test_a_script_that_got_into_the_page_would_not_run(opened: Any, page: Path) -> None:
    spoilt = page.with_name("spoilt.html")
    spoilt.write_text(
        page.read_text("utf-8").replace(
            "</body>",
            "<script>window.taken = 1</script><img src='x.png' onerror='window.taken = 1'></body>",
        )
    )
    opened.get(spoilt.as_uri())
    assert opened.execute_script("return window.taken === undefined")
    refused = [each["message"] for each in opened.get_log("browser")]
    assert any("Content Security Policy" in each for each in refused)


def test_every_link_leads_to_a_section(opened: Any) -> None:
    links = opened.find_elements("css selector", "nav a")
    assert len(links) == 12
    for link in links:
        name = link.get_attribute("href").rpartition("#")[2]
        assert opened.find_element("id", name).find_element("tag name", "h2").text == link.text


def test_details_open_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    body = opened.find_element("tag name", "body")
    for _ in range(40):
        focused = opened.switch_to.active_element
        if focused.tag_name == "summary":
            break
        (body if focused.tag_name == "body" else focused).send_keys(Keys.TAB)
    assert focused.text == "The recipe"
    is_open = "return document.querySelector('header details').open"
    assert opened.execute_script(is_open) is False
    focused.send_keys(Keys.ENTER)
    assert opened.execute_script(is_open) is True
    assert "rater_score >= 4.0" in opened.find_element("tag name", "header").text


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_as_wide_as_the_window(opened: Any, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width


def test_masked_steps_look_unlike_trained_ones(opened: Any) -> None:
    look = "return getComputedStyle(document.querySelector(arguments[0])).backgroundImage"
    assert opened.execute_script(look, ".step.trained") == "none"
    assert "repeating-linear-gradient" in opened.execute_script(look, ".step.masked")
    assert opened.find_element("css selector", ".badge.masked").text.startswith("masked by")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened: Any, scheme: str, tmp_path: Path) -> None:
    """Contrast of 4.5 or more (WCAG 2.2, success criterion 1.4.3), in light and in dark."""
    prefer(opened, scheme)
    opened.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert opened.execute_script(CONTRAST) == []
    back = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    picture = tmp_path / f"{scheme}.png"
    assert opened.save_screenshot(str(picture))
    assert picture.stat().st_size > 10_000


def test_the_page_prints(opened: Any, tmp_path: Path) -> None:
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    file = tmp_path / "report.pdf"
    file.write_bytes(b64decode(printed["data"]))
    assert file.read_bytes().startswith(b"%PDF")
