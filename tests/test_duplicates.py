"""Near-duplicates: MinHash finds what all pairs would, also where most of every text is the same."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tasks.artifact import Message
from tasks.data.duplicates import MISSED, PERMUTATIONS, Signatures, rows_per_band
from tasks.data.preview import table
from tasks.data.splits import group_prompts
from tasks.data.words import normalise, shingles
from tests.test_mixture import alpaca, prepare, save


def test_bands_miss_less_than_said() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.99):
        rows = rows_per_band(threshold)
        assert (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED
        assert (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) > MISSED or rows == PERMUTATIONS


def similarity(a: str, b: str) -> float:
    first, second = shingles(normalise(a)), shingles(normalise(b))
    return len(first & second) / len(first | second)


def by_all_pairs(texts: list[str], threshold: float) -> list[int]:
    groups = list(range(len(texts)))
    for b in range(len(texts)):
        for a in range(b):
            if groups[a] != groups[b] and similarity(texts[a], texts[b]) >= threshold:
                old, new = max(groups[a], groups[b]), min(groups[a], groups[b])
                groups = [new if group == old else group for group in groups]
    return groups


def signed(texts: list[str], folder: Path) -> Signatures:
    signatures = Signatures(folder / "s.bin")
    for text in texts:
        signatures.add(text)
    return signatures


def behind_an_instruction(rng: Random, count: int, instruction: int = 32, asked: int = 5) -> list[str]:
    words = [f"w{n}" for n in range(400)]
    said = " ".join(rng.choices(words, k=instruction))
    texts = [f"{said} {' '.join(rng.choices(words, k=rng.randint(asked - 1, asked + 4)))}" for _ in range(count)]
    for place in range(5, count, 7):
        texts[place] = texts[rng.randrange(place)] + " " + rng.choice(words)
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_minhash_groups_are_those_of_all_pairs(tmp_path: Any, threshold: float) -> None:
    rng = Random(3)
    words = [f"w{n}" for n in range(300)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(60)]
    for _ in range(120):
        changed = rng.choice(texts).split()
        for _ in range(rng.randint(0, 6)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    found = signed(texts, tmp_path).groups(threshold, texts.__getitem__)
    assert 1 < len(set(found.tolist())) < len(texts)
    assert found.tolist() == by_all_pairs(texts, threshold)


@pytest.mark.parametrize("seed", range(3))
def test_texts_behind_one_long_instruction_are_told_apart(tmp_path: Path, seed: int) -> None:
    texts = behind_an_instruction(Random(seed), 250)
    expected = by_all_pairs(texts, 0.8)
    assert 20 < len(set(expected)) < len(texts) - 20
    assert signed(texts, tmp_path).groups(0.8, texts.__getitem__).tolist() == expected
    prompts: list[list[Message]] = [[{"role": "user", "content": text}] for text in texts]
    assert group_prompts(prompts, 0.8) == expected


def test_what_stays_of_a_large_group_is_unlike_and_what_goes_is_like_what_stays(tmp_path: Path) -> None:
    texts = behind_an_instruction(Random(1), 250, instruction=36, asked=4)
    signatures, every = signed(texts, tmp_path), np.ones(250, bool)
    sizes = np.bincount(signatures.groups(0.8, texts.__getitem__))
    found = signatures.repeats(0.8, texts.__getitem__, every)
    kept = [n for n in range(250) if found[n] == n]
    assert sizes.max() > 150 and 40 < len(kept) < 200
    assert all(similarity(texts[n], texts[found[n]]) >= 0.8 and found[found[n]] == found[n] for n in range(250))
    assert all(similarity(texts[a], texts[b]) < 0.8 for a in kept for b in kept if a < b)


def test_a_chain_of_small_changes_is_thinned_and_not_dropped_whole(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(words[n : n + 30]) for n in range(0, 30, 2)]
    every = [*texts, texts[3].upper()]
    signatures = signed(every, tmp_path)
    found = signatures.repeats(0.8, every.__getitem__, np.ones(len(every), bool))
    kept = [n for n in range(len(every)) if found[n] == n]
    assert len(set(signatures.groups(0.8, every.__getitem__))) == 1 and len(kept) > 4
    assert all(similarity(every[n], every[found[n]]) >= 0.8 for n in range(len(every)))
    assert all(similarity(every[a], every[b]) < 0.8 for a in kept for b in kept if a < b)


def test_a_set_that_loses_most_of_its_rows_is_told_of(tmp_path: Path) -> None:
    texts = behind_an_instruction(Random(0), 100, instruction=60, asked=3)
    rows = [{"instruction": text, "output": f"It is {n}."} for n, text in enumerate(texts)]
    sets = [
        {"name": "one", "kind": "json", "path": save(tmp_path / "one.jsonl", rows)},
        {"name": "other", "kind": "json", "path": alpaca(tmp_path / "other.jsonl", 60)},
    ]
    work = prepare(tmp_path, sets=sets, filters=[{"kind": "duplicates", "of": "prompt"}])
    notices = [row["notice"] for row in table(work.out, "notices")]
    assert [notice for notice in notices if "duplicates" in notice] == [notices[0]] and "'one'" in notices[0]
