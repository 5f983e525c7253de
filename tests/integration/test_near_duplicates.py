"""Near duplicates as `dbt` builds them over Delta: new against old and new, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _curation_fixtures import Workspace, step, trajectory
from deltalake import DeltaTable

MODELS = ("content_signatures", "near_duplicate_links", "near_duplicates")


def words(name: str, *changed: int) -> str:
    """Four hundred words of a text, some of them others: one more changed takes 2.5% of what two
    texts have in common."""
    return " ".join(f"{name}{'x' if i in changed else ''}{i}" for i in range(400))


def run_of(number: int, text: str, **fields: Any) -> dict[str, Any]:
    return trajectory(number, user_query=f"Task {number}", steps=[step(text)], **fields)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def build(workspace: Workspace, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Make trajectories what is given, build; gives each table's version."""
    workspace.write_trajectories(rows)
    return rebuild(workspace)


def rebuild(workspace: Workspace, similarity: float | None = None) -> dict[str, int]:
    given = {} if similarity is None else {"near_duplicate_similarity": similarity}
    workspace.run(*MODELS, variables=given)
    return {name: DeltaTable(workspace.lake / name).version() for name in MODELS}


def clusters(workspace: Workspace) -> set[frozenset[int]]:
    """The clusters, as sets of the numbers in `Task …`."""
    rows = workspace.query(
        """
        select cluster_id, cluster_size, content_sha256, similarity, user_query
        from near_duplicates
        inner join trajectories using (content_sha256)
        """
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["cluster_id"], []).append(row)
    for cluster_id, members in found.items():
        assert cluster_id == min(row["content_sha256"] for row in members)
        assert {row["cluster_size"] for row in members} == {len(members)}
        assert all(0.8 <= row["similarity"] <= 1 for row in members)
    return {
        frozenset(int(row["user_query"].split()[1]) for row in members)
        for members in found.values()
    }


def test_clusters_grow_merge_and_lose_what_is_gone(workspace: Workspace) -> None:
    old = [
        run_of(1, words("a")),
        run_of(2, words("a", 10)),
        run_of(3, words("b")),
        run_of(4, words("a", *range(5, 365, 30))),
        run_of(5, words("a", *range(5, 365, 30), 390)),
        # Too short to be compared, however equal.
        *(trajectory(i, user_query="Yes", steps=[step("Yes.", next_observation=None)])
          for i in (6, 7)),
    ]  # fmt: skip
    first = build(workspace, old)
    assert clusters(workspace) == {frozenset({1, 2}), frozenset({4, 5})}
    assert rebuild(workspace) == first

    # The same trajectories written once more: a new version of theirs, and nothing to compare.
    again = build(workspace, old)
    assert {name: again[name] for name in MODELS[:2]} == {name: first[name] for name in MODELS[:2]}

    # One joins an old cluster; one is near to both old clusters, which are far from each other.
    new = [run_of(8, words("b", 200)), run_of(9, words("a", *range(5, 185, 30)))]
    signed = {row["content_sha256"] for row in workspace.query("select * from content_signatures")}
    build(workspace, old + new)
    assert clusters(workspace) == {frozenset({1, 2, 4, 5, 9}), frozenset({3, 8})}
    signatures = DeltaTable(workspace.lake / MODELS[0])
    added = signatures.history(1)[0]["operationMetrics"]["num_added_rows"]
    assert int(added) == 2 and len(signed) == 7, "only new contents are signed"

    # 9 and 3 grow, which gives them other contents: what held the two clusters together is gone.
    grown = {3: words("b") + words("c") + words("d"), 9: words("e") + words("a")}
    rows = [
        row | {"content_sha256": f"{number:064}", "steps": [step(grown[number])]}
        if (number := int(row["user_query"].split()[-1].replace("Yes", "0"))) in grown
        else row
        for row in old + new
    ]
    build(workspace, rows)
    assert clusters(workspace) == {frozenset({1, 2}), frozenset({4, 5})}


def test_when_the_one_that_all_were_linked_with_is_gone_they_are_still_a_cluster(
    workspace: Workspace,
) -> None:
    # More than a bucket compares with everyone: they are linked with representatives only.
    rows = [run_of(i, words("a", i)) for i in range(30)]
    build(workspace, rows)
    everyone = frozenset(range(30))
    assert clusters(workspace) == {everyone}
    links = workspace.query(
        "select content_sha256, unnest(links).content_sha256 as other from near_duplicate_links"
    )
    assert len(links) < 30 * 29 / 2, "not everyone is compared with everyone"
    hubs = {row["other"] for row in links}
    gone = {i for i, row in enumerate(rows) if row["content_sha256"] in hubs}
    assert 0 < len(gone) < 29
    build(workspace, [row for i, row in enumerate(rows) if i not in gone])
    assert clusters(workspace) == {everyone - gone}


def test_another_threshold_builds_anew(workspace: Workspace) -> None:
    rows = [
        run_of(1, words("a")),
        run_of(2, words("a", *range(5, 365, 30))),
        run_of(3, words("b")),
        run_of(4, words("b", 7)),
    ]
    build(workspace, rows)
    assert clusters(workspace) == {frozenset({3, 4})}
    rebuild(workspace, 0.6)
    pairs = workspace.query("select content_sha256 from near_duplicates where similarity < 0.8")
    assert len(pairs) == 2
    rebuild(workspace)
    assert clusters(workspace) == {frozenset({3, 4})}


def test_a_threshold_that_cannot_be_used_ends_the_build(workspace: Workspace) -> None:
    workspace.write_trajectories([run_of(1, words("a"))])
    with pytest.raises(AssertionError, match=r"near_duplicate_similarity is 8\.0\. Set a number"):
        rebuild(workspace, 8)
