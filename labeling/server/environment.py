"""Argilla's private virtual environment: argilla-server cannot share one with Prefect or MLflow."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = Path(__file__).with_name("lock.txt")
MARKER = "complete"
"""Written last into a finished environment; holds the fingerprint of what it was made from."""

Progress = Callable[[int, int, str], None]
"""(packages done, packages in all, what is being done)"""


class EnvironmentFailed(Exception):
    """The environment could not be made: one sentence with the next step."""


def python(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / "bin" / "python"


def fingerprint(lock: Path = LOCK_FILE) -> str:
    """What an environment is made from: the locked packages and the Python version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} python{version}"


def ready(venv: Path, lock: Path = LOCK_FILE) -> bool:
    """Whether `venv` was finished, from this very lock, and its Python still exists."""
    marker = venv / MARKER
    return marker.is_file() and marker.read_text() == fingerprint(lock) and python(venv).exists()


def ensure(venv: Path, lock: Path = LOCK_FILE, progress: Progress = lambda done, total, note: None) -> Path:
    """Make `venv` from the hashed lock unless it is whole already; returns its interpreter.

    A half made one, or one made from another lock, is removed and made again. Two callers at once make it once.
    Raises `EnvironmentFailed` when pip fails (its output is kept beside the environment).
    """
    if ready(venv, lock):
        return python(venv)
    with _alone(venv) as held:
        if not ready(venv, lock):
            _make(venv, lock, held, progress)
    return python(venv)


@contextmanager
def _alone(venv: Path) -> Iterator[int]:
    """Hold the environment's lock; yields its descriptor, for child processes that must hold it too."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_name(f"{venv.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(venv: Path, lock: Path, held: int, progress: Progress) -> None:
    total = sum("==" in line for line in lock.read_text().splitlines())
    log = venv.with_name(f"{venv.name}.log")
    progress(0, total, "making Argilla's environment")
    (venv / MARKER).unlink(missing_ok=True)  # from here on it counts as half made, whatever happens
    if venv.exists():
        shutil.rmtree(venv)
    _run([sys.executable, "-m", "venv", str(venv)], log, held, lambda line: None)
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith(("Collecting ", "Processing ")):
            done = min(done + 1, total)
            progress(done, total, Path(line.split()[1]).name)
        elif line.startswith("Installing collected"):
            progress(total, total, "unpacking")

    pip = [str(python(venv)), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    _run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(lock)], log, held, follow)
    (venv / MARKER).write_text(fingerprint(lock))


def _run(command: list[str], log: Path, held: int, follow: Callable[[str], None]) -> None:
    """Run to the end. The child shares the lock: where we are killed, nobody starts over while it still writes."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(held,),
        )
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            file.write(line)
            follow(line)
            last = line.strip() or last
        if process.wait():
            raise EnvironmentFailed(
                f"Argilla's environment could not be made ({last[:200]}); see {log}, mend the cause and run again."
            )
