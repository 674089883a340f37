"""The ledger of a mixture: which rows are learnt from and which are held out, near-duplicates never apart."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifact import InputError, Row
from tasks.data.decontamination import Phrases
from tasks.data.duplicates import find_root, join
from tasks.data.intake import NEAR, Asked, Intake
from tasks.data.splits import SPLITS, assign, normalise, prompt_id
from tasks.data.spool import Kept, plain

if TYPE_CHECKING:
    from tasks.data.mixture import MixtureData

NEAR_SHOT = "is a near-duplicate of a few-shot example"
NEAR_IDENTITY = "asks who the model is, which it learns"
NEAR_HELD = "is a near-duplicate of a prompt that is not for SFT"
HOLDS = "holds an evaluation prompt"


def share_out(recipe: "MixtureData", intake: Intake) -> tuple[np.ndarray, np.ndarray]:
    """The split of each row that is kept (its place in `SPLITS`, -1 for none), and its group.

    Near-duplicates are one group; so are conversations that go on from one another, and what a synthesis made from one
    instruction. A group with a row of an evaluation set is held out, and its rows of other sets are dropped from
    `intake.keep`. A group with a few-shot example, which other rows show with its answer, is for SFT, and its rows of
    Near-duplicates are one group; so are conversations that go on from one another, and what a synthesis made from one
    instruction. A group with a row of an evaluation set is held out, and its rows of other sets are dropped from
    `intake.keep`. A group with a few-shot example, which other rows show with its answer, is for SFT, and its rows of
    evaluation sets are dropped; likewise one with a row of an identity set. Plain text is dropped that is a
    near-duplicate of a prompt outside SFT, or holds an evaluation prompt. Raises `InputError` when a split stays empty.
    """
    spool, keep = intake.spool, intake.keep
    among = keep.copy()
    among[intake.shots] = True
    groups = intake.contents.groups(recipe.near_duplicates, lambda index: spool.read(index).content, among)
    _join_conversations(groups, intake)
    _join_made(groups, intake)
    use = np.array([each.use for each in recipe.sets])[intake.sets()]
    plain_text = np.array([each.kind == "text" for each in recipe.sets])[intake.sets()]
    splits = np.full(len(spool), -1)
    splits[plain_text] = SPLITS.index("sft")
    told = np.array([each.kind == "identity" for each in recipe.sets])[intake.sets()]
    said = set(groups[keep & told].tolist())
    held = set(groups[keep & (use == "evaluation")].tolist()) - said
    shown = set(groups[intake.shots].tolist())
    forced = shown | set(groups[keep & (use == "sft") & ~plain_text].tolist())
    free: list[int] = []
    ids: list[str] = []
    mute: list[bool] = []
    for index, kept in spool.rows(keep & ~plain_text):
        group = int(groups[index])
        if group in said and use[index] == "evaluation":
            keep[index] = False
            _drop(recipe, intake, kept, NEAR_IDENTITY)
        elif group in held:
            splits[index] = SPLITS.index("evaluation")
            if use[index] != "evaluation" or group in shown:
                keep[index] = False
                _drop(recipe, intake, kept, NEAR if use[index] != "evaluation" else NEAR_SHOT)
        elif group in forced:
            splits[index] = SPLITS.index("sft")
        else:
            free.append(index)
            ids.append(prompt_id(kept.examples[0].prompt))
            mute.append(not any(example.completions for example in kept.examples))
    assigned = assign(ids, [int(groups[i]) for i in free], recipe.shares, recipe.split_seed, no_sft=mute)
    splits[free] = [SPLITS.index(split) for split in assigned]
    _keep_out_of_text(recipe, intake, splits, groups, plain_text)
    splits[~keep] = -1
    _check_filled(recipe, splits)
    return splits, groups


def shared_prompts(intake: Intake, groups: np.ndarray) -> set[str]:
    """Prompts that rows of different groups have, because their phrasing says nothing of the row: in SFT only."""
    first: dict[str, int] = {}
    shared: set[str] = set()
    for index, kept in intake.spool.rows(intake.keep):
        for example in kept.examples:
            if example.kind and example.prompt:
                known = prompt_id(example.prompt)
                if first.setdefault(known, int(groups[index])) != groups[index]:
                    shared.add(known)
    return shared


def _keep_out_of_text(
    recipe: "MixtureData", intake: Intake, splits: np.ndarray, groups: np.ndarray, plain_text: np.ndarray
) -> None:
    """Drop plain text that says what a row outside SFT says, or that holds an evaluation prompt."""
    texts = intake.keep & plain_text
    if not texts.any():
        return
    away = {*groups[intake.keep & (splits != SPLITS.index("sft"))].tolist()}
    evaluated, phrases = Asked(), Phrases()
    for _, kept in intake.spool.rows(intake.keep & (splits == SPLITS.index("evaluation"))):
        evaluated.add(kept.asked, kept.examples[0])
    for text in evaluated.texts():
        phrases.add(text)
    for index, kept in intake.spool.rows(texts):
        near = int(groups[index]) in away
        if near or phrases.within(kept.content):
            intake.keep[index] = False
            _drop(recipe, intake, kept, NEAR_HELD if near else HOLDS)


def _drop(recipe: "MixtureData", intake: Intake, kept: Kept, reason: str) -> None:
    for example in kept.examples:
        intake.drops.add(recipe.sets[kept.set].name, kept.line, "ledger", reason, plain(example))


def _join_conversations(groups: np.ndarray, intake: Intake) -> None:
    """Join the groups of conversations of which one begins as the other."""
    longer: list[tuple[int, int]] = []
    for index, turns in _turns(intake):
        if len(turns) > 1:
            said = [normalise(turn) for turn in turns]
            longer += [(hash(tuple(said[:length])), index) for length in range(1, len(said), 2)]
    if not longer:
        return
    beginnings = {beginning for beginning, _ in longer}
    seen: dict[int, int] = {}
    for index, turns in _turns(intake):
        known = hash(tuple(normalise(turn) for turn in turns))
        if known in beginnings:
            seen.setdefault(known, index)
    for beginning, index in longer:
        join(groups, seen.setdefault(beginning, index), index)
    for index in range(len(groups)):
        groups[index] = find_root(groups, index)


def _join_made(groups: np.ndarray, intake: Intake) -> None:
    """Join the groups of rows of which a synthesis made one from the other, or both from a third."""
    parents: dict[int, set[str]] = {}
    for index, kept in intake.spool.rows(intake.keep):
        for example in kept.examples:
            if example.made:
                parents.setdefault(index, set()).update(_parents(example.made))
    wanted = set().union(*parents.values())
    if not wanted:
        return
    first: dict[str, int] = {}
    for index, kept in intake.spool.rows(intake.keep):
        for known in {prompt_id(example.prompt) for example in kept.examples} & wanted:
            join(groups, first.setdefault(known, index), index)
    for index, names in parents.items():
        for name in names:
            join(groups, first.setdefault(name, index), index)
    for index in range(len(groups)):
        groups[index] = find_root(groups, index)


def _parents(made: Row) -> Iterator[str]:
    """The prompts that a row goes back to, by their ids."""
    for step in made["steps"]:
        if isinstance(step, dict):
            if isinstance(step.get("parent"), str):
                yield step["parent"]
            if isinstance(step.get("made"), dict) and isinstance(step["made"].get("steps"), list):
                yield from _parents(step["made"])


def _turns(intake: Intake) -> Iterator[tuple[int, list[str]]]:
    """The turns of every prompt that is a conversation as it came, and its row."""
    for index, kept in intake.spool.rows(intake.keep):
        for example in kept.examples:
            turns = [turn["content"] for turn in example.prompt if turn["role"] != "system"]
            if turns and not example.kind:
                yield index, turns


def _check_filled(recipe: "MixtureData", splits: np.ndarray) -> None:
    for place, split in enumerate(SPLITS):
        if getattr(recipe.shares, split) > 0 and not (splits == place).any():
            raise InputError(
                f"The split '{split}' stays empty: after the filters there are too few different prompts; "
                f"add rows, loosen the filters, or set data.shares.{split} = 0."
            )
