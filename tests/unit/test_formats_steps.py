"""Formats that tell what was seen and what was done: each reads its step, and gives it back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from udfs.errors import RefusedRecord
from udfs.formats import Options, detect, format_named
from udfs.formats.arrow import merge_parts, part_groups
from udfs.formats.trajectory import Observation, ToolCall, Trajectory

IMAGE = "iVBORw0KGgo" + base64.b64encode(bytes(range(256)) * 2).decode()

WEB_STATES: dict[str, Any] = {
    "task_id": 3,
    "intent": "Which kite sells best?",
    "trajectory": [
        {"url": "http://shop/admin", "axtree": "[1] RootWebArea 'Dashboard'", "screenshot": IMAGE},
        {
            "metadata": {"cot": "I open the list of best sellers."},
            "action": {"action_name": "click", "element_id": "12"},
        },
        {"url": "http://shop/best", "axtree": "[1] RootWebArea 'Best sellers of the shop'"},
        {"metadata": {"cot": ""}, "action": {"action_name": "stop", "answer": "The red one"}},
    ],
}
MIND2WEB: dict[str, Any] = {
    "annotation_id": "a1",
    "website": "kites",
    "confirmed_task": "Buy a red kite.",
    "action_reprs": ["[link]  Kites -> CLICK", "[textbox]  Colour -> TYPE: red"],
    "actions": [
        {
            "action_uid": f"u{number}",
            "cleaned_html": f"<html backend_node_id='1'>page {number}</html>",
            "raw_html": f"<html><body>page {number}</body></html>",
            "operation": {"op": op, "original_op": op, "value": value},
            "pos_candidates": [{"tag": "a", "backend_node_id": "9"}],
            "neg_candidates": [{"tag": "div", "backend_node_id": "3"}],
        }
        for number, (op, value) in enumerate((("CLICK", ""), ("TYPE", "red")))
    ],
}
STEP_DICTS: dict[str, Any] = {
    "task_id": "shop-9",
    "instruction": "Buy a red kite under 20 dollars.",
    "reward": 0.5,
    "trajectory": [
        {"observation": "You are on the search page.", "action": "search[red kite]", "done": False},
        {
            "observation": "1. Red kite, 12 dollars",
            "thought": "It is cheap enough.",
            "action": "click[Buy Now]",
            "next_observation": "Thank you for buying the kite.",
        },
    ],
}
SWE_AGENT: dict[str, Any] = {
    "environment": "swe_main",
    "info": {"exit_status": "submitted", "submission": "diff --git a/kite.py"},
    "trajectory": [
        {
            "response": "I list the files.\n```\nls\n```",
            "thought": "I list the files.",
            "action": "ls\n",
            "observation": "kite.py and the string.py",
            "state": '{"open_file": "n/a"}',
            "query": [{"role": "user", "content": "The kite falls. Please find out why."}],
        },
        {"response": "Done.", "thought": "Done.", "action": "submit", "observation": None},
    ],
    "history": [
        {"role": "system", "content": "You fix bugs.", "agent": "main"},
        {"role": "user", "content": "The kite falls. Please find out why.", "agent": "main"},
        {"role": "assistant", "content": "I list the files.\n```\nls\n```", "agent": "main"},
        {"role": "user", "content": "kite.py and the string.py\n(Open file: n/a)"},
        {
            "role": "assistant",
            "content": "Done.",
            "tool_calls": [{"id": "c2", "function": {"name": "submit", "arguments": "{}"}}],
        },
    ],
}
OPENHANDS: dict[str, Any] = {
    "instance_id": "kite-17",
    "history": [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "You fix bugs."}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "The kite falls."}},
        {"id": 2, "source": "environment", "observation": "agent_state_changed", "content": ""},
        {
            "id": 3,
            "source": "agent",
            "action": "run",
            "message": "Running command: ls",
            "args": {"command": "ls", "thought": "I look around."},
            "tool_call_metadata": {"tool_call_id": "call_1", "function_name": "execute_bash"},
        },
        {"id": 4, "source": "agent", "action": "think", "args": {"thought": "Perhaps the wind?"}},
        {
            "id": 5,
            "source": "agent",
            "cause": 3,
            "observation": "run",
            "content": "kite.py is here",
        },
        {"id": 6, "source": "user", "action": "message", "args": {"content": "Well?"}},
        {"id": 7, "source": "agent", "action": "message", "args": {"content": "It was the wind."}},
        {"id": 8, "source": "user", "action": "message", "args": {"content": "Thanks."}},
    ],
}
WEB_PROGRAM = {
    "prompt": '# web page\nobservation = """[4] button"""\n\n# objective\nobjective = "Buy it."\n\n'
    "# past actions\ndef solve():\n\tpass",
    "response": 'click(element_id="4")',
}
SCREEN_SCRIPT = {
    "id": "train_0",
    "image": "shop/screen1.png",
    "task": "Task: Open the cart\nOutput Script:\npyautogui.click(1288.5,116.0)",
    "ocr": {"text": ["Home"], "value": [[143.0, 218.0]]},
    "box": {"label": ["cart"], "top_left": [[1, 2]], "bottom_right": [[3, 4]]},
}
FORM_ANSWER = {
    "_id": "Jokes__0",
    "Description": "Pick the better one.",
    "Template": "<p>${joke}</p><p>${other}</p><input name='best'>",
    "joke": "A kite walks in.",
    "model": "joke-writer-2",
    "Answer": {"best": "1"},
}
SCREEN_STEP = {
    "episode_id": "77",
    "episode_length": 4,
    "step_id": 2,
    "goal_info": "Open the camera",
    "current_activity": "launcher",
    "image/encoded": IMAGE,
    "image/ui_annotations_text": ["Fri", ""],
    "image/ui_annotations_ui_types": ["TEXT", "ICON_PLAY"],
    "image/ui_annotations_positions": [[0.07, 0.12, 0.01, 0.08], [0.9, 0.5, 0.1, 0.1]],
    "results/action_type": "dual-point gesture",
    "results/yx_touch": [0.9, 0.5],
}
CHAT_STEP = {
    "dataset": "shop_runs",
    "task_name": "shop_12",
    "messages": [
        {"role": "system", "content": "You click through a shop."},
        {
            "role": "user",
            "content": "PAGE\nOBJECTIVE: Buy it.\nPREVIOUS ACTIONS:\n1: None\n2: a\n3",
        },
        {"role": "assistant", "content": "```click [4]```"},
    ],
    "prompt": "<s>PAGE",
    "output": "```click [4]```</s>",
}
MIND2WEB_STEP = {key: value for key, value in MIND2WEB.items() if key != "actions"} | {
    "target_action_index": "1",
    "cleaned_html": "<html>page 1</html>",
    "operation": json.dumps({"op": "TYPE", "value": "red"}),
    "pos_candidates": [json.dumps({"tag": "input"})],
}

ELEMENT = {"tagName": "A", "xpath": 'id("k")/a[1]', "textContent": "Kites"}
WEBLINX: dict[str, Any] = {
    "shortcode": "kite1",
    "form": {"description": "Buy a kite", "tasks": ["Shopping"]},
    "replay": {
        "data": [
            {"type": "chat", "timestamp": 1.5, "speaker": "instructor", "utterance": "Hello."},
            {"type": "chat", "timestamp": 2.0, "speaker": "navigator", "utterance": "Hi."},
            {
                "type": "browser",
                "timestamp": 3.0,
                "state": {"page": None, "screenshot": None},
                "action": {
                    "intent": "load",
                    "arguments": {
                        "metadata": {"url": "https://kites.example/", "mouseX": 0},
                        "properties": {"transitionType": "typed"},
                    },
                },
            },
            {
                "type": "chat",
                "timestamp": 4.0,
                "speaker": "instructor",
                "utterance": "Please look at the kites.",
            },
            {
                "type": "browser",
                "timestamp": 5.0,
                "state": {"page": "page-1-0.html", "screenshot": "screenshot-1-0.png"},
                "action": {
                    "intent": "click",
                    "arguments": {
                        "metadata": {"url": "https://kites.example/", "mouseX": 7},
                        "properties": {"clientX": 7.0},
                        "element": ELEMENT | {"outerHTML": "<a>Kites</a>", "bbox": {"x": 1}},
                    },
                },
            },
            {
                "type": "browser",
                "timestamp": 6.0,
                "state": {"page": None, "screenshot": None},
                "action": {
                    "intent": "tabswitch",
                    "arguments": {
                        "metadata": {"url": ""},
                        "properties": {"tabId": 8, "tabIdOrigin": 7, "windowId": 1},
                    },
                },
            },
        ]
    },
}
WEBLINX_STEP: dict[str, Any] = {
    "demo": "kite1",
    "turn": 6,
    "action": 'click(uid="a1b2")',
    "action_history": 'say(speaker="navigator", utterance="Hi.")',
    "utterances": "[00:05] Please look at the kites. ;",
    "candidates": "(uid = a1b2) [[tag]] a [[text]] Kites",
    "clean_html": '(html(body(a data-webtasks-id="a1b2" Kites)))',
    "viewport": "746h x 1536w",
}
WEBLINX_SHOWN = ("turn", "clean_html", "utterances", "viewport", "candidates", "action")

CHAT_SOURCE = {name: CHAT_STEP[name] for name in ("messages", "prompt", "output")}

# Format → (record, what `to_source` has to give).
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "mind2web": (MIND2WEB, MIND2WEB["actions"]),
    "step_dicts": (STEP_DICTS, STEP_DICTS["trajectory"]),
    "swe_agent": (SWE_AGENT, SWE_AGENT["trajectory"]),
    "openhands": (OPENHANDS, OPENHANDS["history"]),
    "web_program": (WEB_PROGRAM, WEB_PROGRAM),
    "screen_script": (SCREEN_SCRIPT, SCREEN_SCRIPT["task"]),
    "form_answer": (FORM_ANSWER, FORM_ANSWER["Answer"]),
    "chat_step": (CHAT_STEP, [CHAT_SOURCE]),
    "mind2web_step": (MIND2WEB_STEP, [MIND2WEB_STEP["operation"]]),
    "weblinx": (WEBLINX, WEBLINX["replay"]),
    "weblinx_step": (WEBLINX_STEP, [{key: WEBLINX_STEP[key] for key in WEBLINX_SHOWN}]),
}
PARTS = {
    "screen_step": SCREEN_STEP,
    "chat_step": CHAT_STEP,
    "mind2web_step": MIND2WEB_STEP,
    "weblinx_step": WEBLINX_STEP,
}


def parse(record: Any, name: str | None = None) -> Trajectory:
    found = format_named(name) if name else detect(record)[0]
    (trajectory,) = found.parse(record, None, Options())
    return trajectory


@pytest.mark.parametrize("name", [*EXAMPLES, "web_states", "screen_step"])
def test_a_record_is_told_from_itself_and_refused_when_it_is_another(name: str) -> None:
    record = {**EXAMPLES, "web_states": (WEB_STATES,), "screen_step": (SCREEN_STEP,)}[name][0]
    assert detect(record)[0].name == name
    for other in ({}, [], "text", None, 3, {"messages": 1}):
        with pytest.raises(RefusedRecord):
            parse(other, name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_source_comes_back(name: str) -> None:
    record, source = EXAMPLES[name]
    assert format_named(name).to_source(parse(record)) == source


def test_states_before_actions_are_what_the_action_before_led_to() -> None:
    run = parse(WEB_STATES)
    first, second = run.steps
    assert (run.user_query, run.task_id) == ("Which kite sells best?", "3")
    assert first.input is not None
    assert first.input.startswith("Which kite sells best?\n\nhttp://shop/admin\n\n[1] Root")
    assert first.output == first.thought == "I open the list of best sellers."
    assert first.tool_calls == [ToolCall(None, "click", '{"element_id":"12"}')]
    assert [(seen.name, seen.content) for seen in first.observations] == [
        ("url", "http://shop/best"),
        ("axtree", "[1] RootWebArea 'Best sellers of the shop'"),
    ]
    assert (second.input, second.output, second.observations) == (None, None, [])


@pytest.mark.parametrize("record", [WEB_STATES, SCREEN_STEP])
def test_an_image_is_named_and_not_copied(record: Any) -> None:
    run = parse(record)
    told = json.dumps([run.steps, run.other_information])
    assert IMAGE not in told
    assert "raw:/" in told and ";sha256=" in told
    pointer = "/trajectory/0/screenshot" if record is WEB_STATES else "/image~1encoded"
    assert f"raw:{pointer};" in told


def test_mind2web_names_operation_and_element() -> None:
    run = parse(MIND2WEB)
    assert [step.output for step in run.steps] == MIND2WEB["action_reprs"]
    call = run.steps[1].tool_calls[0]
    assert (call.name, json.loads(call.arguments or "")["value"]) == ("TYPE", "red")
    assert json.loads(call.arguments or "")["pos_candidates"][0]["backend_node_id"] == "9"
    assert run.steps[0].observations[0].content == "<html backend_node_id='1'>page 1</html>"
    assert run.steps[1].observations == []


def test_weblinx_has_a_step_for_all_that_the_navigator_says_and_does() -> None:
    for record in (WEBLINX, WEBLINX["replay"], WEBLINX["replay"] | {"shortcode": "kite1"}):
        run = parse(record)
        assert detect(record)[0].name == "weblinx"
        assert [step.output for step in run.steps] == ["Hi.", None, None, None]
        assert [step.input for step in run.steps] == [
            "Hello.",
            None,
            "Please look at the kites.",
            None,
        ]
        calls = [(call.name, json.loads(call.arguments or "")) for call in run.steps[1].tool_calls]
        assert calls == [("load", {"url": "https://kites.example/"})]
        # The page was loaded before the instructor spoke of it.
        assert run.steps[1].observations == [
            Observation("environment", "page", None, "page-1-0.html"),
            Observation("environment", "screenshot", None, "screenshot-1-0.png"),
        ]
        (click,), (switch,) = (step.tool_calls for step in run.steps[2:])
        assert (click.name, json.loads(click.arguments or "")) == ("click", {"element": ELEMENT})
        assert json.loads(switch.arguments or "") == {"tabId": 8, "tabIdOrigin": 7}
    assert parse(WEBLINX).task_id == "kite1"
    assert parse(WEBLINX).other_information["form"] == WEBLINX["form"]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (
            {"type": "chat", "timestamp": 1, "speaker": "parrot", "utterance": "a"},
            "unexpected_item",
        ),
        ({"type": "browser", "timestamp": 1, "action": {"intent": 3}}, "unexpected_item"),
        ({"type": "chat", "timestamp": 1, "speaker": "instructor", "utterance": "a"}, "no_steps"),
    ],
)
def test_weblinx_turns_that_are_not_understood_are_refused(turn: Any, reason: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parse({"data": [turn]}, "weblinx")
    assert refused.value.reason == reason


def test_weblinx_rows_are_one_run_in_the_order_of_turns() -> None:
    later = WEBLINX_STEP | {"turn": 9, "action": "scroll(x=0, y=40)", "action_history": "click"}
    assert parse(WEBLINX_STEP).part_of == ("kite1", 6.0, None, False)
    made = merged(WEBLINX_STEP, later)  # type: ignore[arg-type]
    assert (made["task_id"], made["user_query"]) == ("kite1", WEBLINX_STEP["utterances"])
    assert [step["output"] for step in made["steps"]] == [WEBLINX_STEP["action"], later["action"]]
    shown = ("clean_html", "utterances", "viewport", "candidates")
    assert made["steps"][1]["input"] == "\n\n".join(later[name] for name in shown)
    assert "_missing_positions" not in json.loads(made["other_information"])
    assert format_named("weblinx_step").to_source(Trajectory.from_row(made)) == [
        {key: row[key] for key in WEBLINX_SHOWN} for row in (WEBLINX_STEP, later)
    ]
    for name, wrong in (("turn", "6"), ("action", None), ("demo", [])):
        with pytest.raises(RefusedRecord) as refused:
            parse(WEBLINX_STEP | {name: wrong}, "weblinx_step")
        assert refused.value.reason == "unexpected_step"


def test_a_mask_says_which_answers_are_trained_on() -> None:
    def run(*masks: bool | None) -> list[bool]:
        turns = [{"role": "user", "text": "a", "mask": False}]
        turns += [{"role": "ai", "text": "b"} | ({} if m is None else {"mask": m}) for m in masks]
        return [step.is_trainable for step in parse({"trajectory": turns}, "role_text").steps]

    assert run(True, False, None) == [True, False, True]
    assert run(False, False) == run(None, None) == [True, True]


def test_step_dicts_follow_the_order_in_which_they_are_written() -> None:
    run = parse(STEP_DICTS)
    assert run.score == 0.5
    assert run.steps[0].input == ("Buy a red kite under 20 dollars.\n\nYou are on the search page.")
    assert run.steps[1].output == "It is cheap enough.\nclick[Buy Now]"
    seen = [[each.content for each in step.observations] for step in run.steps]
    assert seen == [["1. Red kite, 12 dollars"], ["Thank you for buying the kite."]]
    after = [
        {"action": "look", "observation": "a drawer"},
        {"action": "open", "observation": "a kite"},
    ]
    run = parse(after)
    assert [(s.input, s.output, s.observations[0].content) for s in run.steps] == [
        (None, "look", "a drawer"),
        (None, "open", "a kite"),
    ]
    with pytest.raises(RefusedRecord, match="in front of the action"):
        parse([after[0], dict(reversed(after[1].items()))])


def test_parallel_lists_of_states_and_actions_are_steps() -> None:
    run = parse({"states": ["room", "drawer open", "kite"], "actions": ["open drawer", "look"]})
    assert [(s.input, s.output) for s in run.steps] == [("room", "open drawer"), (None, "look")]
    assert [s.observations[0].content for s in run.steps] == ["drawer open", "kite"]


def test_swe_agent_takes_prompt_and_calls_from_the_history() -> None:
    run = parse(SWE_AGENT)
    assert run.system_prompt == "You fix bugs."
    assert run.user_query == run.steps[0].input == "The kite falls. Please find out why."
    assert run.steps[0].output == SWE_AGENT["trajectory"][0]["response"]
    assert run.steps[0].thought == "I list the files."
    assert run.steps[0].tool_calls == []  # its action is in its text
    assert run.steps[0].observations[0].content == "kite.py and the string.py"
    assert run.steps[1].tool_calls == [ToolCall("c2", "submit", "{}")]
    assert run.other_information["info"] == SWE_AGENT["info"]


def test_openhands_events_are_paired_by_cause() -> None:
    run = parse(OPENHANDS)
    assert (run.system_prompt, run.user_query, run.task_id) == (
        "You fix bugs.",
        "The kite falls.",
        "kite-17",
    )
    assert [step.output for step in run.steps] == [
        "I look around.",
        "Perhaps the wind?",
        "It was the wind.",
    ]
    assert run.steps[0].tool_calls == [ToolCall("call_1", "run", '{"command":"ls"}')]
    # Seen after the thought, so it stands there, with the call that it answers.
    assert run.steps[1].observations == [
        Observation("environment", "run", "call_1", "kite.py is here")
    ]
    assert run.steps[2].input == "Well?"
    assert run.steps[2].observations == [Observation("user", None, None, "Thanks.")]
    moved = [
        {key: value for key, value in event.items() if key != "args"}
        | ({"extras": event["args"]} if "args" in event else {})
        for event in OPENHANDS["history"]
    ]
    assert parse({"trajectory": moved}).steps == run.steps
    pairs = [OPENHANDS["history"][1:2], OPENHANDS["history"][3:6:2]]
    assert [s.output for s in parse({"history": pairs}).steps] == ["I look around."]


def test_one_step_records_hold_all_that_was_seen() -> None:
    run = parse(WEB_PROGRAM)
    assert (run.user_query, run.steps[0].input) == ("Buy it.", WEB_PROGRAM["prompt"])
    run = parse(SCREEN_SCRIPT)
    assert run.steps[0].input == (
        'Open the cart\n\nshop/screen1.png\nocr "Home" [143.0,218.0]\nbox "cart" [1,2] [3,4]'
    )
    assert run.steps[0].output == "pyautogui.click(1288.5,116.0)"
    run = parse(FORM_ANSWER)
    assert run.steps[0].input == "<p>A kite walks in.</p><p>${other}</p><input name='best'>"
    assert (run.task_id, run.model_name, run.steps[0].output) == ("Jokes__0", None, '{"best":"1"}')
    assert run.other_information["model"] == "joke-writer-2"


@pytest.mark.parametrize("name", PARTS)
def test_parts_say_where_they_belong(name: str) -> None:
    part = parse(PARTS[name]).part_of
    assert part is not None
    assert {
        "screen_step": ("77", 2.0, 4, True),
        "chat_step": ("shop_runs/shop_12", 1.0, None, False),
        "mind2web_step": ("a1", 1.0, 2, True),
        "weblinx_step": ("kite1", 6.0, None, False),
    }[name] == part


def test_only_parts_have_a_group() -> None:
    records = [*PARTS.values(), *(record for record, _ in EXAMPLES.values())]
    raw = [json.dumps(record).encode() for record in records]
    raw += [b"", b'{"episode_id": 1}', raw[0].replace(b'"episode_id"', b'"\\u0065pisode_id"')]
    nothing = pa.array([None] * len(raw), pa.string())
    groups = part_groups(pa.array(raw, pa.binary()), nothing, nothing, nothing).to_pylist()
    found = [group and group["format"] for group in groups]
    wanted = [*PARTS, *(name if name in PARTS else None for name in EXAMPLES)]
    assert found == [*wanted, None, None, "screen_step"]


def merged(*parts: Trajectory) -> dict[str, Any]:
    from udfs.formats.arrow import parse_records  # rows as SQL hands them over

    raw = pa.array([json.dumps(part).encode() for part in parts], pa.binary())
    nothing = pa.array([None] * len(parts), pa.string())
    rows = [
        row["trajectories"][0] for row in parse_records(raw, nothing, nothing, nothing).to_pylist()
    ]
    from udfs.schema import TRAJECTORY

    out = merge_parts(pa.array([rows, None, []], pa.list_(TRAJECTORY)))
    out.validate(full=True)
    assert out.type == TRAJECTORY
    made, none, empty = out.to_pylist()
    assert none is empty is None
    return dict(made)


def test_merged_parts_are_one_run_with_nothing_lost() -> None:
    rows: Any = [SCREEN_STEP | {"step_id": n, "image/encoded": f"{n}.png"} for n in (0, 1, 3)]
    made = merged(*rows)
    assert [step["step_id"] for step in made["steps"]] == [1, 2, 3]
    inputs = [step["input"] for step in made["steps"]]
    assert inputs[0].startswith('Open the camera\n\nlauncher\n0.png\nTEXT "Fri" [0.07')
    # What was seen after a gap is no consequence of the step before it.
    assert inputs[1] is None and inputs[2].startswith("launcher\n3.png")
    assert [step["next_observation"] is None for step in made["steps"]] == [False, True, True]
    kept = json.loads(made["other_information"])
    assert kept["_missing_positions"] == [2]
    assert kept["current_activity"] == "launcher"
    assert [part["image/encoded"] for part in kept["_parts"]] == ["0.png", "1.png", "3.png"]
    run = Trajectory.from_row(made)
    assert format_named("screen_step").to_source(run) == rows


def test_columns_that_parts_disagree_on_are_kept_for_each() -> None:
    later: Any = CHAT_STEP | {"reward": 1.0, "model": "b"}
    made = merged(CHAT_STEP | {"reward": 0.0, "model": "a"}, later)  # type: ignore[arg-type]
    assert (made["score"], made["model_name"]) == (None, "a")
    parts = json.loads(made["other_information"])["_parts"]
    assert [part.get("_columns") for part in parts] == [
        {"score": 0.0},
        {"model_name": "b", "score": 1.0},
    ]
    assert format_named("chat_step").to_source(Trajectory.from_row(made)) == [CHAT_SOURCE] * 2


# File → (record or group, steps), counted by hand in the file: rows of a run, items with an
# action, records that are one step.
COUNTED = {
    "nnetnav-wa.json": {
        "webarena_NNetNav_Bof3/webarena_openended_5777": 9,
        "webarena_NNetNav_Bof3/webarena_openended_529": 4,
        "webarena_NNetNav_Bof3/webarena_openended_943": 25,
    },
    "android_in_the_wild.json": {"12172380859428428757": 3},
}


@pytest.mark.parametrize("name", COUNTED)
def test_real_rows_make_the_runs_that_a_reader_counts(shared: Path, name: str) -> None:
    records = json.loads((shared / "raw" / "adp_samples" / name).read_text())
    groups: dict[str, list[Any]] = {}
    for record in records:
        part = parse(record).part_of
        assert part is not None
        groups.setdefault(part.group_key, []).append((part.position, record))
    for key, steps in COUNTED[name].items():
        rows = [row for _, row in sorted(groups[key], key=lambda each: each[0])]
        made = merged(*rows)
        assert len(made["steps"]) == steps == len(rows)
        assert [position for position, _ in groups[key]] == list(range(steps))
        if name.startswith("android"):
            assert json.loads(made["other_information"])["_missing_positions"] == [3, 4, 5, 6, 7, 8]
            assert rows[0]["image/ui_annotations_text"][0] in made["steps"][0]["input"]


def test_real_states_make_the_steps_that_a_reader_counts(shared: Path) -> None:
    path = shared / "raw" / "adp_samples" / "webarena_successful.json"
    runs = [parse(record) for record in json.loads(path.read_text())]
    assert [len(run.steps) for run in runs] == [1, 2, 1]
    assert [call.name for step in runs[1].steps for call in step.tool_calls] == ["click", "stop"]
    assert [seen.name for seen in runs[1].steps[0].observations] == [
        "url",
        "axtree",
        "screenshot_path",
    ]
