"""The gate: the best surely winning candidate passes; what is worse, collapsed or unmeasured is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import PipelineError, Work
from tasks.evaluation.gate import GateRecipe, decide, decide_gate

NAN = float("nan")


def rates(mean: float, low: float, high: float = 0.99) -> dict[str, Any]:
    return {"judge": {"mean": mean, "low": low, "high": high}, "reward_model": {"mean": 0.9, "low": 0.9, "high": 0.9}}


def model(win_rate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "win_rate_vs_sft": win_rate,
        "win_rate_vs_champion": None,
        "checks": {"correct": {"mean": 0.6, "low": 0.5, "high": 0.7}},
        "kl_to_sft": 0.0,
        "length": 12.0,
        "distinct_2": 0.3,
        "finished": 0.98,
        "reward": 0.0,
        "utility": 1.0,
    }
    return figures | changes


def evaluation(**models: dict[str, Any]) -> dict[str, Any]:
    return {"baseline": "sft", "judge": "utility", "prompts": 72, "models": {"sft": model(), **models}}


def correct(mean: float) -> dict[str, Any]:
    return {"correct": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}


GOOD = model(rates(0.78, 0.72), checks=correct(0.85), kl_to_sft=6.0)


def test_the_candidate_that_wins_most_is_promoted() -> None:
    decision = decide(GateRecipe(), evaluation(dpo=GOOD, ppo=model(rates(0.8, 0.7))))
    assert (decision.promoted, decision.best) == (True, "ppo")
    assert decision.verdicts == {"dpo": [], "ppo": []}
    decision = decide(GateRecipe(), evaluation(dpo=GOOD, ppo=model(rates(0.7, 0.6))))
    assert decision.best == "dpo"
    assert decision.reason == ("dpo passed the gate: it wins 0.780 [0.720, 0.990] against SFT; correct 0.850; KL 6.0.")


def test_a_policy_that_pleases_the_judge_with_wrong_facts_is_refused() -> None:
    hacked = model(rates(0.9, 0.86), checks=correct(0.59))
    decision = decide(GateRecipe(), evaluation(grpo=hacked))
    assert not decision.promoted and decision.best == "grpo"
    assert decision.verdicts["grpo"] == ["correct, 0.590, is below 0.600 (SFT 0.600)"]
    assert decision.reason == "No candidate passed the gate (grpo: correct, 0.590, is below 0.600 (SFT 0.600))."
    assert decide(GateRecipe(check_tolerance=0.02), evaluation(grpo=hacked)).promoted
    better = decide(GateRecipe(), evaluation(grpo=hacked, dpo=GOOD))
    assert better.promoted and better.best == "dpo"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"win_rate_vs_sft": rates(0.55, 0.5)}, "its win rate against SFT, 0.550, has the lower bound 0.500, not over"),
        ({"win_rate_vs_sft": rates(NAN, NAN)}, "its win rate against SFT is missing or not a number"),
        ({"win_rate_vs_sft": None}, "its win rate against SFT is missing"),
        ({"distinct_2": 0.149}, "distinct-2, 0.149, is below 0.150 (SFT 0.300)"),
        ({"finished": 0.92}, "the finished share, 0.920, is below 0.930 (SFT 0.980)"),
        ({"length": 24.5}, "the mean length, 24.500, is over 24.000 (SFT 12.000)"),
        ({"length": 5.9}, "the mean length, 5.900, is below 6.000 (SFT 12.000)"),
        ({"kl_to_sft": 41.0}, "the KL to SFT, 41.000, is over 40.000"),
        ({"kl_to_sft": NAN}, "the KL to SFT is missing or not a number"),
        ({"kl_to_sft": None}, "the KL to SFT is missing or not a number"),
        ({"length": float("inf")}, "the mean length is missing or not a number"),
        ({"finished": True}, "the finished share is missing or not a number"),
        ({"checks": {}}, "correct is missing or not a number"),
        ({"checks": correct(NAN)}, "correct is missing or not a number"),
    ],
)
def test_every_refusal_gives_its_figures(change: dict[str, Any], reason: str) -> None:
    decision = decide(GateRecipe(), evaluation(dpo=GOOD | change))
    assert not decision.promoted
    assert len(decision.verdicts["dpo"]) == 1 and decision.verdicts["dpo"][0].startswith(reason)
    assert decision.reason.count("\n") == 0 and decision.verdicts["dpo"][0] in decision.reason


def test_a_missing_baseline_refuses_everything() -> None:
    without = evaluation(dpo=GOOD)
    del without["models"]["sft"]
    assert decide(GateRecipe(), without).verdicts["dpo"][0] == "correct is missing or not a number"


def test_where_there_is_a_champion_it_must_be_beaten() -> None:
    weak = GOOD | {"win_rate_vs_champion": rates(0.52, 0.46)}
    strong = model(rates(0.6, 0.54), win_rate_vs_champion=rates(0.64, 0.58))
    decision = decide(GateRecipe(), evaluation(weak=weak, strong=strong, champion=model(rates(0.7, 0.6))))
    assert decision.promoted and decision.best == "strong" and set(decision.verdicts) == {"weak", "strong"}
    assert decision.verdicts["weak"][0].startswith(
        "its win rate against the champion, 0.520, has the lower bound 0.460"
    )
    assert "and 0.640 [0.580, 0.990] against the champion" in decision.reason
    unmeasured = decide(GateRecipe(), evaluation(dpo=GOOD, champion=model()))
    assert unmeasured.verdicts["dpo"] == ["its win rate against the champion is missing or not a number"]


def test_without_candidates_nothing_is_promoted() -> None:
    decision = decide(GateRecipe(), evaluation())
    assert (decision.promoted, decision.best, decision.verdicts) == (False, None, {})


def test_the_stage_writes_the_decision(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    content = evaluation(dpo=GOOD, ppo=copy.deepcopy(GOOD) | {"finished": None})
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(content))
    work = Work(tmp_path / "out", tmp_path / "scratch")
    work.out.mkdir()
    decide_gate(GateRecipe(), {"evaluation": tmp_path / "evaluation"}, work)
    decision = json.loads((work.out / "decision.json").read_text())
    assert decision["promoted"] is True and decision["best"] == "dpo"
    assert decision["verdicts"] == {"dpo": [], "ppo": ["the finished share is missing or not a number"]}
    assert work.metrics == {"promoted": 1, "passed": 1}
    with pytest.raises(PipelineError, match="evaluate again"):
        decide_gate(GateRecipe(), {"evaluation": tmp_path}, work)
