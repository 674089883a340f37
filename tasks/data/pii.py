"""Personal data in texts, by patterns and check sums: what looks like it and cannot be it is left alone."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.artifact import Row

_PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    "iban": re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
    "card": re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.]?\d)"),
    "ssn": re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    "ip": re.compile(
        r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w:]|\.\d)"
        r"|(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:])"
    ),
    "phone": re.compile(
        r"(?<![\w.,/-])(?:(?:\+|00)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|[.,]\d)"
    ),
}


def redact(text: str, find: Iterable[str]) -> str:
    """The text with `[EMAIL]`, `[CARD]` and so on in the place of what was found, the surest kinds first."""
    wanted = set(find)
    for name, pattern in _PATTERNS.items():
        if name in wanted and _worth_looking(name, text):
            text = pattern.sub(lambda match, name=name: _masked(name, match.group()), text)
    return text


def redact_values(value: Any, find: Iterable[str]) -> Any:
    """A value as JSON has them with every text in it redacted, at any depth, and whole numbers that are found."""
    if isinstance(value, str):
        return redact(value, find)
    if isinstance(value, int) and not isinstance(value, bool):
        masked = redact(str(value), find)
        return value if masked == str(value) else masked
    if isinstance(value, Mapping):
        return {redact(str(key), find): redact_values(each, find) for key, each in value.items()}
    return [redact_values(each, find) for each in value] if isinstance(value, (list, tuple)) else value


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


def _worth_looking(name: str, text: str) -> bool:
    return "@" in text if name == "email" else any(digit in text for digit in "0123456789")


def _masked(name: str, found: str) -> str:
    check = _CHECKS.get(name)
    return f"[{name.upper()}]" if check is None or check(found) else found


def _is_card(text: str) -> bool:
    """Luhn's check sum (ISO/IEC 7812), of 13 to 19 digits that are not all the same."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """The check digits of ISO 13616: rearranged and read as a number, 1 modulo 97."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


_CHECKS: dict[str, Callable[[str], bool]] = {"card": _is_card, "iban": _is_iban, "ip": _is_address}
