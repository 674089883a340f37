"""Sampling the models of an evaluation, and asking of every completion what reward model, judge and checks say."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.evaluation.divergence import kl_per_completion
from tasks.evaluation.evaluate import EvaluateRecipe, check_name
from tasks.evaluation.grouping import Group
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer, open_adapter, twin
from tasks.recipe import ask, ask_number, stable_hash
from tasks.sampling.engine import Engine
from tasks.sampling.local import CausalLM, Completion
from tasks.sampling.together import generate_together
from tasks.training.reward_scoring import RewardScorer


class Bench:
    """The prompts and what judges completions, loaded once for all models."""

    def __init__(
        self,
        recipe: EvaluateRecipe,
        inputs: Mapping[str, Path],
        prompts: list[Row],
        engine: Engine,
        work: Work,
        models: int,
    ) -> None:
        self.recipe, self.inputs, self.prompts, self.engine, self.work = recipe, inputs, prompts, engine, work
        self.done, self.total = 0, 2 * models * len(prompts)
        self.tokenizer = load_tokenizer(inputs["base"])
        self._reference: PreTrainedModel | None = None
        self._scorer: RewardScorer | None = None

    @property
    def reference(self) -> PreTrainedModel:
        if self._reference is None:
            self._reference = load_causal_lm([self.inputs["base"], self.inputs["sft"]])
        return self._reference

    @property
    def scorer(self) -> RewardScorer:
        if self._scorer is None:
            self._scorer = RewardScorer(self.inputs["base"], self.inputs["reward"])
        return self._scorer

    def sample(self, group: Group) -> dict[str, list[Row]]:
        """The scored rows of a group's models: from scratch where they are whole, else sampled now."""
        kept = {name: self.work.scratch / f"samples-{stable_hash(name)[:16]}.jsonl" for name in group.chains}
        rows = {name: read_jsonl(path) for name, path in kept.items() if path.exists()}
        missing = [name for name in group.chains if name not in rows]
        drawn = self._draw(group, missing) if missing else {}
        for name, groups in drawn.items():
            self._tell(len(self.prompts), f"{name}: judging")
            rows[name] = self._judged(name, group.chains[name], groups)
            write_jsonl(kept[name].with_suffix(".part"), rows[name])
            kept[name].with_suffix(".part").replace(kept[name])
            self.done += 2 * len(self.prompts)
            self._tell(0, f"{name}: judged")
        self.done += 2 * len(self.prompts) * (len(group.chains) - len(missing))
        return rows

    def _tell(self, done: int, note: str) -> None:
        self.work.progress(self.done + done, self.total, note)

    def _draw(self, group: Group, names: list[str]) -> dict[str, list[list[Completion]]]:
        """Completions by model and prompt."""
        if group.weights:
            return self._draw_together(group, names)
        (name,) = names
        model = self.reference if name == "sft" else load_causal_lm(group.chains[name])
        _check_weights(name, model)
        tokenizer = self._tokenizer_of(name, group.chains[name])
        count = self.recipe.samples_per_prompt
        return {
            name: self._generate(model, tokenizer, count, name, lambda done, _: self._tell(done, f"{name}: sampling"))
        }

    def _draw_together(self, group: Group, names: list[str]) -> dict[str, list[list[Completion]]]:
        on_start = "start" in self.inputs
        model = load_causal_lm(group.weights) if on_start else self.reference
        adapters: dict[str, Any] = {}
        for name in names:
            folder = group.adapters[name]
            adapters[name] = open_adapter(twin(model), folder) if folder else None
            _check_weights(name, adapters[name] or model)
        recipe, several = self.recipe, ", ".join(names)
        ids = [encode_prompt(self.tokenizer, row["prompt"]) for row in self.prompts]
        return generate_together(
            model, adapters, self.tokenizer, ids, seeds={name: _seed(self.work.seed, name) for name in names},
            n=recipe.samples_per_prompt, max_new_tokens=recipe.max_new_tokens, temperature=recipe.temperature,
            batch_size=recipe.batch_size, progress=lambda done, _: self._tell(done, f"{several}: sampling"),
        )  # fmt: skip

    def _tokenizer_of(self, name: str, chain: Sequence[Path]) -> PreTrainedTokenizerBase:
        return self.tokenizer if name == "sft" else load_tokenizer(chain[-1])

    def _judged(self, name: str, chain: Sequence[Path], groups: list[list[Completion]]) -> list[Row]:
        """One model's rows, with what reward model, judge and checks say of every completion."""
        tokenizer = self._tokenizer_of(name, chain)
        divergences: list[list[float]] | list[list[None]]
        if _same_tokens(tokenizer, self.tokenizer):
            ids = [encode_prompt(tokenizer, row["prompt"]) for row in self.prompts]
            divergences = kl_per_completion(self.reference, ids, groups)
        else:
            divergences = [[None] * len(group) for group in groups]
        rows: list[Row] = [
            {
                "id": row["id"],
                "model": name,
                "prompt": row["prompt"],
                "reference": row.get("reference"),
                "completions": [
                    {"text": c.text, "tokens": len(c.token_ids), "finished": c.finished, "kl": _short(kl)}
                    for c, kl in zip(group, kls, strict=True)
                ],
            }
            for row, group, kls in zip(self.prompts, groups, divergences, strict=True)
        ]
        self._judge(rows)
        return rows

    def best_of(self) -> list[Row]:
        """What reward and judge say of more completions of the SFT model, for the best-of-n curve."""
        self.work.progress(0, 1, "sft: sampling for best-of-n")
        groups = self._generate(self.reference, self.tokenizer, self.recipe.best_of, "sft best-of-n")
        told = [[{"text": c.text, "finished": c.finished} for c in group] for group in groups]
        rows = [{**row, "completions": each} for row, each in zip(self.prompts, told, strict=True)]
        self._judge(rows)
        self.work.progress(1, 1, "sft: sampled for best-of-n")
        return rows

    def _generate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        n: int,
        name: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        return self.engine.generate(
            model, tokenizer, [encode_prompt(tokenizer, row["prompt"]) for row in self.prompts], n=n,
            max_new_tokens=self.recipe.max_new_tokens, temperature=self.recipe.temperature,
            seed=_seed(self.work.seed, name), batch_size=self.recipe.batch_size, progress=progress,
        )  # fmt: skip

    def _judge(self, rows: list[Row]) -> None:
        """Add reward, utility and checks to the completions; equal completions of a prompt get equal rewards."""
        distinct = {
            (place, c["text"], c["finished"]): row["prompt"]
            for place, row in enumerate(rows)
            for c in row["completions"]
        }
        scores = self.scorer.score(list(distinct.values()), [k[1] for k in distinct], [k[2] for k in distinct])
        if not all(math.isfinite(score) for score in scores):
            raise PipelineError(
                "The reward model gives scores that are not numbers; train it with a lower learning rate."
            )
        rewards = dict(zip(distinct, scores, strict=True))
        for place, row in enumerate(rows):
            for completion in row["completions"]:
                text = completion["text"]
                completion["reward"] = _short(rewards[place, text, completion["finished"]])
                completion["utility"] = None if self.recipe.judge is None else self._utility(row, text)
                completion["checks"] = {check_name(check): bool(ask(check, row, text)) for check in self.recipe.checks}

    def _utility(self, row: Row, text: str) -> float:
        value = ask_number(str(self.recipe.judge), row, text)
        if not math.isfinite(value):
            raise InputError(
                f"The judge {self.recipe.judge} says {value} of a completion; it must give a finite number."
            )
        return value


def _check_weights(name: str, model: CausalLM) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise PipelineError(
            f"The weights of '{name}' are not all numbers: its training diverged; lower its learning rate."
        )


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return one is other or (one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template)


def _seed(seed: int, name: str) -> int:
    """Models are sampled independently of each other, and a model alike whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
