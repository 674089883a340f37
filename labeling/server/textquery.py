"""Elasticsearch's `simple_query_string` (operator AND), which Argilla's search box speaks, as an FTS5 expression.

Understood as there: words, `"phrases"`, `prefix*`, `|` or, `+` and, `-` not, brackets, `\\` before a sign that is
meant as it is; operators bind from left to right. Nothing in a query is an error: a sign in the wrong place is left
out. Not understood: `~` (words spelled nearly so, phrases with gaps); `bread~1` asks for `bread`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from labeling.server.words import role, words

LONGEST = 2_000
"""Characters of a query; longer ones are cut."""
DEEPEST = 20
"""Brackets within brackets that are minded; those further in are left out."""
_SPACE = " \t\n\r"
_ENDS = _SPACE + '"|+()'


@dataclass(frozen=True)
class Where:
    """In which columns of the index to look."""

    columns: tuple[str, ...]
    everything: str
    """Matches all records of the dataset."""
    chat: bool = False
    """Whether a field is a chat, whose roles are found too."""


@dataclass
class _State:
    text: str
    depth: int
    index: int = 0
    branches: list[str] = field(default_factory=list)
    """What was read so far, joined by `operator`; kept flat, for FTS5 takes few brackets within brackets."""
    operator: str | None = None
    current: str | None = None
    """The operator just read, for the next branch."""
    negations: int = 0


def expression(query: str, where: Where) -> str | None:
    """The FTS5 expression of a query, or None where it names no word and so finds nothing."""
    found = _parse(query[:LONGEST].encode("utf-8", "ignore").decode().replace("\0", " "), where, 0)
    return None if found is None or not where.columns else f"{where.everything} AND {found}"


def _parse(text: str, where: Where, depth: int) -> str | None:
    state = _State(text, depth)
    while state.index < len(text):
        sign = text[state.index]
        if sign == "-":
            state.negations += 1
            state.index += 1
            continue  # whatever else comes before the next word, a space included, forgets the negation
        if sign == "(":
            _bracket(state, where)
        elif sign == '"':
            _phrase(state, where)
        elif sign in "+|":
            if state.current is None and state.branches:
                state.current = "AND" if sign == "+" else "OR"
            state.index += 1
        elif sign in _SPACE or sign == ")":
            state.index += 1
        else:
            _word(state, where)
        state.negations = 0
    return _joined(state)


def _joined(state: _State) -> str | None:
    if len(state.branches) < 2:
        return state.branches[0] if state.branches else None
    return "(" + f" {state.operator} ".join(state.branches) + ")"


def _add(state: _State, branch: str | None, where: Where) -> None:
    """Join a branch to what was read so far, by the operator in between."""
    if branch is None:
        return
    if state.negations % 2:
        branch = f"({where.everything} NOT {branch})"
    operator = state.current or "AND"
    if len(state.branches) > 1 and state.operator != operator:
        state.branches = [_joined(state) or ""]
    state.operator, state.current = operator, None
    state.branches.append(branch)


def _bracket(state: _State, where: Where) -> None:
    start, depth, index = state.index + 1, 1, state.index + 1
    while index < len(state.text) and depth:
        if state.text[index] == "\\":
            index += 1
        elif state.text[index] in "()":
            depth += 1 if state.text[index] == "(" else -1
        index += 1
    if depth or state.depth == DEEPEST:
        state.index = start  # never closed, or too deep: left out
        return
    state.index = index
    _add(state, _parse(state.text[start : index - 1], where, state.depth + 1), where)


def _phrase(state: _State, where: Where) -> None:
    start = index = state.index + 1
    letters = []
    while index < len(state.text) and state.text[index] != '"':
        index += state.text[index] == "\\"
        letters.append(state.text[index : index + 1])
        index += 1
    if index >= len(state.text):
        state.index = start
        return
    state.index = index + 1
    _skip_slop(state)
    phrase = " ".join(words("".join(letters)))
    _add(state, f'({_columns(where.columns)} : "{phrase}")' if phrase else None, where)


def _word(state: _State, where: Where) -> None:
    letters: list[str] = []
    prefix = False
    while state.index < len(state.text) and state.text[state.index] not in _ENDS:
        sign = state.text[state.index]
        if letters and sign == "~":
            _skip_slop(state)
            break
        prefix = bool(letters) and sign == "*"
        state.index += sign == "\\"
        letters.append(state.text[state.index : state.index + 1])
        state.index += 1
    text = "".join(letters)
    _add(state, _begins(text[:-1], where) if prefix else _all_of(text, where), where)


def _skip_slop(state: _State) -> None:
    if state.text[state.index : state.index + 1] == "~":
        state.index += 1
        while state.text[state.index : state.index + 1].isdigit():
            state.index += 1


def _all_of(text: str, where: Where) -> str | None:
    """All words of `wi-fi` stand in one field."""
    found = [f'"{word}"' for word in words(text)]
    if not found:
        return None
    columns = [where.columns] if len(found) == 1 else [(column,) for column in where.columns]
    each = [
        f"{_columns(group)} : {found[0] if len(found) == 1 else '(' + ' AND '.join(found) + ')'}" for group in columns
    ]
    if where.chat and '"' not in text:
        each.append(f'{_columns(where.columns)} : "{role(text)}"')
    return "(" + " OR ".join(f"({one})" for one in each) + ")"


def _begins(text: str, where: Where) -> str | None:
    """A prefix is not cut into words: one that no word can begin with finds nothing."""
    if not text.strip('"'):
        return None
    lowered = text.lower().replace('"', "")
    each = [f'({_columns(where.columns)} : "{lowered}" *)'] if _could_begin(lowered) else []
    if where.chat and '"' not in text:
        each.append(f'({_columns(where.columns)} : "{role(text)}" *)')
    return "(" + " OR ".join(each) + ")" if each else f"({where.everything} NOT {where.everything})"


def _could_begin(text: str) -> bool:
    """Whether some word begins so: `3.` begins `3.5`, nothing begins with `a-b`."""
    return any(words(text + end) == [text + end] for end in ("", "a", "1"))


def _columns(columns: Sequence[str]) -> str:
    return "{" + " ".join(columns) + "}"
