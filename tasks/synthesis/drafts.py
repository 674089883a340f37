"""Rows while they are made: what they say so far, how they were made, and the account of every step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from labeling.ai.endpoint import Messages
from tasks.ai.kept import Said
from tasks.artifact import InputError, Message, Row, Work
from tasks.data.sources import SynthesisSet
from tasks.data.splits import prompt_id
from tasks.data.telling import tell
from tasks.recipe import stable_hash
from tasks.synthesis.recipe import Rows, SynthesisRecipe
from tasks.synthesis.writer import Writer


@dataclass(frozen=True)
class Draft:
    """A row on its way."""

    prompt: list[Message]
    answer: str = ""
    """Empty: none yet."""
    steps: tuple[Row, ...] = ()
    """How it was made, in order."""

    @property
    def id(self) -> str:
        """The name of its prompt, by which later steps call it."""
        return prompt_id(self.prompt)

    @property
    def instruction(self) -> str:
        """What is asked last."""
        return self.prompt[-1]["content"]

    @property
    def single(self) -> bool:
        """Whether it is one request, perhaps after a system message, without tools."""
        roles = [turn["role"] for turn in self.prompt]
        return roles in (["user"], ["system", "user"]) and not self.with_tools

    @property
    def with_tools(self) -> bool:
        """Whether it has tools, or turns in which some were called: a writer has none."""
        return any("tools" in turn or "tool_calls" in turn or turn["role"] == "tool" for turn in self.prompt)

    def messages(self) -> list[Message]:
        """The conversation, with the answer where there is one."""
        return [*self.prompt, {"role": "assistant", "content": self.answer}] if self.answer else self.prompt

    def then(self, **step: object) -> "Draft":
        """The same with one more step told of it."""
        return replace(self, steps=(*self.steps, step))


@dataclass
class Making:
    """One synthesis under way."""

    recipe: SynthesisRecipe
    writer: Writer
    work: Work
    begun_with: list[str] = field(default_factory=list)
    """Instructions that it began with: seeds or rows."""
    step: str = ""
    """The step that is done now, as the tables call it."""
    dropped: list[Row] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of what was dropped, by step and reason."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Of the writer's verdicts, by what they were about; each counts as no."""
    pairs: list[Row] = field(default_factory=list)
    """Answers before and after a revision, as the import of preferences reads them."""
    account: list[Row] = field(default_factory=list)
    """A line for each step."""
    asked: int = 0
    """Texts that were asked for in this step."""

    def made(self, draft: Draft) -> Row:
        """How a row was made, as it says it: by whom, for which prompt (a filter may change that), in what steps."""
        about = {"synthesis": self.recipe.name, **self.writer.about}
        return {**about, "prompt_id": draft.id, "steps": list(draft.steps)}

    def pair(self, draft: Draft, rejected: str) -> None:
        """Keep a row's answer and the one before it."""
        chosen, other = ([{"role": "assistant", "content": text}] for text in (draft.answer, rejected))
        self.pairs.append({"prompt": draft.prompt, "chosen": chosen, "rejected": other, "made": self.made(draft)})

    def drop(self, reason: str, text: str, **about: object) -> None:
        """Keep account of something that is not used: the reason, completing "it ...", and what it said."""
        self.dropped.append({"step": self.step, "reason": reason, "text": text, **about})
        self.counts[self.step, reason] += 1

    def ask(
        self, questions: Sequence[str | Messages], draws: Sequence[str], note: str, greedy: bool = False
    ) -> list[Said]:
        """What the writer says to each question, a text or a conversation (see `Writer.ask`)."""
        if not questions:
            return []
        self.asked += len(questions)
        asked = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in questions]
        return self.writer.ask(asked, draws, f"{self.step}: {note}", greedy)

    def rng_name(self, *more: object) -> str:
        """What a random draw of this step is seeded with."""
        return "/".join(map(str, (self.work.seed, self.recipe.name, self.step, *more)))

    def ended(self, before: int, drafts: Sequence[Draft]) -> None:
        """Close a step's account. Raises `InputError` when nothing is left."""
        dropped = sum(count for (step, _), count in self.counts.items() if step == self.step)
        row = {"step": self.step, "taken in": before, "asked": self.asked, "kept": len(drafts), "dropped": dropped}
        self.account.append(row)
        self.asked = 0
        if not drafts:
            reasons = Counter({reason: n for (step, reason), n in self.counts.items() if step == self.step})
            reason, count = reasons.most_common(1)[0] if reasons else ("", 0)
            why = f" ({count} of {dropped} times: it {reason})" if reason else ""
            raise InputError(
                f"The step '{self.step}' of the synthesis '{self.recipe.name}' keeps nothing{why}; {_remedy(reason)}."
            )


def _remedy(reason: str) -> str:
    if reason.startswith("was cut"):
        return "raise the writer's max_new_tokens, or take one that ends its answers"
    if "longer than" in reason:
        return "take a writer with a longer context"
    return "take a writer that follows instructions, or loosen that step"


def read_rows(part: Rows, inputs: Mapping[str, Path], making: Making) -> list[Draft]:
    """The rows to begin with; what is no conversation is dropped. Raises `InputError` when there is none."""
    drafts: list[Draft] = []
    seen: set[str] = set()
    source = part.made(inputs) if isinstance(part, SynthesisSet) else part
    read = 0
    for told in tell(source, source.lines(), making.work.seed):
        read += 1
        if told.problem:
            making.drop(f"{told.problem} {told.detail}".strip(), told.excerpt, line=told.line)
            continue
        for example in told.examples:
            answer = example.completions[0] if example.completions and not example.calls else ""
            made = {"made": example.made} if example.made else {}
            draft = Draft(example.prompt, answer).then(step="rows", set=part.name, line=told.line, **made)
            name = stable_hash(draft.messages())
            if name in seen:
                making.drop("is there twice", draft.instruction, line=told.line)
            else:
                seen.add(name)
                drafts.append(draft)
    if not read:
        raise InputError(f"The rows '{part.name}' of the synthesis '{making.recipe.name}' are empty; check their path.")
    return drafts
