"""Filters of instruction data, each on texts that it must and must not drop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.artifact import Message, Row
from tasks.data.decontamination import Protected
from tasks.data.duplicates import MISSED, PERMUTATIONS, Signatures, rows_per_band, similarity
from tasks.data.filters import repetition
from tasks.data.mixture import AnyFilter
from tasks.data.pii import redact
from tasks.data.rows import Example
from tests.test_mixture import prepare, question, save


def why(asked: str, answered: str, **settings: Any) -> str:
    part: Any = TypeAdapter(AnyFilter).validate_python(settings)
    after = part.rule()(Example([{"role": "user", "content": asked}], [answered]))
    return after if isinstance(after, str) else ""


@pytest.mark.parametrize(
    ("prompt", "completion", "settings", "reason"),
    [
        ("one two", "x", {"prompt": [2]}, ""),
        ("one", "x", {"prompt": [2]}, "the prompt has fewer than 2 words"),
        ("a", "one two three", {"completion": [1, 2]}, "the completion has more than 2 words"),
        ("a", "12345", {"unit": "characters", "completion": [1, 4]}, "the completion has more than 4 characters"),
    ],
)
def test_length(prompt: str, completion: str, settings: dict[str, Any], reason: str) -> None:
    assert why(prompt, completion, kind="length", **settings) == reason


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("Plain words, and a number: 3.", {"symbols": 0.3, "letters": 0.6, "repeated": 0.5}, ""),
        ("Größe, Жизнь und 生命.", {"letters": 0.8}, ""),
        ("$$$ ### a", {"symbols": 0.5}, "more than 0.5 symbols"),
        ("1 2 3 4 five", {"letters": 0.6}, "fewer than 0.6 letters"),
        ("broken \ufffd text", {}, "control or replacement characters"),
        ("broken \ufffd text", {"unseen": None}, ""),
        ("no no no no no no no no", {"repeated": 0.5}, "more than 0.5 repeated"),
        ("As an AI model I cannot", {"forbidden": ["(?i)as an ai"]}, "'(?i)as an ai' is forbidden"),
        ("Nothing here", {"required": ["####"]}, "'####' is required"),
    ],
)
def test_characters(text: str, settings: dict[str, Any], reason: str) -> None:
    assert why("a question", text, kind="characters", of="completion", **settings) == reason


def test_repetition_is_the_share_of_words_said_before() -> None:
    assert repetition("every word here is another one") == 0
    assert repetition("a line of words\n" * 4) == pytest.approx(0.75, abs=0.03)


def test_language_keeps_what_is_short_or_uncertain() -> None:
    settings = {"kind": "language", "allowed": ["en"]}
    german = "Das ist ein ganzer Satz auf Deutsch über das Brot im Laden."
    assert why(german, german, **settings) == "the language is de"
    assert why("Where is the bread in this shop?", "It is in aisle four, next to the milk.", **settings) == ""
    assert why("Brot?", "Ja.", **settings) == ""
    assert why(german, "It is a sentence about bread in a shop.", of="completion", **settings) == ""


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.lee+x@mail.example.org now", "Write to [EMAIL] now"),
        ("Call +49 30 1234567 or (212) 555-0142.", "Call [PHONE] or [PHONE]."),
        ("Card 4111 1111 1111 1111, not 4111 1111 1111 1112.", "Card [CARD], not 4111 1111 1111 1112."),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN]."),
        ("Host 192.168.0.12 is up, 999.1.2.3 is none.", "Host [IP] is up, 999.1.2.3 is none."),
        ("SSN 123-45-6789, not 000-45-6789", "SSN [SSN], not 000-45-6789"),
        ("It takes 2*12 = 24 hours, $3,600.00 in 1998-2003, version 3.11.4, pi 3.14159265358979", None),
        ("The set {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}; ratio 12:30:45", None),
        ("@ann said: a@b is no address", None),
    ],
)
def test_personal_data_is_masked_and_numbers_are_not(text: str, masked: str | None) -> None:
    every = ("email", "phone", "card", "iban", "ip", "ssn")
    assert redact(text, every) == (masked or text)
    assert redact(text, ()) == text


def test_personal_data_is_masked_in_every_turn_or_drops_the_row() -> None:
    example = Example([{"role": "user", "content": "I am a@b.example"}], ["Hello, c@d.example"])
    part: Any = TypeAdapter(AnyFilter).validate_python({"kind": "pii"})
    after = part.rule()(example)
    assert after.prompt[0]["content"] == "I am [EMAIL]" and after.completions == ["Hello, [EMAIL]"]
    assert why("I am a@b.example", "x", kind="pii", action="drop") == "there is personal data in it"
    with pytest.raises(ValidationError, match="'email', 'phone'"):
        TypeAdapter(AnyFilter).validate_python({"kind": "pii", "find": ["name"]})


def test_contamination_counts_runs_of_words_and_short_texts_whole() -> None:
    protected = Protected(4)
    protected.add(["The quick brown fox jumps over it", "Who are you?"])
    assert protected.share(["They say the QUICK, brown fox jumps high"]) == pytest.approx(2 / 5)
    assert protected.share(["The quick brown dog"]) == 0
    assert protected.share(["who are you"]) == 1 and protected.share(["Who are you today, my friend?"]) == 0


def test_bands_miss_less_than_said() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.99):
        rows = rows_per_band(threshold)
        assert (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED
        assert (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) > MISSED or rows == PERMUTATIONS


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_minhash_groups_are_those_of_all_pairs(tmp_path: Any, threshold: float) -> None:
    from random import Random

    rng = Random(3)
    words = [f"w{n}" for n in range(300)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(60)]
    for _ in range(120):
        changed = rng.choice(texts).split()
        for _ in range(rng.randint(0, 6)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    signatures = Signatures(tmp_path / "s.bin")
    for text in texts:
        signatures.add(text)
    found = signatures.groups(threshold, texts.__getitem__)
    expected = list(range(len(texts)))
    for b in range(len(texts)):
        for a in range(b):
            if similarity(texts[a], texts[b]) >= threshold and expected[a] != expected[b]:
                old, new = max(expected[a], expected[b]), min(expected[a], expected[b])
                expected = [new if group == old else group for group in expected]
    assert 1 < len(set(expected)) < len(texts)
    assert found.tolist() == expected


def test_a_chain_of_small_changes_is_thinned_and_not_dropped_whole(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(words[n : n + 30]) for n in range(0, 30, 2)]
    signatures = Signatures(tmp_path / "s.bin")
    for text in [*texts, texts[3].upper()]:
        signatures.add(text)
    every = [*texts, texts[3].upper()]
    found = signatures.repeats(0.8, every.__getitem__, np.ones(len(every), bool))
    kept = [n for n in range(len(every)) if found[n] == n]
    assert len(set(signatures.groups(0.8, every.__getitem__))) == 1 and len(kept) > 4
    assert all(similarity(every[n], every[found[n]]) >= 0.8 for n in range(len(every)))
    assert all(similarity(every[a], every[b]) < 0.8 for a in kept for b in kept if a < b)


def test_personal_data_is_masked_in_tools_calls_and_references() -> None:
    def call(arguments: str) -> Row:
        return {"type": "function", "function": {"name": "mail", "arguments": arguments}, "id": "call00000"}

    given = '{"to": "a@b.example", "card": 4111111111111111, "n": 3}'
    tools = '[{"type": "function", "function": {"name": "mail", "description": "Ask c@d.example"}}]'
    prompt: list[Message] = [
        {"role": "user", "content": "Write.", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": [call(given)]},
        {"role": "tool", "content": "done"},
    ]
    example = Example(prompt, [""], {"to": ["a@b.example", {"n": 3}], "right": True}, calls=[call(given)])
    part: Any = TypeAdapter(AnyFilter).validate_python({"kind": "pii"})
    after = part.rule()(example)
    masked = {"to": "[EMAIL]", "card": "[CARD]", "n": 3}
    assert json.loads(after.calls[0]["function"]["arguments"]) == masked
    assert json.loads(after.prompt[1]["tool_calls"][0]["function"]["arguments"]) == masked
    assert json.loads(after.prompt[0]["tools"])[0]["function"]["description"] == "Ask [EMAIL]"
    assert after.reference == {"to": ["[EMAIL]", {"n": 3}], "right": True}
    assert part.rule()(after) is after
    only = replace(after, calls=[call(given)])
    assert part.model_copy(update={"action": "drop"}).rule()(only) == "there is personal data in it"


def test_rows_dropped_for_personal_data_are_kept_without_it(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "completion": "fine"} for n in range(40)]
    rows += [
        {"prompt": "I am a@b.example", "completion": "c@d.example"},
        {"prompt": "e@f.example " * 50, "completion": "x"},
        {"asked": "g@h.example"},
    ]
    filters = [{"kind": "length", "prompt": [1, 40]}, {"kind": "pii", "action": "drop"}]
    sets = [{"name": "chat", "kind": "json", "path": save(tmp_path / "chat.jsonl", rows)}]
    work = prepare(tmp_path, sets=sets, filters=filters)
    dropped = (work.out / "dropped.jsonl").read_text()
    assert dropped.count("[EMAIL]") == 53 and "@" not in dropped
    assert "@" not in (work.out / "report" / "dropped.json").read_text()
