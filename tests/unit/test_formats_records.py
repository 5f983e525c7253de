"""Whole files: the sample records of this project, and the real ones that lie beside it.

Files are read here with a few lines of their own, so that these tests stand on the formats alone.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from udfs.formats import to_messages, to_source
from udfs.formats.arrow import parse_records

SAMPLES = Path(__file__).resolve().parents[2] / "raw"

# Source → format → trajectories; the rest is in REFUSED.
SAMPLE_FORMATS = {
    "booking_dialogues": {"api_bank": 2, "api_bank_task": 1, "instruction": 2},
    "calculator_calls": {"chat": 9},
    "code_repairs": {"openhands": 1, "role_text": 1, "swe_agent": 1},
    "exchanged": {"adp": 1, "agentohana": 1, "atif": 1, "xlam": 1},
    "garden_planner": {"anthropic": 3},
    "hotpot_react": {"react_text": 10},
    "house_and_shop": {"step_dicts": 3},
    "judged_calls": {"toolalpaca_eval": 3},
    "library_desk": {"sharegpt": 4},
    "open_answers": {"openassistant": 3},
    # A trajectory for each row, before those that are one run are put together.
    "phone_screens": {"screen_lists": 1, "screen_script": 2, "screen_step": 5},
    "retail_desk": {"messages_display": 8},
    "route_search": {"toolbench": 3, "toolbench_answer": 1},
    "seed_shop": {
        "chat_step": 5,
        "form_answer": 2,
        "mind2web": 1,
        "mind2web_step": 2,
        "web_program": 2,
        "web_states": 2,
        "weblinx": 1,
        "weblinx_step": 2,
    },
    "support_chat": {"chat": 9},
    "tool_use": {"toolalpaca": 8},
    "trivia_runs": {"react_chat": 7, "react_text": 7},
    "unit_calls": {"function_calls": 2},
}
SAMPLE_REFUSED = {"hotpot_react": ["invalid_json"], "support_chat": ["unknown_format"]}

# File → format → trajectories. Files that are not here are refused whole.
REAL_FORMATS = {
    "adp_samples/agenttuning_alfworld.json": {"chat": 5},
    "adp_samples/agenttuning_db.json": {"chat": 5},
    "adp_samples/agenttuning_kg.json": {"react_chat": 5},
    "adp_samples/agenttuning_webshop.json": {"chat": 5},
    "adp_samples/android_in_the_wild.json": {"screen_step": 3},
    "adp_samples/code_feedback.json": {"chat": 10},
    "adp_samples/codeactinstruct.json": {"chat": 5},
    "adp_samples/eto.json": {"sharegpt": 3},
    "adp_samples/llava_plus.json": {"sharegpt": 3},
    "adp_samples/nnetnav-wa.json": {"chat_step": 68},
    "adp_samples/omniact.json": {"screen_script": 3},
    "adp_samples/swe-gym_openhands_sampled_trajectories.r0-2.json": {"chat": 3},
    "adp_samples/swe-smith.json": {"chat": 5},
    "adp_samples/synatra.json": {"web_program": 5},
    "adp_samples/turkingbench.json": {"form_answer": 3},
    "adp_samples/webarena_successful.json": {"web_states": 3},
    "fireact_hotpotqa/gpt-3.5-turbo-0613.json": {"react_chat": 465},
    "fireact_hotpotqa/llama-2-13b.json": {"react_text": 499},
    "toolalpaca_eval/ToolAlpaca7b.json": {"toolalpaca_eval": 99},
    "toolbench_dfs/G1_10_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 1},
    "toolbench_dfs/G1_11_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 1},
    "toolbench_dfs/G1_57_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 4},
    "toolbench_dfs/G1_59_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 1},
    "toolbench_dfs/G1_69_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 9},
    "toolbench_dfs/G2_102_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 1},
    "toolbench_dfs/G2_10_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 14},
    "toolbench_dfs/G2_119_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 12},
    "toolbench_dfs/G2_127_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 3},
    "toolbench_dfs/G2_52_ChatGPT_DFS_woFilter_w2.json": {"toolbench": 15},
    "tau_bench_few_shot/airline.jsonl": {"messages_display": 19},
    "tau_bench_few_shot/retail.jsonl": {"messages_display": 69},
}


def read(path: Path) -> list[tuple[bytes, str | None]]:
    """The records of a file as (bytes, key)."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if ".jsonl" in path.name:
        return [(line, None) for line in content.splitlines()]
    value = json.loads(content)
    if isinstance(value, list):
        return [(json.dumps(each).encode(), None) for each in value]
    if "tree" in value:  # ToolBench: one run a file
        return [(content, None)]
    return [
        (json.dumps(each).encode(), key)
        for key, under in value.items()
        for each in (under if isinstance(under, list) else [under])
    ]


