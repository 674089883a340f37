"""What is read out of a writer's text, the rules of the papers, and ROUGE-L against values computed by hand."""

import random

import numpy as np
import pytest

from tasks.synthesis.cleaning import only_text, same_text, words_of_the_task
from tasks.synthesis.instances import given_in, instance_faults, instances_in
from tasks.synthesis.novelty import Known, nearest_scores
from tasks.synthesis.prompts import PROMPTS, fill, places, prompt_fault
from tasks.synthesis.recipe import SelfInstruct
from tasks.synthesis.rules import (
    apologises,
    copied_words,
    instruction_fault,
    listed,
    says_nothing,
    verdict_of,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("a", "b", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004, section 3.1
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("police killed the gunman", "the gunman police killed", 2 / 4),
        ("The cat sat on the mat.", "the CAT lay on a mat", 4 / 6),
        ("one two three", "one two three four five six", 6 / 9),
        ("one two", "three four", 0.0),
        ("same words here", "Same, words: here!", 1.0),
        ("告诉我三种树", "告诉我三条河", 4 / 6),
        ("", "words", 0.0),
    ],
)
def test_rouge_l_is_what_one_computes_by_hand(a: str, b: str, score: float) -> None:
    assert Known([a]).nearest(b) == pytest.approx(score) == pytest.approx(Known([b]).nearest(a))


def by_definition(a: list[str], b: list[str]) -> float:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, one in enumerate(a, 1):
        for j, other in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if one == other else max(table[i - 1, j], table[i, j - 1])
    lcs = int(table[-1, -1])
    precision, recall = lcs / len(b), lcs / len(a)
    return 2 * precision * recall / (precision + recall) if lcs else 0.0


def test_rouge_l_of_many_texts_is_the_definition() -> None:
    rng = random.Random(0)
    texts = [[f"w{rng.randrange(12)}" for _ in range(rng.randint(1, 90))] for _ in range(40)]
    scores = np.array([[by_definition(a, b) for b in texts] for a in texts])
    joined = [" ".join(text) for text in texts]
    assert nearest_scores(joined, joined[:15]) == pytest.approx(scores[:, :15].max(1), abs=1e-6)
    np.fill_diagonal(scores, 0)
    assert nearest_scores(joined) == pytest.approx(scores.max(1), abs=1e-6)
    known = Known(joined[1:])
    assert known.nearest(joined[0]) == pytest.approx(scores[0, 1:].max())
    assert Known().nearest("anything") == 0 and nearest_scores(["one"])[0] == 0


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("9. Name a tree.\n10. Name a bird.", ["Name a tree.", "Name a bird."]),
        ("Sure! Some tasks:\n\n1) Name a tree.\n\n2) Name a bird.\n\nBe well!", ["Name a tree.", "Name a bird."]),
        ("Task 9: Name a tree\n  of the north.\nTask 10: Name a bird.", ["Name a tree of the north.", "Name a bird."]),
        ("1. **Name a tree.**\n2. \"Name a bird.\"", ["Name a tree.", "Name a bird."]),
        ("1. **Trees**: Name **one**.\n2. **Name** a bird.", ["Trees: Name **one**.", "Name a bird."]),
        ("- Name a tree.\n- Name a bird.", ["Name a tree.", "Name a bird."]),
        ("* Name a tree.\n• Name a bird.", ["Name a tree.", "Name a bird."]),
        ('```json\n["Name a tree.", 3, "Name a bird.", ""]\n```', ["Name a tree.", "Name a bird."]),
        ("**9.** Name a tree.", ["Name a tree."]),
        ("### 9. Name a tree.\n### 10. Name a bird.", ["Name a tree.", "Name a bird."]),
        ("1. \n2. Name a bird.", ["Name a bird."]),
        ("I cannot do that.", []),
        ("[not json", []),
        ("", []),
    ],
)  # fmt: skip
def test_lists_are_read_as_writers_write_them(text: str, items: list[str]) -> None:
    assert listed(text, True) == items


def test_the_last_item_of_a_cut_list_is_left_out() -> None:
    assert listed("1. Name a tree.\n2. Name a bi", False) == ["Name a tree."]


