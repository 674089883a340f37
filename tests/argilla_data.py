"""Random records, answers and questions to a search engine, and what is true about them by brute force.

The brute force knows the data only as it was made up here: words, values and statuses in plain Python.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WORDS = ["bread", "milk", "aisle", "don't", "3.5", "café", "cafe", "wi", "fi", "breadth", "黒", "猫", "naïve", "x_y"]
AISLES = ["dairy", "bakery", "drinks", "3", "Obst & Gemüse"]
AGENTS = ["judge", "r 2"]
STATUSES = ["submitted", "discarded", "draft"]
NAMES = {"aisle": "aisle", "price": "price", "weight": "weight", "size": "Größe", "quoted": 'the "name"'}
OPTIONS = ["a", "b", "c"]
LABELS = ["good", "bad", "ugly"]


@dataclass
class Row:
    """One record and everything said about it."""

    number: int
    texts: dict[str, list[str]]
    """Field -> its words; a text is the words with something between them."""
    metadata: dict[str, Any]
    vector: list[float] | None
    suggestions: dict[str, dict[str, Any]]
    responses: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Annotator -> (status, question -> value)."""
    id: str = ""

    @property
    def status(self) -> str:
        given = [status for status, _ in self.responses.values()]
        return "completed" if given.count("submitted") >= 2 else "pending"

    def body(self, questions: dict[str, str], dice: random.Random) -> dict[str, Any]:
        """The record as the API takes it."""
        between = [" ", ", ", "! ", " (", "\n", " – "]
        made = {name: "".join(word + dice.choice(between) for word in words) for name, words in self.texts.items()}
        fields: dict[str, Any] = {name: made[name] for name in ("prompt", "answer")}
        fields["talk"] = [{"role": "user", "content": made["talk"]}, {"role": "model-1", "content": made["reply"]}]
        fields["photo"] = "http://example.com/bread.png"
        suggestions = [{"question_id": questions[name], **given} for name, given in self.suggestions.items()]
        vectors = {"meaning": self.vector} if self.vector else {}
        item = {"external_id": f"r{self.number:03}", "fields": fields, "metadata": self.metadata}
        return {**item, "suggestions": suggestions, **({"vectors": vectors} if vectors else {})}


def make_rows(count: int, seed: int) -> list[Row]:
    """Rows of every shape the API takes, with holes."""
    dice = random.Random(seed)
    return [_row(number, dice) for number in range(count)]


def make_texts(dice: random.Random) -> dict[str, list[str]]:
    return {name: dice.choices(WORDS, k=dice.randint(1, 7)) for name in ("prompt", "answer", "talk", "reply")}


