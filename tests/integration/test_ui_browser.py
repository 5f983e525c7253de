"""The trajectory browser as its users have it: `trajlake ui` over a lake that dbt has built, in a
Chromium that clicks through it.

One build and one server serve nearly all tests. The lake holds texts that would take over a page
that lets them, one of five megabytes among them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import duckdb
import pyarrow as pa
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory
from chromium import CONTRAST, chromium, fetched, prefer
from deltalake import write_deltalake

TRAJLAKE = Path(sys.executable).with_name("trajlake")
HOSTILE = (
    "</pre></bdi></title><script>document.title = 'taken'; window.taken = 1;</script>"
    "<img src='https://example.org/x.png' onerror='window.taken = 1'>"
    "![a picture](https://example.org/y.png) data:image/png;base64,AAAA "
    "<iframe src='https://example.org'></iframe><a href='javascript:window.taken = 1'>here</a>"
    "<form action='https://example.org'><style>body { display: none }</style>"
    "<meta http-equiv='refresh' content='0;https://example.org'>"
    "\x1b[31mred\x1b]8;;https://example.org\x07 \u202egnp.exe\u202c Z\u0351\u0352\u0353algo "
    "{{ 7 * 7 }}"
)
LONG = HOSTILE + "y" * 5_000_000 + " the very end"
HARBOUR = "Who painted the harbour?"
TOKEN = "a-token-for-the-tests"

Page = tuple[int, dict[str, str], str]


def looked_up(finish: str, score: float, number: int) -> dict[str, Any]:
    """A run at one task whose first step is the same in all of them."""
    return trajectory(
        number,
        user_query=HARBOUR,
        format="chat",
        score=score,
        rater_score=4.0 + score / 2,
        source="desk",
        steps=[
            step("Action: search[harbour]", input=HARBOUR, thought=None),
            step(f"Finish[{finish}]", observations=[], next_observation=None),
        ],
    )


def rows() -> list[dict[str, Any]]:
    call = {"call_id": None, "name": "open", "arguments": '{"at": 3}'}
    plain = [
        trajectory(
            number,
            source=("desk", "shop", "<b>web</b>")[number % 3],
            rater_score=5 - number % 4,
            score=number / 60,
            model_name=f"agent-{number % 2}",
            steps=[
                step(f"Thought: I look.\nAction: look[{number}]", thought="I look.",
                     input=f"Question {number}? Heather {'moor' if number == 7 else 'field'}.",
                     tool_calls=[call]),
                step("Action: finish[42]", is_trainable=number % 2 == 0),
            ],
        )
        for number in range(60)
    ]  # fmt: skip
    return [
        *plain,
        looked_up("Ann", 1.0, 100),
        looked_up("Bea", 0.0, 101),
        trajectory(102, user_query=HOSTILE, source="shop", system_prompt=HOSTILE,
                   steps=[step(HOSTILE, input=HOSTILE, thought=HOSTILE, tool_calls=[call])]),
        trajectory(103, user_query="A long one", source="shop", steps=[step(LONG, input="Go")]),
        trajectory(104, user_query="Many steps", source="shop",
                   steps=[step(f"Action: go[{n}]") for n in range(130)]),
        plain[0] | {"trajectory_id": "f" * 64, "raw_record_id": "f" * 64, "source": "shop"},
    ]  # fmt: skip


def raw_record(row: dict[str, Any]) -> dict[str, Any]:
    raw = json.dumps({"query": row["user_query"], "steps": len(row["steps"])}).encode()
    if row["user_query"] == "A long one":
        raw = LONG.encode()
    return {
        "raw_record_id": row["raw_record_id"], "source": row["source"], "raw": raw,
        "raw_file": f"{row['source']}/log.jsonl", "raw_position": 1, "raw_offset": 0,
        "raw_bytes": len(raw), "raw_sha256": "0" * 64, "file_sha256": "0" * 64, "landed_at": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("ui"))
    workspace.write_recipes([RECIPE], [EVERY_SOURCE])
    found = rows()
    workspace.write_trajectories(found)
    workspace.build()
    records = pa.Table.from_pylist([raw_record(row) for row in found])
    landed = records.schema.get_field_index("landed_at")
    records = records.set_column(
        landed, "landed_at", pa.nulls(len(found), pa.timestamp("us", tz="UTC"))
    )
    write_deltalake(
        workspace.lake / "raw_records", records, mode="overwrite", schema_mode="overwrite"
    )
    # What the fixtures' ledger lacks: the reasons of the rater, and of each step.
    scores = pa.list_(
        pa.struct([("step_id", pa.int32()), ("score", pa.float64()), ("critique", pa.string())])
    )
    ledger = pa.Table.from_pylist(workspace.query("select * exclude (explanation) from ratings"))
    judged = [[{"step_id": 1, "score": 2.5, "critique": f"Looks twice. {HOSTILE}"}]] * len(ledger)
    ledger = ledger.append_column("step_scores", pa.array(judged, scores))
    said = pa.array([f"It asks first. {HOSTILE}"] * len(ledger))
    write_deltalake(
        workspace.lake / "ratings",
        ledger.append_column("explanation", said),
        mode="overwrite",
        schema_mode="overwrite",
    )
    return workspace


class Server:
    """`trajlake ui` in a process of its own."""

    def __init__(self, lake: Workspace, *options: str, **environment: str) -> None:
        self.log = lake.folder / f"ui-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(TRAJLAKE), "ui", "--port", "0", *options],
                cwd=lake.project,
                env=lake.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        for _ in range(600):
            if found := re.search(r"http://\S+", self.log.read_text()):
                break
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        assert found, self.log.read_text()
        self.link = found.group()
        self.port = urlsplit(self.link).port
        self.root = f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def get(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Page:
        """A page as plain HTTP gives it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body.encode() or None, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text


