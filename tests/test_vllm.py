"""vLLM as the engine, the real one: the same tokens as our own, the weights of every update, nothing left behind."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from tasks.artifact import InputError, PipelineError, Work, read_jsonl, write_jsonl
from tasks.evaluation.evaluate import EvaluateRecipe, evaluate_models
from tasks.models.adapters import DoraRecipe, FullRecipe, Ia3Recipe, LoraRecipe, attach
from tasks.models.pretrain_engine import new_llama
from tasks.sampling.completions import SampleRecipe, sample_completions
from tasks.sampling.engine import Engine, gap_to
from tasks.sampling.local import generate
from tasks.sampling.vllm_server import CONTROL, vllm_command
from tasks.training.grpo import GrpoRecipe, train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.rejection import RejectionRecipe, train_rejection
from tests.tiny_models import tiny_tokenizer, work_in
from tests.tiny_policies import save_reward

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(shlex.split(os.environ.get("RLHF_VLLM") or "vllm")[0]) is None,
        reason="no vLLM is installed (make vllm runs these)",
    ),
]
PROMPTS = [[1, 5, 9], [1, 40], [1, 7, 8, 33, 60, 61, 62], [1, 100, 101]] * 3
ROUNDING = 1e-4


def small_llama(seed: int = 0) -> Any:
    """Heads of 32, the least that vLLM's kernels for a CPU take."""
    return new_llama(tiny_tokenizer(), seed, hidden=64, layers=2, heads=2, positions=128).eval()


def starts(work: Work) -> int:
    return (work.scratch / "vllm" / "vllm.log").read_text().count("Starting vLLM server")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Work]]:
    """One server for the tests that only ask it."""
    work = work_in(tmp_path_factory.mktemp("vllm"))
    with Engine("vllm", work) as engine:
        yield engine, work


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """base, a whole SFT model, reward and data."""
    root = tmp_path_factory.mktemp("artifacts")
    tokenizer.save_pretrained(root / "base" / "tokenizer")
    small_llama(0).save_pretrained(root / "base" / "model")
    small_llama(1).save_pretrained(root / "sft" / "model")
    tokenizer.save_pretrained(root / "sft" / "model")
    small_llama(2).save_pretrained(root / "other" / "model")
    tokenizer.save_pretrained(root / "other" / "model")
    save_reward(root / "reward", tokenizer)
    rows = [
        {"id": f"{n:016x}", "prompt": [{"role": "user", "content": "Where is it?" + n * " Here"}], "reference": None}
        for n in range(8)
    ]
    for name in ("reward_train", "reward_validation", "rl", "evaluation"):
        write_jsonl(root / "data" / f"{name}.jsonl", rows)
    return {name: root / name for name in ("base", "sft", "reward", "data", "other")}


def test_greedy_tokens_are_ours(running: tuple[Engine, Work], tokenizer: Any) -> None:
    engine, work = running
    asked: dict[str, Any] = {"max_new_tokens": 24, "greedy": True, "seed": 0}
    for seed in (0, 1):  # the second model's weights are loaded into the running server
        model = small_llama(seed)
        theirs, ours = (draw(model, tokenizer, PROMPTS, **asked) for draw in (engine.generate, generate))
        assert [[c.token_ids for c in group] for group in theirs] == [[c.token_ids for c in group] for group in ours]
        for [their], [our] in zip(theirs, ours, strict=True):
            assert their.logprobs == pytest.approx(our.logprobs, abs=ROUNDING)
            assert (their.text, their.finished) == (our.text, our.finished)
    assert work.metrics["engine_logprob_gap"] < ROUNDING
    assert starts(work) == 1


