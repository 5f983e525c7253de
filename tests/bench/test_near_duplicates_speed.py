"""Near duplicates: what is found against exact similarities, and what it costs.

    make bench

**Found**: on the records of `../shared/raw`, all pairs of contents are compared exactly, by their
sets of shingles. Recall is the share of pairs at or over the threshold that end up in one
cluster; precision the share of stored links that are at or over it. Estimates have an error, so
both are also counted with the pairs within 0.05 of the threshold left out.

**Cost**: synthetic trajectories, 2 KB of text each, one in nine a near or exact copy of another.
Full build, 1% more, nothing new; each dbt run in a process of its own, with its peak memory, the
start of dbt (some seconds) included. The peer at the smaller size is `datasketch`: MinHash and
MinHashLSH with the same 128 permutations and threshold, fed with the same words in one Python
process, which reads the same Delta table.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from _synthetic import is_boilerplate, originals, reader
from deltalake import write_deltalake
from rich.console import Console
from rich.table import Table
from scipy import sparse
from test_growth import PROJECT, measure

from udfs import lake
from udfs.curation.near_duplicates import (
    compared_texts,
    content_signatures,
    shingles,
    signature_similarity,
)
from udfs.schema import STEP

MODELS = ["content_signatures", "near_duplicate_links", "near_duplicates"]
SIZES = (100_000, 1_000_000)
THRESHOLD = 0.8

DATASKETCH = """
import re, sys
from datasketch import MinHash, MinHashLSH
from deltalake import DeltaTable
from udfs.curation.near_duplicates import compared_texts

