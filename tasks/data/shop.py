"""The shop assistant: a domain small enough that a 1M model learns it, with a hidden utility to prefer by.

Sixty facts (20 items: aisle, price, delivery day) are asked for in eight phrasings each. Pre-training text states the
facts in wordings of its own, so that no prompt of any split is in it. Demonstrations are of mixed quality on purpose:
what people prefer is to be learnt from preferences. Answers do not name the item: that would have to be copied from the
question, which a model learns much later than the facts.
"""

import random
import re
from collections.abc import Mapping, Sequence

from tasks.artifact import Row
from tasks.data.templates import render

# item: (aisle, price, delivery day)
FACTS: dict[str, tuple[str, str, str]] = {
    "bread": ("4", "2.50", "Monday"),
    "milk": ("7", "1.20", "Friday"),
    "rice": ("2", "3.40", "Tuesday"),
    "cheese": ("7", "5.90", "Thursday"),
    "coffee": ("9", "6.70", "Saturday"),
    "tea": ("9", "4.10", "Monday"),
    "butter": ("3", "2.80", "Wednesday"),
    "pasta": ("2", "1.60", "Saturday"),
    "soap": ("8", "3.90", "Tuesday"),
    "honey": ("5", "7.30", "Friday"),
    "flour": ("4", "1.40", "Thursday"),
    "salt": ("6", "0.70", "Wednesday"),
    "sugar": ("6", "1.80", "Monday"),
    "juice": ("1", "2.30", "Tuesday"),
    "yogurt": ("3", "0.90", "Friday"),
    "garlic": ("1", "0.50", "Saturday"),
    "pepper": ("5", "4.60", "Thursday"),
    "shampoo": ("8", "5.20", "Wednesday"),
    "ham": ("3", "8.20", "Monday"),
    "jam": ("5", "3.10", "Tuesday"),
}
KINDS = ("aisle", "price", "day")
VALUES = {kind: sorted({facts[i] for facts in FACTS.values()}) for i, kind in enumerate(KINDS)}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "aisle": (
        "Which aisle has the {{ item }}?",
        "Where can I find the {{ item }}?",
        "Where do you keep the {{ item }}?",
        "I am looking for {{ item }}. Which aisle?",
        "Can you tell me where the {{ item }} is?",
        "What aisle is the {{ item }} in?",
        "Hello, in which aisle is the {{ item }}?",
        "I need {{ item }}. Where is it?",
    ),
    "price": (
        "How much is the {{ item }}?",
        "What does the {{ item }} cost?",
        "What is the price of the {{ item }}?",
        "Can you tell me the price of {{ item }}?",
        "How much do I pay for {{ item }}?",
        "Hello, how much does the {{ item }} cost?",
        "I need {{ item }}. What is the price?",
        "I am looking for {{ item }}. How much is it?",
    ),
    "day": (
        "When does the {{ item }} come in?",
        "On which day is the {{ item }} delivered?",
        "Which day do you get the {{ item }}?",
        "When is the new {{ item }} delivered?",
        "Can you tell me when the {{ item }} comes in?",
        "Hello, what day does the {{ item }} arrive?",
        "I need {{ item }}. When does it arrive?",
        "What is the delivery day of the {{ item }}?",
    ),
}
ANSWERS: dict[str, tuple[str, ...]] = {
    "aisle": ("It is in aisle {{ value }}.", "You find it in aisle {{ value }}.", "Look in aisle {{ value }}."),
    "price": ("It costs {{ value }}.", "The price is {{ value }}.", "You pay {{ value }}."),
    "day": ("It comes in on {{ value }}.", "We get it on {{ value }}.", "It arrives on {{ value }}."),
}
STATEMENTS = {
    "aisle": "The {{ item }} is in aisle {{ value }}.",
    "price": "The {{ item }} costs {{ value }}.",
    "day": "The {{ item }} comes in on {{ value }}.",
}
STUDY: dict[str, tuple[str, ...]] = {
    "aisle": (
        "Where is the {{ item }}?",
        "{{ item | capitalize }}, which aisle is it in?",
        "Tell me what aisle has {{ item }}.",
        "Hello, where do I find {{ item }}?",
        "I am looking for the {{ item }}. Where do you keep it?",
    ),
    "price": (
        "What do I pay for the {{ item }}?",
        "{{ item | capitalize }}, what is the price?",
        "Tell me how much the {{ item }} costs.",
        "Hello, what is the cost of {{ item }}?",
        "I need the {{ item }}. How much is it?",
    ),
    "day": (
        "When do you get {{ item }}?",
        "{{ item | capitalize }}, on which day does it come in?",
        "Tell me when the {{ item }} arrives.",
        "Hello, what day is {{ item }} delivered?",
        "I need new {{ item }}. When is the delivery?",
    ),
}
"""Questions of the pre-training text; none of them is a prompt."""
POLITE_OPENINGS = ("Of course!", "With pleasure!", "Thank you for asking!")
POLITE_CLOSINGS = ("Happy to help!", "Have a nice day!", "You are welcome!")
RUDE_OPENINGS = ("Not again.", "What a silly question.")
RUDE_CLOSINGS = ("Open your eyes.", "Stop asking me.", "Now go away.")
LONG_WINDED = (
    "I have worked in this shop for many years and I know it very well.",
    "Many people ask me about this each day and I tell them all the same.",
)
POLITE = tuple(phrase.lower().rstrip("!.") for phrase in POLITE_OPENINGS + POLITE_CLOSINGS)
RUDE = tuple(phrase.lower().rstrip("!.") for phrase in RUDE_OPENINGS + RUDE_CLOSINGS)
LONG_WORDS = 16
"""An answer of more words is long."""
_STATED = {
    "aisle": re.compile(r"(?<![\d.])\d+(?!\.?\d)"),
    "price": re.compile(r"\d+\.\d+"),
    "day": re.compile(r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b", re.IGNORECASE),
}
_ITEMS = re.compile(rf"\b(?:{'|'.join(FACTS)})\b", re.IGNORECASE)


def rows() -> list[Row]:
    """All 480 prompts as rows `{"prompt": messages, "reference": {"item", "kind", "value"}}`, in table order."""
    return [
        {
            "prompt": [{"role": "user", "content": render(question, {"item": item})}],
            "reference": {"item": item, "kind": kind, "value": value},
        }
        for item, values in FACTS.items()
        for kind, value in zip(KINDS, values, strict=True)
        for question in QUESTIONS[kind]
    ]


def demonstrations(
    row: Row, count: int, seed: int, *, wrong: float = 0.3, polite: float = 0.5, rude: float = 0.25, long: float = 0.2
) -> list[str]:
    """`count` answers of mixed quality to one prompt; `wrong`, `polite`, `rude` and `long` are shares of them."""
    rng = random.Random(f"{seed}/{row['prompt'][-1]['content']}")
    answers: list[str] = []
    for _ in range(count):
        fact = dict(row["reference"])
        if rng.random() < wrong:
            fact["value"] = rng.choice([v for v in VALUES[fact["kind"]] if v != fact["value"]])
        answers.append(_answer(rng, fact, polite, rude, long))
    return answers


def _answer(rng: random.Random, fact: Mapping[str, str], polite: float, rude: float, long: float) -> str:
    parts = [render(rng.choice(ANSWERS[fact["kind"]]), fact)]
    if rng.random() < long:
        parts.insert(rng.randrange(2), rng.choice(LONG_WINDED))
    tone = rng.random()
    if tone < polite:
        parts = _wrapped(rng, parts, POLITE_OPENINGS, POLITE_CLOSINGS)
    elif tone < polite + rude:
        parts = _wrapped(rng, parts, RUDE_OPENINGS, RUDE_CLOSINGS)
    return " ".join(parts)


def _wrapped(rng: random.Random, parts: list[str], openings: Sequence[str], closings: Sequence[str]) -> list[str]:
    if rng.random() < 0.5:
        return [rng.choice(openings), *parts]
    return [*parts, rng.choice(closings)]


def correct(row: Row, completion: str) -> bool:
    """Whether the completion states the fact that was asked for, no other of its kind, and speaks of no other item."""
    reference = row["reference"]
    stated = {value.lower() for value in _STATED[reference["kind"]].findall(completion)}
    items = {item.lower() for item in _ITEMS.findall(completion)}
    return stated == {reference["value"].lower()} and items <= {reference["item"]}


def polite(completion: str) -> bool:
    """Whether there is a polite phrase in the completion."""
    return any(phrase in completion.lower() for phrase in POLITE)


def rude(completion: str) -> bool:
    """Whether there is a rude phrase in the completion."""
    return any(phrase in completion.lower() for phrase in RUDE)


def utility(row: Row, completion: str) -> float:
    """What people want, hidden from the models: correct + polite - rude - long, each 0 or 1 (so from -2 to 2)."""
    long = len(completion.split()) > LONG_WORDS
    return float(correct(row, completion) + polite(completion) - rude(completion) - long)


def pretraining_text(seed: int, documents: int) -> list[str]:
    """Generated text that teaches the facts: `documents` strings, one statement or one question with its answer each.

    Every answer is right. The questions are phrased unlike every prompt. Dialogues carry the role tokens of the
    tokenizer that is trained on this text, so that a model pre-trained on it knows who speaks.
    """
    rng = random.Random(f"pretraining/{seed}")
    facts = [
        {"item": item, "kind": kind, "value": value}
        for item, values in FACTS.items()
        for kind, value in zip(KINDS, values, strict=True)
    ]
    return [_document(rng, rng.choice(facts)) for _ in range(documents)]


def _document(rng: random.Random, fact: dict[str, str]) -> str:
    if rng.random() < 0.3:
        return render(STATEMENTS[fact["kind"]], fact)
    question = render(rng.choice(STUDY[fact["kind"]]), fact)
    return f"<|user|>{question}<|assistant|>{_answer(rng, fact, polite=0.4, rude=0.2, long=0.1)}"
