"""Reading benchmarks: what an item's text, name and answer are, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from udfs.benchmarks.declared import BenchmarkSettings, declared_benchmarks
from udfs.benchmarks.items import read_benchmarks
from udfs.errors import ConfigError

QUESTION = "Who drew the first map of the caves?"
OTHER = "What do the shepherds call the wind?"


@pytest.fixture(autouse=True)
def no_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))


def read(
    folder: Path, files: dict[str, bytes | str], **declared: BenchmarkSettings
) -> list[dict[str, Any]]:
    """The rows of files below a folder of benchmarks."""
    for name, content in files.items():
        path = folder / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    table = read_benchmarks(folder / "benchmarks", declared)
    assert table is not None
    return table.to_pylist()


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


ITEM = {"id": "a", "question": QUESTION, "answer": "Mirren Oske"}
CSV = f"id,question,answer\r\na,{QUESTION},Mirren Oske\r\n"


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([ITEM]), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quiz.jsonl", lines(ITEM)),
        ("quiz.json", json.dumps([ITEM])),
        ("quiz.json", json.dumps({"a": {"question": QUESTION, "answer": "Mirren Oske"}, "b": {
            "question": OTHER, "answer": "the comb"}})),
        ("quiz/test.jsonl.gz", gzip.compress(lines(ITEM).encode())),
        ("quiz/test.jsonl.zst", zstandard.compress(lines(ITEM).encode())),
        ("quiz/test.parquet", parquet()),
        ("quiz.csv", CSV),
        ("quiz.csv.gz", gzip.compress(CSV.encode())),
        ("quiz.csv.zst", zstandard.compress(CSV[:20].encode())
                         + zstandard.compress(CSV[20:].encode())),
    ],
    ids=range(9),  # packed bytes in a name would be others in each process: they hold the time
)  # fmt: skip
def test_a_file_of_each_kind_gives_text_name_and_answer(
    tmp_path: Path, name: str, content: bytes | str
) -> None:
    row = read(tmp_path, {name: content})[0]
    assert (row["benchmark"], row["item_id"], row["text"]) == ("quiz", "a", QUESTION)
    assert (row["answer"], row["problem"], row["word_count"]) == ("Mirren Oske", None, 8)
    assert (row["benchmark_file"], row["item_position"]) == (name, 1)


@pytest.mark.parametrize(
    ("item", "texts"),
    [
        (QUESTION, [QUESTION]),
        ({"Question": QUESTION, "Level": 2}, [QUESTION]),
        ({"instance_id": "x__1", "problem_statement": QUESTION, "patch": "-a"}, [QUESTION]),
        ({"prompt": [{"role": "system", "content": "Be brief."},
                     {"role": "user", "content": QUESTION}]}, [QUESTION]),
        ({"question": [[{"role": "user", "content": QUESTION}],
                       [{"role": "user", "content": OTHER}]]}, [QUESTION, OTHER]),
        ({"conversations": [{"from": "human", "value": QUESTION},
                            {"from": "gpt", "value": "Mirren Oske drew it."}]}, [QUESTION]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION},
                                                    {"type": "image_url"}]}]}, [QUESTION]),
        ({"turns": [QUESTION, OTHER, QUESTION]}, [QUESTION, OTHER]),
        ({"question": {"stem": QUESTION, "choices": ["a", "b"]}}, [QUESTION]),
        ({"question": "  ", "task": QUESTION}, [QUESTION]),
    ],
)  # fmt: skip
def test_texts_are_found_under_the_usual_names(tmp_path: Path, item: Any, texts: list[str]) -> None:
    rows = read(tmp_path, {"quiz.jsonl": lines(item)})
    assert [row["text"] for row in rows] == texts
    assert [row["text_number"] for row in rows] == list(range(1, len(texts) + 1))


def test_a_list_of_texts_is_a_benchmark(tmp_path: Path) -> None:
    rows = read(tmp_path, {"quiz.json": json.dumps([QUESTION, OTHER])})
    assert [(row["item_id"], row["text"]) for row in rows] == [
        ("quiz.json:1", QUESTION),
        ("quiz.json:2", OTHER),
    ]


def test_what_is_declared_comes_before_the_usual_names(tmp_path: Path) -> None:
    item = {
        "id": 1,
        "name": "hut",
        "question": "See goal.",
        "goal": {"text": QUESTION, "hint": OTHER},
        "gold": ["Oske"],
    }
    settings = BenchmarkSettings(
        text=("goal.text", "$.goal.hint"), id="name", answer="gold", items="data.rows"
    )
    document = json.dumps({"version": 1, "data": {"rows": [item]}})
    rows = read(tmp_path, {"quiz.json": document}, quiz=settings)
    assert [(row["item_id"], row["text"], row["answer"]) for row in rows] == [
        ("hut", QUESTION, '["Oske"]'),
        ("hut", OTHER, '["Oske"]'),
    ]


def test_ids_that_repeat_give_way_to_the_place(tmp_path: Path) -> None:
    parts = {"quiz/a.jsonl": lines(ITEM), "quiz/b.jsonl": lines(ITEM | {"question": OTHER})}
    assert [row["item_id"] for row in read(tmp_path, parts)] == ["a", "quiz/b.jsonl:1"]


def test_texts_with_the_same_words_have_the_same_hash(tmp_path: Path) -> None:
    one, same, other = read(
        tmp_path, {"quiz.jsonl": lines(QUESTION, f"  «{QUESTION.upper()}»", OTHER)}
    )
    assert one["text_sha256"] == same["text_sha256"] != other["text_sha256"]


def test_what_cannot_be_searched_for_is_kept_with_its_reason(tmp_path: Path) -> None:
    shared = [{"id": number, "question": "Answer the question below."} for number in range(11)]
    rows = read(
        tmp_path,
        {
            "quiz/items.jsonl": lines(ITEM, {"id": "b", "answer": 7}, "Who is he?"),
            "quiz/LICENSE": "free",
            "forms.jsonl": lines(*shared, QUESTION),
        },
    )
    problems = {(row["benchmark"], row["problem"]): row for row in rows if row["problem"]}
    assert set(problems) == {
        ("quiz", "no_text"),
        ("quiz", "few_words"),
        ("quiz", "unsupported_file"),
        ("forms", "common_text"),
    }
    assert problems["quiz", "no_text"]["problem_detail"] == "the item has the keys id, answer"
    assert sum(row["problem"] == "common_text" for row in rows) == 11
    assert [row["text"] for row in rows if not row["problem"]] == [QUESTION, QUESTION]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"quiz.jsonl": lines(ITEM) + '{"question": "Who'},
         "'quiz.jsonl' cannot be read at item 2, which begins at byte 89: invalid_json"),
        ({"quiz.json": json.dumps([ITEM])[:-5]}, "'quiz.json' cannot be read at item 1"),
        ({"quiz.jsonl.gz": gzip.compress(lines(ITEM).encode())[:-12]},
         "'quiz.jsonl.gz' cannot be read at item"),
        ({"quiz.csv": f"id,question\na,{QUESTION}\nb\n"}, "'quiz.csv' cannot be read at or behind"),
        ({"quiz.csv.gz": b"no gzip"}, "'quiz.csv.gz' cannot be read at or behind row 0"),
        ({"quiz.parquet": b"PAR1"}, "'quiz.parquet' cannot be read at item 1: corrupt_parquet"),
        ({"quiz.jsonl": ""}, "'quiz.jsonl' holds no item"),
        ({"quiz.json": json.dumps({"version": 1, "rows": [ITEM]})},
         "no text in any item ('quiz.json': the item has the keys version, rows). Say where"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_the_build(
    tmp_path: Path, files: dict[str, bytes | str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, files)
    assert message in str(error.value)


def test_items_that_are_declared_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no list at `data`.*has the keys rows"):
        read(tmp_path, {"quiz.json": '{"rows": []}'}, quiz=BenchmarkSettings(items="data"))


def test_no_folder_is_no_benchmark_unless_somebody_named_it(tmp_path: Path) -> None:
    table = read_benchmarks(tmp_path / "none", {})
    assert table is not None and table.num_rows == 0
    with pytest.raises(ConfigError, match="TRAJLAKE_BENCHMARKS"):
        read_benchmarks(tmp_path / "none", {}, is_required=True)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("txt: question", r"benchmark 'quiz': unknown key 'txt'\. Keys: text, id"),
        ("text: [question, 7]", r"the path of 'text' is 7: it is no text"),
        ("id: a..b", r"the path of 'id' is 'a\.\.b'"),
        ("container: table", r"container 'table' does not exist\. Choose from: lines"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(
    tmp_path: Path, meta: str, message: str
) -> None:
    path = tmp_path / "benchmarks.yml"
    path.write_text(
        f"sources: [{{name: benchmarks, tables: [{{name: quiz, config: {{meta: {{{meta}}}}}}}]}}]"
    )
    with pytest.raises(ConfigError, match=message):
        declared_benchmarks(path)


def test_the_project_s_own_declarations_can_be_read() -> None:
    assert declared_benchmarks()["highland_questions"].text == ("question",)