@pytest.mark.parametrize(
    ("text", "label_first", "pairs"),
    [
        ("Input: 3 4\nOutput: 7", False, [("3 4", "7")]),
        ("Input: none\nOutput: Seven\nlines.", False, [("", "Seven\nlines.")]),
        ("Example 1\nInput: a\nOutput: b\n\nExample 2:\nInput: c\nOutput: d", False, [("a", "b"), ("c", "d")]),
        ("**Input:** a\n**Output:** b", False, [("a", "b")]),
        ("Here it is.\n\ninput : N/A\nOUTPUT: b", False, [("", "b")]),
        ("Label: green\nInput: grass\nClass label: blue\nInput: sky", True, [("grass", "green"), ("sky", "blue")]),
        ("Output: b", False, []),
        ("Input: a\nOutput: Label: b\nAnswer: c", False, [("a", "Label: b\nAnswer: c")]),
        ("Input: a\nInput: c\nOutput: d", False, [("c", "d")]),
        ("Input: a\nOutput: Run it:\nOutput: 5\nIt says 5.", False, [("a", "Run it:\nOutput: 5\nIt says 5.")]),
        ("1.\nInput: a\nOutput: b\n---\n2.\nInput: c\nOutput: d", False, [("a", "b"), ("c", "d")]),
        ("```\nInput: a\nOutput: b\n```", False, [("a", "b")]),
        ("Input: a\nOutput:\n```\nb\n```", False, [("a", "```\nb\n```")]),
        ("Input: a\nOutput: b\n\nTask: Next thing\nInput: c\nOutput: d", False, [("a", "b")]),
        ("Input: a\nOutput: b\nTask: Next thing\nInput: c\nOutput: d", False, [("a", "b")]),
        ("Task: This thing\nInput: a\nOutput: b\n\n**Task 2:** Next thing", False, [("a", "b")]),
        ("Input: a\nOutput: To do\nTask: buy milk\nDay: Monday", False, [("a", "To do\nTask: buy milk\nDay: Monday")]),
        ("Input: No input required.\nOutput: b", False, [("", "b")]),
        ("Label: green\nInput: grass\n---\nLabel: blue\nInput: sky", True, [("grass", "green"), ("sky", "blue")]),
        ("The answer is seven.", False, []),
    ],
)
def test_instances_are_read_with_their_partners(text: str, label_first: bool, pairs: list[tuple[str, str]]) -> None:
    assert instances_in(text, True, label_first) == pairs


def test_the_last_instance_of_a_cut_text_is_left_out() -> None:
    assert instances_in("Input: a\nOutput: b\nInput: c\nOutput: hal", False, False) == [("a", "b")]


@pytest.mark.parametrize(
    "text",
    [
        *("none", "None.", "N/A", "<noinput>", "No input", "No input required.", "(none needed)", "There is no input."),
        *("", "This task needs no further input.", "not applicable", "No input is needed for this task."),
    ],
)
def test_an_input_that_says_there_is_none_is_none(text: str) -> None:
    assert given_in(text) == ""


@pytest.mark.parametrize("text", ["No.", "None of them came.", "No input was read by the program.", "Not needed: salt"])
def test_an_input_that_says_something_stays(text: str) -> None:
    assert given_in(text) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Name three trees of the north.", ""),
        ("Name trees.", "has fewer than 4 words"),
        ("Name " + "very " * 150 + "tall trees.", "has more than 150 words"),
        ("Describe the picture of a tree.", "says 'picture'"),
        ("Please go to the shop and buy bread.", "says 'go to'"),
        ("Describe profiles of four famous people.", ""),  # "file" is part of a word
        ("Write a program that sorts numbers.", "begins with 'write a program'"),
        ("(Name) three trees of the north.", "begins with punctuation"),
        ("_ three trees of the north.", "begins with punctuation"),
        ("Éclairs are baked how long?", "begins with a letter outside ASCII"),
    ],
)
def test_the_rules_on_instructions(text: str, fault: str) -> None:
    step = SelfInstruct(kind="self_instruct", seeds="x")
    found = instruction_fault(text, step.words, step.forbidden, step.forbidden_starts, step.ascii_start)
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_the_rules_on_instructions_can_be_set() -> None:
    assert instruction_fault("Name the picture there.", (4, 150), (), (), True) == ""
    assert instruction_fault("Éclairs are baked how long?", (4, 150), (), (), False) == ""
    assert instruction_fault("告诉我三种树。", (4, 150), (), (), False) == ""
    assert instruction_fault("Compte les arbres ici.", (4, 150), ("arbres",), (), True).startswith("says 'arbres'")


def test_the_rules_on_instances() -> None:
    assert instance_faults([("a", "x"), ("b", "y")]) == ["", ""]
    assert instance_faults([("a", "x"), ("A.", "X!")]) == ["", "is there twice"]
    assert instance_faults([("a", "x"), ("a", "y"), ("b", "y")])[:2] == ["has different answers to the same input"] * 2
    assert instance_faults([("a b", "A b."), ("", ""), ("c", " ")]) == [
        "has an answer that repeats the input",
        "has an empty answer",
        "has an empty answer",
    ]


