"""Rounds in a real Argilla: personal sheets, disputes, ratings and flags, edits of the guidelines, people who leave."""

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from labeling.collection.checks import gold_comparisons, repeats
from labeling.collection.rounds import Standing, advance, open_round, read_sheets, standing
from labeling.collection.sheets import Group, Plan
from labeling.collection.sufficiency import Enough
from labeling.comparison import CANNOT_JUDGE, OPTIONS, Comparison, Completion, LabelingError, compare
from labeling.question import Round, guidelines_version
from labeling.service.connection import connect, request

PASSWORD = "a long password"


@pytest.fixture
def client(argilla: dict[str, str]) -> Iterator[httpx.Client]:
    with closing(connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])) as client:
        yield client


def asked(count: int, completions: int = 2) -> list[Comparison]:
    prompt = [{"role": "user", "content": "Where is the bread?"}]
    return [
        compare(f"{n:04x}", prompt, [Completion(f"{n:04x}-{k}", f"Aisle {k}") for k in range(completions)], seed=1)
        for n in range(count)
    ]


def plan(comparisons: list[Comparison], people: int = 3, overlap: int = 2, **options: Any) -> Plan:
    mark = uuid.uuid4().hex[:6]
    questions = {name: options.pop(name) for name in ("criteria", "flags", "rationale") if name in options}
    shown = len(comparisons[0].completions)
    question = Round(f"round-{mark}", f"w-{mark}", "Best first.", options=shown, min_submitted=overlap, **questions)
    settings = {"sharing": "personal", "most": overlap, **options}
    names = tuple(f"{who}-{mark}" for who in ("ada", "ben", "cleo", "dan")[:people])
    return Plan(round=question, comparisons=tuple(comparisons), people=names, **settings)


def opened(client: httpx.Client, round: Plan) -> dict[str, str]:
    return open_round(client, round, dict.fromkeys(round.everybody, PASSWORD))


def answer(client: httpx.Client, key: str, round: Plan, best: Mapping[str, int], **values: Any) -> int:
    """Answer all that is pending for one person: the completion whose number `best` names first, else number 0."""
    found = 0
    with closing(connect(str(client.base_url), key)) as person:
        for dataset in request(person, "GET", "/api/v1/me/datasets")["items"]:
            if dataset["name"] != round.round.name:
                continue
            pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
            path = f"/api/v1/me/datasets/{dataset['id']}/records/search"
            search = {"query": {}, "filters": {"and": [pending]}}
            for item in request(person, "POST", path, params={"limit": 500}, json=search)["items"]:
                record, first = item["record"], best.get(item["record"]["external_id"], 0)
                ranks = [
                    {"value": option, "rank": 1 if record["fields"][option] == f"Aisle {first}" else 2}
                    for option in OPTIONS
                    if option in record["fields"]
                ]
                given = {"ranking": {"value": ranks}, **{name: {"value": value} for name, value in values.items()}}
                body = {"status": "submitted", "values": given}
                request(person, "POST", f"/api/v1/records/{record['id']}/responses", json=body)
                found += 1
    return found


def test_a_personal_round_runs_to_its_end(client: httpx.Client) -> None:
    """Quotas hold, the disputed record goes to the one who has not seen it, and only that one."""
    round = plan(asked(6), most=3)
    round = replace(round, quotas={round.people[0]: 3})
    keys = opened(client, round)
    first = standing(client, round)
    assert sum(first.given.values()) == 12 and first.given[round.people[0]] == 3
    assert first.missing == ("6 of 6 records",) and not first.judgements and first.seconds_left is None

    [sheet] = [sheet for sheet in read_sheets(client, round) if sheet.person == round.people[0]]
    disputed = min(sheet.ids)
    holders = {other.person for other in read_sheets(client, round) if disputed in other.ids}
    for name in round.people:
        answer(client, keys[name], round, {disputed: 1} if name == round.people[0] else {})
    now = standing(client, round)
    assert (now.done, now.started, now.records) == (5, 1, 6) and not now.sufficient
    assert advance(client, round, now) == 1
    [third] = set(round.people) - holders
    assert {s.person for s in read_sheets(client, round) if disputed in s.ids} == set(round.people)
    assert advance(client, round, standing(client, round)) == 0, "it waits for the third"
    assert answer(client, keys[third], round, {}) == 1
    end = standing(client, round)
    assert end.sufficient and end.done == 6 and len(end.judgements) == 13
    assert end.sentence == "The round is complete." and end.alpha is not None


def test_opening_again_and_after_an_interruption_doubles_nothing(client: httpx.Client) -> None:
    round = plan(asked(10))
    opened(client, round)
    before = {sheet.person: sheet.ids for sheet in read_sheets(client, round)}
    opened(client, round)
    assert {sheet.person: sheet.ids for sheet in read_sheets(client, round)} == before

    cut = plan(asked(10))

    def stop(done: int, total: int) -> None:
        if done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_round(client, cut, dict.fromkeys(cut.people, PASSWORD), stop)
    opened(client, cut)
    sheets = read_sheets(client, cut)
    assert sum(len(sheet.ids) for sheet in sheets) == 20
    assert all(sum(each.id in sheet.ids for sheet in sheets) == 2 for each in cut.comparisons)