def test_it_draws_at_random_from_the_same_distribution(running: tuple[Engine, Work], tokenizer: Any) -> None:
    """Of one token, by its frequency; what the log-probabilities are of does not depend on temperature and top_p."""
    engine, _ = running
    model = small_llama(0)
    asked: dict[str, Any] = {"n": 1000, "max_new_tokens": 1, "temperature": 0.5, "top_p": 0.6, "batch_size": 64}
    [theirs] = engine.generate(model, tokenizer, [[1, 5, 9]], seed=1, **asked)
    [again] = engine.generate(model, tokenizer, [[1, 5, 9]], seed=1, **asked)
    assert [c.token_ids for c in theirs] == [c.token_ids for c in again], "repeatable"
    with torch.no_grad():
        logits = model(torch.tensor([[1, 5, 9]])).logits[0, -1].float()
    sharp, order = torch.softmax(logits / 0.5, -1).sort(descending=True)
    sharp[sharp.cumsum(-1) - sharp >= 0.6] = 0
    wanted = torch.zeros_like(logits).scatter(0, order, sharp / sharp.sum())
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in theirs]), minlength=len(wanted)) / 1000
    assert not seen[wanted == 0].any(), "nothing outside the nucleus"
    spread = (wanted * (1 - wanted) / 1000).sqrt()
    assert ((seen - wanted).abs() <= 5 * spread + 1e-9).all()
    own = torch.log_softmax(logits, -1)
    assert all(c.logprobs == pytest.approx([float(own[c.token_ids[0]])], abs=ROUNDING) for c in theirs)


def test_completions_end_at_eos(running: tuple[Engine, Work], tokenizer: Any) -> None:
    engine, _ = running
    model = small_llama(0)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 12  # random, but often the likeliest
    groups = engine.generate(model, tokenizer, PROMPTS, n=4, max_new_tokens=24, seed=2)
    every = [each for group in groups for each in group]
    assert all(each.finished == (each.token_ids[-1] == tokenizer.eos_token_id) for each in every)
    assert all(tokenizer.eos_token_id not in each.token_ids[:-1] for each in every)
    assert all(each.finished or len(each.token_ids) == 24 for each in every)
    assert len({each.finished for each in every}) == 2, "the test needs both"


@pytest.mark.parametrize("adapter", [DoraRecipe(rank=4), Ia3Recipe(), LoraRecipe(rank=4, ranks={"q_proj": 2})])
def test_adapters_that_are_not_plain_lora_are_merged(
    running: tuple[Engine, Work], tokenizer: Any, adapter: Any
) -> None:
    engine, work = running
    policy = attach(small_llama(0), adapter)
    with torch.no_grad():
        for parameter in (each for each in policy.parameters() if each.requires_grad):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    groups = engine.generate(policy, tokenizer, PROMPTS, max_new_tokens=8, seed=0)
    assert gap_to(policy, PROMPTS, groups) < ROUNDING, "the model's own, which is left as it was"
    assert gap_to(small_llama(0), PROMPTS, groups) > 100 * ROUNDING
    assert starts(work) == 1


