"""Personal data and secrets in one text: where they stand, and what kind they are.

| kind          | what counts                                                                     |
|---------------|---------------------------------------------------------------------------------|
| `private_key` | a PEM or PGP block with a key in it (RFC 7468, RFC 9580)                         |
| `token`       | a JWT (RFC 7519) whose head names an algorithm; what an Authorization header or  |
|               | `Bearer` brings (RFC 6750, RFC 7617)                                            |
| `api_key`     | a key that its vendor marks with a prefix (`sk-`, `ghp_`, `AKIA` …); a text that |
|               | looks random behind a name such as `api_key=` or `client_secret:`               |
| `password`    | behind `password=` and its like, "the password is …", `https://user:…@host`     |
| `email`       | an address that can belong to someone                                           |
| `iban`        | with its country's length and check digits (ISO 13616, ISO 7064 MOD 97-10)       |
| `credit_card` | with an issuer's prefix and length, and check digit (ISO/IEC 7812, Luhn)         |
| `phone`       | valid for libphonenumber, and written as a number to be called                  |
| `ip_address`  | a public address; of version 4 only where the text calls it one                 |

What cannot belong to anyone is left out, because it would hide the rest: example domains
(RFC 2606, RFC 6761, RFC 6762), mailboxes that nobody reads (`noreply`), `git@host`, numbers of
exchange 555, freephone and premium numbers, private and reserved networks, and stand-ins for
secrets (`your-api-key`, `${TOKEN}`, `password="password"`, AWS's own `…EXAMPLE` keys).

A rule is three things. `trigger` is a regular expression for RE2 that is quick and never misses:
a text without it is not looked at further. `pattern` says where candidates stand, and `check`
whether one counts, and how it is shown without being given away. Patterns are written for text
that may be JSON: none begins or ends inside an escape (`\\n`), so that what is replaced leaves
valid JSON behind.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import orjson
import phonenumbers
from phonenumbers import Leniency, NumberParseException, PhoneNumber, PhoneNumberType

# Any change of a rule changes what is found. Which numbers are given out changes with the library.
RULES_VERSION = f"1,phonenumbers={phonenumbers.__version__}"


class Found(NamedTuple):
    """Something found in a text: `text[start:end]`, and what may be shown of it."""

    start: int
    end: int
    kind: str
    excerpt: str


class Rule(NamedTuple):
    """One way in which a kind is written; see the module's head."""

    kind: str
    trigger: str
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], Found | None]


# A candidate begins where no letter or digit stands before it. In JSON, the letter of an escape
# is none: in `\nann@…` the address begins behind the n.
_START = r"(?:(?<![A-Za-z0-9\\])|(?<=\\[nrtbf])|(?<=\\u[0-9a-fA-F]{4}))"

# The same, said behind the first character: `re` is quick only where a pattern begins with one.
_STARTED = r"(?:(?<![A-Za-z0-9\\].)|(?<=\\[nrtbf].)|(?<=\\u[0-9a-fA-F]{4}.))"

# Between a name and its value: `=`, `: `, `": "`, `' => '`, and the same with escaped quotes.
_ASSIGNED = r"""["'`\\]{0,6}[ \t]{0,3}(?::|=>|={1,2})[ \t]{0,3}"""
_QUOTES = r"""["'`\\]{0,6}"""

# Names of keys and of telephones' numbers, with what leads from the name to the number.
_KEY_NAMES = (
    r"(?:api|app|access|account|auth|authentication|bearer|bot|client|consumer|encryption|license|"
    r"master|personal|private|refresh|secret|service|session|signing|subscription)[ _.-]?"
    r"(?:access[ _.-]?)?(?:key|token|secret)|secret"
)
_TO_NUMBER = rf"(?:[ _-]?(?:number|num|nr|no)\.?)?(?:{_ASSIGNED}|[ \t]+is:?[ \t]+){_QUOTES}"
_PHONE_NAMES = rf"(?:phone|mobile|whatsapp){_TO_NUMBER}"
_SHORT_PHONE_NAMES = (
    rf"(?:(?:tel|cell|fax){_TO_NUMBER}|"
    r"(?:call|text|reach|dial|ring)(?: (?:me|us|him|her|them))? (?:at|on) )"
)


