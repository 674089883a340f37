"""What the three local servers are: how each is started, on which port, with which settings. Each is one process."""

import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.processes import HOST
from labeling.server import environment as private
from tasks.artifact import PipelineError

NAMES = ("prefect", "mlflow", "argilla")
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "argilla": "Argilla"}
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000, "argilla": 6900}
HEALTH_PATHS = {
    "prefect": "/api/health",
    "mlflow": "/api/2.0/mlflow/experiments/search?max_results=1",  # unlike /health it makes the tables, once
    "argilla": "/api/v1/status",
}
PRIVATE = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "ARGILLA_", "UVICORN_", "PYTHONPATH", "PYTHONHOME")
"""Beginnings of the user's variables that do not reach local servers: their settings are ours alone."""

Command = tuple[list[str], dict[str, str]]
"""(command line, settings)"""


def wanted_port(name: str, remembered: int) -> int:
    """The port the user's environment asks for, else the one remembered. Raises `PipelineError` for a non-port."""
    text = os.environ.get(f"RLHF_{name.upper()}_PORT")
    if not text:
        return remembered
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise PipelineError(f"RLHF_{name.upper()}_PORT={text} is not a port; set a number from 1024 to 65535.")
    return int(text)


def command(name: str, port: int, folder: Path, argilla_python: Path) -> tuple[list[str], dict[str, str]]:
    """Command line and whole environment of a server whose state lives in `folder` (made here if it is new)."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    servers: Mapping[str, Callable[[], Command]] = {
        "prefect": lambda: _prefect(port, folder),
        "mlflow": lambda: _mlflow(port, folder),
        "argilla": lambda: _argilla(port, folder, argilla_python),
    }
    line, settings = servers[name]()
    inherited = {variable: value for variable, value in os.environ.items() if not variable.startswith(PRIVATE)}
    return line, {**inherited, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **settings}


def _prefect(port: int, folder: Path) -> Command:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)], {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",  # else any web page
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",  # else the UI asks port 4200, whatever the port
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # V2 calls a tracking service whatever the settings say
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),  # else it writes into site-packages
    }


def _mlflow(port: int, folder: Path) -> Command:
    """What `mlflow server --workers 1` runs, without its supervisor: half the memory and half the start.

    Clients write (hard link) straight into the `file:` artifact root; the server only lists and shows it.
    """
    database = folder / "mlflow.db"
    if not database.exists():
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not hold up writers
        connection.close()
    server = ["uvicorn", "mlflow.server.fastapi_app:app", "--no-access-log", "--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", *server, "--host", HOST, "--port", str(port)], {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (folder / "artifacts").as_uri(),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _argilla(port: int, folder: Path, python: Path) -> Command:
    server = [str(python), "-m", "labeling.server.main", "--home", str(folder), "--port", str(port)]
    return server, {"PYTHONPATH": str(_link_labeling(folder / "path"))}


def _link_labeling(folder: Path) -> Path:
    """A folder that holds a link to our `labeling` package and nothing else, for Argilla's private environment.

    What lies beside the package may be our own site-packages, with other versions of what Argilla needs.
    """
    package, link = Path(private.__file__).parents[1], folder / "labeling"
    folder.mkdir(exist_ok=True, mode=0o700)
    if link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    return folder
