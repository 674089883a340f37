"""The filters that score every conversation with a model, applied to rows in the spool."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from tasks.artifact import InputError, Row, Work
from tasks.data.model_filters import DifficultyFilter, JudgeFilter, PerplexityFilter
from tasks.data.rows import Example
from tasks.data.spool import Spool
from tasks.models.source import find_model

ModelFilter = PerplexityFilter | DifficultyFilter | JudgeFilter
_BLOCK = 4096
"""Conversations in memory at once."""


@dataclass
class Scored:
    """What a filter made of the conversations it saw, in their order; a few numbers of each."""

    places: np.ndarray
    """int32 `[conversations, 2]`: row and place in it."""
    scores: np.ndarray
    """NaN where there is none."""
    why: np.ndarray
    """uint8: which of the reasons each is dropped for; 0: it stays."""
    reasons: list[str]
    """The first is empty."""
    figures: Row
    """What stands in the report beside the quantiles."""

    def dropped(self) -> Iterator[tuple[int, int, str]]:
        """Row, place in it and reason of what goes."""
        for number in np.flatnonzero(self.why):
            row, place = self.places[number].tolist()
            yield row, place, self.reasons[self.why[number]]


def score(part: ModelFilter, spool: Spool, among: np.ndarray, work: Work) -> Scored:
    """Score every conversation with a completion in the rows marked in `among`.

    Raises `InputError` when the model is not there or nothing can be scored, and what the judge raises.
    """
    if isinstance(part, JudgeFilter):
        return _judged(part, spool, among, work)
    from tasks.data.scoring_engine import Scorer

    scorer = Scorer(find_model(part.model, part.revision, f"the {part.kind} filter's model")[0])
    places = _places(spool, among)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        work.progress(done, len(places), f"{part.kind} by {part.model}")

    scores: list[np.ndarray] = []
    for block in _blocks(spool, among):
        alone = scorer.losses(block, True, on_batch)
        if isinstance(part, DifficultyFilter):
            with np.errstate(divide="ignore", invalid="ignore"):
                scores.append(scorer.losses(block, False, lambda count: None) / alone)
        else:
            scores.append(np.exp(np.minimum(alone, 700)))
    found = np.concatenate(scores) if scores else np.array([])
    if not np.isfinite(found).any():
        raise InputError(f"The {part.kind} filter could score nothing; check its model and the sets it is for.")
    lower, upper = np.nanquantile(found, part.keep)
    least = max(part.least, lower) if part.keep[0] > 0 else part.least
    most = min(part.most or np.inf, upper) if part.keep[1] < 1 else part.most or np.inf
    why = np.where(found < least, 1, np.where(found > most, 2, 0)).astype(np.uint8)
    reasons = ["", f"the {part.kind} is below {least:.4g}", f"the {part.kind} is above {most:.4g}"]
    return Scored(places, found, why, reasons, {})


def _judged(part: JudgeFilter, spool: Spool, among: np.ndarray, work: Work) -> Scored:
    from tasks.data.judging import Classifier, Rater, held_out_auc

    places, rater = _places(spool, among), Rater(part, work)
    drawn = np.ones(len(places), bool)
    if part.sample is not None and part.sample < len(places):
        drawn[:] = False
        drawn[Random(f"{work.seed}/judge").sample(range(len(places)), part.sample)] = True
    asked: list[Example] = []
    scores = np.full(len(places), np.nan)
    if drawn.all():  # so many are not held in memory
        rated = [rater.ratings(block) for block in _blocks(spool, among)]
        scores[drawn] = np.concatenate(rated) if rated else []
    else:
        asked = [example for number, (_, example) in enumerate(_conversations(spool, among)) if drawn[number]]
        scores[drawn] = rater.ratings(asked)
    readable = np.isfinite(scores[drawn])
    if not readable.any():
        raise InputError("None of the judge's ratings can be read; take a model that follows instructions.")
    why = (scores < part.at_least).astype(np.uint8)
    reasons = [
        "",
        f"the judge rates it below {part.at_least}",
        f"the classifier expects a rating below {part.at_least}",
    ]
    figures: Row = {"asked": int(drawn.sum()), "unreadable": int((~readable).sum()), "auc": None}
    if not drawn.all():
        known = [example for example, read in zip(asked, readable, strict=True) if read]
        good = scores[drawn][readable] >= part.at_least
        auc = held_out_auc(known, good)
        if auc < part.auc:
            raise InputError(
                f"The classifier of the judge's ratings tells good from bad hardly better than chance (AUC {auc:.2f}, "
                f"asked for is {part.auc:g}); raise the judge filter's 'sample', or let the judge rate all."
            )
        classifier, begin = Classifier(known, good), 0
        for block in _blocks(spool, among):
            bad = (classifier.scores(block) < 0.5) & ~drawn[begin : begin + len(block)]
            why[begin : begin + len(block)][bad] = 2
            begin += len(block)
        figures["auc"] = round(auc, 3)
    return Scored(places, scores, why, reasons, figures)


def _places(spool: Spool, among: np.ndarray) -> np.ndarray:
    places = array("i")
    for place, _ in _conversations(spool, among):
        places.extend(place)
    return np.frombuffer(places, np.int32).reshape(-1, 2)


def _conversations(spool: Spool, among: np.ndarray) -> Iterator[tuple[tuple[int, int], Example]]:
    for index, kept in spool.rows(among):
        out = spool.without.get(index, set())
        left = [at for at in range(len(kept.examples) + len(out)) if at not in out]
        for at, example in zip(left, kept.examples, strict=True):
            if example.completions:
                yield (index, at), example


def _blocks(spool: Spool, among: np.ndarray) -> Iterator[Sequence[Example]]:
    block: list[Example] = []
    for _, example in _conversations(spool, among):
        block.append(example)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def quantiles(name: str, scored: Scored) -> Row:
    """A line of the table of scores."""
    found = scored.scores[np.isfinite(scored.scores)]
    points = {"least": 0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "most": 1}
    values = {label: round(float(np.quantile(found, at)), 4) if len(found) else None for label, at in points.items()}
    return {
        "filter": name,
        "scored": len(found),
        **values,
        "asked": None,
        "unreadable": None,
        "auc": None,
    } | scored.figures
