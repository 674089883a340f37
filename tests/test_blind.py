"""Two models blind: the statistics by hand, the stages against a real Argilla, and what an annotator can see."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest

from labeling.blind import Tally, compare_blind, sign_test, vote
from labeling.collection.rounds import open_round, read_sheets
from labeling.comparison import CANNOT_JUDGE, Comparison, Completion, Judgement, LabelingError, compare
from labeling.service.connection import connect
from tasks.ai.recipe import AiRecipe, LocalJudge
from tasks.artifact import InputError, Row, read_jsonl, write_jsonl
from tasks.evaluation.gate import GateRecipe, decide, decide_gate, shortlisted
from tasks.labels.blind import BlindRecipe as Recipe
from tasks.labels.blind import PairsRecipe, VotesRecipe, blind_round, count_votes, sample_pairs
from tasks.labels.label import collect_judgements
from tasks.labels.recipe import AnnotatorRecipe, EnoughRecipe, LabelRecipe
from tasks.labels.round import plan_of
from tasks.models.pretrain import BaseRecipe, build_base
from tasks.recipe import identity
from tests.test_gate import GOOD, correct, evaluation, model, rates
from tests.test_label import signed_in, work_in

__all__ = ["signed_in"]


def pair(number: int) -> Comparison:
    completions = [Completion(f"{number}-{side}", f"{side}{number}") for side in "ab"]
    return compare(f"{number}", [{"role": "user", "content": "?"}], completions, seed=0)


SIDES: dict[str, Any] = {f"{number}-{side}": side for number in range(300) for side in "ab"}


def said(number: int, order: str, who: str = "ada", flags: tuple[str, ...] = ()) -> Judgement:
    """`a>b`, `b>a`, `a=b`, or `-` to discard."""
    ranks = None
    if order != "-":
        ranks = {f"{number}-a": 2 if order == "b>a" else 1, f"{number}-b": 2 if order == "a>b" else 1}
    status = "submitted" if ranks else "discarded"
    return Judgement(f"{number}/{who}", f"{number}", who, status, ranks, "v", "", "", flags=flags)


def test_the_sign_test_gives_published_and_hand_computed_values() -> None:
    assert sign_test(8, 2) == 112 / 1024 == 0.109375  # Zar, "Biostatistical Analysis", 1999: hind and forelegs of deer
    assert sign_test(9, 1) == sign_test(1, 9) == 2 * (1 + 10) / 1024
    assert sign_test(10, 0) == 2 / 1024
    assert sign_test(5, 5) == sign_test(0, 0) == sign_test(3, 4) == 1
    assert sign_test(14, 5) == pytest.approx(2 * (1 + 19 + 171 + 969 + 3876 + 11628) / 2**19, rel=1e-15)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (7, 3), (61, 39), (520, 480), (5200, 4700)])
def test_the_sign_test_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_a_win_rate_by_hand() -> None:
    """Three wins, one loss. Four draws of four: a mean of at most 1/4 has probability 13/256, of 0 has 1/256."""
    judgements = [said(0, "a>b"), said(1, "a>b"), said(2, "a>b"), said(3, "b>a")]
    result = compare_blind([pair(n) for n in range(4)], judgements, SIDES, samples=4000)
    assert (result.win_rate.value, result.win_rate.low, result.win_rate.high) == (0.75, 0.25, 1.0)
    assert (result.tally, result.tally.p_value) == (Tally(3, 0, 1), 10 / 16)
    assert (result.records, result.votes, result.unjudged, result.identical) == (4, 4, 0, 0)


def test_votes_of_one_record_are_averaged_and_records_count_once() -> None:
    judgements = [
        *(said(0, order, who) for order, who in (("a>b", "ada"), ("a>b", "ben"), ("b>a", "cleo"))),
        *(said(1, order, who) for order, who in (("a=b", "ada"), ("b>a", "ben"), ("-", "cleo"))),
        *(said(2, order, who) for order, who in (("a>b", "ada"), ("b>a", "ben"))),
        said(3, "a>b", flags=(CANNOT_JUDGE,)),
    ]
    result = compare_blind([pair(n) for n in range(4)], judgements, SIDES, identical=2)
    assert result.tally == Tally(1, 3, 1) and result.tally.p_value == 1
    assert result.win_rate.value == pytest.approx((2 / 3 + 1 / 4 + 1 / 2 + 2 * 1 / 2) / 5)
    assert (result.votes, result.unjudged, result.records) == (7, 1, 5)
    assert 0 < result.agreement["pairwise_agreement"] < 1


def test_ten_votes_for_each_record_are_not_ten_records() -> None:
    orders = ["a>b", "b>a", "a>b", "a>b", "b>a", "a=b"]
    one = [said(n, order) for n, order in enumerate(orders)]
    ten = [said(n, order, f"{who}") for n, order in enumerate(orders) for who in range(10)]
    pairs = [pair(n) for n in range(len(orders))]
    few, many = compare_blind(pairs, one, SIDES), compare_blind(pairs, ten, SIDES)
    assert few.win_rate == many.win_rate and few.tally == many.tally


def test_everybody_taking_the_first_is_position_and_no_preference() -> None:
    pairs = [pair(n) for n in range(200)]
    judgements = [said(n, "a>b" if each.shown[0].endswith("a") else "b>a") for n, each in enumerate(pairs)]
    result = compare_blind(pairs, judgements, SIDES)
    assert result.first == Tally(200, 0, 0) and result.first.p_value == 2 / 2**200
    assert result.win_rate.value == result.a_first / 200
    assert result.tally.p_value > 0.05


def test_sides_are_shuffled_evenly_and_the_same_each_time() -> None:
    first = sum(pair(n).shown[0].endswith("a") for n in range(300))
    assert sign_test(first, 300 - first) > 0.01
    assert pair(7).shown == pair(7).shown


def test_a_swapped_comparison_is_the_mirror_image() -> None:
    pairs = [pair(n) for n in range(4)]
    judgements = [said(0, "a>b"), said(1, "a=b"), said(2, "a>b"), said(3, "b>a")]
    swapped: dict[str, Any] = {name: "b" if side == "a" else "a" for name, side in SIDES.items()}
    there, back = (compare_blind(pairs, judgements, sides) for sides in (SIDES, swapped))
    assert back.win_rate.value == 1 - there.win_rate.value
    assert back.win_rate.low == pytest.approx(1 - there.win_rate.high)
    assert (back.tally.wins, back.tally.losses) == (there.tally.losses, there.tally.wins)
    assert back.first == there.first


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(LabelingError, match="has a vote; let annotators rank"):
        compare_blind([pair(0)], [said(0, "-")], SIDES)
    with pytest.raises(LabelingError, match="one completion of each model"):
        compare_blind([pair(0)], [said(0, "a>b")], {"0-a": "a", "0-b": "a"})
    assert compare_blind([], [], {}, identical=3).win_rate.value == 0.5
    assert vote(said(0, "a>b"), "0-a", "elsewhere") is None


# -- the stages -------------------------------------------------------------------------------------------------------


def length(row: Row, completion: str) -> float:
    """The hidden utility of these tests: longer is better."""
    return float(len(completion))


def pairs_folder(folder: Path, texts: Sequence[tuple[str, str]]) -> Path:
    rows = [
        {
            "id": f"{number:016x}",
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "reference": None,
            "completions": [
                {"id": f"{number:016x}-{side}", "side": side, "text": text, "tokens": 2, "finished": True}
                for side, text in zip("ab", both, strict=True)
            ],
        }
        for number, both in enumerate(texts)
    ]
    write_jsonl(folder / "completions.jsonl", rows)
    return folder


EXACT = tuple(AnnotatorRecipe(name=name, noise=0, tie_margin=0, discard_rate=0) for name in ("blind-ada", "blind-ben"))


def test_a_round_from_pairs_to_the_result_and_nothing_tells_the_models(
    signed_in: dict[str, str], tmp_path: Path
) -> None:
    """A is longer in 20 of 30, as long in 4, shorter in 2; 4 say the same."""
    texts = [("longer answer", "short")] * 20 + [("equal-1", "equal-2")] * 4 + [("tiny", "tinier")] * 2
    pairs = pairs_folder(tmp_path / "pairs", [*texts, *[("same", "same ")] * 4])
    recipe = LabelRecipe(
        source="simulated", utility="tests.test_blind:length", round="blind", simulated=EXACT, min_submitted=2
    )
    labeled = work_in(tmp_path / "label", "cafe")
    collect_judgements(recipe, {"completions": pairs}, labeled)
    counted = work_in(tmp_path / "count", "feed")
    count_votes(VotesRecipe(), {"pairs": pairs, "judgements": labeled.out}, counted)

    result = json.loads((counted.out / "result.json").read_text())
    assert result["sign_test"] == {"wins": 20, "ties": 8, "losses": 2, "p_value": sign_test(20, 2)}
    assert result["win_rate"]["mean"] == 24 / 30
    assert 0.5 < result["win_rate"]["low"] < 0.8 < result["win_rate"]["high"] < 1
    assert (result["records"], result["identical"], result["votes"]) == (30, 4, 52)
    assert result["agreement"]["pairwise_agreement"] == 1
    assert counted.metrics["wins"] == 20 and (counted.out / "report" / "completions.json").exists()
    _nothing_tells(signed_in, recipe, pairs)


def _nothing_tells(signed_in: dict[str, str], recipe: LabelRecipe, pairs: Path) -> None:
    """All that Argilla serves to an annotator: records, fields, metadata, suggestions, names of everything."""
    rows = read_jsonl(pairs / "completions.jsonl")
    plan = plan_of(recipe, rows, 5)
    with closing(connect(signed_in["ARGILLA_API_URL"], signed_in["ARGILLA_API_KEY"])) as owner:
        keys = open_round(owner, plan, {})
        [sheet] = read_sheets(owner, plan)
    served = ""
    with httpx.Client(base_url=signed_in["ARGILLA_API_URL"], headers={"X-Argilla-Api-Key": keys["blind-ada"]}) as ada:
        path = f"/api/v1/me/datasets/{sheet.dataset}"
        found = ada.post(
            f"{path}/records/search", params={"limit": 100, "include": "responses,suggestions"}, json={"query": {}}
        ).json()
        for record in (item["record"] for item in found["items"]):
            assert set(record["fields"]) == {"prompt", "response_a", "response_b"}
            assert not record["metadata"] and not record["suggestions"] and not record.get("vectors")
        assert len({item.pop("query_score", None) for item in found["items"]}) == 1, (
            "how well a search fits, not how good"
        )
        served += json.dumps(found)
        for address in (path, f"{path}/metadata-properties", f"/api/v1/datasets/{sheet.dataset}/questions"):
            served += ada.get(address).text
    assert len(found["items"]) == 26, "records on which the models said the same are asked of nobody"
    ids = [completion["id"] for row in rows for completion in row["completions"]]
    assert not [each for each in ids if each in served], "completion ids tell the side"
    for word in ("side", "model", "champion", "score", "reward", "sft", "dpo", "ppo", "merge", "candidate"):
        assert word not in served.lower(), word


def test_pairs_that_all_say_the_same_are_a_tie_without_anybody(tmp_path: Path) -> None:
    pairs = pairs_folder(tmp_path / "pairs", [("same", "same")] * 3)
    work = work_in(tmp_path / "count", "face")
    count_votes(VotesRecipe(), {"pairs": pairs}, work)
    assert work.metrics["win_rate"] == 0.5 and work.metrics["p_value"] == 1 and work.metrics["identical"] == 3
    with pytest.raises(InputError, match="let annotators rank"):
        count_votes(VotesRecipe(), {"pairs": pairs_folder(tmp_path / "p", [("a", "b")])}, work)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_base(BaseRecipe(documents=60, hidden=16, layers=1, epochs=1), {}, work_in(folder, "base"))
    return folder / "out"


def test_pairs_are_drawn_once_per_prompt_and_alike_again(base: Path, tmp_path: Path) -> None:
    prompts = [{"id": f"{n}", "prompt": [{"role": "user", "content": f"Item {n}?"}]} for n in range(9)]
    write_jsonl(tmp_path / "data" / "evaluation.jsonl", prompts)
    inputs = {"a": base, "b": base, "data": tmp_path / "data"}
    rows = []
    for name, n in (("one", 6), ("again", 6), ("more", 8)):
        work = work_in(tmp_path / name, name)
        sample_pairs(PairsRecipe(n=n, max_new_tokens=4), inputs, work)
        rows.append(read_jsonl(work.out / "completions.jsonl"))
    assert rows[0] == rows[1] and len(rows[0]) == 6
    assert {row["id"] for row in rows[0]} <= {row["id"] for row in rows[2]}, "more prompts hold the fewer"
    assert all([each["side"] for each in row["completions"]] == ["a", "b"] for row in rows[0])
    drawn = [[each["text"] for each in row["completions"]] for row in rows[0]]
    assert any(a != b for a, b in drawn), "one model against itself is sampled twice, independently"


def test_what_one_of_the_models_learnt_from_is_left_out(base: Path, tmp_path: Path) -> None:
    prompts = [{"id": f"{n}", "prompt": [{"role": "user", "content": f"Item {n}?"}]} for n in range(4)]
    write_jsonl(tmp_path / "data" / "evaluation.jsonl", prompts)
    splits = {"0": "sft", "1": "evaluation", "9": "rl"}
    write_jsonl(tmp_path / "other" / "ledger.jsonl", [{"id": id, "split": split} for id, split in splits.items()])
    inputs = {"a": base, "b": base, "b.data": tmp_path / "other", "data": tmp_path / "data"}
    work = work_in(tmp_path / "w", "fair")
    sample_pairs(PairsRecipe(max_new_tokens=2), inputs, work)
    assert [row["id"] for row in read_jsonl(work.out / "completions.jsonl")] == ["1", "2", "3"]
    assert work.metrics["left_out"] == 1
    write_jsonl(tmp_path / "other" / "ledger.jsonl", [{"id": row["id"], "split": "rl"} for row in prompts])
    with pytest.raises(InputError, match="learnt from every prompt"):
        sample_pairs(PairsRecipe(max_new_tokens=2), inputs, work_in(tmp_path / "x", "unfair"))


def test_a_prompt_that_is_too_long_is_not_told_as_learnt_from(base: Path, tmp_path: Path) -> None:
    asked = ["Item 1?", "Item 2? " * 400]
    prompts = [{"id": f"{n}", "prompt": [{"role": "user", "content": text}]} for n, text in enumerate(asked)]
    write_jsonl(tmp_path / "data" / "evaluation.jsonl", prompts)
    work = work_in(tmp_path / "w", "long")
    sample_pairs(PairsRecipe(max_new_tokens=2), {"a": base, "b": base, "data": tmp_path / "data"}, work)
    assert work.metrics["prompts"] == 1 and work.metrics["comparison_prompts_too_long"] == 1
    assert work.metrics["left_out"] == 0


def test_prompts_of_a_file_in_any_form(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    write_jsonl(file, [{"prompt": "Where?"}, {"instruction": "When?"}, {"prompt": "Where?"}])
    work = work_in(tmp_path / "w", "file")
    sample_pairs(PairsRecipe(prompts=file, max_new_tokens=2), {"a": base, "b": base}, work)
    rows = read_jsonl(work.out / "completions.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == ["Where?", "When?"]
    with pytest.raises(InputError, match="does not exist"):
        sample_pairs(PairsRecipe(prompts=tmp_path / "none.jsonl"), {"a": base, "b": base}, work)


def test_the_usual_round_is_taken_over_without_what_belongs_to_its_records() -> None:
    usual = LabelRecipe(people=("ada", "ben"), min_submitted=2, gold=Path("gold.jsonl"), guidelines="Best first.")
    usual = usual.model_copy(update={"enough": EnoughRecipe(strata={"law": 3})})
    taken = blind_round(Recipe(), usual)
    assert (taken.people, taken.min_submitted, taken.guidelines) == (("ada", "ben"), 2, "Best first.")
    assert (taken.round, taken.gold, taken.enough) == ("blind", None, EnoughRecipe())
    own = LabelRecipe(round="own")
    assert blind_round(Recipe(label=own), usual) is own
    judge = AiRecipe(use="ai_only", judge=LocalJudge(kind="local", model="sft"), unvalidated=True)
    helped = usual.model_copy(update={"ai": judge})
    assert blind_round(Recipe(), helped).ai is None, "people compare"
    with pytest.raises(ValidationError, match="which people make; remove it"):
        Recipe(label=own.model_copy(update={"ai": judge}))


# -- the gate ---------------------------------------------------------------------------------------------------------


def people(low: float, p_value: float = 0.001, mean: float = 0.7) -> dict[str, Any]:
    return {"win_rate": {"mean": mean, "low": low, "high": 0.9}, "sign_test": {"p_value": p_value}}


def test_a_gate_that_asks_nobody_is_the_gate_it_was() -> None:
    assert not [key for key in identity(GateRecipe())["values"] if "people" in key]
    assert not [key for key in identity(GateRecipe(people_p=0.5))["values"] if "people" in key]
    assert identity(GateRecipe(people="beside"))["values"]["people"] == "beside"
    found = evaluation(dpo=GOOD)
    assert decide(GateRecipe(), found, people(0.1)) == decide(GateRecipe(), found)
    assert shortlisted(GateRecipe(), found) is None


def test_beside_the_automatic_win_rates_people_have_a_veto() -> None:
    recipe, found = GateRecipe(people="beside"), evaluation(dpo=GOOD, ppo=model(rates(0.7, 0.6)))
    assert shortlisted(recipe, found) == "dpo"
    passed = decide(recipe, found, people(0.6))
    assert passed.promoted and passed.best == "dpo"
    assert passed.reason.endswith("KL 6.0; people prefer it to SFT in 0.700 [0.600, 0.900].")
    assert passed.verdicts == {"dpo": [], "ppo": ["people were asked about dpo, which wins more"]}
    refused = decide(recipe, found, people(0.5))
    assert (
        not refused.promoted and "dpo: people prefer it to SFT in 0.700, with the lower bound 0.500" in refused.reason
    )
    assert "the sign test's p is 0.06, over 0.05" in decide(recipe, found, people(0.6, 0.06)).reason
    assert "people have not compared it with SFT" in decide(recipe, found).reason
    losing = evaluation(dpo=model(rates(0.55, 0.5)))
    assert shortlisted(recipe, losing) is None and not decide(recipe, losing, people(0.6)).promoted


def test_instead_of_the_automatic_win_rates_people_decide_but_collapse_still_refuses() -> None:
    recipe = GateRecipe(people="instead")
    losing = evaluation(dpo=model(rates(0.4, 0.3)), ppo=model(None, finished=0.1))
    assert shortlisted(recipe, losing) == "dpo"
    decision = decide(recipe, losing, people(0.6))
    assert decision.promoted and decision.best == "dpo" and decision.verdicts["ppo"][0].startswith("the finished share")
    wrong = evaluation(grpo=model(rates(0.9, 0.86), checks=correct(0.5)))
    assert shortlisted(recipe, wrong) is None and not decide(recipe, wrong, people(0.9)).promoted
    against = evaluation(dpo=GOOD | {"win_rate_vs_champion": rates(0.4, 0.3)}, champion=model(rates(0.7, 0.6)))
    strict = GateRecipe(people="instead", min_win_rate_vs_champion=0.65)
    assert (
        "the champion in 0.700, with the lower bound 0.600, not over 0.65"
        in decide(strict, against, people(0.6)).reason
    )


def test_the_gate_stage_reads_the_blind_result(tmp_path: Path) -> None:
    for name, file, content in (
        ("evaluation", "evaluation.json", evaluation(dpo=GOOD)),
        ("blind", "result.json", people(0.6)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
    work = work_in(tmp_path / "w", "gate")
    inputs = {name: tmp_path / name for name in ("evaluation", "blind")}
    decide_gate(GateRecipe(people="instead"), inputs, work)
    assert json.loads((work.out / "decision.json").read_text())["promoted"]
    decide_gate(GateRecipe(people="instead"), {"evaluation": inputs["evaluation"]}, work)
    assert not json.loads((work.out / "decision.json").read_text())["promoted"]
