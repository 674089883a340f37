"""Who judges what, without a server: overlap, quotas, groups, disputes, adjudicators, second looks."""

from collections import Counter
from typing import Any

import pytest

from labeling.collection.checks import gold_comparisons, repeats
from labeling.collection.sheets import Group, Plan, check_strata, done, follow_ups, share_out
from labeling.collection.sufficiency import Enough
from labeling.comparison import CANNOT_JUDGE, Comparison, Completion, Judgement, LabelingError, compare
from labeling.question import Round

PEOPLE = ("ada", "ben", "cleo", "dan")


def comparisons(count: int, stratum: str = "") -> list[Comparison]:
    prompt = [{"role": "user", "content": "?"}]
    return [
        compare(f"{stratum}{n}", prompt, [Completion(f"{n}-{k}", f"{k}") for k in range(3)], 1, stratum=stratum)
        for n in range(count)
    ]


def plan(asked: list[Comparison], overlap: int = 2, **options: Any) -> Plan:
    question = Round("r", "w", "Rank.", options=3, min_submitted=overlap)
    settings = {"people": PEOPLE, "sharing": "personal", "most": overlap, **options}
    return Plan(round=question, comparisons=tuple(asked), **settings)


def judge(record: str, who: str, order: str | None = "012", flags: tuple[str, ...] = ()) -> Judgement:
    """`order` names the completions best first; None discards."""
    number = record.lstrip("abcdefghijklmnopqrstuvwxyz")
    ranks = {f"{number}-{k}": place for place, k in enumerate(order, 1)} if order else None
    return Judgement(
        f"{record}/{who}", record, who, "submitted" if order else "discarded", ranks, "v", "", "", flags=flags
    )


def test_every_record_gets_its_overlap_evenly_and_nobody_twice() -> None:
    shares = share_out(plan(comparisons(50)), {})
    assert {len(ids) for ids in shares.values()} == {25}
    assert set(Counter(each for ids in shares.values() for each in ids).values()) == {2}
    assert all(len(set(ids)) == len(ids) for ids in shares.values())


def test_sharing_out_again_adds_only_what_is_missing() -> None:
    """An interrupted publish, and a person who left without an answer."""
    whole = plan(comparisons(20))
    shares = share_out(whole, {})
    cut = {"ada": set(shares["ada"]), "ben": set(shares["ben"][:3])}
    rest = share_out(whole, cut)
    total = Counter([each for ids in rest.values() for each in ids] + [e for ids in cut.values() for e in ids])
    assert set(total.values()) == {2}
    assert not set(rest["ada"]) & cut["ada"]
    assert share_out(whole, {name: set(ids) for name, ids in shares.items()}) == {name: [] for name in PEOPLE}


def test_quotas_hold_and_too_small_ones_are_refused() -> None:
    shares = share_out(plan(comparisons(20), quotas={"ada": 3}), {})
    assert len(shares["ada"]) == 3 and sum(map(len, shares.values())) == 40
    with pytest.raises(LabelingError, match="raise quotas, add people or lower the overlap"):
        share_out(plan(comparisons(20), quotas=dict.fromkeys(PEOPLE, 5)), {})


def test_groups_judge_their_strata_and_nobody_else_does() -> None:
    asked = [*comparisons(6, "law"), *comparisons(6, "med")]
    shares = share_out(plan(asked, groups=(Group(("ada", "ben"), ("law",)),)), {})
    assert {name for name, ids in shares.items() if any(each.startswith("law") for each in ids)} == {"ada", "ben"}


def test_gold_goes_to_everybody_and_repeats_to_those_who_had_the_record() -> None:
    asked = comparisons(12)
    gold = gold_comparisons([{"prompt": "2+2?", "completions": ["4", "5", "6"], "ranks": [1, 2, 2]}], 3, 1)
    again = repeats(asked, 0.25, 1)
    whole = plan([*asked, *gold, *again], quotas=dict.fromkeys(PEOPLE, 6))
    shares = share_out(whole, {})
    assert all(gold[0].id in ids for ids in shares.values())
    assert len(again) == 3
    for repeat in again:
        [original] = [each for each in asked if each.id == repeat.source]
        assert repeat.shown != original.shown and {c.id for c in repeat.completions} == {
            c.id for c in original.completions
        }
        assert {n for n, ids in shares.items() if repeat.id in ids} == {
            n for n, ids in shares.items() if original.id in ids
        }


