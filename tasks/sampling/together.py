"""Several LoRA adapters on the same weights, decoded in one batch: each row is computed with its own adapter.

All adapters are one update of their ranks together, x A^T B^T, of which a mask leaves each row the columns of its own
adapter: two matrix products a layer however many adapters there are. (PEFT's `adapter_names` makes two and a gathering
for each of them.)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.sampling.local import Completion, Progress, completions_of, decode, uniform

if TYPE_CHECKING:
    from peft import PeftModel


def generate_together(
    model: PreTrainedModel,
    adapters: "Mapping[str, PeftModel | None]",
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    *,
    seeds: Mapping[str, int],
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, list[list[Completion]]]:
    """What `generate` draws with each adapter and its seed, by name; None: with the model as it is.

    adapters: plain LoRA (`is_low_rank_only`) on models of the same weights, which `model` holds without an adapter.
    """
    names, count = list(adapters), len(prompt_ids)
    noise = torch.cat([uniform(seeds[name], count * n, max_new_tokens) for name in names])
    with _stacked(model, list(adapters.values())) as rows:
        sampled = decode(
            model, tokenizer, [ids for _ in names for ids in prompt_ids], n=n, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p, greedy=greedy, seed=0, batch_size=batch_size, progress=progress,
            noise=noise, before_forward=lambda places: rows.take(places // count),
        )  # fmt: skip
    groups = completions_of(sampled, tokenizer, n)
    return {name: groups[place * count : (place + 1) * count] for place, name in enumerate(names)}


class _Rows:
    """Which adapter each row of the batch at hand is computed with."""

    def __init__(self) -> None:
        self.adapters = torch.empty(0, dtype=torch.long)
        self._masks: dict[int, torch.Tensor] = {}

    def take(self, adapters: torch.Tensor) -> None:
        """adapters: int64 `[rows]`, by their place."""
        if adapters.shape != self.adapters.shape or not torch.equal(adapters, self.adapters):
            self.adapters, self._masks = adapters, {}

    def own(self, ranks: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Ranks `[rows, ..., ranks]`, or of rows laid end to end (`[rows x length, ranks]`, as OPT has them), those of
        other adapters than the row's being 0; layers of the same ranks share the mask."""
        key = id(owners)
        if key not in self._masks:
            self._masks[key] = self.adapters.unsqueeze(1) == owners
        mask = self._masks[key]
        if ranks.dim() == 2:
            return ranks * mask.repeat_interleave(len(ranks) // len(mask), 0)
        return ranks * mask.view(len(mask), *[1] * (ranks.dim() - 2), -1)


@contextmanager
def _stacked(model: PreTrainedModel, adapters: "Sequence[PeftModel | None]") -> Iterator[_Rows]:
    """The adapters' updates on the model's layers, for as long as it lasts."""
    rows, hooks = _Rows(), []
    known: dict[tuple[int, ...], torch.Tensor] = {}
    try:
        for name, updates in _by_layer(adapters).items():
            layer = model.get_submodule(name)
            ranks = tuple(place for place, down, _ in updates for _ in range(len(down)))
            owners = known.setdefault(ranks, torch.tensor(ranks, device=model.device))
            down = torch.cat([down for _, down, _ in updates]).to(model.dtype)
            up = torch.cat([up for _, _, up in updates], dim=1).to(model.dtype)
            hooks.append(layer.register_forward_hook(_update(rows, owners, down, up)))
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def _by_layer(adapters: "Sequence[PeftModel | None]") -> dict[str, list[tuple[int, torch.Tensor, torch.Tensor]]]:
    """By layer: an adapter's place, its `[rank, in]` and its scaled `[out, rank]`."""
    found: dict[str, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
    for place, adapter in enumerate(adapters):
        if adapter is None:
            continue
        own = str(adapter.active_adapter)
        inner: Any = adapter.get_base_model()
        layers: dict[str, Any] = {name: each for name, each in inner.named_modules() if isinstance(each, LoraLayer)}
        for name, layer in layers.items():
            if own in layer.lora_A:
                down, up = layer.lora_A[own].weight.data, layer.lora_B[own].weight.data
                found.setdefault(name, []).append((place, down, up * layer.scaling[own]))
    return found


def _update(rows: _Rows, owners: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        ranks = rows.own(torch.nn.functional.linear(inputs[0], down), owners)
        return output + torch.nn.functional.linear(ranks, up)

    return hook
