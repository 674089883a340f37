"""The fields that training stages share."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.models.adapters import (
    AdapterRecipe,
    FullRecipe,
    LoraRecipe,
    PrefixTuningRecipe,
    PromptRecipe,
    QloraRecipe,
    changes_what_is_below,
)
from tasks.models.quantised import require_bitsandbytes
from tasks.recipe import Dotted, Part
from tasks.sampling.engine import EngineName
from tasks.training.rewards import ModelReward, Terms

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


def require_installed(part: Part) -> None:
    """Raise `InputError` where what a part trains with is not installed."""
    if isinstance(getattr(part, "adapter", None), QloraRecipe):
        require_bitsandbytes("kind 'qlora'", "kind 'lora'")
    if (optimizer := getattr(part, "optimizer", "adamw")) != "adamw":
        require_bitsandbytes(f"'{optimizer}'", "'adamw'")


class Hyperparameters(Part):
    """How a model is fitted: epochs, batches, step sizes."""

    adapter: AdapterRecipe = LoraRecipe()
    """What is trained: every weight, or an adapter: lora, qlora, dora, ia3, prompt_tuning, p_tuning, prefix_tuning."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warmup: to zero by the end, or not at all."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    batch_size: int = Field(default=16, ge=1)
    """Rows (SFT) or prompts (reward, DPO) in one forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before one step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm."""
    max_length: int = Field(default=1024, ge=8)
    """Longer rows (in tokens, prompt and completion) are dropped and counted, never cut."""
    dropped_limit: float = Field(default=0.2, ge=0, le=1)
    """Training is refused when a larger share of the rows is dropped."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What products are computed in; weights and moments are fp32. "auto": bf16 on a GPU; on a CPU that has it bf16
    from 15M parameters on. Why is in the run's report."""
    optimizer: Optimizer = "adamw"
    """AdamW, with moments in 8 bits, or in pages that a GPU moves out when it is full (Dettmers et al. 2023); all but
    "adamw" need bitsandbytes. On a CPU nothing is paged."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""

    @model_validator(mode="after")
    def _watched_from_its_start(self) -> Self:
        watch = getattr(self, "watch", None)
        if watch is not None and watch.every and (reason := changes_what_is_below(self.adapter)):
            raise ValueError(f"{reason}, which a watch measures the KL to; set it to 'none'")
        return self

    @model_validator(mode="after")
    def _keeps_activations(self) -> Self:
        if self.gradient_checkpointing and isinstance(self.adapter, PrefixTuningRecipe):
            raise ValueError(
                "gradient_checkpointing computes layers again without the cache that prefix_tuning trains; leave it "
                "out, or take adapter.kind = 'prompt_tuning'"
            )
        return self


class WatchRecipe(Part):
    """Looks at a policy in training: its answers to held-out prompts against those of the model it started from.

    The prompts are of the split `reward_validation`: no policy learns from them, and the evaluation has others.
    """

    every: int = Field(default=0, ge=0)
    """Updates between two looks; there is one after the last update too. 0: the policy is not watched."""
    prompts: int = Field(default=64, ge=1)
    """How many of the split's prompts are asked, if it has as many; the same for every method and seed."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Completions for each of them, at every look with the same random numbers."""
    judge: Dotted | None = None
    """Function (row, completion) -> float that says which answer is better; none: the rewards that are learnt from,
    which cannot tell when a policy only pleases them. A check that knows the right answers can."""
    checks: tuple[Dotted, ...] = ()
    """Functions (row, completion) -> bool whose shares are logged beside the win rate."""
    keep: Literal["last", "best"] = "last"
    """The policy that the artifact holds: the last one, or that of the first look with the highest win rate (which is
    then too good to be believed: the evaluation has other prompts)."""
    patience: int | None = Field(default=None, ge=1)
    """Training ends after so many looks without a higher win rate; none: it goes on."""

    @model_validator(mode="after")
    def _looks(self) -> Self:
        if not self.every and (self.keep == "best" or self.patience):
            raise ValueError("keep = 'best' and patience go by what is seen, and every = 0 never looks; set every")
        return self


class OnlineHyperparameters(Part):
    """How a policy learns from the rewards of completions that it samples itself: PPO, GRPO and RLOO."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; by default the method."""
    adapter: AdapterRecipe = LoraRecipe()
    """What is trained; its dropout must be 0, or the policy's probabilities would be noise."""
    optimizer: Optimizer = "adamw"
    """AdamW, with moments in 8 bits, or in pages that a GPU moves out when it is full; all but "adamw" need
    bitsandbytes. Log-probabilities are computed in the weights' precision: ratios and the KL must not be rounding."""
    updates: int = Field(default=40, ge=1)
    """Rounds of sampling and learning."""
    engine: EngineName = "local"
    """Draws the completions. local: in this process. vllm: a vLLM server beside it, which gets the weights of every
    update; the log-probabilities that the policy learns from stay its own, computed once more."""
    rewards: Terms = Field(default=(ModelReward(),), min_length=1)
    """What is learnt from: a weighted sum of the reward model, functions, checks, length, and reward servers."""
    share_base: bool = False
    """Score with the policy's own frozen weights and the reward model's adapter on them, where both start from the same
    SFT adapter (logged as `shares_base`): one model in memory for policy, reference, value and reward. Scoring takes
    longer, since the adapter is not merged."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer completions are cut, and punished by `missing_eos_penalty`."""
    likelihood_coefficient: float = Field(default=0.2, ge=0)
    """Reward per nat of the log-probability that the SFT model gives the completion. What the reward model cannot judge
    (is the fact right?) is then settled by what the SFT model is surest of, not by the reward model's noise. Makes
    answers more alike, and shorter where they would ramble; 0 leaves it out."""
    missing_eos_penalty: float = Field(default=2.0, ge=0)
    """Subtracted from (not put in place of) the score of a cut completion, in the reward's standard deviations."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far the probability ratio may move before its gradient is cut."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    target_kl: float | None = Field(default=None, gt=0)
    """Leave out the rest of an update once the policy is this many nats per token from the one that sampled."""
    stop_kl: float | None = Field(default=None, gt=0)
    """Training ends with the first update whose completions have a mean KL to the SFT model of over so many nats."""
    watch: WatchRecipe = WatchRecipe()
    """Held-out win rates while it learns, the best policy and an early end by them."""

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        if self.share_base and isinstance(self.adapter, FullRecipe | QloraRecipe):
            raise ValueError(f"share_base needs adapters on whole weights, not adapter.kind '{self.adapter.kind}'")
        return self

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        if reason := changes_what_is_below(self.adapter):
            method = type(self).model_fields["method"].default
            raise ValueError(f"{reason}, which {method.upper()} measures the KL to; set it to 'none'")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "vllm" and isinstance(self.adapter, QloraRecipe):
            raise ValueError("engine 'vllm' would sample from the full weights, not the 4-bit ones of adapter 'qlora'")
        if self.engine == "vllm" and isinstance(self.adapter, PromptRecipe):
            raise ValueError(f"engine 'vllm' does not serve soft prompts (adapter.kind '{self.adapter.kind}')")
        return self

    @model_validator(mode="after")
    def _same_probabilities_twice(self) -> Self:
        if getattr(self.adapter, "dropout", 0):
            method = type(self).model_fields["method"].default
            raise ValueError(f"adapter.dropout must be 0 for {method.upper()}: the probability ratio would be noise")
        return self
