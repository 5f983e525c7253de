"""What rows are made from: the plan's positions, its trajectories, or preference pairs.

Each is SQL over the lake's tables, of which `orchestration.export.writing` makes one ordered stream
of Arrow batches, whatever the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestration.export.layouts import Unit

# What a row takes beside its text.
_ROW_OVERHEAD = 256


@dataclass(frozen=True)
class Source:
    """One kind of unit.

    * `root` is the table whose newest version decides, `reads` all tables that are read.
    * `measured`: a query with `split`, `position`, what names the unit, and `characters`, about
      how long its row is; `{size}` is the layout's factor.
    * `joined`: how the rest is joined to that, which is called `cuts`.
    * `columns`: columns that are no plain column of it, by SQL. `masked` is how many outputs of
      the unit (of a pair, of its chosen continuation) the recipe does not learn from.
    * `counted`: units by `split` and `source`; `licensed`: trajectories by `license`.
    * `identity` names a unit in the checksum of the order.
    """

    what: str
    root: str
    reads: tuple[str, ...]
    identity: str
    measured: str
    joined: str
    counted: str
    licensed: str
    columns: Mapping[str, str] = field(default_factory=dict)


# What a recipe says of the trajectory to the model begins the system prompt. Where there is none
# it is one, from which nothing is learned.
_PREFIXED_MESSAGES = """
    case
        when metadata_prefix is null then messages
        when messages[1].role = 'system' then list_prepend(
            struct_update(
                messages[1],
                content := concat(metadata_prefix, chr(10), chr(10), messages[1].content)
            ),
            messages[2:]
        )
        else list_prepend(
            {
                'role': 'system',
                'content': metadata_prefix,
                'tool_calls': null,
                'tool_call_id': null,
                'name': null
            },
            messages
        )
    end
