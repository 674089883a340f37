"""Filters that see the rows of all sets at once: repetitions of earlier rows, and what a model scores too low."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tasks.data.duplicates import Signatures
from tasks.data.filters import DuplicateFilter, FilterPart
from tasks.data.scored import ModelFilter, quantiles, score
from tasks.data.spool import Kept, plain

if TYPE_CHECKING:
    from tasks.data.intake import Intake

_MANY = 20
"""Fewer dropped rows of a set are not worth a notice."""


def without_duplicates(intake: "Intake", name: str, part: DuplicateFilter) -> None:
    """Take out what says the same as an earlier row."""
    among = intake.keep & _looked_at(intake, part)
    signatures = intake.contents
    if part.of == "conversation":
        signatures = Signatures(intake.work.scratch / f"{name}.bin")
        for _, kept in intake.spool.rows(np.ones(len(intake.spool), bool)):
            signatures.add(_conversation_text(kept))
    text = _conversation_text if part.of == "conversation" else _content
    first_said = signatures.repeats(part.threshold, lambda index: text(intake.spool.read(index)), among)
    if signatures is not intake.contents:
        signatures.close()
    again = among & (first_said != np.arange(len(first_said)))
    for index, kept in intake.spool.rows(among):
        intake.seen[name] += len(kept.examples)
        if again[index]:
            first = intake.spool.read(int(first_said[index]))
            reason = f"says what a row of {intake.recipe.sets[first.set].name} says"
            for example in kept.examples:
                intake.drops.add(intake.recipe.sets[kept.set].name, kept.line, name, reason, plain(example))
    intake.keep &= ~again
    _tell_gone(intake, name, among, again, first_said)


def _tell_gone(intake: "Intake", name: str, among: np.ndarray, again: np.ndarray, first_said: np.ndarray) -> None:
    """Tell of sets that lose most of their rows: to another set, or to themselves."""
    sets = intake.sets()
    for number, each in enumerate(intake.recipe.sets):
        here = among & (sets == number)
        gone = int(again[here].sum())
        if gone <= max(here.sum() / 2, _MANY):
            continue
        [(first, count)] = Counter(sets[first_said[here & again]].tolist()).most_common(1)
        why = f"{count} of them say what rows of '{intake.recipe.sets[first].name}' say."
        if first == number:
            why = (
                "If they begin with the same long instruction, give the set templates: then only what its columns say "
                "is compared."
            )
        intake.notify(f"The filter '{name}' drops {gone} of the {here.sum()} rows of '{each.name}'. {why}")


def _looked_at(intake: "Intake", part: FilterPart) -> np.ndarray:
    """The rows of the sets that a filter is for."""
    looked = [
        number
        for number, each in enumerate(intake.recipe.sets)
        if each.use != "evaluation" and each.kind != "identity" and each.name in (part.sets or [each.name])
    ]
    return np.isin(intake.sets(), looked)


def without_low_scores(intake: "Intake", name: str, part: ModelFilter) -> None:
    """Take out the conversations that a model scores too low or too high."""
    scored = score(part, intake.spool, intake.keep & _looked_at(intake, part), intake.work)
    intake.scores.append(quantiles(name, scored))
    intake.seen[name] += len(scored.scores)
    going: dict[int, dict[int, str]] = {}
    for index, at, reason in scored.dropped():
        going.setdefault(index, {})[at] = reason
    for index, reasons in going.items():
        out = intake.spool.without.get(index, set())
        kept = intake.spool.read(index)
        left = [at for at in range(len(kept.examples) + len(out)) if at not in out]
        for at, example in zip(left, kept.examples, strict=True):
            if at in reasons:
                intake.drops.add(intake.recipe.sets[kept.set].name, kept.line, name, reasons[at], plain(example))
        intake.spool.without[index] = out | reasons.keys()
        intake.keep[index] = len(reasons) < len(kept.examples)


def _content(kept: Kept) -> str:
    return kept.content


def _conversation_text(kept: Kept) -> str:
    """What a row says with its answer; of a row in phrasings, its columns hold both."""
    if not kept.examples:
        return kept.content
    first = kept.examples[0]
    return kept.content if first.kind or not first.prompt else "\n".join([kept.content, *first.answers])