def find(text: str, rules: Iterable[Rule] | None = None) -> list[Found]:
    """What a text has, in the order of the text. Where two overlap, the earlier rule counts.

    Args:
        text: any text.
        rules: those whose triggers it has; all where none are given.
    """
    found: list[Found] = []  # in order, and none overlaps another
    for rule in RULES if rules is None else rules:
        for match in rule.pattern.finditer(text):
            one = rule.check(match)
            if one is None:
                continue
            at = bisect_left(found, one)
            is_behind = at == 0 or found[at - 1].end <= one.start
            is_before = at == len(found) or one.end <= found[at].start
            if is_behind and is_before:
                found.insert(at, one)
    return found


def placeholder(kind: str) -> str:
    """What stands for a redacted value; no rule finds anything in it."""
    return f"[{kind.upper()}]"


# ------------------------------------------------------------------------------------------------
# Secrets
# ------------------------------------------------------------------------------------------------

# What people write where a secret would stand.
_STAND_IN = re.compile(
    r"your|example|sample|dummy|placeholder|change_?me|insert|redacted|hidden|masked|fake|"
    r"x{4}|\*{3}|\.{3}|0{6}|0?123456789|abcdefg|\$\{|%\(|[<>{}…]|\[[A-Z_]+\]",
    re.IGNORECASE,
)
_RUN = re.compile(r"[A-Za-z0-9]{8,}")


def _entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def _is_random(text: str) -> bool:
    """Whether a text looks like one that a machine drew: letters and digits, mixed, many of them.

    The entropy is detect-secrets' default for hexadecimal strings. What is made of words and
    numbers (`my-app-secret-2023`, `settings.KEY_2`) has no run in which both are mixed.
    """
    runs = _RUN.findall(text)
    is_mixed = any(re.search(r"\d", run) and re.search(r"[A-Za-z]", run) for run in runs)
    digits = sum(c.isdigit() for c in text)
    return is_mixed and digits >= 2 and _entropy(text) >= 3 and not _STAND_IN.search(text)


def _pem(match: re.Match[str]) -> Found | None:
    letters = re.sub(r"\\+[nrt]|[^A-Za-z0-9+/]", "", match["body"])
    if len(letters) < 40 or _STAND_IN.search(match["body"]):
        return None
    label = match["label"].strip()
    excerpt = f"{label}… ({len(match[0])} characters)"
    return Found(match.start(), match.end(), "private_key", excerpt)


def _jwt(match: re.Match[str]) -> Found | None:
    head = match["head"]
    try:
        described = orjson.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, binascii.Error):
        return None
    if not isinstance(described, dict) or "alg" not in described:
        return None
    return Found(match.start(), match.end(), "token", f"eyJ… ({len(match[0])} characters)")


def _authorization(match: re.Match[str]) -> Found | None:
    scheme, value = (match["scheme"] or "").lower(), match["value"]
    if scheme == "basic":
        try:
            is_token = b":" in base64.b64decode(value, validate=True)
        except binascii.Error:
            is_token = False
    else:
        is_token = len(value) >= 16 and _is_random(value)
    if not is_token:
        return None
    excerpt = f"{scheme or 'authorization'}… ({len(value)} characters)"
    return Found(*match.span("value"), "token", excerpt)


