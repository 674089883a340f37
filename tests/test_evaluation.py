"""The evaluation stage on tiny models: its figures worked out again, KL against enumeration, resumption."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM, PreTrainedModel

from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.evaluation.divergence import completion_logprobs, kl_per_completion
from tasks.evaluation.evaluate import EvaluateRecipe, _unseen, evaluate_models
from tasks.evaluation.measure import compare
from tasks.models.adapters import LoraRecipe, PromptTuningRecipe, attach, save
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, positions, positions_of_chain
from tasks.sampling.local import generate
from tests.tiny_policies import ROWS, llama, save_reward, word_tokenizer

PROMPTS = [row | {"id": f"{place:016x}", "reference": {"place": place}} for place, row in enumerate(ROWS[:6])]
LENGTH = 6


def long_is_good(row: Row, completion: str) -> float:
    """A judge: more words are better."""
    return float(len(completion.split()))


def says_a(row: Row, completion: str) -> bool:
    """A check: the letter a is in it."""
    return "a" in completion


def no_number(row: Row, completion: str) -> float:
    """A broken judge."""
    return float("nan")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, sft (an adapter), reward, data, and two candidates: the SFT model merged, and another model."""
    root = tmp_path_factory.mktemp("artifacts")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(root / "base" / "tokenizer")
    llama().save_pretrained(root / "base" / "model")
    sft: Any = attach(llama(), LoraRecipe(rank=2))
    with torch.no_grad():
        for name, parameter in sft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    save(sft, root / "sft")
    save_merged(load_causal_lm([root / "base", root / "sft"]), root / "same")
    other = load_causal_lm([root / "base", root / "sft"])
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.7)  # type: ignore[union-attr]
    save_merged(other, root / "sharp")
    save_reward(root / "reward", tokenizer)
    write_jsonl(root / "data" / "evaluation.jsonl", PROMPTS)
    chain = {name: root / name for name in ("base", "sft", "reward", "data")}
    return chain | {"candidate.same": root / "same", "candidate.sharp": root / "sharp"}


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")


def build(folder: Path, inputs: dict[str, Path], **settings: Any) -> Work:
    work = Work(folder / "out", folder / "scratch", seed=1)
    work.out.mkdir(parents=True)
    work.scratch.mkdir(exist_ok=True)
    settings = {"samples_per_prompt": 3, "max_new_tokens": LENGTH, "bootstrap_samples": 200} | settings
    evaluate_models(EvaluateRecipe(**settings), inputs, work)
    return work


JUDGED = {"judge": "tests.test_evaluation:long_is_good", "checks": ("tests.test_evaluation:says_a",)}


