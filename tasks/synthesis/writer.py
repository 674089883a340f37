"""A model that writes: questions in, texts out, every text kept as soon as it is there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.ai.endpoint import Messages, Usage
from labeling.ai.thinking import without_thinking
from tasks.ai.account import Account
from tasks.ai.answers import ask_endpoint, judge_identity, usage_of
from tasks.ai.kept import Kept, Said, kept_answers
from tasks.artifact import Row, Work
from tasks.recipe import stable_hash
from tasks.synthesis.recipe import EndpointWriter, LocalWriter

if TYPE_CHECKING:
    from tasks.ai.local import Loaded

CHUNK = 8
"""Batches of a local model between two writes to disk."""


class Writer:
    """The writer of a recipe. Interrupted and asked the same in the same order, it asks only what is missing."""

    def __init__(self, part: LocalWriter | EndpointWriter, work: Work) -> None:
        self._part, self._work = part, work
        self._calls = 0
        self.usage, self.paid = Usage(), Usage()
        """Of all answers that were used, and of those asked now."""
        self.about: Row = {"temperature": part.temperature, "top_p": part.top_p, "seed": work.seed}
        """Who writes and how, as rows say it."""
        self._chain: list[Path] = []
        self._loaded: Loaded | None = None
        if isinstance(part, EndpointWriter):
            self.about["model"] = part.model
            self._kept = kept_answers(judge_identity({"url": part.url, "model": part.model}), work)
            self._account = Account(part, self._kept, work)
        else:
            from tasks.ai.local import chain_digest, chain_of

            self._chain = chain_of(part, {})
            digest = chain_digest(self._chain)
            folder = part.folder()
            self.about |= {"model": folder.name if folder else part.model, "digest": digest}
            self._kept = Kept(work.scratch / "answers.jsonl", judge_identity({"weights": digest}))

    def ask(self, questions: Sequence[Messages], draws: Sequence[str], note: str, greedy: bool = False) -> list[Said]:
        """What it writes to each question, in their order.

        `draws` tells apart what is asked in the same words. Raises `PipelineError` when it cannot be asked.
        """
        self._calls += 1
        options = self._options(greedy)
        keys = [
            self._kept.key(question, options, "" if greedy else f"{self._work.seed}/{draw}")
            for question, draw in zip(questions, draws, strict=True)
        ]
        ask = self._ask_endpoint if isinstance(self._part, EndpointWriter) else self._ask_local
        said = ask(dict(zip(keys, questions, strict=True)), options, note, greedy)
        told = [_answered(said[key]) for key in keys]
        whole = usage_of(told)
        self.usage = Usage(*(getattr(self.usage, name) + getattr(whole, name) for name in vars(whole)))
        return told

    def fault(self, said: Said) -> str:
        """Why a text is not used; empty where it is whole."""
        if said.refused:
            return f"got no text from the writer ({said.refused.partition(':')[0]})"
        if not said.whole:
            return f"was cut at {self._part.max_new_tokens} tokens"
        return "" if said.text.strip() else "got an empty text from the writer"

    def _options(self, greedy: bool) -> dict[str, Any]:
        part = self._part
        options: dict[str, Any] = {
            "temperature": 0 if greedy else part.temperature,
            "max_tokens": part.max_new_tokens,
        }
        if part.top_p < 1 and not greedy:
            options["top_p"] = part.top_p
        return {**options, **part.options} if isinstance(part, EndpointWriter) else options

    def _ask_endpoint(
        self, asked: dict[str, Messages], options: dict[str, Any], note: str, greedy: bool
    ) -> dict[str, Said]:
        """Of a verdict the greedy answer is asked for, and any where the endpoint takes no temperature."""
        may_leave = ["temperature"] if greedy else []
        said, paid = ask_endpoint(self._account, options, asked, _fault, self._work, note, may_leave)
        self.paid = Usage(*(getattr(self.paid, name) + getattr(paid, name) for name in vars(paid)))
        return said

    def _ask_local(
        self, asked: dict[str, Messages], options: dict[str, Any], note: str, greedy: bool
    ) -> dict[str, Said]:
        """Chunks are drawn whole, so that what is drawn does not depend on what was kept before."""
        assert isinstance(self._part, LocalWriter)
        step = self._part.batch_size * CHUNK
        order = list(asked)
        for start in range(0, len(order), step):
            chunk = order[start : start + step]
            if any(key not in self._kept for key in chunk):
                seed = int(stable_hash([self._work.seed, self._calls, start])[:15], 16)
                texts = self._model().texts(
                    [asked[key] for key in chunk],
                    self._part.max_new_tokens,
                    temperature=options["temperature"],
                    top_p=options.get("top_p", 1.0),
                    seed=seed,
                )
                for key, said in zip(chunk, texts, strict=True):
                    self._kept.add(key, said)
            self._work.progress(min(start + step, len(order)), len(order), note)
        return {key: self._kept.read(key) for key in asked}

    def _model(self) -> "Loaded":
        if self._loaded is None:
            from tasks.ai.local import Loaded

            self._loaded = Loaded(
                self._chain, self._part.batch_size if isinstance(self._part, LocalWriter) else 1, "writer"
            )
        return self._loaded


def _answered(said: Said) -> Said:
    """What was said without the thinking before it; thinking that does not end was cut before the answer."""
    text = without_thinking(said.text)
    return replace(said, text="", whole=False) if text is None else replace(said, text=text)


def _fault(key: str, said: Said) -> str:
    answered = _answered(said)
    return said.refused or ("" if answered.text.strip() or not answered.whole else "an empty text")
