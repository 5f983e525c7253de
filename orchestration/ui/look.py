"""All about one trajectory, and two side by side; what is shown of texts, the templates escape."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any
from urllib.parse import quote, urlencode

import duckdb

from orchestration.explain import QUESTIONS, in_export
from orchestration.manifests import Exported, manifest_files
from orchestration.pages import blocks as b
from orchestration.pages.blocks import Block, Link, Section, Table, Words
from orchestration.pages.runs import Limits, Step, flags_by_step, said_in, told_step
from orchestration.pages.texts import Text, pieces, shown
from orchestration.printing import plain, size_text
from orchestration.ui.tables import Reader, Row, Unavailable
from udfs.errors import ConfigError
from udfs.pinning import read_manifest

# Steps on a page; a longer run has several.
STEPS = 100

# Of a text, so many characters of its beginning and end; what is left out has a link to all of it.
LIMITS = Limits(first_steps=STEPS, last_steps=0, characters=4_000, calls=40)
_COMPARED = Limits(first_steps=STEPS, last_steps=0, characters=1_500, calls=12)

# Of a raw record, so many bytes stand beside the steps, and so many are laid out as JSON at most.
_RAW_BYTES = 100_000

# Characters of a page with all of a text, and of each block of it.
TEXT_CHARACTERS = 6_000_000
_BLOCK_CHARACTERS = 8_000

_LISTED = 50

_TRAJECTORY = """
    select
        * exclude (steps, system_prompt, tools, other_information, user_query),
        len(steps) as step_total,
        steps[$first : $last] as steps,
        user_query,
        system_prompt,
        tools,
        other_information
    from {table}
    where trajectory_id = $id
"""


def address(trajectory_id: str, **parameters: object) -> str:
    """The address of a trajectory's page."""
    text = urlencode({name: value for name, value in parameters.items() if value not in ("", None)})
    return f"/trajectory/{quote(trajectory_id, safe='')}" + (f"?{text}" if text else "")


@dataclass(frozen=True)
class Raw:
    """A raw record beside what was made of it."""

    title: str
    size: str
    text: Text
    is_laid_out: bool
    address: str


@dataclass(frozen=True)
class Looked:
    """A trajectory: its row, what the steps need, and what was said of it."""

    row: Row
    recipe: str
    verdict: Row | None
    steps: tuple[Step, ...]
    notes: tuple[str, ...]  # what could not be read

    @property
    def trajectory_id(self) -> str:
        """Its id."""
        return str(self.row["trajectory_id"])


def look(
    reader: Reader, trajectory_id: str, recipe: str, first: int = 1, limits: Limits = LIMITS,
    anchor: str = "step-",
) -> Looked:  # fmt: skip
    """A trajectory with one page of its steps.

    Args:
        reader: the lake.
        trajectory_id: all of the id.
        recipe: whose verdict is shown; empty for none.
        first: the first step, from 1.
        limits: how much of a step is shown.
        anchor: what the names of steps begin with.

    Raises:
        Unavailable: there is none of this id, or it cannot be read.
    """
    rows = reader.rows(
        _TRAJECTORY.format(table="trajectories"),
        {"id": trajectory_id, "first": first, "last": first + STEPS - 1},
    )
    if not rows:
        raise Unavailable(f"There is no trajectory {trajectory_id[:80]} in the lake.")
    row, notes = rows[0], list[str]()
    verdict = (_asked(reader, notes, "recipes", row) or []) if recipe else []
    of_recipe = next((each for each in verdict if each["recipe"] == recipe), None)
    flags = next(iter(_asked(reader, notes, "flags", row) or ()), None)
    marks = _marks_of_steps(reader, notes, row, flags)
    of_steps = flags_by_step(flags)
    judged = of_recipe or {"trained_steps": None, "reason": None}

    def whole(step_id: int, number: int) -> str:
        return text_address(row["trajectory_id"], step=step_id, part=number)

    steps = tuple(
        told_step(
            step,
            judged,
            flags,
            of_steps.get(step["step_id"], ()),
            limits,
            notes=marks.get(step["step_id"], ()),
            anchor=f"{anchor}{step['step_id']}",
            whole=whole,
        )
        for step in row["steps"] or ()
    )
    return Looked(row, recipe, of_recipe, steps, tuple(notes))


def text_address(trajectory_id: str, **parameters: object) -> str:
    """The address of a page with all of one text."""
    return f"/trajectory/{quote(trajectory_id, safe='')}/text?{urlencode(parameters)}"


