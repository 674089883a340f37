"""The ledger: near-duplicates stay together, every prompt is in one split, the same seed gives the same splits."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.artifact import Message
from tasks.data import shop
from tasks.data.splits import SPLITS, Shares, assign, group_prompts, prompt_id
from tasks.data.words import count_words, normalise, shingles


def said(*texts: str) -> list[Message]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)]


def groups(*texts: str, threshold: float = 0.8) -> list[int]:
    return group_prompts([said(text) for text in texts], threshold)


def test_case_punctuation_width_and_spacing_do_not_make_another_prompt() -> None:
    assert normalise("  Where's the\tBREAD?! ") == "where s the bread"
    assert normalise("Ｂread") == "bread"
    assert normalise("?!") == "?!"
    assert groups("Where is the bread?", "where is the  bread", "Where is the tea?", threshold=1) == [0, 0, 2]


def test_a_word_exchanged_makes_another_short_prompt_but_not_another_long_one() -> None:
    assert groups("Which aisle has the bread?", "Which aisle has the tea?") == [0, 1]
    long = "a farmer has many sheep on a hill and sells some of them at the market every week to {} for gold"
    assert groups(long.format("people"), long.format("strangers")) == [0, 0]
    assert groups(long.format("people"), long.format("strangers"), threshold=0.95) == [0, 1]


def test_a_conversation_stays_with_its_continuations_and_a_system_prompt_says_nothing() -> None:
    start, later, other = said("Hi there"), said("Hi there!", "Hello.", "Who are you?"), said("Bye then")
    assert group_prompts([later, other, start], 0.8) == [0, 1, 0]
    system: Message = {"role": "system", "content": "You are a long-winded but otherwise helpful assistant."}
    assert group_prompts([[system, *start], [system, *other]], 0.8) == [0, 1]


def test_prompts_said_to_belong_together_do() -> None:
    assert group_prompts([said("one"), said("two"), said("three")], 0.8, [[2, 0]]) == [0, 1, 0]


def test_the_shop_has_as_many_groups_as_prompts() -> None:
    prompts = [row["prompt"] for row in shop.rows()]
    assert len(set(group_prompts(prompts, 0.8))) == len(prompts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=14),
    st.sampled_from([0.3, 0.5, 0.75, 0.8]),
)
def test_the_candidates_miss_no_similar_pair(texts: list[str], threshold: float) -> None:
    found = groups(*texts, threshold=threshold)
    for a, b in combinations(range(len(texts)), 2):
        one, two = shingles(texts[a]), shingles(texts[b])
        if len(one & two) / len(one | two) >= threshold:
            assert found[a] == found[b]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(lambda parts: parts[4] > 0 and sum(parts[1:4]) > 0),
    st.integers(0, 3),
)
def test_every_prompt_is_in_one_split_with_its_group(
    drawn: list[tuple[int, bool]], parts: list[int], seed: int
) -> None:
    shares = Shares(**{split: part / sum(parts) for split, part in zip(SPLITS, parts, strict=True)})
    ids = [prompt_id(said(str(place))) for place in range(len(drawn))]
    labels = [label for label, _ in drawn]
    no_sft = [bare for _, bare in drawn]
    splits = assign(ids, labels, shares, seed, no_sft=no_sft)
    assert len({(label, split) for label, split in zip(labels, splits, strict=True)}) == len(set(labels))
    assert not any(split == "sft" for split, bare in zip(splits, no_sft, strict=True) if bare)
    assert all(getattr(shares, split) > 0 for split in splits)
    reverse = assign(ids[::-1], labels[::-1], shares, seed, no_sft=no_sft[::-1])
    assert reverse[::-1] == splits


def test_single_prompts_come_out_at_their_shares_and_the_seed_moves_them() -> None:
    ids = [prompt_id(said(str(place))) for place in range(100)]
    shares = Shares(sft=0.2, reward_train=0.3, reward_validation=0.1, rl=0.25, evaluation=0.15)
    splits = assign(ids, range(100), shares, seed=0)
    assert [splits.count(split) for split in SPLITS] == [20, 30, 10, 25, 15]
    assert splits == assign(ids, range(100), shares, seed=0) != assign(ids, range(100), shares, seed=1)


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"add up to 0\.9 instead of 1"):
        Shares(sft=0.15)


def test_signs_that_change_what_is_said_make_another_prompt() -> None:
    apart = {
        "C": "C++", "Is it C#?": "Is it C?", "7+5?": "7*5?", "Solve x>5": "Solve x < 5", "12 - 3": "12+3",
        "It costs $5": "It costs €5", "3/4 of it": "3-4 of it", "a == b": "a != b", "5 %": "5", "किसका घर": "किसकी घर",
    }  # fmt: skip
    for one, other in apart.items():
        assert normalise(one) != normalise(other)
    assert normalise("x>5") == normalise("X > 5")
    assert normalise("# Some **bold**, *well-known* text: N/A!") == "some bold well known text n a"


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    assert shingles(normalise("面包，在哪？")) == {"面", "包", "在", "哪", "面 包", "包 在", "在 哪"}
    assert normalise("กิน ข้าว") == "กิ น ข้ า ว"
    assert [count_words(text) for text in ("Where's it?", "面包在哪", "tea 茶 tea", "नमस्ते दुनिया")] == [2, 2, 3, 2]
