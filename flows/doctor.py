"""`rlhf doctor`: what is installed, reachable and missing on this machine, and how to mend it."""

import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows import processes, services
from labeling.server import credentials
from labeling.server import environment as private
from tasks.artifact import PipelineError

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
DISTRIBUTION = "rlhf-pipeline"
GIGABYTE = 1e9
DISK_NEEDED, MEMORY_NEEDED = 5 * GIGABYTE, 3 * GIGABYTE
"""Free bytes the demo wants: the environments take 3 GB and a run under 1; services and training share the memory."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    remedy: str = ""
    """The next step where it is not well."""


def check() -> list[Check]:
    """Look at everything; takes a few seconds at most, and changes nothing."""
    found = [_python(), _packages(), _accelerator(), _disk(), _memory(), _home(), _secrets(), _argilla()]
    try:
        return [*found, *_services()]
    except PipelineError as error:
        return [*found, Check("services", False, str(error), "do that, then run `rlhf doctor` again")]


def _python() -> Check:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check("python", ok, f"{version} at {sys.executable}", "" if ok else "install Python 3.11, 3.12 or 3.13")


def _packages(constraints: Path = CONSTRAINTS) -> Check:
    """What is installed against what this version was tested with."""
    wrong = [*_missing(), *_different(constraints)]
    if not wrong:
        pinned = "as pinned" if constraints.exists() else "as required"
        return Check("packages", True, f"all {pinned}")
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Check("packages", False, "; ".join(wrong[:5]) + more, "run `rm -f .venv/.installed; make install`")


def _missing() -> Iterator[str]:
    """Direct requirements that are absent or outside their bounds."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield f"{DISTRIBUTION} itself is not installed"
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            yield f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, not {requirement.specifier}"


def _different(constraints: Path) -> Iterator[str]:
    """Installed packages whose version is not the pinned one (a `+cpu` or `+cu128` build counts as the same)."""
    lines = constraints.read_text().splitlines() if constraints.exists() else []
    installed = {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    for line in lines:
        name, _, pin = line.partition(";")[0].partition("#")[0].strip().partition("==")
        version = installed.get(canonicalize_name(name))
        if pin and version and version.partition("+")[0] != pin.partition("+")[0]:
            yield f"{name} is {version}, not {pin}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> Check:
    """torch, and whether it can use the GPU that is there; torch itself is imported in a process of its own."""
    version = _version("torch")
    if version is None:
        return Check("torch", False, "not installed", "run `rm -f .venv/.installed; make install`")
    if not shutil.which("nvidia-smi"):
        return Check("torch", True, f"{version}, no NVIDIA GPU: training runs on {os.cpu_count()} CPU cores")
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    try:
        command = [sys.executable, "-c", question]
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return Check("torch", False, f"{version} does not answer within 60 s", "look at `nvidia-smi`")
    if name := answer.stdout.strip():
        return Check("torch", True, f"{version} on {name}")
    remedy = "install the CUDA build of torch that fits the driver" if "+cpu" in version else "look at `nvidia-smi`"
    return Check("torch", False, f"{version} does not see the NVIDIA GPU", remedy)


def _disk() -> Check:
    folder = _existing(services.home())
    free = shutil.disk_usage(folder).free
    ok = free >= DISK_NEEDED
    remedy = "" if ok else f"make {DISK_NEEDED / GIGABYTE:.0f} GB free, or put RLHF_HOME on a larger disk"
    return Check("disk", ok, f"{free / GIGABYTE:.1f} GB free at {folder}", remedy)


def _memory() -> Check:
    free = psutil.virtual_memory().available
    ok = free >= MEMORY_NEEDED
    remedy = "" if ok else f"close other programs: services and training want {MEMORY_NEEDED / GIGABYTE:.0f} GB"
    return Check("memory", ok, f"{free / GIGABYTE:.1f} GB available", remedy)


def _home() -> Check:
    home = services.home()
    try:
        with tempfile.TemporaryFile(dir=_existing(home)):
            return Check("home", True, f"{home} is writable" if home.exists() else f"{home} will be made")
    except OSError as error:
        return Check("home", False, f"{home}: {error.strerror}", "make it writable, or point RLHF_HOME elsewhere")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _secrets() -> Check:
    folder = services.home() / "argilla"
    names = (credentials.PASSWORD, credentials.API_KEY, credentials.AUTH_SECRET)
    files = [folder / name for name in names if (folder / name).exists()]
    files += sorted((services.home() / "credentials").glob("*.json"))
    loose = [str(path) for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        return Check("secrets", False, f"others may read {', '.join(loose)}", f"run `chmod 600 {' '.join(loose)}`")
    return Check("secrets", True, f"{len(files)} files, readable by this user alone" if files else "none made yet")


def _argilla() -> Check:
    """Argilla's private environment: not needed where Argilla runs elsewhere."""
    venv = services.argilla_environment()
    if os.environ.get("ARGILLA_API_URL"):
        return Check("argilla environment", True, "not needed: ARGILLA_API_URL is set")
    if private.ready(venv):
        return Check("argilla environment", True, str(venv))
    state = "half made or from another lock" if venv.exists() else "not made yet"
    return Check("argilla environment", False, f"{state}: {venv}", "run `rlhf up`, which makes it in about a minute")


def _services() -> Iterator[Check]:
    for name, service in services.status().items():
        if name == "argilla" and not service.local and not os.environ.get("ARGILLA_API_KEY"):
            yield Check(name, False, "ARGILLA_API_URL is set, its key is not", "export ARGILLA_API_KEY")
        elif service.healthy:
            yield Check(name, True, f"answers at {service.url}")
        elif not service.local:
            variable = services.URL_VARIABLES[name]
            yield Check(name, False, f"{service.url} does not answer", f"start it there, or correct {variable}")
        elif service.pid:
            yield Check(name, False, f"runs but does not answer; see {service.log}", "run `rlhf down`, then `rlhf up`")
        elif processes.port_free(port := int(service.url.rpartition(":")[2]), patience=0):
            yield Check(name, False, f"not running; port {port} is free", "run `rlhf up`")
        else:
            variable = f"RLHF_{name.upper()}_PORT"
            holder = processes.port_holder(port)
            yield Check(name, False, f"port {port} is held by {holder}", f"stop that, or set {variable}={port + 100}")