def _asked(reader: Reader, notes: list[str], name: str, row: Row) -> list[Row] | None:
    """The rows of a question of `explain`; None, and a note, where it cannot be asked."""
    try:
        return reader.remembered(
            QUESTIONS[name][1], {"id": row["trajectory_id"], "content": row["content_sha256"]}
        )
    except Unavailable as error:
        notes.append(str(error))
        return None


def _marks_of_steps(
    reader: Reader, notes: list[str], row: Row, flags: Row | None
) -> dict[int, tuple[Text, ...]]:
    """Step → what raters and the verification say of it that no flag says already."""
    found: dict[int, list[Text]] = {}

    def mark(step_id: int | None, text: str) -> None:
        if step_id is not None:
            found.setdefault(step_id, []).append(shown(text, 600))

    for rating in _asked(reader, notes, "ratings", row) or ():
        by = rating["rate_model"] or rating["rater"]
        for each in rating.get("step_scores") or ():
            score = "no score" if each["score"] is None else f"{each['score']:g}"
            critique = f": {each['critique']}" if each["critique"] else ""
            mark(each["step_id"], f"{by} gives the step {score}{critique}")
        mark(rating.get("first_error_step"), f"{by}: the first error is here")
    for checked in _asked(reader, notes, "verification", row) or ():
        for each in checked.get("failures") or ():
            said = "; ".join(
                f"{name.replace('_', ' ')}: {value}"
                for name, value in each.items()
                if name != "step_id" and value is not None
            )
            mark(each["step_id"], f"a call does not fit its tool ({said})")
        for each in (checked.get("errors") if flags is None else None) or ():
            detail = f": {each['detail']}" if each.get("detail") else ""
            mark(
                each["step_id"], f"the environment reports an error, {each['error_class']}{detail}"
            )
    return {step_id: tuple(texts) for step_id, texts in found.items()}


# --- the raw record -------------------------------------------------------------------------------


def raw_records(reader: Reader, row: Row) -> tuple[tuple[Raw, ...], str | None]:
    """The raw records that a trajectory was made from, and why they cannot be read, if they
    cannot."""
    ids = (row.get("raw_record_ids") or [row["raw_record_id"]])[:_LISTED]
    try:
        found = _heads(reader, ids)
    except Unavailable as error:
        return (), str(error)
    return tuple(_raw(row["trajectory_id"], each) for each in found), None


def _heads(reader: Reader, ids: list[str]) -> list[Row]:
    return reader.rows(
        f"""
        select raw_record_id, raw_file, raw_position, raw_bytes, raw[1 : {_RAW_BYTES}] as head
        from raw_records
        where raw_record_id in (select unnest($ids))
        order by raw_file, raw_position
        """,
        {"ids": ids},
    )


def _raw(trajectory_id: str, record: Row) -> Raw:
    head, size = bytes(record["head"] or b""), record["raw_bytes"] or 0
    laid_out = _laid_out(head) if size <= len(head) else None
    text = laid_out or head.decode("utf-8", errors="backslashreplace")
    left_out = size - len(head)
    told = Text(pieces(text), max(0, left_out)) if left_out > 0 else Text(pieces(text))
    return Raw(
        title=f"{record['raw_file']}, record {record['raw_position']}",
        size=size_text(size),
        text=told,
        is_laid_out=laid_out is not None,
        address=text_address(trajectory_id, record=record["raw_record_id"]),
    )


