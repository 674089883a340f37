"""A model that writes: questions in, texts out, every text kept as soon as it is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.ai.endpoint import Messages, Usage
from tasks.ai.answers import Kept, Said, ask_endpoint, judge_identity, kept_answers, usage_of
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
        self._budget = Usage()
        self.usage, self.paid = Usage(), Usage()
        """Of all answers that were used, and of those asked now."""
        self.about: Row = {"temperature": part.temperature, "top_p": part.top_p, "seed": work.seed}
        """Who writes and how, as rows say it."""
        self._chain: list[Path] = []
        self._loaded: Loaded | None = None
        if isinstance(part, EndpointWriter):
            self.about["model"] = part.model
            self._kept = kept_answers(judge_identity({"url": part.url, "model": part.model}), work)
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
        said = ask(dict(zip(keys, questions, strict=True)), keys, options, note)
        told = [said[key] for key in keys]
        whole = usage_of(told)
        self.usage = Usage(*(getattr(self.usage, name) + getattr(whole, name) for name in vars(whole)))
        return told

    def fault(self, said: Said) -> str:
        """Why a text is not used; empty where it is whole."""
        if said.refused:
            return f"got no text from the writer ({said.refused.partition(':')[0]})"
        if not said.text.strip():
            return "got an empty text from the writer"
        return "" if said.whole else f"was cut at {self._part.max_new_tokens} tokens"

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
        self, asked: dict[str, Messages], keys: Sequence[str], options: dict[str, Any], note: str
    ) -> dict[str, Said]:
        assert isinstance(self._part, EndpointWriter)
        said, paid = ask_endpoint(
            self._part,
            options,
            asked,
            lambda key, each: each.refused or ("" if each.text.strip() else "an empty text"),
            self._kept,
            self._budget,
            self._work,
            note,
        )
        self.paid = Usage(*(getattr(self.paid, name) + getattr(paid, name) for name in vars(paid)))
        return said

    def _ask_local(
        self, asked: dict[str, Messages], keys: Sequence[str], options: dict[str, Any], note: str
    ) -> dict[str, Said]:
        """Chunks are drawn whole, so that what is drawn does not depend on what was kept before."""
        assert isinstance(self._part, LocalWriter)
        step = self._part.batch_size * CHUNK
        order = list(asked)
        for start in range(0, len(order), step):
            chunk = order[start : start + step]
            if any(key not in self._kept.said for key in chunk):
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
        return self._kept.said

    def _model(self) -> "Loaded":
        if self._loaded is None:
            from tasks.ai.local import Loaded

            self._loaded = Loaded(
                self._chain, self._part.batch_size if isinstance(self._part, LocalWriter) else 1, "writer"
            )
        return self._loaded
