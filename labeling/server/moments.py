"""Dates as Elasticsearch reads them (`strict_date_optional_time` or milliseconds since 1970)."""

import re
from datetime import UTC, datetime, timedelta

_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?(Z|[+-]\d\d:?\d\d)?)?)?)?"
)
_LAST = (1, 1, 23, 59, 59, 999_999)
"""What stands for a missing month, day, hour, minute, second and microsecond at the end of a period."""
_FIRST = (1, 1, 0, 0, 0, 0)


def period(value: str | float) -> tuple[datetime, datetime]:
    """The first and the last moment a date means, in UTC without saying so, as Argilla stores them.

    Missing parts are filled as Elasticsearch does for ranges: months and days with 1, the time of day with its end.
    Raises ValueError for what is no date.
    """
    if isinstance(value, int | float) or re.fullmatch(r"-?\d{5,}(\.\d+)?", value):
        try:
            moment = datetime(1970, 1, 1) + timedelta(milliseconds=float(value))
        except OverflowError as error:
            raise ValueError(f"{value} milliseconds are no date") from error
        return moment, moment
    match = _DATE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no date")
    *parts, fraction, offset = match.groups()
    told = [int(part) for part in parts if part is not None]
    if fraction is not None:
        told.append(int(fraction[:6].ljust(6, "0")))
    return _utc([*told, *_FIRST[len(told) - 1 :]], offset), _utc([*told, *_LAST[len(told) - 1 :]], offset)


def _utc(parts: list[int], offset: str | None) -> datetime:
    year, month, day, hour, minute, second, microsecond = parts
    moment = datetime(year, month, day, hour, minute, second, microsecond)
    if offset in (None, "Z"):
        return moment
    zone = datetime.strptime(offset, "%z").tzinfo
    try:
        return moment.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(f"{moment}{offset} lies outside the calendar") from error
