"""The ledger of a mixture: which rows are learnt from and which are held out, near-duplicates never apart."""

from array import array
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifact import InputError
from tasks.data.decontamination import Phrases
from tasks.data.families import family
from tasks.data.filter_report import losses
from tasks.data.intake import NEAR, Asked, Intake
from tasks.data.similar import flattened, join
from tasks.data.splits import SPLITS, assign_places, prompt_id
from tasks.data.spool import Kept, plain
from tasks.data.telling import CUT
from tasks.data.words import normalise

if TYPE_CHECKING:
    from tasks.data.mixture import MixtureData

NEAR_SHOT = "is a near-duplicate of a few-shot example"
NEAR_IDENTITY = "asks who the model is, which it learns"
NEAR_HELD = "is a near-duplicate of a prompt that is not for SFT"
NO_ANSWERS = (
    "No row of the data has a completion, so there is nothing to fine-tune on; add completions (or name the column of "
    "them with 'rename'), or set data.shares.sft = 0 and start from a model that is fine-tuned already."
)
HOLDS = "holds an evaluation prompt"


def share_out(recipe: "MixtureData", intake: Intake) -> tuple[np.ndarray, np.ndarray]:
    """The split of each row that is kept (its place in `SPLITS`, -1 for none), and its group.

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
    evaluated = np.array([each.use == "evaluation" for each in recipe.sets])[intake.sets()]
    to_learn = np.array([each.use == "sft" for each in recipe.sets])[intake.sets()]
    plain_text = np.array([each.kind == "text" for each in recipe.sets])[intake.sets()]
    splits = np.full(len(spool), -1, np.int8)
    splits[plain_text] = SPLITS.index("sft")
    told = np.array([each.kind == "identity" for each in recipe.sets])[intake.sets()]
    said = _groups_with(keep & told, groups)
    held = _groups_with(keep & evaluated, groups) & ~said
    shown = np.zeros(len(groups), bool)
    shown[groups[intake.shots]] = True
    forced = shown | _groups_with(keep & to_learn & ~plain_text, groups)
    free = np.flatnonzero(keep & ~plain_text & ~held[groups] & ~forced[groups]).astype(np.int32)
    splits[keep & ~plain_text & forced[groups]] = SPLITS.index("sft")
    splits[keep & ~plain_text & held[groups]] = SPLITS.index("evaluation")
    ids, mute = np.zeros(len(free), np.uint64), np.zeros(len(free), bool)
    for index, kept in spool.rows(keep & ~plain_text):
        group = groups[index]
        if said[group] and evaluated[index]:
            keep[index] = False
            _drop(recipe, intake, kept, NEAR_IDENTITY)
        elif held[group]:
            if not evaluated[index] or shown[group]:
                keep[index] = False
                _drop(recipe, intake, kept, NEAR if not evaluated[index] else NEAR_SHOT)
        elif not forced[group]:
            place = np.searchsorted(free, index)
            ids[place] = int(prompt_id(kept.examples[0].prompt), 16)
            mute[place] = not any(example.completions for example in kept.examples)
    splits[free] = assign_places(ids, groups[free], recipe.shares, recipe.split_seed, no_sft=mute)
    _keep_out_of_text(recipe, intake, splits, groups, plain_text)
    splits[~keep] = -1
    _check_filled(recipe, intake, splits)
    return splits, groups


def _groups_with(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Marks the groups that hold one of these rows."""
    found = np.zeros(len(groups), bool)
    found[groups[rows]] = True
    return found