def test_the_figures_follow_from_the_samples(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = build(tmp_path, inputs | {"champion": inputs["candidate.same"]}, **JUDGED)
    evaluation = json.loads((work.out / "evaluation.json").read_text())
    assert (evaluation["baseline"], evaluation["judge"], evaluation["prompts"]) == ("sft", "utility", 6)
    assert set(evaluation["models"]) == {"sft", "same", "sharp", "champion"}
    samples = read_jsonl(work.out / "samples.jsonl")
    by_model = {name: [row for row in samples if row["model"] == name] for name in evaluation["models"]}
    assert all([row["id"] for row in rows] == [row["id"] for row in PROMPTS] for rows in by_model.values())

    ours, theirs = by_model["sharp"], by_model["sft"]
    wins = [
        (a["utility"] > b["utility"]) + 0.5 * (a["utility"] == b["utility"])
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in product(mine["completions"], other["completions"])
    ]
    sharp = evaluation["models"]["sharp"]
    assert sharp["win_rate_vs_sft"]["judge"]["mean"] == pytest.approx(sum(wins) / len(wins), abs=1e-6)
    said = [completion for row in ours for completion in row["completions"]]
    assert len(said) == 18
    assert sharp["checks"]["says_a"]["mean"] == pytest.approx(sum("a" in c["text"] for c in said) / 18, abs=1e-6)
    assert sharp["length"] == pytest.approx(sum(c["tokens"] for c in said) / 18, abs=1e-6)
    assert sharp["finished"] == pytest.approx(sum(c["finished"] for c in said) / 18, abs=1e-6)
    assert sharp["kl_to_sft"] == pytest.approx(sum(c["kl"] for c in said) / 18, abs=1e-5)
    assert sharp["utility"] == pytest.approx(sum(len(c["text"].split()) for c in said) / 18, abs=1e-6)
    assert sharp["win_rate_vs_champion"]["judge"]["mean"] > 0
    assert evaluation["models"]["sft"]["win_rate_vs_sft"] is evaluation["models"]["sft"]["win_rate_vs_champion"] is None
    assert abs(evaluation["models"]["same"]["kl_to_sft"]) < 1e-5 < evaluation["models"]["sharp"]["kl_to_sft"]
    assert work.metrics["win_rate_mean/sharp"] == sharp["win_rate_vs_sft"]["judge"]["mean"]
    assert work.metrics["kl_to_sft/sharp"] == sharp["kl_to_sft"]

    report = work.out / "report"
    table = json.loads((report / "completions.json").read_text())
    assert table["columns"] == ["prompt", "sft", "same", "sharp", "champion"] and len(table["data"]) == 6
    assert {path.name for path in report.glob("*.png")} == {
        "win_rates.png", "kl_vs_win_rate.png", "reward_vs_utility.png", "best_of_n.png"
    }  # fmt: skip


def test_the_best_of_n_curve_is_there_with_a_judge(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = json.loads((build(tmp_path, inputs, **JUDGED, best_of=6).out / "evaluation.json").read_text())["best_of"]
    assert [row["n"] for row in found] == [1, 2, 4, 6]
    proxies = [row["proxy"] for row in found]
    assert proxies == sorted(proxies) and proxies[0] < proxies[-1]
    assert all(row["low"] <= row["truth"] <= row["high"] for row in found)
    for name, settings in (("none", {**JUDGED, "best_of": 0}), ("reward", {})):
        assert "best_of" not in json.loads(
            (build(tmp_path / name, inputs, **settings).out / "evaluation.json").read_text()
        )


def test_without_a_judge_the_reward_model_judges_and_equal_texts_tie(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = build(tmp_path, inputs)
    evaluation = json.loads((work.out / "evaluation.json").read_text())
    assert evaluation["judge"] == "reward_model"
    rates = evaluation["models"]["sharp"]["win_rate_vs_sft"]
    assert rates["judge"] == rates["reward_model"] and evaluation["models"]["sharp"]["utility"] is None
    for rows in zip(*_by_prompt(work).values(), strict=True):
        rewards: dict[tuple[str, bool], set[float]] = {}
        for completion in (completion for row in rows for completion in row["completions"]):
            rewards.setdefault((completion["text"], completion["finished"]), set()).add(completion["reward"])
        assert all(max(values) - min(values) < 1e-5 for values in rewards.values())


def _by_prompt(work: Work) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in read_jsonl(work.out / "samples.jsonl"):
        groups.setdefault(row["model"], []).append(row)
    return groups


def test_a_killed_evaluation_keeps_what_it_sampled(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tmp_path / "whole", inputs, **JUDGED)
    save_merged(llama(), tmp_path / "no weights")
    (tmp_path / "no weights" / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \.safetensors weights"):
        build(tmp_path / "killed", inputs | {"candidate.sharp": tmp_path / "no weights"}, **JUDGED)
    assert len(list((tmp_path / "killed" / "scratch").glob("*.jsonl"))) == 2
    (tmp_path / "killed" / "out").rmdir()
    sampled: list[str] = []

    def counting(*arguments: Any, **named: Any) -> Any:
        sampled.append("once")
        return generate(*arguments, **named)

    monkeypatch.setattr("tasks.sampling.local.generate", counting)
    resumed = build(tmp_path / "killed", inputs, **JUDGED)
    assert len(sampled) == 2, "the model that could not be loaded, and the best-of-n curve"
    for name in ("evaluation.json", "samples.jsonl"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_kl_is_the_sum_over_tokens_and_its_mean_is_the_divergence() -> None:
    policy, reference, tokenizer = llama(), llama(), word_tokenizer()
    policy.lm_head.weight.mul_(1.5)
    prompts = [[1, 5], [1, 6, 7]]
    groups = generate(policy, tokenizer, prompts, n=400, max_new_tokens=2, seed=0, batch_size=400)
    found = kl_per_completion(reference, prompts, groups, batch_tokens=64)
    for prompt, group, values in zip(prompts, groups, found, strict=True):
        exact = _divergence(policy, reference, prompt, int(tokenizer.eos_token_id))  # type: ignore[arg-type]
        spread = torch.tensor(values).std().item() / len(values) ** 0.5
        assert sum(values) / len(values) == pytest.approx(exact, abs=4 * spread)
        ids = [*prompt, *group[0].token_ids]
        theirs = torch.log_softmax(reference(torch.tensor([ids])).logits[0].float(), -1)
        summed = sum(theirs[len(prompt) + k - 1, token].item() for k, token in enumerate(group[0].token_ids))
        assert values[0] == pytest.approx(sum(group[0].logprobs) - summed, abs=1e-4)


def _divergence(policy: LlamaForCausalLM, reference: LlamaForCausalLM, prompt: list[int], eos: int) -> float:
    """KL over all completions of at most two tokens, by enumeration."""
    total = 0.0
    for first in range(policy.config.vocab_size):
        endings = [[first]] if first == eos else [[first, second] for second in range(policy.config.vocab_size)]
        rows = [[*prompt, *ending] for ending in endings]
        sizes = [len(ending) for ending in endings]
        ours, theirs = completion_logprobs(policy, rows, sizes), completion_logprobs(reference, rows, sizes)
        total += sum(torch.tensor(p).exp().item() * (p - q) for p, q in zip(ours, theirs, strict=True))
    return total


def completion(text: str, **figures: Any) -> Row:
    return {
        "text": text,
        "tokens": 2,
        "finished": True,
        "kl": 0.5,
        "reward": 0.0,
        "utility": 1.0,
        "checks": {},
    } | figures


def test_comparison_by_hand() -> None:
    samples = {
        "sft": [{"completions": [completion("a b", utility=0), completion("a b", utility=2)]}],
        "new": [{"completions": [completion("a c d", utility=1, reward=2, tokens=4), completion("a c", utility=2)]}],
    }
    new = compare(samples, "utility", [], 100, 0)["models"]["new"]
    # 1 v 0 win, 1 v 2 loss, 2 v 0 win, 2 v 2 tie; rewards: 2 wins of the first, 2 ties of the second
    assert new["win_rate_vs_sft"]["judge"]["mean"] == (1 + 0 + 1 + 0.5) / 4
    assert new["win_rate_vs_sft"]["reward_model"]["mean"] == (1 + 1 + 0.5 + 0.5) / 4
    assert (new["length"], new["utility"], new["reward"], new["kl_to_sft"]) == (3, 1.5, 1, 0.5)
    assert new["distinct_2"] == round(2 / 3, 6)  # "a c" twice, "c d"


def test_unusable_inputs_are_refused_in_one_sentence(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_number says nan"):
        build(tmp_path / "a", inputs, judge="tests.test_evaluation:no_number")
    with pytest.raises(InputError, match=r"shop:correct fails on row 0000000000000000 \(KeyError: 'kind'"):
        build(tmp_path / "e", inputs, checks=("tasks.data.shop:correct",))
    with pytest.raises(InputError, match="cannot be named 'sft'"):
        build(tmp_path / "b", inputs | {"candidate.sft": inputs["candidate.same"]})
    write_jsonl(tmp_path / "empty" / "evaluation.jsonl", [])
    with pytest.raises(InputError, match="no evaluation prompts"):
        build(tmp_path / "c", inputs | {"data": tmp_path / "empty"})
    broken = llama()
    with torch.no_grad():
        broken.get_output_embeddings().weight[0, 0] = torch.nan  # type: ignore[union-attr]
    save_merged(broken, tmp_path / "broken")
    with pytest.raises(PipelineError, match="weights of 'broken' are not all numbers"):
        build(tmp_path / "d", inputs | {"candidate.broken": tmp_path / "broken"})
    twice = ("tests.test_evaluation:says_a", "tests.test_evaluation:says_a")
    with pytest.raises(ValidationError, match="two checks have the same name"):
        EvaluateRecipe(checks=twice)


def test_a_prompt_one_model_has_no_room_for_is_asked_of_none(inputs: dict[str, Path], tmp_path: Path) -> None:
    short, tokenizer = llama(), word_tokenizer()
    short.config.max_position_embeddings = len(encode_prompt(tokenizer, ROWS[2]["prompt"])) + LENGTH
    save_merged(short, tmp_path / "short")
    work = build(tmp_path, inputs | {"candidate.short": tmp_path / "short"})
    rows = read_jsonl(work.out / "samples.jsonl")
    asked = {name: [row["reference"]["place"] for row in rows if row["model"] == name] for name in ("sft", "short")}
    assert asked == {"sft": [0, 1, 2, 5], "short": [0, 1, 2, 5]}
    assert work.metrics["evaluation_prompts_too_long"] == 2


def test_a_soft_prompt_takes_positions_of_a_chain(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert positions_of_chain([inputs["base"], inputs["sft"]]) == 64
    save(attach(llama(), PromptTuningRecipe(virtual_tokens=5)), tmp_path / "soft")
    assert positions_of_chain([inputs["base"], tmp_path / "soft"]) == 59
    assert positions(load_causal_lm([inputs["base"], tmp_path / "soft"])) == 59


def test_prompts_the_champion_learnt_from_do_not_count_against_it(tmp_path: Path) -> None:
    def rows(utilities: list[float]) -> list[dict[str, Any]]:
        scored = {"text": "t", "tokens": 1, "finished": True, "kl": 0.0, "reward": 0.0, "checks": {}}
        return [{"id": f"p{n}", "completions": [{**scored, "utility": each}]} for n, each in enumerate(utilities)]

    samples = {"sft": rows([0, 0, 0, 0]), "new": rows([1, 1, 1, 1]), "champion": rows([2, 2, 0, 0])}
    every = compare(samples, "utility", [], 100, 0)["models"]["new"]["win_rate_vs_champion"]["judge"]["mean"]
    fair = compare(samples, "utility", [], 100, 0, fair={"p2", "p3"})
    assert every == 0.5 and fair["prompts_vs_champion"] == 2
    assert fair["models"]["new"]["win_rate_vs_champion"]["judge"]["mean"] == 1.0
    assert fair["models"]["new"]["win_rate_vs_sft"]["judge"]["mean"] == 1.0

    write_jsonl(tmp_path / "ledger.jsonl", [{"id": "p0", "split": "rl"}, {"id": "p1", "split": "evaluation"}])
    seen = [{"id": "p0"}, {"id": "p1"}, {"id": "p2"}]
    assert _unseen({"champion_data": tmp_path}, seen) == {"p1", "p2"}
    with pytest.raises(InputError, match="learnt from every evaluation prompt"):
        _unseen({"champion_data": tmp_path}, seen[:1])
