"""A round of labeling in Argilla: publish the completions, wait for the ranks, keep every judgement.

Judgements are facts from outside: the same recipe labeled again gives other ids and times, and people may answer
differently. Annotators stand in the artifact under a pseudonym made from Argilla's id of their account, never by name.
"""

import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal, Self

import httpx
from pydantic import Field, model_validator

from labeling import argilla
from labeling.accounts import create_annotators, usernames
from labeling.agreement import agreement
from labeling.comparison import Comparison, Completion, Judgement, LabelingError, compare
from labeling.connection import connect
from labeling.question import DEFAULT_GUIDELINES, MAX_GUIDELINES, Round
from labeling.report import annotator_rows, judgement_rows
from labeling.simulated import SimulatedAnnotator, answer_round
from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Dotted, Part, resolve

POLL_SECONDS = 2.0
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class AnnotatorRecipe(Part):
    """One simulated annotator."""

    name: Name
    """Username in Argilla."""
    noise: float = Field(default=0.3, ge=0)
    """Scale of the Gumbel noise on what they perceive, in units of the utility."""
    tie_margin: float = Field(default=0.3, ge=0)
    """Completions perceived this close to the best of their group share its rank."""
    careless: bool = False
    """Ranks at random, without reading."""
    discard_rate: float = Field(default=0.02, ge=0, lt=1)
    """Share of records discarded instead of ranked."""


class LabelRecipe(Part):
    """What is asked, of whom, and when it is enough."""

    round: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "preferences"
    """Name of the round; the dataset in Argilla is called this and the first characters of the artifact's key."""
    workspace: Name = "rlhf"
    """Argilla workspace of the project: its annotators see its rounds."""
    guidelines: str = Field(default=DEFAULT_GUIDELINES, min_length=1, max_length=MAX_GUIDELINES)
    """Markdown shown to the annotators; every judgement says under which version it was made."""
    markdown: bool = False
    """Render prompts and completions as Markdown. They are untrusted text."""
    source: Literal["people", "simulated"] = "people"
    """Who ranks."""
    people: tuple[Name, ...] = ("annotator-1", "annotator-2", "annotator-3")
    """Usernames of the people who rank; accounts are made where they are missing."""
    simulated: tuple[AnnotatorRecipe, ...] = (
        AnnotatorRecipe(name="sim-careful", noise=0.2),
        AnnotatorRecipe(name="sim-hasty", noise=0.4),
        AnnotatorRecipe(name="sim-careless", careless=True),
    )
    """Simulated annotators, who answer over the same endpoints as the web UI."""
    utility: Dotted | None = None
    """What simulated annotators value: a function of (row with `prompt` and `reference`, completion text) -> float."""
    min_submitted: int = Field(default=3, ge=1)
    """Annotators whose ranks a record needs."""
    records_completed: float = Field(default=1.0, gt=0, le=1)
    """Share of the records that must be done: ranked by `min_submitted` annotators, or answered by all there are."""

    @property
    def annotators(self) -> tuple[str, ...]:
        """Usernames of those who rank."""
        return tuple(each.name for each in self.simulated) if self.source == "simulated" else self.people

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.source == "simulated" and self.utility is None:
            raise ValueError(
                "'utility' is needed with source = \"simulated\"; name a function, package.module:function"
            )
        if len(set(self.annotators)) != len(self.annotators):
            raise ValueError(f"'{self.source}' names an annotator twice; give everybody a name of their own")
        if self.min_submitted > len(self.annotators):
            raise ValueError(
                f"'min_submitted' is {self.min_submitted} but '{self.source}' has {len(self.annotators)} annotators; "
                "lower it or add annotators"
            )
        return self