def test_disputed_records_go_to_a_third_and_the_rest_do_not() -> None:
    whole = plan(comparisons(2), most=3)
    issued = {"ada": {"0", "1"}, "ben": {"0", "1"}}
    judgements = [judge("0", "ada"), judge("0", "ben"), judge("1", "ada"), judge("1", "ben", "210")]
    extra = follow_ups(whole, judgements, issued)
    [(third, ids)] = extra.items()
    assert third in ("cleo", "dan") and ids == ["1"]
    assert done(whole, judgements, issued) == ["0"]
    issued = {**issued, third: {"1"}}
    assert follow_ups(whole, judgements, issued) == {} and done(whole, judgements, issued) == ["0"], "it waits"
    judgements.append(judge("1", third, "201"))
    assert follow_ups(whole, judgements, issued) == {} and done(whole, judgements, issued) == ["0", "1"]


def test_disputed_records_go_on_to_five_and_no_further() -> None:
    people = (*PEOPLE, "eve", "finn")
    whole = plan(comparisons(1), people=people, most=5)
    issued: dict[str, set[str]] = {"ada": {"0"}, "ben": {"0"}}
    judgements = [judge("0", "ada"), judge("0", "ben", "210")]
    for turn in range(3):
        [(name, _)] = follow_ups(whole, judgements, issued).items()
        issued[name] = {"0"}
        judgements.append(judge("0", name, "012" if turn % 2 else "210"))
    assert follow_ups(whole, judgements, issued) == {} and done(whole, judgements, issued) == ["0"]
    assert len(judgements) == 5


def test_an_adjudicator_has_the_last_word() -> None:
    whole = plan(comparisons(1), most=5, adjudicators=("judy",))
    issued: dict[str, set[str]] = {"ada": {"0"}, "ben": {"0"}}
    judgements = [judge("0", "ada"), judge("0", "ben", "210")]
    assert follow_ups(whole, judgements, issued) == {"judy": ["0"]}
    issued["judy"] = {"0"}
    judgements.append(judge("0", "judy"))
    assert follow_ups(whole, judgements, issued) == {} and done(whole, judgements, issued) == ["0"]


@pytest.mark.parametrize("lost", [judge("0", "ben", None), judge("0", "ben", flags=(CANNOT_JUDGE,))])
def test_a_vote_that_is_missing_is_asked_of_somebody_else(lost: Judgement) -> None:
    whole = plan(comparisons(1), people=("ada", "ben", "cleo"))
    issued = {"ada": {"0"}, "ben": {"0"}}
    assert follow_ups(whole, [judge("0", "ada"), lost], issued) == {"cleo": ["0"]}
    everybody = {name: {"0"} for name in ("ada", "ben", "cleo")}
    judgements = [judge("0", "ada"), lost, judge("0", "cleo", None)]
    assert done(whole, judgements, everybody) == ["0"], "nobody is left to ask"


def test_a_shared_record_is_done_with_its_overlap_or_when_all_answered() -> None:
    whole = plan(comparisons(3), people=("ada", "ben"), sharing="shared")
    judgements = [judge("0", "ada"), judge("0", "ben"), judge("1", "ada"), judge("1", "ben", None), judge("2", "ada")]
    assert done(whole, judgements, {}) == ["0", "1"]
    left = [judge("2", "ada", None), judge("2", "who-left", None)]
    assert done(whole, left, {}) == [], "ben may still answer"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"groups": (Group(("ada",), ("nosuch",)),)}, r"'nosuch' in label\.groups; there are 'law' \(2\), 'med' \(1\)"),
        ({"enough": Enough(strata={"law": 3})}, r"asks for 3 records of stratum 'law'; there are 'law' \(2\)"),
        ({"enough": Enough(strata={"nosuch": 1})}, "asks for 1 records of stratum 'nosuch'"),
    ],
)
def test_strata_that_are_not_there_are_named(wanted: dict[str, Any], words: str) -> None:
    asked = [*comparisons(2, "law"), *comparisons(1, "med"), *comparisons(1)]
    with pytest.raises(LabelingError, match=words):
        check_strata(plan(asked, **wanted))
    with pytest.raises(LabelingError, match="the completions have no strata"):
        check_strata(plan(comparisons(4), **wanted))
    check_strata(plan(asked, groups=(Group(("ada",), ("law", "")),), enough=Enough(strata={"law": 2, "med": 1})))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "?", "completions": ["a", "b"], "ranks": [1, 2]}, "has 2 completions but the round shows 3"),
        ({"prompt": "?", "completions": ["a", "b", "c"], "ranks": [1, 2]}, "as many ranks"),
        ({"prompt": "?", "completions": ["a", "b", "c"], "ranks": ["1", "2", "3"]}, "as many ranks"),
        ({"prompt": "?", "completions": ["a", "b", "c"], "ranks": [1, 1, 1]}, "ties everything"),
        ({"prompt": [{"role": "user"}], "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}, "needs a prompt"),
        ({"completions": ["a", "b", "c"], "ranks": [1, 2, 3]}, "needs a prompt"),
    ],
)
def test_bad_gold_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(LabelingError, match=words):
        gold_comparisons([row], 3, 0)
