"""Verifiable checks: right answers, JSON by a schema, and IFEval's instructions."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.artifact import InputError, Message
from tasks.checks import answers, instructions
from tasks.data.files import read_examples
from tasks.data.templates import ChatTemplate
from tasks.training.rewards import FunctionReward, JsonReward, Rewards, RewardTerm

DATA = Path(__file__).parents[2] / "shared" / "data"
PROMPT: list[Message] = [{"role": "user", "content": "?"}]
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def about(**reference: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "reference": reference}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 18.", 18),
        ("9 + 9 = <<9+9=18>>18\n#### 18", 18),
        ("$1,234.50 in all", 1234.5),
        ("1,234,567", 1234567),
        ("so 3-2", 2),
        ("about -2.5e3", -2500),
        ("minus \u22127", -7),
        ("a .5 chance", 0.5),
        ("item12", None),
        ("Take room E12, or pawn to e5 (e4)", None),
        ("answer...42", 42),
        ("No.5", 5),
        ("_42_", 42),
        ("1.5.2", 1.5),
        ("12,345", 12345),
        ("none", None),
        ("", None),
        ("12 apples, then 7kg", 7),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert answers.last_number(text) == number


def test_answers_are_compared_as_what_they_are() -> None:
    assert answers.number(about(value="... #### 1,234"), "We get 1234.0")
    assert answers.number(about(answer=18), "18 apples")
    assert not answers.number(about(value=18), "18 of 20")
    assert not answers.number(about(value=18), "eighteen")
    assert answers.number(about(value=3.14159, tolerance=0.01), "3.14")
    assert not answers.number(about(value=3.14159, tolerance=0.001), "3.14")
    assert answers.exact(about(value="New  York."), " new york")
    assert not answers.exact(about(value="York"), "New York")
    assert answers.contains(about(value="new york"), "It is New\nYork, I think")
    assert not answers.contains(about(value="aisle 1"), "aisle 12")
    trivia = about(answer={"value": "Sinclair Lewis", "aliases": ["Harry Sinclair Lewis", "Grace Hegger", ""]})
    assert (
        answers.exact(trivia, "grace hegger.") and not answers.exact(trivia, "Lewis") and not answers.exact(trivia, "")
    )
    assert answers.contains(trivia, "It was Sinclair Lewis.") and not answers.contains(trivia, "It was Upton Sinclair.")


def test_json_by_a_schema() -> None:
    row = about(schema=PERSON)
    assert answers.json_of_schema(row, '{"age": 3}')
    assert answers.json_of_schema(row, '```json\n{"age": 3}\n```')
    for wrong in ('{"age": "3"}', "{}", "[]", '{"age": 3', "age 3", "", '{"age": NaN}', "[" * 100_000):
        assert not answers.json_of_schema(row, wrong)
    assert not answers.json_of_schema(about(schema=False), "1"), "which allows nothing"
    with pytest.raises(ValueError, match="refers to what is not in it"):  # and nothing is fetched
        answers.follows({"$ref": "http://127.0.0.1:9/x.json"}, "1")
    assert answers.follows(None, "[1]") and not answers.follows(None, "[1")


@pytest.mark.parametrize(
    ("check", "row", "reason"),
    [
        (answers.number, {"prompt": PROMPT}, "has no 'value'"),
        (answers.exact, {"prompt": PROMPT, "reference": {"other": 1}}, "has no 'value'"),
        (answers.number, about(answer="none"), "'none' holds no number"),
        (answers.json_of_schema, about(schema={"type": "integr"}), "not a JSON schema"),
        (instructions.strict, about(value=1), "has no 'instruction_id_list'"),
        (instructions.strict, about(instruction_id_list=[]), "has no 'instruction_id_list'"),
        (instructions.strict, about(instruction_id_list=["a:b"], kwargs=[{}]), "'a:b' is not known"),
        (instructions.strict, about(instruction_id_list=["keywords:existence"], kwargs=[{}]), "needs 'keywords'"),
        (instructions.strict, about(instruction_id_list=["punctuation:no_comma"], kwargs=[{}, {}]), "1 instructions"),
        (
            instructions.strict,
            about(
                instruction_id_list=["length_constraints:number_words"], kwargs=[{"relation": "around", "num_words": 3}]
            ),
            "neither 'at least' nor",
        ),
    ],
)
def test_a_reference_that_cannot_be_checked_is_one_sentence(check: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check(row, "3 words here")


FOLLOWED = [  # name, kwargs, completions that follow, completions that do not
    ("keywords:existence", {"keywords": ["sun", "moon"]}, ["The Sun and the moon."], ["The sun."]),
    ("keywords:frequency", {"keyword": "a", "relation": "at least", "frequency": 2}, ["A man"], ["m"]),
    ("keywords:frequency", {"keyword": "c++", "relation": "less than", "frequency": 2}, ["C++"], ["c++ c++"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocket"], ["A Rock."]),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, ["##"], ["#"]),
    ("language:response_language", {"language": "de"}, ["Das ist ein guter Tag für uns."], ["This is a good day."]),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3},
     ["One. Two!", "Mr. Li pays 3.50 now. Why?"], ["One. Two! Three?", "One. Two. three"]),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, ['"A." B.'], ["e.g.one."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\n***\nb", "a *** b", "***\na\n***\nb\n***"], ["a", "a\n\nb", "a\n***\n\n***\nb"]),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, ["a b c"], ["a b"]),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "well"},
     ["One.\n\nWell, two.", 'One.\n\n"Well." two'], ["Well.\n\nTwo.", "Well", "a\n\nwell\n\nc"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] and [b c]"], ["[a] and b]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\nP. S. more", "P.s. x"], ["PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S more"], ["P.S. more"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n- b", "x\n * a\n * b"], ["* a", "**a**\n- b"]),
    ("detectable_format:constrained_response", {}, ["My answer is maybe."], ["Maybe."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b c*"], ["*a* and b", "**"]),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2},
     ["PART 1\na\nPART 2\nb"], ["PART 1\na", "part 1 part 2"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": 1}\n```'], ["a: 1"]),
    ("detectable_format:title", {}, ["<<A day>>\nIt was"], ["A day", "<<>> it"]),
    ("combination:two_responses", {}, ["One\n******\nTwo"], ["One", "Same******Same", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, ["say hi. Hi!"], ["Hi! Say hi."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["So. the end.", 'So. The end."'], ["The end. So"]),
    ("startend:quotation", {}, ['"a b"'], ['"a', '"', "a"]),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, ["A b"], ["A B"]),
    ("change_case:english_capital", {},
     ["THIS IS A GOOD DAY FOR ALL OF US."], ["This is a good day.", "DAS IST EIN GUTER TAG FÜR UNS ALLE"]),
    ("change_case:english_lowercase", {}, ["this is a good day for all of us."], ["This is a good day for all of us."]),
    ("punctuation:no_comma", {}, ["a b"], ["a, b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "right", "wrong"), FOLLOWED, ids=[row[0] for row in FOLLOWED])
def test_an_instruction_is_followed_or_not(
    name: str, kwargs: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    row = about(instruction_id_list=[name], kwargs=[kwargs])
    assert [text for text in right if not instructions.strict(row, text)] == []
    assert [text for text in wrong if instructions.strict(row, text)] == []
    assert not instructions.strict(row, " ")


def test_every_instruction_has_such_an_example() -> None:
    assert {row[0] for row in FOLLOWED} == set(instructions.CHECKS)


def test_loose_forgives_a_line_around_the_answer_and_share_counts() -> None:
    row = about(instruction_id_list=["startend:quotation", "punctuation:no_comma"], kwargs=[{"unused": None}, None])
    assert not instructions.strict(row, 'Sure:\n"an answer"') and instructions.loose(row, 'Sure:\n"an answer"')
    assert not instructions.loose(row, 'So, here:\n"an, answer"')
    assert instructions.share(row, 'Sure:\n"an answer"') == 0.5


def test_checks_are_rewards() -> None:
    terms: list[RewardTerm] = [
        FunctionReward(function="tasks.checks.answers:number", weight=2),
        JsonReward(must={"type": "integer"}),
    ]
    assert Rewards(terms, [about(value=4)], None)([PROMPT] * 3, ["4", "4.", "[5]"], [True] * 3) == [3, 2, 0]
    with pytest.raises(InputError, match="has no 'value'"):
        Rewards(terms, [about(other=4)], None)([PROMPT], ["4"], [True])
    with pytest.raises(InputError, match="'json' cannot be asked"):
        nested = JsonReward(must={"properties": {"a": {"$ref": "#/$defs/none"}}})
        Rewards([nested], [], None)([PROMPT], ['{"a": 1}'], [True])
    with pytest.raises(ValidationError, match="not a JSON schema"):
        TypeAdapter(RewardTerm).validate_python({"kind": "json", "must": {"type": "integr"}})


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="shared/data/gsm8k is not here")
def test_school_problems_are_checked_by_their_own_answers() -> None:
    template = ChatTemplate(prompt="{{ question }}", completion="{{ answer }}")
    examples, _ = read_examples(next((DATA / "gsm8k").glob("*.jsonl")), "refuse", [template])
    rows = [{"prompt": example.prompt, "reference": example.reference} for example in examples]
    assert len(rows) >= 100
    assert all(answers.number(row, example.completions[0]) for row, example in zip(rows, examples, strict=True))
    wrong = [f"The answer is {answers.last_number(example.completions[0] or '0') or 0:g}1" for example in examples]
    assert not any(answers.number(row, text) for row, text in zip(rows, wrong, strict=True))


@pytest.mark.skipif(not (DATA / "ifeval").is_dir(), reason="shared/data/ifeval is not here")
def test_every_row_of_ifeval_can_be_checked() -> None:
    path = next((DATA / "ifeval").glob("*.jsonl"))
    examples, _ = read_examples(path, "refuse", [ChatTemplate(prompt="{{ prompt }}")])
    assert len(examples) == len(path.read_text().splitlines())
    for example in examples:
        assert isinstance(example.reference, dict)
        found = instructions.followed({"reference": example.reference}, json.dumps({"a": "one, two"}))
        assert len(found) == len(example.reference["instruction_id_list"])
