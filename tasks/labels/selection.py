"""Stage: which of the sampled prompts and completions people shall judge, under a budget of judgements or hours.

Training prompts are chosen by the recipe's method. Validation prompts are always drawn at random, in the share that
they have of the pool, and so are the completions shown of them: figures on the hard cases only would be no measure.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from labeling.comparison import LabelingError
from labeling.selection import Budget, Pick, at_random, crowding, ngram_vectors, some_of, stratified
from tasks.artifact import InputError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Part

if TYPE_CHECKING:
    from tasks.labels.recipe import LabelRecipe

TABLE = 200
"""Records shown in the table."""
LEARNERS = ("disagreement", "information")
"""Methods that need preferences of an earlier round."""


class SelectRecipe(Part):
    """Which of the sampled completions are labelled."""

    method: Literal["all", "random", "stratified", "disagreement", "information", "diverse"] = "all"
    """`all` leaves nothing out. `random`, or `stratified` by the rows' `stratum`. `diverse`: prompts unlike each other.
    `disagreement`: completions that an ensemble of reward heads orders differently (Christiano et al. 2017).
    `information`: those whose ranking tells most about the reward, one beside the other (Houlsby et al. 2011). Measured
    on the demo (benchmarks/selection.py), the last two help a linear reward head and not the trained reward model."""
    budget_judgements: int | None = Field(default=None, ge=1)
    """Judgements that may be spent on asked records and their repeats; gold and further opinions come on top."""
    budget_hours: float | None = Field(default=None, gt=0)
    """The same in hours of all annotators together; with both, the smaller one counts."""
    seconds_per_judgement: float = Field(default=60, gt=0)
    """How long one ranking takes, of as many completions as are shown."""
    show: int | None = Field(default=None, ge=2, le=8)
    """Completions shown of those sampled: the most telling ones, or random ones. None: all."""
    strata: Literal["proportional", "equal"] = "proportional"
    """With `stratified`: as many of a stratum as its share of the pool, or as many of each."""
    stratum: str = Field(default="stratum", min_length=1)
    """Where a row says which stratum it belongs to: a key, or keys joined by dots, as `reference.kind`."""
    similarity: Literal["ngrams", "model"] = "ngrams"
    """What makes two prompts alike: their words and letters, or what the SFT model makes of them."""
    diversity: float = Field(default=0.3, ge=0, le=1)
    """With `disagreement`: how much being unlike the prompts chosen before counts, against disagreement."""
    members: int = Field(default=8, ge=2)
    """With `disagreement`: heads in the ensemble."""
    earlier: Path | None = None
    """Preferences of an earlier round (its `train.jsonl`): `disagreement` and `information` learn from them, `diverse`
    keeps away from their prompts."""

    def external_files(self) -> list[Path]:
        """The earlier preferences belong to the identity by their content."""
        return [self.earlier.expanduser()] if self.earlier else []

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Names of the inputs beside the completions; `preferences`, those of an earlier round, may be missing."""
        if self.method not in (*LEARNERS, "diverse"):
            return ()
        reads = self.method in LEARNERS or self.similarity == "model"
        return ("base", "sft", "preferences") if reads else ("preferences",)

    def in_round(self, label: "LabelRecipe") -> "SelectStage":
        """The stage's part: what it costs to have a record labelled is said by the round."""
        return SelectStage(**self.model_dump(), overlap=label.min_submitted, repeats=label.repeats)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        limits = {"budget_judgements", "budget_hours", "show"}
        given = sorted(name for name in limits if getattr(self, name) is not None)
        if self.method == "all" and given:
            raise ValueError(f'\'{given[0]}\' has no effect with method = "all"; choose another method, as "random"')
        if self.method != "all" and not given:
            raise ValueError(f"'method' is \"{self.method}\" without a budget; set budget_judgements or budget_hours")
        if self.earlier and self.method not in (*LEARNERS, "diverse"):
            raise ValueError(f"'earlier' has no effect with method = \"{self.method}\"; remove it")
        return self


class SelectStage(SelectRecipe):
    """A selection with what the round says about the cost of a record."""

    overlap: int = Field(default=1, ge=1)
    """Judgements a record gets."""
    repeats: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the records that come a second time."""

    @property
    def budget(self) -> Budget:
        return Budget(self.budget_judgements, self.budget_hours, self.seconds_per_judgement, self.overlap, self.repeats)


def select_completions(recipe: SelectStage, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: completions, and what `recipe.looks_at` names. Writes `completions.jsonl`, the chosen rows with the shown
    completions in the form of the sampled ones, `selection.json`: for each row of the pool whether and why, and
    `budget.json`: what people may spend, for the round's report.

    Rows whose completions all say the same are never chosen. Raises `InputError` for a budget that does not pay for a
    record of each split, and for a method without what it learns from.
    """
    sampled = read_jsonl(inputs["completions"] / "completions.jsonl")
    rows = [row | _stratum(row, recipe.stratum) for row in sampled]
    pool = [row for row in rows if len({each["text"].strip() for each in row["completions"]}) > 1]
    if not pool:
        raise InputError("No prompt has two different completions to rank; sample more or at a higher temperature.")
    counts = _counts(recipe, pool)
    chosen: list[tuple[Row, Pick]] = []
    for split, count in counts.items():
        own = [row for row in pool if row["split"] == split]
        chosen += _chosen(recipe, own, count, split, inputs, work)
    write_jsonl(work.out / "completions.jsonl", [row for row, _ in chosen])
    budget = {"judgements": recipe.budget_judgements, "hours": recipe.budget_hours}
    (work.out / "budget.json").write_text(json.dumps(budget) + "\n")
    _report(recipe, rows, pool, chosen, work)