def test_ratings_flags_and_rationales_come_back(client: httpx.Client) -> None:
    text = "<script>alert(1)</script> shorter"
    round = plan(asked(1), 1, 1, criteria=("helpful", "harm_free"), flags=("unsafe", CANNOT_JUDGE), rationale=True)
    keys = opened(client, round)
    values = {"helpful_a": 5, "harm_free_b": 2, "flags": ["unsafe"], "rationale": text}
    answer(client, keys[round.people[0]], round, {}, **values)
    [judgement] = standing(client, round).judgements
    [comparison] = round.comparisons
    assert judgement.ratings == {"harm_free": {comparison.shown[1]: 2}, "helpful": {comparison.shown[0]: 5}}
    assert judgement.flags == ("unsafe",) and judgement.rationale == text


def test_judgements_say_under_which_guidelines_they_were_made(client: httpx.Client) -> None:
    round = plan(asked(4), 1, 1, sharing="shared")
    keys = opened(client, round)
    with closing(connect(str(client.base_url), keys[round.people[0]])) as person:
        [dataset] = request(person, "GET", "/api/v1/me/datasets")["items"]
        records = request(client, "GET", f"/api/v1/datasets/{dataset['id']}/records")["items"]

        def judge(number: int) -> None:
            body = {
                "status": "submitted",
                "values": {"ranking": {"value": [{"value": o, "rank": 1} for o in OPTIONS[:2]]}},
            }
            request(person, "POST", f"/api/v1/records/{records[number]['id']}/responses", json=body)
            time.sleep(0.05)

        judge(0)
        edited = replace(round, round=replace(round.round, guidelines="Shortest first."))
        opened(client, edited)
        judge(1)
        opened(client, round)  # back again is a third version
        judge(2)
        opened(client, round)
        judge(3)
        assert request(person, "GET", f"/api/v1/datasets/{dataset['id']}")["guidelines"] == "Best first."
    made = {judgement.record: judgement.guidelines for judgement in standing(client, round).judgements}
    old, new = guidelines_version("Best first."), guidelines_version("Shortest first.")
    assert [made[record["external_id"]] for record in records] == [old, new, old, old]


def test_gold_and_repeats_reach_people_unseen(client: httpx.Client) -> None:
    comparisons = asked(8)
    gold = gold_comparisons([{"prompt": "2+2?", "completions": ["4", "5"], "ranks": [1, 2]}], 2, 1)
    round = plan([*comparisons, *gold, *repeats(comparisons, 0.25, 1)])
    keys = opened(client, round)
    now = standing(client, round)
    assert now.records == 8 and sum(now.given.values()) == 16 + 3 + 4
    with closing(connect(str(client.base_url), keys[round.people[0]])) as person:
        shown = request(person, "GET", "/api/v1/me/datasets")["items"][0]
        found = request(person, "POST", f"/api/v1/me/datasets/{shown['id']}/records/search", json={"query": {}})
        assert not any(word in str(found) for word in ("gold", "repeat", "expected", "asked"))
    for name in round.people:
        answer(client, keys[name], round, {})
    assert standing(client, round).sufficient


def test_who_leaves_keeps_what_was_judged_and_the_rest_goes_to_others(client: httpx.Client) -> None:
    round = plan(asked(6), people=4)
    keys = opened(client, round)
    leaver = round.people[0]
    gone = replace(round, people=round.people[1:])
    before = standing(client, round).given[leaver]
    assert before > 0
    answer(client, keys[leaver], round, {})
    kept = standing(client, gone)
    assert sum(judgement.annotator == leaver for judgement in kept.judgements) == before
    opened(client, gone)
    for name in gone.people:
        answer(client, keys[name], gone, {})
    end = standing(client, gone)
    assert end.sufficient and len(end.judgements) == 12

    silent = plan(asked(6), people=4)
    keys = opened(client, silent)
    gone = replace(silent, people=silent.people[1:])
    opened(client, gone)
    for name in gone.people:
        answer(client, keys[name], gone, {})
    end = standing(client, gone)
    assert (
        end.sufficient and len(end.judgements) == 12 and silent.people[0] not in {j.annotator for j in end.judgements}
    )


def test_only_whom_a_shared_round_lists_or_listed_counts(client: httpx.Client) -> None:
    round = plan(asked(4), people=4, sharing="shared")
    ada, ben, cleo, dan = round.people
    keys = opened(client, round)
    stranger = replace(round, round=replace(round.round, name=f"{round.round.name}-x"), people=(ben, cleo))
    opened(client, stranger)  # dan and ada are in the workspace, and were never listed here
    answer(client, keys[dan], stranger, {})
    now = standing(client, stranger)
    assert now.left_out == {dan: 4} and (now.done, now.started, now.judgements) == (0, 0, ()) and now.alpha is None
    assert now.answers == {ben: 0, cleo: 0}
    assert now.sentence == (
        f"The round lacks 4 of 4 records; 4 answers of '{dan}', who is not in label.people, are left out."
    )
    answer(client, keys[ben], stranger, {})
    opened(client, replace(stranger, people=(cleo, ada)))  # ben leaves and keeps what was judged
    now = standing(client, replace(stranger, people=(cleo, ada)))
    assert now.answers == {ada: 0, ben: 4, cleo: 0} and now.left_out == {dan: 4} and now.started == 4
    taken = standing(client, replace(stranger, people=(cleo, dan)))
    assert taken.sufficient and not taken.left_out and taken.sentence == "The round is complete."


