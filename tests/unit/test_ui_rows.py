"""The browser's lists over a small lake: filters, conditions, pages, counts, full text, labels."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from _browser_lake import write_lake
from _synthetic import reader

from orchestration.ui import labels
from orchestration.ui.rows import NONE, PAGE_ROWS, SORTS, Found, Hits, Query, Rows, RowsKeeper
from orchestration.ui.search import SearchIndex
from orchestration.ui.tables import Tables, Unavailable
from udfs.errors import ConfigError

ROWS = 230


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("browser") / "lake"
    write_lake(ROWS, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAJLAKE_LAKE", str(folder))
        patch.setenv("TRAJLAKE_DB", str(folder.with_name("views.duckdb")))
        yield folder


@pytest.fixture(scope="module")
def tables(lake: Path) -> Tables:
    return Tables()


@pytest.fixture(scope="module")
def rows(tables: Tables) -> Rows:
    return Rows(tables, tables.now())


Find = Callable[..., Found]


@pytest.fixture
def find(rows: Rows, tables: Tables) -> Find:
    def found(search: Callable[[str], Hits] | None = None, **query: str) -> Found:
        def labelled() -> list[str]:
            return labels.labelled_contents(tables)

        def nothing(text: str) -> Hits:
            raise AssertionError("no full text was asked for")

        return rows.find(Query(**query), search or nothing, labelled)[0]

    return found


@pytest.mark.parametrize("order", ["", "up"])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_have_every_row_once_forward_and_backward(
    find: Find, rows: Rows, sort: str, order: str
) -> None:
    column = SORTS[sort][0]
    page = find(sort=sort, order=order)
    pages = [page]
    while page.last < page.total:
        page = find(sort=sort, order=order, after=page.rows[-1]["trajectory_id"])
        assert page.first == pages[-1].last + 1
        pages.append(page)
    seen = [row for each in pages for row in each.rows]
    assert len({row["trajectory_id"] for row in seen}) == len(seen) == ROWS == page.total
    known = [row[column] for row in seen if row[column] is not None]
    assert known == sorted(known, reverse=order != "up")
    assert [row[column] for row in seen][: len(known)] == known  # those without a value are last
    for later, earlier in zip(pages[:0:-1], pages[-2::-1], strict=True):
        again = find(sort=sort, order=order, before=later.rows[0]["trajectory_id"])
        assert (again.first, again.rows) == (earlier.first, earlier.rows)
    end = find(sort=sort, order=order, before="end")
    assert end.rows == seen[-PAGE_ROWS:]
    assert (end.first, end.last) == (ROWS - PAGE_ROWS + 1, ROWS)


def test_filters_and_counts_agree(find: Find) -> None:
    every = find()
    sources = next(facet for facet in every.facets if facet.name == "source")
    assert sum(count for _, count in sources.values) == ROWS
    for name, count in sources.values:
        assert find(source=name).total == count
    both = find(source="shop", verdict="kept")
    verdicts = next(facet for facet in both.facets if facet.name == "verdict")
    # A list leaves its own choice out, so that another one can be chosen.
    assert sum(count for _, count in verdicts.values) == find(source="shop").total
    assert {row["source"] for row in both.rows} == {"shop"}
    assert {row["is_kept"] for row in both.rows} == {True}
    assert find(source=NONE).total == 0
    assert find(source="nobody' or 1=1 --").total == 0


@pytest.mark.parametrize(
    "condition",
    [
        "score >= 0.5 and step_count < 6",
        "contains(user_query, 'a') and len(steps) > 4",
        "contains(user_query, 'a') and is_kept",  # of two tables
        "len(steps) > 4 or len(user_query) > 100",
        "reason = 'kept' and not has_loop",
    ],
)
def test_a_condition_keeps_what_it_says(find: Find, rows: Rows, condition: str) -> None:
    expected = rows._tables  # the same, asked of the tables themselves
    with expected.reader() as reader:
        wanted = reader.rows(
            f"""
            select count(*) as n
            from trajectories
            inner join trajectory_flags as flags using (trajectory_id)
            inner join curated_trajectories as verdicts using (trajectory_id)
            where {_qualified(condition)}
            """
        )[0]["n"]
    assert 0 < wanted < ROWS
    assert find(where=condition).total == wanted


def _qualified(condition: str) -> str:
    return condition.replace("score >=", "trajectories.score >=")


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("1=1; drop table rows", "a second statement"),
        ("source in (select source from rows)", "a subquery"),
        ("read_csv('/etc/passwd') is null", "`read_csv` is not allowed"),
        ("read_text('/etc/passwd') = ''", "is not allowed"),
        ("getenv('HOME') = ''", "is not allowed"),
        ("true) or (select 1) = 1 or (true", "a subquery"),
        ("place > 0", "is not a column"),
        ("rows.source = 'a'", "is not a column"),
        ("score", "a filter is a condition"),
        ("score >", "does not parse"),
        ("$value = 1", "is not allowed"),
        ("now() > ingested_at", "is not allowed"),
        ("(" * 600 + "true" + ")" * 600, "nested too deeply"),
        ("len(steps) > step_count", "different tables"),
        ("cast(source as integer[]) is null", "is not allowed"),
        ("count(*) > 1", "is not allowed"),
    ],
)
def test_what_is_no_condition_is_refused(find: Find, condition: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        find(where=condition)
    assert said in str(error.value)


def test_the_file_of_rows_sees_nothing_outside_it(rows: Rows) -> None:
    for sql in ("select * from read_csv('/etc/passwd')", "select * from '/etc/passwd'"):
        with pytest.raises(Unavailable):
            rows.ask(sql)
    with pytest.raises(Unavailable):
        rows.ask("insert into rows select * from rows")


def test_labelled_ones_can_be_found(find: Find) -> None:
    assert find(labelled="yes").total + find(labelled="no").total == ROWS
    assert find(labelled="yes").total == 1


def test_a_table_that_is_not_there_leaves_its_columns_empty(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lake, tmp_path / "lake")
    for name in ("trajectory_flags", "curated_trajectories"):
        shutil.rmtree(tmp_path / "lake" / name)
    for file in (tmp_path / "lake" / "conversations").glob("*.parquet"):
        file.write_bytes(b"no Parquet")
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    tables = Tables()
    rows = Rows(tables, tables.now())
    assert rows.problems["trajectory_flags"].startswith("This lake has no table trajectory_flags.")
    assert "cannot be read" in rows.problems["conversations"]
    found, _ = rows.find(Query(where="rater_score >= 4"), lambda text: None, list)  # type: ignore
    assert 0 < found.total < ROWS  # by the ratings themselves
    assert {row["step_count"] for row in found.rows} == {None}
    assert rows.recipes == ()


def waited(index: SearchIndex) -> None:
    """Wait until the index has everything."""
    for _ in range(600):
        if index.progress().is_complete:
            return
        time.sleep(0.05)
    raise AssertionError(str(index.progress()))


def test_full_text_follows_the_lake(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lake"
    write_deltalake(folder / "trajectories", reader(ROWS))
    said = "gorse and heather <b>on</b> the northern moor"
    first = DeltaTable(folder / "trajectories").to_pyarrow_table().slice(0, 1)
    changed = first.set_column(
        first.schema.get_field_index("user_query"), "user_query", pa.array([said])
    ).set_column(0, "trajectory_id", pa.array(["f" * 64]))
    write_deltalake(folder / "trajectories", changed, mode="append")
    monkeypatch.setenv("TRAJLAKE_LAKE", str(folder))
    tables = Tables()
    index = SearchIndex(tables, tmp_path / "index")
    rows = Rows(tables, tables.now())
    index.follow(rows)
    waited(index)
    time.sleep(0.6)  # readers look for news twice a second

    def found(text: str) -> tuple[int, list[str]]:
        page, _ = rows.find(Query(q=text), index.search, list)
        return page.total, [row["trajectory_id"] for row in page.rows]

    assert found('"northern moor"') == (1, ["f" * 64])
    assert found("query:moor heather") == (1, ["f" * 64])
    assert found("seen:moor") == (0, [])
    assert index.search("moor").notes == ()
    assert "as well as could be" in index.search('moor ("').notes[0]
    everything = index.search("answer OR the OR search")
    assert everything.total > ROWS / 2

    # One goes, others come; a second index in the same place begins where the first one was.
    DeltaTable(folder / "trajectories").delete(f"trajectory_id = '{'f' * 64}'")
    write_deltalake(folder / "trajectories", reader(20, start=ROWS), mode="append")
    rows = Rows(tables, tables.now())
    index.follow(rows)
    waited(index)
    time.sleep(0.6)
    assert index.progress().wanted == ROWS + 20
    assert found("moor") == (0, [])
    again = SearchIndex(tables, tmp_path / "index")
    assert again.progress().indexed == 0 and again._indexed == ROWS + 20


@example("<:*")
@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab\"'()[]{}<>:^~*+-!/\\&| .,\t\x00éANDORTI\U0001f600", max_size=30))
def test_any_search_is_read_somehow(empty_index: SearchIndex, text: str) -> None:
    assert empty_index.search(text).total == 0


@pytest.fixture(scope="module")
def empty_index(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    return SearchIndex(tables, tmp_path_factory.mktemp("index"))


def test_what_is_not_indexed_yet_is_said(tables: Tables, rows: Rows, tmp_path: Path) -> None:
    index = SearchIndex(tables, tmp_path / "index")
    other = SearchIndex(tables, tmp_path / "index")
    lock = other._index.writer()  # somebody else adds to it
    index.follow(rows)
    time.sleep(0.5)
    assert not index.progress().is_complete
    assert f"0 of {ROWS} trajectories are in the full-text index" in index.search("answer").notes[0]
    lock.wait_merging_threads()


def test_newer_rows_are_read_beside_the_old_ones(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lake, tmp_path / "lake")
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setattr("orchestration.ui.rows._SHORTEST_REST_S", 0.0)
    monkeypatch.setattr("orchestration.ui.rows._REST", 0.0)
    tables = Tables()
    keeper = RowsKeeper(tables)
    assert not keeper.current(tables.now()).is_older
    write_deltalake(tmp_path / "lake" / "trajectories", reader(5, start=ROWS), mode="append")
    current = keeper.current(tables.now())
    assert current.is_older and current.rows.count == ROWS
    for _ in range(200):
        if not (current := keeper.current(tables.now())).is_older:
            break
        time.sleep(0.05)
    assert current.rows.count == ROWS + 5


def test_two_labels_of_one_moment_do_not_overwrite_each_other(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lake, tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "human_labels")
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    tables, content = Tables(), "c" * 64
    labels.give(tables, content, "t" * 64, labels.Given("3.5", "fine", "ada", ""))
    with pytest.raises(labels.Overtaken):
        labels.give(tables, content, "t" * 64, labels.Given("1", "bad", "ben", ""))
    [only] = labels.history(tables, content)
    assert (only["value"], only["note"], only["labelled_by"]) == (3.5, "fine", "ada")
    given = labels.Given("", "cannot be said", "ada", only["human_label_id"])
    labels.give(tables, content, "t" * 64, given)
    assert labels.labelled_contents(tables) == []
    assert len(labels.history(tables, content)) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (labels.Given("6", "", "ada", ""), "from 0 to 5"),
        (labels.Given("-0.1", "", "ada", ""), "from 0 to 5"),
        (labels.Given("nan", "", "ada", ""), "from 0 to 5"),
        (labels.Given("good", "", "ada", ""), "from 0 to 5"),
        (labels.Given("3", "", "", ""), "Say who labels"),
        (labels.Given("3", "x" * 20_000, "ada", ""), "20,000 characters"),
    ],
)
def test_what_is_no_label_is_refused(tables: Tables, given: labels.Given, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        labels.give(tables, "c" * 64, "t" * 64, given)
    assert said in str(error.value)
