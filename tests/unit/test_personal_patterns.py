"""Personal data and secrets: what is found, what is left alone, and what redacting leaves behind.

The secrets here are made up; those with a prefix are put together, so that no scanner of
repositories takes this page for a leak.
"""

from __future__ import annotations

import json
import string
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.curation.personal_data import (
    PERSONAL_DATA,
    find_personal_data,
    redact,
    redact_text,
)
from udfs.curation.personal_patterns import ANY_TRIGGER, KINDS, RULES, find, placeholder
from udfs.schema import STEP

RANDOM_40 = "q9Zt4Lw7Yb2Nf8Kd1Rc6Vg3Hs5Jm0Px9Ta4Eu7W2"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)
PEM = (
    "-----BEGIN {0}PRIVATE KEY-----{1}" + "MIIEvQIBADANBgkq" * 4 + "{1}-----END {0}PRIVATE KEY-----"
)

FOUND = [
    ("email", "Write to ann.lee+work@mail.uni-koeln.de.", "ann.lee+work@mail.uni-koeln.de"),
    ("email", "<a href='mailto:ann@lee.org'>", "ann@lee.org"),
    ("email", "Author: Ann <7+ann@users.noreply.github.com>", "7+ann@users.noreply.github.com"),
    ("email", r'{"text": "From:\nann@lee.org"}', "ann@lee.org"),
    ("email", r'{"text": "\u00e9ann@lee.org"}', "ann@lee.org"),
    ("email", "邮箱:ann@lee.cn。", "ann@lee.cn"),
    ("email", "-ann@lee.org\n+bob@lee.org", "ann@lee.org"),
    ("phone", "Call +49 (0)30 901820.", "+49 (0)30 901820"),
    ("phone", "+44 20 7946 1234 2026", "+44 20 7946 1234"),
    ("phone", r'"phone\":\"+687 24.21.85\"', "+687 24.21.85"),
    ("phone", "Tickets: (617) 226-6000", "(617) 226-6000"),
    ("phone", "617-226-6000, 9 to 5", "617-226-6000"),
    ("phone", "617.226.6000", "617.226.6000"),
    ("phone", '{"phone_number": "030 901820"}', "030 901820"),
    ("phone", "mobile: 9876543210", "9876543210"),
    ("phone", "call me at 0171 1234567", "0171 1234567"),
    ("phone", '{"phone": 4915112345678}', "4915112345678"),
    ("credit_card", "Visa 4929-1234-5678-9015, thanks", "4929-1234-5678-9015"),
    ("credit_card", "pay 4929 1234 5678 9015", "4929 1234 5678 9015"),
    ("credit_card", '{"card_number": "4929123456789015"}', "4929123456789015"),
    ("credit_card", '{"card_number": 4929123456789015}', "4929123456789015"),
    ("credit_card", "3714 496353 98431", "3714 496353 98431"),
    ("iban", "IBAN DE89 3704 0044 0532 0130 00 OK", "DE89 3704 0044 0532 0130 00"),
    ("iban", '"GB82WEST12345698765432"', "GB82WEST12345698765432"),
    ("ip_address", "the user's IP address is 81.2.69.160.", "81.2.69.160"),
    ("ip_address", '{"client_ip": "81.2.69.160"}', "81.2.69.160"),
    ("ip_address", '81.2.69.160 - - [01/Feb/2026:10:00:00] "GET /"', "81.2.69.160"),
    ("ip_address", "inet6 2a01:4f8:c17:b0f::2/64", "2a01:4f8:c17:b0f::2"),
    ("api_key", f"OPENAI_API_KEY=sk-{RANDOM_40}", f"sk-{RANDOM_40}"),
    ("api_key", f"key sk-ant-api03-{RANDOM_40}-{RANDOM_40}AA", None),
    ("api_key", f"git clone https://ghp_{RANDOM_40[:36]}@github.com/a/b", f"ghp_{RANDOM_40[:36]}"),
    ("api_key", "aws AKIA" + "Q3EGRNXZ4T7LPW2V", "AKIA" + "Q3EGRNXZ4T7LPW2V"),
    ("api_key", "xoxb-" + "210987654321-Ab9Cd8Ef7Gh6", "xoxb-" + "210987654321-Ab9Cd8Ef7Gh6"),
    ("api_key", "client_secret: 'v8Kq27zLpW41xTnB'", "v8Kq27zLpW41xTnB"),
    ("api_key", r"{\"X-RapidAPI-Key\": \"9f8a7b6c5d4e3f2a1b0c\"}", None),
    ("api_key", "https://a.org/data?api_key=9f8a7b6c5d4e3f2a1b0c&q=1", "9f8a7b6c5d4e3f2a1b0c"),
    ("token", f"jwt {JWT}", JWT),
    ("token", f"Authorization: Bearer {RANDOM_40}", RANDOM_40),
    ("token", '{"Authorization": "Basic YW5uOmh1bnRlcjI="}', "YW5uOmh1bnRlcjI="),
    ("private_key", PEM.format("RSA ", "\n"), PEM.format("RSA ", "\n")),
    ("private_key", PEM.format("", "\\n"), PEM.format("", "\\n")),
    ("password", "password=hunter2", "hunter2"),
    ("password", '{"password": "Tr0ub4dor&3"}', "Tr0ub4dor&3"),
    ("password", r"{\"password\": \"Pa$$w0rd\"}", "Pa$$w0rd"),
    ("password", "The password is hunter2.", "hunter2."),
    ("password", "mysql --password hunter2 shop", "hunter2"),
    ("password", "postgres://shop:s3cr3tive@db.lan:5432/shop", "s3cr3tive"),
]

