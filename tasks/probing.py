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
    length = min(128, getattr(config, "max_position_embeddings", 128))
    ids = torch.zeros(max(1, 512 // length), length, dtype=torch.long, device=device())
    for depth in layers:
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = depth
        if getattr(shallow, "layer_types", None):
            shallow.layer_types = shallow.layer_types[:depth]
        model: Any = AutoModelForCausalLM.from_config(shallow, dtype=torch.float32).to(device())

        def train(model: Any = model) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()

        def decode(model: Any = model) -> None:
            with torch.inference_mode():
                model(input_ids=ids.new_zeros(32, 1), use_cache=True)

        for name, step in (("train", train), ("decode", decode)):
            found[name].append(_fastest(step))
    total = {name: _deeper(times, layers, config.num_hidden_layers) for name, times in found.items()}
    return Probe(token=total["train"] / ids.numel(), decoded=total["decode"])


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