# Prefixes by which vendors mark their keys, from their own documentation, and what follows. In the
# first group a key has a fixed shape; in the second what follows has to look random as well.
_SHAPED_KEYS = (
    r"(?:AKIA|ASIA)(?=[A-Z0-9]{16}(?![A-Za-z0-9]))|"  # AWS: unique identifiers of IAM
    r"gh[pousr]_(?=[A-Za-z0-9]{36})|github_pat_(?=[A-Za-z0-9_]{60})|"  # GitHub
    r"glpat-(?=[A-Za-z0-9_-]{20})|"  # GitLab
    r"AIza(?=[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-]))|GOCSPX-(?=[A-Za-z0-9_-]{28})|"  # Google
    r"xox[abeoprs]-(?=[A-Za-z0-9-]{10})|xapp-(?=\d-[A-Za-z0-9-]{10})|"  # Slack
    r"(?:sk|rk)_(?:live|test)_(?=[A-Za-z0-9]{16})|"  # Stripe
    r"hf_(?=[A-Za-z]{34}(?![A-Za-z]))|npm_(?=[A-Za-z0-9]{36})|pypi-(?=AgE[A-Za-z0-9_-]{50})|"
    r"SG\.(?=[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})|"  # SendGrid
    r"do[opr]_v1_(?=[0-9a-f]{64})|dapi(?=[0-9a-f]{32}(?![0-9a-z]))|"  # DigitalOcean, Databricks
    r"shp(?:at|ca|pa|ss)_(?=[0-9a-fA-F]{32})|"  # Shopify
    r"dckr_pat_(?=[A-Za-z0-9_-]{27})|ATATT3(?=[A-Za-z0-9_=-]{50})|lin_api_(?=[A-Za-z0-9]{40})"
)
_RANDOM_KEYS = (
    r"sk-(?:proj-|ant-|or-|svcacct-)?(?=[A-Za-z0-9_-]{20})|"  # OpenAI, Anthropic, OpenRouter, …
    r"(?:gsk|xai|pplx|r8|ntn|tvly|fw|nvapi)[_-](?=[A-Za-z0-9_-]{20})"  # model and search services
)
_PREFIXED_TRIGGER = (
    r"A(?:KIA|SIA)[A-Z0-9]|gh[pousr]_[A-Za-z0-9]|github_pat_|glpat-|AIza|GOCSPX-|xox[abeoprs]-|"
    r"xapp-|[sr]k_(?:live|test)_|hf_[A-Za-z]|npm_[A-Za-z0-9]|pypi-AgE|SG\.[A-Za-z0-9_-]|do[opr]_v1_|"
    r"dapi[0-9a-f]|shp(?:at|ca|pa|ss)_|dckr_pat_|ATATT3|lin_api_|sk-[A-Za-z0-9]|"
    r"(?:gsk|xai|pplx|r8|ntn|tvly|fw|nvapi)[_-][A-Za-z0-9]"
)


def _prefixed_key(match: re.Match[str]) -> Found | None:
    prefix, rest = match["shaped"] or match["random"], match["rest"]
    is_key = (
        _entropy(rest) >= 2.5 and not _STAND_IN.search(rest)
        if match["shaped"]
        else _is_random(rest)
    )
    if not is_key:
        return None
    return Found(*match.span(), "api_key", f"{prefix}… ({len(match[0])} characters)")


def _named_key(match: re.Match[str]) -> Found | None:
    if not _is_random(match["value"]):
        return None
    name = re.sub(r"[^a-z]+", "_", match["name"].lower())
    excerpt = f"{name}=… ({len(match['value'])} characters)"
    return Found(*match.span("value"), "api_key", excerpt)


# Values that are a word for a password, a type, a constant or a variable.
_NO_PASSWORD = re.compile(
    r"(?:[a-z]+_)*(?:pass(?:word|wd|phrase|code)?|pwd|pw|secret|user(?:name)?|root|admin|postgres|"
    r"guest)s?\d?|"
    r"[^A-Za-z]*|[A-Za-z_-]*|(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*|[$%&*/~].*|.*://.*|.*[()].*",
    re.IGNORECASE | re.ASCII,
)


