"""What can be said of completions without judging them: their variety."""

from collections.abc import Iterable


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams over all n-grams of all texts together (Li et al., 2016, "A diversity-promoting objective").

    Words are separated by white space, case is ignored; texts shorter than n words have no n-gram. 0 without any
    n-gram. It falls as more text is counted, so compare only models with equally many completions.
    """
    total = 0
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        words = text.lower().split()
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0