def parse(records: list[tuple[bytes, str | None]]) -> list[dict[str, Any]]:
    nothing = pa.array([None] * len(records), pa.string())
    rows = parse_records(
        pa.array([raw for raw, _ in records], pa.binary()),
        pa.array([key for _, key in records], pa.string()),
        nothing,
        nothing,
    )
    return list(rows.to_pylist())


def parsed_file(path: Path) -> Iterator[tuple[Any, str | None, dict[str, Any]]]:
    """Each record that was not refused, its key, and its row."""
    records = read(path)
    for (raw, key), row in zip(records, parse(records), strict=True):
        if row["refusal"] is None:
            yield json.loads(raw), key, row


def sample_files() -> list[Path]:
    """Those of this project; whoever uses it has more sources beside them."""
    return sorted(
        path
        for source in SAMPLE_FORMATS
        for path in (SAMPLES / source).rglob("*")
        if path.is_file()
    )


def real_files(shared: Path) -> list[Path]:
    return sorted((shared / "raw").rglob("*.json*"))


def test_samples_are_parsed_but_for_those_made_to_be_refused() -> None:
    formats: dict[str, Counter[str]] = {}
    refused: dict[str, list[str]] = {}
    for path in sample_files():
        source = path.relative_to(SAMPLES).parts[0]
        for row in parse(read(path)):
            if row["refusal"]:
                refused.setdefault(source, []).append(row["refusal"]["reason"])
            else:
                formats.setdefault(source, Counter())[row["format"]] += len(row["trajectories"])
    assert formats == SAMPLE_FORMATS
    assert refused == SAMPLE_REFUSED


def test_samples_hold_one_duplicate_and_stay_small() -> None:
    hashes = Counter(
        trajectory["content_sha256"]
        for path in sample_files()
        for _, _, row in parsed_file(path)
        for trajectory in row["trajectories"]
    )
    assert sorted(hashes.values())[-2:] == [1, 2]
    assert sum(path.stat().st_size for path in sample_files()) < 150_000


def test_real_files_are_of_the_formats_a_reader_sees(shared: Path) -> None:
    found = {}
    for path in real_files(shared):
        formats = Counter[str]()
        for row in parse(read(path)):
            formats[row["format"]] += len(row["trajectories"] or ())
        del formats[None]
        if formats:
            found[str(path.relative_to(shared / "raw"))] = formats
    assert found == REAL_FORMATS


def test_real_records_of_other_formats_are_refused_with_their_keys(shared: Path) -> None:
    for path in real_files(shared):
        records = read(path)
        for (raw, _), row in zip(records, parse(records), strict=True):
            if row["refusal"] is None:
                continue
            assert row["refusal"]["reason"] == "unknown_format", path.name
            record = json.loads(raw)
            first = record if isinstance(record, dict) else record[0]
            assert next(iter(first)) in row["refusal"]["detail"]