"""


def _with_prefix(column: str, value: str) -> str:
    """A list of one value per message, with one for the system prompt that a prefix may add."""
    return f"""
    case
        when metadata_prefix is not null and messages[1].role <> 'system'
            then list_prepend({value}, {column})
        else {column}
    end
    """


_POSITION = Source(
    what="training plan",
    root="training_plan",
    reads=(
        "training_plan",
        "sft_samples",
        "conversations",
        "recipe_settings",
        "quota_settings",
        "curated_trajectories",
    ),
    identity="trajectory_id",
    measured=f"""
        select
            training_plan.split, position, epoch, trajectory_id,
            (4 * estimated_tokens + {_ROW_OVERHEAD}) * {{size}} as characters,
        from training_plan
        inner join sft_samples using (recipe, trajectory_id)
        where recipe = $recipe
    """,
    joined="""
        inner join (select * exclude (split) from sft_samples where recipe = $recipe)
            using (trajectory_id)
        inner join conversations using (trajectory_id)
    """,
    counted="""
        select
            split, source,
            max(epoch) as epochs,
            count(*) as positions,
            count(distinct trajectory_id) as trajectories,
        from training_plan
        where recipe = $recipe
        group by split, source
        order by split desc, source
    """,
    licensed="""
        select coalesce(license, 'unknown') as license, count(*) as trajectories
        from sft_samples
        where
            recipe = $recipe
            and trajectory_id in (select trajectory_id from training_plan where recipe = $recipe)
        group by all
        order by license
    """,
    columns={
        "messages": _PREFIXED_MESSAGES,
        "loss_flags": _with_prefix("loss_flags", "false"),
        "message_steps": _with_prefix("message_steps", "cast(null as integer)"),
        "masked": "len(list_filter(messages, lambda message, i: "
        "message.role = 'assistant' and not loss_flags[i]))",
    },
)

_TRAJECTORY = Source(
    what="training plan",
    root="training_plan",
    reads=(
        "training_plan",
        "sft_samples",
        "trajectories",
        "recipe_settings",
        "quota_settings",
        "curated_trajectories",
    ),
    identity="trajectory_id",
    measured=f"""
        select
            training_plan.split, trajectory_id,
            min(position) as position,
            any_value(
                8 * estimated_tokens + length(other_information) + {_ROW_OVERHEAD}
            ) * {{size}} as characters,
        from training_plan
        inner join sft_samples using (recipe, trajectory_id)
        inner join trajectories using (trajectory_id)
        where recipe = $recipe
        group by training_plan.split, trajectory_id
    """,
    joined="""
        inner join trajectories using (trajectory_id)
        inner join (
            select trajectory_id, trained_steps from curated_trajectories where recipe = $recipe
        ) using (trajectory_id)
    """,
    counted="""
        select split, source, count(distinct trajectory_id) as trajectories
        from training_plan
        where recipe = $recipe
        group by split, source
        order by split desc, source
    """,
    licensed=_POSITION.licensed,
    columns={
        "masked": r"""
            len(list_filter(steps, lambda step:
                (len(step.tool_calls) > 0 or regexp_matches(coalesce(step.output, ''), '\S'))
                and not list_contains(trained_steps, step.step_id)))
        """,
    },
)

_PAIR = Source(
    what="table of preference pairs",
    root="preference_pairs",
    reads=(
        "preference_pairs",
        "sft_samples",
        "conversations",
        "trajectories",
        "recipe_settings",
        "quota_settings",
    ),
    identity="pair_id",
    measured=f"""
        select
            split,
            row_number() over (
                partition by split order by md5(concat_ws('|', seed, pair_id)), pair_id
            ) - 1 as position,
            pair_id,
            (
                4 * (chosen.estimated_tokens + rejected.estimated_tokens) + {_ROW_OVERHEAD}
            ) * {{size}} as characters,
        from preference_pairs
        inner join conversations as chosen on chosen_id = chosen.trajectory_id
        inner join conversations as rejected on rejected_id = rejected.trajectory_id
        cross join (
            select any_value(seed) as seed from recipe_settings where recipe = $recipe
        )
        where recipe = $recipe
    """,
    joined="""
        inner join (select * exclude (split) from preference_pairs where recipe = $recipe)
            using (pair_id)
        inner join conversations as chosen on chosen_id = chosen.trajectory_id
        inner join conversations as rejected on rejected_id = rejected.trajectory_id
        left join (
            select trajectory_id, loss_flags from sft_samples where recipe = $recipe
        ) as chosen_sample on chosen_id = chosen_sample.trajectory_id
        left join (
            select trajectory_id, loss_flags from sft_samples where recipe = $recipe
        ) as rejected_sample on rejected_id = rejected_sample.trajectory_id
    """,
    counted="""
        select split, source, count(*) as pairs
        from preference_pairs
        where recipe = $recipe
        group by split, source
        order by split desc, source
    """,
    licensed="""
        select coalesce(license, 'unknown') as license, count(*) as trajectories
        from trajectories
        where trajectory_id in (
            select unnest([chosen_id, rejected_id]) from preference_pairs where recipe = $recipe
        )
        group by all
        order by license
    """,
    columns={
        "chosen_messages": "chosen.messages",
        "chosen_steps": "chosen.message_steps",
        "chosen_flags": "coalesce(chosen_sample.loss_flags, chosen.agent_flags)",
        "rejected_messages": "rejected.messages",
        "rejected_steps": "rejected.message_steps",
        "rejected_flags": "coalesce(rejected_sample.loss_flags, rejected.agent_flags)",
        "tools": "chosen.tools",
        "masked": """
            len(list_filter(chosen.messages, lambda message, i:
                message.role = 'assistant'
                and chosen.message_steps[i] > prefix_steps
                and chosen.message_steps[i] <= chosen_last_step
                and not coalesce(chosen_sample.loss_flags, chosen.agent_flags)[i]))
        """,
    },
)

SOURCES: Mapping[Unit, Source] = {
    "position": _POSITION,
    "trajectory": _TRAJECTORY,
    "pair": _PAIR,
}
