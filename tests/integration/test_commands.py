"""The command line over a small lake, as people and scripts use it.

One build serves all tests: two sources of the samples, and one that nobody has declared.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import pytest
from _judge_server import JudgeServer
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt_common.exceptions import DbtDatabaseError

from orchestration.cli import COMMANDS, main
from udfs import lake
from udfs.dbt_plugin import Plugin
from udfs.locks import lock_holder

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PAGE = (PROJECT / "docs" / "commands.md").read_text("utf-8")
KEY = "a-key-that-nobody-may-see"

Done = subprocess.CompletedProcess[str]


class Place:
    """A raw folder, a lake and what belongs to it, and commands upon them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TRAJLAKE_", "DBT_", "OPENAI_"))
        } | {
            "TRAJLAKE_RAW": str(folder / "raw"),
            "TRAJLAKE_LAKE": str(folder / "lake"),
            "TRAJLAKE_EXPORTS": str(folder / "exports"),
            "TRAJLAKE_DB": str(folder / "trajlake.duckdb"),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
            "COLUMNS": "160",
        }
        self.database = folder / "trajlake.duckdb"

    def trajlake(self, *arguments: str, code: int = 0, **environment: str) -> Done:
        """Run a command of ours in this process, to spare its start; check its exit code."""
        out, err, got = io.StringIO(), io.StringIO(), 0
        with (
            patch.dict(os.environ, self.environment | environment, clear=True),
            patch.object(sys, "argv", ["trajlake", *arguments]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                got = int(end.code or 0)
        assert got == code, f"{arguments}\n{out.getvalue()}{err.getvalue()}"
        return Done(arguments, got, out.getvalue(), err.getvalue())

    def run(self, *command: str, code: int = 0, stdin: str = "", **environment: str) -> Done:
        """Run a command in a process of its own and check its exit code."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=PROJECT,
            env=self.environment | environment,
            input=stdin,
            text=True,
            capture_output=True,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *command: str, **environment: str) -> Any:
        """What `trajlake … --json` prints, which has to be JSON alone."""
        return json.loads(self.trajlake(*command, "--json", **environment).stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("commands"))
    raw = place.folder / "raw"
    for source in ("hotpot_react", "support_chat"):
        shutil.copytree(PROJECT / "raw" / source, raw / source)
    (raw / "diary").mkdir()
    turns = [
        {"role": "user", "content": "task 4: say [bold]hello[/]"},
        {"role": "assistant", "content": "hello \x1b[2J"},
    ]
    (raw / "diary" / "days.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    place.run("dbt", "build")
    return place


@pytest.fixture
def in_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same, with the settings of this process pointing there."""
    for name, value in place.environment.items():
        if name.startswith("TRAJLAKE_"):
            monkeypatch.setenv(name, value)
    return place


def versions() -> dict[str, int]:
    return {name: lake.DeltaTable(lake.table_path(name)).version() for name in lake.table_names()}


# Where a command is run, and before or in the middle of a first build.


def test_another_folder_is_refused_unless_a_lake_is_named(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place.trajlake("summary")  # with TRAJLAKE_LAKE
    refused = place.trajlake("summary", code=1, TRAJLAKE_LAKE="").stderr
    assert f"{tmp_path} is not Trajlake's folder. Run `cd {PROJECT}`" in " ".join(refused.split())
    found = json.loads(place.trajlake("doctor", "--json", code=1, TRAJLAKE_LAKE="").stdout)
    assert str(tmp_path) in findings(found, "problem")["folder"]
    assert not list(tmp_path.iterdir())


def test_a_build_that_did_not_come_to_its_end_is_told_from_none(
    place: Place, tmp_path: Path
) -> None:
    funnel = place.folder / "lake" / "funnel"
    funnel.rename(tmp_path / "funnel")
    try:
        said = place.trajlake("summary", code=1).stderr
        found = json.loads(place.trajlake("doctor", "--json", code=1).stdout)
    finally:
        (tmp_path / "funnel").rename(funnel)
    assert "has not been built to its end" in said
    assert findings(found, "problem")["database"].endswith("not in the lake: funnel")


# The list of commands.


def test_help_lists_every_command_quickly(place: Place) -> None:
    code = (
        "import sys\nfrom orchestration.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('pyarrow' in sys.modules or 'duckdb' in sys.modules)"
    )
    printed = place.run("python", "-c", code).stdout
    assert all(re.search(rf"│ {name} ", printed) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_used(place: Place, name: str) -> None:
    assert f"Usage: trajlake {name}" in place.trajlake(name, "--help").stdout


def test_a_misspelt_command_gets_a_hint(place: Place) -> None:
    assert "Did you mean 'sources'?" in place.trajlake("source", code=2).stderr


# What the page says.


def test_the_page_has_every_command_and_no_other() -> None:
    assert set(re.findall(r"^## (\w+)$", PAGE, re.M)) == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "shown"),
    re.findall(r"^trajlake ([^\n]+) --json\n```\n\n```json\n(.*?)^```$", PAGE, re.M | re.S),
)
def test_json_has_the_shape_that_the_page_shows(place: Place, command: str, shown: str) -> None:
    done = place.trajlake(*command.split(), "--json")
    assert shape(json.loads(done.stdout)) == shape(json.loads(shown))


def shape(value: Any) -> Any:
    """The keys of objects, and in a list those of its first item that has any."""
    if isinstance(value, Mapping):
        is_counts = bool(value) and all(re.fullmatch("ok|failed", key) for key in value)
        return "counts" if is_counts else {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], Mapping) else "list"
    return "value"


# trajlake sql.


def test_a_query_gives_a_table_json_and_csv(place: Place) -> None:
    query = (
        "select source, count(*) as n, list(format) as f from trajectories group by all order by 1"
    )
    table = place.trajlake("sql", query).stdout
    assert re.search(r"diary +│ 1 ", table)
    rows = place.json("sql", query)
    assert [(row["source"], row["n"]) for row in rows] == [
        ("diary", 1),
        ("hotpot_react", 9),
        ("support_chat", 9),
    ]
    printed = list(csv.DictReader(io.StringIO(place.trajlake("sql", query, "--csv").stdout)))
    assert [row["n"] for row in printed] == ["1", "9", "9"]
    assert json.loads(printed[1]["f"]) == ["react_text"] * 9


def test_rows_are_left_out_by_a_word_in_a_table_and_not_at_all_in_json(place: Place) -> None:
    query = "select i from range(50) as numbers(i)"
    assert "more rows are there; this shows 40" in place.trajlake("sql", query).stdout
    assert len(place.json("sql", query)) == 50
    assert len(place.json("sql", query, "--rows", "3")) == 3


def test_a_query_comes_from_standard_input(place: Place) -> None:
    printed = place.run("trajlake", "sql", "-", "--json", stdin="select 1 as one -- \n").stdout
    assert json.loads(printed) == [{"one": 1}]


def test_text_of_trajectories_does_nothing_to_a_terminal(place: Place) -> None:
    query = "select user_query, steps[1].output from trajectories where source = 'diary'"
    printed = place.trajlake("sql", query).stdout
    assert "[bold]hello[/]" in printed and r"hello \x1b[2J" in printed and "\x1b" not in printed


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("select * from trajectorie", 'Did you mean "trajectories"'),
        ("select sourc from trajectories", 'Candidate bindings: "source"'),
        ("select 1; select 2", "one query at a time"),
        ("  -- nothing", "There is no query"),
        ("select 1 as a, 2 as a", "Two columns are called a"),
    ],
)
def test_a_query_that_cannot_run_gets_a_hint(place: Place, query: str, hint: str) -> None:
    done = place.trajlake("sql", query, "--json", code=1)
    assert hint in done.stderr and done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "query",
    [
        "create or replace view steps as select 1",
        "insert into recipes select * from recipes",
        "drop view steps",
        "copy (select 1) to '{folder}/stolen.csv'",
        "explain analyze copy (select 1) to '{folder}/stolen.csv'",
        "/* explain */ explain analyze copy (select 1) to '{folder}/stolen.csv'",
        "attach '{folder}/stolen.csv'",
        "export database '{folder}/stolen.csv'",
        "set memory_limit = '1GB'",
        "install httpfs",
    ],
)
def test_a_query_that_writes_is_refused(in_place: Place, query: str) -> None:
    before = versions()
    refused = in_place.trajlake("sql", query.format(folder=in_place.folder), code=1)
    assert "`trajlake sql` only reads" in refused.stderr
    assert versions() == before and not (in_place.folder / "stolen.csv").exists()


