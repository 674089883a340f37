"""A judge model's opinion of a record: answers in both orders become one judgement, held against people, and routed.

A completion wins against another only when it wins in every order it was asked in, else they are tied (Zheng et al.
2023, arXiv 2306.05685, section 3.4): a judge that goes by position comes out as ties. Of more than two completions the
ranks are the finest ones that claim no win the judge did not give: completions that are tied, or in a circle, over any
chain share a rank. Asking a list in an order and its reverse is the two-order case of permutation self-consistency
(Tang et al. 2023, arXiv 2310.07712), without its averaging, which would make wins of disagreements.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from labeling.ai.prompts import Answer
from labeling.comparison import Comparison, Judgement, LabelingError, Ranks, compare, judgement_from
from labeling.comparison import Completion as Text
from labeling.question import QUESTION


@dataclass(frozen=True)
class Opinion:
    """What a judge thinks of one record."""

    record: str
    judgement: Judgement | None
    """None where an answer was invalid."""
    sure: float
    """Mean over pairs of completions of how surely the better one is better, both orders averaged: 0.5 is a coin (and a
    tie, for it settles nothing), 1 is certain; 0 without a judgement."""
    chances: Mapping[str, float]
    """Completion id -> mean probability that it is better than another one of its record."""
    answers: tuple[Answer, ...]

    def row(self) -> dict[str, Any]:
        """The opinion as JSON."""
        return {
            "record": self.record,
            "judgement": self.judgement.row() if self.judgement else None,
            "sure": self.sure,
            "chances": dict(self.chances),
            "answers": [vars(answer) for answer in self.answers],
        }


def opinion_from(row: Mapping[str, Any]) -> Opinion:
    """The opinion behind a row."""
    answers = tuple(Answer(**{**answer, "order": tuple(answer["order"])}) for answer in row["answers"])
    judgement = judgement_from(row["judgement"]) if row["judgement"] else None
    return Opinion(row["record"], judgement, row["sure"], row["chances"], answers)


def form_opinion(
    comparison: Comparison, answers: Sequence[Answer], *, judge: str, annotator: str, guidelines: str, at: str
) -> Opinion:
    """One opinion out of all answers about a comparison.

    `judge` says all that decides what it answers, `guidelines` is their version, `at` when the last answer was given.
    The judgement's id depends on the judge, the comparison and the guidelines, so the same question asked again has it.
    """
    if any(answer.invalid for answer in answers):
        return Opinion(comparison.id, None, 0.0, {}, tuple(answers))
    ids = [completion.id for completion in comparison.completions]
    asked = {(a, b): _preferences(answers, a, b) for a, b in combinations(ids, 2)}
    wins = {(a, b) for (a, b), given in asked.items() if all(each > 0.5 for each in given)}
    wins |= {(b, a) for (a, b), given in asked.items() if all(each < 0.5 for each in given)}
    means = {pair: sum(given) / len(given) for pair, given in asked.items()}
    chances = {
        id: round(
            sum(mean if id == a else 1 - mean for (a, b), mean in means.items() if id in (a, b)) / (len(ids) - 1), 6
        )
        for id in ids
    }
    judgement = Judgement(
        id=_id(judge, comparison, guidelines),
        record=comparison.id,
        annotator=annotator,
        status="submitted",
        ranks=ranks_of(ids, wins),
        guidelines=guidelines,
        inserted_at=at,
        updated_at=at,
        ratings=_agreed_ratings(answers),
        rationale=answers[0].rationale,
        by="ai",
    )
    return Opinion(comparison.id, judgement, _sureness(comparison, means), chances, tuple(answers))


def _preferences(answers: Iterable[Answer], left: str, right: str) -> list[float]:
    return [answer.preference(left, right) for answer in answers if left in answer.order and right in answer.order]


def _sureness(comparison: Comparison, means: Mapping[tuple[str, str], float]) -> float:
    texts = {completion.id: completion.text.strip() for completion in comparison.completions}
    apart = [max(mean, 1 - mean) for (a, b), mean in means.items() if texts[a] != texts[b]]
    return round(sum(apart) / len(apart), 6) if apart else 0.5


def _agreed_ratings(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """The ratings that are the same in every order."""
    agreed: dict[str, dict[str, int]] = {}
    for criterion, given in answers[0].ratings.items():
        for id, rating in given.items():
            others = [answer.ratings[criterion].get(id, rating) for answer in answers]
            if set(others) == {rating}:
                agreed.setdefault(criterion, {})[id] = rating
    return agreed


def _id(judge: str, comparison: Comparison, guidelines: str) -> str:
    content = [comparison.id, [dict(message) for message in comparison.prompt]]
    content += [[each.id, each.text] for each in comparison.completions]
    return "ai-" + hashlib.sha256(repr([judge, content, comparison.shown, guidelines]).encode()).hexdigest()[:24]


def ranks_of(ids: Sequence[str], wins: Collection[tuple[str, str]]) -> dict[str, int]:
    """The finest ranks in which nobody is above somebody without having won: what is undecided, over any chain, ties.

    `wins` are (better, worse). Every two that did not win either way stand level; groups that reach each other are the
    strong components of this graph, and these are always in a line.
    """
    above = {(a, b) for a in ids for b in ids if a == b or (b, a) not in wins}
    for through in ids:
        above |= {(a, b) for a in ids for b in ids if (a, through) in above and (through, b) in above}
    return {b: 1 + sum((a, b) in above and (b, a) not in above for a in ids) for b in ids}


def suggestion_of(opinion: Opinion, comparison: Comparison) -> dict[str, Any]:
    """The opinion as Argilla's records API takes a suggestion; `question_id` is left to whoever knows the dataset.

    `score` says for each option how likely it is better than another one. Raises `LabelingError` without a judgement.
    """
    judgement = opinion.judgement
    if judgement is None or judgement.ranks is None:
        raise LabelingError(f"The judge gave no valid answer on record {opinion.record}; suggest nothing there.")
    ranked = [(option, each.id) for option, each in comparison.options.items()]
    return {
        "question": QUESTION,
        "type": "model",
        "agent": judgement.annotator,
        "value": [{"value": option, "rank": judgement.ranks[id]} for option, id in ranked],
        "score": [opinion.chances[id] for _, id in ranked],
    }


@dataclass(frozen=True)
class Routed:
    """Who judges what: ids of records."""

    people: list[str]
    """The judge is not sure, or gave no valid answer."""
    ai: list[str]
    """The judge is sure."""
    audit: list[str]
    """The judge is sure and people see it anyway; they do not know that."""


def route(
    comparisons: Iterable[Comparison], opinions: Iterable[Opinion], audit_share: float, sure: float, seed: int
) -> Routed:
    """Share the asked comparisons out: of the records that the judge is at least this sure of, a share is audited.

    The audit is drawn by hash within each stratum, rounded up, so that each is checked: the same draw each time.
    """
    asked = [comparison for comparison in comparisons if comparison.kind == "asked"]
    surely = {opinion.record for opinion in opinions if opinion.judgement and opinion.sure >= sure}
    strata: dict[str, list[str]] = {}
    for comparison in asked:
        if comparison.id in surely:
            strata.setdefault(comparison.stratum, []).append(comparison.id)
    audited: set[str] = set()
    for ids in strata.values():
        ids.sort(key=lambda id: hashlib.sha256(f"{seed}/audit/{id}".encode()).hexdigest())
        audited |= set(ids[: math.ceil(round(audit_share * len(ids), 9))])
    return Routed(
        people=[each.id for each in asked if each.id not in surely],
        ai=[each.id for each in asked if each.id in surely - audited],
        audit=[each.id for each in asked if each.id in audited],
    )


@dataclass(frozen=True)
class Accuracy:
    """A judge against labels that are right."""

    right: int
    tied: int
    """Told no difference where there is one."""
    wrong: int
    unjudged: int

    @property
    def share(self) -> float:
        """Of the pairs judged, a tie counting half; NaN where nothing was."""
        judged = self.right + self.tied + self.wrong
        return (self.right + self.tied / 2) / judged if judged else math.nan


def judge_accuracy(judgements: Iterable[Judgement], labels: Mapping[str, Ranks]) -> Accuracy:
    """How often each two completions that the labels (record -> ranks) order are ordered so by the judgements.

    Two that are tied by the labels do not count; `unjudged` counts pairs of records without a judgement.
    """
    given: dict[str, list[Ranks]] = {}
    for judgement in judgements:
        if judgement.ranks is not None:
            given.setdefault(judgement.record, []).append(judgement.ranks)
    right = tied = wrong = unjudged = 0
    for record, expected in labels.items():
        for a, b in combinations(sorted(expected), 2):
            way = (expected[a] > expected[b]) - (expected[a] < expected[b])
            unjudged += bool(way) and record not in given
            for ranks in given.get(record, ()) if way else ():
                said = (ranks[a] > ranks[b]) - (ranks[a] < ranks[b])
                right, tied, wrong = right + (said == way), tied + (said == 0), wrong + (said == -way)
    return Accuracy(right, tied, wrong, unjudged)


def labelled_pairs(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> tuple[list[Comparison], dict[str, Ranks]]:
    """Comparisons and their labels from rows with `input`, `output_1`, `output_2` and `label` (1 or 2, the better).

    That is the form of LLMBar (Zeng et al. 2023, arXiv 2310.07641). Raises `LabelingError` for a row of another form.
    """
    comparisons: list[Comparison] = []
    for number, row in enumerate(rows, 1):
        texts = [row.get(name) for name in ("input", "output_1", "output_2")]
        if row.get("label") not in (1, 2) or not all(isinstance(text, str) for text in texts):
            raise LabelingError(f"Row {number} needs input, output_1, output_2 and label (1 or 2); mend the row.")
        id = hashlib.sha256(repr((number, texts)).encode()).hexdigest()[:16]
        answers = [Text(f"{id}-{k}", text) for k, text in enumerate(texts[1:])]  # type: ignore[arg-type]
        expected = {answers[0].id: row["label"], answers[1].id: 3 - row["label"]}
        prompt = [{"role": "user", "content": str(texts[0])}]
        comparisons.append(compare(id, prompt, answers, seed, kind="gold", source=f"row {number}", expected=expected))
    return comparisons, {each.id: each.expected for each in comparisons if each.expected}
