"""A round of labeling in Argilla: publish the completions, wait for the ranks, keep every judgement.

Judgements are facts from outside: the same recipe labeled again gives other ids and times, and people may answer
differently. Annotators stand in the artifact under a pseudonym made from Argilla's id of their account, never by name.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from labeling.collection.rounds import Standing, activity, advance, open_round, read_sheets
from labeling.collection.sheets import Plan
from labeling.collection.sufficiency import is_late
from labeling.comparison import Comparison, Judgement
from labeling.measures.agreement import agreement, agreement_by_annotator
from labeling.measures.effort import Budget
from labeling.quality.reliability import annotator_quality
from labeling.report.figures import annotator_heatmap
from labeling.report.findings import asked_of_people
from labeling.report.round_report import annotator_rows, judgement_rows, round_report
from labeling.report.writing import with_interval
from labeling.service.accounts import users_by_id
from labeling.service.argilla import progress_of
from labeling.simulated import SimulatedAnnotator, answer_round
from tasks.ai.round import conclude, more_for_people
from tasks.artifact import PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import Campaign, argilla, campaign_of, passwords
from tasks.recipe import ask_number

POLL_SECONDS = 2.0


def collect_judgements(recipe: LabelRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Have the completions ranked and write `comparisons.jsonl`, `judgements.jsonl` and `guidelines.md`.

    Interrupted at any point and run again, it goes on: the round in Argilla is named after its content.
    Reads `ARGILLA_API_URL` and `ARGILLA_API_KEY` (an owner's). Raises `PipelineError` when Argilla cannot be reached.
    """
    rows = read_jsonl(inputs["completions"] / "completions.jsonl")
    campaign = campaign_of(recipe, inputs, work.seed)
    plan, judgements, left_out = campaign.whole, [], 0
    if campaign.start.asked:
        with argilla() as client:
            ended = _run_round(recipe, rows, campaign, client, work)
            judgements, left_out = _signed(client, ended.judgements), sum(ended.left_out.values())
    if campaign.ai:
        judgements = conclude(campaign.ai, plan.comparisons, judgements, work)
    write_jsonl(work.out / "comparisons.jsonl", [comparison.row() for comparison in plan.comparisons])
    write_jsonl(work.out / "judgements.jsonl", [judgement.row() for judgement in judgements])
    (work.out / "guidelines.md").write_text(recipe.guidelines, encoding="utf-8")
    _report(plan.comparisons, judgements, _budget(inputs["completions"]), left_out, work)


def _budget(completions: Path) -> Budget | None:
    """What the selection of the completions says may be spent; None where they were not selected under a budget."""
    file = completions / "budget.json"
    return Budget(**json.loads(file.read_text())) if file.exists() else None


def _run_round(
    recipe: LabelRecipe, rows: Sequence[Row], campaign: Campaign, client: httpx.Client, work: Work
) -> Standing:
    """Open the round and return when it is enough; meanwhile disputed records go to further people.

    Counting reads every answer, so it is done when something happened in the round and when its deadline passes, and
    for at most a tenth of the time.
    """
    plan = campaign.start
    known = passwords(client, recipe)
    keys = open_round(client, plan, known, lambda done, total: work.progress(done, total, "publishing"))
    seen, pause = None, 0.0
    while True:
        if recipe.source == "simulated":
            _simulate(recipe, rows, plan, client, keys, work)
        else:
            time.sleep(pause)
        state = activity(client, plan), is_late(plan.enough, datetime.now(UTC))
        if state == seen and recipe.source == "people":
            pause = POLL_SECONDS
            continue
        started = time.monotonic()
        before, (plan, now) = plan, campaign.now(client, plan)
        if campaign.ai and len(plan.comparisons) > len(before.comparisons):
            work.notify(more_for_people(campaign.ai, before, plan, now.judgements))
        work.progress(now.done, now.records, now.sentence)
        work.show(standing_rows(now))
        if now.sufficient:
            return now
        if recipe.source == "people" and seen is None:  # a run that need not wait has nobody to tell passwords to
            work.notify(_invitation(plan, known, {s.person: s.dataset for s in read_sheets(client, plan)}))
        given = advance(client, plan, now) or plan != before
        if not given and recipe.source == "simulated":
            raise PipelineError(f"All simulated annotators have answered, but: {now.sentence} Lower label.enough.")
        seen, pause = state, max(POLL_SECONDS, 10 * (time.monotonic() - started))


