"""A judge's ratings of demonstrated answers, and a small classifier that learns them.

A classifier on a judge's ratings of a part, used on all: as Penedo et al. 2024, "The FineWeb Datasets", section 4.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

from labeling.ai.prompts import Question, Rubric, questions_of
from labeling.comparison import Comparison, Completion
from tasks.ai.account import Account
from tasks.ai.answers import answer_by_endpoint, judge_identity
from tasks.ai.kept import Said, kept_answers
from tasks.ai.recipe import EndpointJudge
from tasks.artifact import InputError, Work
from tasks.data.model_filters import JudgeFilter
from tasks.data.rows import Example
from tasks.data.tools import text_of
from tasks.data.words import normalise
from tasks.recipe import stable_hash

BUCKETS = 1 << 16
"""Columns that words are hashed into."""
CRITERION = "quality"
_RIDGE = 1.0


class Rater:
    """A filter's judge: what it rates completions, 1 to `scale`.

    Answers are kept: interrupted and run again, only what is missing is asked.
    """

    def __init__(self, part: JudgeFilter, work: Work) -> None:
        rubric = Rubric(part.rubric, "rate", criteria=(CRITERION,), scale=part.scale, reasons=part.reasons)
        self._rubric, judge = rubric, part.judge
        self._answers: Callable[[Sequence[Question]], list[Said]]
        if isinstance(judge, EndpointJudge):
            identity = judge_identity({"url": judge.url, "model": judge.model, "options": judge.options})
            account = Account(judge, kept_answers(identity, work), work)
            self._answers = lambda questions: answer_by_endpoint(judge, questions, rubric, account, work)[0]
        else:
            from tasks.ai.local import chain_digest, chain_of, local_answers

            chain = chain_of(judge, {})
            told = {"weights": chain_digest(chain), "answer": "text", "tokens": judge.max_new_tokens}
            self._answers = local_answers(judge, chain, judge_identity(told), work)

    def ratings(self, examples: Sequence[Example]) -> np.ndarray:
        """Of each example's completion, NaN where the answer cannot be read. Raises `PipelineError` when the judge
        cannot be asked."""
        questions = [questions_of(_comparison(example), self._rubric)[0] for example in examples]
        said = self._answers(questions)
        return np.array([_rating(each, asked, self._rubric) for each, asked in zip(said, questions, strict=True)])


def _comparison(example: Example) -> Comparison:
    prompt = tuple({"role": turn["role"], "content": text_of(turn)} for turn in example.prompt)
    text = example.answers[0]
    return Comparison(stable_hash([list(prompt), text])[:16], prompt, (Completion("answer", text),), ("answer",))


def _rating(said: Said, question: Question, rubric: Rubric) -> float:
    answer = said.read(question, rubric)
    return float("nan") if answer.invalid else float(answer.ratings[CRITERION]["answer"])


class Classifier:
    """Logistic regression on the words of conversations, hashed: which answers a judge would rate high enough."""

    def __init__(self, examples: Sequence[Example], good: np.ndarray) -> None:
        features, signs = _features(examples), np.where(good, 1.0, -1.0)
        balance = np.where(good, 0.5 / max(good.mean(), 1e-9), 0.5 / max(1 - good.mean(), 1e-9))

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            margins = signs * (features @ weights[:-1] + weights[-1])
            slopes = -signs * balance / (1 + np.exp(np.clip(margins, -500, 500)))
            gradient = np.r_[features.T @ slopes + _RIDGE * weights[:-1], slopes.sum()]
            return float(balance @ np.logaddexp(0, -margins) + _RIDGE / 2 * weights[:-1] @ weights[:-1]), gradient

        self._weights = minimize(loss, np.zeros(BUCKETS + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x

    def scores(self, examples: Sequence[Example]) -> np.ndarray:
        """The probability that each is good."""
        return 1 / (1 + np.exp(-np.clip(_features(examples) @ self._weights[:-1] + self._weights[-1], -500, 500)))


def held_out_auc(examples: Sequence[Example], good: np.ndarray, folds: int = 5) -> float:
    """Area under the ROC curve of the classifier on ratings that it did not learn, by cross-validation.

    Raises `InputError` when the ratings are too much alike to learn from.
    """
    if min(good.sum(), (~good).sum()) < 2 * folds:
        raise InputError(
            f"The judge rates {int(good.sum())} of {len(good)} answers high enough, which is too uneven for a "
            "classifier; raise the judge filter's 'sample', move 'at_least', or let the judge rate all."
        )
    scores = np.empty(len(good))
    fold = np.empty(len(good), int)
    for group in (good, ~good):  # each fold with its part of both
        fold[group] = np.arange(group.sum()) % folds
    for number in range(folds):
        held = fold == number
        learnt = Classifier([each for each, out in zip(examples, held, strict=True) if not out], good[~held])
        scores[held] = learnt.scores([each for each, out in zip(examples, held, strict=True) if out])
    ranks = rankdata(scores)
    positives = int(good.sum())
    return float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * (len(good) - positives)))


def _features(examples: Sequence[Example]) -> csr_matrix:
    """Words of prompts and of completions in columns of their own, and a text's length, as rows of length 1."""
    columns: list[int] = []
    starts = [0]
    for example in examples:
        asked = {f"p {word}" for turn in example.prompt for word in normalise(text_of(turn)).split()}
        words = normalise(example.answers[0]).split()
        said = {f"c {word}" for word in words} | {f"length {len(words).bit_length()}"}
        columns += sorted({zlib.crc32(word.encode()) % BUCKETS for word in asked | said})
        starts.append(len(columns))
    lengths = np.diff(starts)
    values = np.repeat(np.sqrt(8 / np.maximum(lengths, 1)), lengths)
    return csr_matrix((values, np.array(columns, np.int64), np.array(starts)), shape=(len(examples), BUCKETS))
