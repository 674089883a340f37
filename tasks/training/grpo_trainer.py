"""GRPO's and RLOO's engine: TRL's trainer (losses, precision, devices, checkpoints) fed by our decoding and scoring.

What TRL would do otherwise: sample with `generate` (slower), and score a rendered conversation in which a cut
completion looks finished.
"""

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.models.utils import prepare_fsdp
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tasks.artifact import InputError, Row, Work
from tasks.models.chat import encode_prompt
from tasks.models.dropout import without_dropout
from tasks.models.loading import batch_tokens
from tasks.models.prompts import virtual_tokens
from tasks.sampling.engine import Engine
from tasks.sampling.folded import folded
from tasks.sampling.layouts import forward_parameters
from tasks.sampling.local import CausalLM, decode, output_layer
from tasks.training.engine_checkpoints import KeepsPrompts, last_checkpoint
from tasks.training.engine_rollouts import draw
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.grpo_settings import CoreReporting, UpdateRows, arguments, leave_one_out
from tasks.training.packed_groups import Packed, agrees, joined, like_lengths, may_pack, pack
from tasks.training.policy_losses import k1, k3
from tasks.training.rewards import Score, parts_of
from tasks.training.rl_checkpoint import Progress
from tasks.training.rollouts import Reference
from tasks.training.watch import Watch, ended