def _signed(client: httpx.Client, judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements under pseudonyms instead of names."""
    signatures = {name: pseudonym(user) for user, name in users_by_id(client).items()}
    signed = [replace(each, annotator=signatures.get(each.annotator, each.annotator)) for each in judgements]
    return sorted(signed, key=lambda judgement: (judgement.record, judgement.annotator))


def pseudonym(user_id: str) -> str:
    """What an annotator is called in artifacts: stable for one Argilla account, and it does not tell the name."""
    return f"annotator-{hashlib.sha256(user_id.encode()).hexdigest()[:8]}"


def _simulate(
    recipe: LabelRecipe,
    rows: Sequence[Row],
    plan: Plan,
    client: httpx.Client,
    keys: Mapping[str, str],
    work: Work,
) -> None:
    """Every simulated annotator answers what is pending for them, all at the same time."""
    if recipe.utility is None:
        raise PipelineError("Simulated annotators need label.utility; name a function, package.module:function.")
    utility = recipe.utility
    sampled = {row["id"]: row for row in rows}
    asked = {each.id: sampled.get(each.source or each.id) or _gold_row(each) for each in plan.comparisons}
    crowd = [each for each in recipe.simulated if each.name in plan.people]
    annotators = {each.name: SimulatedAnnotator(**each.model_dump(), seed=work.seed) for each in crowd}
    before, total = 0, 0
    jobs: list[tuple[str, SimulatedAnnotator, str]] = []
    for sheet in read_sheets(client, plan):
        counts = progress_of(client, sheet.dataset)
        names = [sheet.person] if sheet.person else list(annotators)
        before += sum(counts.answers.values())
        total += counts.total * len(names)
        jobs += [(sheet.dataset, annotators[name], keys[name]) for name in names if name in annotators]
    answer_round(
        os.environ["ARGILLA_API_URL"],
        jobs,
        lambda record, text: ask_number(utility, asked[record], text),
        lambda answered: work.progress(before + answered, total, "ranking"),
    )


def _gold_row(comparison: Comparison) -> Row:
    """A gold comparison as a sampled row: what a utility may look at."""
    return {"id": comparison.id, "prompt": [dict(message) for message in comparison.prompt], "reference": None}


def standing_rows(now: Standing) -> list[dict[str, object]]:
    """The round person by person, as the live table shows it; narrow enough for 80 columns."""
    shares = agreement_by_annotator(now.judgements)
    rows: list[dict[str, object]] = [
        {
            "who": name,
            "answered": f"{count} of {now.given[name]}" if name in now.given else count,
            "agrees": f"{shares[name]:.0%}" if name in shares else "",
            "": "",
        }
        for name, count in now.answers.items()
    ]
    answered, given = sum(now.answers.values()), sum(now.given.values())
    whole = {"who": "all", "answered": f"{answered} of {given}" if given else answered, "agrees": ""}
    return [*rows, {**whole, "": "\n".join(_round_lines(now))}]


def _round_lines(now: Standing) -> Iterator[str]:
    yield f"{now.done} done, {now.started} in progress, {now.records} in all"
    if now.alpha is not None and not math.isnan(now.alpha.value):
        yield f"alpha {with_interval(now.alpha)}"
    if now.seconds_left is not None:
        yield f"{_long(now.seconds_left)} to go at this pace"
    yield from (f"lacks {clause}" for clause in now.missing)
    if now.sufficient:
        yield now.sentence
    else:
        yield from (*now.strangers, *filter(None, [now.overdue]))


def _long(seconds: float) -> str:
    """A time in the unit that people plan in."""
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def _invitation(plan: Plan, passwords: Mapping[str, str], datasets: Mapping[str | None, str]) -> str:
    unknown = "(the password this account already has)"
    url = os.environ["ARGILLA_API_URL"].rstrip("/")
    lines = [
        f"  {name}  {passwords.get(name, unknown)}" + (f"  {url}/dataset/{datasets[name]}" if name in datasets else "")
        for name in plan.everybody
    ]
    where = f"{url}/dataset/{datasets[None]}" if None in datasets else url
    return "\n".join([f"Waiting for people to rank dataset '{plan.round.name}'. Sign in at {where} as:", *lines])


def _report(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    budget: Budget | None,
    left_out: int,
    work: Work,
) -> None:
    people = asked_of_people(comparisons, judgements)
    submitted = [judgement.ranks for judgement in people if judgement.ranks is not None]
    work.log(
        {
            "records": sum(comparison.kind == "asked" for comparison in comparisons),
            "judgements": len(submitted),
            "discarded": len(people) - len(submitted),
            "checks": len(judgements) - len(people),
            "annotators": len({judgement.annotator for judgement in judgements}),
            "judgements_with_ties": sum(len(set(ranks.values())) < len(ranks) for ranks in submitted),
            **agreement(people, seed=work.seed).figures(),
        }
    )
    quality = [each.row() for each in annotator_quality(comparisons, judgements)]
    report = round_report(
        comparisons, judgements, quality_rows=quality, budget=budget, left_out=left_out, seed=work.seed
    )
    work.text("round", report)
    work.figure("annotators", annotator_heatmap(people))
    work.table("judgements", judgement_rows(comparisons, judgements))
    work.table("annotators", annotator_rows(people))
    work.table("quality", quality)