def _password(match: re.Match[str]) -> Found | None:
    value = match["quoted"] or match["plain"]
    if _NO_PASSWORD.fullmatch(value) or _STAND_IN.search(value):
        return None
    span = match.span("quoted" if match["quoted"] else "plain")
    return Found(*span, "password", "password…")


def _password_in_url(match: re.Match[str]) -> Found | None:
    value = match["value"]
    is_word = _NO_PASSWORD.fullmatch(value) and not value.isdigit()
    if is_word or _STAND_IN.search(value):
        return None
    return Found(*match.span("value"), "password", f"{match['scheme']}://…:…@")


# ------------------------------------------------------------------------------------------------
# Addresses and numbers of persons
# ------------------------------------------------------------------------------------------------

_RESERVED_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|net|org)|example|test|invalid|localhost|local)"
)
_NOBODY = frozenset({"noreply", "no-reply", "donotreply", "do-not-reply", "git"})
# `icon@2x.png`: ends of file names that are no top-level domains.
_FILE_ENDS = re.compile(
    r"bmp|bz|css|csv|gif|gz|html|ico|jpe?g|jsx?|json|log|pdf|png|scss|svg|tar|tgz|tiff|tsx?|txt|"
    r"webp|xml|ya?ml"
)


# What stands before the `@`. Behind `ssh` or `//` it is a name on a machine.
_LOCAL_PART = re.compile(
    rf"(?<![@.])(?<!//)(?<!\bssh ){_START}[A-Za-z0-9_][A-Za-z0-9._%+-]{{0,63}}\Z", re.ASCII
)


def _email(match: re.Match[str]) -> Found | None:
    at, domain = match.start(), match["domain"].lower()
    local = _LOCAL_PART.search(match.string, max(0, at - 80), at)
    end = domain.rsplit(".", 1)[1]
    if local is None or local[0].lower() in _NOBODY:
        return None
    if _RESERVED_DOMAIN.fullmatch(domain) or _FILE_ENDS.fullmatch(end):
        return None
    excerpt = f"{local[0][0]}…@{domain[0]}….{end[:4]}"
    return Found(local.start(), match.end(), "email", excerpt)


# The SWIFT registry of IBANs: how long one is, by country.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def _iban(match: re.Match[str]) -> Found | None:
    """As many characters as the country has, one space between two of them at most."""
    text, start = match.string, match.start()
    length = _IBAN_LENGTHS.get(text[start : start + 2], 0)
    written = re.compile(rf"[A-Z0-9](?: ?[A-Z0-9]){{{max(length - 1, 0)}}}(?![A-Za-z0-9])")
    candidate = written.match(text, start) if length else None
    if candidate is None:
        return None
    iban = candidate[0].replace(" ", "")
    if int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 != 1:
        return None
    excerpt = f"{iban[:2]}… ({length} characters)"
    return Found(start, candidate.end(), "iban", excerpt)


# Issuers' prefixes and the lengths of their numbers.
_CARDS = re.compile(
    r"4\d{15}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|"  # Visa, Mastercard
    r"3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|"  # American Express, Diners Club
    r"(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d))\d{12}|62\d{14,17}"  # Discover, JCB, UnionPay
)


# One long number in ten passes for a card's, so one in groups counts by itself, another does not.
_ABOUT_CARDS = re.compile(
    r"card|visa|amex|american express|discover|payment|billing|cvv|cvc|expir|\b(?:cc|pan)\b",
    re.IGNORECASE,
)


def _credit_card(match: re.Match[str]) -> Found | None:
    start, end = match.start(), match.end(1)
    digits = re.sub(r"\D", "", match.string[start:end])
    is_called = _ABOUT_CARDS.search(match.string, max(0, start - 80), end + 40)
    if len(digits) == end - start and not is_called:
        return None
    if not _CARDS.fullmatch(digits) or len(set(digits)) < 3 or not _passes_luhn(digits):
        return None
    return Found(start, end, "credit_card", f"{digits[0]}… ({len(digits)} digits)")


