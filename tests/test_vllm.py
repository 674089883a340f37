"""vLLM as the engine: the same tokens as our own, the same model, and nothing left behind."""

import os
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.artifact import Work
from tasks.models.pretrain_engine import new_llama
from tasks.sampling.engine import Engine
from tasks.sampling.local import generate
from tests.tiny_models import tiny_tokenizer, work_in

needs_vllm = pytest.mark.skipif(
    shutil.which(shlex.split(os.environ.get("RLHF_VLLM") or "vllm")[0]) is None,
    reason="no vLLM is installed (make vllm runs these)",
)
PROMPTS = [[1, 5, 9], [1, 40], [1, 7, 8, 33, 60, 61, 62], [1, 100, 101]] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """Heads of 32, the least that vLLM's CPU kernels take."""
    return new_llama(tokenizer, 0, hidden=64, layers=2, heads=2, positions=128).eval()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Work]]:
    """One server for the tests that only ask it."""
    work = work_in(tmp_path_factory.mktemp("vllm"))
    with Engine("vllm", work) as engine:
        yield engine, work


@needs_vllm
@pytest.mark.slow
def test_greedy_tokens_are_ours(running: tuple[Engine, Work], model: Any, tokenizer: Any) -> None:
    engine, work = running
    asked: dict[str, Any] = {"max_new_tokens": 24, "greedy": True, "seed": 0}
    theirs, ours = (draw(model, tokenizer, PROMPTS, **asked) for draw in (engine.generate, generate))
    assert [[c.token_ids for c in group] for group in theirs] == [[c.token_ids for c in group] for group in ours]
    for [their], [our] in zip(theirs, ours, strict=True):
        assert their.logprobs == pytest.approx(our.logprobs, abs=1e-3)
        assert (their.text, their.finished) == (our.text, our.finished)
    assert 0 < work.metrics["engine_logprob_gap"] < 1e-3