LEFT_ALONE = {
    "example domains": "ann@example.com bob@mail.example.org eve@site.test",
    "mailboxes nobody reads": "noreply@github.com git@github.com:a/b.git",
    "a shell's prompt": "root@a1b2c3d4:/app# ls\nann@build.lee.org:~$ ls",
    "a name on a machine": "ssh ann@build.lee.org; sftp://ann@build.lee.org/",
    "decorators in a diff": r"\n+@attrs.define\n@dataclasses.dataclass",
    "packages and pictures": "lodash@4.17.21 react@18.x icon@2x.png",
    "matrices": "y = a@b.transpose(1, 2)",
    "a handle": "@ann@mastodon.social",
    "dates and times": "2026-11-29 03:15:12 2026-11-29T03:15:12+0100 11/29/2026 20261129031512",
    "a date in a diff": "+2023-05-01 12:30",
    "timestamps": "1732850112 1732850112123 1732850112123456789",
    "order numbers": "order #W2417020, item 1801728040, tracking 9400110200881234567890",
    "a product under `phones`": '{"phones": "6992792935", "phone": "1801728040"}',
    "a model of a telephone": "Phone 14.0 128 GB, phone: 14 (2022)",
    "fiction's numbers": "212-555-0187, (555) 123-4567, +44 7700 900123",
    "services' numbers": "1-800-226-6000, +49 800 3301000, phone: 1300 668 000",
    "serial digits": "123-456-7890, phone: 1111111111",
    "ISBNs": "ISBN 978-0-306-40615-7, 0-306-40615-2, 9780306406157",
    "coordinates": "40.712776, -74.005974; +1.2345678901",
    "versions": "nvidia-cudnn==8.5.0.96, v1.2.3.4, Chrome/91.0.44.124, from 1.1.1.1 to 1.1.1.2",
    "private and own addresses": "IP address 192.168.1.100, ip: 127.0.0.1, host 0.0.0.0",
    "documentation's addresses": "IP 203.0.113.5, IP 2001:db8::1",
    "clocks and hardware": "2023:05:14 10:22, 00:1a:2b:3c:4d:5e, std::vector",
    "WebShop's items": "B09N9KX1QF B078GWRC1J $10.99",
    "hashes": "commit 0234095b1e2215cf8c2476bec0031b7d1e2215cf, "
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "a UUID": "4f1c2d3e-4111-4111-8111-411111111111",
    "a long number that is no card's": "seed 4828147466240000",
    "a card that fails its check": "card 4929 1234 5678 9016",
    "an IBAN that fails its check": "DE89 3704 0044 0532 0130 01",
    "a vehicle of YT's": "YT2003521266065328",
    "stand-ins for keys": "sk-your-api-key-here-0000 api_key=YOUR_API_KEY_1234567 "
    "API_KEY = 'your-api-key'; Authorization: `API_KEY ${API_KEY}`",
    "AWS's example": "AKIA" + "IOSFODNN7EXAMPLE",
    "keys from elsewhere": "api_key=os.environ['OPENAI_API_KEY_2'] secret=settings.KEY_2_LONGER",
    "names": "access_token=my-app-token-2023-05 sk-folding-cube-container-large-2",
    "other tokens": '{"max_tokens": 1024, "next_page_token": "CAUQAA", "eos_token": "</s>"}',
    "words for passwords": '"password": "password", password=self.password, pwd=/home/ann/x1',
    "code about passwords": "password=make_password(raw1) password: str = None, password1='x'",
    "a schema": '{"password": {"type": "string"}, "token": "string", "phone": "string"}',
    "default logins": "postgres://postgres:postgres@localhost/ http://user:pass@host/",
    "half a key": "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "three parts": "eyJub3QiOiJhIGp3dCJ9.eyJub3QiOiJhIGp3dCJ9.abc",
}


