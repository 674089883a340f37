"""Filters of instruction data, each on texts that it must and must not drop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.artifact import Message, Row
from tasks.data.decontamination import Protected
from tasks.data.filters import repetition
from tasks.data.mixture import AnyFilter
from tasks.data.pii import Pii, redact
from tasks.data.preview import table
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
        ("@ann said: a@b is no address; git@code.example:ann/x.git", None),
        ("Connect to 10.1.2.3:8080, [2001:db8::7]:443 or fe80::1.", "Connect to [IP]:8080, [[IP]]:443 or [IP]."),
        ("Mine: (555) 123-4567, 1 (555)123-4567, ((555) 123 4567).", "Mine: [PHONE], [PHONE], ([PHONE])."),
        ("1-800-555-0199 or +44 (0)20 7946 0958, 0049 30 1234567", "[PHONE] or [PHONE], [PHONE]"),
        ("Tel: 0171 1234567, phone number 01 23 45 67 89", "Tel: [PHONE], phone number [PHONE]"),
        ("The phone: 2023-10-12, mobile 12.10.2023, cell 512, fax 3", None),
        ("NO93 8601 1117 947 BE68 5390 0754 7034 PAID 100 DE89370400440532013000", "[IBAN] [IBAN] PAID 100 [IBAN]"),
        ("DE89 3704 0044 0532 0130 01 has a wrong digit, as AB12 3456 7890 1234 has", None),
        ("Amex 378282246310005, MC 5555-5555-5555-4444", "Amex [CARD], MC [CARD]"),
        ("ISBN 978-3-16-148410-0, 9783161484100, 0-306-40615-2 and 99921-58-10-7", None),
        ("1700000000000 ms, order 1234567812345670, points +150000, sizes 512 768 1024, id 00123456789", None),
        ("version 1.2.3.4, v10.0.0.1, section 3.1.2.4, 127.0.0.1, 0.0.0.0/0, 255.255.255.0, 1.2.3.4.5", None),
        ("On 2024-05-06 at 10:20:30, in 1999, 12/05/2021, 31.12.1999, from 1914-1918, 5-7 pm, 3.5-4.5", None),
        (
            "postgres://ann:pa:ss@db.example/x http://a.example:80/b@c",
            "postgres://[PASSWORD]@db.example/x http://a.example:80/b@c",
        ),
        (f"key={'sk-' + 'Ab1' * 12}; {'ghp_' + 'x1' * 18}, {'AKIA' + 'Q' * 16}", "key=[KEY]; [KEY], [KEY]"),
        (f"{'hf_' + 'a' * 34} {'eyJ' + 'a' * 20}.{'eyJ' + 'b' * 20}.{'c' * 20}", "[KEY] [KEY]"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE " + "KEY-----", "[KEY]"),
        ("a sk-learn task-based hf_token ghp_ eyJust AKIA in risk-adjusted-return-on-capital-figures", None),
    ],
)
def test_personal_data_is_masked_and_numbers_are_not(text: str, masked: str | None) -> None:
    assert redact(text, get_args(Pii)) == (masked or text)
    assert redact(text, ()) == text


def test_personal_data_is_masked_in_every_turn_or_drops_the_row() -> None:
    example = Example([{"role": "user", "content": "I am a@b.example"}], ["Hello, c@d.example"])
    part: Any = TypeAdapter(AnyFilter).validate_python({"kind": "pii"})
    after = part.rule()(example)
    assert after.prompt[0]["content"] == "I am [EMAIL]" and after.completions == ["Hello, [EMAIL]"]
    assert why("I am a@b.example", "x", kind="pii", action="drop") == "there is personal data in it"
    with pytest.raises(ValidationError, match="'email', 'iban'"):
        TypeAdapter(AnyFilter).validate_python({"kind": "pii", "find": ["name"]})


def test_contamination_counts_runs_of_words_and_short_texts_whole() -> None:
    protected = Protected(4)
    protected.add(["The quick brown fox", "jumps over it"])
    protected.add(["The quick brown fox jumps over it", "Who are you?"])
    assert protected.share(["They say the QUICK, brown fox jumps high"]) == pytest.approx(2 / 5)
    assert protected.share(["The quick brown dog"]) == 0
    assert protected.says(["who are you"]) and not protected.says(["Who are you today, my friend?"])


def test_vowel_signs_are_neither_symbols_nor_missing_letters() -> None:
    for text in ("தமிழ் ஒரு செம்மொழி ஆகும்", "বাংলা একটি সুন্দর ভাষা", "हिन्दी भारत की भाषा है"):
        assert why(text, text, kind="characters", symbols=0.1, letters=0.9) == ""
    assert why("!!! ??? ok", "x", kind="characters", symbols=0.4) == "more than 0.4 symbols"


def test_length_counts_words_of_scripts_without_spaces() -> None:
    assert why("x", "我喜欢吃苹果和梨", kind="length", completion=[4, 4]) == ""
    assert why("x", "我喜欢吃苹果和梨", kind="length", completion=[5]) == "the completion has fewer than 5 words"


def test_short_evaluation_prompts_are_found_word_for_word_in_longer_texts() -> None:
    protected = Protected(13)
    protected.add(["What happens if you eat watermelon seeds?", "Who are you, friend?", "吃西瓜子会发生什么事情呢？"])
    assert protected.holds(["Answer briefly. What happens if you eat watermelon seeds? Think first."])
    assert protected.holds(["请简短回答：吃西瓜子会发生什么事情呢？谢谢"])
    assert not protected.holds(
        ["What happens if you eat apple seeds?", "So who are you, friend?", "你会发生什么事情呢"]
    )


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
    assert table(work.out, "personal data") == [{"set": "chat", "kind": "email", "found": 2}], "of what pii dropped"


def test_what_was_masked_is_counted_by_kind(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "completion": f"Write to a{n}@b.example or ann@c.example."} for n in range(40)]
    rows += [{"prompt": question(n), "completion": "Call (555) 123-4567, [EMAIL]."} for n in range(50, 60)]
    sets = [{"name": "chat", "kind": "json", "path": save(tmp_path / "chat.jsonl", rows)}]
    work = prepare(tmp_path, sets=sets, filters=[{"kind": "pii"}])
    assert {row["kind"]: row["found"] for row in table(work.out, "personal data")} == {"email": 80, "phone": 10}
    assert work.metrics["pii/email"] == 80 and work.metrics["pii/phone"] == 10
    assert {row["filter"]: row["changed"] for row in table(work.out, "filters")}["pii"] == 50