lsh = MinHashLSH(threshold=0.8, num_perm=128)
columns = ["content_sha256", "user_query", "steps"]
seen, pairs = set(), 0
batches = DeltaTable(sys.argv[1]).to_pyarrow_dataset().to_batches(columns=columns)
for batch in batches:
    names, queries, steps = batch.columns
    texts = compared_texts(queries, steps).to_pylist()
    for name, text in zip(names.to_pylist(), texts, strict=True):
        if name in seen:
            continue
        seen.add(name)
        words = re.findall(r"[^\\W_]+", text.lower())
        runs = {" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)}
        sketch = MinHash(num_perm=128)
        sketch.update_batch(runs)
        pairs += len(lsh.query(sketch))
        lsh.insert(name, sketch)
print(pairs, "pairs")
"""


def build() -> tuple[float, int]:
    return measure(["dbt", "run", "--quiet", "--select", *MODELS])


def exact_pairs(texts: pa.Array, at_least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of texts that share at least so many of their shingles: rows i < j and how many."""
    hashes, bounds, _ = shingles(texts)
    names, columns = np.unique(hashes, return_inverse=True)
    ones = np.ones(len(columns), dtype=np.float32)
    has = sparse.csr_matrix((ones, columns, bounds), shape=(len(texts), len(names)))
    has.sum_duplicates()
    has.data[:] = 1
    sizes = np.diff(has.indptr)
    found = []
    for start in range(0, len(texts), 500):
        common = sparse.coo_matrix(has[start : start + 500] @ has.T)
        i, j = common.row + start, common.col
        similarity = common.data / (sizes[i] + sizes[j] - common.data)
        is_wanted = (i < j) & (similarity >= at_least)
        found.append((i[is_wanted], j[is_wanted], similarity[is_wanted]))
    i, j, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, similarity


def test_found(workplace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_RAW", str(shared / "raw"))
    measure(["dbt", "run", "--quiet", "--select", "+near_duplicates"])
    with lake.connect() as connection:
        contents = connection.sql(
            "select content_sha256, any_value(source) as source, any_value(user_query), "
            "any_value(steps) from trajectories group by 1 order by 1"
        ).to_arrow_table().combine_chunks()  # fmt: skip
        cluster = dict(
            connection.sql("select content_sha256, cluster_id from near_duplicates").fetchall()
        )
        links = connection.sql(
            "select content_sha256, link.content_sha256, link.similarity from "
            "(select content_sha256, unnest(links) as link from near_duplicate_links)"
        ).fetchall()
    names = contents.column(0).to_pylist()
    texts = compared_texts(contents.column(2).chunk(0), contents.column(3).chunk(0))
    i, j, similarity = exact_pairs(texts, 0.5)
    is_found = np.array(
        [names[a] in cluster and cluster[names[a]] == cluster.get(names[b])
         for a, b in zip(i, j, strict=True)]
    )  # fmt: skip
    exact = {
        frozenset((names[a], names[b])): value for a, b, value in zip(i, j, similarity, strict=True)
    }
    truth = np.array([exact.get(frozenset(link[:2]), 0.0) for link in links])

    table = Table("", title=f"Pairs of {len(names):,} contents of ../shared/raw")
    for column in ("pairs", "right", "share"):
        table.add_column(column, justify="right")
    clear = similarity >= THRESHOLD + 0.05
    for name, right in {
        "recall: exact ≥ 0.80, in one cluster": is_found[similarity >= THRESHOLD],
        "recall: exact ≥ 0.85": is_found[clear],
        "precision: links, exact ≥ 0.80": truth >= THRESHOLD,
        "precision: links, exact ≥ 0.75": truth >= THRESHOLD - 0.05,
    }.items():
        share = right.mean() if len(right) else float("nan")
        table.add_row(name, f"{len(right):,}", f"{right.sum():,}", f"{share:.1%}")
    errors = np.array([link[2] for link in links]) - truth
    Console(width=120).print(table)
    print(f"estimate minus exact, of links: mean {errors.mean():+.4f}, sd {errors.std():.4f}")
    assert is_found[clear].mean() > 0.99
    assert (truth >= THRESHOLD - 0.1).all()


def test_found_among_edited_copies(
    workplace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs have few near duplicates, so copies of them are made, some words of each others."""
    monkeypatch.setenv("TRAJLAKE_RAW", str(shared / "raw"))
    measure(["dbt", "run", "--quiet", "--select", "+trajectories"])
    with lake.connect() as connection:
        runs = connection.sql("select user_query, steps from trajectories order by trajectory_id")
        columns = [column.chunk(0) for column in runs.to_arrow_table().combine_chunks().columns]
    rng = np.random.default_rng(0)
    exact, estimated, is_compared = [], [], []
    texts = compared_texts(*columns)
    for share in (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1):
        edited = pa.array([_edited(text, share, rng) for text in texts.to_pylist()])
        sides = [_sets(texts), _sets(edited)]
        exact += [len(a & b) / max(1, len(a | b)) for a, b in zip(*sides, strict=True)]
        no_steps = pa.nulls(len(texts), pa.list_(STEP))
        threshold = pa.array(np.full(len(texts), THRESHOLD))
        one, other = (content_signatures(each, no_steps, threshold) for each in (texts, edited))
        similarity = signature_similarity(one.field("signature"), other.field("signature"))
        estimated += [value or 0.0 for value in similarity.to_pylist()]
        is_compared += [
            not set(a or ()).isdisjoint(b or ())
            for a, b in zip(
                one.field("band_hashes").to_pylist(),
                other.field("band_hashes").to_pylist(),
                strict=True,
            )
        ]
    truth, found = np.array(exact), np.array(is_compared) & (np.array(estimated) >= THRESHOLD)
    table = Table("exact similarity", title=f"{len(truth):,} pairs: a real run and an edited copy")
    for column in ("pairs", "compared", "found"):
        table.add_column(column, justify="right")
    for low, high in pairwise((0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.01)):
        inside = (truth >= low) & (truth < high)
        shares = (f"{np.array(some)[inside].mean():.1%}" for some in (is_compared, found))
        table.add_row(f"{low:.2f} to {min(high, 1.0):.2f}", f"{inside.sum():,}", *shares)
    Console(width=120).print(table)
    recall, precision = found[truth >= THRESHOLD].mean(), (truth[found] >= THRESHOLD).mean()
    print(f"recall {recall:.1%}, precision {precision:.1%} at {THRESHOLD}")
    assert found[truth >= THRESHOLD + 0.1].mean() > 0.995
    assert (truth[found] >= THRESHOLD - 0.1).mean() > 0.995


def _edited(text: str, share: float, rng: np.random.Generator) -> str:
    """The same text with a share of its words replaced."""
    words = text.split(" ")
    return " ".join(
        f"edit{i}" if is_other else word
        for i, (word, is_other) in enumerate(
            zip(words, rng.random(len(words)) < share, strict=True)
        )
    )


def planted_share(n: int) -> float:
    """Of the copies planted among `n` whose text is at least that similar, the share found."""
    numbers = np.arange(n)
    first = originals(numbers, 0)
    copies = numbers[(first != numbers) & ~is_boilerplate(numbers, 0)][:20_000]
    with lake.connect() as connection:
        connection.execute(
            "create temp table pairs as select unnest($1) as copy, unnest($2) as original",
            [copies.tolist(), first[copies].tolist()],
        )
        rows = connection.execute(
            """
            select
                one.user_query, one.steps, other.user_query, other.steps,
                coalesce(a.cluster_id = b.cluster_id, false)
            from pairs
            inner join trajectories as one on one.raw_position = pairs.copy
            inner join trajectories as other on other.raw_position = pairs.original
            left join near_duplicates as a on a.content_sha256 = one.content_sha256
            left join near_duplicates as b on b.content_sha256 = other.content_sha256
            where one.content_sha256 <> other.content_sha256
            """
        ).to_arrow_table().combine_chunks()  # fmt: skip
    columns = [column.chunk(0) for column in rows.columns]
    sides = [
        _sets(compared_texts(columns[0], columns[1])),
        _sets(compared_texts(columns[2], columns[3])),
    ]
    exact = np.array([len(a & b) / len(a | b) for a, b in zip(*sides, strict=True)])
    is_found = columns[4].to_numpy(zero_copy_only=False)
    return float(is_found[exact >= THRESHOLD].mean())


def _sets(texts: pa.Array) -> list[set[int]]:
    hashes, bounds, _ = shingles(texts)
    return [set(hashes[a:b].tolist()) for a, b in pairwise(bounds)]


def test_cost(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("", title="Near duplicates of synthetic trajectories, 2 KB of text each")
    rows: dict[str, list[str]] = {}
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for n in SIZES:
        root = workplace / str(n)
        monkeypatch.setenv("TRAJLAKE_LAKE", str(root))
        monkeypatch.setenv("TRAJLAKE_DB", str(workplace / f"{n}.duckdb"))
        path = root / "trajectories"
        write_deltalake(path, reader(n))
        with duckdb.connect(str(workplace / f"{n}.duckdb")) as connection:
            lake.load_delta_extension(connection)
            connection.execute(f"create view trajectories as select * from delta_scan('{path}')")
        alone, _ = measure(["dbt", "parse", "--quiet"])
        costs = {"(dbt alone)": (alone, 0), "full build": build()}
        share = planted_share(n)
        if n == SIZES[0]:
            costs["peer: datasketch"] = measure([sys.executable, "-c", DATASKETCH, str(path)])
        write_deltalake(path, reader(n // 100, start=n), mode="append")
        costs["1% more"] = build()
        costs["nothing new"] = build()
        table.add_column(f"{n:,}", justify="right")
        for name, (seconds, peak) in costs.items():
            rows.setdefault(name, []).append(f"{seconds:.1f} s  {peak:,} MB")
        rows.setdefault("planted copies found", []).append(f"{share:.2%}")
        assert share > 0.98
        assert costs["full build"][1] < 4_096
        full, more = (costs[name][0] - alone for name in ("full build", "1% more"))
        assert n < 1_000_000 or more < full / 10, "new data costs what is in it"
    for name, found in rows.items():
        table.add_row(name, *found)
    Console(width=120).print(table)