def test_what_evolving_must_not_give() -> None:
    assert says_nothing("... !? and the of it.") and says_nothing("") and says_nothing("___ - ***")
    assert not says_nothing("Name the tree.") and not says_nothing("42") and not says_nothing("什么树")
    assert apologises("I am sorry, but I cannot do that.") and apologises("Sorry!")
    assert not apologises("Sorry is what one says. " + "word " * 80) and not apologises("A sorrier tree.")
    assert copied_words("Rewrite the given prompt so that it is harder.", "Name a tree.") == "given prompt"
    assert copied_words("#Rewritten Prompt#: Name a tree.", "Name a tree.") == "rewritten prompt"
    assert copied_words("What is a given prompt?", "Explain a given prompt.") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Name a tree.", "Name a tree."),
        ('"Name a tree."', "Name a tree."),
        ("```\nName a tree.\n```", "Name a tree."),
        ("Here is the rewritten instruction:\nName a tree.", "Name a tree."),
        ("Sure, here's a harder one: Name a tree.", "Name a tree."),
        ("New instruction: Name a tree.", "Name a tree."),
        ("**Rewritten Instruction:** Name a tree.", "Name a tree."),
        ("The new bridge is: long.", "The new bridge is: long."),
        ("New idea: name a tree.", "New idea: name a tree."),
        ("Use ```x``` and ```y```", "Use ```x``` and ```y```"),
    ],
)
def test_only_what_was_asked_for_is_taken(text: str, said: str) -> None:
    assert only_text(text) == said


WHOLE = [
    "**Task:** Write a poem about **love**",
    '"Yes," she said. "No."',
    "* a\n* **b**",
    "* a\n* b *",
    "_a_ and _b_",
    "__init__",
    "Here is the problem: the file is never closed.",
    "Final answer: 42",
    "Here is the text to sum up: it rained.",
    "```python\nx = 1\n```",
    "```\nx = 1\n```\nand\n```\ny = 2\n```",
    "“Yes,” she said, “no.”",
    "New version 3.2 is out: update now.",
]


@pytest.mark.parametrize("text", WHOLE)
def test_nothing_is_taken_from_a_text_that_is_whole(text: str) -> None:
    assert only_text(text, "answer") == text and only_text(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Here is the revised answer: It is seven.", "It is seven."),
        ("Sure! Here's the revised version of the answer:\n\nIt is seven.", "It is seven."),
        ("Below is a rewritten response that is kinder:\nIt is seven.", "It is seven."),
        ("**Revised Answer:**\nIt is **seven**.", "It is **seven**."),
        ("### Revised answer\n\nIt is seven.", "It is seven."),
        ("Revised response: It is seven.", "It is seven."),
        ("```\nIt is seven.\n```", "It is seven."),
        ("```markdown\nIt is seven.\n```", "It is seven."),
        ('"It is seven."', "It is seven."),
        ("***It is seven.***", "It is seven."),
    ],
)
def test_announcements_of_a_revised_answer_are_left_out(text: str, said: str) -> None:
    assert only_text(text, "answer", before="It is eight.") == said


@pytest.mark.parametrize(
    "text", ["```\nx = 1\n```", '"Seven."', "**Seven.**", "Here is the revised version:\nDear Ada, thank you."]
)
def test_what_the_answer_before_had_around_it_stays(text: str) -> None:
    assert only_text(text, "answer", before=text.replace("1", "2").replace("Seven", "Eight")) == text
    assert same_text(text, only_text(text, "answer")) and not same_text(text, text + " More.")


def test_answers_that_differ_in_a_sign_are_different() -> None:
    assert not same_text("a = b - c", "a = b + c") and same_text("a  b\n", "**a b**")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No revision needed.", True),
        ("As the critique says, it is seven.", True),
        ("The original answer was right: seven.", True),
        ("By the principle, I say seven.", True),
        ("The answer does not fall short. It is seven.", True),
        ("By the principle of least action it is seven.", False),
        ("It was his first principle. No change.", False),
    ],
)
def test_an_answer_that_speaks_of_its_revision_is_known(text: str, found: bool) -> None:
    assert bool(words_of_the_task(text, "How many?", "It is eight.")) is found
    assert not words_of_the_task(text, f"Sum up: {text}", "It is eight.")


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("It is kind.\nVerdict: keep", True),
        ("It is kind.\n\n**Verdict:** Keep.", True),
        ("It is rude.\nVerdict: revise", False),
        ("Verdict: keep\nNo, on second thought:\nVerdict: revise", False),
        ("It is rude; I would not keep it.", False),
        ("The verdict: keep it.", False),
    ],
)
def test_a_critique_says_whether_the_answer_may_stay(text: str, keep: bool) -> None:
    critique, kept = verdict_of(text)
    assert kept is keep and not critique.endswith(("keep", "revise"))


def test_verdicts() -> None:
    assert yes_or_no("Yes.") is True and yes_or_no("**No**, because") is False and yes_or_no("Perhaps yes") is None
    assert yes_or_no("") is None


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert fill("{{ a }} and {{b}}", {"a": "{{ b }}", "b": "${x} {0} \\1"}) == "{{ b }} and ${x} {0} \\1"


def test_prompts_hold_what_they_are_about() -> None:
    for name, text in PROMPTS.items():
        assert places(text) and not prompt_fault(name, text)
    assert "no place" in prompt_fault("evolve_deepen", "Make it harder.")
    assert "has a place for 'secret'" in prompt_fault("compare", "{{ first }} {{ second }} {{ secret }}")
