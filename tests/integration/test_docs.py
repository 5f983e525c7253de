"""Every command and query of the README and the docs runs, and what the README prints is true.

A block fenced as `bash`, `sh` or `sql` is executed, page by page, in a copy of the project whose
environment is the one that runs the tests; the endpoint that a page names is a judge on loopback.
Other fences (`text`, `yaml` …) only show something.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from _judge_server import JudgeServer

from orchestration.export.source import SOURCES
from orchestration.model_graph import checksum, graph_text
from orchestration.report import queries
from orchestration.ui import tables
from udfs import lake

PROJECT = Path(__file__).resolve().parents[2]
ENDPOINT = "http://localhost:8000/v1"
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The project as a clone has it, set up with the environment at hand, and built once; and what
    that printed."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):  # all that makes its `python` the one at hand
        if (part := Path(sys.executable).parents[1] / name).exists():
            (environment / name).symlink_to(part)
    for stamp in ("build", "test"):
        (environment / stamp).touch()
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (folder / "my_logs.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    return folder, execute(folder, "make build")


@pytest.fixture(scope="module")
def copy(built: tuple[Path, str]) -> Path:
    return built[0]


def execute(folder: Path, script: str) -> str:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("TRAJLAKE_", "DBT_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        text=True,
        capture_output=True,
        env=variables | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "COLUMNS": "100"},
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", pages_with("(?:bash|sh)"), ids=lambda page: page.name)
def test_every_command_on_the_page_runs(copy: Path, page: Path) -> None:
    script = "\n".join(blocks(page, "(?:bash|sh)"))
    with closing(JudgeServer()) as judge:
        execute(copy, script.replace(ENDPOINT, judge.base_url))


@pytest.mark.parametrize("page", pages_with("sql"), ids=lambda page: page.name)
def test_every_query_on_the_page_runs(copy: Path, page: Path) -> None:
    with duckdb.connect(str(copy / "trajlake.duckdb"), read_only=True) as connection:
        lake.load_delta_extension(connection)
        for query in blocks(page, "sql"):
            assert connection.execute(query).fetchall(), f"no rows:\n{query}"


@pytest.fixture(scope="module")
def manifest(copy: Path) -> dict[str, Any]:
    """What `make docs` says of the project."""
    printed = execute(copy, "make docs")
    assert "[WARNING]" not in printed, printed
    found: dict[str, Any] = json.loads((copy / "target" / "manifest.json").read_text("utf-8"))
    return found


def test_dbt_documents_every_model_and_each_of_its_columns(
    copy: Path, manifest: dict[str, Any]
) -> None:
    catalog = json.loads((copy / "target" / "catalog.json").read_text("utf-8"))
    assert not catalog["errors"]
    for key, node in manifest["nodes"].items():
        if node["resource_type"] in ("model", "seed"):
            assert node["description"], node["name"]
            assert node["columns"].keys() == catalog["nodes"][key]["columns"].keys(), node["name"]
            silent = [each["name"] for each in node["columns"].values() if not each["description"]]
            assert not silent, node["name"]


def test_the_picture_of_the_models_is_not_stale(manifest: dict[str, Any]) -> None:
    picture = (PROJECT / "docs" / "lineage.svg").read_text("utf-8")
    assert checksum(graph_text(manifest)) in picture, "run `make picture`"


def test_exposures_name_what_is_read(manifest: dict[str, Any]) -> None:
    said = {
        node["name"]: {parent.rpartition(".")[2] for parent in node["depends_on"]["nodes"]}
        for node in manifest["exposures"].values()
    }
    assert said["export"] == {name for source in SOURCES.values() for name in source.reads}
    assert said["report"] == set(queries.TABLES)
    assert said["browser"] == set(tables.TABLES)
    assert said["training"] == {source.root for source in SOURCES.values()}


def test_the_notebook_answers_ten_questions(copy: Path) -> None:
    notebook = "docs/notebooks/ten_questions.py"
    execute(copy, f"marimo export html {notebook} --output answers.html --no-include-code")
    assert (copy / "answers.html").read_text("utf-8").count("vegalite") == 10


def test_what_the_readme_prints_is_what_is_printed(built: tuple[Path, str]) -> None:
    readme = (PROJECT / "README.md").read_text("utf-8")
    shown = re.search(r"<!-- summary:.*?-->\n```text\n(.*?)^```$", readme, re.M | re.S)
    assert shown
    assert shown.group(1) in "\n".join(line.rstrip() for line in built[1].splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