def test_candidates_and_evaluation(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = work_in(tmp_path / "sample")
    sample_completions(SampleRecipe(completions_per_prompt=3, max_new_tokens=6, engine="vllm"), inputs, work)
    rows = read_jsonl(work.out / "completions.jsonl")
    assert len(rows) == 16 and all(len(row["completions"]) == 3 for row in rows)
    assert work.metrics["engine_logprob_gap"] < ROUNDING
    work = work_in(tmp_path / "evaluate")
    recipe = EvaluateRecipe(samples_per_prompt=2, max_new_tokens=6, bootstrap_samples=100, engine="vllm")
    evaluate_models(recipe, inputs | {"candidate.other": inputs["other"]}, work)
    found = json.loads((work.out / "evaluation.json").read_text())["models"]
    assert found["sft"]["kl_to_sft"] == pytest.approx(0, abs=1e-3) and found["other"]["kl_to_sft"] > 0.1
    assert work.metrics["engine_logprob_gap"] < ROUNDING
    assert starts(work) == 1 and not list((work.scratch / "vllm").glob("*-*")), "the weights do not stay"


def test_rejection_sampling(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = work_in(tmp_path)
    recipe = RejectionRecipe(samples=64, keep=1, max_new_tokens=40, epochs=1, engine="vllm", decode_batch_size=256)
    train_rejection(recipe, inputs, work)
    assert work.metrics["imitated"] > 0 and work.metrics["engine_logprob_gap"] < ROUNDING


@pytest.mark.parametrize("adapter", [LoraRecipe(rank=4), FullRecipe()])
def test_ppo_learns_from_rollouts_of_its_own_weights(inputs: dict[str, Path], tmp_path: Path, adapter: Any) -> None:
    work = work_in(tmp_path)
    recipe = PpoRecipe(
        adapter=adapter, updates=4, episodes=16, max_new_tokens=8, learning_rate=2e-2, engine="vllm",
        likelihood_coefficient=0.0, kl_coefficient=0.0,
    )  # fmt: skip
    train_ppo(recipe, inputs, work)
    assert work.metrics["engine_logprob_gap"] < ROUNDING, "of the weights of each update"
    assert work.metrics["kl_k3"] > 100 * ROUNDING, "which are not those of the start"
    assert starts(work) == 1


def test_grpo(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = work_in(tmp_path)
    recipe = GrpoRecipe(
        updates=3, prompts=4, completions_per_prompt=4, micro_batch_size=16, max_new_tokens=8, engine="vllm",
        likelihood_coefficient=0.0, learning_rate=2e-2, adapter=LoraRecipe(rank=4),
    )  # fmt: skip
    train_groups(recipe, inputs, work)
    assert work.metrics["engine_logprob_gap"] < ROUNDING and work.metrics["kl_k3"] > 100 * ROUNDING
    assert starts(work) == 1


def test_a_server_that_runs_already(
    inputs: dict[str, Path], tokenizer: Any, tmp_path: Path, free_port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    line = [*vllm_command(), "serve", str(inputs["sft"] / "model"), "--host", "127.0.0.1", "--port", url.split(":")[2]]
    line += ["--api-key", "secret", "--dtype", "float32", "--max-model-len", "64", "--enforce-eager", "--enable-lora"]
    line += ["--kv-cache-memory-bytes", str(2**28)]
    monkeypatch.setenv("RLHF_VLLM_URL", url)
    monkeypatch.setenv("RLHF_VLLM", "/nowhere/vllm")  # not needed now
    asked: dict[str, Any] = {"max_new_tokens": 12, "greedy": True, "seed": 0}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(line, env=os.environ | CONTROL, stdout=log, stderr=log)
    try:
        while server.poll() is None:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(1)
        policy = attach(small_llama(0), LoraRecipe(rank=4))
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        with Engine("vllm", work_in(tmp_path / "none")) as engine, pytest.raises(PipelineError, match="HTTP 401"):
            engine.generate(policy, tokenizer, PROMPTS, **asked)
        monkeypatch.setenv("RLHF_VLLM_API_KEY", "secret")
        work = work_in(tmp_path / "work")
        with Engine("vllm", work) as engine:
            for model in (small_llama(0), small_llama(2), policy):
                theirs, ours = (draw(model, tokenizer, PROMPTS, **asked) for draw in (engine.generate, generate))
                assert [c.token_ids for [c] in theirs] == [c.token_ids for [c] in ours]
            with pytest.raises(InputError, match="start it with a larger --max-model-len"):
                engine.generate(policy, tokenizer, PROMPTS, seed=0, max_new_tokens=100)
        assert work.metrics["engine_logprob_gap"] < ROUNDING
        assert server.poll() is None, "it is not ours to end"
    finally:
        server.terminate()
        server.wait()


def test_a_killed_worker_leaves_no_server(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; import sys, time\n"
        "from tests.test_vllm import small_llama, tiny_tokenizer, work_in, Engine\n"
        "engine = Engine('vllm', work_in(Path(sys.argv[1])))\n"
        "engine.generate(small_llama(), tiny_tokenizer(), [[1, 5]], max_new_tokens=2, seed=0)\n"
        "print('drawn', flush=True); time.sleep(600)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "w")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"drawn\n"
    started = psutil.Process(worker.pid).children(recursive=True)
    assert len(started) >= 3, "the guard, vLLM and what it starts"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    deadline = time.monotonic() + 30
    while any(process.is_running() for process in started) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [process for process in started if process.is_running()]
