"""A vLLM server: one of our own for the time of a stage, or one that runs already.

Which it is and where is the machine's affair and no part of a recipe. Our own listens on a Unix socket in a folder that
no other user can enter: no port to find, no key to guard (vLLM's keys protect only some of its paths). `RLHF_VLLM` is
the command that runs it (`vllm`), `RLHF_VLLM_ARGS` are further arguments. `RLHF_VLLM_URL` is a server that runs
already, `RLHF_VLLM_API_KEY` its key; it must see this machine's files and let its weights be replaced.
Imports no torch.
"""

import fcntl
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
from pathlib import Path

import httpx

from tasks.artifact import InputError, PipelineError, without_credentials
from tasks.sampling.vllm_client import ANSWER_SECONDS, VllmClient

GUARD = Path(__file__).with_name("vllm_guard.py")
NAME = "policy"
"""What our own server calls the model it is started with."""
START_SECONDS = 1800.0
PRIVATE = ("PREFECT_", "MLFLOW_", "ARGILLA_", "PYTHONPATH", "PYTHONHOME", "VLLM_API_KEY")
"""Beginnings of variables that our server does not get: our services' addresses and keys, our packages, a key."""
CONTROL = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""What a server needs so that weights and adapters can be replaced; anybody who reaches it may then do so."""
MEMORY = re.compile(r"out of memory|No available memory|is less than desired|Cannot allocate memory", re.IGNORECASE)
Wait = Callable[[float], None]
"""Told the seconds of waiting so far."""


def require_vllm() -> None:
    """Raise `PipelineError` where there is neither a server nor a program to start one with."""
    if not os.environ.get("RLHF_VLLM_URL"):
        vllm_command()


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


class OwnServer(VllmClient):
    """A server started on a model's folder, which ends with this object or this process. It prints into `log`."""

    def __init__(self, model: Path, arguments: Sequence[str], log: Path, on_wait: Wait) -> None:
        """Returns when it answers. Raises `PipelineError` when vLLM is not installed, or ends before it answers."""
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
        transport = httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None))
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=30)
        client = httpx.Client(transport=transport, base_url="http://vllm", timeout=timeout)
        super().__init__(client, NAME, f"its log is {log}")
        try:
            self._wait(on_wait)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the server and everything it started; returns when they are gone."""
        super().close()
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()
        shutil.rmtree(self._place, ignore_errors=True)

    def died(self, how: str, error: Exception | None = None) -> PipelineError:
        words = self.log.read_text(errors="replace")[-100_000:]
        if MEMORY.search(words):
            step = "give it less or more, e.g. RLHF_VLLM_ARGS='--gpu-memory-utilization 0.5', and run again"
            return PipelineError(f"vLLM {how}: not enough memory; {step}; {self.place}.")
        reason = _reason(words) or (type(error).__name__ if error else "")
        return PipelineError(f"vLLM {how}{f' ({reason})' if reason else ''}; {self.place}: look there.")

    def _wait(self, on_wait: Wait) -> None:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < START_SECONDS:
            on_wait(seconds)
            if self._guard.poll() is not None:
                raise self.died("could not start")
            try:
                if self.client.get("/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise PipelineError(f"vLLM did not answer within {START_SECONDS / 60:.0f} minutes; {self.place}.")


class RunningServer(VllmClient):
    """The server at `RLHF_VLLM_URL`, made to serve a model's folder; stages on this machine use it in turns."""

    def __init__(self, url: str, model: Path, tokens: int, on_wait: Wait) -> None:
        """tokens: the longest sequence. Raises `PipelineError` when it cannot be reached or refuses."""
        self._turn = _take_turn(url, on_wait)
        key = os.environ.get("RLHF_VLLM_API_KEY")
        client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=30),
        )
        super().__init__(client, "", f"look at the server at {without_credentials(url)}")
        try:
            self._name, limit = self._serves()
            if limit is not None and tokens > limit:
                raise InputError(
                    f"The longest prompt and max_new_tokens are {tokens} tokens, and the vLLM server takes {limit}; "
                    "start it with a larger --max-model-len."
                )
            self.load_weights(model)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the next one have its turn."""
        super().close()
        os.close(self._turn)

    def died(self, how: str, error: Exception | None = None) -> PipelineError:
        return PipelineError(
            f"vLLM {f'gives no answer ({type(error).__name__})' if error else how}; {self.place}, and run again."
        )

    def _serves(self) -> tuple[str, int | None]:
        """The name of the model it was started with, and the longest sequence it takes."""
        try:
            response = self.client.get("/v1/models", timeout=30)
            model = next(each for each in response.raise_for_status().json()["data"] if not each.get("parent"))
            return str(model["id"]), model.get("max_model_len")
        except httpx.HTTPStatusError as error:
            raise PipelineError(f"vLLM refuses (HTTP {error.response.status_code}); {self.place}.") from error
        except httpx.HTTPError as error:
            raise self.died("", error) from error
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise PipelineError(f"What answers there is no vLLM; {self.place}.") from error


def _take_turn(url: str, on_wait: Wait) -> int:
    """A file that is locked for as long as it is open: two stages must not swap each other's weights."""
    name = f"rlhf-vllm-{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.lock"
    turn, began = os.open(Path(tempfile.gettempdir()) / name, os.O_RDWR | os.O_CREAT, 0o600), time.monotonic()
    while True:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return turn
        except BlockingIOError:
            on_wait(time.monotonic() - began)
            time.sleep(0.5)


def _environment(executable: Path) -> dict[str, str]:
    """vLLM's variables: the user's without our services', nothing sent abroad, its own tools first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    return {
        "VLLM_HOST_IP": "127.0.0.1",  # what its own processes talk over
        **kept,
        **CONTROL,
        "PATH": f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _reason(words: str) -> str:
    """The first error in what it printed; those after it are of processes that miss the one that failed."""
    lines = [line for line in words.splitlines() if " WARNING " not in line and " INFO " not in line]
    found = [match[1] for line in lines if (match := re.search(r"\b(\w*(?:Error|Exception): .+)$", line))]
    return found[0][:200].rstrip(".") if found else ""
