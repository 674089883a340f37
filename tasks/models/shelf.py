"""Several language models at once, of which those on the same weights share them."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.models.loading import load_causal_lm, load_tokenizer, open_adapter, twin
from tasks.sampling.local import CausalLM


class Shelf:
    """Models by their chains of artifacts, ready to answer. What lies below a chain's last adapter is loaded once,
    however many adapters there are on it: another one costs its own few weights."""

    def __init__(self) -> None:
        self._models: dict[tuple[Path, ...], CausalLM] = {}
        self._below: dict[tuple[Path, ...], CausalLM] = {}

    def take(self, chain: Sequence[Path]) -> tuple[CausalLM, PreTrainedTokenizerBase]:
        """The model at the end of a chain, e.g. [base, sft, policy], and its tokenizer."""
        key = tuple(chain)
        if key not in self._models:
            whole = len(chain) == 1 or not (chain[-1] / "adapter").is_dir()
            self._models[key] = self._load(key) if whole else self._on(key[:-1], key[-1] / "adapter")
        return self._models[key], load_tokenizer(chain[0])

    def _load(self, key: tuple[Path, ...]) -> CausalLM:
        if key not in self._below:
            self._below[key] = load_causal_lm(key)
        return self._below[key]

    def _on(self, key: tuple[Path, ...], adapter: Path) -> CausalLM:
        return open_adapter(twin(self._load(key)), adapter).eval()  # type: ignore[arg-type]
