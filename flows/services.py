"""The three local services behind `rlhf up|down|status`: Prefect, MLflow and Argilla on 127.0.0.1, SQLite each.

Where the user points to a service elsewhere (`PREFECT_API_URL`, `MLFLOW_TRACKING_URI`, `ARGILLA_API_URL`), that one
is used and none is started here. Everything else lives under `home()` and is found again by the next command.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows import processes, servers
from flows.processes import HOST, Known
from flows.servers import DEFAULT_PORTS, HEALTH_PATHS, NAMES, TITLES
from labeling.server import credentials
from labeling.server import environment as private
from tasks.artifact import PipelineError

URL_VARIABLES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI", "argilla": "ARGILLA_API_URL"}
PATIENCE = 180.0
"""Seconds a service may take to answer after its start (the first start on a slow disk takes tens)."""

Progress = Callable[[str, str], None]
"""(service, what is happening to it)"""


@dataclass(frozen=True)
class Service:
    """One service as it is now."""

    name: str
    url: str
    """Where its web UI is."""
    healthy: bool
    local: bool = True
    """False where the user's environment points elsewhere."""
    pid: int | None = None
    log: Path | None = None


def home() -> Path:
    """Where all local state lives: `RLHF_HOME`, or `.rlhf` in the nearest folder above that holds a project."""
    if chosen := os.environ.get("RLHF_HOME"):
        return Path(chosen).expanduser().resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".rlhf").is_dir() or (folder / "pyproject.toml").is_file():
            return folder / ".rlhf"
    return here / ".rlhf"


def argilla_environment() -> Path:
    """Argilla's private virtual environment: `RLHF_ARGILLA_VENV`, or one under `home()`."""
    chosen = os.environ.get("RLHF_ARGILLA_VENV")
    return Path(chosen).expanduser().resolve() if chosen else home() / "argilla-venv"


def argilla_credentials() -> tuple[str, str, str]:
    """The local Argilla owner's (username, password, API key), from files only this user may read."""
    return credentials.owner(home() / "argilla")


