"""Stage: all candidates side by side on the evaluation prompts, which nothing was trained on."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Dotted, Part, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.training.reward_scoring import RewardScorer


class EvaluateRecipe(Part):
    """How the candidates are compared."""

    samples_per_prompt: int = Field(default=4, ge=1)
    """Completions of each model for each evaluation prompt."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer completions are cut and count as unfinished."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Divides the logits; the KL to SFT is an unbiased estimate only at 1."""
    judge: Dotted | None = None
    """Function (row, completion) -> float that says what people would prefer; none: the reward model judges."""
    checks: tuple[Dotted, ...] = ()
    """Functions (row, completion) -> bool that verify what can be verified; their names must differ."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamplings of the prompts behind each 95 % interval."""
    batch_size: int = Field(default=128, ge=1)
    """Rows decoded at once."""

    @field_validator("checks")
    @classmethod
    def _different_names(cls, checks: tuple[str, ...]) -> tuple[str, ...]:
        names = [check_name(check) for check in checks]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two checks have the same name ({', '.join(names)}); give their functions different names"
            )
        return checks


def check_name(dotted: str) -> str:
    """What a check is called in figures: the name of its function."""
    return dotted.partition(":")[2]


def evaluate_models(recipe: EvaluateRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Sample every model on the evaluation prompts, judge, check and compare: `evaluation.json`, `samples.jsonl`.

    `inputs`: base, sft, data, reward, any number of `candidate.NAME` and perhaps champion, all merged models, and
    `champion_data` where the champion was made with other data: prompts it learnt from do not count against it. What
    was sampled before a build was killed is kept in scratch. Raises `InputError` without evaluation prompts.
    """
    from tasks.evaluation.measure import compare
    from tasks.evaluation.report import report

    prompts = read_jsonl(inputs["data"] / "evaluation.jsonl")
    if not prompts:
        raise InputError("There are no evaluation prompts; raise data.shares.evaluation.")
    chains = _chains(inputs)
    bench = _Bench(recipe, inputs, prompts, work)
    samples: dict[str, list[Row]] = {}
    for place, (name, chain) in enumerate(chains.items()):
        samples[name] = bench.sample(name, chain, place, len(chains))
    judge = "reward_model" if recipe.judge is None else "utility"
    names = [check_name(check) for check in recipe.checks]
    fair = _unseen(inputs, prompts) if "champion_data" in inputs else None
    evaluation = compare(samples, judge, names, recipe.bootstrap_samples, work.seed, fair)
    write_jsonl(work.out / "samples.jsonl", [row for rows in samples.values() for row in rows])
    text = json.dumps(evaluation, indent=1, sort_keys=True, allow_nan=False)
    (work.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    report(work, evaluation, samples)


def _unseen(inputs: Mapping[str, Path], prompts: Sequence[Row]) -> set[str]:
    """Ids of the evaluation prompts that the champion's own data kept for evaluation too, or did not have."""
    ledger = read_jsonl(inputs["champion_data"] / "ledger.jsonl")
    learnt = {row["id"] for row in ledger if row["split"] != "evaluation"}
    fair = {row["id"] for row in prompts} - learnt
    if not fair:
        raise InputError(
            "The champion learnt from every evaluation prompt; add prompts to the data, or give the run another name."
        )
    return fair


def _chains(inputs: Mapping[str, Path]) -> dict[str, list[Path]]:
    """The artifacts each model is made of, by its name, SFT first."""
    chains = {"sft": [inputs["base"], inputs["sft"]]}
    for name, path in inputs.items():
        kind, _, candidate = name.partition(".")
        if kind == "candidate":
            if candidate in ("sft", "champion"):
                raise InputError(f"A policy cannot be named '{candidate}'; give it another name in the recipe.")
            chains[candidate] = [path]
    if "champion" in inputs:
        chains["champion"] = [inputs["champion"]]
    return chains


class _Bench:
    """The prompts and what judges completions, loaded once for all models."""

    def __init__(self, recipe: EvaluateRecipe, inputs: Mapping[str, Path], prompts: list[Row], work: Work) -> None:
        from tasks.models.loading import load_tokenizer

        self.recipe, self.inputs, self.prompts, self.work = recipe, inputs, prompts, work
        self.tokenizer = load_tokenizer(inputs["base"])
        self._reference: PreTrainedModel | None = None
        self._scorer: RewardScorer | None = None

    @property
    def reference(self) -> "PreTrainedModel":
        if self._reference is None:
            from tasks.models.loading import load_causal_lm

            self._reference = load_causal_lm([self.inputs["base"], self.inputs["sft"]])
        return self._reference

    @property
    def scorer(self) -> "RewardScorer":
        if self._scorer is None:
            from tasks.training.reward_scoring import RewardScorer

            self._scorer = RewardScorer(self.inputs["base"], self.inputs["reward"])
        return self._scorer

    def sample(self, name: str, chain: Sequence[Path], place: int, models: int) -> list[Row]:
        """The scored rows of one model: from scratch where they are whole, else sampled now."""
        kept = self.work.scratch / f"samples-{hashlib.sha256(name.encode()).hexdigest()[:16]}.jsonl"
        if kept.exists():
            return read_jsonl(kept)
        total = 2 * len(self.prompts)

        def progress(done: int, note: str) -> None:
            self.work.progress(place * total + done, models * total, f"{name}: {note}")

        rows = self._complete(name, chain, progress)
        progress(len(self.prompts), "judging")
        self._judge(name, rows)
        write_jsonl(kept.with_suffix(".part"), rows)
        kept.with_suffix(".part").replace(kept)
        progress(total, "judged")
        return rows

    def _complete(self, name: str, chain: Sequence[Path], progress: Callable[[int, str], None]) -> list[Row]:
        from tasks.evaluation.divergence import kl_per_completion
        from tasks.models.chat import encode_prompt
        from tasks.models.loading import load_causal_lm, load_tokenizer
        from tasks.sampling.local import generate

        model = self.reference if name == "sft" else load_causal_lm(chain)
        _check_weights(name, model)
        tokenizer = self.tokenizer if name == "sft" else load_tokenizer(chain[-1])
        ids = [encode_prompt(tokenizer, row["prompt"]) for row in self.prompts]
        groups = generate(
            model, tokenizer, ids, n=self.recipe.samples_per_prompt, max_new_tokens=self.recipe.max_new_tokens,
            temperature=self.recipe.temperature, seed=_seed(self.work.seed, name), batch_size=self.recipe.batch_size,
            progress=lambda done, _: progress(done, "sampling"),
        )  # fmt: skip
        divergences: list[list[float]] | list[list[None]]
        if _same_tokens(tokenizer, self.tokenizer):
            divergences = kl_per_completion(self.reference, ids, groups)
        else:
            divergences = [[None] * len(group) for group in groups]
        return [
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

    def _judge(self, name: str, rows: list[Row]) -> None:
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
                completion["checks"] = {check_name(check): bool(_ask(check, row, text)) for check in self.recipe.checks}

    def _utility(self, row: Row, text: str) -> float:
        value = float(_ask(str(self.recipe.judge), row, text))
        if not math.isfinite(value):
            raise InputError(
                f"The judge {self.recipe.judge} says {value} of a completion; it must give a finite number."
            )
        return value


def _ask(dotted: str, row: Row, text: str) -> Any:
    """What a judge or check says of a completion. Raises `InputError` when the user's function fails."""
    try:
        return resolve(dotted)(row, text)
    except Exception as error:
        raise InputError(
            f"{dotted} fails on prompt {row['id']} ({type(error).__name__}: {error}); "
            "mend it, or give the evaluation rows the 'reference' it needs."
        ) from error


def _check_weights(name: str, model: "PreTrainedModel") -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise PipelineError(
            f"The weights of '{name}' are not all numbers: its training diverged; lower its learning rate."
        )


def _same_tokens(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    return one is other or (one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template)


def _seed(seed: int, name: str) -> int:
    """Models are sampled independently of each other, and a model alike whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
