"""One way to draw completions for candidates, rollouts, evaluation and rejection sampling: by our own engine, or vLLM.

vLLM runs beside the model that is trained or judged here and gets its weights through files: a whole model is loaded
anew into the running server, a LoRA adapter is put on the weights it was started with; adapters of other kinds are
merged into a copy of the weights. It computes with other kernels, so
some of what it draws is scored again by that model: `engine_logprob_gap` is the mean distance of the log-probabilities
of the same tokens. Other weights, or a kernel that is wrong for a model, show there.
"""

import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tasks.artifact import InputError, PipelineError, Work
from tasks.sampling.vllm_client import Sampling, VllmClient
from tasks.sampling.vllm_server import OwnServer, RunningServer, require_vllm
from tasks.sampling.vllm_weights import (
    arguments_for,
    computing_dtype,
    is_plain_lora,
    merged,
    room_for,
    shape,
    write_base,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.sampling.local import CausalLM, Completion, Progress

EngineName = Literal["local", "vllm"]
RESCORED = 16
"""Completions of each call that the model itself scores again."""
SUSPICIOUS = {"float32": 0.005, "bfloat16": 0.05}
"""Nats per token beyond which the person at the terminal is told of the gap; by the type vLLM computes in."""
WRONG = 10
"""Times the above, and it is not the same model."""


class Engine:
    """Draws completions by the engine of a recipe; a context manager, at whose end a server it started ends too."""

    def __init__(self, name: EngineName, work: Work) -> None:
        """Raises `PipelineError` when it is vLLM and there is none."""
        if name == "vllm":
            require_vllm()
        self.name, self.work = name, work
        self._folder = work.scratch / "vllm"
        self._server: VllmClient | None = None
        self._fits: tuple[Any, ...] = ()
        self._longest, self._expected, self._version = 0, 0, 0
        self._served: weakref.ref[CausalLM] | None = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, if there is one; its log stays in the stage's scratch until the stage is finished."""
        if self._server is not None:
            self._server.close()
        self._server = self._served = None
        for folder in self._folder.glob("*-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def expect(self, tokens: int) -> None:
        """Sequences of up to so many tokens will come: a server starts with room for them, and not once more."""
        self._expected = max(self._expected, tokens)

    def generate(
        self,
        model: "CausalLM",
        tokenizer: "PreTrainedTokenizerBase",
        prompt_ids: list[list[int]],
        *,
        n: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        greedy: bool = False,
        seed: int,
        batch_size: int = 64,
        progress: "Progress | None" = None,
    ) -> "list[list[Completion]]":
        """As `tasks.sampling.local.generate`. Raises `PipelineError` when vLLM fails or is not the same model."""
        given: dict[str, Any] = {
            "n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "greedy": greedy,
            "seed": seed, "batch_size": batch_size, "progress": progress,
        }  # fmt: skip
        if self.name == "local":
            from tasks.sampling.local import generate

            return generate(model, tokenizer, prompt_ids, **given)
        groups = self.draw(model, tokenizer, prompt_ids, **given)
        gap = gap_to(model, prompt_ids, groups)
        self.work.log({"engine_logprob_gap": max(gap, self.work.metrics.get("engine_logprob_gap", 0.0))})
        self.accept(gap)
        return groups

    def draw(
        self,
        model: "CausalLM",
        tokenizer: "PreTrainedTokenizerBase",
        prompt_ids: list[list[int]],
        *,
        n: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        greedy: bool = False,
        seed: int,
        batch_size: int,
        progress: "Progress | None" = None,
    ) -> "list[list[Completion]]":
        """By vLLM, with its own log-probabilities, which the caller is to compare (`accept`)."""
        from tasks.models.prompts import virtual_tokens
        from tasks.sampling.local import Completion

        if tokenizer.eos_token_id is None:
            raise InputError("The tokenizer has no EOS token, so completions cannot end; give it one.")
        if virtual_tokens(model):
            raise InputError('vLLM does not serve soft prompts; set engine = "local".')
        eos = cast(int, tokenizer.eos_token_id)
        self.expect(max(map(len, prompt_ids)) + max_new_tokens)
        server = self._serve(model, tokenizer, self._expected, batch_size)
        sampling = Sampling(n, max_new_tokens, 0.0 if greedy else temperature, top_p, eos, seed)
        drawn = server.complete(prompt_ids, sampling, batch_size, progress)
        ids = [each.token_ids for group in drawn for each in group]
        texts = iter(tokenizer.batch_decode(ids, skip_special_tokens=True))
        return [
            [Completion(each.token_ids, next(texts), each.token_ids[-1] == eos, each.logprobs) for each in group]
            for group in drawn
        ]

    def accept(self, gap: float) -> None:
        """Tell of a mean distance (nats per token) that is more than rounding; raise `PipelineError` at far more."""
        bound = SUSPICIOUS[self._fits[0]]
        if gap > WRONG * bound:
            raise PipelineError(
                f"vLLM's log-probabilities differ from the model's by {gap:.2g} nats per token (at most "
                f'{WRONG * bound:g} is let pass), so it computes something else; set engine = "local".'
            )
        if gap > bound:
            self.work.notify(
                f"vLLM's log-probabilities differ from the model's by {gap:.2g} nats per token: more than rounding."
            )

    def _serve(self, model: "CausalLM", tokenizer: "PreTrainedTokenizerBase", tokens: int, rows: int) -> VllmClient:
        """The server, with this model's weights as they are now, for sequences of so many tokens."""
        from peft import PeftModel

        adapter = model if isinstance(model, PeftModel) and is_plain_lora(model) else None
        base = cast("PreTrainedModel", adapter.get_base_model() if adapter else merged(model))
        training = any(parameter.requires_grad for parameter in model.parameters())
        fits = (computing_dtype(base), shape(base), room_for(adapter) if adapter else 0, rows)
        server = self._server
        if server is None or fits != self._fits or tokens > self._longest:
            server = self._start(base, tokenizer, tokens, fits, training)
        elif adapter is None and (training or self._served is None or self._served() is not model):
            folder = self._next("model")
            write_base(base, folder)
            server.load_weights(folder)
            self._forget("model")
        if adapter is not None:
            self._put_on(server, adapter)
        self._served = weakref.ref(model)
        return server

    def _start(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        tokens: int,
        fits: tuple[Any, ...],
        training: bool,
    ) -> VllmClient:
        from tasks.models.loading import positions

        self.close()
        limit = positions(model)
        if limit is not None and tokens > limit:
            raise InputError(
                f"The longest prompt and max_new_tokens are {tokens} tokens, and the model takes {limit}; "
                'lower max_new_tokens, or set engine = "local".'
            )
        folder = self._next("model")
        write_base(model, folder)
        tokenizer.save_pretrained(folder)
        if url := os.environ.get("RLHF_VLLM_URL"):
            self._server = RunningServer(url, folder, tokens, self._waiting("waiting for the vLLM server"))
        else:
            arguments, log = arguments_for(fits, tokens, training), self._folder / "vllm.log"
            self._server = OwnServer(folder, arguments, log, self._waiting("vLLM starts"))
        self._fits, self._longest = fits, tokens
        return self._server

    def _waiting(self, what: str) -> Callable[[float], None]:
        return lambda seconds: self.work.progress(0, 1, f"{what} ({seconds:.0f} s)")

    def _put_on(self, server: VllmClient, adapter: "PeftModel") -> None:
        from tasks.models.adapters import save

        folder = self._next("adapter")
        save(adapter, folder)
        server.load_adapter(folder / "adapter")
        self._forget("adapter")

    def _next(self, kind: str) -> Path:
        """Each version in a folder of its own: vLLM may still map the last one's files, and it keeps what it computed
        of a prompt by the adapter's path."""
        self._version += 1
        return self._folder / f"{kind}-{self._version}"

    def _forget(self, kind: str) -> None:
        """Remove the versions before this one."""
        for folder in self._folder.glob(f"{kind}-*"):
            if folder.name != f"{kind}-{self._version}":
                shutil.rmtree(folder, ignore_errors=True)


def gap_to(model: "CausalLM", prompts: Sequence[Sequence[int]], groups: "Sequence[Sequence[Completion]]") -> float:
    """Mean distance (nats per token) of completions' log-probabilities from the model's, over `RESCORED` of them."""
    places = range(0, len(prompts), -(-len(prompts) // RESCORED))
    gaps = [
        abs(ours - theirs)
        for place in places
        for ours, theirs in zip(
            _logprobs(model, prompts[place], groups[place][0].token_ids), groups[place][0].logprobs, strict=True
        )
    ]
    return sum(gaps) / len(gaps)


def _logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """The model's own log-probability of each token of a completion."""
    import torch

    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = ids[0, len(prompt) :].unsqueeze(-1)
    return torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1).tolist()
