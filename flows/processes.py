"""Background processes that outlive the command that started them, found again by pid and creation time."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict
from urllib import error, request

import psutil

HOST = "127.0.0.1"
MARK = "RLHF_SERVICE"
"""Environment variable that marks our processes (its value names the home and the service)."""
LOG_LIMIT = 5_000_000
"""Bytes of a log beyond which a start moves it aside."""


class Known(TypedDict):
    """What the state file remembers of a service."""

    port: int
    pid: int | None
    created: float | None
    """The process's creation time: a pid alone may belong to someone else after a reboot."""


def launch(command: list[str], environment: Mapping[str, str], folder: Path, log: Path, mark: str) -> tuple[int, float]:
    """Start `command` in a session of its own, output appended to `log`; returns its pid and creation time."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    process.returncode = 0  # it is meant to outlive us: no warning that it still runs when this object goes
    return process.pid, created


def alive(known: Known) -> bool:
    """Whether the very process that was started still runs."""
    if not known["pid"] or known["created"] is None:
        return False
    try:
        process = psutil.Process(known["pid"])
        return abs(process.create_time() - known["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(known: Known, mark: str, patience: float = 10.0) -> bool:
    """End the service's processes, gently and after `patience` seconds by force; False if none was running.

    A process counts as the service's only if it is the one started, or in that one's session and marked as ours.
    """
    processes = _family(known, mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        if not psutil.wait_procs(processes, timeout=patience)[1]:
            break
    return bool(processes)


def _family(known: Known, mark: str) -> list[psutil.Process]:
    """The started process and what it left in its session, even when it is dead itself."""
    if not known["pid"]:
        return []
    found = [psutil.Process(known["pid"])] if alive(known) else []
    for process in psutil.process_iter():
        try:
            left = process not in found and os.getsid(process.pid) == known["pid"]
            if left and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
    return found


def port_free(port: int, patience: float = 2.0) -> bool:
    """Whether a server could listen on the port, now or within `patience` seconds (the dying still hold theirs)."""
    deadline = time.monotonic() + patience
    while not (free := _unused(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return free


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def port_holder(port: int) -> str:
    """Who listens on the port, in words, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                break
    return "another program"


def answers(url: str) -> bool:
    """Whether the address answers with success; proxies are left out on the way to this machine."""
    handlers = [request.ProxyHandler({})] if url.startswith(f"http://{HOST}:") else []
    try:
        with request.build_opener(*handlers).open(url, timeout=5) as response:
            return response.status < 400
    except (error.URLError, OSError, ValueError):
        return False


def last_words(log: Path) -> str:
    """The last line of a log that names an error, else its last line, in brackets."""
    lines = [line.strip() for line in log.read_text(errors="replace")[-20_000:].splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|\(\w+\.\w*Error\)", line)]
    return f" ({[*lines, *errors][-1][:200]})" if lines else ""