def _stratum(row: Row, key: str) -> Row:
    """`{"stratum": ...}` from where the recipe says it stands, for the round to tell strata apart by; or nothing."""
    value: Any = row
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return {} if value is None else {"stratum": str(value)}


def _counts(recipe: SelectStage, pool: Sequence[Row]) -> dict[str, int]:
    """Records of each split: validation gets its share of the pool, and neither split is left without one."""
    sizes = {split: sum(row["split"] == split for row in pool) for split in ("train", "validation")}
    fewest = min(len(row["completions"]) for row in pool)
    if recipe.show is not None and recipe.show > fewest:
        raise InputError(
            f"select.show is {recipe.show}, but {fewest} completions were sampled per prompt; "
            "raise sample.completions_per_prompt or lower it."
        )
    try:
        total = recipe.budget.records(len(pool))
    except LabelingError as error:
        raise InputError(str(error)) from error
    present = [split for split, size in sizes.items() if size]
    if total < len(present):
        raise InputError(
            f"The budget pays for {total} record, but training and validation need one each; raise it or lower "
            "label.min_submitted."
        )
    validation = round(total * sizes["validation"] / len(pool))
    if len(present) == 2:
        validation = min(max(1, validation), total - 1)
    return {"train": total - validation, "validation": validation}


def _chosen(
    recipe: SelectStage, rows: list[Row], count: int, split: str, inputs: Mapping[str, Path], work: Work
) -> list[tuple[Row, Pick]]:
    """The chosen rows of a split, cut to the completions shown, and why."""
    ids = [row["id"] for row in rows]
    if not rows or not count:
        return []
    shown = [_some(recipe, row, work.seed) for row in rows]
    if split != "train":
        picks = [Pick(each.place, None, "drawn at random: validation") for each in at_random(ids, count, work.seed)]
    elif recipe.method == "stratified":
        strata = [str(row.get("stratum") or "") for row in rows]
        if not any(strata):
            raise InputError(
                f"select.method = \"stratified\" goes by '{recipe.stratum}' and no row has one; name another key in "
                'select.stratum or take method = "random".'
            )
        picks = stratified(ids, strata, count, work.seed, equal=recipe.strata == "equal")
    elif recipe.method in (*LEARNERS, "diverse"):
        from tasks.labels.methods import pick

        picks, shown = pick(recipe, rows, count, shown, inputs, work)
    else:
        picks = at_random(ids, count, work.seed)
    return [(_cut(rows[pick.place], shown[pick.place]), pick) for pick in sorted(picks, key=lambda each: each.place)]


def _some(recipe: SelectStage, row: Row, seed: int) -> list[int]:
    texts = [each["text"] for each in row["completions"]]
    return some_of(texts, recipe.show or len(texts), seed, row["id"])


def _cut(row: Row, shown: Sequence[int]) -> Row:
    return row | {"completions": [row["completions"][place] for place in shown]}


def _report(
    recipe: SelectStage, rows: Sequence[Row], pool: Sequence[Row], chosen: Sequence[tuple[Row, Pick]], work: Work
) -> None:
    by_id = {row["id"]: (row, pick) for row, pick in chosen}
    useful = {row["id"] for row in pool}
    entries = []
    for row in rows:
        taken, pick = by_id.get(row["id"], (None, None))
        left_out = "over the budget" if row["id"] in useful else "all completions say the same"
        entries.append(
            {
                "id": row["id"],
                "split": row["split"],
                "stratum": str(row.get("stratum") or ""),
                "chosen": taken is not None,
                "score": None if pick is None or pick.score is None else round(pick.score, 6),
                "why": pick.why if pick else left_out,
                "shown": [each["id"] for each in taken["completions"]] if taken else [],
            }
        )
    (work.out / "selection.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    work.log(_figures(recipe, rows, pool, chosen))
    best = sorted((each for each in entries if each["chosen"]), key=lambda each: -(each["score"] or 0.0))[:TABLE]
    text = {row["id"]: row["prompt"][-1]["content"] for row in rows}
    columns = ("score", "why", "split", "stratum", "id")
    work.table("selection", [{"prompt": text[each["id"]], **{name: each[name] for name in columns}} for each in best])


def _figures(
    recipe: SelectStage, rows: Sequence[Row], pool: Sequence[Row], chosen: Sequence[tuple[Row, Pick]]
) -> dict[str, float]:
    """What was chosen of what, what it costs people, and how alike the chosen prompts are."""
    cost = recipe.budget.cost(len(chosen))
    train = [row for row, _ in chosen if row["split"] == "train"]
    total = recipe.budget.total()
    texts = [" ".join(message["content"] for message in row["prompt"]) for row in train]
    return {
        "pool": len(pool),
        "identical": len(rows) - len(pool),
        "records": len(chosen),
        "records_train": len(train),
        "records_validation": len(chosen) - len(train),
        "judgements_planned": cost,
        "hours_planned": cost * recipe.seconds_per_judgement / 3600,
        "budget_used": cost / total if total else 1.0,
        "similarity_to_nearest": crowding(ngram_vectors(texts), range(len(texts))),
    }
