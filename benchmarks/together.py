"""Several LoRA candidates of an evaluation: decoded in one batch, one after another, and by PEFT's mixed batches.

python -m benchmarks.together

Useful tokens per CPU second of four adapters on one Llama with random weights (completions of 25 tokens on average, at
most 64), by how many completions each has to give; at most 128 rows at once. "same" is the share of completions that
all three sample alike; rounding differs.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict

from benchmarks.measured import in_turn, keep, show
from benchmarks.small_llama import ending, random_llama, shop_tokenizer
from tasks.models.adapters import LoraRecipe, attach
from tasks.models.loading import twin
from tasks.sampling.folded import folded
from tasks.sampling.local import Completion, completions_of, decode, generate, uniform
from tasks.sampling.together import generate_together

NAMES = ("a", "b", "c", "d")
LONGEST, BATCH = 64, 128
EACH = {"1M": (16, 64, 288), "15M": (16, 64, 144)}
REPEATS = {"1M": 3, "15M": 2}

Drawn = dict[str, list[list[Completion]]]


def main() -> None:
    tokenizer, rows = shop_tokenizer(), []
    for size, every in EACH.items():
        model: Any = ending(random_llama(size, tokenizer), 25, LONGEST).requires_grad_(False)
        sides = Sides(model, tokenizer)
        for each in every:
            rows.append({"model": size, "each": each, **sides.measure(each, REPEATS[size])})
            keep("together", rows)
    columns = ["model", "each", "apart", "peft", "together", "ratio", "over_peft", "same"]
    show("useful tokens per second", columns, [[row[c] for c in columns] for row in rows])


class Sides:
    """Four adapters, apart and as one PEFT model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.adapters = {name: _adapter(model, place) for place, name in enumerate(NAMES)}
        self.mixed: Any = attach(twin(model), LoraRecipe()).eval().requires_grad_(False)
        for name, adapter in self.adapters.items():
            self.mixed.add_adapter(name, adapter.peft_config["default"])
            set_peft_model_state_dict(self.mixed, get_peft_model_state_dict(adapter), name)

    def measure(self, each: int, repeats: int) -> dict[str, Any]:
        """Tokens per second of each side, and the share of completions that are the same."""
        generator = torch.Generator().manual_seed(1)
        sizes = torch.randint(8, 17, (each,), generator=generator).tolist()
        prompts = [torch.randint(6, 512, (size,), generator=generator).tolist() for size in sizes]
        sides = {"apart": self.apart, "together": self.together, "peft": self.by_peft}
        contenders: dict[str, Callable[[int], Drawn]] = {
            name: lambda repeat, side=side: side(prompts, repeat) for name, side in sides.items()
        }
        runs = in_turn(contenders, repeats)
        found: dict[str, Any] = {
            name: median(_tokens(drawn) / seconds for seconds, drawn in measured) for name, measured in runs.items()
        }
        drawn = zip(*(_ids(measured[0][1]) for measured in runs.values()), strict=True)
        same = sum(one == other == third for one, other, third in drawn) / (each * len(NAMES))
        ratios = {"ratio": found["together"] / found["apart"], "over_peft": found["together"] / found["peft"]}
        return found | ratios | {"same": same}

    def apart(self, prompts: list[list[int]], repeat: int) -> Drawn:
        drawn: Drawn = {}
        for name, adapter in self.adapters.items():
            with folded(adapter) as one:
                drawn[name] = generate(
                    one, self.tokenizer, prompts, seed=_seed(repeat, name), max_new_tokens=LONGEST, batch_size=BATCH
                )
        return drawn

    def together(self, prompts: list[list[int]], repeat: int) -> Drawn:
        seeds = {name: _seed(repeat, name) for name in NAMES}
        return generate_together(
            self.model, self.adapters, self.tokenizer, prompts, seeds=seeds, max_new_tokens=LONGEST, batch_size=BATCH
        )

    def by_peft(self, prompts: list[list[int]], repeat: int) -> Drawn:
        count = len(prompts)
        noise = torch.cat([uniform(_seed(repeat, name), count, LONGEST) for name in NAMES])
        forward, names = self.mixed.forward, []

        def take(places: torch.Tensor) -> None:
            names[:] = [NAMES[place] for place in (places // count).tolist()]

        self.mixed.forward = lambda *given, **named: forward(*given, adapter_names=names, **named)
        try:
            sampled = decode(
                self.mixed, self.tokenizer, [ids for _ in NAMES for ids in prompts], seed=0, max_new_tokens=LONGEST,
                batch_size=BATCH, noise=noise, before_forward=take,
            )  # fmt: skip
        finally:
            self.mixed.forward = forward
        groups = completions_of(sampled, self.tokenizer, 1)
        return {name: groups[place * count : (place + 1) * count] for place, name in enumerate(NAMES)}


def _adapter(model: Any, seed: int) -> Any:
    adapted = attach(twin(model), LoraRecipe(), seed=seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.01)
    return adapted.eval().requires_grad_(False)


def _seed(repeat: int, name: str) -> int:
    return 100 * repeat + NAMES.index(name)


def _ids(drawn: Drawn) -> list[list[int]]:
    return [each.token_ids for name in NAMES for group in drawn[name] for each in group]


def _tokens(drawn: Drawn) -> int:
    return sum(map(len, _ids(drawn)))


if __name__ == "__main__":
    main()
