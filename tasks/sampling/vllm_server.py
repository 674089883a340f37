"""A vLLM server for the time of a stage: started on a model folder, asked for completions of token ids, ended.

It listens on a Unix socket in a folder of its own that no other user can enter: no port to find, no key to guard
(vLLM's keys protect only some of its paths). Which `vllm` is run and with what further arguments is the machine's
affair and no part of a recipe: `RLHF_VLLM` (a command, by default `vllm`) and `RLHF_VLLM_ARGS`. Imports no torch.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tasks.artifact import PipelineError

GUARD = Path(__file__).with_name("vllm_guard.py")
NAME = "policy"
"""What the server calls the model it is started with."""
START_SECONDS, ANSWER_SECONDS = 1800.0, 3600.0
PRIVATE = ("PREFECT_", "MLFLOW_", "ARGILLA_", "PYTHONPATH", "PYTHONHOME")
"""Beginnings of variables that are none of vLLM's business: our services' addresses and keys, and our packages."""
MEMORY = re.compile(r"out of memory|No available memory|is less than desired|Cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Drawn:
    """One continuation: its token ids, the EOS that ended it included, and their log-probabilities at temperature 1."""

    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn: `n` of each prompt, until `eos` or `max_new_tokens`; temperature 0 is greedy."""

    n: int
    max_new_tokens: int
    temperature: float
    top_p: float
    eos: int
    seed: int


def vllm_command() -> list[str]:
    """The command that runs vLLM, found. Raises `PipelineError` where there is none."""
    words = shlex.split(os.environ.get("RLHF_VLLM") or "vllm")
    found = shutil.which(words[0]) if words else None
    if found is None:
        raise PipelineError(
            f'engine = "vllm" needs vLLM, and {words[0] if words else "RLHF_VLLM"} is no program here; install vllm in '
            'an environment of its own and set RLHF_VLLM to its `vllm`, or set engine = "local".'
        )
    return [found, *words[1:]]


class VllmServer:
    """A running server; a context manager, whose end is the server's. Everything it prints goes to `log`."""

    def __init__(self, model: Path, arguments: Sequence[str], log: Path, on_wait: Callable[[float], None]) -> None:
        """Start it on a model's folder and wait until it answers, telling `on_wait` the seconds so far.

        Raises `PipelineError` when vLLM is not installed, or ends before it answers.
        """
        self.log = log
        command = vllm_command()
        self._place = Path(tempfile.mkdtemp(prefix="rlhf-vllm-"))
        socket = self._place / "s"
        line = [*command, "serve", str(model), "--uds", str(socket), "--served-model-name", NAME, *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), *line, *shlex.split(os.environ.get("RLHF_VLLM_ARGS") or "")],
                env=_environment(Path(command[0])),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://vllm",
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=30),
        )
        try:
            self._wait(on_wait)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VllmServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and everything it started; returns when they are gone."""
        self._client.close()
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()
        shutil.rmtree(self._place, ignore_errors=True)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        rows: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Drawn]]:
        """Continuations of every prompt of token ids, in the order of the prompts; `rows` are asked for at a time.

        Each prompt has a seed of its own, made of the seed and its place. Raises `PipelineError` when the server fails
        or answers something else than completions.
        """
        found: list[list[Drawn]] = [[] for _ in prompts]
        with ThreadPoolExecutor(max(1, rows // sampling.n)) as pool:
            asked = {pool.submit(self._complete, ids, sampling, place): place for place, ids in enumerate(prompts)}
            try:
                for done, future in enumerate(as_completed(asked), 1):
                    found[asked[future]] = future.result()
                    if progress is not None:
                        progress(done, len(prompts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _complete(self, prompt: Sequence[int], sampling: Sampling, place: int) -> list[Drawn]:
        body = {
            "model": NAME,
            "prompt": list(prompt),
            "n": sampling.n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": _seed(sampling.seed, place),
            "logprobs": 0,  # of the chosen token alone
            "return_token_ids": True,
            "ignore_eos": True,  # a model's folder may name more than the tokenizer's
            "stop_token_ids": [sampling.eos],
        }
        return self._read(self.post("/v1/completions", body), sampling)

    def _read(self, answer: Any, sampling: Sampling) -> list[Drawn]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            drawn = [Drawn(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
            whole = len(drawn) == sampling.n and all(
                0 < len(each.token_ids) <= sampling.max_new_tokens
                and len(each.logprobs) == len(each.token_ids)
                and all(isinstance(token, int) and token >= 0 for token in each.token_ids)
                and all(isinstance(value, float) and -1e6 < value <= 1e-3 for value in each.logprobs)
                for each in drawn
            )
        except (KeyError, TypeError, IndexError) as error:
            raise self._talks_nonsense() from error
        if not whole:
            raise self._talks_nonsense()
        return drawn

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers to a JSON document. Raises `PipelineError` when it does not."""
        try:
            response = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self._died("ended at work", error) from error
        if not response.is_success:
            said = " ".join(response.text.split())[:200]
            raise PipelineError(f"vLLM refuses (HTTP {response.status_code}: {said}); its log is {self.log}.")
        try:
            return response.json()
        except ValueError:
            return response.text

    def _wait(self, on_wait: Callable[[float], None]) -> None:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < START_SECONDS:
            on_wait(seconds)
            if self._guard.poll() is not None:
                raise self._died("could not start")
            try:
                if self._client.get("/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise PipelineError(f"vLLM did not answer within {START_SECONDS / 60:.0f} minutes; its log is {self.log}.")

    def _died(self, how: str, error: Exception | None = None) -> PipelineError:
        words = self.log.read_text(errors="replace")[-100_000:]
        if MEMORY.search(words):
            step = "give it less or more, e.g. RLHF_VLLM_ARGS='--gpu-memory-utilization 0.5', and run again"
            return PipelineError(f"vLLM {how}: not enough memory; {step}. Its log is {self.log}.")
        reason = _reason(words) or (type(error).__name__ if error else "")
        return PipelineError(f"vLLM {how}{f' ({reason})' if reason else ''}; its log is {self.log}: look there.")

    def _talks_nonsense(self) -> PipelineError:
        return PipelineError(
            "vLLM's answer holds no whole completions with token ids; "
            f"its version may be too old, 0.32 is known to work. Its log is {self.log}."
        )


def _environment(executable: Path) -> dict[str, str]:
    """vLLM's variables: the user's without our services', nothing sent abroad, its own tools first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    return {
        "VLLM_HOST_IP": "127.0.0.1",  # what its own processes talk over
        **kept,
        "PATH": f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _seed(seed: int, place: int) -> int:
    """Far apart for all prompts: vLLM adds 0 ... n - 1 to it for the n continuations of a prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7])


def _reason(words: str) -> str:
    """The first error in what it printed; those after it are of processes that miss the one that failed."""
    found = re.findall(r"^.*?\b(\w*(?:Error|Exception): .+)$", words, re.MULTILINE)
    return found[0][:200].rstrip(".") if found else ""
