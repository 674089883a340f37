"""Asking a vLLM server: for completions of token ids, and to take other weights. Imports no torch."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tasks.artifact import PipelineError

ANSWER_SECONDS = 3600.0


@dataclass(frozen=True)
class Drawn:
    """One continuation: its token ids, the EOS that ended it included, and their log-probabilities at temperature 1."""

    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn: `n` of each prompt, until `eos` or `max_new_tokens`; temperature 0 is greedy."""

    n: int
    max_new_tokens: int
    temperature: float
    top_p: float
    eos: int
    seed: int


class VllmClient:
    """Talks to one server; a context manager. Everything it does raises `PipelineError` when the server fails."""

    def __init__(self, client: httpx.Client, name: str, place: str) -> None:
        """name: what the server calls its model. place: a clause for people that says where to look."""
        self.client, self.place = client, place
        self._name = name

    def __enter__(self) -> "VllmClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask nothing more."""
        self.client.close()

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        rows: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Drawn]]:
        """Continuations of every prompt of token ids, in the order of the prompts; `rows` are asked for at a time.

        Each prompt has a seed of its own, made of the seed and its place.
        """
        found: list[list[Drawn]] = [[] for _ in prompts]
        with ThreadPoolExecutor(max(1, rows // sampling.n)) as pool:
            asked = {pool.submit(self._complete, ids, sampling, place): place for place, ids in enumerate(prompts)}
            try:
                for done, future in enumerate(as_completed(asked), 1):
                    found[asked[future]] = future.result()
                    if progress is not None:
                        progress(done, len(prompts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def load_weights(self, folder: Path) -> None:
        """Take another model's weights, of the same shape, from its folder."""
        self.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self.post("/reset_prefix_cache", {})

    def load_adapter(self, folder: Path) -> None:
        """Answer with a LoRA adapter on the weights from now on, in place of the one before."""
        self._name = "adapter"
        self.post("/v1/load_lora_adapter", {"lora_name": self._name, "lora_path": str(folder), "load_inplace": True})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers to a JSON document."""
        try:
            response = self.client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self.died("ended at work", error) from error
        if not response.is_success:
            said = " ".join(response.text.split())[:200]
            if response.status_code >= 500:
                raise self.died(f"fails at {path} (HTTP {response.status_code}: {said})")
            raise PipelineError(f"vLLM refuses {path} (HTTP {response.status_code}: {said}); {self.place}.")
        try:
            return response.json()
        except ValueError:
            return response.text

    def died(self, how: str, error: Exception | None = None) -> PipelineError:
        """What to say of a server that is gone."""
        return PipelineError(f"vLLM {how}{f' ({type(error).__name__})' if error else ''}; {self.place}.")

    def _complete(self, prompt: Sequence[int], sampling: Sampling, place: int) -> list[Drawn]:
        body = {
            "model": self._name,
            "prompt": list(prompt),
            "n": sampling.n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": _seed(sampling.seed, place),
            "logprobs": 0,  # of the chosen token alone
            "return_token_ids": True,
            "ignore_eos": True,  # a model's folder may name more than the tokenizer's
            "stop_token_ids": [sampling.eos],
        }
        return self._read(self.post("/v1/completions", body), sampling)

    def _read(self, answer: Any, sampling: Sampling) -> list[Drawn]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            drawn = [Drawn(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
            whole = len(drawn) == sampling.n and all(_is_whole(each, sampling) for each in drawn)
        except (KeyError, TypeError, IndexError) as error:
            raise self._talks_nonsense() from error
        if not whole:
            raise self._talks_nonsense()
        return drawn

    def _talks_nonsense(self) -> PipelineError:
        return PipelineError(
            "vLLM's answer holds no whole completions with token ids; "
            f"its version may be too old, 0.32 is known to work; {self.place}."
        )


def _is_whole(drawn: Drawn, sampling: Sampling) -> bool:
    return (
        0 < len(drawn.token_ids) <= sampling.max_new_tokens
        and len(drawn.logprobs) == len(drawn.token_ids)
        and all(isinstance(token, int) and token >= 0 for token in drawn.token_ids)
        and all(isinstance(value, float) and -1e6 < value <= 1e-3 for value in drawn.logprobs)
    )


def _seed(seed: int, place: int) -> int:
    """Far apart for all prompts: vLLM adds 0 ... n - 1 to it for the n continuations of a prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7])
