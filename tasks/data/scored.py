"""The filters that score every conversation with a model, applied to rows in the spool."""

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
    """What a filter made of the conversations it saw, in their order."""

    places: list[tuple[int, int]]
    """Row and place in it."""
    scores: np.ndarray
    """NaN where there is none."""
    reasons: list[str]
    """Why each is dropped; empty: it stays."""
    figures: Row
    """What stands in the report beside the quantiles."""


def score(part: ModelFilter, spool: Spool, among: np.ndarray, work: Work) -> Scored:
    """Score every conversation with a completion in the rows marked in `among`.

    Raises `InputError` when the model is not there or nothing can be scored, and what the judge raises.
    """
    if isinstance(part, JudgeFilter):
        return _judged(part, spool, among, work)
    from tasks.data.scoring_engine import Scorer

    scorer = Scorer(find_model(part.model, part.revision, f"the {part.kind} filter's model")[0])
    places = [place for place, _ in _conversations(spool, among)]
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
    reasons = [_outside(part.kind, score, least, most) for score in found]
    return Scored(places, found, reasons, {})


def _outside(kind: str, score: float, least: float, most: float) -> str:
    if score < least:
        return f"the {kind} is below {least:.4g}"
    return f"the {kind} is above {most:.4g}" if score > most else ""


def _judged(part: JudgeFilter, spool: Spool, among: np.ndarray, work: Work) -> Scored:
    from tasks.data.judging import Classifier, held_out_auc, ratings

    places = [place for place, _ in _conversations(spool, among)]
    drawn = range(len(places))
    if part.sample is not None and part.sample < len(places):
        drawn = sorted(Random(f"{work.seed}/judge").sample(range(len(places)), part.sample))
    wanted = set(drawn)
    asked = [example for number, (_, example) in enumerate(_conversations(spool, among)) if number in wanted]
    rated = ratings(part, asked, work)
    readable = np.flatnonzero(np.isfinite(rated))
    if not len(readable):
        raise InputError("None of the judge's ratings can be read; take a model that follows instructions.")
    scores = np.full(len(places), np.nan)
    scores[list(drawn)] = rated
    reasons = [f"the judge rates it below {part.at_least}" if s < part.at_least else "" for s in scores]
    figures: Row = {"asked": len(asked), "unreadable": len(asked) - len(readable), "auc": None}
    if len(wanted) < len(places):
        known = [asked[i] for i in readable]
        good = rated[readable] >= part.at_least
        auc = held_out_auc(known, good)
        if auc < part.auc:
            raise InputError(
                f"The classifier of the judge's ratings tells good from bad hardly better than chance (AUC {auc:.2f}, "
                f"asked for is {part.auc:g}); raise the judge filter's 'sample', or let the judge rate all."
            )
        classifier, begin = Classifier(known, good), 0
        for block in _blocks(spool, among):
            for place, probability in enumerate(classifier.scores(block), begin):
                if place not in wanted and probability < 0.5:
                    reasons[place] = f"the classifier expects a rating below {part.at_least}"
            begin += len(block)
        figures["auc"] = round(auc, 3)
    return Scored(places, scores, reasons, figures)


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
