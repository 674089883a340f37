"""The three local services behind `rlhf up|down|status`: Prefect, MLflow and Argilla on 127.0.0.1, SQLite each.

Where the user points to a service elsewhere (`PREFECT_API_URL`, `MLFLOW_TRACKING_URI`, `ARGILLA_API_URL`), that one
is used and none is started here. Everything else lives under `home()` and is found again by the next command.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib import error, request

from flows import processes
from flows.processes import HOST, Known
from labeling.server import credentials
from labeling.server import environment as private
from tasks.artifact import PipelineError

NAMES = ("prefect", "mlflow", "argilla")
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000, "argilla": 6900}
URL_VARIABLES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI", "argilla": "ARGILLA_API_URL"}
HEALTH_PATHS = {
    "prefect": "/api/health",
    "mlflow": "/api/2.0/mlflow/experiments/search?max_results=1",  # unlike /health it makes the database, once
    "argilla": "/api/v1/status",
}
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
    """What a process needs to reach the services; values the user has set win.

    Raises `PipelineError` where Argilla is elsewhere and its key is not given.
    """
    state = _read_state()
    found = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    for name in NAMES:
        found[URL_VARIABLES[name]] = _local_url(name, state) + ("/api" if name == "prefect" else "")
    if _remote("prefect", state) is None:
        found["PREFECT_HOME"] = str(home() / "prefect")  # else Prefect's client writes under the user's own folder
        found["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    if _remote("argilla", state) is None:
        found["ARGILLA_API_KEY"] = argilla_credentials()[2]
    elif not os.environ.get("ARGILLA_API_KEY"):
        raise PipelineError("ARGILLA_API_URL is set but ARGILLA_API_KEY is not; export the key of an Argilla owner.")
    return {name: os.environ.get(name) or value for name, value in found.items() | _given().items()}


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
        _claim_ports(missing, state)
        for name in sorted(missing, key=lambda name: name == "argilla"):  # its environment may take a minute
            if name == "argilla":
                _make_argilla_environment(progress)
            progress(name, "starting")
            _start(name, state)
        _wait(local, state, progress)
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


def _start(name: str, state: dict[str, Known]) -> None:
    command, settings = _command(name, state[name]["port"])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "ARGILLA_"))}
    kept.pop("PYTHONPATH", None)
    variables = {**kept, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **settings}
    processes.stop(state[name], _mark(name))  # what a killed one may have left
    pid, created = processes.launch(command, variables, home() / name, _log(name), _mark(name))
    state[name].update(pid=pid, created=created)
    _write_state(state)  # at once: an interrupted `up` must not forget it


def _command(name: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The service's command line and settings; each is one process."""
    folder = home() / name
    origins = f"http://{HOST}:{port},http://localhost:{port}"
    if name == "prefect":
        return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)], {
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),  # else it writes into site-packages
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        }
    if name == "mlflow":  # what `mlflow server --workers 1` runs, without the 250 MB of its supervisor
        server = ["uvicorn", "mlflow.server.fastapi_app:app", "--no-access-log", "--timeout-graceful-shutdown", "3"]
        return [sys.executable, "-m", *server, "--host", HOST, "--port", str(port)], {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": (folder / "artifacts").as_uri(),  # clients link files straight into it
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    server = [str(private.python(argilla_environment())), "-m", "labeling.server.main"]
    return [*server, "--home", str(folder), "--port", str(port)], {"PYTHONPATH": str(_link_labeling(folder))}


def _link_labeling(folder: Path) -> Path:
    """A folder that holds a link to our `labeling` package and nothing else, for Argilla's private environment.

    Our own site-packages must not be on its path: they hold other versions of what Argilla needs.
    """
    package, link = Path(private.__file__).parents[1], folder / "path" / "labeling"
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not link.exists() or link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    return link.parent


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
        variable = f"RLHF_{name.upper()}_PORT"
        port = state[name]["port"] = _port(name, state)
        if not processes.port_free(port) and not _ours_still(name, state[name]):
            raise PipelineError(
                f"Port {port}, wanted for {name.capitalize()}, is held by {processes.port_holder(port)}; "
                f"stop that, or choose another port with {variable}={port + 100} and run again."
            )


def _ours_still(name: str, known: Known) -> bool:
    """Free the port where only the remains of a killed service hold it."""
    return processes.stop(known, _mark(name)) and processes.port_free(known["port"])


def _port(name: str, state: dict[str, Known]) -> int:
    text = os.environ.get(f"RLHF_{name.upper()}_PORT")
    if not text:
        return state[name]["port"]
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise PipelineError(f"RLHF_{name.upper()}_PORT={text} is not a port; set a number from 1024 to 65535.")
    return int(text)


def _wait(names: list[str], state: dict[str, Known], progress: Progress) -> None:
    started, waiting = time.monotonic(), list(names)
    while waiting:
        for name in list(waiting):
            if _answers(f"http://{HOST}:{state[name]['port']}{HEALTH_PATHS[name]}"):
                waiting.remove(name)
                progress(name, f"ready after {time.monotonic() - started:.1f} s")
            elif not processes.alive(state[name]):
                raise PipelineError(f"{name.capitalize()} ended while starting{_last_words(name)}; see {_log(name)}.")
        if waiting and time.monotonic() - started > PATIENCE:
            raise PipelineError(
                f"{waiting[0].capitalize()} does not answer after {PATIENCE:.0f} s; see {_log(waiting[0])}, "
                "then run `rlhf down` and `rlhf up`."
            )
        time.sleep(0.1 if waiting else 0)


def _last_words(name: str) -> str:
    lines = [line.strip() for line in _log(name).read_text(errors="replace").splitlines() if line.strip()]
    return f" ({lines[-1][:200]})" if lines else ""


def _look(name: str, state: dict[str, Known]) -> Service:
    remote = _remote(name, state)
    if remote is not None:
        base = remote.removesuffix("/").removesuffix("/api")
        health = {"prefect": f"{remote.removesuffix('/')}/health", "mlflow": f"{base}/health"}
        healthy = _answers(health.get(name, base + HEALTH_PATHS[name])) if remote.startswith("http") else True
        return Service(name, base, healthy, local=False)
    known, url = state[name], _local_url(name, state)
    running = processes.alive(known)
    healthy = running and _answers(url + HEALTH_PATHS[name])
    return Service(name, url, healthy, pid=known["pid"] if running else None, log=_log(name))


def _answers(url: str) -> bool:
    """Whether the address answers with success; proxies are left out on the way to this machine."""
    handlers = [request.ProxyHandler({})] if url.startswith(f"http://{HOST}:") else []
    try:
        with request.build_opener(*handlers).open(url, timeout=5) as response:
            return response.status < 400
    except (error.URLError, OSError, ValueError):
        return False


def _given() -> dict[str, str]:
    """The variables of the services that the user has set, so that they reach child processes unchanged."""
    return {name: os.environ[name] for name in ("ARGILLA_API_KEY",) if os.environ.get(name)}


def _local_url(name: str, state: dict[str, Known]) -> str:
    port = state[name]["port"] if processes.alive(state[name]) else _port(name, state)
    return f"http://{HOST}:{port}"


def _remote(name: str, state: dict[str, Known]) -> str | None:
    """The address the user's environment gives, unless it is that of the service here."""
    given = os.environ.get(URL_VARIABLES[name])
    return None if not given or given.startswith(_local_url(name, state)) else given


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
    stored = json.loads(path.read_text()) if path.exists() else {}
    nothing = {name: Known(port=port, pid=None, created=None) for name, port in DEFAULT_PORTS.items()}
    return {name: stored.get(name, nothing[name]) for name in NAMES}


def _write_state(state: dict[str, Known]) -> None:
    path = home() / "services.json"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(state, indent=2))
    draft.replace(path)
