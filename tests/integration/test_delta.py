"""The `delta` materialization, in a small dbt project of its own that uses our macros."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from udfs import lake
from udfs.dbt_plugin import store_python_model
from udfs.errors import EndpointError, LakeError

PROJECT = Path(__file__).resolve().parents[2]


class Project:
    """A dbt project in a temporary folder; `build` runs dbt in it as a person would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(
            "dbt_project.yml",
            f"""
            name: small
            profile: small
            macro-paths: ["{PROJECT / "dbt_project" / "macros"}"]
            test-paths: [tests]
            """,
        )
        self.write(
            "profiles.yml",
            f"""
            small:
                target: local
                outputs:
                    local:
                        type: duckdb
                        path: small.duckdb
                        module_paths: ["{PROJECT}"]
                        plugins: [{{module: udfs.dbt_plugin, alias: delta}}]
                        config_options: {{preserve_insertion_order: false}}
                        settings: {{threads: 2}}
            """,
        )

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")

    def model(self, name: str, sql: str, **config: object) -> None:
        options = ", ".join(f"{key}={value!r}" for key, value in config.items())
        self.write(
            f"models/{name}.sql", f"{{{{ config(materialized='delta', {options}) }}}}\n{sql}"
        )

    def build(self, *arguments: str, ok: bool = True) -> str:
        return self.dbt("build", *arguments, ok=ok)

    def dbt(self, *arguments: str, ok: bool = True) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("dbt")), *arguments],
            cwd=self.folder,
            text=True,
            capture_output=True,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def project(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("DBT_TARGET_PATH")
    monkeypatch.delenv("DBT_LOG_PATH")
    folder = workplace / "project"
    folder.mkdir()
    return Project(folder)


@pytest.fixture
def rows(project: Project) -> Callable[[str], list[tuple[object, ...]]]:
    """A table's rows, read through its view by a DuckDB that knows nothing of us."""

    def read(model: str) -> list[tuple[object, ...]]:
        with duckdb.connect(str(project.folder / "small.duckdb"), read_only=True) as connection:
            return connection.execute(f"select * from {model} order by all").fetchall()

    return read


def version(table: str) -> int:
    found = lake.open_table(table)
    assert found is not None
    return int(found.version())


def files(table: str) -> int:
    found = lake.open_table(table)
    assert found is not None
    return len(found.file_uris())


def test_an_overwritten_table_gets_a_version_only_when_something_changed(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    project.model("first", "select 1 as a", strategy="overwrite")
    project.model("second", "select a + 1 as b from {{ ref('first') }}")
    project.build()
    project.build()
    assert (version("first"), version("second")) == (0, 0)
    project.model("first", "select 5 as a", strategy="overwrite")
    project.build()
    assert rows("second") == [(6,)]  # its own SQL is the same, its input is not
    assert (version("first"), version("second")) == (1, 1)


def test_a_view_between_tables_carries_the_change(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    project.model("first", "select 1 as a")
    project.write("models/between.sql", "select a from {{ ref('first') }}")
    project.model("second", "select a from {{ ref('between') }}")
    project.build()
    project.model("first", "select 2 as a")
    project.build()
    assert rows("second") == [(2,)]
    project.write("models/between.sql", "select a * 10 as a from {{ ref('first') }}")
    project.build()
    assert rows("second") == [(20,)]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("overwrite", [(2, "new"), (3, "new")]),
        ("append", [(1, "old"), (2, "new"), (2, "old"), (3, "new")]),
        ("insert", [(1, "old"), (2, "old"), (3, "new")]),
        ("upsert", [(1, "old"), (2, "new"), (3, "new")]),
    ],
)
def test_strategies(
    project: Project,
    rows: Callable[[str], list[tuple[object, ...]]],
    strategy: str,
    expected: list[tuple[object, ...]],
) -> None:
    config = {"unique_key": "id"} if strategy in ("insert", "upsert") else {}
    select = "select id, {!r} as text from (values {}) as ids (id)"
    project.model("t", select.format("old", "(1), (2)"), strategy=strategy, **config)
    project.build()
    project.model("t", select.format("new", "(2), (3)"), strategy=strategy, **config)
    project.build()
    assert rows("t") == expected


def test_an_upsert_replaces_deletes_and_adds(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    config = {"strategy": "upsert", "unique_key": ["a", "b"], "delete_when_null": "text"}
    select = "select a, b, text from (values {}) as given (a, b, text)"
    first = "('x', 1, 'old'), ('x', 2, 'old'), ('y', 1, 'old'), ('z', 1, null), (null, 1, 'old')"
    project.model("t", select.format(first), **config)
    project.build()
    assert len(rows("t")) == 4  # a row that only deletes is none of the first
    second = "('x', 1, 'new'), ('y', 1, null), ('y', 2, 'new'), ('w', 1, null), (null, 1, 'new')"
    project.model("t", select.format(second), **config)
    project.build()
    assert rows("t") == [
        ("x", 1, "new"),
        ("x", 2, "old"),
        ("y", 2, "new"),
        (None, 1, "new"),
        (None, 1, "old"),
    ]
    assert version("t") == 2  # what replaces first, then what is new
    project.build()
    assert version("t") == 2
    project.model("t", select.format("('x', 2, null::text)"), **config)
    project.build()
    assert len(rows("t")) == 4


def test_an_incremental_model_adds_and_a_changed_rebuild_key_builds_anew(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    def model(key: str, count: int) -> None:
        project.model(
            "t",
            f"{{{{ rebuild_on('{key}') }}}} select range as i, '{key}' as made_with "
            f"from range({count}) {{% if is_delta_incremental('{key}') %}}"
            " where range not in (select i from {{ this }}) {% endif %}",
            strategy="append",
        )

    model("k1", 2)
    project.build()
    model("k1", 3)
    project.build()
    assert rows("t") == [(0, "k1"), (1, "k1"), (2, "k1")]
    model("k2", 2)
    project.build()
    assert rows("t") == [(0, "k2"), (1, "k2")]


def test_partitions_and_table_properties(project: Project) -> None:
    project.model(
        "t",
        "select 'x' as source, 1 as a",
        partition_by="source",
        table_properties={"delta.appendOnly": "false"},
    )
    project.build()
    table = lake.open_table("t")
    assert table is not None
    assert table.metadata().partition_columns == ["source"]
    assert table.metadata().configuration == {
        "delta.appendOnly": "false",
        "delta.enableExpiredLogCleanup": "false",  # every table's: versions stay
    }


def test_other_columns_are_an_explicit_choice(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    project.model("t", "select 1 as a", strategy="append")
    project.build()
    project.model("t", "select 2 as a, 'x' as b", strategy="append")
    output = project.build(ok=False)
    assert "new: b" in output and "--full-refresh" in output
    project.model(
        "t", "select 2 as a, 'x' as b", strategy="append", on_schema_change="append_new_columns"
    )
    project.build()
    assert rows("t") == [(1, None), (2, "x")]
    # Also where no row brings it.
    none = "select 2 as a, 'x' as b, 1.5 as c where false"
    project.model("t", none, strategy="append", on_schema_change="append_new_columns")
    project.build()
    assert rows("t") == [(1, None, None), (2, "x", None)]
    project.model("t", "select 3 as c", strategy="append")
    project.build("--full-refresh")
    assert rows("t") == [(3,)]


def test_a_python_model_streams_and_can_commit_every_batch(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    project.write(
        "models/p.py",
        """
        def model(dbt, session):
            import pyarrow as pa

            schema = pa.schema([("i", pa.int64())])
            batches = (pa.RecordBatch.from_pylist([{"i": n}], schema) for n in range(3))
            return pa.RecordBatchReader.from_batches(schema, batches)
        """,
    )
    properties = """
        models:
            - name: p
              config: {{ materialized: delta, strategy: append, commit: batch }}
              columns: [{{ name: i, data_type: {} }}]
        """
    project.write("models/p.yml", properties.format("bigint"))
    project.build()
    project.build()
    assert rows("p") == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert version("p") == 6  # a commit that made the table, and one for each batch
    project.write("models/p.yml", properties.format("varchar"))
    assert "i: declared VARCHAR, returned BIGINT" in project.build(ok=False)


def test_small_files_are_put_together_and_nothing_is_built_again(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    model = """
        def model(dbt, session):
            import pyarrow as pa

            schema = pa.schema([("i", pa.int64())])
            batches = (pa.RecordBatch.from_pylist([{{"i": n}}], schema) for n in range({}))
            return pa.RecordBatchReader.from_batches(schema, batches)
        """
    project.write("models/p.py", model.format(31))
    project.write(
        "models/p.yml",
        """
        models:
            - name: p
              config: { materialized: delta, strategy: append, commit: batch }
              columns: [{ name: i, data_type: bigint }]
        """,
    )
    project.model("counted", "select count(*) as n from {{ ref('p') }}")
    project.build()
    assert files("p") == 31

    project.write("models/p.py", model.format(2))
    project.build()
    assert files("p") == 1 and version("p") == 31 + 2 + 1
    assert rows("counted") == [(33,)]

    built = version("counted")
    project.write("models/p.py", model.format(0))
    project.build()
    assert version("counted") == built

    # Downstream of an older version, the tidying up alone is no reason to build anew.
    project.write("models/p.py", model.format(1))
    project.build()
    assert rows("counted") == [(34,)]
    built = version("counted")
    lake.open_table("p").optimize.compact()  # type: ignore[union-attr]
    project.write("models/p.py", model.format(0))
    project.build()
    assert files("p") == 1 and version("counted") == built


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "merge"}, "not one of overwrite, append, insert, upsert"),
        ({"strategy": "insert"}, "Set 'unique_key'"),
        ({"strategy": "append", "unique_key": "a"}, "does not support 'unique_key'"),
        ({"strategy": "append", "on_schema_change": "replace"}, "strategy='overwrite'"),
    ],
)
def test_options_that_mean_nothing_say_so(
    project: Project, config: dict[str, object], message: str
) -> None:
    project.model("t", "select 1 as a", **config)
    assert message in project.build(ok=False)


def test_a_failing_query_leaves_the_version_before_it(
    project: Project, rows: Callable[[str], list[tuple[object, ...]]]
) -> None:
    project.model("t", "select 1::bigint as a")
    project.build()
    failing = "select case when range < 90000 then range else error('halt') end as a"
    project.model("t", f"{failing} from range(100000)")
    assert "halt" in project.build(ok=False)
    assert rows("t") == [(1,)]
    assert version("t") == 0


@pytest.mark.parametrize("strategy", ["overwrite", "append", "upsert"])
def test_a_row_without_a_value_it_must_have_is_not_written(project: Project, strategy: str) -> None:
    key = {"unique_key": "id"} if strategy == "upsert" else {}
    project.write(
        "models/models.yml",
        """
        models:
            - name: numbers
              columns:
                  - name: id
                    data_type: varchar
                    constraints: [{ type: not_null }]
                  - name: number
                    data_type: bigint
                    constraints: [{ type: not_null }]
        """,
    )
    project.model("numbers", "select 'a' as id, 1::bigint as number", strategy=strategy, **key)
    project.build()
    project.model(
        "numbers",
        "select 'b' || range as id, nullif(range, 70000) as number from range(100000)",
        strategy=strategy,
        **key,
    )
    printed = project.build(ok=False)
    assert "Table 'numbers' was given 1 row(s) without number, the first:" in printed
    assert '{"id": "b70000"}' in printed and "Mend the model" in printed
    assert version("numbers") == 0


def test_a_data_test_that_passed_is_run_again_when_what_it_reads_is_another(
    project: Project,
) -> None:
    """The test also looks at a file, which nothing knows of: so one sees whether it was run."""
    project.model("first", "select 1 as a")
    project.write("models/between.sql", "select a from {{ ref('first') }}")
    project.write(
        "tests/assert_no_line.sql",
        "select between.a from {{ ref('between') }} as between, read_csv('lines.csv')",
    )
    lines = project.folder / "lines.csv"
    lines.write_text("line\n", encoding="utf-8")
    project.build()
    lines.write_text("line\nbad\n", encoding="utf-8")
    project.build()
    assert "assert_no_line" in project.dbt("test", ok=False)
    project.build(ok=False)  # what failed last is run, whatever it reads

    lines.write_text("line\n", encoding="utf-8")
    project.build()
    lines.write_text("line\nbad\n", encoding="utf-8")
    project.build()
    project.build("--full-refresh", ok=False)
    lines.write_text("line\n", encoding="utf-8")
    project.build()
    lines.write_text("line\nbad\n", encoding="utf-8")
    project.model("first", "select 2 as a")
    project.build(ok=False)


def test_a_union_of_which_one_branch_waits_for_the_other_ends(project: Project) -> None:
    project.model(
        "t",
        """
        with everything as materialized (
            select range as a, repeat('x', 100) || range as b from range(2000000)
        ),
        few as materialized (select a from everything where a % 100003 = 5)
        select a, b from everything where a not in (select a from few)
        union all
        select a, max(b) as b from everything where a in (select a from few) group by a
        """,
    )
    project.build()
    assert sum(lake.open_table("t").get_add_actions()["num_records"].to_pylist()) == 2_000_000  # type: ignore[union-attr]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a small disk, which only root may mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_the_table_as_it_was(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(small_disk / "lake"))
    schema = pa.schema([("bytes", pa.binary())])

    def add(size: int) -> None:
        rows = [{"bytes": os.urandom(size)}]
        reader = pa.Table.from_pylist(rows, schema).to_reader()
        lake.write("t", reader, lake.WriteOptions(strategy="append"))

    add(1_000)
    with pytest.raises(LakeError, match=r"No room is left at .*; table 't' stays as it was"):
        add(1_000_000)
    assert lake.open_table("t").get_add_actions()["num_records"].to_pylist() == [1]  # type: ignore[union-attr]


def test_memory_is_bounded_by_the_batch(workplace: Path) -> None:
    """A gigabyte passes through a process that may not hold half of it."""
    script = """
import resource, sys
import pyarrow as pa
from udfs import lake

schema = pa.schema([("text", pa.string())])
text = "0123456789" * 1_000

def batches():
    for n in range(1_000):
        yield pa.RecordBatch.from_pylist([{"text": f"{n}-{i}-{text}"} for i in range(100)], schema)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lake.write("t", pa.RecordBatchReader.from_batches(schema, batches()), lake.WriteOptions())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, text=True, capture_output=True, check=True
    )
    assert int(done.stdout) < 500, f"{done.stdout.strip()} MB more for a stream of 1,000 MB"


def test_an_error_of_ours_is_not_buried_below_its_frames(workplace: Path) -> None:
    """dbt prints a Python model's traceback in full, and the message comes last."""

    def rows() -> Iterator[pa.RecordBatch]:
        raise EndpointError("The key is refused.")
        yield

    reader = pa.RecordBatchReader.from_batches(pa.schema([("i", pa.int64())]), rows())

    options = {"strategy": "insert", "unique_key": "i", "commit": "batch"}
    config = json.dumps({"options": options, "columns": {"i": "bigint"}})
    with pytest.raises(EndpointError, match="The key is refused") as caught:
        store_python_model(reader, "ratings", config)

    assert [frame.name for frame in caught.traceback][1:] == ["store_python_model"]
