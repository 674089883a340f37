"""Personal data in texts, by patterns and check sums: what looks like it and cannot be it is left alone."""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tasks.artifact import Row

Pii = Literal["password", "key", "email", "iban", "card", "ssn", "ip", "phone"]
"""The kinds, the surest first."""

_CALLED = r"(?:\b(?i:phone|telephone|tel|mobile|cell|fax|whatsapp)(?: ?(?i:number|no\.|#))?(?: is|\.)?:? {0,2})"
"""What says that a telephone number follows."""
_PATTERNS: dict[str, re.Pattern[str]] = {
    "password": re.compile(r"(?<=://)[^\s/:@]{1,200}:[^\s/@]{1,200}(?=@)"),
    "key": re.compile(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[^-]{0,20000}(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----)?"
        r"|(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{20,200}|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,200}|gh[oprsu]_[A-Za-z0-9]{36,255}"
        r"|github_pat_\w{36,255}|glpat-[\w-]{20,200}|hf_[A-Za-z0-9]{30,100}|npm_[A-Za-z0-9]{36}|xox[abeprs]-[A-Za-z0-9-]{10,200}"
        r"|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{35}|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,5000}\.[\w-]{10,1000})(?![A-Za-z0-9_-])"
    ),
    "email": re.compile(r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    "iban": re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?= ?[A-Z0-9])"),
    "card": re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.]?\d)"),
    "ssn": re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    "ip": re.compile(
        r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\w)"
        r"|(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"
    ),
    "phone": re.compile(
        _CALLED + r"(?P<called>\(?\d[\d ()/.-]{6,18}\d)(?![\w-]|[.,]\d)"
        r"|(?<![\w.,/-])(?:(?:\+[1-9]\d{0,2}[ .-]?|(?<!\d )00[1-9]\d{0,2}[ .-])(?:\(\d{1,4}\)[ .-]?)?"
        r"\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
        r"|(?:1[ .-]?)?\(\d{3}\)[ .-]?\d{3}[ .-]?\d{4}|(?:1[.-])?\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|[.,]\d)"
    ),
}


def redact(text: str, find: Iterable[str]) -> str:
    """The text with `[EMAIL]`, `[CARD]` and so on in the place of what was found, the surest kinds first."""
    wanted = set(find)
    for name, pattern in _PATTERNS.items():
        if name not in wanted or not _worth_looking(name, text):
            continue
        if name == "iban":
            text = _without_ibans(text)
        else:
            text = pattern.sub(lambda match, name=name: _masked(name, match), text)
    return text


def found(before: str, after: str) -> Counter[str]:
    """How often each kind was masked between two texts."""
    return Counter({kind: after.count(_MASKS[kind]) - before.count(_MASKS[kind]) for kind in _MASKS})


def redact_values(value: Any, find: Iterable[str], but: Sequence[str] = ()) -> Any:
    """A value as JSON has them with every text in it redacted, at any depth, and whole numbers that are found; what
    stands under the keys `but` stays."""
    if isinstance(value, str):
        return redact(value, find)
    if isinstance(value, int) and not isinstance(value, bool):
        masked = redact(str(value), find)
        return value if masked == str(value) else masked
    if isinstance(value, Mapping):
        return {
            redact(str(key), find): each if key in but else redact_values(each, find, but)
            for key, each in value.items()
        }
    return [redact_values(each, find, but) for each in value] if isinstance(value, (list, tuple)) else value


def redact_json(text: str, find: Iterable[str]) -> str:
    """JSON text with its values redacted, so that it stays JSON; the same text where nothing is found."""
    try:
        before = json.loads(text)
    except (ValueError, RecursionError):
        return redact(text, find)
    after = redact_values(before, find)
    return text if after == before else json.dumps(after, ensure_ascii=False)


def redact_calls(calls: Sequence[Row], find: Iterable[str]) -> list[Row]:
    """Tool calls (`Message.tool_calls`) with the values of their arguments redacted."""
    return [
        {**call, "function": {**call["function"], "arguments": redact_json(call["function"]["arguments"], find)}}
        for call in calls
    ]


_MASKS = {kind: f"[{kind.upper()}]" for kind in _PATTERNS}
_DIGITS = re.compile(r"\d")
_HINTS = {"email": "@", "password": "://", "key": ""}


def _worth_looking(name: str, text: str) -> bool:
    return _HINTS[name] in text if name in _HINTS else _DIGITS.search(text) is not None


def _masked(name: str, match: re.Match[str]) -> str:
    """What stands in the place of a match: the mask, or what was there where it cannot be it."""
    whole, called = match.group(), match.groupdict().get("called")
    text = called or whole
    check = _CHECKS.get(name)
    if check is not None and not check(text, match.string[max(0, match.start() - 12) : match.start()]):
        return whole
    return whole[: len(whole) - len(text)] + _MASKS[name]


def _is_email(text: str, before: str) -> bool:
    return not text.startswith("git@")  # where code is fetched from


def _is_card(text: str, before: str) -> bool:
    """Luhn's check sum (ISO/IEC 7812), of 13 to 19 digits that begin as cards of the payment networks do."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    begin = int("".join(map(str, digits[:4])))
    issued = 2221 <= begin <= 2720 or 3000 <= begin <= 3999 or 4000 <= begin <= 6999
    return issued and 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30"
)
_IBANS = {each[:2]: int(each[2:]) for each in _LENGTHS.split()}
"""Lengths by country (the IBAN registry of ISO 13616)."""


def _without_ibans(text: str) -> str:
    parts, end = [], 0
    for match in _PATTERNS["iban"].finditer(text):
        begin = match.start()
        if begin >= end and (length := _iban(text[begin : begin + 48])):
            parts += [text[end:begin], _MASKS["iban"]]
            end = begin + length
    return "".join([*parts, text[end:]])


def _iban(text: str) -> int:
    """How many characters at the beginning are an IBAN: of its country's length, with check digits that are 1 modulo 97
    when it is rearranged and read as a number (ISO 13616). 0 for none."""
    length = 0
    for place, letter in enumerate(text, 1):
        if letter != " " and not (letter.isascii() and letter.isalnum()):
            return 0
        length += letter != " "
        if length == _IBANS.get(text[:2]) and not text[place : place + 1].isalnum():
            plain = text[:place].replace(" ", "")
            return place if int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1 else 0
    return 0


_NUMBERED = re.compile(
    r"(?:\b(?:version|ver|release|build|firmware|section|chapter|figure|table|rule)\.?:?|§) ?$", re.IGNORECASE
)


def _is_address(text: str, before: str) -> bool:
    """An address that may be somebody's, and no number of a version or section."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    nobodys = address.is_unspecified or address.is_loopback or (address.version == 4 and address.is_reserved)
    return not nobodys and not _NUMBERED.search(before)


_DATE = re.compile(r"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)\d\d")


def _is_phone(text: str, before: str) -> bool:
    """8 to 15 digits (ITU-T E.164); at least 10 where nothing parts them."""
    digits = sum(letter.isdigit() for letter in text)
    parted = digits < len(text.lstrip("+"))
    return (8 if parted else 10) <= digits <= 15 and not _DATE.match(text)


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "email": _is_email, "card": _is_card, "ip": _is_address, "phone": _is_phone,
}  # fmt: skip
"""Whether a match is what it looks like, with a little of what stands before it."""