def test_fireact_has_a_step_for_every_observation(shared: Path) -> None:
    folder = shared / "raw" / "fireact_hotpotqa"
    for record, key, row in parsed_file(folder / "llama-2-13b.json"):
        (trajectory,) = row["trajectories"]
        seen = sum(line.startswith("Observation:") for line in record["traj_by_line"])
        assert len(trajectory["steps"]) == seen, key
        assert all(len(step["observations"]) == 1 for step in trajectory["steps"])
        check_fireact(record, key, trajectory)
    for record, key, row in parsed_file(folder / "gpt-3.5-turbo-0613.json"):
        (trajectory,) = row["trajectories"]
        said = [turn["content"] for turn in record["traj"] if turn["role"] == "assistant"]
        assert [step["output"] for step in trajectory["steps"]] == said, key
        assert trajectory["user_query"] == record["traj"][0]["content"]
        check_fireact(record, key, trajectory)


def check_fireact(record: Any, key: str | None, trajectory: dict[str, Any]) -> None:
    kept = json.loads(trajectory["other_information"])
    assert trajectory["task_id"] == key
    assert trajectory["score"] == float(record["reward"])
    assert (kept["em"], kept["f1"]) == (record["em"], record["f1"])
    assert trajectory["model_name"] is None
    assert "Observation" not in (trajectory["user_query"] or "Observation")


def test_both_fireact_models_were_asked_the_same(shared: Path) -> None:
    asked = [
        {key: row["trajectories"][0]["user_query"] for _, key, row in parsed_file(path)}
        for path in sorted((shared / "raw" / "fireact_hotpotqa").glob("*.json"))
    ]
    both = asked[0].keys() & asked[1].keys()
    assert len(both) > 400
    assert all(asked[0][key].strip() == asked[1][key].strip() for key in both)


def test_openhands_calls_are_paired_with_their_results(shared: Path) -> None:
    (path,) = (shared / "raw" / "adp_samples").glob("swe-gym_openhands*")
    for record, _, row in parsed_file(path):
        (trajectory,) = row["trajectories"]
        assert trajectory["score"] == float(record["resolved"])
        assert trajectory["task_id"] == record["instance_id"]
        assert len(json.loads(trajectory["tools"])) == 3
        calls = 0
        for step in trajectory["steps"]:
            made = [(call["call_id"], call["name"]) for call in step["tool_calls"]]
            seen = [(each["call_id"], each["name"]) for each in step["observations"]]
            calls += len(made)
            # The last call is `finish`, which answers nothing.
            assert seen == made or (step is trajectory["steps"][-1] and made[0][1] == "finish")
        assert calls == sum(len(turn["tool_calls"] or []) for turn in record["messages"])


@pytest.mark.parametrize("where", ["samples", "real"])
def test_every_conversation_comes_back_exactly(where: str, request: pytest.FixtureRequest) -> None:
    for path in files(where, request):
        for record, key, row in parsed_file(path):
            for trajectory in row["trajectories"]:
                layout = json.loads(trajectory["other_information"]).get("_layout", {})
                source = source_of(row["format"], record, trajectory, layout)
                assert to_source(row["format"], trajectory) == source, (path.name, key)
                if row["format"] in ("chat", "react_chat"):
                    assert to_messages(row["format"], trajectory) == source


def source_of(name: str, record: Any, trajectory: Any, layout: Any) -> Any:
    """What `to_source` has to give: mostly the field that the run was in."""
    if name in ("toolbench", "toolbench_answer", "openassistant"):
        if layout["field"] == "conversation":
            return record["answer_generation"]["train_messages"][-1]
        branch = json.loads(trajectory["other_information"])["branch"]
        first, below = {
            "toolbench": (lambda: record["tree"]["tree"]["children"], "children"),
            "toolbench_answer": (lambda: record["answer"]["answer_details"], "next"),
            "openassistant": (lambda: [record["prompt"]], "replies"),
        }[name]
        nodes, path = first(), []
        for number in map(int, branch["id"].split(".")):
            node = nodes[number]
            path.append({key: value for key, value in node.items() if key != below})
            nodes = node[below]
        return path
    if name == "chat_step":
        return [{name: record[name] for name in ("messages", "prompt", "output")}]
    if name in SINGLE_STEPS:
        return SINGLE_STEPS[name](record)
    if name == "api_bank_task":
        return {key: record[key] for key in ("requirement", "apis", "response")}
    if name == "weblinx_step":
        shown = ("turn", "clean_html", "utterances", "viewport", "candidates", "action")
        return [{key: record[key] for key in shown}]
    if name == "screen_step":
        return [record]
    if name in ("toolalpaca_eval", "function_calls"):
        return record["input" if name == "toolalpaca_eval" else "answers"]
    if name == "instruction":
        answers = ("instruction", "input", "output", "expected_output")
        return {key: record[key] for key in answers if key in record}
    return record if isinstance(record, list) else record[layout.get("field", "messages")]


