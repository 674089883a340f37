"""Several heads: what they learn, how they are combined (by hand), and that a run refuses heads that are not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from flows.recipe import LifecycleRecipe
from tasks.artifact import InputError, Row, read_jsonl, write_jsonl
from tasks.models.adapters import FullRecipe, LoraRecipe
from tasks.recipe import RecipeError, load_recipe
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_heads import Heads, Scale, draws, of_criteria, of_ensemble
from tasks.training.reward_scoring import RewardScorer
from tasks.training.rewards import ModelReward
from tests.lifecycle_runs import TINY
from tests.tiny_models import work_in

LORA = LoraRecipe(rank=4)
HEADS = Heads(("overall", "honest", "short"))


def test_ensembles_by_hand() -> None:
    values = np.array([[[1.0, 2.0, 6.0]], [[4.0, 4.0, 4.0]]])
    assert of_ensemble(values, "mean", 1.0).tolist() == [[3.0], [4.0]]
    assert of_ensemble(values, "worst", 1.0).tolist() == [[1.0], [4.0]]
    # The variance of 1, 2, 6 is (4 + 1 + 9) / 3 = 14 / 3.
    assert of_ensemble(values, "uncertain", 0.5) == pytest.approx(np.array([[3 - 7 / 3], [4.0]]))


def test_criteria_by_hand() -> None:
    values = np.array([[1.0, -2.0, 3.0], [0.0, 2.0, -1.0]])
    assert of_criteria(values, HEADS, {}, "sum", {}, 5.0).tolist() == [1.0, 0.0]
    assert of_criteria(values, HEADS, {"overall": 2.0, "short": 0.5}, "sum", {}, 5.0).tolist() == [3.5, -0.5]
    assert of_criteria(values, HEADS, {"honest": 1.0, "short": 1.0}, "worst", {}, 5.0).tolist() == [-2.0, -1.0]
    assert of_criteria(values, HEADS, {}, "sum", {"honest": -1.0}, 5.0).tolist() == [-4.0, 0.0]
    with pytest.raises(InputError, match="no head for 'kind', only for overall, honest, short"):
        of_criteria(values, HEADS, {"kind": 1.0}, "sum", {}, 5.0)


def test_draws_are_a_bootstrap_of_prompts() -> None:
    assert draws("any", 1, 0) == [1.0]
    counts = np.array([draws(str(number), 4, 0) for number in range(4000)])
    assert counts.mean() == pytest.approx(1.0, abs=0.05) and counts.var() == pytest.approx(1.0, abs=0.1)
    assert (counts.sum(1) > 0).all() and draws("7", 4, 0) == draws("7", 4, 0) != draws("7", 4, 1)
    correlation = np.corrcoef(counts, rowvar=False)
    assert np.abs(correlation - np.eye(4)).max() < 0.1, "members draw each for themselves"


def test_a_scale_reads_what_it_wrote_and_what_one_head_wrote() -> None:
    values = np.random.default_rng(0).normal(2, 3, (50, 3, 2))
    scale = Scale.of(Heads(("overall", "a", "b"), 2), values)
    again = Scale.read(json.loads(json.dumps(scale.row())))
    assert again.heads == scale.heads
    assert again.normalised(values).mean(0) == pytest.approx(np.zeros((3, 2)), abs=1e-5)
    assert Scale.read({"mean": 1.0, "std": 0.0}).normalised(np.array([[[3.0]]])).tolist() == [[[2.0]]]


def rated(folder: Path, criterion: str) -> None:
    """Ratings that say the opposite of the rankings, for a head to learn apart."""
    for split in ("train", "validation"):
        rows: list[Row] = []
        for row in read_jsonl(folder / f"{split}.jsonl"):
            turned = {"chosen": row["rejected"], "rejected": row["chosen"], "criterion": criterion}
            rows.append({**row, **turned})
        write_jsonl(folder / f"rated_{split}.jsonl", rows)


@pytest.mark.parametrize("adapter", [LORA, FullRecipe()], ids=["lora", "full"])
def test_heads_learn_their_own_criterion_and_are_scored_as_saved(
    tmp_path: Path,
    chain: dict[str, Path],
    adapter: LoraRecipe | FullRecipe,
) -> None:
    rated(chain["preferences"], "contrary")
    work = work_in(tmp_path / "reward", seed=1)
    recipe = RewardRecipe(
        adapter=adapter, epochs=12, batch_size=4, learning_rate=3e-3, criteria=("contrary",), members=3
    )
    train_reward(recipe, chain, work)
    assert work.metrics["validation/accuracy"] > 0.9 and work.metrics["validation/contrary/accuracy"] > 0.9
    assert work.metrics["validation/members_std"] > 0
    table = json.loads((work.out / "report" / "heads.json").read_text())
    assert [row[:2] for row in table["data"]] == [[c, m] for c in ("overall", "contrary") for m in range(3)]

    rows = read_jsonl(chain["preferences"] / "validation.jsonl")
    prompts, whole = [row["prompt"] for row in rows], [True] * len(rows)
    scorer = RewardScorer(chain["base"], work.out)
    apart = [
        scorer.values(prompts, [row[side][0]["content"] for row in rows], whole) for side in ("chosen", "rejected")
    ]
    right = (apart[0] - apart[1] > 0).mean(0)
    assert right[0].min() > 0.8 and right[1].max() < 0.2
    texts = [row["chosen"][0]["content"] for row in rows]
    said = scorer.scale.normalised(apart[0])
    worst = scorer.normalised(prompts, texts, whole, ModelReward(ensemble="worst"))
    assert worst == pytest.approx(said[:, 0].min(-1), abs=1e-5)
    both = scorer.normalised(prompts, texts, whole, ModelReward(criteria={"overall": 1.0, "contrary": 0.5}))
    assert both == pytest.approx(said[:, 0].mean(-1) + 0.5 * said[:, 1].mean(-1), abs=1e-5)


def test_a_criterion_nobody_rated_is_one_sentence(tmp_path: Path, chain: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="No train preference is about 'kind'; rate it in the round"):
        train_reward(RewardRecipe(criteria=("kind",)), chain, work_in(tmp_path / "reward"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["reward.criteria=['kind']"], "'reward.criteria' has 'kind', which 'label.criteria' does not ask"),
        (["reward.criteria=['overall']"], "is the ranking's own head"),
        (["policy=[{method='ppo', rewards=[{kind='model', criteria={kind=1.0}}]}]"], "asks for 'kind', which"),
        (["policy=[{method='ppo', rewards=[{kind='model', ensemble='best'}]}]"], "ensemble"),
    ],
)
def test_heads_that_cannot_be_are_refused(changes: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(LifecycleRecipe, TINY, changes)
