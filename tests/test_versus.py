"""`rlhf compare`: two models of a real lifecycle, judged blind in Argilla, recorded with lineage to both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.blind import ask_people
from flows.lifecycle import LABEL
from flows.running import Planning
from flows.versus import VersusRecipe, announcement, load_versus
from tasks.artifact import Artifact, Row
from tasks.evaluation.gate import GateRecipe
from tasks.labels.blind import BlindRecipe
from tasks.labels.recipe import LabelRecipe
from tasks.lineage import Record
from tasks.recipe import RecipeError
from tasks.store import Order, Store
from tests.lifecycle_runs import LOOSE, ROOT, TINY, built, rlhf, stages

COMPARE = (
    "import json, sys; from pathlib import Path; from flows.versus import compare, markdown\n"
    "a, b, recipe, prompts, *rest = sys.argv[1:]\n"
    "path = lambda text: Path(text) if text else None\n"
    "document = compare(a, b, path(recipe), path(prompts), rest)\n"
    "print(json.dumps(document | {'markdown': markdown(document)}))"
)
SIMULATED = ("label.source=simulated", "label.utility=tasks.data.shop:utility")


def compare(a: str, b: str, recipe: Path | None = None, prompts: Path | None = None, *rest: str) -> dict[str, Any]:
    """`flows.versus.compare` in a process of its own, as the verb runs it."""
    command = [sys.executable, "-c", COMPARE, a, b, str(recipe or ""), str(prompts or ""), *rest]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first(services: dict[str, str]) -> dict[str, Any]:
    """The document of a whole lifecycle."""
    return rlhf("run", TINY).document


@pytest.fixture(autouse=True)
def environment(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_models_are_compared_and_the_result_is_reused(first: dict[str, Any], rlhf_home: Path) -> None:
    dpo, sft = (stages(first)[name]["artifact"] for name in ("merge dpo", "sft"))
    document = compare(dpo[:12], sft[:12], TINY)
    assert set(stages(document)) == {"data", "pairs", "blind label", "blind"}
    assert built(document) == {"pairs", "blind label", "blind"}, "the recipe's data is reused"
    result = document["result"]
    rate = result["win_rate"]
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    prompts = (rlhf_home / "store" / stages(document)["data"]["artifact"] / "evaluation.jsonl").read_text().splitlines()
    assert result["records"] + result["unjudged"] == len(prompts) > 10
    assert document["a"]["artifact"] == dpo and document["b"]["artifact"] == sft and document["note"] == ""
    assert document["says"] in document["markdown"] and document["says"].startswith("People")
    again = compare(dpo[:12], sft[:12], TINY)
    assert built(again) == set() and again["result"] == result

    lineage = Record().artifacts()
    pairs = lineage[lineage[document["artifact"]]["inputs"]["pairs"]]
    assert pairs["inputs"]["a"] == dpo and pairs["inputs"]["b"] == sft
    assert lineage[pairs["inputs"]["b.base"]]["stage"] == "base", "an adapter is compared with what it builds on"
    run = Record().client.get_run(document["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["win_rate"] == rate["mean"]
    assert run.data.tags["rlhf.artifact.blind"] == document["artifact"]
    kept = (rlhf_home / "store" / document["artifact"] / "result.json").read_text()
    assert json.loads(kept) == result


@pytest.mark.slow
def test_prompts_of_a_file_and_no_recipe(first: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Which aisle has the {item}?"}) + "\n" for item in ("tea", "jam")))
    merged = stages(first)["merge ppo"]["artifact"]
    own = ("label.simulated=[{name='blind-one'}, {name='blind-two'}]", "label.min_submitted=2")
    anything = ("label.source=simulated", "label.utility=tests.test_blind:length")
    document = compare(merged, stages(first)["base"]["artifact"], None, file, *anything, *own)
    assert set(stages(document)) == {"pairs", "blind label", "blind"} and document["result"]["records"] == 2


@pytest.mark.slow
def test_without_a_recipe_the_prompts_are_those_behind_model_a(first: dict[str, Any]) -> None:
    dpo, ppo = (stages(first)[name]["artifact"] for name in ("merge dpo", "merge ppo"))
    document = compare(dpo, ppo, None, None, *SIMULATED, "blind.pairs.n=4")
    assert document["result"]["records"] + document["result"]["unjudged"] == 4


@pytest.mark.parametrize(
    ("model", "words"), [("reward", "not a language model"), ("nobody", "There is no model or artifact 'nobody'")]
)
@pytest.mark.slow
def test_what_is_no_model_is_one_sentence(first: dict[str, Any], model: str, words: str) -> None:
    named = stages(first)[model]["artifact"] if model in stages(first) else model
    with pytest.raises(AssertionError, match=words):
        compare(named, named, TINY)


@pytest.mark.slow
def test_a_model_is_not_compared_with_itself(first: dict[str, Any]) -> None:
    dpo = stages(first)["merge dpo"]["artifact"]
    ended = rlhf("compare", dpo[:12], dpo[:16], "--recipe", TINY)
    assert "are the same model" in ended.error and "building" not in ended.stderr


def test_a_comparison_says_first_whom_it_asks_and_about_how_much() -> None:
    assert announcement(load_versus()).startswith(
        "The comparison asks annotator-1, annotator-2, annotator-3: at most 100 prompts, each judged by 3."
    )
    own = load_versus(None, None, ["label.people=['ada', 'ben']", "label.min_submitted=2", "blind.pairs.n=7"])
    assert "asks ada, ben: at most 7 prompts, each judged by 2." in announcement(own)


def test_a_recipe_gives_what_a_comparison_needs_and_typing_errors_are_told() -> None:
    recipe = load_versus(TINY, Path("some file.jsonl"), ["blind.pairs.n=7", "seed=3"])
    assert recipe.blind.pairs.prompts == Path("some file.jsonl") and recipe.blind.pairs.n == 7
    assert recipe.label.min_submitted == 2 and recipe.seed == 3 and recipe.data is not None
    assert load_versus() == VersusRecipe()
    with pytest.raises(RecipeError, match="a comparison takes seed, data, blind, label"):
        load_versus(TINY, None, ["sft.epochs=2"])
    with pytest.raises(RecipeError, match=r"unknown key 'blind.pair'"):
        load_versus(TINY, None, ["blind.pair.n=2"])


@pytest.mark.parametrize("mode", ["no", "beside", "instead"])
@pytest.mark.slow
def test_a_lifecycle_asks_people_about_the_best_candidate_only_where_its_gate_does(
    first: dict[str, Any], rlhf_home: Path, mode: Any
) -> None:
    """As `flows.lifecycle` orders it: planned on what the run left, and before anything is there."""
    store = Store(rlhf_home, Record())
    found = {name: store.find(stages(first)[name]["artifact"]) for name in stages(first)}
    there = {name: artifact for name, artifact in found.items() if artifact}
    gate = GateRecipe(
        people=mode,
        min_win_rate=0,
        check_tolerance=1,
        max_finished_drop=1,
        min_distinct_2=0,
        max_length=99,
        min_length=0,
    )
    evaluated, absent = there["evaluate"], Artifact("", "evaluate", "", Path(), "", {})
    candidates = {name: there[f"merge {name}"] for name in ("dpo", "ppo")}

    def asked(evaluation: Artifact, gate: GateRecipe) -> tuple[dict[str, Artifact], list[str]]:
        planning = Planning(store)
        opponent = {"": there["sft"], "base": there["base"]}
        given = ask_people(
            planning,
            lambda stage, part, inputs, label="": Order(stage, part, inputs, 0, label),
            LABEL, gate, BlindRecipe(), LabelRecipe(), evaluation, candidates, opponent, there["data"],
        )  # fmt: skip
        return given, [name for name, _ in planning.steps]

    expected = [] if mode == "no" else ["pairs", "blind label", "blind"]
    for evaluation in (evaluated, absent):
        given, steps = asked(evaluation, gate)
        assert steps == expected and set(given) == ({"blind"} if expected else set())
    assert asked(evaluated, gate.model_copy(update={"max_kl": 1e-9}))[1] == [], "nobody is asked about a refused model"


def model_a(row: Row, text: str) -> float:
    """A hidden utility of people who always prefer the candidate."""
    return float(text in [each["text"] for each in row["completions"] if each["side"] == "a"])


def model_b(row: Row, text: str) -> float:
    """A hidden utility of people who always prefer what stands against the candidate."""
    return -model_a(row, text)


def asked(mode: str, utility: str, *changes: str) -> dict[str, Any]:
    """The document of a lifecycle whose gate asks simulated people with this utility."""
    crowd = "[{name='gate-ada', noise=0, discard_rate=0}, {name='gate-ben', noise=0, discard_rate=0}]"
    who = f"source='simulated', utility='tests.test_versus:{utility}', simulated={crowd}, min_submitted=2"
    own = (f"blind.label={{round='gate', {who}}}", f"gate.people={mode}", "name=asked")
    return rlhf("run", TINY, *(word for change in (*LOOSE, *own, *changes) for word in ("--set", change))).document


def gate_inputs(document: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Artifacts behind the decision as MLflow has them: the gate's inputs, and those of the pairs people compared."""
    found, named = Record().artifacts(), stages(document)
    gate = found[named["gate"]["artifact"]]["inputs"]
    blind = found[gate["blind"]]["inputs"]
    assert blind == {"pairs": named["pairs"]["artifact"], "judgements": named["blind label"]["artifact"]}
    return gate, found[blind["pairs"]]["inputs"]


