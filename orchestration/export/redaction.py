"""Personal data and secrets out of an export's rows, where its recipe says so."""

from __future__ import annotations

import pyarrow as pa

# Texts, wherever in a row they stand. Roles, names and ids stay: what refers to another message
# by its id still does.
TEXTS = frozenset(
    {
        "content",
        "arguments",
        "tools",
        "user_query",
        "system_prompt",
        "input",
        "thought",
        "output",
        "other_information",
    }
)


def redacted(rows: pa.Table) -> pa.Table:
    """The rows with a placeholder for everything that `udfs.curation.personal_data` finds.

    Lists keep their lengths, so masks and steps still belong to the same messages.
    """
    columns = [_redacted(rows[name].combine_chunks(), name in TEXTS) for name in rows.column_names]
    return pa.table(dict(zip(rows.column_names, columns, strict=True)))


def _redacted(values: pa.Array, is_text: bool) -> pa.Array:
    # Some hundred patterns are compiled by it, which few recipes need.
    from udfs.curation.personal_data import redact

    if pa.types.is_list(values.type):
        items = _redacted(values.values, is_text)
        validity, offsets = values.buffers()[:2]
        return pa.Array.from_buffers(
            values.type, len(values), [validity, offsets], offset=values.offset, children=[items]
        )
    if pa.types.is_struct(values.type):
        fields = list(values.type)
        children = [
            _redacted(child, field.name in TEXTS)
            for child, field in zip(values.flatten(), fields, strict=True)
        ]
        return pa.StructArray.from_arrays(children, fields=fields, mask=values.is_null())
    return redact(values) if is_text and pa.types.is_string(values.type) else values
