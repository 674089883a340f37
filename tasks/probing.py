"""How fast this machine trains and decodes a model of a given shape, by a few steps of shallow ones."""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Probe:
    """What this machine takes, in seconds."""

    token: float
    """One token of a training step."""
    decoded: float
    """One step of decoding, whatever the rows."""


def probe(config: Any, layers: Sequence[int] = (1, 3)) -> Probe:
    """Time a training step of 512 tokens and a decoding step of 32 rows of shallow models as wide as this one, with as
    many threads as stages have."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.models.loading import device

    torch.set_num_threads(int(os.environ.get("RLHF_THREADS", "1")))
    found: dict[str, list[float]] = {"train": [], "decode": []}
    text = config.get_text_config()
    length = min(128, getattr(text, "max_position_embeddings", None) or 128)
    ids = torch.zeros(max(1, 512 // length), length, dtype=torch.long, device=device())
    for depth in layers:
        model: Any = AutoModelForCausalLM.from_config(_shallow(config, depth), dtype=torch.float32).to(device())

        def train(model: Any = model) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()

        def decode(model: Any = model) -> None:
            with torch.inference_mode():
                model(input_ids=ids.new_zeros(32, 1), use_cache=True)

        for name, step in (("train", train), ("decode", decode)):
            found[name].append(_fastest(step))
    total = {name: _deeper(times, layers, text.num_hidden_layers) for name, times in found.items()}
    return Probe(token=total["train"] / ids.numel(), decoded=total["decode"])


def _shallow(config: Any, depth: int) -> Any:
    """The configuration with another number of layers; what it lists for each layer is repeated as often as needed."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    before, text.num_hidden_layers = text.num_hidden_layers, depth
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, [value[place % before] for place in range(depth)])
    return shallow


def _fastest(step: Any, repeats: int = 4) -> float:
    import torch

    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _deeper(times: Sequence[float], layers: Sequence[int], depth: int) -> float:
    each = max(times[1] - times[0], 0.0) / (layers[1] - layers[0])
    return max(times[0] + each * (depth - layers[0]), 1e-9)
