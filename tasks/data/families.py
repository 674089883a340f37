"""Which rows that a model wrote come of one another: they stay in one split."""

from collections.abc import Iterator

from tasks.artifact import Row

IDS = ("prompt_id", "parent", "task", "shown", "digest", "seed", "line")
"""What of `made` names other things: no filter changes it."""


def is_made(value: object) -> bool:
    """Whether a row's column says how a synthesis made it."""
    return isinstance(value, dict) and isinstance(value.get("steps"), list)


def family(made: Row) -> Iterator[str]:
    """The prompts of a row by their ids: its own as it was written, those that it goes back to, and its task's."""
    if isinstance(made.get("prompt_id"), str):
        yield made["prompt_id"]
    for step in made["steps"]:
        if not isinstance(step, dict):
            continue
        for name in ("parent", "task"):
            if isinstance(step.get(name), str):
                yield step[name]
        if is_made(step.get("made")):
            yield from family(step["made"])


def without_made(row: Row) -> tuple[Row, Row | None]:
    """A row, and what it says of how a synthesis made it, which is no part of what it says."""
    made = row.get("made")
    if not is_made(made):
        return row, None
    return {name: value for name, value in row.items() if name != "made"}, made