def environment() -> dict[str, str]:
    """What a process needs to reach the services; addresses the user has set win.

    Raises `PipelineError` where Argilla is elsewhere and its key is not given.
    """
    state = _read_state()
    found = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    for variable in ("NO_PROXY", "no_proxy"):  # a proxy does not know the services of this machine
        given = [part for part in os.environ.get(variable, "").split(",") if part]
        found[variable] = ",".join(dict.fromkeys([*given, processes.HOST, "localhost"]))
    for name in NAMES:
        local = _local_url(name, state) + ("/api" if name == "prefect" else "")
        found[URL_VARIABLES[name]] = _remote(name, state) or local
    if _remote("prefect", state) is None:
        found["PREFECT_HOME"] = str(home() / "prefect")  # else Prefect's client writes under the user's own folder
        found["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        found["PREFECT_CLIENT_MAX_RETRIES"] = "2"  # a dead server on this machine is noticed in seconds, not minutes
    if _remote("argilla", state) is None:
        found["ARGILLA_API_KEY"] = argilla_credentials()[2]
        return found
    if not os.environ.get("ARGILLA_API_KEY"):
        raise PipelineError("ARGILLA_API_URL is set but ARGILLA_API_KEY is not; export the key of an Argilla owner.")
    return {**found, "ARGILLA_API_KEY": os.environ["ARGILLA_API_KEY"]}


def status() -> dict[str, Service]:
    """Each service's address and whether it answers now."""
    state = _read_state()
    with ThreadPoolExecutor(len(NAMES)) as pool:
        return dict(zip(NAMES, pool.map(lambda name: _look(name, state), NAMES), strict=True))


def up(progress: Progress = lambda name, note: None, only: tuple[str, ...] = NAMES) -> dict[str, Service]:
    """Start what does not run yet, all at once, and wait until everything answers.

    Services that run are left as they are (a new port counts from the next start on). Raises `PipelineError` for a
    port that something else holds, an environment that cannot be made, and a service that dies or stays silent.
    """
    environment()
    with _alone():
        state = _read_state()
        local = [name for name in only if _remote(name, state) is None]
        missing = [name for name in local if not processes.alive(state[name])]
        _launch(missing, state, progress)
        _wait(local, missing, state, progress)
    return status()


def down(progress: Progress = lambda name, note: None) -> list[str]:
    """Stop the services that `up` started here, and nothing else; returns their names."""
    with _alone():
        state = _read_state()
        with ThreadPoolExecutor(len(NAMES)) as pool:
            stopped = list(pool.map(lambda name: processes.stop(state[name], _mark(name)), NAMES))
        for name in NAMES:
            state[name].update(pid=None, created=None)
        _write_state(state)
    names = [name for name, was_running in zip(NAMES, stopped, strict=True) if was_running]
    for name in names:
        progress(name, "stopped")
    return names


def _launch(names: list[str], state: dict[str, Known], progress: Progress) -> None:
    _claim_ports(names, state)
    for name in sorted(names, key=lambda name: name == "argilla"):  # last: its environment may take a minute
        if name == "argilla":
            _make_argilla_environment(progress)
        progress(name, "starting")
        _start(name, state)


def _start(name: str, state: dict[str, Known]) -> None:
    folder = home() / name
    command, variables = servers.command(name, state[name]["port"], folder, private.python(argilla_environment()))
    pid, created = processes.launch(command, variables, folder, _log(name), _mark(name))
    state[name].update(pid=pid, created=created)
    _write_state(state)  # at once: an interrupted `up` must not forget it


def _make_argilla_environment(progress: Progress) -> None:
    try:
        private.ensure(
            argilla_environment(),
            progress=lambda done, total, note: progress("argilla", f"installing {done}/{total} {note}"),
        )
    except private.EnvironmentFailed as failure:
        raise PipelineError(str(failure)) from failure


def _claim_ports(names: list[str], state: dict[str, Known]) -> None:
    """Decide the port of each service that will be started, and refuse those that something else holds."""
    for name in names:
        processes.stop(state[name], _mark(name))  # what a killed one may have left
        port = state[name]["port"] = servers.wanted_port(name, state[name]["port"])
        if not processes.port_free(port):
            raise PipelineError(
                f"Port {port}, wanted for {TITLES[name]}, is held by {processes.port_holder(port)}; "
                f"stop that, or choose another port with RLHF_{name.upper()}_PORT={port + 100} and run again."
            )


def _wait(names: list[str], launched: list[str], state: dict[str, Known], progress: Progress) -> None:
    """Until all of `names` answer; one that ran before and has just died is started after all."""
    started, waiting = time.monotonic(), list(names)
    while waiting:
        for name in list(waiting):
            if processes.answers(f"http://{HOST}:{state[name]['port']}{HEALTH_PATHS[name]}"):
                waiting.remove(name)
                progress(name, f"ready after {time.monotonic() - started:.1f} s")
            elif not processes.alive(state[name]):
                if name in launched:
                    log = _log(name)
                    raise PipelineError(f"{TITLES[name]} ended while starting{processes.last_words(log)}; see {log}.")
                launched = [*launched, name]
                _launch([name], state, progress)
        if waiting and time.monotonic() - started > PATIENCE:
            raise PipelineError(
                f"{TITLES[waiting[0]]} does not answer after {PATIENCE:.0f} s; see {_log(waiting[0])}, "
                "then run `rlhf down` and `rlhf up`."
            )
        time.sleep(0.1 if waiting else 0)


def _look(name: str, state: dict[str, Known]) -> Service:
    remote = _remote(name, state)
    if remote is not None:
        base = remote.removesuffix("/api")
        health = {"prefect": f"{remote}/health", "mlflow": f"{base}/health"}
        healthy = processes.answers(health.get(name, base + HEALTH_PATHS[name])) if remote.startswith("http") else True
        return Service(name, base, healthy, local=False)
    known, url = state[name], _local_url(name, state)
    running = processes.alive(known)
    healthy = running and processes.answers(url + HEALTH_PATHS[name])
    return Service(name, url, healthy, pid=known["pid"] if running else None, log=_log(name))


def _local_url(name: str, state: dict[str, Known]) -> str:
    port = state[name]["port"] if processes.alive(state[name]) else servers.wanted_port(name, state[name]["port"])
    return f"http://{HOST}:{port}"


def _remote(name: str, state: dict[str, Known]) -> str | None:
    """The address the user's environment gives, unless it is that of the service here, or free for it to take."""
    given = os.environ.get(URL_VARIABLES[name], "").rstrip("/")
    local = _local_url(name, state)
    same = given.removesuffix("/api").replace("//localhost:", f"//{HOST}:") == local
    ours = same and (processes.alive(state[name]) or processes.port_free(int(local.rpartition(":")[2])))
    return None if not given or ours else given


def _log(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def _mark(name: str) -> str:
    return f"{home()}:{name}"


@contextmanager
def _alone() -> Iterator[None]:
    """Only one `up` or `down` works on a home at a time; the others wait for it."""
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home() / "services.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_state() -> dict[str, Known]:
    path = home() / "services.json"
    try:
        stored = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise PipelineError(f"{path} is damaged ({error}); end the services by hand and delete it.") from error
    nothing = {name: Known(port=port, pid=None, created=None) for name, port in DEFAULT_PORTS.items()}
    return {name: stored.get(name, nothing[name]) for name in NAMES}


def _write_state(state: dict[str, Known]) -> None:
    path = home() / "services.json"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(state, indent=2))
    draft.replace(path)