@pytest.mark.parametrize(
    "query",
    [
        "with a as (select 1) from a",
        "from funnel",
        "describe steps",
        "show tables",
        "summarize funnel",
        "explain select 1",
        "explain analyze select 1",
        "pivot (select source, format from trajectories) on format using count(*)",
    ],
)
def test_a_query_that_reads_runs(place: Place, query: str) -> None:
    assert place.json("sql", query)


# While a build runs.


def test_queries_are_answered_while_a_build_runs_and_do_not_disturb_it(in_place: Place) -> None:
    answered = 0
    with subprocess.Popen(
        [str(BIN / "dbt"), "build", "--exclude-resource-type", "test", "unit_test"],
        cwd=PROJECT,
        env=in_place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        while build.poll() is None:
            holder = lock_holder(in_place.database)
            query = "select count(*) as n from steps, recipes"
            done = in_place.run("trajlake", "sql", query, "--json")
            assert json.loads(done.stdout)[0]["n"] > 0
            still = lock_holder(in_place.database)
            answered += holder is not None and holder == still
        assert build.stdout
        printed = build.stdout.read()
    assert build.returncode == 0, printed
    assert answered  # from its beginning to its end, the build held the database


def test_a_build_runs_while_a_reader_has_the_lake_open(in_place: Place) -> None:
    reader = (
        "import sys\nfrom udfs.views import open_lake\n"
        "with open_lake() as connection:\n"
        "    print('open', flush=True)\n    sys.stdin.read()\n"
        "    print(connection.sql('select count(*) from steps').fetchone()[0])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reader],
        cwd=PROJECT,
        env=in_place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline()
        in_place.run("dbt", "build", "--select", "recipes", "funnel")
        process.stdin.close()
        assert int(process.stdout.readline()) > 0


def test_a_build_makes_the_folder_of_its_database_and_says_who_keeps_it_from_that(
    place: Place, tmp_path: Path
) -> None:
    database = tmp_path / "a" / "b" / "views.duckdb"
    place.run("dbt", "build", "--select", "recipes", TRAJLAKE_DB=str(database))
    with duckdb.connect(str(database), read_only=True):
        command = ("dbt", "build", "--select", "recipes")
        done = place.run(*command, code=2, TRAJLAKE_DB=str(database))
    assert f"process {os.getpid()}" in done.stdout and "Traceback" not in done.stdout


def test_a_database_that_cannot_be_opened_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plugin = Plugin("delta", {})
    for path in (tmp_path, tmp_path / "file" / "views.duckdb"):
        with pytest.raises(
            DbtDatabaseError, match=f"TRAJLAKE_DB is {path}, which cannot be opened"
        ):
            plugin.update_connection_config(DuckDBCredentials(path=str(path)), {})


def test_without_views_the_tables_answer_and_a_note_says_why(place: Place, tmp_path: Path) -> None:
    query = ("sql", "select count(*) as n from trajectories", "--json")
    done = place.trajlake(*query, TRAJLAKE_DB=str(tmp_path / "none.duckdb"))
    assert json.loads(done.stdout) == [{"n": 19}]
    assert "note: there is no" in done.stderr and "`dbt build`" in done.stderr


@pytest.mark.parametrize(
    "command", [("sql", "select 1"), ("summary",), ("rate", "status"), ("rate", "estimate")]
)
def test_a_lake_that_is_not_built_says_so(
    place: Place, tmp_path: Path, command: tuple[str, ...]
) -> None:
    nothing = {"TRAJLAKE_DB": str(tmp_path / "db"), "TRAJLAKE_LAKE": str(tmp_path / "lake")}
    done = place.trajlake(*command, code=1, **nothing)
    assert "has not been built yet" in done.stderr and "`dbt build`" in done.stderr


# trajlake sources.


@pytest.fixture
def new_files(place: Place) -> Iterator[None]:
    """A folder that no build has landed, and a file that has grown since."""
    raw = place.folder / "raw"
    days = raw / "diary" / "days.jsonl"
    before = days.read_text()
    (raw / "unseen").mkdir()
    (raw / "unseen" / "runs.jsonl").write_text("{}\n")
    days.write_text(before * 2)
    yield
    days.write_text(before)
    shutil.rmtree(raw / "unseen")


def test_sources_are_counted_and_what_is_not_landed_is_said(place: Place, new_files: None) -> None:
    found = {each["source"]: each for each in place.json("sources")}
    assert list(found) == ["diary", "hotpot_react", "support_chat", "unseen"]
    hotpot, diary, unseen = (found[name] for name in ("hotpot_react", "diary", "unseen"))
    assert (hotpot["files"], hotpot["records"], hotpot["trajectories"]) == (1, 11, 9)
    assert (hotpot["quarantined"], hotpot["main_reason"]) == (2, "duplicate_record")
    assert hotpot["licenses"] == ["Apache-2.0"] and hotpot["is_declared"]
    assert hotpot["bytes"] and hotpot["files_not_landed"] == 0
    assert found["support_chat"]["formats"][0]["format"] == "chat"
    assert 0 < found["support_chat"]["formats"][0]["confidence"] <= 1
    assert not diary["is_declared"] and diary["licenses"] == [] and diary["is_synthetic"] is None
    assert (diary["files"], diary["files_not_landed"]) == (1, 1)
    assert (unseen["files"], unseen["files_not_landed"], unseen["bytes_not_landed"]) == (0, 1, 3)
    printed = place.trajlake("sources").stdout
    assert "not landed: 1 files" in printed and "react_text 1.00" in printed


def test_one_source_is_looked_at_more_closely(place: Place) -> None:
    found = place.json("sources", "hotpot_react")
    reasons = {row["reason"]: row for row in found["quarantine"]}
    assert reasons["invalid_json"]["first_file"] == "hotpot_react/runs.jsonl"
    assert reasons["invalid_json"]["first_position"] and reasons["invalid_json"]["first_detail"]
    assert [file["name"] for file in found["landed_files"]] == ["hotpot_react/runs.jsonl"]
    paths = {field["path"]: field for field in found["fields"]}
    assert paths["question"]["types"] == ["text"]
    assert paths["question"]["records"] == found["sampled_records"]
    assert found["declared"]["environment"] == "wiki_search"
    assert "question" in place.trajlake("sources", "hotpot_react").stdout


def test_a_source_that_is_not_there_gets_a_hint(place: Place) -> None:
    done = place.trajlake("sources", "hotpot", code=1)
    assert "Did you mean 'hotpot_react'?" in done.stderr


def test_sources_of_a_lake_that_is_not_built_are_the_raw_files(
    place: Place, tmp_path: Path
) -> None:
    nothing = {"TRAJLAKE_DB": str(tmp_path / "db"), "TRAJLAKE_LAKE": str(tmp_path / "lake")}
    found = place.json("sources", **nothing)
    assert [each["files_not_landed"] for each in found] == [1, 1, 1]


# trajlake summary, export.


def test_summary_and_export_for_a_script(place: Place) -> None:
    written = place.json("export", "default")
    assert written["is_new"] and Path(written["folder"], "manifest.json").exists()
    assert not place.json("export", "default")["is_new"]
    found = place.json("summary")
    rows = {row["source"]: row for row in found["sources"]}
    assert rows["hotpot_react"]["quarantined"] == 2
    positions = sum(count["positions"] for count in written["manifest"]["counts"].values())
    assert sum(row["exported_rows"] for row in rows.values()) == positions
    assert {row["reason"] for row in found["quarantine"]} >= {"invalid_json", "duplicate_record"}


# trajlake doctor.


def findings(found: list[dict[str, Any]], status: str) -> dict[str, str]:
    return {f["check"]: f["found"] for f in found if f["status"] == status}


def test_a_sound_place_has_no_problem(place: Place) -> None:
    found = place.json("doctor")
    assert not findings(found, "problem")
    assert {"python", "delta extension", "lake", "database", "recipes"} <= findings(
        found, "ok"
    ).keys()
    assert "Nothing is wrong." in place.trajlake("doctor").stdout


def test_problems_are_found_and_say_what_to_do(place: Place, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(PROJECT / "raw" / "hotpot_react", raw / "hotpot_reakt")
    (raw / "hotpot_reakt" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    broken = tmp_path / "broken.duckdb"
    broken.write_bytes(b"no database")
    wrong = {
        "TRAJLAKE_RAW": str(raw),
        "TRAJLAKE_DB": str(broken),
        "TRAJLAKE_LAKE": str(broken / "lake"),
        "TRAJLAKE_WORKERS": "many",
        "OPENAI_BASE_URL": "my-endpoint:8000",
    }
    done = place.trajlake("doctor", "--json", code=1, **wrong)
    problems = findings(json.loads(done.stdout), "problem")
    assert "hotpot_reakt" in problems["sources.yml"]
    assert "gone.jsonl" in problems["raw files"]
    assert str(broken) in problems["database"]
    assert "TRAJLAKE_WORKERS" in problems["settings"]
    assert "OPENAI_BASE_URL" in problems["endpoint"] and "my-endpoint" not in done.stdout
    assert problems["lake"] == f"{broken} is no folder"
    printed = place.trajlake("doctor", code=1, **wrong).stdout
    assert f"{len(problems)} problems." in printed and "→ " in printed


def test_a_reader_that_keeps_builds_out_is_a_problem(in_place: Place) -> None:
    with duckdb.connect(str(in_place.database), read_only=True):
        done = in_place.run("trajlake", "doctor", "--json", code=1)
    assert f"process {os.getpid()}" in findings(json.loads(done.stdout), "problem")["database"]


def test_what_killed_runs_left_is_noted(place: Place) -> None:
    partial = place.folder / "exports" / ".versions" / "unfinished" / "partial"
    partial.mkdir(parents=True)
    journal = place.folder / "lake" / "_journal" / "ratings.jsonl"
    journal.write_text('{"rating_id": "x"}\n')
    try:
        left = [f["found"] for f in place.json("doctor") if f["check"] == "leftovers"]
    finally:
        journal.write_text("")
        shutil.rmtree(partial.parent)
    assert any(str(partial) in each for each in left)
    assert any(str(journal) in each for each in left)


@pytest.mark.parametrize(
    ("key", "status", "said"),
    [(KEY, "ok", "has 1 models"), ("refused", "problem", "refuses the key")],
)
def test_the_endpoint_is_asked_only_when_told_and_nothing_of_it_is_shown(
    place: Place, key: str, status: str, said: str
) -> None:
    with closing(JudgeServer()) as judge:
        settings = {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": judge.base_url}
        silent = place.trajlake("doctor", "--json", **settings)
        code = 1 if status == "problem" else 0
        done = place.trajlake("doctor", "--online", "--json", code=code, **settings)
        assert said in findings(json.loads(done.stdout), status)["endpoint online"]
    assert "endpoint online" not in silent.stdout
    for printed in (silent.stdout, done.stdout):
        assert f'"{key}"' not in printed and KEY not in printed and judge.base_url not in printed
    gone = place.trajlake("doctor", "--online", "--json", code=1, **settings)
    assert "cannot be reached" in findings(json.loads(gone.stdout), "problem")["endpoint online"]


# trajlake rate; at the end, because it adds ratings.


def test_an_estimate_sends_nothing_and_is_what_a_run_announces(place: Place) -> None:
    with closing(JudgeServer()) as judge:
        settings = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": judge.base_url}
        options = ("--rater", "openai", "--model", "gpt-4o-mini", "--max-trajectories", "4")
        estimate = place.json("rate", "estimate", *options)  # without a key
        assert not judge.bodies
        (rater,) = estimate["raters"]
        assert (rater["unrated"], rater["taken_up"], rater["questions"]) == (19, 4, 4)
        assert 0 < estimate["least_usd"] < estimate["most_usd"]

        done = place.run("trajlake", "rate", "run", *options, **settings)
        printed = done.stdout + done.stderr
        assert f"Estimate: {rater['prompt_tokens']:,} prompt tokens" in printed
        assert f"${estimate['most_usd']:,.4f} with the longest" in printed
        assert "Completed successfully" in done.stdout and KEY not in printed
        assert len(judge.bodies) >= 4

    rows = place.json(
        "sql", "select rating_status from rated_trajectories where rater_id is not null"
    )
    assert len(rows) == 4  # what reads ratings sees this rater now
    status = place.json("rate", "status")
    by_model = {each["rate_model"]: each for each in status["raters"]}
    assert by_model["gpt-4o-mini"]["ratings"] == 4 and by_model["gpt-4o-mini"]["cost_usd"] > 0
    assert by_model["rules"]["is_configured"] and not by_model["gpt-4o-mini"]["is_configured"]
    assert [each["rate_model"] for each in status["pending"]] == ["rules"]
    assert "gpt-4o-mini" in place.trajlake("rate", "status").stdout
    (left,) = place.json("rate", "estimate", *options[:4])["raters"]
    assert left["unrated"] == 15


def test_an_estimate_of_a_committee_counts_every_member(place: Place) -> None:
    committee = (
        "{rater_committee: [{model: gpt-4o-mini}, {model: unheard-of}, {rater: rules}], "
        "rater_tie_breaker: {model: gpt-4.1, when_spread_over: 2.0}}"
    )
    found = place.json("rate", "estimate", "--vars", committee, "--max-trajectories", "5")
    names = [each["judge"] for each in found["raters"]]
    assert names == ["gpt-4o-mini", "unheard-of", "rules", "gpt-4.1"]
    assert [each["is_tie_breaker"] for each in found["raters"]] == [False, False, False, True]
    assert found["raters"][1]["least_usd"] is None and found["least_usd"] is None
    printed = place.trajlake("rate", "estimate", "--vars", committee).stdout
    assert "rater_prices does not have unheard-of" in printed


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--rater", "oracle"), "'oracle' is not known"),
        (("--rater", "openai"), "model to ask is not named"),
        (("--vars", "{rater_modl: x}"), "no setting modl"),
    ],
)
@pytest.mark.parametrize("what", ["estimate", "run"])
def test_settings_that_cannot_be_used_are_said_before_anything_starts(
    place: Place, what: str, options: tuple[str, ...], hint: str
) -> None:
    started = time.monotonic()
    done = place.trajlake("rate", what, *options, code=1)
    assert hint in done.stderr and "dbt" not in done.stdout
    assert time.monotonic() - started < 10


def test_ratings_in_the_journal_are_not_counted_as_pending(place: Place) -> None:
    (pending,) = place.json("rate", "estimate", "--vars", "{rater_skip_refuted: true}")["raters"]
    rater_id = pending["rater_id"]
    options = ("--rater", "openai", "--model", "judge-9")
    (before,) = place.json("rate", "estimate", *options)["raters"]
    assert rater_id != before["rater_id"]
    (content,) = place.json("sql", "select min(content_sha256) as c from trajectories")
    row = {
        "rating_id": "x",
        "content_sha256": content["c"],
        "rater_id": before["rater_id"],
        "status": "ok",
        "attempt": 1,
        "rated_at": "2026-01-01T00:00:00+00:00",
    }
    journal = place.folder / "lake" / "_journal" / "ratings.jsonl"
    journal.write_text(json.dumps(row) + '\n{"rating_id": "torn')
    try:
        (after,) = place.json("rate", "estimate", *options)["raters"]
    finally:
        journal.write_text("")
    assert after["unrated"] == before["unrated"] - 1


def test_the_settings_of_the_command_are_those_of_the_model() -> None:
    import yaml

    from orchestration.rate import rater_settings

    models = yaml.safe_load((PROJECT / "models/rating/_rating.yml").read_text("utf-8"))["models"]
    (config,) = (model["config"]["settings"] for model in models if model["name"] == "ratings")
    expected: Callable[[str], str] = lambda name: (  # noqa: E731
        "{{ var('rater') }}" if name == "rater" else f"{{{{ var('rater_{name}') }}}}"
    )
    assert config == {name: expected(name) for name in rater_settings({})}