@contextmanager
def serving(lake: Workspace, *options: str, **environment: str) -> Iterator[Server]:
    server = Server(lake, *options, **environment)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(lake: Workspace) -> Iterator[Server]:
    with serving(lake, "--as", "reviewer") as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from chromium(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def opened(browser: Any, server: Server) -> Any:
    """The first page, freshly opened."""
    prefer(browser, "light")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(f"{server.root}/")
    return browser


def id_of(lake: Workspace, condition: str) -> str:
    [row] = lake.query(f"select trajectory_id from trajectories where {condition}")
    return str(row["trajectory_id"])


def total(browser: Any) -> int:
    return int(browser.find_element("id", "total").text.replace(",", ""))


def submit(browser: Any, **fields: str) -> None:
    """Fill in the form of the list and send it."""
    for name, value in fields.items():
        field = browser.find_element("id", name)
        field.clear()
        field.send_keys(value)
    leave(browser, browser.find_element("css selector", "form.find button"))


def leave(browser: Any, element: Any) -> None:
    """Click what leads to another page, and wait until that is there."""
    browser.execute_script("window.isOld = true")
    element.click()
    there = "return !window.isOld && document.readyState === 'complete'"
    wait(lambda: browser.execute_script(there))


def body(browser: Any) -> str:
    return str(browser.find_element("tag name", "body").text)


def items(browser: Any) -> list[str]:
    return [each.text for each in browser.find_elements("css selector", "a.item")]


def wait(true: Any, seconds: float = 20) -> None:
    for _ in range(int(seconds * 10)):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true in time")


def test_a_reader_finds_looks_compares_and_labels(
    opened: Any, server: Server, lake: Workspace
) -> None:
    from selenium.webdriver.common.keys import Keys

    # Find: a list, a list to choose from, a condition, full text.
    assert total(opened) == 66
    assert len(items(opened)) == 50
    leave(opened, opened.find_element("link text", "next"))
    assert "51–66 of 66" in body(opened)
    leave(opened, opened.find_element("link text", "first"))
    leave(opened, opened.find_element("link text", "shop"))
    assert total(opened) == 24
    submit(opened, where="score >= 0.5 and step_count = 2")
    assert 0 < total(opened) < 24
    leave(opened, opened.find_element("link text", "Clear"))

    def indexed() -> bool:
        submit(opened, q='"heather moor"')
        return total(opened) == 1 and "All 66 trajectories are in" in body(opened)

    wait(indexed)
    assert items(opened) == ["Question 7?"]
    address = opened.current_url

    # Look: step by step, everything in its place.
    leave(opened, opened.find_element("css selector", "a.item"))
    text = body(opened)
    for said in (
        "Thought: I look.",
        "Action: look[7]",
        'open({"at": 3})',
        "masked by its source",
        "rules gives the step 2.5: Looks twice.",
        "It asks first.",
        "filtered",
        "It is in no plan.",
        "This lake has no table training_lineage.",  # the fixtures' has none
        "log.jsonl, record 1",
    ):
        assert said in text, said
    roles = "return [...document.querySelectorAll('.part')].map((e) => e.className.split(' ')[1])"
    shown = opened.execute_script(roles)
    assert {"input", "thought", "action", "call", "observation"} <= set(shown)
    record = opened.find_element("css selector", ".record pre").text
    assert json.loads(record) == {"query": "Question 7?", "steps": 2}  # laid out, and the same

    # Label, then look again: it is there, and in the list.
    field = opened.find_element("id", "value")
    field.send_keys("3.5")
    assert opened.find_element("id", "labelled_by").get_attribute("value") == "reviewer"
    opened.find_element("id", "note").send_keys("Finds it,", Keys.ENTER, "and stops.")
    leave(opened, opened.find_element("css selector", "form.label button"))
    assert "and stops." in opened.find_element("css selector", "#labels table").text
    assert opened.find_element("id", "value").get_attribute("value") == "3.5"
    opened.get(address)
    assert "reviewer 3.5" in body(opened)
    opened.get(f"{server.root}/?labelled=yes")
    assert items(opened) == ["Question 7?"]

    # Compare: a preference pair, from where the two runs part.
    leave(opened, opened.find_element("link text", "Pairs"))
    leave(opened, opened.find_element("css selector", "td a, tbody th a"))
    text = body(opened)
    assert "1 step is the same in both" in text
    before, _, after = text.partition("Here they part")
    assert "search[harbour]" in before and "Finish[" not in before
    assert "Finish[Ann]" in after and "Finish[Bea]" in after

    # What the rater's calibration reads has the label.
    seeds = ("label_kinds", "label_sources", "given_labels")
    lake._dbt("build", *seeds, "human_labels", "labels", ok=True)
    [label] = lake.query("select * from labels where label = 'human'")
    assert (label["value"], label["labelled_by"]) == (3.5, "reviewer")
    assert label["note"] == "Finds it,\nand stops."
    [run] = lake.query("select content_sha256 from trajectories where user_query = 'Question 7?'")
    assert label["content_sha256"] == run["content_sha256"]


def test_the_same_address_shows_the_same(opened: Any, server: Server) -> None:
    submit(opened, where="rater_score >= 4")
    leave(opened, opened.find_element("link text", "desk"))
    opened.find_element("id", "sort").send_keys("environment")
    leave(opened, opened.find_element("css selector", "form.find button"))
    address, first = opened.current_url, items(opened)
    opened.get("about:blank")
    opened.get(address)
    assert items(opened) == first
    assert opened.find_element("id", "where").get_attribute("value") == "rater_score >= 4"
    assert opened.find_element("css selector", "aside .chosen").text.startswith("× desk")


def test_two_tabs_do_not_overwrite_each_other(opened: Any, server: Server, lake: Workspace) -> None:
    address = f"{server.root}/trajectory/{id_of(lake, 'user_query = $$Question 9?$$')}"
    opened.get(address)
    form = opened.find_element("css selector", "form.label")
    token = form.find_element("name", "form_token").get_attribute("value")
    # The other tab.
    given = f"form_token={quote(token)}&value=1&note=no&labelled_by=ben&newest="
    path = urlsplit(address).path + "/label"
    assert server.get(path, "POST", given, sec_fetch_site="same-origin")[0] == 303
    opened.find_element("id", "value").send_keys("5")
    leave(opened, form.find_element("tag name", "button"))
    text = body(opened)
    assert "Another label came since" in text and "ben" in text
    assert opened.find_element("id", "value").get_attribute("value") == "5"  # nothing is lost
    leave(opened, opened.find_element("css selector", "form.label button"))
    wanted = "select labelled_by, value from human_labels where note = 'no' or value = 5 order by 1"
    assert lake.query(wanted) == [
        {"labelled_by": "ben", "value": 1.0},
        {"labelled_by": "reviewer", "value": 5.0},
    ]


def test_what_strangers_wrote_is_read_and_does_nothing(
    opened: Any, server: Server, lake: Workspace
) -> None:
    hostile = id_of(lake, "starts_with(user_query, '</pre>')")
    pages = [
        "/",
        "/?q=%3Cscript%3E&where=%3Cscript%3E",
        "/?source=%3Cb%3Eweb%3C/b%3E",
        f"/trajectory/{hostile}",
        f"/trajectory/{hostile}/text?step=1&part=0",
        f"/trajectory/{hostile}/text?field=system_prompt",
        f"/compare?left={hostile}&right={hostile}",
        "/overview",
        "/trajectory/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
    ]
    for page in pages:
        opened.get(server.root + page)
        assert opened.execute_script("return window.taken === undefined"), page
        assert opened.title.endswith("– Trajlake") and opened.title != "taken", page
        assert opened.execute_script(
            "return document.querySelectorAll('main img, main iframe, main style, main script, "
            "main meta, [onerror], [onload], [style], a[href^=\"javascript\"]').length"
        ) == 0, page  # fmt: skip
        forms = opened.execute_script("return [...document.forms].map((f) => f.action)")
        assert all(each.startswith(server.root) for each in forms), page
    opened.get(f"{server.root}/trajectory/{hostile}")
    text = body(opened)
    assert "<script>document.title = 'taken'" in text
    assert "U+001B[31mred" in text and "U+202Egnp.exeU+202C" in text
    assert "{{ 7 * 7 }}" in text
    html = server.get(f"/trajectory/{hostile}")[2]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    # Nothing but this server has been asked for anything.
    hosts = {urlsplit(url).netloc for url in fetched(opened) if url != "about:blank"}
    assert hosts == {f"127.0.0.1:{server.port}"}
    said = [each["message"] for each in opened.get_log("browser")]
    assert not [each for each in said if "404" not in each and "400" not in each]


def test_five_megabytes_are_shown_at_both_ends_and_on_demand_as_a_whole(
    opened: Any, server: Server, lake: Workspace
) -> None:
    long = id_of(lake, "user_query = 'A long one'")
    started = time.monotonic()
    opened.get(f"{server.root}/trajectory/{long}")
    assert time.monotonic() - started < 10
    assert len(opened.page_source) < 400_000
    text = body(opened)
    assert "characters left out" in text and "the very end" in text
    leave(opened, opened.find_element("css selector", ".part.action .whole"))
    assert f"{len(LONG):,} characters" in body(opened)
    # All of it is there, and the page still answers at once.
    whole = (
        "return [...document.querySelectorAll('.whole-text pre')].map((e) => e.textContent.length)"
    )
    lengths = opened.execute_script(whole)
    assert sum(lengths) >= len(LONG)
    started = time.monotonic()
    opened.execute_script(
        "window.scrollTo(0, document.body.scrollHeight); document.body.getBoundingClientRect()"
    )
    opened.find_element("css selector", "nav a").is_displayed()
    assert time.monotonic() - started < 3
    _, headers, saved = server.get(f"/trajectory/{long}/text?step=1&part=1&as=file")
    assert saved == LONG
    assert headers["content-disposition"].startswith("attachment")


def test_a_long_run_has_pages(opened: Any, server: Server, lake: Workspace) -> None:
    opened.get(f"{server.root}/trajectory/{id_of(lake, 'user_query = $$Many steps$$')}")
    assert len(opened.find_elements("css selector", ".step")) == 100
    leave(opened, opened.find_element("css selector", "a[rel=next]"))
    assert "Steps 101–130 of 130" in body(opened)
    assert opened.find_element("id", "step-130")


def test_everything_goes_by_keyboard(opened: Any, server: Server) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(opened).send_keys(*keys).perform()

    press("j", "j", "k", "j")
    focused = opened.switch_to.active_element
    assert focused.get_attribute("href").endswith(
        opened.find_elements("css selector", "a.item")[1].get_attribute("href")
    )
    wanted = focused.text
    press(Keys.ENTER)
    wait(lambda: opened.find_elements("css selector", ".step"))
    assert opened.find_element("tag name", "h1").text == wanted
    press("j")
    assert opened.switch_to.active_element.get_attribute("id") == "step-1"
    press("l")
    assert opened.switch_to.active_element.get_attribute("id") == "value"
    press("j")  # typed into a field, it is a letter
    assert opened.switch_to.active_element.get_attribute("id") == "value"
    press(Keys.ESCAPE, "/")
    wait(lambda: opened.find_elements("id", "q"))
    press("n")
    wait(lambda: "51–66 of 66" in body(opened))
    press("p")
    wait(lambda: "1–50 of 66" in body(opened))
    press("/")
    assert opened.switch_to.active_element.get_attribute("id") == "q"


def test_pages_work_without_a_script(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        opened.find_element("link text", "desk").click()
        opened.find_element("css selector", "a.item").click()
        assert opened.find_elements("css selector", ".step")
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened: Any, server: Server, lake: Workspace, scheme: str) -> None:
    """Contrast of 4.5 or more (WCAG 2.2, success criterion 1.4.3), in light and in dark."""
    prefer(opened, scheme)
    one, other = (id_of(lake, f"user_query = '{HARBOUR}' and score = {n}") for n in (1, 0))
    pages = ("/?where=nothing", f"/trajectory/{one}", f"/compare?left={one}&right={other}",
             "/pairs", "/overview")  # fmt: skip
    for page in pages:
        opened.get(server.root + page)
        opened.execute_script(
            "document.querySelectorAll('details').forEach((d) => (d.open = true))"
        )
        assert opened.execute_script(CONTRAST) == [], page
        back = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


@pytest.mark.parametrize("width", [1280, 400])
def test_pages_are_as_wide_as_the_window(
    opened: Any, server: Server, lake: Workspace, width: int
) -> None:
    hostile = id_of(lake, "starts_with(user_query, '</pre>')")
    for page in ("/", f"/trajectory/{hostile}", "/pairs", "/overview"):
        opened.get(server.root + page)
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        wide = opened.execute_script("return document.documentElement.scrollWidth")
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert wide <= width, page


def test_a_build_that_holds_the_database_is_no_matter(server: Server, lake: Workspace) -> None:
    with duckdb.connect(lake.environment["TRAJLAKE_DB"]) as build:  # for writing
        build.execute("create or replace table written as select 1")
        for path in ("/", "/overview", "/pairs"):
            assert server.get(path)[0] == 200
        # A table that a build has just written is seen by the next request.
        run = id_of(lake, "user_query = 'Question 3?'")
        before = server.get(f"/trajectory/{run}")[2]
        assert "a newer reason" not in before
        ratings = pa.Table.from_pylist(lake.query("select * from ratings"))
        newer = pa.array(["a newer reason"] * len(ratings))
        place = ratings.schema.get_field_index("explanation")
        write_deltalake(
            lake.lake / "ratings",
            ratings.set_column(place, "explanation", newer),
            mode="overwrite",
            schema_mode="overwrite",
        )
        assert "a newer reason" in server.get(f"/trajectory/{run}")[2]


def test_a_broken_lake_is_shown_as_far_as_it_goes(lake: Workspace) -> None:
    broken = lake.folder / "broken"
    shutil.copytree(lake.lake, broken)
    for name in ("trajectory_flags", "preference_pairs", "funnel"):
        shutil.rmtree(broken / name)
    for file in (broken / "ratings").glob("*.parquet"):
        file.write_bytes(b"no Parquet")
    (broken / "sft_samples/_delta_log/00000000000000000000.json").write_text("no JSON\n")
    with serving(lake, TRAJLAKE_LAKE=str(broken)) as server:
        status, _, text = server.get("/")
        assert status == 200
        assert "This lake has no table trajectory_flags. `dbt build` makes it." in text
        assert "The table ratings cannot be read" in text
        run = id_of(lake, "user_query = 'Question 3?'")
        status, _, text = server.get(f"/trajectory/{run}")
        assert status == 200
        assert "Action: look[3]" in text and "not known: no flags in this lake" in text
        assert "The table ratings cannot be read" in text
        assert "The table sft_samples cannot be read" in text
        assert "This lake has no table preference_pairs" in server.get("/pairs")[2]
        status, _, text = server.get("/overview")
        assert status == 200 and "This lake has no table funnel" in text
        assert "rater_score by source" in text


def test_conditions_that_reach_for_more_are_refused(server: Server) -> None:
    for condition, said in (
        ("1=1; drop table rows", "a second statement is not allowed"),
        ("read_csv('/etc/passwd') is null", "`read_csv` is not allowed"),
        ("source in (select source from rows)", "a subquery is not allowed"),
    ):
        status, _, text = server.get(f"/?where={quote(condition)}")
        assert status == 400
        assert said in text
        assert "root:" not in text


def test_forms_and_names_of_strangers_are_refused(server: Server, lake: Workspace) -> None:
    path = f"/trajectory/{id_of(lake, 'user_query = $$Question 4?$$')}"
    given = "form_token=x&value=1&labelled_by=eve&newest="
    strange = {"origin": "http://evil.example", "sec_fetch_site": "cross-site"}
    assert server.get(f"{path}/label", "POST", given, **strange)[0] == 403
    assert server.get(f"{path}/label", "POST", given)[0] == 403
    # A form of this origin that no page of this process made.
    assert server.get(f"{path}/label", "POST", given, sec_fetch_site="same-origin")[0] == 403
    assert server.get(f"{path}/label")[0] == 405
    assert server.get("/", host=f"rebound.example:{server.port}")[0] == 403
    assert server.get("/nowhere")[0] == 404
    assert lake.query("select * from human_labels where labelled_by = 'eve'") == []
    _, headers, _ = server.get("/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_beyond_this_machine_a_token_is_needed(lake: Workspace, browser: Any) -> None:
    with serving(lake, "--host", "0.0.0.0") as server:
        token = server.link.partition("token=")[2]
        assert len(token) > 20
        assert server.get("/")[0] == 401
        assert server.get("/sign-in?token=wrong")[0] == 401
        browser.get(f"{server.root}/sign-in?token={token}")
        assert browser.current_url == f"{server.root}/"
        assert total(browser) == 66
        assert server.log.read_text().count(token) == 1  # where the link was printed
    with serving(lake, "--host", "0.0.0.0", TRAJLAKE_UI_TOKEN=TOKEN) as server:
        assert server.get("/", cookie=f"trajlake_ui={TOKEN}")[0] == 200
        assert TOKEN not in server.log.read_text()


def test_what_keeps_it_from_starting_is_said(lake: Workspace) -> None:
    def run(*options: str, **environment: str) -> str:
        done = subprocess.run(
            [str(TRAJLAKE), "ui", *options], cwd=lake.project, capture_output=True, text=True,
            env=lake.environment | environment, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout
        return " ".join(done.stderr.split())

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} of 127.0.0.1 is taken" in run("--port", port)
    assert "has not been built yet" in run("--port", "0", TRAJLAKE_LAKE=str(lake.folder / "none"))
    assert "Set 16 or more" in run("--port", "0", TRAJLAKE_UI_TOKEN="short")


def test_an_interrupt_ends_it_quietly(lake: Workspace) -> None:
    server = Server(lake)
    assert server.get("/")[0] == 200
    assert server.stop() in (0, 130)
    assert "Traceback" not in server.log.read_text()
    assert os.path.exists(lake.environment["TRAJLAKE_DB"])