def collect_judgements(recipe: LabelRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Have the completions ranked and write `comparisons.jsonl`, `judgements.jsonl` and `guidelines.md`.

    Interrupted at any point and run again, it goes on: the dataset in Argilla is named after the artifact's key.
    Reads `ARGILLA_API_URL` and `ARGILLA_API_KEY` (an owner's). Raises `PipelineError` when Argilla cannot be reached.
    """
    rows = {row["id"]: row for row in read_jsonl(inputs["completions"] / "completions.jsonl")}
    try:
        comparisons = _comparisons(list(rows.values()), work.seed)
        judgements = _run_round(recipe, rows, comparisons, work)
    except LabelingError as error:
        raise PipelineError(str(error)) from error
    write_jsonl(work.out / "comparisons.jsonl", [comparison.row() for comparison in comparisons])
    write_jsonl(work.out / "judgements.jsonl", [judgement.row() for judgement in judgements])
    (work.out / "guidelines.md").write_text(recipe.guidelines, encoding="utf-8")
    _report(comparisons, judgements, work)


def _comparisons(rows: Sequence[Row], seed: int) -> list[Comparison]:
    """One comparison per prompt; prompts whose completions all say the same are not worth anybody's time."""
    comparisons = [
        compare(row["id"], row["prompt"], [Completion(each["id"], each["text"]) for each in row["completions"]], seed)
        for row in rows
        if len({completion["text"].strip() for completion in row["completions"]}) > 1
    ]
    if not comparisons:
        raise InputError("No prompt has two different completions to rank; sample more or at a higher temperature.")
    if len({len(comparison.completions) for comparison in comparisons}) > 1:
        raise InputError("Prompts have different numbers of completions; sample the same number for each.")
    return comparisons


def _run_round(
    recipe: LabelRecipe, rows: Mapping[str, Row], comparisons: Sequence[Comparison], work: Work
) -> list[Judgement]:
    url, key = _address()
    campaign = Round(
        name=f"{recipe.round}-{work.key[:8]}",
        workspace=recipe.workspace,
        guidelines=recipe.guidelines,
        options=len(comparisons[0].completions),
        min_submitted=recipe.min_submitted,
        markdown=recipe.markdown,
    )
    with closing(connect(url, key)) as client:
        dataset = argilla.publish(client, campaign, comparisons, lambda n, total: work.progress(n, total, "publishing"))
        passwords = _passwords(client, url, recipe)
        keys = create_annotators(client, recipe.workspace, recipe.annotators, passwords)
        if recipe.source == "simulated":
            before = sum(argilla.progress_of(client, dataset).answers.values())
            total = len(comparisons) * len(keys)
            _simulate(
                recipe, rows, url, keys, dataset, lambda n: work.progress(before + n, total, "ranking"), work.seed
            )
        else:
            work.notify(_invitation(url, campaign.name, recipe.people, passwords))
        _wait(recipe, client, dataset, campaign, comparisons, work)
        return argilla.fetch_judgements(client, dataset, campaign, comparisons, pseudonym)


def pseudonym(user_id: str) -> str:
    """What an annotator is called in artifacts: stable for one Argilla account, and it does not tell the name."""
    return f"annotator-{hashlib.sha256(user_id.encode()).hexdigest()[:8]}"


def _address() -> tuple[str, str]:
    for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"):
        if not os.environ.get(name):
            raise PipelineError(
                f"{name} is not set; start the local services with `rlhf up` or set it to your Argilla's."
            )
    return os.environ["ARGILLA_API_URL"], os.environ["ARGILLA_API_KEY"]


def _simulate(
    recipe: LabelRecipe,
    rows: Mapping[str, Row],
    url: str,
    keys: Mapping[str, str],
    dataset: str,
    progress: Callable[[int], None],
    seed: int,
) -> None:
    if recipe.utility is None:
        raise PipelineError("Simulated annotators need label.utility; name a function, package.module:function.")
    utility = resolve(recipe.utility)
    annotators = [(SimulatedAnnotator(**each.model_dump(), seed=seed), keys[each.name]) for each in recipe.simulated]
    answer_round(url, dataset, annotators, lambda record, text: utility(rows[record], text), progress)


def _wait(
    recipe: LabelRecipe,
    client: httpx.Client,
    dataset: str,
    campaign: Round,
    comparisons: Sequence[Comparison],
    work: Work,
) -> None:
    """Return when enough records are done, looking every two seconds and showing how far people are."""
    needed = math.ceil(recipe.records_completed * len(comparisons))
    fewest = min(recipe.min_submitted, len(recipe.annotators))
    checked, pause = -1, POLL_SECONDS
    while True:
        now = argilla.progress_of(client, dataset)
        answers = sum(now.answers.values())
        work.progress(now.completed, needed, f"{answers} answers by {len(now.answers)} annotators")
        if now.completed >= needed:
            return
        if answers >= needed * fewest and answers != checked:  # a record may be done although somebody discarded it
            started = time.monotonic()
            judgements = argilla.fetch_judgements(client, dataset, campaign, comparisons, pseudonym)
            if _done(judgements, recipe.min_submitted, len(recipe.annotators)) >= needed:
                return
            checked, pause = answers, max(POLL_SECONDS, 10 * (time.monotonic() - started))
        time.sleep(pause)


def _done(judgements: Sequence[Judgement], min_submitted: int, annotators: int) -> int:
    """Records that have enough ranks, or that every annotator has answered one way or the other."""
    submitted: dict[str, int] = {}
    answered: dict[str, int] = {}
    for judgement in judgements:
        answered[judgement.record] = answered.get(judgement.record, 0) + 1
        submitted[judgement.record] = submitted.get(judgement.record, 0) + (judgement.status == "submitted")
    return sum(submitted[name] >= min_submitted or answered[name] >= annotators for name in answered)


def _passwords(client: httpx.Client, url: str, recipe: LabelRecipe) -> dict[str, str]:
    """Passwords of the annotators by name, as far as they are known: made and kept before the accounts are."""
    folder = Path(os.environ.get("RLHF_HOME", ".rlhf")) / "credentials"
    path = folder / f"{recipe.workspace}.json"
    kept: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
    known = kept.setdefault(url.rstrip("/"), {})
    strangers = set(recipe.annotators) - usernames(client)
    if fresh := {name: secrets.token_urlsafe(12) for name in sorted(strangers - known.keys())}:
        known.update(fresh)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(kept, file, indent=1)
        partial.replace(path)
    return {name: known[name] for name in recipe.annotators if name in known}


def _invitation(url: str, dataset: str, people: Sequence[str], passwords: Mapping[str, str]) -> str:
    lines = [f"  {name}  {passwords.get(name, '(the password this account already has)')}" for name in people]
    return "\n".join([f"Waiting for people to rank dataset '{dataset}'. Sign in at {url} as:", *lines])


def _report(comparisons: Sequence[Comparison], judgements: Sequence[Judgement], work: Work) -> None:
    submitted = [judgement.ranks for judgement in judgements if judgement.ranks is not None]
    work.log(
        {
            "records": len(comparisons),
            "judgements": len(submitted),
            "discarded": len(judgements) - len(submitted),
            "annotators": len({judgement.annotator for judgement in judgements}),
            "judgements_with_ties": sum(len(set(ranks.values())) < len(ranks) for ranks in submitted),
            **agreement(judgements, seed=work.seed).figures(),
        }
    )
    work.table("judgements", judgement_rows(comparisons, judgements))
    work.table("annotators", annotator_rows(judgements))