def _keep_out_of_text(
    recipe: "MixtureData", intake: Intake, splits: np.ndarray, groups: np.ndarray, plain_text: np.ndarray
) -> None:
    """Drop plain text that says what a row outside SFT says, or that holds an evaluation prompt; of one that is cut
    between two pieces, both."""
    texts = intake.keep & plain_text
    if not texts.any():
        return
    away = _groups_with(intake.keep & (splits != SPLITS.index("sft")), groups)
    asked, phrases, evaluated = Asked(), Phrases(), intake.keep & (splits == SPLITS.index("evaluation"))
    for _, kept in intake.spool.rows(evaluated):
        asked.add(kept.asked, kept.examples[0])
    longest = 0
    for _, kept in intake.spool.rows(evaluated):
        for text in asked.of(kept.asked, kept.examples[0]):
            phrases.add(text)
            longest = max(longest, len(text))
    before: tuple[int, Kept] | None = None
    for index, kept in intake.spool.rows(texts):
        near = bool(away[groups[index]])
        if near or phrases.within(kept.content):
            intake.keep[index] = False
            _drop(recipe, intake, kept, NEAR_HELD if near else HOLDS)
        elif before and intake.keep[before[0]] and _goes_on(*before, index, kept):
            border = f"{before[1].content[-2 * longest :]} {kept.content[: 2 * longest]}"
            for place, piece in (before, (index, kept)) if phrases.within(border) else ():
                intake.keep[place] = False
                _drop(recipe, intake, piece, HOLDS)
        before = index, kept


def _goes_on(before: int, earlier: Kept, index: int, later: Kept) -> bool:
    """Whether a piece of plain text is followed by another of the same document."""
    cut = earlier.examples[0].form == CUT
    return cut and earlier.set == later.set and (before + 1, earlier.line + 1) == (index, later.line)


def _drop(recipe: "MixtureData", intake: Intake, kept: Kept, reason: str) -> None:
    for example in kept.examples:
        intake.seen["ledger"] += 1
        intake.drops.add(recipe.sets[kept.set].name, kept.line, "ledger", reason, plain(example))


def _join_conversations(groups: np.ndarray, intake: Intake) -> None:
    """Join the groups of conversations of which one goes on from the whole of the other, by what the user says."""
    whole, of_whole, begun, of_begun = array("q"), array("i"), array("q"), array("i")
    for index, kept in intake.spool.rows(intake.keep):
        if not kept.examples[0].kind and kept.asked:  # in no phrasing: `asked` are the turns, without few-shot ones
            said = [normalise(turn) for turn in kept.asked]
            whole.append(hash(tuple(said)))
            of_whole.append(index)
            for length in range(1, len(said)):
                begun.append(hash(tuple(said[:length])))
                of_begun.append(index)
    if not begun:
        return
    said, begins = np.frombuffer(whole, np.int64), np.frombuffer(begun, np.int64)
    met, going_on = np.isin(said, begins), np.isin(begins, said)
    known = np.concatenate([said[met], begins[going_on]])
    rows = np.concatenate([np.frombuffer(of_whole, np.int32)[met], np.frombuffer(of_begun, np.int32)[going_on]])
    _, first, same = np.unique(known, return_index=True, return_inverse=True)
    for index, other in zip(rows, rows[first[same]], strict=True):
        join(groups, int(other), int(index))
    flattened(groups)


def _join_made(groups: np.ndarray, intake: Intake) -> None:
    """Join the groups of rows of which a synthesis made one from the other, or both from a third, or for one task."""
    parents: dict[int, set[str]] = {}
    for index, kept in intake.spool.rows(intake.keep):
        for example in kept.examples:
            if example.made:
                parents.setdefault(index, set()).update(family(example.made))
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
    flattened(groups)


def _check_filled(recipe: "MixtureData", intake: Intake, splits: np.ndarray) -> None:
    if not intake.keep.any():
        raise InputError(f"No row is left: {losses(intake)}; loosen the filters, or check the sets.")
    for number, each in enumerate(recipe.sets):
        if not intake.keep[intake.sets() == number].any():
            intake.notify(f"The set '{each.name}' gives nothing: {losses(intake, each.name)}.")
    for place, split in enumerate(SPLITS):
        if getattr(recipe.shares, split) > 0 and not (splits == place).any():
            if split == "sft" and not _answered(recipe, intake):
                raise InputError(NO_ANSWERS)
            raise InputError(
                f"The split '{split}' stays empty: there are too few different prompts ({losses(intake)}); "
                f"add rows, loosen the filters, or set data.shares.{split} = 0."
            )


def _answered(recipe: "MixtureData", intake: Intake) -> bool:
    """Whether a row that is not for evaluation has a completion."""
    evaluated = np.array([each.use == "evaluation" for each in recipe.sets])[intake.sets()]
    rows = intake.spool.rows(intake.keep & ~evaluated)
    return any(example.completions for _, kept in rows for example in kept.examples)