def _laid_out(raw: bytes) -> str | None:
    """JSON with line breaks and indents; None for what is none, or would
    be another text by it: a key twice, a number written in another way."""

    def paired(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def exactly(text: str) -> float:
        if repr(number := float(text)) != text:
            raise ValueError("a number that would be written in another way")
        return number

    try:
        value = json.loads(
            raw, object_pairs_hook=paired, parse_float=exactly, parse_constant=exactly
        )
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


# --- all of a text --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """All of a text, or one page of it.

    Attributes:
        title: what it is.
        blocks: its parts in order; a browser lays each out when it is seen.
        characters: of the whole text.
        page, pages: which page this is, from 1.
    """

    title: str
    blocks: tuple[Text, ...]
    characters: int
    page: int
    pages: int


def whole_text(reader: Reader, trajectory_id: str, asked: Mapping[str, str]) -> tuple[str, str]:
    """A text of a trajectory: its title, and all of it.

    Args:
        reader: the lake.
        trajectory_id: all of the id.
        asked: `step` and `part`, or `record`, or `field`.

    Raises:
        Unavailable: there is no such text.
    """
    if record := asked.get("record"):
        rows = reader.rows(
            """
            select raw.raw_file, raw.raw_position, raw.raw
            from raw_records as raw
            inner join trajectories
                on list_contains(
                    coalesce(trajectories.raw_record_ids, [trajectories.raw_record_id]),
                    raw.raw_record_id
                )
            where raw.raw_record_id = $record and trajectories.trajectory_id = $id
            """,
            {"record": record, "id": trajectory_id},
        )
        if rows:
            raw = bytes(rows[0]["raw"] or b"").decode("utf-8", errors="backslashreplace")
            return f"{rows[0]['raw_file']}, record {rows[0]['raw_position']}", raw
    elif (field := asked.get("field", "")) in FIELDS:
        rows = reader.rows(
            f"select {field} as text from trajectories where trajectory_id = $id",
            {"id": trajectory_id},
        )
        if rows:
            return FIELDS[field], rows[0]["text"] or ""
    elif (step := asked.get("step", "")).isdecimal() and (
        number := asked.get("part", "")
    ).isdecimal():
        rows = reader.rows(
            "select steps[$first : $last] as steps from trajectories where trajectory_id = $id",
            {"id": trajectory_id, "first": int(step), "last": int(step)},
        )
        said = said_in(rows[0]["steps"][0]) if rows and rows[0]["steps"] else []
        if int(number) < len(said):
            _, label, text = said[int(number)]
            return f"Step {step}: {label}", text
    raise Unavailable("There is no such text in the lake. Open the trajectory, and choose there.")


# Texts of a trajectory that are in no step.
FIELDS = {
    "user_query": "User query",
    "system_prompt": "System prompt",
    "tools": "Tools",
    "other_information": "Other information",
}


def whole_page(title: str, text: str, page: int) -> Whole:
    """A page of a text."""
    pages = max(1, -(-len(text) // TEXT_CHARACTERS))
    page = min(max(1, page), pages)
    part = text[(page - 1) * TEXT_CHARACTERS : page * TEXT_CHARACTERS]
    return Whole(title, tuple(Text(pieces(each)) for each in _cut(part)), len(text), page, pages)


def _cut(text: str) -> Iterator[str]:
    """A text in blocks, at ends of lines where there are some."""
    start = 0
    while start < len(text):
        end = min(len(text), start + _BLOCK_CHARACTERS)
        if end < len(text):
            line_end = text.rfind("\n", start + _BLOCK_CHARACTERS // 2, end)
            end = line_end + 1 if line_end > 0 else end
        yield text[start:end].removesuffix("\n") if end < len(text) else text[start:end]
        start = end


# --- what is known beside the steps ---------------------------------------------------------------


def facts(row: Row, verdict: Row | None) -> tuple[tuple[str, Text], ...]:
    """What a trajectory is, in a few lines."""
    named: list[tuple[str, object]] = [
        ("source", row["source"]),
        ("environment", row.get("environment")),
        ("task", " ".join(filter(None, (row.get("task_type"), row.get("task_id"))))),
        ("model", row.get("model_name")),
        ("environment's score", row.get("score")),
        ("rater's score", verdict["rater_score"] if verdict else None),
        ("licence", row.get("license")),
        ("generator", row.get("generator")),
        ("format", f"{row['format']} ({row.get('parser_version') or 'no version'})"),
        ("raw record", f"{row.get('raw_file')}, record {row.get('raw_position')}"),
        ("came", row.get("ingested_at")),
        ("steps", row["step_total"]),
    ]
    return tuple(
        (name, shown(f"{value:g}" if isinstance(value, float) else str(value), 200))
        for name, value in named
        if value not in (None, "")
    )


def became(reader: Reader, row: Row) -> Iterable[Section]:
    """What was found out about a trajectory and what came of it, each as it has been asked for."""
    tables: Sequence[tuple[str, str, Callable[[Reader, Row], Iterable[Block]]]] = (
        ("ratings", "Ratings", _ratings),
        ("known-labels", "Labels in the lake", _known_labels),
        ("recipes", "Recipes", _recipes),
        ("copies", "Duplicates", _copies),
        ("overlap", "Benchmark overlap", _overlap),
        ("personal-data", "Personal data", _personal),
        ("plan", "Samples and plan", _plan),
        ("pairs", "Preference pairs", _pairs),
        ("training", "Training runs", _training),
        ("exports", "Exports", _exports),
    )
    for name, title, make in tables:
        yield Section(name, title, tuple(make(reader, row)))


def _table(
    reader: Reader,
    row: Row,
    question: str,
    caption: str,
    columns: Mapping[str, str],
    none: str,
    links: Sequence[str] = (),
) -> Iterator[Block]:
    """The answer to a question of `explain` as a table; a sentence where there is none."""
    rows = yield from _answer(reader, question, row)
    if rows is None:
        return
    if not rows:
        yield Words(none)
        return
    cells = []
    for each in rows[:_LISTED]:
        line: list[b.Cell] = []
        for name in columns:
            value = each.get(name)
            if name in links and value:
                line.append(Link(shown(str(value)[:12]), address(str(value))))
            else:
                line.append(_cell(value))
        cells.append(tuple(line))
    more = f": {_LISTED} of {len(rows):,}" if len(rows) > _LISTED else ""
    yield Table(f"{caption}{more}", tuple(columns.values()), tuple(cells))


def _answer(reader: Reader, question: str, row: Row) -> Generator[Block, None, list[Row] | None]:
    """The rows of a question of `explain`; None, and a sentence, where it cannot be asked."""
    notes: list[str] = []
    rows = _asked(reader, notes, question, row)
    for note in notes:
        yield Words(note, is_warning=True)
    return rows


def _cell(value: object) -> b.Cell:
    if isinstance(value, bool):
        return b.words("yes" if value else "no")
    if isinstance(value, int):
        return b.count(value)
    if isinstance(value, float):
        return b.decimal(value)
    if isinstance(value, list | dict):
        return b.words(json.dumps(plain(value), ensure_ascii=False), 400)
    return b.words(value, 2_000)


def _ratings(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "ratings", "Every rating of this conversation, the first one first",
        {"rated_at": "when", "rate_model": "by", "rater": "kind", "rater_score": "score",
         "status": "status", "explanation": "explanation", "attempt": "attempt", "judge": "judge",
         "prompt_version": "prompt", "cost_usd": "USD", "shown_share": "share read"},
        "Nobody has rated it.",
    )  # fmt: skip


def _known_labels(reader: Reader, row: Row) -> Iterator[Block]:
    try:
        found = reader.rows(
            """
            select label, value, labelled_by, note, labelled_at
            from labels
            where content_sha256 = $content
            order by label, labelled_by
            """,
            {"content": row["content_sha256"]},
        )
    except Unavailable as error:
        yield Words(str(error), is_warning=True)
        return
    if not found:
        yield Words("The last build knew of no label, by a source or a person.")
        return
    yield Table(
        "Labels that the last build took from sources and people",
        ("label", "value", "by", "note", "when"),
        tuple(tuple(_cell(value) for value in each.values()) for each in found[:_LISTED]),
    )


def _recipes(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "recipes", "The verdict of each recipe",
        {"recipe": "recipe", "is_kept": "kept", "reason": "reason", "reason_detail": "detail",
         "rater_score": "rater's score", "score": "environment's score",
         "trained_steps": "steps that carry loss"},
        "No recipe has a verdict.",
    )  # fmt: skip


def _copies(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "same_content", "The same conversation, word for word",
        {"trajectory_id": "trajectory", "source": "source"},
        "No other trajectory has the same content.", ["trajectory_id"],
    )  # fmt: skip
    yield from _table(
        reader, row, "near_duplicates", "Nearly the same: the others of its cluster",
        {"trajectory_id": "trajectory", "source": "source", "cluster_id": "cluster",
         "cluster_size": "contents in it", "similarity": "similarity with its nearest"},
        "No other is nearly the same.", ["trajectory_id"],
    )  # fmt: skip


def _overlap(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "benchmark_overlap", "Items of benchmarks that are in it",
        {"benchmark": "benchmark", "item_id": "item", "kind": "kind", "overlap": "overlap",
         "where_found": "where", "matched_text": "text"},
        "No item of a declared benchmark was found in it.",
    )  # fmt: skip


def _personal(reader: Reader, row: Row) -> Iterator[Block]:
    found = yield from _answer(reader, "personal_data", row)
    findings = [each for of in found or () for each in of.get("findings") or ()]
    if found is not None and not findings:
        yield Words("Nothing was found that looks like personal data or a secret.")
    elif findings:
        yield Table(
            "What looks like personal data or a secret; the values are in the steps",
            ("kind", "step", "field"),
            tuple(
                (b.words(each["kind"]), b.count(each["step_id"]), b.words(each["field"]))
                for each in findings[:_LISTED]
            ),
        )


def _plan(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "samples", "As a sample of each recipe that keeps it",
        {"recipe": "recipe", "split": "split", "weight": "weight",
         "estimated_tokens": "tokens, estimated", "trained_tokens": "that carry loss"},
        "It is a sample of no recipe.",
    )  # fmt: skip
    yield from _table(
        reader, row, "plan", "Where it stands in the order of training",
        {"recipe": "recipe", "split": "split", "positions": "how often", "epochs": "epochs",
         "first_positions": "first positions"},
        "It is in no plan.",
    )  # fmt: skip


def _pairs(reader: Reader, row: Row) -> Iterator[Block]:
    rows = yield from _answer(reader, "preference_pairs", row)
    if rows is None:
        return
    if not rows:
        yield Words("It is in no pair.")
        return
    own = row["trajectory_id"]
    yield Table(
        f"Pairs that it is in{f': {_LISTED} of {len(rows):,}' if len(rows) > _LISTED else ''}",
        ("recipe", "it is", "against", "level", "by", "margin"),
        tuple(
            (
                b.words(each["recipe"]),
                b.words(each["role"]),
                Link(
                    shown(str(each["against"])[:12]),
                    compare_address(
                        *(
                            (own, each["against"])
                            if each["role"] == "chosen"
                            else (each["against"], own)
                        ),
                        each["recipe"],
                    ),
                ),
                b.words(each["level"]),
                b.words(each["margin_on"]),
                b.decimal(each["margin"]),
            )
            for each in rows[:_LISTED]
        ),
    )


def _training(reader: Reader, row: Row) -> Iterator[Block]:
    yield from _table(
        reader, row, "training_lineage", "Training runs that saw it",
        {"run": "run", "status": "status", "recipe": "recipe", "side": "side of a pair",
         "steps": "steps that saw it",
         "first_steps": "the first of them", "first_loss": "loss at first",
         "last_loss": "loss at last"},
        "No training run has seen it.",
    )  # fmt: skip


def _exports(reader: Reader, row: Row) -> Iterator[Block]:
    tables, found = set(reader.state.versions), list[Row]()
    for name, file in manifest_files():
        try:
            export = Exported(name, file, read_manifest(file))
            found += in_export(reader.connection, export, row["trajectory_id"], tables)
        except (duckdb.Error, ConfigError) as error:
            yield Words(f"The export {name} could not be asked ({error}).", is_warning=True)
    if not found:
        yield Words("It is in no export.")
        return
    yield Table(
        "Exports that it is in",
        ("export", "recipe", "split", "rows", "of"),
        tuple(
            (b.words(each["export"]), b.words(each["recipe"]), b.words(each["split"]),
             b.count(each["rows"]), b.words(each["unit"]))
            for each in found[:_LISTED]
        ),
    )  # fmt: skip


# --- two side by side -----------------------------------------------------------------------------


def compare_address(left: str, right: str, recipe: str = "") -> str:
    """The address of two trajectories side by side."""
    return "/compare?" + urlencode({"left": left, "right": right} | _given(recipe=recipe))


def _given(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Beside:
    """Steps of two runs that stand side by side; None where one has nothing to set against."""

    left: Step | None
    right: Step | None
    is_same: bool
    is_fork: bool


@dataclass(frozen=True)
class Compared:
    """Two runs, and their steps side by side."""

    left: Looked
    right: Looked
    steps: tuple[Beside, ...]
    same: int


def compare(reader: Reader, left: str, right: str, recipe: str) -> Compared:
    """Two trajectories, steps that do the same beside each other; raises as `look` does."""
    one = look(reader, left, recipe, limits=_COMPARED, anchor="left-")
    two = look(reader, right, recipe, limits=_COMPARED, anchor="right-")
    done = [[_done(step) for step in each.row["steps"] or ()] for each in (one, two)]
    beside: list[Beside] = []
    is_forked = False
    matcher = SequenceMatcher(None, done[0], done[1], autojunk=False)
    for kind, i, j, k, n in matcher.get_opcodes():
        for mine, other in zip_longest(one.steps[i:j], two.steps[k:n]):
            is_same = kind == "equal"
            beside.append(Beside(mine, other, is_same, not is_same and not is_forked))
            is_forked = is_forked or not is_same
    return Compared(one, two, tuple(beside), sum(each.is_same for each in beside))


def _done(step: Row) -> tuple[object, ...]:
    """What an agent did in a step: two runs are the same as long as this is."""
    calls = tuple((call["name"], call["arguments"]) for call in step["tool_calls"] or ())
    return ((step["output"] or "").strip(), calls)
