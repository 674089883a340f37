"""PPO's engine: sample, score, estimate advantages, take clipped steps."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.artifact import InputError
from tasks.models.chat import Encoded
from tasks.sampling.engine import Engine
from tasks.sampling.local import CausalLM, output_layer
from tasks.training.advantages import explained_variance, gae, token_rewards, whiten
from tasks.training.engine_batches import logits_at, pad
from tasks.training.policy_losses import clipped_policy_loss, clipped_value_loss, k3
from tasks.training.ppo import PpoRecipe
from tasks.training.precision import adamw
from tasks.training.rewards import Score, parts_of
from tasks.training.rl_checkpoint import Progress
from tasks.training.rl_loop import core_metrics
from tasks.training.rollouts import Prompts, Reference, Rollouts, by_length, collect, token_logprobs
from tasks.training.value_models import SeparateValue, SharedValue


class Ppo:
    """A policy in training. `step` makes one update and returns what is logged of it."""

    def __init__(
        self,
        recipe: PpoRecipe,
        model: CausalLM,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        score: Score,
        seed: int,
        demonstrations: Sequence[Encoded] = (),
        trunk: "CausalLM | None" = None,
        engine: Engine | None = None,
    ) -> None:
        """trunk: the body of a value model that shares no trained weight with the policy; none: a head on the policy's
        features. engine: vLLM, where it is to sample."""
        if recipe.ptx_coefficient and not demonstrations:
            raise InputError("ptx_coefficient needs demonstrations, and none of the data's for SFT fits; set it to 0.")
        self.demonstrations = demonstrations
        self.recipe, self.tokenizer, self.prompts, self.score, self.seed = recipe, tokenizer, prompts, score, seed
        self.engine = engine
        if engine is not None:
            engine.expect(max(map(len, prompts.ids)) + recipe.max_new_tokens)
        AcceleratorState._reset_state()  # else a stage before in this process decides: after one in bf16, bf16
        self.accelerator = Accelerator(mixed_precision="no")
        self.policy = model.eval()  # no dropout: the ratio must come from the weights alone
        self.reference = Reference(model)
        value = SharedValue(output_layer(model).weight.shape[1]) if trunk is None else SeparateValue(trunk)
        self.keeps_features = trunk is None
        self.model, self.value, self.optimizer, self.value_optimizer = self.accelerator.prepare(
            model,
            value,
            adamw(recipe.optimizer, model.parameters(), recipe.learning_rate),
            adamw(recipe.optimizer, value.parameters(), recipe.value_learning_rate),
        )
        self.modules: dict[str, nn.Module] = {"policy": self.policy, "value": value}
        self.optimizers = {"policy_optimizer": self.optimizer, "value_optimizer": self.value_optimizer}

    def step(self, progress: Progress) -> dict[str, float]:
        """One update: the samples of `progress.update`, learned from."""
        recipe, update = self.recipe, progress.update
        rollouts = collect(
            self.policy,
            self.reference,
            self.tokenizer,
            self.prompts,
            self.prompts.batch(update, recipe.episodes, self.seed),
            self.score,
            n=1,
            max_new_tokens=recipe.max_new_tokens,
            seed=self.seed * 1_000_003 + update,
            micro_batch_size=recipe.micro_batch_size,
            features=self.keeps_features,
            engine=self.engine,
        )
        metrics = core_metrics(rollouts) | parts_of(self.score)
        held = progress.state.get("kl_coefficient", recipe.kl_coefficient)
        if recipe.kl_target is not None:
            progress.state["kl_coefficient"] = adapted(held, metrics["kl"], recipe.kl_target, recipe.kl_gain)
            metrics["kl_coefficient"] = held
        return metrics | self.learn(rollouts, torch.Generator().manual_seed(self.seed * 7919 + update), held)

    def learn(self, rollouts: Rollouts, generator: torch.Generator, kl_coefficient: float) -> dict[str, float]:
        """Take the policy's and the value model's steps on one batch; `generator` shuffles the minibatches."""
        recipe, mask = self.recipe, rollouts.mask
        scores = rollouts.scores - recipe.missing_eos_penalty * ~rollouts.finished
        rewards = token_rewards(
            scores, rollouts.logprobs, rollouts.reference, mask, kl_coefficient, recipe.likelihood_coefficient
        )
        objective = float(rewards.sum(-1).mean())
        if recipe.whiten_rewards:
            rewards = whiten(rewards, mask, shift=False)
        values = self._values(rollouts)
        advantages, returns = gae(rewards, values, mask, recipe.gamma, recipe.lam)
        metrics = {"objective": objective, "explained_variance": explained_variance(values, returns, mask)}
        if recipe.whiten_advantages:
            advantages = whiten(advantages, mask)
        metrics |= self._learn_policy(rollouts, advantages, generator)
        return metrics | self._learn_value(rollouts, values, returns, generator)

    def _learn_policy(
        self, rollouts: Rollouts, advantages: torch.Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        recipe, seen = self.recipe, []
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(rollouts.texts), generator=generator).chunk(recipe.minibatches):
                metrics = self._policy_gradient(rollouts, advantages, rows.to(rollouts.tokens.device))
                stop = recipe.target_kl is not None and metrics["update_kl"] > recipe.target_kl
                seen.append(metrics | {"stopped_early": float(stop)})
                if stop:
                    self.optimizer.zero_grad()
                    return _means(seen)
                metrics = seen[-1]
                if recipe.ptx_coefficient:
                    metrics["ptx_loss"] = self._ptx_gradient(generator)
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_gradient_norm)
                metrics["gradient_norm"] = float(norm) if norm is not None else 0.0
                self.optimizer.step()
                self.optimizer.zero_grad()
        return _means(seen)

    def _policy_gradient(self, rollouts: Rollouts, advantages: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        """Accumulate the gradient of the loss over some rows, in parts that fit in memory."""
        tokens = rollouts.mask[rows].sum()
        sums: dict[str, float] = {"policy_loss": 0.0, "clip_fraction": 0.0, "update_kl": 0.0, "entropy": 0.0}
        for part in by_length(rollouts, self.recipe.micro_batch_size, rows):
            logprobs, entropy = token_logprobs(self.model, rollouts, part)
            width = logprobs.shape[1]
            mask, old = rollouts.mask[part, :width], rollouts.logprobs[part, :width]
            loss, clipped = clipped_policy_loss(logprobs, old, advantages[part, :width], mask, self.recipe.clip)
            self.accelerator.backward(loss.sum() / tokens)
            drift = k3(old, logprobs.detach(), mask)
            for name, values in zip(sums, (loss.detach(), clipped, drift, entropy), strict=True):
                sums[name] += float(values.sum() / tokens)
        return sums

    def _ptx_gradient(self, generator: torch.Generator) -> float:
        """Add the gradient of the demonstrations' loss on some of them; returns that loss per token."""
        count = len(self.demonstrations)
        drawn = torch.randperm(count, generator=generator)[: self.recipe.ptx_batch_size].tolist()
        rows = sorted((self.demonstrations[i] for i in drawn), key=lambda row: len(row.input_ids))
        tokens, summed = sum(sum(row.labels_mask[1:]) for row in rows), 0.0
        for begin in range(0, len(rows), self.recipe.micro_batch_size):
            part = rows[begin : begin + self.recipe.micro_batch_size]
            ids = pad([row.input_ids for row in part], 0).to(self.accelerator.device)  # what is padded is never seen
            keep = pad([row.labels_mask for row in part], 0).bool().to(ids.device)[:, 1:]
            logits = logits_at(self.model, output_layer(self.policy), ids[:, :-1], keep)
            loss = nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="sum")
            self.accelerator.backward(self.recipe.ptx_coefficient * loss / tokens)
            summed += float(loss.detach())
        return summed / tokens

    @torch.no_grad()
    def _values(self, rollouts: Rollouts) -> torch.Tensor:
        """The value before each sampled token, `[rows, tokens]`, zero outside the mask."""
        values = torch.zeros_like(rollouts.logprobs)
        for part in self._value_parts(rollouts, torch.arange(len(values), device=values.device)):
            found = self.value(rollouts, part)
            values[part, : found.shape[1]] = found
        return values * rollouts.mask

    def _value_parts(self, rollouts: Rollouts, rows: torch.Tensor) -> Iterable[torch.Tensor]:
        """The rows at once for a head alone, in parts for a model."""
        return [rows] if self.keeps_features else by_length(rollouts, self.recipe.micro_batch_size, rows)

    def _learn_value(
        self, rollouts: Rollouts, old: torch.Tensor, returns: torch.Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        seen = []
        for _ in range(self.recipe.value_epochs):
            for rows in torch.randperm(len(old), generator=generator).chunk(self.recipe.minibatches):
                rows = rows.to(old.device)
                tokens, sums = rollouts.mask[rows].sum(), {"value_loss": 0.0, "value_clip_fraction": 0.0}
                for part in self._value_parts(rollouts, rows):
                    values = self.value(rollouts, part)
                    at = part, slice(values.shape[1])
                    loss, clipped = clipped_value_loss(
                        values, old[at], returns[at], rollouts.mask[at], self.recipe.value_clip
                    )
                    self.accelerator.backward(loss.sum() / tokens)
                    for name, found in zip(sums, (loss.detach(), clipped), strict=True):
                        sums[name] += float(found.sum() / tokens)
                self.accelerator.clip_grad_norm_(self.value.parameters(), self.recipe.max_gradient_norm)
                self.value_optimizer.step()
                self.value_optimizer.zero_grad()
                seen.append(sums)
        return _means(seen)


def adapted(coefficient: float, kl: float, target: float, gain: float) -> float:
    """The KL's coefficient for the next update (Ziegler et al. 2019): more where the KL is over the target."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + gain * error)


def _means(seen: list[dict[str, float]]) -> dict[str, float]:
    """Means over an update's steps, of a name over those that have it."""
    names = {name: None for metrics in seen for name in metrics}
    return {name: sum(found) / len(found) for name in names for found in [[m[name] for m in seen if name in m]]}
