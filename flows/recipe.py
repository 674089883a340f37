"""The recipe of a lifecycle: one object from the TOML file to the flow's parameter, the hash and MLflow."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from flows.blind import BLIND_LABEL
from tasks.data.prepare import DataRecipe, ShopData
from tasks.evaluation.evaluate import EvaluateRecipe
from tasks.evaluation.gate import GateRecipe
from tasks.labels.blind import BlindRecipe
from tasks.labels.preferences import PreferencesRecipe
from tasks.labels.recipe import LabelRecipe
from tasks.labels.selection import LEARNERS, SelectRecipe
from tasks.merging import MergeRecipe
from tasks.models.adapters import PrefixTuningRecipe, PromptRecipe
from tasks.models.pretrain import BaseRecipe
from tasks.recipe import Part
from tasks.sampling.completions import SampleRecipe
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.training.direct import DIRECT, AnyDirect
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.hyperparameters import require_installed
from tasks.training.ppo import PpoRecipe
from tasks.training.rejection import RejectionRecipe
from tasks.training.reward import RewardRecipe
from tasks.training.rewards import ModelReward
from tasks.training.sft import SftRecipe

RESERVED = {
    *("synthesis", "base", "data", "sft", "sample", "select", "judge", "label", "preferences", "reward", "merge"),
    *("evaluate", "gate", "champion", "pairs", "blind", BLIND_LABEL),
}
"""Names that a policy cannot go by: they stand for stages and for whom it is compared with."""

PolicyRecipe = Annotated[
    AnyDirect | PpoRecipe | GrpoRecipe | RlooRecipe | RejectionRecipe, Field(discriminator="method")
]


class LifecycleRecipe(Part):
    """Everything that decides what a run computes: the TOML file, the flow's parameter and the hash are this object."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The registered model whose champion the run may become."""
    seed: int = Field(default=0, ge=0)
    """Seeds everything random."""
    rounds: int = Field(default=1, ge=1, le=50)
    """How often people compare, candidates learn and the gate decides: each round goes on from the champion of the one
    before, and learns from the judgements of all."""
    base: BaseRecipe = BaseRecipe()
    """The model everything starts from."""
    synthesis: tuple[SynthesisRecipe, ...] = ()
    """Rows that models write, for sets of the mixture (`kind = "synthesis"`)."""
    data: DataRecipe = ShopData()
    """Conversations and prompts, split by one ledger."""
    sft: SftRecipe = SftRecipe()
    """Supervised fine-tuning."""
    sample: SampleRecipe = SampleRecipe()
    """Completions for people to rank."""
    select: SelectRecipe = SelectRecipe()
    """What is worth people's time; by default everything."""
    label: LabelRecipe = LabelRecipe()
    """The round in Argilla."""
    preferences: PreferencesRecipe = PreferencesRecipe()
    """How judgements become pairs."""
    reward: RewardRecipe = RewardRecipe()
    """The reward model."""
    policy: list[PolicyRecipe] = Field(min_length=1)
    """The optimisers, built side by side from the same SFT model and compared."""
    merge: MergeRecipe = MergeRecipe()
    """Adapters into a standalone model."""
    evaluate: EvaluateRecipe = EvaluateRecipe()
    """The comparison of all candidates."""
    blind: BlindRecipe = BlindRecipe()
    """The comparison by people, where `gate.people` asks for one."""
    gate: GateRecipe = GateRecipe()
    """What a candidate must show to become champion."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [policy_name(policy) for policy in self.policy]
        if len(set(names)) != len(names):
            raise ValueError(f"'policy' has two entries of one name ({', '.join(names)}); give each its own 'name'")
        taken = sorted(set(names) & RESERVED)
        if taken:
            raise ValueError(f"'policy' has an entry named '{taken[0]}', which means something else; rename it")
        if any(policy.method not in DIRECT for policy in self.policy) and not self.data.shares.rl:
            raise ValueError("'data.shares.rl' is 0, but methods that sample need RL prompts; give them a share")
        mixtures = {each.name for each in self.data.stages} if self.data.source == "mixture" else set()
        learnt = {part.mixture for part in self.sft.in_turn() if part.mixture}
        if unknown := sorted(learnt - mixtures):
            raise ValueError(f"'sft' learns from the mixture '{unknown[0]}', which 'data.stages' lacks; add it there")
        if idle := sorted(mixtures - learnt):
            raise ValueError(f"'data.stages' has '{idle[0]}', which 'sft.stages' does not learn from; add it there")
        asked = {name for each in self.policy for name in getattr(each, "ptx_mixtures", None) or () if name}
        if unknown := sorted(asked - mixtures):
            raise ValueError(
                f"'ptx_mixtures' names the mixture '{unknown[0]}', which 'data.stages' lacks; add it there"
            )
        self._check_syntheses()
        self._check_prompts()
        imports = self.data.source == "preferences"
        if imports != (self.preferences.source == "data"):
            raise ValueError(
                "'data.source = \"preferences\"' and 'preferences.source = \"data\"' go together: "
                "set both to import existing preferences, or neither to collect them"
            )
        if imports and self.rounds > 1:
            raise ValueError("'rounds' is over 1, but imported preferences stay the same; collect them, or set 1")
        if self.sample.strategy == "beam" and self.rounds > 1:
            raise ValueError(
                "'rounds' is over 1, but a beam search finds the same again where a round promotes nobody; "
                'set sample.strategy = "sample", or rounds = 1'
            )
        collected = {"sample": SampleRecipe(), "select": SelectRecipe(), "label": LabelRecipe()}
        unused = [name for name, default in collected.items() if imports and getattr(self, name) != default]
        if unused:
            raise ValueError(f"'{unused[0]}' has no effect when preferences are imported; remove it")
        if self.select.show and self.select.show > self.sample.completions_per_prompt:
            raise ValueError("'select.show' is over 'sample.completions_per_prompt'; raise the one or lower the other")
        if self.select.method in LEARNERS and not self.select.earlier:
            raise ValueError("'select.method' learns from an earlier round; set 'select.earlier' or take \"random\"")
        unrated = sorted({*self.reward.criteria} - {*self.label.criteria})
        if unrated:
            raise ValueError(f"'reward.criteria' has '{unrated[0]}', which 'label.criteria' does not ask to be rated")
        for policy in self.policy:
            for term in getattr(policy, "rewards", ()):
                asked = {*term.criteria, *term.at_least} if isinstance(term, ModelReward) else set()
                if without := sorted(asked - {*self.reward.heads.criteria}):
                    raise ValueError(
                        f"a reward of '{policy_name(policy)}' asks for '{without[0]}', which 'reward.criteria' lacks"
                    )
        return self

    def require_installed(self) -> None:
        """Raise `InputError` where what a part trains with is not installed here; a run can be planned without it."""
        for part in (*self.sft.in_turn(), self.reward, *self.policy):
            require_installed(part)

    def _check_syntheses(self) -> None:
        """Every synthesis has a name of its own, begins with what is there before it, and is used."""
        known: list[str] = []
        used = set(self.data.needs()) if self.data.source == "mixture" else set()
        wanted = {*used}
        for each in self.synthesis:
            if each.name in known:
                raise ValueError(f"'synthesis' has two entries named '{each.name}'; give each its own name")
            if late := [name for name in each.needs() if name not in known]:
                raise ValueError(
                    f"the synthesis '{each.name}' begins with the rows of '{late[0]}', which does not stand before it; "
                    "put it there"
                )
            known.append(each.name)
            used |= {*each.needs()}
        if unknown := sorted(wanted - {*known}):
            raise ValueError(f"'data.sets' has a set of '{unknown[0]}', which 'synthesis' lacks; add it there")
        if idle := sorted({*known} - used):
            raise ValueError(
                f"'synthesis' has '{idle[0]}', whose rows nothing uses; add a set with kind = \"synthesis\" and of = "
                f'"{idle[0]}" to the mixture'
            )

    def _check_prompts(self) -> None:
        """A model has one soft prompt at most, and nothing asks of it what it cannot do."""
        prompted = [policy for policy in self.policy if isinstance(policy.adapter, PromptRecipe)]
        if isinstance(self.sft.adapter, PromptRecipe):
            above = [("reward", self.reward.base is None and isinstance(self.reward.adapter, PromptRecipe))]
            above += [(f"policy.{policy_name(policy)}", True) for policy in prompted]
            if names := [name for name, there in above if there]:
                raise ValueError(
                    f"'sft.adapter' is a soft prompt, and '{names[0]}.adapter' would be a second one before it; "
                    'take kind = "lora" for one of them'
                )
        if prompted and self.rounds > 1:
            raise ValueError(
                f"'policy.{policy_name(prompted[0])}.adapter' is a soft prompt, and round 2 would put a second one "
                'before the champion; take kind = "lora", or rounds = 1'
            )
        self._check_engines(prompted)
        if isinstance(self.sft.adapter, PrefixTuningRecipe):
            above = [("reward", self.reward)] if self.reward.base is None else []
            for name, part in [*above, *((f"policy.{policy_name(policy)}", policy) for policy in self.policy)]:
                if getattr(part, "gradient_checkpointing", False):
                    raise ValueError(
                        f"'{name}.gradient_checkpointing' computes layers again without the cache that "
                        "'sft.adapter' (prefix_tuning) fills; leave it out, or take sft.adapter.kind = "
                        '"prompt_tuning"'
                    )

    def _check_engines(self, prompted: list[PolicyRecipe]) -> None:
        """prompted: policies whose own adapter is a soft prompt; they are decoded by the evaluation alone."""
        if isinstance(self.sft.adapter, PromptRecipe):
            names, asked = ["sft"], self.on_vllm()
        else:
            names = [f"policy.{policy_name(policy)}" for policy in prompted]
            asked = [name for name in self.on_vllm() if name == "evaluate"]
        for name in asked:
            if names:
                raise ValueError(
                    f"'{names[0]}.adapter' is a soft prompt, which vLLM does not serve; set {name}.engine = "
                    f'"local", or take kind = "lora"'
                )

    def on_vllm(self) -> list[str]:
        """The parts that draw completions by vLLM."""
        parts = {"sample": self.sample, "evaluate": self.evaluate}
        parts |= {f"policy.{policy_name(policy)}": policy for policy in self.policy}
        return [name for name, part in parts.items() if getattr(part, "engine", "local") == "vllm"]


def policy_name(policy: PolicyRecipe) -> str:
    """The name a policy goes by in the run: its own, else its method."""
    return policy.name or policy.method