@pytest.mark.parametrize("where", ["samples", "real"])
def test_every_leaf_of_a_record_is_in_its_row(where: str, request: pytest.FixtureRequest) -> None:
    for path in files(where, request):
        for record, key, row in parsed_file(path):
            there = Counter[str]()
            for trajectory in row["trajectories"]:
                there += leaves(to_source(row["format"], trajectory))
                there += leaves(json.loads(trajectory["other_information"]))
                there += leaves(json.loads(trajectory["tools"] or "[]"))
                there += leaves([trajectory[name] for name in COLUMNS])
                there += leaves([trajectory["tools"]])  # as text, where the source has it so
                there += leaves([step["input"] for step in trajectory["steps"]])
            fields = record.values() if isinstance(record, dict) else record
            missing = leaves(list(fields)) - there
            # A verdict of true is the score 1.0. The names of fields that became columns go.
            if isinstance(record, dict) and trajectory["score"] is not None:
                missing -= leaves([record.get(name) for name in VERDICTS])
            for name in STRUCTURE.get(row["format"], ()):
                del missing[name]
            assert not missing, (path.name, key, list(missing)[:3])


# What of a record that is one step is in its columns.
SINGLE_STEPS: dict[str, Any] = {
    "web_program": lambda record: record,
    "screen_script": lambda record: record["task"],
    "form_answer": lambda record: record["Answer"],
    "mind2web_step": lambda record: [record["operation"]],
}
# Keys that only hold the record together, or that became columns.
STRUCTURE = {
    "toolbench": ("children", "function", "query", "train_messages"),
    "toolbench_answer": ("answer_details", "next"),
    "openassistant": ("replies",),
    "atif": ("ATIF-v1.7", "model_name", "tool_definitions"),
    "screen_script": ("task",),
    "form_answer": ("_id", "Answer", "Description"),
    "web_states": ("intent",),
    "screen_lists": ("goal", "episode_id"),
    "role_text": ("target",),
    "mind2web": ("confirmed_task", "annotation_id"),
    "mind2web_step": ("confirmed_task", "annotation_id", "cleaned_html"),
    "weblinx": ("shortcode",),
    "weblinx_step": ("demo",),
    "step_dicts": ("task_description", "instruction", "goal"),
}
VERDICTS = ("reward", "resolved", "win", "target")
COLUMNS = ("user_query", "system_prompt", "task_id", "model_name", "score")


def leaves(value: Any) -> Counter[str]:
    """Texts, numbers and keys; a number and the same number as text are one."""
    match value:
        case dict():
            return sum((leaves(item) for item in value.values()), Counter(value.keys()))
        case list():
            return sum((leaves(item) for item in value), Counter())
        case str():
            return Counter([value])
        case _:
            return Counter([json.dumps(value)])


def files(where: str, request: pytest.FixtureRequest) -> list[Path]:
    return sample_files() if where == "samples" else real_files(request.getfixturevalue("shared"))


def test_displayed_samples_are_turns_too() -> None:
    path = next(path for path in sample_files() if path.parent.name == "retail_desk")
    for record, _, row in parsed_file(path):
        turns = to_messages("messages_display", row["trajectories"][0])
        shown = [f"{turn['role']}: {turn['content']}" for turn in turns]
        assert "\n".join(shown) == record["messages_display"]
