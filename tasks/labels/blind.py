"""Stages of a comparison of two models by people who do not know which is which.

`pairs` samples one completion of each model for each prompt, in the form that a round of labeling takes; the `label`
stage has them ranked; `blind` counts. The side a completion comes from stands in these artifacts and never in Argilla.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import Field, model_validator

from labeling.blind import Blind, Side, compare_blind, votes_of
from labeling.comparison import Comparison, LabelingError, comparison_from, judgement_from
from tasks.artifact import InputError, Row, Work, below, read_jsonl, write_jsonl
from tasks.data.files import read_examples
from tasks.data.splits import prompt_id
from tasks.labels.recipe import EnoughRecipe, LabelRecipe
from tasks.recipe import Part

SIDES: tuple[Side, ...] = get_args(Side)


class PairsRecipe(Part):
    """What both models answer, and how their completions are drawn."""

    prompts: Path | None = None
    """A file of prompts in any form that `data.source = "jsonl"` takes; none: the evaluation prompts of the data."""
    n: int = Field(default=100, ge=1)
    """Prompts at most, drawn by the seed."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Divides the logits."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens that holds this much probability."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer completions are cut."""
    batch_size: int = Field(default=128, ge=1)
    """Rows decoded at once."""

    def external_files(self) -> list[Path]:
        """The prompts belong to the identity by their content."""
        return [self.prompts.expanduser()] if self.prompts else []


class VotesRecipe(Part):
    """How votes are counted."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamplings of the records behind the 95 % interval."""


class BlindRecipe(Part):
    """Two models side by side, judged by people who do not know which is which."""

    pairs: PairsRecipe = PairsRecipe()
    """The completions."""
    label: LabelRecipe | None = None
    """The round; none: the same people, guidelines and overlap as in the recipe's own."""
    votes: VotesRecipe = VotesRecipe()
    """The count."""

    @model_validator(mode="after")
    def _by_people(self) -> Self:
        if self.label is not None and self.label.ai is not None:
            raise ValueError("'label.ai' has no place in a blind comparison, which people make; remove it")
        return self


def blind_round(recipe: BlindRecipe, usual: LabelRecipe) -> LabelRecipe:
    """The round in which the two models are compared.

    The recipe's usual one is taken over without what belongs to its own records: gold comparisons, groups, quotas, and
    when it is enough; and without a judge model.
    """
    if recipe.label is not None:
        return recipe.label
    own = {"round": "blind", "gold": None, "groups": (), "quotas": {}, "enough": EnoughRecipe(), "ai": None}
    return usual.model_copy(update=own)