class Grpo(KeepsPrompts, GRPOTrainer):
    """TRL's trainer, logging after each update what PPO logs as well."""

    def __init__(
        self,
        recipe: GrpoRecipe | RlooRecipe,
        model: CausalLM,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[Row],
        score: Score,
        work: Work,
        watch: Watch | None = None,
        engine: Engine | None = None,
    ) -> None:
        """engine: vLLM, where it is to sample."""
        if not rows:
            raise InputError("There are no RL prompts; raise the data recipe's share for RL.")
        self.recipe, self.score, self.watch, self.engine = recipe, score, watch, engine
        self.gap: dict[str, float] = {}
        if engine is not None:
            longest = max(len(encode_prompt(tokenizer, row["prompt"])) for row in rows)
            engine.expect(longest + recipe.max_new_tokens)
        self.core: dict[str, float] = {}
        self.drifts: list[tuple[float, int]] = []
        self.left_out = False
        self.steps: list[dict[str, float]] = []
        self.places = "position_ids" in forward_parameters(model)
        packs = self.places and may_pack(model.config) and not virtual_tokens(model)
        self.packs: bool | None = None if packs else False
        self.width = output_layer(model).weight.shape[1]
        without_dropout(model)  # TRL switches off what modules do, not what goes to a function (OPT, GPT-BigCode)
        reference = Reference(model).copy
        settings = arguments(recipe, work)
        beta, settings.beta = settings.beta, 0.0  # TRL's own reference would be loaded without a soft prompt
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
            super().__init__(
                model=model,
                reward_funcs=self._rewards,
                args=settings,
                train_dataset=_dataset(rows),
                processing_class=tokenizer,
                rollout_func=self._rollout,
                callbacks=[CoreReporting(work, recipe.minibatches, watch)],
            )
        self.beta = settings.beta = beta
        if reference is not None:  # else TRL switches the adapter off
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = (
                prepare_fsdp(reference, self.accelerator)
                if self.is_fsdp_enabled
                else self.accelerator.prepare_model(reference, evaluation_mode=True)
            )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        """All updates' prompts in one go: TRL's sampler begins its passes anew when a run is resumed."""
        return UpdateRows(self.recipe, len(self.train_dataset), self.args)  # type: ignore[arg-type]

    def _rollout(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Sample for TRL's prompts, each of which comes as often as it has completions."""
        n = self.recipe.completions_per_prompt
        ids = [encode_prompt(self._tokenizer, prompt) for prompt in prompts[::n]]
        policy = self.accelerator.unwrap_model(self.model)
        seed = self.args.seed * 1_000_003 + self.state.global_step
        given: dict[str, Any] = {"n": n, "max_new_tokens": self.recipe.max_new_tokens, "seed": seed}
        if self.engine is not None:
            with self.accelerator.autocast():
                sampled, gap = draw(self.engine, policy, self._tokenizer, ids, rows=self.recipe.rows_at_once, **given)
            self.gap = {"engine_logprob_gap": gap}
        else:
            with folded(policy) as model:
                sampled = decode(model, self._tokenizer, ids, batch_size=len(prompts), **given)
        lengths = sampled.lengths.tolist()
        return {
            "prompt_ids": [row for row in ids for _ in range(n)],
            "completion_ids": _cut(sampled.tokens, lengths),
            "logprobs": _cut(sampled.logprobs, lengths),
            "finished": sampled.finished.tolist(),
            "likelihood": sampled.logprobs.sum(-1).tolist(),
        }

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's, the prompt of a group computed once where the model allows it; else for a few rows of like length at a
        time, without the padding they do not need. Positions do not count padding (TRL's do, which absolute position
        embeddings notice)."""
        plain = partial(self._by_length, model, input_ids, attention_mask, logits_to_keep, **options)
        packed: list[Packed] = []
        if self.packs is not False and not options.get("compute_aux_loss"):
            packed = pack(input_ids, attention_mask, logits_to_keep, self.width, 2 * batch_tokens())
        if not packed:
            logprobs, entropies, routers = plain()
        else:
            if self.packs is None:
                exact = next(model.parameters()).dtype == torch.float32 and not self.args.bf16
                self.packs = agrees(lambda: plain()[0], lambda: self._packed(model, packed)[0], exact)
            logprobs, entropies, routers = (*self._packed(model, packed), None) if self.packs else plain()
        if not torch.is_grad_enabled():  # the reference's pass over the samples, which comes before they are rewarded
            self.reference_logprobs = logprobs
        else:
            self.learnt_logprobs = logprobs.detach()
        return logprobs, entropies, routers

    def _packed(self, model: Any, parts: Sequence[Packed]) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = [self._part(model, part) for part in parts]
        entropies = [entropy for _, entropy in found if entropy is not None]
        return torch.stack([own for own, _ in found]).sum(0), torch.stack(entropies).sum(0) if entropies else None

    def _part(self, model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        with self.accelerator.autocast():
            found = model(
                input_ids=packed.tokens,
                attention_mask=packed.mask,
                position_ids=packed.positions,
                shift_labels=packed.labels,
                fused_lm_head=True,
            )
        entropies = None if found.entropy is None else packed.unpacked(found.entropy)
        return packed.unpacked(found.log_probs), entropies

    def _by_length(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        parts = list(like_lengths(attention_mask, logits_to_keep))
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        found: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        for rows, columns, keep in parts:
            placed = partial(model, position_ids=positions[rows, columns]) if self.places else model
            found.append(
                super()._get_per_token_logps_and_entropies(
                    placed, input_ids[rows, columns], attention_mask[rows, columns], keep, **options
                )
            )
        back = torch.cat([rows for rows, _, _ in parts]).argsort()
        entropies = [part[1] for part in found if part[1] is not None]
        routers = [part[2] for part in found if part[2] is not None]
        return (
            joined([part[0] for part in found], logits_to_keep)[back],
            joined(entropies, logits_to_keep)[back] if entropies else None,
            torch.stack(routers).mean() if routers else None,
        )

    def _rewards(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        finished: list[bool],
        likelihood: list[float],
        **columns: Any,
    ) -> list[float | None]:
        texts = [completion[-1]["content"] for completion in completions]
        scores = self.score(prompts, texts, finished)
        rows = zip(self.reference_logprobs, completion_ids, strict=True)
        likelihoods = [float(logprobs[: len(ids)].sum()) for logprobs, ids in rows]
        self.core = {
            "reward": float(torch.tensor(scores).mean()),
            "reward_std": float(torch.tensor(scores).std(correction=0)),
            "finished_share": sum(finished) / len(finished),
            "reference_logprob": sum(likelihoods) / len(likelihoods),
            **parts_of(self.score),
        }
        penalty, coefficient = self.recipe.missing_eos_penalty, self.recipe.likelihood_coefficient
        rewards = [
            value - penalty * (not ended) + coefficient * reference
            for value, ended, reference in zip(scores, finished, likelihoods, strict=True)
        ]
        if isinstance(self.recipe, RlooRecipe):
            rewards = leave_one_out(self.recipe, rewards, likelihood, likelihoods)
        return list(rewards)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"].bool()
        drift = k3(inputs["sampling_per_token_logps"], self.learnt_logprobs, mask)
        self.drifts.append((float(drift.sum()), int(mask.sum())))
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's; an optimiser step that `target_kl` leaves out has no gradients, and AdamW passes over those."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            drift = sum(part for part, _ in self.drifts) / sum(tokens for _, tokens in self.drifts)
            self.drifts.clear()
            self.left_out |= self.recipe.target_kl is not None and drift > self.recipe.target_kl
            if self.left_out:
                model.zero_grad()
            self.core |= {"update_kl": drift, "stopped_early": float(self.left_out)}
        return loss

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.left_out = False
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool()
        self.core["ties_share"] = self._metrics["train"]["frac_reward_zero_std"][-1]
        self.core["length"] = float(mask.sum(-1).float().mean())
        pair = output["sampling_per_token_logps"], output["ref_per_token_logps"], mask
        self.core |= {"kl": float(k1(*pair).sum(-1).mean()), "kl_k3": float(k3(*pair).sum(-1).mean()), **self.gap}
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        found = {name: values for name, values in self._metrics["train"].items() if values}
        core = dict(self.core)
        clipped = "cispo_clip_ratio" if self.loss_type == "cispo" else "clip_ratio/region_mean"
        for ours, theirs in {"entropy": "entropy", "clip_fraction": clipped}.items():
            core[ours] = sum(found[theirs]) / len(found[theirs])
        core |= {"policy_loss": logs["loss"], "gradient_norm": logs.get("grad_norm", 0.0)}
        self._metrics["train"].clear()
        self.steps.append(core)
        if len(self.steps) < self.recipe.minibatches:
            return
        update = {name: sum(step[name] for step in self.steps) / len(self.steps) for name in core}
        self.steps.clear()
        if self.watch is not None:
            update |= self.watch.look([*self.state.log_history, update])
        self.state.log_history.append({"step": self.state.global_step, **update})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, update)
        if ended(self.recipe, self.state.log_history):
            self.control.should_training_stop, self.control.should_save = True, False


def fit(trainer: Grpo, work: Work) -> Progress:
    """Train to the end, from the last whole checkpoint in `work.scratch` where there is one; what was logged."""
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    if trainer.watch is not None:
        trainer.watch.begin()
    checkpoint = last_checkpoint(work.scratch)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    work.log({"prompts_shared": float(bool(trainer.packs))})
    history = [{name: row[name] for name in row if name != "step"} for row in trainer.state.log_history]
    return Progress(len(history), history)


def _dataset(rows: Sequence[Row]) -> Dataset:
    """The prompts; a table has every key in every message, so those without a value are taken out on reading."""
    table = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    return table.with_transform(lambda batch: {name: _filled(column) for name, column in batch.items()})


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


def _cut(values: torch.Tensor, lengths: Sequence[int]) -> list[list[Any]]:
    return [row[:length] for row, length in zip(values.tolist(), lengths, strict=True)]