def _passes_luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


# Numbers of services, which are nobody's own.
_SERVICES = frozenset(
    {
        PhoneNumberType.TOLL_FREE,
        PhoneNumberType.PREMIUM_RATE,
        PhoneNumberType.SHARED_COST,
        PhoneNumberType.UAN,
        PhoneNumberType.VOICEMAIL,
        PhoneNumberType.UNKNOWN,
    }
)
# Where a national number begins with 0, and where it does not and a mobile one has a form of
# its own. Between them most countries' forms are found.
_TRUNK_0 = ("GB", "DE", "FR", "IT", "NL", "AU", "JP", "KR", "IN", "ZA", "TR")
_NO_TRUNK = ("IN", "CN", "BR", "ES", "PL")


def _is_personal(number: PhoneNumber) -> bool:
    national = str(number.national_number)
    # North America's exchange 555 has no subscribers; Ofcom keeps 07700 900xxx for drama.
    is_fiction = (number.country_code == 1 and national[3:6] == "555") or (
        number.country_code == 44 and national.startswith("7700900")
    )
    return not is_fiction and phonenumbers.number_type(number) not in _SERVICES


_LAST_GROUP = re.compile(r"[ ().\-/]*\+?\d+\Z", re.ASCII)


def _international_phone(match: re.Match[str]) -> Found | None:
    text = match["value"]
    if re.fullmatch(r"\+\d+\.\d+", text):  # a signed number
        return None
    return _first_phone(match, None)


def _north_american_phone(match: re.Match[str]) -> Found | None:
    return _first_phone(match, "US")


def _first_phone(match: re.Match[str], region: str | None) -> Found | None:
    """The number that a candidate begins with; it may have other numbers behind it."""
    text, start = match["value"], match.start("value")
    while text:
        for one in phonenumbers.PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            if one.start > 1 or not _is_personal(one.number):
                return None
            return _phone(start + one.start, start + one.end, one.raw_string)
        text = _LAST_GROUP.sub("", text)
    return None


def _named_phone(match: re.Match[str]) -> Found | None:
    """A number as it is dialled at home, where the text says that it is a phone's."""
    text = match["value"]
    digits = re.sub(r"\D", "", text)
    if len(set(digits)) < 3:
        return None
    if digits.startswith("0"):
        is_number = any(_is_valid(digits, region, ()) for region in _TRUNK_0)
    else:
        mobile = (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE)
        is_number = (
            _is_valid(digits, "US", ())
            or any(_is_valid(digits, region, mobile) for region in _NO_TRUNK)
            or (len(digits) > 10 and _is_valid(f"+{digits}", None, mobile))
        )
    return _phone(*match.span("value"), text) if is_number else None


def _is_valid(digits: str, region: str | None, types: tuple[int, ...]) -> bool:
    try:
        number = phonenumbers.parse(digits, region)
    except NumberParseException:
        return False
    is_of_type = not types or phonenumbers.number_type(number) in types
    return phonenumbers.is_valid_number(number) and is_of_type and _is_personal(number)


def _phone(start: int, end: int, text: str) -> Found:
    shown = text[:2] if text.startswith("+") else ""
    return Found(start, end, "phone", f"{shown}… ({sum(map(str.isdigit, text))} digits)")


# What stands before a version 4 address that is called one, and behind one in a server's log.
_CALLED_IP = re.compile(
    r"(?:\b|_)(?:ip|IP|Ip)(?:v4)?(?:\b|_|s\b)|[a-z]I[Pp]\b|"
    r"(?i:ipaddr|address|forwarded|remote|client)"
)
_LOGGED_IP = re.compile(r" port \d| - [^ ]+ \[")