@pytest.mark.slow
def test_people_let_the_champion_move_and_keep_it_still(first: dict[str, Any]) -> None:
    people = {"pairs", "blind label", "blind", "gate"}
    moved = asked("beside", "model_a")
    assert people - {"pairs"} <= built(moved) <= people, "the models are those of the first run"
    best = stages(moved)[f"merge {moved['best']}"]["artifact"]
    assert moved["promoted"] and moved["champion"] == {"name": "asked", "version": "1"}
    assert f"{moved['best']} passed the gate" in moved["reason"] and "people prefer it to SFT in" in moved["reason"]
    gate, pairs = gate_inputs(moved)
    assert gate == {
        name: stages(moved)[stage]["artifact"] for name, stage in (("blind", "blind"), ("evaluation", "evaluate"))
    }
    assert pairs["a"] == best and pairs["b"] == stages(moved)["sft"]["artifact"]
    assert built(asked("beside", "model_a")) == set(), "nobody is asked twice"

    still = asked("instead", "model_b", "policy.dpo.epochs=2", "policy.ppo.updates=1")
    assert people < built(still)
    assert not still["promoted"] and still["champion"] == {"name": "asked", "version": "1"}
    assert f"({still['best']}: people prefer it to the champion in" in still["reason"]
    [candidate] = [each for each in still["candidates"] if each["name"] == still["best"]]
    assert candidate["refused"] and candidate["refused"][0] in still["reason"]
    gate, pairs = gate_inputs(still)
    assert gate["blind"] == stages(still)["blind"]["artifact"]
    assert pairs["a"] == stages(still)[f"merge {still['best']}"]["artifact"] and pairs["b"] == best
