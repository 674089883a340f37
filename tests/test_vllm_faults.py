"""What is said when vLLM is missing, fails or is another model: a real process and real HTTP, no vLLM needed."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from tasks.artifact import InputError, PipelineError
from tasks.models.adapters import AdapterRecipe, DoraRecipe, FullRecipe, Ia3Recipe, LoraRecipe, attach
from tasks.sampling.completions import SampleRecipe
from tasks.sampling.engine import Engine
from tasks.sampling.vllm_server import _environment, _take_turn
from tests.tiny_models import tiny_model, tiny_tokenizer, work_in

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")


def draw(folder: Path, model: Any = None, **changes: Any) -> None:
    asked: dict[str, Any] = {"n": 2, "max_new_tokens": 4, "seed": 0} | changes
    with Engine("vllm", work_in(folder)) as engine:
        engine.generate(model or tiny_model(), tiny_tokenizer(), [[1, 5], [1, 6, 7]], **asked)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("cannot start", r"could not start \(ValueError: Head size 8 is not supported\); its log is .*vllm.log"),
        ("dies at work", "not enough memory; give it less or more, e.g. RLHF_VLLM_ARGS"),
        ("error 500", r"fails at /v1/completions \(HTTP 500: .*EngineCore .* \(RuntimeError: does not use offset\)"),
        ("refuses", r"refuses /v1/completions \(HTTP 400: .*no such model"),
        ("too old", "no whole completions with token ids; its version may be too old"),
        ("one too few", "no whole completions"),
        ("no number", "no whole completions"),
        ("another model", "differ from the model's by .* nats per token .* so it computes something else"),
    ],
)
def test_faults_are_told_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.setenv("RLHF_VLLM", shlex.join([sys.executable, str(STAND_IN), fault]))
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(PipelineError, match=told):
        draw(tmp_path)
    assert not set(psutil.Process().children(recursive=True)) - before
    assert not list((tmp_path / "scratch" / "vllm").glob("*-*")), "the weights do not stay"
    assert (tmp_path / "scratch" / "vllm" / "vllm.log").exists()


@pytest.mark.parametrize(
    "adapter", [LoraRecipe(rank=4), LoraRecipe(rank=4, ranks={"q_proj": 2}), DoraRecipe(), Ia3Recipe(), FullRecipe()]
)
def test_every_adapter_is_given_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: AdapterRecipe
) -> None:
    """Which computes something else with it, as is then found."""
    monkeypatch.setenv("RLHF_VLLM", shlex.join([sys.executable, str(STAND_IN), "another model"]))
    with pytest.raises(PipelineError, match="so it computes something else"):
        draw(tmp_path, attach(tiny_model(), adapter))


def test_without_vllm_the_next_step_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_VLLM", "/nowhere/vllm")
    with pytest.raises(PipelineError, match="/nowhere/vllm is no program here; install vllm in an environment"):
        Engine("vllm", work_in(tmp_path))


def test_a_server_elsewhere_that_is_away_or_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_VLLM", "/nowhere/vllm")
    monkeypatch.setenv("RLHF_VLLM_URL", "http://me:word@127.0.0.1:9")
    with pytest.raises(PipelineError, match=r"gives no answer \(ConnectError\); look at the server at http://127"):
        draw(tmp_path)
    waited: list[float] = []

    def one_second(seconds: float) -> None:
        waited.append(seconds)
        if seconds > 1:
            os.close(first)  # the stage before ends

    first = _take_turn("http://one", one_second)
    os.close(_take_turn("http://another", one_second))
    assert not waited
    os.close(_take_turn("http://one", one_second))
    assert waited[-1] > 1


def test_what_vllm_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_VLLM", shlex.join([sys.executable, str(STAND_IN), "none"]))
    with pytest.raises(InputError, match="are 133 tokens, and the model takes 128; lower max_new_tokens"):
        draw(tmp_path, max_new_tokens=130)
    with pytest.raises(ValidationError, match="beams are searched by engine"):
        SampleRecipe(strategy="beam", engine="vllm")


def test_vllm_does_not_see_the_keys_of_our_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", "owner.apikey")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = _environment(Path("/opt/vllm/bin/vllm"))
    assert "ARGILLA_API_KEY" not in found and found["CUDA_VISIBLE_DEVICES"] == "1"
    assert found["PATH"].split(os.pathsep)[0] == "/opt/vllm/bin"
