"""Completions of one prompt in one row behind it: a forward pass computes the prompt once, not once for each.

Every completion sees the prompt and itself, by an attention mask of its own, at the positions it has anyway: the same
log-probabilities up to rounding. Known as prefix grouper (verl) or prefix sharing (arXiv 2410.20305). For models whose
layers are all full attention and take such masks; where that is so is found out by trying (`agrees`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

ROWS = 16
"""Rows of like length that go through a model at once where they are not packed."""
LONGEST = 2048
"""Longer rows are not worth their masks, which grow with the square."""
WORTH = 0.9
"""Packed where it costs at most this share of what the rows alone would."""


@dataclass(frozen=True)
class Packed:
    """Groups of rows as rows `[groups, tokens]`: prompt without its last token, then for each completion that token
    and all but the completion's own last one, so that every token of a completion has a place that predicts it."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    """What each place predicts; -100 where nothing is asked."""
    mask: torch.Tensor
    """bool `[groups, 1, tokens, tokens]`: who sees whom."""
    source: torch.Tensor
    """Places among the flattened tokens, one for every token of a completion."""
    target: torch.Tensor
    """Their places in the flattened `[rows, completion]`."""
    shape: tuple[int, int]
    """`[rows, completion]`"""

    def unpacked(self, values: torch.Tensor) -> torch.Tensor:
        """Values `[groups, tokens]` back as `[rows, completion]`, zero where there is no token."""
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy(0, self.target, values.flatten()[self.source]).view(self.shape)


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor, completion: int, width: int, most: int) -> list[Packed]:
    """Rows `[rows, prompt + completion]` (prompts padded left, completions right) by prompt, wherever its rows stand.

    Groups of like length together, at most `most` tokens (or one group) in each part. None at all where packing would
    not pay for a model `width` wide: prompts come once, or are short beside long completions, which then only meet more
    of each other's tokens in the mask.
    """
    prompts = input_ids.shape[1] - completion
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row, (ids, seen) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        prompt = tuple(token for token, one in zip(ids[:prompts], seen[:prompts], strict=True) if one)
        answer = [token for token, one in zip(ids[prompts:], seen[prompts:], strict=True) if one]
        groups.setdefault(prompt, []).append((row, answer))
    if () in groups:
        return []
    lengths = {prompt: len(prompt) - 1 + sum(len(answer) for _, answer in rows) for prompt, rows in groups.items()}
    parts: list[list[tuple[int, ...]]] = []
    for prompt in sorted(groups, key=lambda each: lengths[each]):
        fits = parts and (len(parts[-1]) + 1) * lengths[prompt] <= most
        parts = [*parts[:-1], [*parts[-1], prompt]] if fits else [*parts, [prompt]]
    longest = [max(lengths[prompt] for prompt in part) for part in parts]
    packed = sum(cost(len(part), length, width) for part, length in zip(parts, longest, strict=True))
    apart = sum(
        cost(len(rows), columns.stop - columns.start, width)
        for rows, columns, _ in like_lengths(attention_mask, completion)
    )
    if max(longest) > LONGEST or packed > WORTH * apart:
        return []
    shape = (len(input_ids), completion)
    return [_packed({prompt: groups[prompt] for prompt in part}, shape, input_ids.device) for part in parts]


def cost(rows: int, length: int, width: int) -> float:
    """What a forward pass costs, up to a factor: a token's matrix products are 24 width^2, its attention 4 length width
    (Kaplan et al. 2020, table 1, for a feed-forward part four times as wide)."""
    return rows * length * (1 + length / (6 * width))


def _packed(
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]], shape: tuple[int, int], device: torch.device
) -> Packed:
    length = max(len(prompt) - 1 + sum(len(answer) for _, answer in rows) for prompt, rows in groups.items())
    columns: dict[str, list[list[int]]] = {"tokens": [], "positions": [], "labels": [], "segments": []}
    source: list[int] = []
    target: list[int] = []
    for place, (prompt, rows) in enumerate(groups.items()):
        shared = len(prompt) - 1
        tokens, positions, labels, segments = list(prompt[:-1]), list(range(shared)), [-100] * shared, [0] * shared
        for segment, (row, answer) in enumerate(rows, 1):
            source += range(place * length + len(tokens), place * length + len(tokens) + len(answer))
            target += range(row * shape[1], row * shape[1] + len(answer))
            tokens += [prompt[-1], *answer[:-1]] if answer else []
            positions += range(shared, shared + len(answer))
            labels += answer
            segments += [segment] * len(answer)
        left = length - len(tokens)
        for name, values, filler in (
            ("tokens", tokens, 0), ("positions", positions, 0), ("labels", labels, -100), ("segments", segments, -1)
        ):  # fmt: skip
            columns[name].append(values + [filler] * left)
    made = {name: torch.tensor(rows, device=device) for name, rows in columns.items()}
    segments = made.pop("segments")
    mask = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask &= torch.ones(length, length, dtype=torch.bool, device=device).tril()
    at = [torch.tensor(places, dtype=torch.long, device=device) for places in (source, target)]
    return Packed(**made, mask=mask.unsqueeze(1), source=at[0], target=at[1], shape=shape)


def may_pack(config: PreTrainedConfig) -> bool:
    """Whether a model's layers may all take a mask of ours: full attention everywhere, by torch's own kernels."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and config._attn_implementation == "sdpa"


def agrees(plain: Callable[[], torch.Tensor], packed: Callable[[], torch.Tensor], exact: bool) -> bool:
    """Whether both ways give the same log-probabilities: each to a thousandth where `exact` (fp32), else to two
    hundredths on average (a step of bf16 is an eighth at 16 to 32)."""
    with torch.no_grad():
        expected = plain()
        try:
            found = packed()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError):  # a model that does not take such a mask
            return False
    apart = (expected - found).abs()
    return bool(apart.max() <= 1e-3 if exact else apart.mean() <= 0.02)


def like_lengths(attention_mask: torch.Tensor, completion: int) -> Iterator[tuple[torch.Tensor, slice, int]]:
    """Row indices, the columns any of these rows uses, and how many of those belong to completions."""
    width = attention_mask.shape[1]
    for rows in attention_mask.sum(-1).argsort(stable=True).split(ROWS):
        used = attention_mask[rows].any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        yield rows, slice(first, last), completion - (width - last)


def joined(parts: list[torch.Tensor], width: int) -> torch.Tensor:
    """Rows of several widths as one tensor, filled up with zeros on the right."""
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
