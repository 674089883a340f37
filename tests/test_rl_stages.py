"""The sampling, PPO, GRPO, RLOO and rejection sampling stages on artifact folders as the lifecycle hands them over."""

import pytest
import torch
from pydantic import ValidationError

from flows.recipe import LifecycleRecipe
from tasks.artifact import InputError, Work, read_jsonl, write_jsonl
from tasks.models.adapters import LoraRecipe, attach, save
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.recipe import RecipeError, load_recipe
from tasks.sampling.beams import beam_search
from tasks.sampling.completions import SampleRecipe, sample_completions, summary
from tasks.sampling.local import generate
from tasks.training.grpo import GrpoRecipe, RlooRecipe, train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.rejection import RejectionRecipe, sample_best, train_rejection
from tests.lifecycle_runs import TINY
from tests.tiny_policies import ROWS, llama, save_reward, share_of_apples, word_tokenizer, work

GROUPS = {"updates": 3, "prompts": 4, "completions_per_prompt": 4, "micro_batch_size": 16, "max_new_tokens": 5}
REJECTION = RejectionRecipe(
    samples=24, keep=2, max_new_tokens=24, epochs=3, learning_rate=5e-3, likelihood_coefficient=0
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Artifacts base, sft (an adapter that is not nothing), reward and data."""
    root = tmp_path_factory.mktemp("artifacts")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(root / "base" / "tokenizer")
    llama().save_pretrained(root / "base" / "model")
    sft = attach(llama(), LoraRecipe(rank=2))
    with torch.no_grad():
        for name, parameter in sft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    save(sft, root / "sft")
    save_reward(root / "reward", tokenizer)
    rows = [row | {"id": f"{i:016x}", "reference": {"i": i}} for i, row in enumerate(ROWS)]
    write_jsonl(root / "data" / "reward_train.jsonl", rows[:5])
    write_jsonl(root / "data" / "reward_validation.jsonl", rows[5:7])
    write_jsonl(root / "data" / "rl.jsonl", rows[7:])
    return {name: root / name for name in ("base", "sft", "reward", "data")}


def test_sample_stage(inputs, tmp_path):
    here = work(tmp_path)
    recipe = SampleRecipe(completions_per_prompt=3, max_new_tokens=5)
    sample_completions(recipe, inputs, here)
    rows = read_jsonl(here.out / "completions.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 5 + ["validation"] * 2
    assert rows[6]["prompt"] == ROWS[6]["prompt"] and rows[6]["reference"] == {"i": 6}
    assert [c["id"] for c in rows[1]["completions"]] == [f"{1:016x}-{k}" for k in range(3)]
    assert all(c["finished"] or c["tokens"] == 5 for row in rows for c in row["completions"])
    assert here.metrics["completions"] == 21
    again = work(tmp_path, "again")
    sample_completions(recipe, inputs, again)
    assert (again.out / "completions.jsonl").read_bytes() == (here.out / "completions.jsonl").read_bytes()


@pytest.fixture
def cramped(inputs, tmp_path):
    """The inputs, on a base whose positions hold five new tokens after prompts of up to three words."""
    tokenizer, model = load_tokenizer(inputs["base"]), llama()
    model.config.max_position_embeddings = len(encode_prompt(tokenizer, ROWS[2]["prompt"])) + 5
    model.save_pretrained(tmp_path / "cramped" / "model")
    tokenizer.save_pretrained(tmp_path / "cramped" / "tokenizer")
    return inputs | {"base": tmp_path / "cramped"}


@pytest.fixture
def strict(inputs, tmp_path):
    """The inputs, on a base whose chat template refuses prompts of one word."""
    tokenizer = load_tokenizer(inputs["base"])
    word = ROWS[0]["prompt"][0]["content"]
    tokenizer.chat_template += (
        "{% if messages[0].content == '" + word + "' %}{{ raise_exception('Say more') }}{% endif %}"
    )
    llama().save_pretrained(tmp_path / "strict" / "model")
    tokenizer.save_pretrained(tmp_path / "strict" / "tokenizer")
    return inputs | {"base": tmp_path / "strict"}


def test_prompts_that_the_template_refuses_are_not_sampled_for(strict, tmp_path):
    here, told = work(tmp_path), []
    here.on_notify = told.append
    sample_completions(SampleRecipe(completions_per_prompt=3, max_new_tokens=5), strict, here)
    assert [row["reference"]["i"] for row in read_jsonl(here.out / "completions.jsonl")] == [1, 2, 3, 4, 6]
    assert here.metrics["reward_prompts_refused"] == 2 and "reward_prompts_too_long" not in here.metrics
    assert told[0] == (
        "The chat template refuses 2 of 7 reward prompts (the first: Say more), which are not used; mend them, or set "
        "another chat_template."
    )
    train_ppo(PpoRecipe(updates=1, episodes=8, max_new_tokens=5), strict, learnt := work(tmp_path, "ppo"))
    assert learnt.metrics["rl_prompts_refused"] == 1
    for name in ("reward_train", "reward_validation"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [ROWS[0]])
    with pytest.raises(InputError, match=r"refuses all 2 reward prompts \(the first: Say more\)"):
        sample_completions(SampleRecipe(), strict | {"data": tmp_path / "data"}, work(tmp_path, "none"))


def test_prompts_that_leave_no_room_are_not_sampled_for(cramped, tmp_path):
    here, told = work(tmp_path), []
    here.on_notify = told.append
    sample_completions(SampleRecipe(completions_per_prompt=3, max_new_tokens=5), cramped, here)
    rows = read_jsonl(here.out / "completions.jsonl")
    assert [row["reference"]["i"] for row in rows] == [0, 1, 2, 5, 6]
    assert here.metrics["reward_prompts_too_long"] == 2 and here.metrics["prompts"] == 5
    assert told[0].startswith("2 of 7 reward prompts (the longest has ") and "not used" in told[0]
    with pytest.raises(InputError, match=r"None of the 7 reward prompts .* leaves room for 9 tokens"):
        sample_completions(SampleRecipe(completions_per_prompt=3, max_new_tokens=9), cramped, work(tmp_path, "none"))


@pytest.mark.parametrize(
    ("train", "kind", "settings"),
    [
        (train_ppo, PpoRecipe, {"updates": 2, "episodes": 8}),
        (train_groups, GrpoRecipe, GROUPS),
        (train_rejection, RejectionRecipe, REJECTION.model_dump()),
    ],
)
def test_policies_leave_out_prompts_without_room(cramped, tmp_path, train, kind, settings):
    watch = {"every": 2, "prompts": 5}
    write_jsonl(tmp_path / "data" / "rl.jsonl", read_jsonl(cramped["data"] / "rl.jsonl"))
    write_jsonl(tmp_path / "data" / "reward_validation.jsonl", read_jsonl(cramped["data"] / "reward_train.jsonl"))
    here = work(tmp_path)
    given = cramped | {"data": tmp_path / "data"}
    recipe = kind.model_validate(settings | {"max_new_tokens": 5, "watch": watch})
    train(recipe, given, here)
    assert here.metrics["rl_prompts_too_long"] == 2 and here.metrics["watched_prompts_too_long"] == 2
    assert here.metrics["watch/win_rate"] >= 0


def test_beams_are_the_likeliest_that_differ(inputs, tmp_path):
    """The best beam is no less likely per token than the greedy completion; log-probabilities are the model's."""
    here = work(tmp_path)
    sample_completions(SampleRecipe(completions_per_prompt=3, max_new_tokens=5, strategy="beam"), inputs, here)
    rows = read_jsonl(here.out / "completions.jsonl")
    assert len(rows) == 7 and all(len({c["text"] for c in row["completions"]}) >= 2 for row in rows)
    assert all(c["finished"] or c["tokens"] == 5 for row in rows for c in row["completions"])
    model = load_causal_lm([inputs["base"], inputs["sft"]])
    tokenizer = load_tokenizer(inputs["base"])
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    beams = beam_search(model, tokenizer, prompts, n=3, max_new_tokens=5, batch_size=6)
    assert [[c.text for c in group] for group in beams] == [[c["text"] for c in row["completions"]] for row in rows]
    greedy = generate(model, tokenizer, prompts, max_new_tokens=5, greedy=True, seed=0)
    for prompt, group, [straight] in zip(prompts, beams, greedy, strict=True):
        assert (
            sum(group[0].logprobs) / len(group[0].token_ids) >= sum(straight.logprobs) / len(straight.token_ids) - 1e-4
        )
        for each in group:
            logits = model(input_ids=torch.tensor([prompt + each.token_ids])).logits[0, len(prompt) - 1 : -1]
            own = logits.log_softmax(-1).gather(-1, torch.tensor(each.token_ids).unsqueeze(-1)).squeeze(-1)
            assert own.tolist() == pytest.approx(each.logprobs, abs=1e-4)
    model.generation_config.repetition_penalty = 5.0  # as some models' folders ask for
    assert beam_search(model, tokenizer, prompts, n=3, max_new_tokens=5, batch_size=6) == beams
    assert model.generation_config.repetition_penalty == 5.0
    with pytest.raises(ValidationError, match="are for strategy 'sample'"):
        SampleRecipe(strategy="beam", temperature=0.7)


def test_beams_cannot_be_searched_for_in_several_rounds():
    with pytest.raises(RecipeError, match="a beam search finds the same again"):
        load_recipe(LifecycleRecipe, TINY, ["rounds=2", 'sample.strategy="beam"'])


def test_duplicates_are_kept_and_counted():
    completion = {"tokens": 2, "finished": True}
    rows = [
        {"completions": [completion | {"text": text} for text in ("a", "a", "b", "a")]},
        {"completions": [completion | {"text": text} for text in ("a", "b", "c", "d")]},
    ]
    assert summary(rows)["duplicate_share"] == pytest.approx(2 / 8)


def test_no_prompts_to_sample_for(inputs, tmp_path):
    for name in ("reward_train", "reward_validation"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [])
    with pytest.raises(InputError, match="no reward prompts"):
        sample_completions(SampleRecipe(), inputs | {"data": tmp_path / "data"}, work(tmp_path))


@pytest.mark.parametrize(
    "train, recipe",
    [
        (train_ppo, PpoRecipe(updates=3, episodes=16, max_new_tokens=5, learning_rate=5e-3)),
        (train_groups, GrpoRecipe.model_validate(GROUPS)),
        (train_groups, RlooRecipe.model_validate(GROUPS)),
    ],
)
def test_optimiser_stages(inputs, tmp_path, train, recipe):
    """Starts from base + sft (KL 0 to them), and its adapter loads on top of them as another policy."""
    logged = []
    here = work(tmp_path, on_log=lambda metrics, step: logged.append(metrics))
    train(recipe, inputs, here)
    assert logged[0]["kl_k3"] == pytest.approx(0, abs=1e-4) and len(logged) == 3
    chain = [inputs["base"], inputs["sft"]]
    tokens = torch.tensor([load_tokenizer(inputs["base"]).encode("apple pear plum")])
    with torch.no_grad():
        before, after = (load_causal_lm(c)(tokens).logits for c in (chain, [*chain, here.out]))
    assert not torch.allclose(before, after)
    again = work(tmp_path, "again")
    train(recipe, inputs, again)
    file = "adapter/adapter_model.safetensors"
    assert (again.out / file).read_bytes() == (here.out / file).read_bytes(), "a build repeats to the byte"


WATCHED = {
    "watch": {"every": 2, "keep": "best", "judge": "tests.tiny_policies:apples"},
    "rewards": [{"kind": "model"}, {"kind": "function", "function": "tests.tiny_policies:apples"}],
}


@pytest.mark.parametrize(
    "train, recipe",
    [
        (train_ppo, PpoRecipe.model_validate({"updates": 5, "episodes": 16, "max_new_tokens": 5} | WATCHED)),
        (train_groups, GrpoRecipe.model_validate(GROUPS | {"updates": 5} | WATCHED)),
        (train_groups, RlooRecipe.model_validate(GROUPS | {"updates": 5} | WATCHED)),
    ],
)
def test_watched_stages(inputs, tmp_path, train, recipe):
    """They look at prompts of the split `reward_validation`, and hand over the best policy they saw."""
    curves = []
    here = work(tmp_path, on_log=lambda metrics, step: curves.append((step, metrics)))
    train(recipe, inputs, here)
    rates = {step: metrics["watch/win_rate"] for step, metrics in curves if "watch/win_rate" in metrics}
    assert list(rates) == [0, 2, 4, 5] and rates.pop(0) == 0.5
    best = max(rates, key=lambda step: rates[step])
    assert here.metrics["best_update"] == best and here.metrics["watch/win_rate"] == rates[best]
    load_causal_lm([inputs["base"], inputs["sft"], here.out])
    write_jsonl(tmp_path / "data" / "rl.jsonl", read_jsonl(inputs["data"] / "rl.jsonl"))
    write_jsonl(tmp_path / "data" / "reward_validation.jsonl", [])
    with pytest.raises(InputError, match="no prompts to watch"):
        train(recipe, inputs | {"data": tmp_path / "data"}, work(tmp_path, "empty"))


def test_rejection_sampling_imitates_the_best_that_ended(inputs, tmp_path):
    here = work(tmp_path)
    seen: list[tuple[str, bool]] = []

    def score(prompts, completions, finished):
        seen.extend(zip(completions, finished, strict=True))
        return share_of_apples(prompts, completions, finished)

    prompts = [
        row | {"prompt": [{"role": "user", "content": text}]}
        for row, text in zip(ROWS[:2], ("apple", "fig"), strict=True)
    ]
    rows = sample_best(REJECTION, llama(), word_tokenizer(), prompts, score, here)
    assert len(seen) == 48
    for number, prompt in enumerate(prompts):
        group = seen[24 * number : 24 * number + 24]
        ended = {text.strip(): share_of_apples([], [text], [])[0] for text, finished in group if finished}
        mine = [row for row in rows if row["messages"][:-1] == prompt["prompt"]]
        assert [row["score"] for row in mine] == pytest.approx(sorted(ended.values(), reverse=True)[:2], abs=1e-4)
        assert all(ended[row["messages"][-1]["content"]] == pytest.approx(row["score"], abs=1e-4) for row in mine)
        scores = [share_of_apples([], [text], [])[0] for text, _ in group]
        assert all(row["mean_of_samples"] == pytest.approx(sum(scores) / 24, abs=1e-4) for row in mine)
    sure = REJECTION.model_copy(update={"likelihood_coefficient": 100.0})
    held = sample_best(sure, llama(), word_tokenizer(), prompts, score, here)
    assert [row["messages"] for row in held] != [row["messages"] for row in rows], "the surest, not the best scored"


def test_the_rejection_stage(inputs, tmp_path):
    here = work(tmp_path)
    train_rejection(REJECTION, inputs, here)
    rows = read_jsonl(here.out / "imitated.jsonl")
    assert rows and all(row["score"] >= row["mean_of_samples"] for row in rows if len(rows) > 1)
    assert here.metrics["imitated"] == len(rows) and here.metrics["sampled_score"] < here.metrics["imitated_score"]
    tokens = torch.tensor([load_tokenizer(inputs["base"]).encode("apple pear plum")])
    chain = [inputs["base"], inputs["sft"]]
    with torch.no_grad():
        before, after = (load_causal_lm(c)(tokens).logits for c in (chain, [*chain, here.out]))
    assert not torch.allclose(before, after)
    resumed = Work(out=tmp_path / "again", scratch=here.scratch)
    resumed.out.mkdir()
    train_rejection(REJECTION, inputs, resumed)
    sampled = ("sampled_score", "reward", "finished_share")
    assert all(resumed.metrics[name] == here.metrics[name] for name in sampled)
    (here.scratch / "imitated.jsonl").write_text("")
    with pytest.raises(InputError, match="raise the policy's max_new_tokens"):
        train_rejection(REJECTION, inputs, here)


def test_keeping_all_rejects_nothing():
    with pytest.raises(ValueError, match="nothing is rejected"):
        RejectionRecipe(samples=2, keep=2)
