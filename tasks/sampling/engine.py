"""One way to draw completions for candidates, evaluation and rejection sampling: by our own engine, or by vLLM.

vLLM computes with other kernels than the model that is trained and judged here, so some of what it draws is scored
again by that model: `engine_logprob_gap` is the mean distance of the log-probabilities of the same tokens. Other
weights, or a kernel that is wrong for a model, show there.
"""

import shutil
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from tasks.artifact import InputError, PipelineError, Work
from tasks.sampling.vllm_server import Drawn, Sampling, VllmServer, vllm_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.sampling.local import Completion, Progress

EngineName = Literal["local", "vllm"]
RESCORED = 16
"""Completions of each call that the model itself scores again."""
SUSPICIOUS = {"float32": 0.005, "bfloat16": 0.05}
"""Nats per token beyond which the person at the terminal is told of the gap; by the model's type."""
WRONG = 10
"""Times the above, and it is not the same model."""


class Engine:
    """Draws completions by the engine of a recipe; a context manager, at whose end a server it started ends too."""

    def __init__(self, name: EngineName, work: Work) -> None:
        """Raises `PipelineError` when it is vLLM and there is none."""
        if name == "vllm":
            vllm_command()
        self.name, self.work = name, work
        self._folder = work.scratch / "vllm"
        self._server: VllmServer | None = None
        self._serves: tuple[weakref.ref[PreTrainedModel], int] | None = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, if there is one; its log stays in the stage's scratch until the stage is finished."""
        if self._server is not None:
            self._server.close()
        self._server = self._serves = None
        shutil.rmtree(self._folder / "model", ignore_errors=True)

    def generate(
        self,
        model: "PreTrainedModel",
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
        from tasks.models.prompts import virtual_tokens
        from tasks.sampling.local import Completion, generate

        if self.name == "local":
            return generate(
                model, tokenizer, prompt_ids, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
                greedy=greedy, seed=seed, batch_size=batch_size, progress=progress,
            )  # fmt: skip
        if tokenizer.eos_token_id is None:
            raise InputError("The tokenizer has no EOS token, so completions cannot end; give it one.")
        if virtual_tokens(model):
            raise InputError('vLLM does not serve soft prompts; set engine = "local".')
        eos = int(tokenizer.eos_token_id)  # type: ignore[arg-type]
        server = self._serving(model, tokenizer, max(map(len, prompt_ids)) + max_new_tokens, batch_size, progress)
        sampling = Sampling(n, max_new_tokens, 0.0 if greedy else temperature, top_p, eos, seed)
        drawn = server.complete(prompt_ids, sampling, batch_size, progress)
        self._check(model, prompt_ids, drawn)
        texts = iter(
            tokenizer.batch_decode([each.token_ids for group in drawn for each in group], skip_special_tokens=True)
        )
        return [
            [Completion(each.token_ids, next(texts), each.token_ids[-1] == eos, each.logprobs) for each in group]
            for group in drawn
        ]

    def _serving(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        tokens: int,
        rows: int,
        progress: "Progress | None",
    ) -> VllmServer:
        """The server of this model for sequences of so many tokens: the one that runs, or a new one."""
        if self._server is not None and self._serves is not None:
            served, longest = self._serves
            if served() is model and tokens <= longest:
                return self._server
        from tasks.models.loading import positions

        self.close()
        limit = positions(model)
        if limit is not None and tokens > limit:
            raise InputError(
                f"The longest prompt and max_new_tokens are {tokens} tokens, and the model takes {limit}; "
                'lower max_new_tokens, or set engine = "local".'
            )
        model.save_pretrained(self._folder / "model")
        tokenizer.save_pretrained(self._folder / "model")
        self._server = VllmServer(
            self._folder / "model", _arguments(model, tokens, rows), self._folder / "vllm.log", self._waiting(progress)
        )
        self._serves = weakref.ref(model), tokens
        return self._server

    def _waiting(self, progress: "Progress | None") -> Callable[[float], None]:
        return lambda seconds: self.work.progress(0, 1, f"vLLM starts ({seconds:.0f} s)")

    def _check(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence[Drawn]]
    ) -> None:
        """Log how far vLLM's log-probabilities are from the model's own. Raises `PipelineError` where they disagree."""
        places = range(0, len(prompts), -(-len(prompts) // RESCORED))
        gaps = [
            abs(ours - theirs)
            for place in places
            for ours, theirs in zip(
                _logprobs(model, prompts[place], drawn[place][0].token_ids), drawn[place][0].logprobs, strict=True
            )
        ]
        gap = sum(gaps) / len(gaps)
        self.work.log({"engine_logprob_gap": max(gap, self.work.metrics.get("engine_logprob_gap", 0.0))})
        bound = SUSPICIOUS[_dtype(model)]
        if gap > WRONG * bound:
            raise PipelineError(
                f"vLLM's log-probabilities differ from the model's by {gap:.2g} nats per token (at most "
                f'{WRONG * bound:g} is let pass), so it computes something else; set engine = "local".'
            )
        if gap > bound:
            self.work.notify(
                f"vLLM's log-probabilities differ from the model's by {gap:.2g} nats per token: more than rounding."
            )


def _arguments(model: "PreTrainedModel", tokens: int, rows: int) -> list[str]:
    """How vLLM serves this model: its own type and defaults, not what a generation_config.json asks for."""
    import torch

    arguments = ["--generation-config", "vllm", "--dtype", _dtype(model), "--max-model-len", str(tokens)]
    arguments += ["--max-num-seqs", str(rows), "--logprobs-mode", "raw_logprobs", "--disable-uvicorn-access-log"]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return [*arguments, "--gpu-memory-utilization", f"{0.9 * free / total:.3f}"]
    return [*arguments, "--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]


def _dtype(model: "PreTrainedModel") -> str:
    """float32 or bfloat16, as the weights are."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _logprobs(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """The model's own log-probability of each token of a completion."""
    import torch

    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = ids[0, len(prompt) :].unsqueeze(-1)
    return torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1).tolist()
