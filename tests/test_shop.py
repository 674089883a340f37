"""The shop's hidden utility, its checks and its generated text."""

import pytest

from tasks.artifact import Row
from tasks.data import shop


def row(kind: str = "aisle", item: str = "bread", value: str = "4") -> Row:
    return {"prompt": [], "reference": {"kind": kind, "item": item, "value": value}}


@pytest.mark.parametrize(
    ("kind", "value", "completion", "right"),
    [
        ("aisle", "4", "The bread is in aisle 4.", True),
        ("aisle", "4", "Aisle 4", True),
        ("aisle", "4", "It is in aisle 4 or aisle 5.", False),
        ("aisle", "4", "It is in aisle 14.", False),
        ("aisle", "4", "It costs 4.00.", False),
        ("aisle", "4", "The milk is in aisle 4.", False),
        ("aisle", "4", "Of course! Happy to help!", False),
        ("aisle", "4", "", False),
        ("price", "2.50", "It costs 2.50.", True),
        ("price", "2.50", "It costs 2.5.", False),
        ("price", "2.50", "It costs 12.50.", False),
        ("price", "2.50", "It costs 2.50. Or 1.20.", False),
        ("day", "Monday", "We get it on monday!", True),
        ("day", "Monday", "On Monday and Friday.", False),
    ],
)
def test_correct_means_the_right_fact_and_no_other(kind: str, value: str, completion: str, right: bool) -> None:
    assert shop.correct(row(kind, value=value), completion) is right


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("It is in aisle 4.", 1.0),
        ("It is in aisle 4. Happy to help!", 2.0),
        ("Of course! Of course! Of course! Have a nice day!", 1.0),
        ("It is in aisle 4. Open your eyes.", 0.0),
        ("It is in aisle 5. Now go away.", -1.0),
        (f"It is in aisle 4. {shop.LONG_WINDED[0]}", 0.0),
        (f"Not again. {shop.LONG_WINDED[0]} It is in aisle 2.", -2.0),
    ],
)
def test_utility_is_correct_plus_polite_minus_rude_minus_long(completion: str, value: float) -> None:
    assert shop.utility(row(), completion) == value


def test_every_prompt_is_asked_once_and_the_right_answers_to_it_are_correct() -> None:
    rows = shop.rows()
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 480
    for item in rows:
        answers = shop.demonstrations(item, 3, seed=1, wrong=0)
        assert all(shop.correct(item, answer) for answer in answers)


def test_demonstrations_have_the_stated_shares_and_depend_on_the_seed_only() -> None:
    pairs = [(row, answer) for row in shop.rows() for answer in shop.demonstrations(row, 10, seed=0)]
    shares = [
        sum(shop.correct(*pair) for pair in pairs) / len(pairs),
        sum(shop.polite(answer) for _, answer in pairs) / len(pairs),
        sum(shop.rude(answer) for _, answer in pairs) / len(pairs),
    ]
    assert shares == pytest.approx([0.7, 0.5, 0.25], abs=0.02)
    first = shop.rows()[0]
    assert shop.demonstrations(first, 10, 0) == shop.demonstrations(first, 10, 0) != shop.demonstrations(first, 10, 1)


def test_pretraining_text_states_every_fact_and_asks_no_prompt() -> None:
    text = " ".join(shop.pretraining_text(0, 4000))
    for row in shop.rows():
        assert row["prompt"][0]["content"] not in text
    for item, (aisle, price, day) in shop.FACTS.items():
        assert f"The {item} is in aisle {aisle}." in text
        assert f"The {item} costs {price}." in text
        assert f"The {item} comes in on {day}." in text
    assert shop.pretraining_text(3, 5) == shop.pretraining_text(3, 5) != shop.pretraining_text(4, 5)