def sample_pairs(recipe: PairsRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """One completion of each model per prompt: `completions.jsonl`, each completion with its `side`.

    `inputs`: `a` and `b`, each with what it builds on (`a.base`, `a.sft`) unless it is standalone, and `data` unless
    the recipe names a file. `a.data` and `b.data` where a model was made with other data: what it learnt from is left
    out. Raises `InputError` without prompts.
    """
    found, learnt = _prompts(recipe, inputs), _learnt(inputs)
    fair = [row for row in found if row["id"] not in learnt]
    if not fair:
        raise InputError("One of the models learnt from every prompt; compare them on other prompts (a file of them).")
    asked = fair
    for side in SIDES:
        asked = _with_room(recipe, _chain(inputs, side), asked, work)
    prompts = _drawn(asked, recipe.n, work.seed)
    sampled = {side: _sample(recipe, _chain(inputs, side), prompts, side, work) for side in SIDES}
    rows = []
    for place, prompt in enumerate(prompts):
        both = [{"id": f"{prompt['id']}-{side}", "side": side, **sampled[side][place]} for side in SIDES]
        rows.append({**prompt, "completions": both})
    write_jsonl(work.out / "completions.jsonl", rows)
    identical = sum(said_the_same(row) for row in rows)
    counts = {"prompts": len(rows), "identical": identical, "different": len(rows) - identical}
    work.log({**counts, "left_out": len(found) - len(fair)})


def count_votes(recipe: VotesRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Count a blind round: `result.json` (see `labeling.blind.Blind.row`), from model A's side.

    `inputs`: `pairs`, and `judgements` unless the models said the same to every prompt. Raises `InputError` when
    nothing was judged.
    """
    pairs = read_jsonl(inputs["pairs"] / "completions.jsonl")
    sides: dict[str, Side] = {each["id"]: each["side"] for row in pairs for each in row["completions"]}
    judged = inputs.get("judgements")
    comparisons = [comparison_from(row) for row in read_jsonl(judged / "comparisons.jsonl")] if judged else []
    judgements = [judgement_from(row) for row in read_jsonl(judged / "judgements.jsonl")] if judged else []
    asked = [comparison for comparison in comparisons if comparison.kind == "asked"]
    try:
        result = compare_blind(
            asked,
            judgements,
            sides,
            identical=sum(said_the_same(row) for row in pairs),
            samples=recipe.bootstrap_samples,
            seed=work.seed,
        )
        votes = votes_of(asked, judgements, sides)
    except LabelingError as error:
        raise InputError(str(error)) from error
    text = json.dumps(result.row(), indent=1, sort_keys=True, allow_nan=False)
    (work.out / "result.json").write_text(text + "\n", encoding="utf-8")
    work.log(_figures(result))
    work.table("completions", _table(pairs, asked, votes))


def said_the_same(row: Row) -> bool:
    """Whether both models said the same, so that there is nothing to ask."""
    return len({completion["text"].strip() for completion in row["completions"]}) == 1


def _prompts(recipe: PairsRecipe, inputs: Mapping[str, Path]) -> list[Row]:
    if recipe.prompts is None:
        rows = read_jsonl(inputs["data"] / "evaluation.jsonl")
        found = [{"id": row["id"], "prompt": row["prompt"], "reference": row.get("reference")} for row in rows]
    else:
        examples, _ = read_examples(recipe.prompts.expanduser(), "refuse")
        found = [{"id": prompt_id(e.prompt), "prompt": e.prompt, "reference": e.reference} for e in examples]
    if not found:
        raise InputError("There are no prompts to compare on; raise data.shares.evaluation or give a file of prompts.")
    return list({row["id"]: row for row in found}.values())


def _learnt(inputs: Mapping[str, Path]) -> set[str]:
    """Ids of the prompts that were no evaluation prompts to one of the models."""
    ledgers = [inputs[f"{side}.data"] / "ledger.jsonl" for side in SIDES if f"{side}.data" in inputs]
    return {row["id"] for ledger in ledgers for row in read_jsonl(ledger) if row["split"] != "evaluation"}


def _drawn(prompts: Sequence[Row], n: int, seed: int) -> list[Row]:
    """At most n of the prompts; a smaller n takes some of the same."""
    if len(prompts) <= n:
        return list(prompts)
    return sorted(prompts, key=lambda row: hashlib.sha256(f"{seed}/{row['id']}".encode()).digest())[:n]


def _chain(inputs: Mapping[str, Path], side: Side) -> list[Path]:
    """The artifacts a model is made of, in the order they are loaded."""
    beside = {name.removeprefix(f"{side}."): path for name, path in inputs.items() if name.startswith(f"{side}.")}
    return [*(beside[name] for name in below(beside)), inputs[side]]


def _with_room(recipe: PairsRecipe, chain: Sequence[Path], prompts: Sequence[Row], work: Work) -> list[Row]:
    from tasks.models.loading import load_tokenizer, positions_of_chain
    from tasks.sampling.room import with_room

    limit, tokenizer = positions_of_chain(chain), load_tokenizer(chain[0])
    return with_room(prompts, tokenizer, recipe.max_new_tokens, limit, work, "comparison")


def _sample(
    recipe: PairsRecipe, chain: Sequence[Path], prompts: Sequence[Row], side: Side, work: Work
) -> list[dict[str, Any]]:
    """One completion per prompt; the models are sampled independently of each other."""
    from tasks.models.chat import encode_prompt
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.sampling.local import generate

    tokenizer = load_tokenizer(chain[0])
    before = SIDES.index(side) * len(prompts)
    groups = generate(
        load_causal_lm(chain),
        tokenizer,
        [encode_prompt(tokenizer, row["prompt"]) for row in prompts],
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=int.from_bytes(hashlib.sha256(f"{work.seed}/{side}".encode()).digest()[:4]),
        batch_size=recipe.batch_size,
        progress=lambda done, total: work.progress(before + done, len(SIDES) * total, f"model {side.upper()}"),
    )
    return [{"text": each.text, "tokens": len(each.token_ids), "finished": each.finished} for [each] in groups]


def _figures(result: Blind) -> dict[str, float]:
    rate, tally = result.win_rate, result.tally
    counts = {"records": result.records, "identical": result.identical, "unjudged": result.unjudged}
    counts |= {"votes": result.votes, "wins": tally.wins, "ties": tally.ties, "losses": tally.losses}
    rates = {"win_rate": rate.value, "win_rate_low": rate.low, "win_rate_high": rate.high, "p_value": tally.p_value}
    position = {"shown_first_wins": result.first.wins, "shown_first_losses": result.first.losses}
    return {**counts, **rates, **position, "position_p_value": result.first.p_value, **result.agreement}


def _table(pairs: Sequence[Row], asked: Sequence[Comparison], votes: Mapping[str, Sequence[float]]) -> list[Row]:
    """Both completions of every prompt with the votes: for A, ties, for B."""
    first = {comparison.id: comparison.shown[0] for comparison in asked}
    rows = []
    for row in pairs:
        given = votes.get(row["id"], ())
        a, b = (next(each for each in row["completions"] if each["side"] == side) for side in SIDES)
        shown = "" if row["id"] not in first else "A" if first[row["id"]] == a["id"] else "B"
        counts = {"for A": given.count(1.0) if given else 0, "ties": given.count(0.5) if given else 0}
        prompt = row["prompt"][-1]["content"]
        told = {"prompt": prompt, "A": a["text"], "B": b["text"], "shown first": shown}
        rows.append({**told, **counts, "for B": given.count(0.0) if given else 0})
    return rows
