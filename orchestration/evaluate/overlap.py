"""Whether what is measured with is in what is trained on.

Questions: the lake's own check (`benchmark_checks`) has looked for them if their file is a
benchmark there, by every text's words. Games: their opening texts, letter for letter, in the
queries of trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from udfs.benchmarks.items import FEWEST_WORDS
from udfs.benchmarks.words import normalised, text_sha256
from udfs.errors import LakeError
from udfs.views import open_lake

_KEPT = """
    select distinct trajectory_id
    from curated_trajectories
    where is_kept and ($recipe is null or recipe = $recipe)
"""
_KNOWN = """
    select count(distinct text_sha256)
    from benchmark_items
    where problem is null and text_sha256 in (select text_sha256 from measured)
"""
_WITH_QUESTIONS = f"""
    with kept as ({_KEPT}),

    items as (
        select distinct benchmark, item_id
        from benchmark_items
        where text_sha256 in (select text_sha256 from measured)
    ),

    matches as (
        select trajectory_id, unnest(matches) as found from benchmark_checks
    )

    select count(distinct trajectory_id)
    from matches
    inner join items
        on matches.found.benchmark = items.benchmark and matches.found.item_id = items.item_id
    inner join kept using (trajectory_id)
"""
_WITH_BENCHMARK = f"""
    with kept as ({_KEPT})

    select
        (select count(*) from benchmark_items where benchmark ilike $benchmark || '%') as items,
        count(distinct trajectory_id) as trajectories,
    from benchmark_checks
    inner join kept using (trajectory_id)
    where len(list_filter(benchmarks, lambda name: name ilike $benchmark || '%')) > 0
"""
_WITH_TEXTS = f"""
    with kept as ({_KEPT})

    select count(distinct trajectory_id)
    from trajectories
    inner join kept using (trajectory_id)
    where user_query in (select text from measured)
"""


@dataclass(frozen=True)
class Overlap:
    """What a look at the lake gave.

    `trajectories`: how many kept ones hold something of what is measured with; null where nobody
    has looked, and then `problem` says why.
    """

    trajectories: int | None
    problem: str | None = None


def overlap_of_questions(texts: Sequence[str], recipe: str | None) -> Overlap:
    """How many kept trajectories were asked one of the questions.

    Args:
        recipe: whose verdicts count; null: any.
    """
    words = normalised(pa.array(texts, pa.string()))
    # A shorter text is searched for in no benchmark: it proves nothing.
    hashes = {text_sha256(each) for each in words if len(each.split()) >= FEWEST_WORDS}

    def look(connection: duckdb.DuckDBPyConnection) -> Overlap:
        connection.register("measured", pa.table({"text_sha256": pa.array(hashes, pa.string())}))
        (known,) = connection.execute(_KNOWN).fetchone() or (0,)
        if known < len(hashes):
            return Overlap(
                None,
                f"{len(hashes) - known:,} of {len(hashes):,} questions are in no benchmark. Put "
                "their file into the benchmarks folder and run `dbt build`",
            )
        found = connection.execute(_WITH_QUESTIONS, {"recipe": recipe}).fetchone()
        return Overlap(found[0] if found else 0)

    return _looked(look)


def overlap_of_benchmark(benchmark: str, recipe: str | None) -> Overlap:
    """How many kept trajectories were asked what a benchmark asks, by its name's beginning."""

    def look(connection: duckdb.DuckDBPyConnection) -> Overlap:
        given = {"benchmark": benchmark, "recipe": recipe}
        items, found = connection.execute(_WITH_BENCHMARK, given).fetchone() or (0, 0)
        if not items:
            return Overlap(
                None,
                f"no benchmark has a name that begins with {benchmark}. Put its files into the "
                "benchmarks folder and run `dbt build`",
            )
        return Overlap(found)

    return _looked(look)


def overlap_of_games(openings: Sequence[str], recipe: str | None) -> Overlap:
    """How many kept trajectories begin with what one of the games says first."""

    def look(connection: duckdb.DuckDBPyConnection) -> Overlap:
        connection.register("measured", pa.table({"text": pa.array(openings, pa.string())}))
        found = connection.execute(_WITH_TEXTS, {"recipe": recipe}).fetchone()
        return Overlap(found[0] if found else 0)

    return _looked(look)


def _looked(look: Callable[[duckdb.DuckDBPyConnection], Overlap]) -> Overlap:
    try:
        with open_lake() as connection:
            return look(connection)
    except (LakeError, duckdb.CatalogException) as error:
        return Overlap(None, str(error).splitlines()[0].rstrip("."))
