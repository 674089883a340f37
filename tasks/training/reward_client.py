"""Asking a reward server over HTTP, patiently: what it is sent, how often, and how its failures are told."""

import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tasks.artifact import Message, PipelineError, without_credentials
from tasks.training.rewards import ServerReward

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Worth another attempt."""
BATCH = 256
"""Completions in one request."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; doubled for each further one."""


def ask(
    term: ServerReward, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
) -> list[float]:
    """The server's reward of each completion. Raises `PipelineError` when it stays away, refuses or talks nonsense."""
    found: list[float] = []
    with httpx.Client(timeout=term.timeout) as client:
        for begin in range(0, len(completions), BATCH):
            part = slice(begin, begin + BATCH)
            found += _batch(client, term, prompts[part], completions[part], finished[part])
    return found


def _batch(
    client: httpx.Client,
    term: ServerReward,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[str],
    finished: Sequence[bool],
) -> list[float]:
    texts = ["\n".join(turn["content"] for turn in prompt) for prompt in prompts]
    asked = {
        "prompts": texts,
        "query": [f"{prompt}\n{text}" for prompt, text in zip(texts, completions, strict=True)],
        "messages": [list(prompt) for prompt in prompts],
        "completions": list(completions),
        "finished": list(finished),
    }
    answer = _patiently(client, term, asked)
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list) or len(rewards) != len(completions) or not all(map(_number, rewards)):
        raise PipelineError(
            f'The reward server at {_place(term)} must answer {{"rewards": [...]}} with {len(completions)} numbers; '
            "check what runs there."
        )
    return [float(value) for value in rewards]


def _patiently(client: httpx.Client, term: ServerReward, asked: dict[str, Any]) -> Any:
    said = ""
    for attempt in range(term.attempts):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.8, 1.2))
        try:
            response = client.post(term.url, json=asked)
        except httpx.TimeoutException:
            said = f"gave no answer within {term.timeout:g} s"
            continue
        except httpx.HTTPError as error:
            said = f"cannot be reached ({type(error).__name__})"
            continue
        if response.status_code in BUSY:
            said = f"is busy or failing (HTTP {response.status_code})"
            continue
        if not response.is_success:
            raise PipelineError(
                f"The reward server at {_place(term)} refuses (HTTP {response.status_code}): {response.text[:200]}"
            )
        try:
            return response.json()
        except ValueError:
            return None
    raise PipelineError(
        f"The reward server at {_place(term)} {said}, {term.attempts} times; start it and run again: "
        "what is finished is kept."
    )


def _place(term: ServerReward) -> str:
    return without_credentials(term.url)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
