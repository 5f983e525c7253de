"""Which address shows what: the pages of the browser, as a Starlette app.

Every page is made here on the server and works without a script. An address holds all that decides
what its page shows, so it can be handed on, and opens the same view again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from orchestration.pages import STYLE, environment
from orchestration.pages import blocks as b
from orchestration.pages.blocks import Link, Table
from orchestration.pages.texts import Text, shown, shown_beginning
from orchestration.ui import labels, look
from orchestration.ui.guard import SIGN_IN, Access, Guard
from orchestration.ui.overview import Overview
from orchestration.ui.rows import (
    COLUMNS,
    PAGE_ROWS,
    RELEVANCE,
    SORTS,
    Current,
    Found,
    Hits,
    Query,
    RowsKeeper,
)
from orchestration.ui.search import SearchIndex
from orchestration.ui.tables import Row, State, Tables, Unavailable
from udfs.errors import LakeError, TrajlakeError
from udfs.settings import database_file

_LONGEST_FORM = 64 * 1024

# The name that labels are given under, from one page to the next.
_NAME_COOKIE = "trajlake_ui_name"

_ID = re.compile(r"[0-9a-f]{64}")

_PAIRS = 50
_NUMBER = re.compile(r"\d+(\.\d+)?")


def build_app(tables: Tables, access: Access, labeller: str) -> ASGIApp:
    """The app, behind its guard.

    Args:
        tables: the lake.
        access: who may come.
        labeller: the name that the form of a label begins with.

    Raises:
        LakeError: there are no trajectories to be read.
    """
    database = database_file()
    folder = database.with_name(f"{database.name}.ui")
    try:
        keeper = RowsKeeper(tables, folder)
    except Unavailable as error:
        raise LakeError(str(error)) from error
    index = SearchIndex(tables, folder)
    index.follow(keeper.current(tables.now()).rows)
    keeper.changed.append(index.follow)
    pages = _Pages(tables, keeper, index, access, labeller)
    app = Starlette(
        routes=[
            Route("/", pages.find),
            Route("/overview", pages.overview),
            Route("/pairs", pages.pairs),
            Route("/compare", pages.compare),
            Route("/trajectory/{id}", pages.look),
            Route("/trajectory/{id}/text", pages.text),
            Route("/trajectory/{id}/label", pages.label, methods=["POST"]),
            Route("/static/style.css", pages.style),
            Route("/static/keys.js", pages.script),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
            Route(SIGN_IN, lambda request: RedirectResponse("/", status_code=303)),
        ],
        exception_handlers={
            Unavailable: pages.unavailable,
            TrajlakeError: pages.refused,
            HTTPException: pages.no_page,
            Exception: pages.broken,
        },
    )
    return Guard(app, access)


class _Pages:
    """One method for each address."""

    def __init__(
        self,
        tables: Tables,
        keeper: RowsKeeper,
        index: SearchIndex,
        access: Access,
        labeller: str,
    ) -> None:
        self._tables = tables
        self._keeper = keeper
        self._index = index
        self._access = access
        self._labeller = labeller
        self._overview = Overview()
        self._templates = environment("orchestration.ui")
        self._templates.globals.update(
            shown=shown,
            number=lambda value: b.count(value).text,
            decimal=lambda value: b.decimal(value).text,
            address=look.address,
            text_address=look.text_address,
            compare_address=look.compare_address,
            path=lambda part: quote(part, safe=""),
        )
        self._style = "\n".join(
            self._templates.get_template(name).render() for name in (STYLE, "ui.css")
        )
        self._script = files("orchestration.ui").joinpath("keys.js").read_text("utf-8")

    # --- find ---

    def find(self, request: Request) -> Response:
        """The list of trajectories."""
        query = Query.of(request.query_params)
        state = self._tables.now()
        current = self._keeper.current(state)
        found, hits, problem, status = Found([], 0, 0, ()), None, None, 200
        try:
            found, hits = current.rows.find(
                query, self._index.search, lambda: labels.labelled_contents(self._tables)
            )
        except (Unavailable, TrajlakeError) as error:
            problem, status = str(error), 400
        said: Mapping[str, str] = {}
        with suppress(Unavailable):
            said = labels.values_of(self._tables, [row["content_sha256"] for row in found.rows])
        return self._page(
            "find.html.jinja",
            status=status,
            title=query.q or "Trajectories",
            query=query,
            found=found,
            hits=hits,
            problem=problem,
            notes=[*_notes(current, state), *(hits.notes if hits else ())],
            progress=self._index.progress(),
            rows=[_row(row, said, query) for row in found.rows],
            recipes=current.rows.recipes,
            recipe=_recipe(current, query.recipe),
            count=current.rows.count,
            sorts=_sorts(hits),
            columns=", ".join(COLUMNS.names),
            first=query.address(),
            last=query.address(before="end"),
            previous=_beside(query, found, hits, backward=True),
            following=_beside(query, found, hits, backward=False),
            page_rows=PAGE_ROWS,
        )

    # --- look ---

    def look(self, request: Request) -> Response:
        """One trajectory, step by step; what came of it follows when it is found out."""
        trajectory_id = self._id(request)
        if trajectory_id != request.path_params["id"]:
            return RedirectResponse(look.address(trajectory_id, **_view(request)), 303)
        return self._looked(request, trajectory_id)

    def _looked(
        self,
        request: Request,
        trajectory_id: str,
        status: int = 200,
        problem: str | None = None,
        given: labels.Given | None = None,
    ) -> Response:
        current = self._keeper.current(self._tables.now())
        recipe = _recipe(current, request.query_params.get("recipe", ""))
        first = _whole_number(request.query_params.get("from"), 1)
        stack = ExitStack()
        try:
            reader = stack.enter_context(self._tables.reader())
            looked = look.look(reader, trajectory_id, recipe, first)
            notes = list(looked.notes)
            history: list[Row] = []
            try:
                history = labels.history(self._tables, looked.row["content_sha256"])
            except Unavailable as error:
                notes.append(str(error))
            name = given.labelled_by if given else self._name(request)
            template = self._templates.get_template("look.html.jinja")
            context = self._context(
                title=(looked.row["user_query"] or trajectory_id)[:80],
                looked=looked,
                row=looked.row,
                facts=look.facts(looked.row, looked.verdict),
                notes=list(dict.fromkeys(notes)),
                recipes=current.rows.recipes,
                recipe=recipe,
                raw=lambda: look.raw_records(reader, looked.row),
                texts=_texts(looked.row),
                sections=look.became(reader, looked.row),
                history=[_label(each) for each in history],
                newest=history[0]["human_label_id"] if history else "",
                given=given or _newest_of(history, name),
                problem=problem,
                form_token=self._access.form_token,
                first=first,
                steps_of_page=look.STEPS,
            )
        except BaseException:
            stack.close()
            raise

        def pieces() -> Iterator[str]:
            with stack:
                yield from _flushed(template.generate(context))

        return StreamingResponse(pieces(), status, media_type="text/html")

    def text(self, request: Request) -> Response:
        """All of a text of a trajectory."""
        trajectory_id = request.path_params["id"]
        with self._tables.reader() as reader:
            title, text = look.whole_text(reader, trajectory_id, request.query_params)
        if request.query_params.get("as") == "file":
            return Response(
                text.encode("utf-8", errors="backslashreplace"),
                media_type="text/plain; charset=utf-8",
                headers={"content-disposition": f'attachment; filename="{trajectory_id[:12]}.txt"'},
            )
        page = _whole_number(request.query_params.get("page"), 1)
        asked = {k: v for k, v in request.query_params.items() if k in _TEXT_PARAMETERS}
        return self._page(
            "text.html.jinja",
            title=title,
            trajectory_id=trajectory_id,
            whole=look.whole_page(title, text, page),
            asked=asked,
        )

    # --- compare ---

    def compare(self, request: Request) -> Response:
        """Two trajectories side by side."""
        left, right = (request.query_params.get(name, "").strip() for name in ("left", "right"))
        current = self._keeper.current(self._tables.now())
        recipe = _recipe(current, request.query_params.get("recipe", ""))
        compared, problem, status = None, None, 200
        if left and right:
            try:
                with self._tables.reader() as reader:
                    compared = look.compare(
                        reader, self._full_id(left), self._full_id(right), recipe
                    )
            except Unavailable as error:
                problem, status = str(error), 404
        return self._page(
            "compare.html.jinja",
            status=status,
            title="Two trajectories side by side",
            compared=compared,
            left=left,
            right=right,
            recipe=recipe,
            recipes=current.rows.recipes,
            problem=problem,
            facts=look.facts,
            steps_of_page=look.STEPS,
        )

    def pairs(self, request: Request) -> Response:
        """Preference pairs."""
        given = {name: request.query_params.get(name, "").strip() for name in _PAIR_FILTERS}
        margin, page = given["margin"], _whole_number(request.query_params.get("page"), 1)
        conditions, values = ["true"], dict[str, Any]()
        for name in ("recipe", "level", "source", "split"):
            if given[name]:
                conditions.append(f"{name} = ${name}")
                values[name] = given[name]
        problem, status = None, 200
        if margin and not _NUMBER.fullmatch(margin):
            problem, status = f"The margin is '{margin[:40]}'. Give a number, such as 0.5.", 400
        elif margin:
            conditions.append("margin >= $least")
            values["least"] = float(margin)
        where = " and ".join(conditions)
        rows: list[Row] = []
        total, choices = 0, dict[str, list[str]]()
        if problem is None:
            try:
                with self._tables.reader() as reader:
                    total = reader.rows(
                        f"select count(*) as n from preference_pairs where {where}", values
                    )[0]["n"]
                    rows = reader.rows(
                        f"""
                        select * from preference_pairs
                        where {where}
                        order by recipe, margin desc, pair_id
                        limit {_PAIRS} offset {(page - 1) * _PAIRS}
                        """,
                        values,
                    )
                    for name in ("recipe", "level", "source"):
                        found = reader.rows(
                            f"select distinct {name} as v from preference_pairs order by v"
                        )
                        choices[name] = [each["v"] for each in found if each["v"]]
            except Unavailable as error:
                problem = str(error)
        return self._page(
            "pairs.html.jinja",
            status=status,
            title="Preference pairs",
            given=given,
            choices=choices,
            problem=problem,
            total=total,
            page=page,
            pages=max(1, -(-total // _PAIRS)),
            table=_pairs_table(rows, total),
        )

    # --- overview ---

    def overview(self, request: Request) -> Response:
        """Figures of the lake."""
        state = self._tables.now()
        current = self._keeper.current(state)
        recipe = _recipe(current, request.query_params.get("recipe", ""))
        with self._tables.reader(state) as reader:
            sections = self._overview.sections(reader, current.rows, recipe)
        return self._page(
            "overview.html.jinja",
            title="Overview",
            sections=sections,
            recipe=recipe,
            recipes=current.rows.recipes,
            count=current.rows.count,
            notes=_notes(current, state),
            progress=self._index.progress(),
            versions=sorted(state.versions.items()),
        )

    # --- label ---

    async def label(self, request: Request) -> Response:
        """Store a label, and show the trajectory again."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                raise HTTPException(413, "The form is too long.")
        return await run_in_threadpool(self._labelled, request, body)

    def _labelled(self, request: Request, body: bytes) -> Response:
        try:
            fields = parse_qs(
                body.decode("utf-8"), keep_blank_values=True, max_num_fields=20, errors="strict"
            )
        except ValueError:
            raise HTTPException(400, "The form cannot be read.") from None
        value, note, name, newest, token = (
            fields.get(each, [""])[0].replace("\r\n", "\n").strip()
            for each in ("value", "note", "labelled_by", "newest", "form_token")
        )
        if not secrets.compare_digest(token.encode(), self._access.form_token.encode()):
            raise HTTPException(
                403,
                "This form is from before `trajlake ui` was started again. Load its page anew; "
                "nothing was stored.",
            )
        trajectory_id = request.path_params["id"]
        given = labels.Given(value, note, name, newest)
        with self._tables.reader() as reader:
            rows = reader.rows(
                "select content_sha256 from trajectories where trajectory_id = $id",
                {"id": trajectory_id},
            )
        if not rows:
            raise Unavailable(f"There is no trajectory {trajectory_id[:80]} in the lake.")
        try:
            labels.give(self._tables, rows[0]["content_sha256"], trajectory_id, given)
        except labels.Overtaken:
            problem = (
                "Another label came since this page was loaded: it stands below, the newest "
                "first. Yours is not stored yet; send it again if it still holds."
            )
            return self._looked(request, trajectory_id, 409, problem, given)
        except TrajlakeError as error:
            return self._looked(request, trajectory_id, 400, str(error), given)
        response = RedirectResponse(
            look.address(trajectory_id, **_view(request)) + "#labels", status_code=303
        )
        response.set_cookie(_NAME_COOKIE, quote(name), httponly=True, samesite="strict", path="/")
        return response

    def _name(self, request: Request) -> str:
        return unquote(request.cookies.get(_NAME_COOKIE, "")) or self._labeller

    # --- what all pages share ---

    def style(self, request: Request) -> Response:
        """The style sheet."""
        return Response(self._style, media_type="text/css")

    def script(self, request: Request) -> Response:
        """The keys; every page works without it."""
        return Response(self._script, media_type="text/javascript")

    def unavailable(self, request: Request, error: Exception) -> Response:
        """What cannot be shown, and why."""
        return self._page("problem.html.jinja", status=404, title="Not here", problem=str(error))

    def refused(self, request: Request, error: Exception) -> Response:
        """What cannot be done, and why."""
        return self._page("problem.html.jinja", status=400, title="Refused", problem=str(error))

    def no_page(self, request: Request, error: Exception) -> Response:
        """An address that leads nowhere, or a form that is refused."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        detail = error.detail if isinstance(error, HTTPException) else ""
        problem = detail if detail and status != 404 else "There is no such page."
        return self._page("problem.html.jinja", status=status, title="Refused", problem=problem)

    def broken(self, request: Request, error: Exception) -> Response:
        """A fault of this program; its traceback is where the server runs."""
        problem = (
            f"This page could not be made ({type(error).__name__}). Where `trajlake ui` runs it "
            "says more."
        )
        return self._page("problem.html.jinja", status=500, title="A fault", problem=problem)

    def _context(self, **values: Any) -> dict[str, Any]:
        return values

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(**self._context(**values))
        return HTMLResponse(text.encode("utf-8", errors="backslashreplace"), status)

    def _id(self, request: Request) -> str:
        return self._full_id(request.path_params["id"])

    def _full_id(self, given: str) -> str:
        """The id of the trajectory that is called so, by its beginning too.

        Raises:
            Unavailable: there is none, or several.
        """
        given = given.lower()
        if _ID.fullmatch(given):
            return given
        rows = self._keeper.current(self._tables.now()).rows.ask(
            "select trajectory_id from found where starts_with(trajectory_id, $given) limit 2",
            {"given": given},
        )
        if len(rows) == 1:
            return str(rows[0]["trajectory_id"])
        number = "No trajectory has" if not rows else "Several trajectories have"
        raise Unavailable(f"{number} an id that begins with '{given[:80]}'. Give another one.")


_TEXT_PARAMETERS = ("step", "part", "record", "field")
_PAIR_FILTERS = ("recipe", "level", "source", "split", "margin")


def _view(request: Request) -> dict[str, str]:
    """What of an address decides how a trajectory is shown."""
    return {name: request.query_params.get(name, "") for name in ("recipe", "from")}


def _flushed(pieces: Iterator[str]) -> Iterator[str]:
    """Pieces of a page put together; what is there is sent where the template says so."""
    waiting: list[str] = []
    for piece in pieces:
        waiting.append(piece)
        if "<!-- sent -->" in piece or len(waiting) > 2_000:
            yield _encodable("".join(waiting))
            waiting = []
    yield _encodable("".join(waiting))


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _notes(current: Current, state: State) -> list[str]:
    """What a reader has to know of the rows that are shown."""
    notes = list(dict.fromkeys(current.rows.problems.values()))
    if current.problem:
        notes.append(f"The lake has changed, and its newest rows cannot be read. {current.problem}")
    elif current.is_older:
        what = "are being read" if current.is_reading else "are read in a moment"
        notes.append(
            f"The lake has changed since {current.rows.read_at:%H:%M:%S} UTC, and its newest rows "
            f"{what}: load the page again."
        )
    return notes


def _recipe(current: Current, wanted: str) -> str:
    return current.rows.recipe(wanted if wanted in current.rows.recipes else "")


def _sorts(hits: Hits | None) -> dict[str, str]:
    named = {name: title for name, (_, title) in SORTS.items()}
    return ({RELEVANCE: "fit"} if hits is not None else {}) | named


def _beside(query: Query, found: Found, hits: Hits | None, backward: bool) -> str | None:
    """The address of the page before or after; None where there is none."""
    if not found.rows:
        return None
    if backward:
        is_there = found.first > 1
        return query.address(before=found.rows[0]["trajectory_id"]) if is_there else None
    is_there = found.last < found.total
    return query.address(after=found.rows[-1]["trajectory_id"]) if is_there else None


def _row(row: Row, said: Mapping[str, str], query: Query) -> dict[str, Any]:
    """A row of the list, ready to be shown."""
    head = row["query_head"] or ""
    text = shown_beginning(head or "(no query)", max(0, row["query_length"] - len(head)), 160)
    return {
        "address": look.address(row["trajectory_id"], recipe=query.recipe),
        "id": row["trajectory_id"][:8],
        "query": text,
        "source": shown(row["source"], 60),
        "is_kept": row["is_kept"],
        "reason": row["reason"] or "–",
        "rater": b.decimal(row["rater_score"]).text,
        "score": b.decimal(row["score"]).text,
        "steps": b.count(row["step_count"]).text,
        "flags": b.count(row["flagged_step_count"]).text,
        "tokens": b.count(row["estimated_tokens"]).text,
        "model": shown(row["model_name"] or "–", 40),
        "came": f"{row['ingested_at']:%Y-%m-%d %H:%M}" if row["ingested_at"] else "–",
        "labels": shown(said.get(row["content_sha256"], ""), 80),
    }


def _label(row: Row) -> dict[str, Any]:
    value = "cannot be said" if row["value"] is None else f"{row['value']:g}"
    label = "" if row["label"] == "human" else f"{row['label']}: "
    return {
        "when": f"{row['labelled_at']:%Y-%m-%d %H:%M:%S} UTC",
        "by": shown(row["labelled_by"], 60),
        "value": shown(f"{label}{value}", 80),
        "note": shown(row["note"] or "", 2_000),
    }


def _newest_of(history: list[Row], name: str) -> labels.Given:
    """The form as it begins: what this reader said last."""
    for row in history:
        if row["labelled_by"] == name and row["label"] == "human":
            value = "" if row["value"] is None else f"{row['value']:g}"
            return labels.Given(value, row["note"] or "", name, "")
    return labels.Given("", "", name, "")


def _texts(row: Row) -> list[tuple[str, Text, str | None]]:
    """The texts of a trajectory that are in no step: title, text, where all of it is."""
    found = []
    for field, title in look.FIELDS.items():
        text = row[field]
        if text and text != "{}":
            most = look.LIMITS.characters
            link = look.text_address(row["trajectory_id"], field=field)
            found.append((title, shown(text, most), link if len(text) > most else None))
    return found


def _pairs_table(rows: list[Row], total: int) -> Table:
    return Table(
        f"{total:,} pairs, the widest margin of each recipe first",
        ("pair", "recipe", "level", "source", "split", "by", "chosen", "rejected", "margin",
         "steps in common", "length ratio"),
        tuple(
            (
                Link(
                    shown(row["pair_id"][:12]),
                    look.compare_address(row["chosen_id"], row["rejected_id"], row["recipe"]),
                ),
                b.words(row["recipe"]),
                b.words(row["level"]),
                b.words(row["source"]),
                b.words(row["split"]),
                b.words(row["margin_on"]),
                b.decimal(row["chosen_value"]),
                b.decimal(row["rejected_value"]),
                b.decimal(row["margin"]),
                b.count(row["prefix_steps"]),
                b.decimal(row["length_ratio"]),
            )
            for row in rows
        ),
    )  # fmt: skip


def _whole_number(text: str | None, otherwise: int) -> int:
    if text and text.isascii() and text.isdecimal() and len(text) < 10:
        return max(1, int(text))
    return otherwise
