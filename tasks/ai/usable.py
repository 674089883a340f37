"""Whether enough of a judge's answers can be used, and what to say where they cannot."""

import math
from collections import Counter
from collections.abc import Sequence

from labeling.ai.feedback import Opinion
from labeling.ai.keys import key_in, quoted
from tasks.ai.answers import EXAMPLE
from tasks.ai.kept import Said
from tasks.ai.recipe import Judge
from tasks.artifact import PipelineError, Work

MANY = 0.1
"""Whoever runs it is told where more than this share of the records has no usable judgement."""


def check_usable(
    judge: Judge, annotator: str, usable: float, opinions: Sequence[Opinion], said: Sequence[Said], work: Work
) -> None:
    """Raises `PipelineError` where no judgement, or fewer than this share, can be used; tells where many cannot.

    `said` are the answers behind the opinions, in their order.
    """
    invalid = sum(opinion.judgement is None for opinion in opinions)
    if not invalid:
        return
    share = 1 - invalid / len(opinions)
    found = f"{annotator} gave no usable judgement on {invalid} of {len(opinions)} records"
    found += f"; {_commonest(judge, opinions, said)}"
    again = "run again, which asks again what cannot be used"
    if invalid == len(opinions):
        raise PipelineError(f"{found}; {_remedy(judge, opinions)} and {again}.")
    if share < usable:
        raise PipelineError(
            f"{found}; {_remedy(judge, opinions)} and {again}, or set label.ai.usable, which is {usable:g}, to "
            f"{math.floor(100 * share + 1e-9) / 100:g} or less."
        )
    if invalid > MANY * len(opinions):
        work.notify(f"{found}; to ask again, {_remedy(judge, opinions)} and set label.ai.usable over {share:.2f}.")


def _reasons(opinions: Sequence[Opinion]) -> Counter[str]:
    return Counter(answer.invalid for opinion in opinions for answer in opinion.answers if answer.invalid)


def _commonest(judge: Judge, opinions: Sequence[Opinion], said: Sequence[Said]) -> str:
    """The commonest reason, how often, and what one such answer says."""
    [(reason, count)] = _reasons(opinions).most_common(1)
    answers = [answer for opinion in opinions for answer in opinion.answers]
    example = next(each for answer, each in zip(answers, said, strict=True) if answer.invalid == reason)
    key = key_in(judge.api_key_env) if judge.kind == "endpoint" else ""
    detail = quoted(example.refused.removeprefix(reason).lstrip(": ") or example.text, key, EXAMPLE)
    shown = f", for one '{detail}'" if detail else "" if example.refused else ", for one an empty answer"
    return f"the commonest reason: {reason} ({count} of {len(answers)} answers{shown})"


def _remedy(judge: Judge, opinions: Sequence[Opinion]) -> str:
    [(reason, _)] = _reasons(opinions).most_common(1)
    if reason.startswith("longer than"):
        return "take a judge with a longer context, or shorten label.guidelines or the completions,"
    if reason.startswith("cut at"):
        limit = "label.ai.judge.max_new_tokens" if judge.kind == "local" else "max_tokens in label.ai.judge.options"
        return f"raise {limit}"
    if reason.startswith("HTTP"):
        return "check label.ai.judge.model and label.ai.judge.options"
    return "mend the judge's endpoint, or take a model that follows instructions,"