def _ipv4(match: re.Match[str]) -> Found | None:
    text, start, end = match.string, *match.span()
    is_called = _CALLED_IP.search(text, max(0, start - 40), start)
    if not (is_called or _LOGGED_IP.match(text, end)) or not _is_public(match[0]):
        return None
    return Found(start, end, "ip_address", f"{match[0].split('.')[0]}… (IPv4)")


def _ipv6(match: re.Match[str]) -> Found | None:
    if match[0].endswith("::") or not _is_public(match[0]):
        return None
    return Found(*match.span(), "ip_address", f"{match[0][:2]}… (IPv6)")


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------
# All rules
# ------------------------------------------------------------------------------------------------


def _pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII | re.DOTALL | flags)


_PEM_TEXT = r"(?:[A-Za-z0-9+/=:,. \t\r\n]|-(?!-)|\\+[nrt])"

# In order: where two overlap, the first counts.
RULES: tuple[Rule, ...] = (
    Rule(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
        _pattern(
            rf"-----BEGIN (?P<label>[A-Z0-9 ]{{0,20}}PRIVATE KEY)(?: BLOCK)?-----"
            rf"(?P<body>{_PEM_TEXT}{{0,20000}}+)-----END "
            r"[A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?-----"
        ),
        _pem,
    ),
    Rule(
        "token",
        r"eyJ[A-Za-z0-9_-]+\.",
        _pattern(
            rf"{_START}(?P<head>eyJ[A-Za-z0-9_-]{{8,1000}})\.[A-Za-z0-9_-]{{8,20000}}\.[A-Za-z0-9_-]{{0,2000}}"
        ),
        _jwt,
    ),
    Rule(
        "token",
        r"(?i:authorization[\"'`\\]{0,6}[ \t]{0,3}[:=]|bearer[ \t])",
        _pattern(
            rf"""(?:authorization{_ASSIGNED}{_QUOTES}"""
            r"""(?:(?P<scheme>bearer|basic|token)[ \t]+)?|bearer[ \t]+)"""
            r"(?P<value>[A-Za-z0-9._~+/-]{8,}={0,2})",
            re.IGNORECASE,
        ),
        _authorization,
    ),
    Rule(
        "api_key",
        _PREFIXED_TRIGGER,
        _pattern(
            rf"(?<![_-]){_START}(?:(?P<shaped>{_SHAPED_KEYS})|(?P<random>{_RANDOM_KEYS}))"
            r"(?P<rest>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?)"
        ),
        _prefixed_key,
    ),
    Rule(
        "api_key",
        rf"(?i:{_KEY_NAMES}){_ASSIGNED}{_QUOTES}[A-Za-z0-9_+/.~-]{{16}}",
        _pattern(
            rf"(?P<name>{_KEY_NAMES}){_ASSIGNED}{_QUOTES}"
            r"(?P<value>[A-Za-z0-9_+/.~-]{16,512}={0,2})(?![A-Za-z0-9(\[])",
            re.IGNORECASE,
        ),
        _named_key,
    ),
    Rule(
        "api_key",
        r"[?&](?i:api_?key|key|token|access_token)=",
        _pattern(
            r"[?&](?P<name>api_?key|key|token|access_token)=(?P<value>[A-Za-z0-9_.~-]{16,512})",
            re.IGNORECASE,
        ),
        _named_key,
    ),
    Rule(
        "password",
        r"(?i:pass(?:word|wd|phrase|code)|pwd)[0-9]?"
        rf"(?:{_ASSIGNED}|[ \t]+(?i:is|was))|(?i:--password[ \t])",
        _pattern(
            r"(?:(?:pass(?:word|wd|phrase|code)|pwd)\d?"
            rf"(?:{_ASSIGNED}|[ \t]+(?:is|was)[: \t]+)|--password[ \t]+)"
            r"""(?:\\{0,3}(?P<quote>["'`])(?P<quoted>[^\s"'`\\]{6,64})\\{0,3}(?P=quote)|"""
            r"""(?P<plain>[^\s"'`\\,;(){}\[\]<>|]{6,64})(?![^\s"'`\\,;)}\]<>|]))""",
            re.IGNORECASE,
        ),
        _password,
    ),
    Rule(
        "password",
        r"[a-z]://[A-Za-z0-9._%+-]+:[^\s/@:]+@",
        _pattern(
            r"(?P<scheme>[a-z][a-z0-9+]{1,20})://[A-Za-z0-9._%+-]{1,64}:"
            r"""(?P<value>[^\s/@:"'`\\,<>{}()\[\]]{3,256})@"""
        ),
        _password_in_url,
    ),
    Rule(
        "email",
        r"[A-Za-z0-9._%+-]@[A-Za-z0-9]",
        _pattern(
            r"@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24})"
            r"(?![A-Za-z0-9_(@-]|\.[A-Za-z0-9]|:[~/])"
        ),
        _email,
    ),
    Rule(
        "iban",
        r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}",
        _pattern(rf"[A-Z]{_STARTED}[A-Z]\d{{2}}(?= ?[A-Z0-9]{{4}} ?[A-Z0-9]{{4}})"),
        _iban,
    ),
    Rule(
        "credit_card",
        r"[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{2}|[0-9]{4}[ -][0-9]{6}[ -][0-9]",
        # Ahead, so that a candidate that does not count hides none that begins inside it.
        _pattern(
            rf"\d{_STARTED}(?<![._+-].)(?<!\d .)"
            r"(?=(\d{3}([ -])\d{4}\2\d{4}\2\d{4}|\d{3}([ -])\d{6}\3\d{4,5}|\d{13,18})"
            r"(?![A-Za-z0-9_]|[ .-]\d))"
        ),
        _credit_card,
    ),
    Rule(
        "phone",
        r"\+[0-9][0-9 ().\-/]{5,}",
        _pattern(rf"(?<![_+]){_START}(?P<value>\+\d[\d ().\-/]{{5,20}}\d)(?![A-Za-z0-9_])"),
        _international_phone,
    ),
    Rule(
        "phone",
        r"[0-9]{3}[).-] ?[0-9]{3}[ .-][0-9]{4}",
        _pattern(
            rf"(?<![_.+/=#-])(?<!\d ){_START}"
            r"(?P<value>(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]|"
            r"[2-9]\d\d([.-])[2-9]\d\d\2)\d{4})(?![A-Za-z0-9_/]|[.-]\d)"
        ),
        _north_american_phone,
    ),
    Rule(
        "phone",
        rf"(?i:{_SHORT_PHONE_NAMES}|{_PHONE_NAMES})\(?[0-9][0-9 ().\-/]{{5}}",
        _pattern(
            rf"(?:(?<![A-Za-z]){_SHORT_PHONE_NAMES}|{_PHONE_NAMES})"
            r"(?P<value>\(?\d[\d ().\-/]{5,18}\d)(?![A-Za-z0-9_]|[.-]\d)",
            re.IGNORECASE,
        ),
        _named_phone,
    ),
    Rule(
        "ip_address",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
        _pattern(rf"(?<![._/-]){_START}\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![A-Za-z0-9_]|\.\d)"),
        _ipv4,
    ),
    Rule(
        "ip_address",
        r"[23][0-9a-fA-F]{3}:[0-9a-fA-F]{0,4}:",
        _pattern(
            rf"(?<![:._-]){_START}[23][0-9a-fA-F]{{3}}:(?:[0-9a-fA-F]{{0,4}}:){{1,6}}"
            r"[0-9a-fA-F]{0,4}(?![A-Za-z0-9_:])"
        ),
        _ipv6,
    ),
)
KINDS: tuple[str, ...] = tuple(sorted({rule.kind for rule in RULES}))

# A text in which no rule's trigger stands has nothing.
ANY_TRIGGER = "|".join(f"(?:{rule.trigger})" for rule in RULES)
