"""The layouts of exports: for whom each is, what a row of it is, and what becomes of step masks.

`LAYOUTS` is the whole list; the command's help, the dataset cards and the manifests are made from
it. What a layout does with rows is a pure function in `orchestration.export.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from orchestration.export import rows

# What the rows of a layout are made from, one each: a position of the plan, a trajectory of the
# plan (once, however often the plan repeats it), or a preference pair.
Unit = Literal["position", "trajectory", "pair"]


@dataclass(frozen=True)
class Layout:
    """One layout.

    * `made_from` is the unit that rows are made from, `columns` which of its columns.
    * `make` turns those columns into rows and counts what it had to change. An Arrow table goes
      to Parquet, a list of records to JSON lines.
    * `size`: how many times a unit's text a row's comes to (SQL over `sft_samples`).
    * `masks`: where the rows say what is not learned from. `is_mask_read`: whether the trainer
      that the layout is for goes by it.
    * `is_sharded`: false where the reader takes one file.
    * `files`: further files, from the recipe and the paths of the shards by split.
    * `features`: the types of JSON lines, for `datasets`, which else guesses them from the first.
    """

    name: str
    reader: str
    what: str
    made_from: Unit
    columns: tuple[str, ...]
    make: Callable[[pa.Table], tuple[pa.Table | list[rows.Record], rows.Noted]]
    described: Mapping[str, str]
    masks: str
    is_mask_read: bool = True
    extension: Literal["parquet", "jsonl"] = "parquet"
    is_sharded: bool = True
    size: str = "1"
    files: Callable[[str, Mapping[str, list[str]]], Mapping[str, Any]] = lambda recipe, paths: {}
    features: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def _dataset_info(recipe: str, paths: Mapping[str, list[str]]) -> Mapping[str, Any]:
    """LLaMA-Factory's list of data sets: the training split by the recipe's name."""
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
    }
    return {
        "dataset_info.json": {
            recipe if split == "train" else f"{recipe}_{split}": {
                "file_name": path,
                "formatting": "sharegpt",
                "columns": columns,
                "tags": tags,
            }
            for split, (path,) in paths.items()
        }
    }


_PLACE = {
    "position": "place in the order of training, from 0, over all epochs",
    "epoch": "from 1",
    "trajectory_id": "the trajectory; it comes again where the plan repeats it",
    "source": "where the trajectory came from",
}
_MESSAGES = {
    "messages": "the conversation in OpenAI's chat shape; arguments of calls are JSON text",
}
_TOOLS = {"tools": "JSON array of the functions that the agent had; null where unknown"}
_WEIGHT = {"weight": "factor of the sample's loss"}
_PAIR = {
    "position": "place among the pairs, from 0",
    "pair_id": "the pair, as in `preference_pairs`",
    "level": "`trajectory` (whole runs) or `step` (the same beginning, then two ways on)",
    "task_key": "the task that both runs are at",
    "source": "where the chosen run came from",
    "chosen_id, rejected_id": "the two trajectories",
    "margin_on": "the score by which one is better: `score` or `rater_score`",
    "chosen_value, rejected_value": "that score of each",
    "weight": "factor of the pair's loss",
}
_CONTINUATIONS = {
    "prompt": "messages up to where the two differ, the chosen run's",
    "chosen, rejected": "the messages from there to the last output",
    **_TOOLS,
    "chosen_loss_flags, rejected_loss_flags": "one per message, as in the layout `sft`",
}
_CONTINUATION_NOTES = {
    "pairs_whose_prompts_differ": "pairs whose rejected run was asked in other words"
}
_PAIR_COLUMNS = (
    *rows.PAIR_COLUMNS,
    "prefix_steps",
    "chosen_last_step",
    "rejected_last_step",
    "chosen_messages",
    "chosen_steps",
    "chosen_flags",
    "rejected_messages",
    "rejected_steps",
    "rejected_flags",
    "tools",
)
_TRAJECTORY_COLUMNS = (
    "trajectory_id",
    "user_query",
    "system_prompt",
    "tools",
    "task_id",
    "model_name",
    "score",
    "steps",
    "other_information",
    "trained_steps",
)

_TEXT: Mapping[str, Any] = {"dtype": "string"}
_JSON: Mapping[str, Any] = {"dtype": "json"}


def _features(**types: Any) -> tuple[Mapping[str, Any], ...]:
    """Types of fields as a dataset card has them."""
    return tuple(
        {"name": name} | ({"list": kind} if isinstance(kind, list) else dict(kind))
        for name, kind in types.items()
    )


def _interchange(name: str, reader: str, place: str, features: Any, described: Any) -> Layout:
    return Layout(
        name=name,
        reader=reader,
        what="a trajectory, once",
        made_from="trajectory",
        columns=_TRAJECTORY_COLUMNS,
        make=partial(rows.interchange, name),
        described=described,
        masks=f"`is_trainable` of the step in `{place}.trajlake`, which Trajlake reads",
        extension="jsonl",
        features=features,
    )


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="sft",
            reader="`train.sft`, anything",
            what="a position of the plan: messages with tools",
            made_from="position",
            columns=rows.SFT_COLUMNS,
            make=rows.sft,
            described=_PLACE
            | _MESSAGES
            | _TOOLS
            | {"loss_flags": "one per message: true where it is learned from"}
            | _WEIGHT,
            masks="`loss_flags`",
        ),
        Layout(
            name="prompt_chosen",
            reader="FIG. 9A's loaders",
            what="an output of a position of the plan: all before it, and the output, as texts",
            made_from="position",
            columns=(*rows.SFT_COLUMNS, "message_steps"),
            make=rows.prompt_chosen,
            size="greatest(1, len(list_filter(loss_flags, lambda flag: flag)))",
            described=_PLACE
            | {
                "step_id": "the step whose output is learned",
                "prompt": "system prompt, inputs, `Action: ` outputs, `Observation: ` texts so far",
                "chosen": "the output; calls follow its text as a JSON list",
            }
            | _TOOLS
            | _WEIGHT,
            masks="an output that is not learned from has no row",
        ),
        Layout(
            name="pairs",
            reader="`train.dpo`",
            what="a preference pair: prompt, chosen and rejected messages, tools, masks",
            made_from="pair",
            columns=_PAIR_COLUMNS,
            make=rows.dpo,
            described=_PAIR | _CONTINUATIONS,
            masks="`chosen_loss_flags`, `rejected_loss_flags`",
            notes=_CONTINUATION_NOTES,
        ),
        Layout(
            name="dpo",
            reader="TRL's DPOTrainer",
            what="a preference pair: prompt, chosen and rejected messages, tools",
            made_from="pair",
            columns=_PAIR_COLUMNS,
            make=rows.dpo,
            described=_PAIR | _CONTINUATIONS,
            masks="`chosen_loss_flags`",
            is_mask_read=False,
            notes=_CONTINUATION_NOTES,
        ),
        Layout(
            name="reward",
            reader="TRL's RewardTrainer",
            what="a preference pair: two runs from their beginning, and their scores",
            made_from="pair",
            columns=_PAIR_COLUMNS,
            make=rows.reward,
            described=_PAIR
            | {"chosen, rejected": "the two runs, from their beginning to the last output"}
            | _TOOLS,
            masks="none are needed: a reward model learns no output",
        ),
        _interchange(
            "agentohana",
            "AgentOhana's tools",
            "other information",
            _features(
                **{
                    "user query": _TEXT,
                    "model name": _TEXT,
                    "score": _TEXT,
                    "other information": _JSON,
                    "steps": _JSON,
                }
            ),
            {
                "user query": "what the user asked",
                "model name": "who answered; null where unknown",
                "score": "the environment's score, as text",
                "steps": "`input`, `output`, `step_id` and `next observation` of each step",
                "other information": "all else, and what the shape has no place for",
            },
        ),
        _interchange(
            "atif",
            "Harbor",
            "extra",
            _features(
                schema_version=_TEXT, session_id=_TEXT, agent=_JSON, steps=_JSON, extra=_JSON
            ),
            {
                "schema_version": "ATIF's version",
                "session_id": "the task's id, where it has one",
                "agent": "name, version, model and tools of the agent",
                "steps": "what was said, called and observed",
                "extra": "score, other information, and what ATIF has no place for",
            },
        ),
        _interchange(
            "adp",
            "the Agent Data Protocol's converters",
            "details",
            _features(schema_version=_TEXT, id=_TEXT, content=_JSON, details=_JSON),
            {
                "schema_version": "ADP's version",
                "id": "the task's id; empty where it has none",
                "content": "actions and observations",
                "details": "model, tools, score, other information, and what ADP has no place for",
            },
        ),
        Layout(
            name="sharegpt",
            reader="LLaMA-Factory",
            what="a position of the plan: from/value turns, with `dataset_info.json`",
            made_from="position",
            columns=rows.SFT_COLUMNS,
            make=rows.sharegpt,
            described={
                "conversations": "turns `from` human, gpt, function_call or observation",
                "system": "the system prompt; empty where there is none",
                "tools": "JSON array of the agent's functions; empty where unknown",
            }
            | _PLACE
            | _WEIGHT,
            masks="`loss` of each turn",
            is_mask_read=False,
            extension="jsonl",
            is_sharded=False,
            files=_dataset_info,
            features=_features(
                conversations=[
                    {"name": "from", "dtype": "string"},
                    {"name": "value", "dtype": "string"},
                    {"name": "loss", "dtype": "bool"},
                ],
                system=_TEXT,
                tools=_TEXT,
                position={"dtype": "int64"},
                epoch={"dtype": "int32"},
                trajectory_id=_TEXT,
                source=_TEXT,
                weight={"dtype": "float64"},
            ),
            notes={
                "joined_turns": "turns in one with the turn before, behind an empty line",
                "empty_turns": "empty turns, where two outputs followed one another",
                "turns_after_the_last_output": "conversations without what came after the last "
                "output",
                "calls_beside_text": "calls between `<tool_call>` marks, with text before them",
            },
        ),
        Layout(
            name="axolotl",
            reader="axolotl's chat_template",
            what="a position of the plan: messages that say whether they are learned from",
            made_from="position",
            columns=rows.SFT_COLUMNS,
            make=rows.axolotl,
            described=_PLACE
            | {"messages": f"{_MESSAGES['messages']}; `train` says what is learned from"}
            | _TOOLS
            | _WEIGHT,
            masks="`train` of each message",
            notes={
                "arguments_that_are_no_json": "arguments of calls that were no JSON and are now "
                "the JSON text of themselves"
            },
        ),
        Layout(
            name="openai",
            reader="OpenAI's fine-tuning",
            what="a position of the plan: messages with weights, and tools",
            made_from="position",
            columns=rows.SFT_COLUMNS,
            make=rows.openai,
            described={
                "messages": "the conversation; `weight` of an answer is 1 where it is learned from",
                "tools": "the functions that the agent had; missing where unknown",
            },
            masks="`weight` of each answer",
            extension="jsonl",
            is_sharded=False,
            features=_features(messages=_JSON, tools=_JSON),
            notes={
                "tool_turns_told_by_the_user": "turns of tools that answer no call, told by the "
                "user"
            },
        ),
    )
}