@pytest.mark.parametrize(("kind", "text", "value"), FOUND, ids=[f"{k}: {t}" for k, t, _ in FOUND])
def test_what_belongs_to_someone_is_found(kind: str, text: str, value: str | None) -> None:
    found = find(text)
    first = found[0]
    assert first.kind == kind
    if value is not None:
        assert text[first.start : first.end] == value
    assert text[first.start : first.end] not in first.excerpt
    assert pc.match_substring_regex(pa.scalar(text), ANY_TRIGGER).as_py()


@pytest.mark.parametrize("text", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_belongs_to_nobody_is_left_alone(text: str) -> None:
    assert find(text) == []
    assert redact_text(text) == text


def test_every_kind_is_tried_above() -> None:
    assert {kind for kind, _, _ in FOUND} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Ann <ann@lee.org>, +49 30 901820", "Ann <[EMAIL]>, [PHONE]"),
        ("password=hunter2;", "password=[PASSWORD];"),
        ("nothing here", "nothing here"),
        ('{"card": 4929123456789015, "n": 1}', '{"card": "[CREDIT_CARD]", "n": 1}'),
        ('{"card": "4929123456789015"}', '{"card": "[CREDIT_CARD]"}'),
        ('card 4929123456789015 in "text"', 'card [CREDIT_CARD] in "text"'),
        (r'{"a": "x\nann@lee.org"}', r'{"a": "x\n[EMAIL]"}'),
    ],
)
def test_a_placeholder_takes_the_place_of_the_value(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


def test_what_was_hidden_by_a_neighbour_is_redacted_too() -> None:
    assert redact_text("ann@lee.org@bob@lee.org") == redact_text(
        redact_text("ann@lee.org@bob@lee.org")
    )
    assert "lee.org" not in redact_text("ann@lee.org,bob@lee.org")


# Pieces of which texts are made: with and without something to be found, and what may stand
# between them in prose, JSON and code.
_VALUES = [text for _, text, _ in FOUND] + [value for _, _, value in FOUND if value]
_PIECES = st.one_of(
    st.sampled_from(_VALUES),
    st.sampled_from(list(LEFT_ALONE.values())),
    st.sampled_from(
        [" ", "\n", "\\n", "\\", '"', "'", ": ", "=", ", ", "@", "+", "-", ".", "/", "{"]
    ),
    st.text(string.printable, max_size=6),
    st.text(max_size=4),
)
_TEXTS = st.lists(_PIECES, max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(_TEXTS)
def test_redacting_leaves_nothing_to_be_found_and_is_done_once(text: str) -> None:
    redacted = redact_text(text)
    assert find(redacted) == []
    assert redact_text(redacted) == redacted


@settings(max_examples=300, deadline=None)
@given(_TEXTS)
def test_redacting_changes_nothing_but_values(text: str) -> None:
    """What remains between the placeholders stands in the text, in the same order."""
    rest = redact_text(text)
    for kind in KINDS:
        rest = rest.replace(f'"{placeholder(kind)}"', "\0").replace(placeholder(kind), "\0")
    at = 0
    for part in filter(None, rest.split("\0")):
        at = text.index(part, at) + len(part)


_JSON = st.recursive(
    st.one_of(
        _TEXTS,
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.sampled_from([4929123456789015, 371449635398431, 4915112345678, 9876543210]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["phone", "card", "password", "api_key"]), _TEXTS),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.lists(_JSON, max_size=3), st.dictionaries(_TEXTS, _JSON, max_size=3)),
    st.booleans(),
)
def test_json_stays_json(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    redacted = redact_text(text)
    assert isinstance(json.loads(redacted), type(value))
    nested = json.dumps({"arguments": text})
    json.loads(redact_text(nested))


@settings(max_examples=400, deadline=None)
@given(_TEXTS)
def test_no_rule_finds_what_its_trigger_misses(text: str) -> None:
    is_worth_a_look = pc.match_substring_regex(pa.scalar(text), ANY_TRIGGER).as_py()
    for rule in RULES:
        candidates = [match for match in rule.pattern.finditer(text) if rule.check(match)]
        if candidates:
            assert pc.match_substring_regex(pa.scalar(text), rule.trigger).as_py(), rule.kind
            assert is_worth_a_look


@settings(max_examples=200, deadline=None)
@given(_TEXTS)
def test_excerpts_give_no_value_away(text: str) -> None:
    for found in find(text):
        value = text[found.start : found.end]
        assert value not in found.excerpt
        shown = found.excerpt.split("(")[0]
        assert sum(c.isdigit() for c in shown) <= 3
        if found.kind in ("email", "phone", "credit_card", "iban", "ip_address"):
            assert sum(value.count(part) > 0 and len(part) > 5 for part in shown.split("…")) == 0


# ------------------------------------------------------------------------------------------------
# Over arrays
# ------------------------------------------------------------------------------------------------


def step(step_id: int, **fields: Any) -> dict[str, Any]:
    return dict.fromkeys(STEP.names) | {"step_id": step_id} | fields


def found_in(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("user_query", "system_prompt", "tools", "other_information")
    texts = [pa.array([row.get(name) for row in rows], pa.string()) for name in names]
    steps = pa.array([row.get("steps") for row in rows], pa.list_(STEP))
    made = find_personal_data(*texts, steps)
    assert made.type == PERSONAL_DATA and made.null_count == 0
    made.validate(full=True)
    return made.to_pylist()


def test_findings_say_where_and_never_what() -> None:
    call = {"call_id": "1", "name": "mail", "arguments": '{"to": "ann@lee.org"}'}
    seen = {"source": "environment", "name": None, "call_id": None, "content": "Call 617-226-6000"}
    (nothing, rich, empty) = found_in(
        {"steps": [step(1, output="Done.")]},
        {
            "system_prompt": "Server password=hunter2",
            "steps": [step(1, input="Hi"), step(2, tool_calls=[call], observations=[seen, seen])],
            "other_information": '{"by": "bob@lee.org"}',
        },
        {},
    )
    assert nothing == empty == {"kinds": [], "finding_count": 0, "findings": []}
    assert rich["kinds"] == ["email", "password", "phone"]
    assert rich["finding_count"] == 4
    assert [(f["step_id"], f["field"], f["kind"], f["excerpt"]) for f in rich["findings"]] == [
        (None, "system_prompt", "password", "password…"),
        (None, "other_information", "email", "b…@l….org"),
        (2, "tool_calls", "email", "a…@l….org"),
        (2, "observations", "phone", "… (10 digits)"),
    ]


def test_copies_are_counted_once() -> None:
    (one,) = found_in(
        {
            "user_query": "Mail ann@lee.org",
            "steps": [
                step(1, input="Question: Mail ann@lee.org", thought="Mail ann@lee.org now",
                     output="Thought: Mail ann@lee.org now"),
                step(2, thought="bob@lee.org", output="Thought of someone."),
            ],
        }
    )  # fmt: skip
    assert [(f["step_id"], f["field"]) for f in one["findings"]] == [
        (1, "input"),
        (1, "output"),
        (2, "thought"),
    ]


def test_slices_of_arrays_are_read_where_they_are() -> None:
    rows = [
        {"steps": None},
        {"steps": [step(1, output="ann@lee.org"), step(2)]},
        {"steps": [step(7, output="x"), step(8, output="bob@lee.org")]},
    ]
    nulls = pa.nulls(3, pa.string())
    steps = pa.array([row["steps"] for row in rows], pa.list_(STEP))
    made = find_personal_data(*[nulls.slice(1)] * 4, steps.slice(1)).to_pylist()
    assert [[f["step_id"] for f in one["findings"]] for one in made] == [[1], [8]]


def test_redacting_keeps_nulls_types_and_untouched_texts() -> None:
    texts = pa.array(["a", None, "ann@lee.org", "", "é"])
    assert redact(texts).to_pylist() == ["a", None, "[EMAIL]", "", "é"]
    assert redact(texts.slice(2)).to_pylist() == ["[EMAIL]", "", "é"]
    assert redact(texts.cast(pa.large_string())).type == pa.large_string()
    assert redact(pa.array([], pa.string())).to_pylist() == []


def test_redacting_reaches_texts_at_any_depth() -> None:
    call = pa.struct([("name", pa.string()), ("arguments", pa.string())])
    message = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("calls", pa.list_(call)),
            ("n", pa.int32()),
        ]
    )
    rows = [
        None,
        [],
        [
            {"role": "user", "content": "I am ann@lee.org", "calls": None, "n": 1},
            None,
            {
                "role": "assistant",
                "content": None,
                "calls": [{"name": "pay", "arguments": '{"card": 4929123456789015}'}],
                "n": None,
            },
        ],
        [{"role": "user", "content": "bob@lee.org", "calls": [], "n": 2}],
    ]
    given_rows = pa.array(rows, pa.list_(message))
    expected = json.loads(
        json.dumps(rows)
        .replace("ann@lee.org", "[EMAIL]")
        .replace("bob@lee.org", "[EMAIL]")
        .replace("4929123456789015", '\\"[CREDIT_CARD]\\"')
    )
    assert redact(given_rows).to_pylist() == expected
    assert redact(given_rows.slice(2)).to_pylist() == expected[2:]
    assert redact(given_rows).type == given_rows.type