def make_metadata(dice: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {
        NAMES["aisle"]: dice.choice([*AISLES, dice.sample(AISLES, 2), [AISLES[0], AISLES[0]], None, True, 7]),
        NAMES["price"]: dice.choice([dice.randint(-5, 20), None]),
        NAMES["weight"]: dice.choice([round(dice.uniform(0, 2), 2), 1.0, 2.0]),
        NAMES["size"]: dice.choice(["klein", "groß"]),
        NAMES["quoted"]: dice.choice(["yes", ["no", "maybe"]]),
        "extra": "of no interest",
    }
    return {name: value for name, value in found.items() if dice.random() < 0.8}


def _row(number: int, dice: random.Random) -> Row:
    suggestions: dict[str, dict[str, Any]] = {
        "score": {
            "value": dice.randint(1, 5),
            "score": round(dice.random(), 2),
            "agent": dice.choice(AGENTS),
        },
        "label": {"value": dice.choice(LABELS), "type": dice.choice(["model", "human"])},
        "tags": {"value": dice.sample(LABELS, 2), "score": [0.25, round(dice.random(), 2)]},
        "note": {"value": "a note", "agent": "judge"},
    }
    suggestions = {name: given for name, given in suggestions.items() if dice.random() < 0.6}
    vector = [round(dice.uniform(-1, 1), 3) for _ in range(3)] if dice.random() < 0.8 else None
    row = Row(number, make_texts(dice), make_metadata(dice), vector, suggestions)
    for annotator in range(3):
        if dice.random() < 0.5:
            row.responses[annotator] = (dice.choice(STATUSES), make_answer(dice))
    return row


def make_answer(dice: random.Random) -> dict[str, Any]:
    """Values that may be submitted: the ranking always, the others sometimes."""
    ranks = [{"value": option, "rank": dice.randint(1, 3)} for option in OPTIONS]
    others = {"score": dice.randint(1, 5), "label": dice.choice(LABELS), "tags": dice.sample(LABELS, 2), "note": "fine"}
    return {"ranking": ranks, **{name: value for name, value in others.items() if dice.random() < 0.7}}


# What is true, by brute force


def passes(row: Row, filter: dict[str, Any], user: int | None) -> bool:
    """Whether the row passes one filter of the API, asked by an annotator (None: by everybody's answers)."""
    scope = filter["scope"]
    if scope["entity"] == "response" and scope.get("property") == "status":
        mine = [status for who, (status, _) in row.responses.items() if user in (None, who)]
        return any(status in filter["values"] for status in mine) or ("pending" in filter["values"] and not mine)
    return any(_meets(value, filter) for value in values_of(row, scope, user))


def values_of(row: Row, scope: dict[str, Any], user: int | None) -> list[Any]:
    """All values a scope means for this row."""
    if scope["entity"] == "record":
        return [{"id": row.id, "external_id": f"r{row.number:03}", "status": row.status}[scope["property"]]]
    if scope["entity"] == "metadata":
        return _flat(row.metadata.get(scope["metadata_property"]))
    if scope["entity"] == "suggestion":
        given = row.suggestions.get(scope["question"], {})
        searchable = scope["property"] != "value" or scope["question"] != "note"
        return _flat(given.get(scope["property"])) if searchable else []
    if scope["question"] in ("note", "ranking"):
        return []
    mine = [values for who, (_, values) in row.responses.items() if user in (None, who)]
    return [one for values in mine for one in _flat(values.get(scope["question"]))]


def _flat(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _meets(value: Any, filter: dict[str, Any]) -> bool:
    if isinstance(value, bool):
        return filter["type"] == "terms" and str(value).lower() in filter["values"]
    if filter["type"] == "terms":
        if isinstance(value, str):
            return value in filter["values"]
        return any(_is_number(term) and float(term) == value for term in filter["values"])
    low, high = filter.get("ge"), filter.get("le")
    if isinstance(value, str):
        return (low is None or value >= str(low)) and (high is None or value <= str(high))
    if any(bound is not None and not _is_number(bound) for bound in (low, high)):
        return False
    return (low is None or value >= float(low)) and (high is None or value <= float(high))


def _is_number(text: Any) -> bool:
    return str(text).lstrip("-").replace(".", "", 1).isdigit()


def sort_value(row: Row, scope: dict[str, Any], descending: bool, user: int | None) -> Any:
    """What a row is sorted by, or None: the mean of ratings, else the least (greatest) of its values."""
    values = [value for value in values_of(row, scope, user)]
    if not values:
        return None
    return float(np.mean(values)) if scope["entity"] == "response" else (max if descending else min)(values)


def in_order(rows: list[Row], scope: dict[str, Any], descending: bool, user: int | None) -> list[int]:
    """Numbers of the rows sorted by one key; without a value last, equal ones as they were inserted."""
    keyed = [(sort_value(row, scope, descending, user), row.number) for row in rows]
    have = sorted((each for each in keyed if each[0] is not None), key=lambda each: each[0], reverse=descending)
    return [number for _, number in have] + [number for key, number in keyed if key is None]


def make_filter(dice: random.Random, rows: list[Row]) -> dict[str, Any]:
    """A filter of a random kind; its values are often, not always, ones that occur."""
    price = {"entity": "metadata", "metadata_property": NAMES["price"]}
    weight = {"entity": "metadata", "metadata_property": NAMES["weight"]}
    rating = {"entity": "response", "question": "score"}
    suggested = {"entity": "suggestion", "question": "score"}

    def terms(scope: dict[str, Any], values: list[Any]) -> dict[str, Any]:
        return {"type": "terms", "scope": scope, "values": dice.sample(values, dice.randint(1, min(3, len(values))))}

    def between(scope: dict[str, Any], low: Any, high: Any) -> dict[str, Any]:
        bounds = {"ge": low, "le": high}
        gone = dice.choice(["ge", "le", ""])
        return {"type": "range", "scope": scope, **{name: at for name, at in bounds.items() if name != gone}}

    words = {"entity": "metadata", "metadata_property": NAMES[dice.choice(["aisle", "size", "quoted"])]}
    scored = {"entity": "suggestion", "question": dice.choice(["score", "tags"]), "property": "score"}
    by = {"entity": "suggestion", "question": dice.choice(["score", "note"]), "property": "agent"}
    chosen = {"entity": "suggestion", "question": dice.choice(["label", "tags", "note"]), "property": "value"}
    given = {"entity": "response", "question": dice.choice(["label", "tags"])}
    return dice.choice(
        [
            terms({"entity": "metadata", "metadata_property": NAMES["aisle"]}, [*AISLES, "true", "7", "nowhere"]),
            terms(words, ["groß", "yes", "maybe", "dairy"]),
            between({"entity": "metadata", "metadata_property": NAMES["size"]}, "g", "k"),
            terms(price, ["3", "7.0", "x", "-1"]),
            between(price, dice.randint(-5, 5), dice.randint(6, 20)),
            terms(weight, ["1", "2.0", "0.5"]),
            between(weight, "0.5", "1.25"),
            terms({"entity": "record", "property": "status"}, ["pending", "completed", "unknown"]),
            terms({"entity": "record", "property": "id"}, [dice.choice(rows).id, dice.choice(rows).id, "nobody"]),
            terms({"entity": "record", "property": "external_id"}, ["r001", "r017", "r999"]),
            between({"entity": "record", "property": "external_id"}, "r010", "r050"),
            terms({"entity": "response", "property": "status"}, [*STATUSES, "pending"]),
            terms(rating, ["1", "3", "5", "9"]),
            between(rating, 2, 4),
            terms(given, LABELS),
            between({"entity": "response", "question": "label"}, "bad", "good"),
            terms({"entity": "response", "question": dice.choice(["note", "ranking"])}, ["fine", "a"]),
            terms({**suggested, "property": "value"}, ["1", "2", "3"]),
            between({**suggested, "property": "value"}, 2, 4),
            between(scored, 0.2, 0.7),
            terms(by, AGENTS),
            terms({"entity": "suggestion", "question": "label", "property": "type"}, ["model", "human", "x"]),
            terms(chosen, LABELS),
        ]
    )


# Text queries: built as a tree, so that what they mean does not depend on reading them


def make_query(dice: random.Random, depth: int = 0) -> tuple[str, Any]:
    """A query as one types it and as a function of a record's fields, each a list of texts, each a list of words."""
    query, means = _part(dice, depth)
    for _ in range(dice.randint(0, 3)):
        sign = dice.choice([" ", " + ", " | ", "|", "+"])
        more, also = _part(dice, depth)
        query += sign + more
        means = _either(means, also) if "|" in sign else _both(means, also)
    return query, means


def _both(one, other):
    return lambda fields: one(fields) and other(fields)


def _either(one, other):
    return lambda fields: one(fields) or other(fields)


def _part(dice: random.Random, depth: int) -> tuple[str, Any]:
    text, means = _leaf(dice, depth)
    if dice.random() < 0.2:
        return "-" + text, lambda fields: not means(fields)
    return text, means


def _leaf(dice: random.Random, depth: int) -> tuple[str, Any]:
    kind = dice.choice(["word", "word", "phrase", "prefix", "several", "bracket"])
    if kind == "bracket" and depth < 3:
        text, means = make_query(dice, depth + 1)
        return f"({text})", means
    if kind == "phrase":
        words = dice.choices(WORDS, k=2)
        return f'"{words[0].upper()}, {words[1]}"', lambda fields: any(
            _next_to(words, text) for texts in fields for text in texts
        )
    if kind == "prefix":
        start = dice.choice(["brea", "caf", "don", "3", "fo", "zz"])
        return f"{start}*", lambda fields: any(word.startswith(start) for word in _words(fields))
    if kind == "several":
        return "wi-fi", lambda fields: any({"wi", "fi"} <= set(_words([texts])) for texts in fields)
    word = dice.choice([*WORDS, "absent"])
    return dice.choice([word, word.upper(), f"{word}?!"]), lambda fields: word in _words(fields)


def _words(fields: list[list[list[str]]]) -> list[str]:
    return [word for texts in fields for text in texts for word in text]


def _next_to(words: list[str], text: list[str]) -> bool:
    return any(text[place : place + 2] == words for place in range(len(text)))
