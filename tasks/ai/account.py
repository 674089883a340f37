"""What a run has paid an endpoint, held against its budget before every question and not only after it."""

import math
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from labeling.ai.endpoint import Messages
from tasks.ai.kept import Kept, Said
from tasks.ai.recipe import EndpointModel
from tasks.artifact import PipelineError, Work

BYTES = 3
"""Of a text in UTF-8 to a token, where nobody counts them: English has some 4, so that is rather too many tokens."""
AROUND = 10
"""Tokens that a chat template puts around a turn."""
UNBOUNDED = 1000
"""Tokens of an answer that are reckoned with where nothing limits it and none is known yet."""
KNOWN = 20
"""After so many answers the dearest one so far is what the next may cost."""


class Account:
    """The answers of one endpoint that are kept, and what the questions of a run have cost so far.

    What was ever paid for these questions counts, once, also by earlier runs and for answers that could not be used.
    A question is let go when what is under way and it would still be paid for, each at the highest price it may have,
    or when nothing is under way: so the budget is overrun by one answer, and by more only where several at once are
    dearer than any of the `KNOWN` and more before them.
    """

    def __init__(self, model: EndpointModel, kept: Kept, work: Work) -> None:
        self.model, self.kept = model, kept
        self.usable = self.unusable = 0
        """Answers of this run, kept ones included."""
        self.texts = self.refused = 0
        """Of those asked now: with a text, and refused for good."""
        self.spent = 0.0
        self._work, self._lock = work, Lock()
        self._counted: set[str] = set()
        self._open: dict[str, float] = {}
        self._answers = self._longest = 0
        self._dearest = 0.0
        self._told = False

    def meet(self, asked: Mapping[str, Messages]) -> None:
        """Count what was paid before for questions that are new to this run."""
        if self.model.budget is None:
            return
        for key in asked.keys() - self._counted:
            self._counted.add(key)
            for said in self.kept.all(key):
                self._pay(asked[key], said)

    def admit(self, key: str, messages: Messages, options: Mapping[str, Any], done: int, total: int) -> bool:
        """Whether a question may be asked now; later otherwise. Raises `PipelineError` when nothing is left for it."""
        if self.model.budget is None:
            return True
        with self._lock:
            if self.spent >= self.model.budget:
                raise PipelineError(
                    f"The {self.model.who}'s budget of {self.model.budget:g} is used up after {done} of {total} "
                    "questions; raise its 'budget', what was answered is kept."
                )
            most = self._most(messages, options)
            if self._open and self.spent + sum(self._open.values()) + most > self.model.budget:
                return False
            self._open[key] = most
            return True

    def settle(self, key: str, messages: Messages, said: Said) -> None:
        """A question that was let go is answered, or is not."""
        if self.model.budget is None:
            return
        with self._lock:
            self._open.pop(key, None)
            self._counted.add(key)
            self._pay(messages, said)

    def _pay(self, messages: Messages, said: Said) -> None:
        if said.refused and not said.completion_tokens:
            return  # nothing was written
        given = counted(messages, said)
        if not self._told and (said.prompt_tokens is None or said.completion_tokens is None):
            self._told = True
            self._work.notify(
                f"The {self.model.who} at {self.model.url} does not count the tokens of its answers; for the budget "
                f"they are taken to be {BYTES} bytes each."
            )
        cost = self._cost(*given)
        self.spent += cost
        self._answers += 1
        self._dearest, self._longest = max(self._dearest, cost), max(self._longest, given[1])

    def _most(self, messages: Messages, options: Mapping[str, Any]) -> float:
        limits = [options.get(name) for name in ("max_tokens", "max_completion_tokens")]
        limit = next((limit for limit in limits if isinstance(limit, int)), None) or self._longest or UNBOUNDED
        most = self._cost(tokens_in(message["content"] for message in messages), limit)
        return min(most, self._dearest) if self._answers >= KNOWN else most

    def _cost(self, prompt: int, completion: int) -> float:
        return (prompt * self.model.prompt_price + completion * self.model.completion_price) / 1_000_000


def counted(messages: Messages, said: Said) -> tuple[int, int]:
    """The tokens of a prompt and an answer, estimated where the server did not count them."""
    prompt, completion = said.prompt_tokens, said.completion_tokens
    if prompt is None:
        prompt = tokens_in(message["content"] for message in messages)
    return prompt, math.ceil(len(said.text.encode()) / BYTES) if completion is None else completion


def tokens_in(texts: Iterable[str]) -> int:
    """The tokens of a conversation's turns by their bytes: rather too many."""
    return sum(math.ceil(len(text.encode()) / BYTES) + AROUND for text in texts)