def test_only_its_person_counts_in_a_personal_dataset(client: httpx.Client, argilla: dict[str, str]) -> None:
    round = plan(asked(2), people=1, overlap=1)
    keys = opened(client, round)
    assert answer(client, argilla["ARGILLA_API_KEY"], round, {}) == 2, "the owner answers, too"
    now = standing(client, round)
    assert now.done == 0 and list(now.left_out.values()) == [2]
    opened(client, round)
    [sheet] = read_sheets(client, round)
    for record in request(client, "GET", f"/api/v1/datasets/{sheet.dataset}/records?include=responses")["items"]:
        request(client, "DELETE", f"/api/v1/responses/{record['responses'][0]['id']}")
    answer(client, keys[round.people[0]], round, {})
    assert standing(client, round).sufficient and not standing(client, round).left_out


def test_a_single_flag_is_asked_for_and_comes_back(client: httpx.Client) -> None:
    round = plan(asked(3), 1, 1, flags=(CANNOT_JUDGE,), sharing="shared")
    keys = opened(client, round)
    [name] = round.people
    with closing(connect(str(client.base_url), keys[name])) as person:
        [dataset] = request(person, "GET", "/api/v1/me/datasets")["items"]
        shown = request(person, "GET", f"/api/v1/datasets/{dataset['id']}/questions")["items"]
        records = request(client, "GET", f"/api/v1/datasets/{dataset['id']}/records")["items"]
        [flags] = [question for question in shown if question["name"] == "flags"]
        options = [option["value"] for option in flags["settings"]["options"]]
        assert [option["text"] for option in flags["settings"]["options"]] == ["Cannot judge", "No"]
        ranks = {"ranking": {"value": [{"value": option, "rank": 1} for option in OPTIONS[:2]]}}
        for record, chosen in zip(records, (*options, None), strict=True):
            values = {**ranks, **({"flags": {"value": chosen}} if chosen else {})}
            body = {"status": "submitted", "values": values}
            request(person, "POST", f"/api/v1/records/{record['id']}/responses", json=body)
    made = {judgement.record: judgement.flags for judgement in standing(client, round).judgements}
    assert [made[record["external_id"]] for record in records] == [(CANNOT_JUDGE,), (), ()]


def test_a_round_past_a_deadline_that_fails_can_be_looked_at(client: httpx.Client) -> None:
    past = Enough(deadline=datetime(2026, 1, 1, tzinfo=UTC), at_deadline="fail")
    round = plan(asked(3), 1, 1, sharing="shared", enough=past)
    keys = opened(client, round)
    now = standing(client, round)
    assert now.records == 3 and not now.sufficient and now.missing == ("3 of 3 records",)
    assert now.sentence == now.overdue and "deadline has passed and it lacks 3 of 3 records" in now.overdue
    answer(client, keys[round.people[0]], round, {})
    assert standing(client, round).sufficient and not standing(client, round).overdue


def test_a_round_waits_for_agreement(client: httpx.Client) -> None:
    round = plan(asked(6), 2, enough=Enough(alpha_low=0.9))
    keys = opened(client, round)
    half = {each.id: 1 for each in round.comparisons[::2]}
    answer(client, keys[round.people[0]], round, half)
    answer(client, keys[round.people[1]], round, {})
    now: Standing = standing(client, round)
    assert now.done == 6 and not now.sufficient and "agreement" in now.sentence


def test_a_round_waits_for_its_strata(client: httpx.Client) -> None:
    law = [replace(each, stratum="law") for each in asked(6)[:2]]
    round = plan([*law, *asked(6)[2:]], 2, 1, enough=Enough(records=0.5, strata={"law": 2}))
    lawyer, other = round.people
    round = replace(round, groups=(Group((lawyer,), ("law",)), Group((other,), ("",))))
    keys = opened(client, round)
    assert answer(client, keys[other], round, {}) == 4
    half = standing(client, round)
    assert half.done == 4 and half.missing == ("2 of 2 records of stratum 'law'",)
    assert answer(client, keys[lawyer], round, {}) == 2
    assert standing(client, round).sufficient


def test_too_small_quotas_are_refused_before_anything_is_published(client: httpx.Client) -> None:
    round = plan(asked(6))
    with pytest.raises(LabelingError, match="raise quotas"):
        opened(client, replace(round, quotas=dict.fromkeys(round.people, 1)))
    assert read_sheets(client, round) == []
