"""The decoding engine against transformers' `generate`: useful tokens per second, in turn, in one process.

python -m benchmarks.decoding

Llamas with random weights; completions of 25 tokens on average and at most 64, as EOS comes. Useful tokens are those up
to EOS. Medians over repeats; each table says whether greedy decoding gives the same tokens on both sides.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.measured import in_turn, keep, show
from benchmarks.small_llama import CONSTANT, ending, random_llama, shop_tokenizer
from tasks.models.adapters import LoraRecipe, attach
from tasks.sampling.folded import folded
from tasks.sampling.local import CausalLM, decode, output_layer

MEAN, LONGEST = 25, 64
SHORT, LONG, LONGER = (8, 16), (48, 64), (192, 256)
"""Tokens of a prompt, from and to; questions to the demo's shop have about 12."""
REPEATS = {"1M": 5, "15M": 3}
BATCHES = {"1M": (16, 64, 256), "15M": (16, 64)}
ROWS = {"1M": 64, "15M": 16}
"""Completions in one measurement, or a batch of them where that is more."""
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""From the model's own distribution, as ours samples."""

Sampled = tuple[int, int]
"""Useful tokens, and rows."""


def main() -> None:
    tokenizer = shop_tokenizer()
    rows: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    for size, batches in BATCHES.items():
        model: Any = ending(random_llama(size, tokenizer), MEAN, LONGEST)
        peers = Peers(model, tokenizer)
        for batch in batches:
            prompts = _prompts(max(batch, ROWS[size]), SHORT)
            rows.append({"model": size, "batch": batch, **peers.measure(prompts, batch, REPEATS[size])})
        if size != "1M":
            continue
        for lengths in (SHORT, LONG, LONGER):
            figures = peers.measure(_prompts(16, lengths), 64, REPEATS[size], n=4)
            shared.append({"model": size, "prompt_tokens": f"{lengths[0]}-{lengths[1]}", **figures})
        peers = Peers(_with_adapter(model), tokenizer)
        rows.append({"model": f"{size}, LoRA", "batch": 64, **peers.measure(_prompts(64, SHORT), 64, REPEATS[size])})
        keep("decoding", {"batches": rows, "four_samples": shared})
    columns = ["model", "batch", "generate", "ours", "ratio", "mean_length", "same_greedy"]
    show("useful tokens per second", columns, [[row[c] for c in columns] for row in rows])
    columns = ["model", "prompt_tokens", "generate", "repeated", "ours", "ratio", "over_repeated"]
    show("4 samples per prompt, 64 rows", columns, [[row[c] for c in columns] for row in shared])
    keep("decoding", {"batches": rows, "four_samples": shared})


class Peers:
    """Both sides of the comparison on one model."""

    def __init__(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    def measure(self, prompts: Sequence[list[int]], batch: int, repeats: int, n: int = 1) -> dict[str, Any]:
        """Tokens per second of each side, `batch` rows at once, and how they compare."""
        contenders: dict[str, Callable[[int], Sampled]] = {
            "generate": lambda seed: self.theirs(prompts, batch, n, seed),
            "ours": lambda seed: self.ours(prompts, batch, n, seed),
        }
        if n > 1:
            repeated = [ids for ids in prompts for _ in range(n)]
            contenders["repeated"] = lambda seed: self.ours(repeated, batch, 1, seed)
        runs = in_turn(contenders, repeats)
        figures: dict[str, Any] = {
            name: median(tokens / seconds for seconds, (tokens, _) in found) for name, found in runs.items()
        }
        every = [sampled for found in runs.values() for _, sampled in found]
        figures["mean_length"] = sum(tokens for tokens, _ in every) / sum(count for _, count in every)
        figures["ratio"] = figures["ours"] / figures["generate"]
        if n > 1:
            figures["over_repeated"] = figures["ours"] / figures["repeated"]
        return figures | {"same_greedy": self.same_greedy(prompts[:32])}

    def ours(self, prompts: Sequence[list[int]], batch: int, n: int, seed: int) -> Sampled:
        with folded(self.model) as model:
            found = decode(model, self.tokenizer, prompts, n=n, max_new_tokens=LONGEST, seed=seed, batch_size=batch)
        return int(found.lengths.sum()), len(found.lengths)

    def theirs(self, prompts: Sequence[list[int]], batch: int, n: int, seed: int) -> Sampled:
        torch.manual_seed(seed)
        tokens, rows = 0, 0
        for start in range(0, len(prompts), batch // n):
            some = prompts[start : start + batch // n]
            sampled = self._generate(some, **SAMPLED, max_new_tokens=LONGEST, num_return_sequences=n)
            over = sampled.eq(int(self.tokenizer.eos_token_id)).long()  # type: ignore[arg-type]
            tokens += int((over.cumsum(-1) - over == 0).sum())  # EOS itself counts
            rows += len(sampled)
        return tokens, rows

    def same_greedy(self, prompts: Sequence[list[int]]) -> bool:
        """Whether both sides' most likely tokens are the same, EOS kept rare for the time of it."""
        weight, eos = output_layer(self.model).weight.data, int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]
        usual = weight[eos, CONSTANT].item()
        weight[eos, CONSTANT] = 0
        found = decode(self.model, self.tokenizer, prompts, max_new_tokens=32, greedy=True, seed=0)
        theirs = self._generate(prompts, do_sample=False, max_new_tokens=32)
        weight[eos, CONSTANT] = usual
        return torch.equal(found.tokens[:, : theirs.shape[1]], theirs)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]], **options: Any) -> torch.Tensor:
        pad, width = int(self.tokenizer.pad_token_id), max(map(len, prompts))  # type: ignore[arg-type]
        model: Any = self.model
        out = model.generate(
            input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
            pad_token_id=pad,
            eos_token_id=self.tokenizer.eos_token_id,
            **options,
        )
        return out[:, width:]


def _prompts(count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """Random ids, the longest first, as both sides get them."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
    return [torch.randint(6, 512, (size,), generator=generator).tolist() for size in sorted(sizes, reverse=True)]


def _with_adapter(model: Any) -> CausalLM:
    """A LoRA adapter that changes something, not merged."""
    adapted = attach(model.requires_grad_(False), LoraRecipe())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.01)
    return adapted.eval()


if __name__ == "__main__":
    main()
