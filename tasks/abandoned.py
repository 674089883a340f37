"""Runs whose process was killed: MLflow would show them as running for good."""

import os
import socket
from contextlib import suppress

import psutil

from tasks.lineage import STAGE, Record
from tasks.tracking import answering

HOST, PROCESS = "rlhf.host", "rlhf.process"
"""Where a lifecycle run works, so that the next one on that machine knows whether it still does."""


def take_up(record: Record, run_id: str) -> None:
    """Note that this process works on a lifecycle run."""
    with answering():
        record.client.set_tag(run_id, HOST, socket.gethostname())
        record.client.set_tag(run_id, PROCESS, _process(os.getpid()))


def close_abandoned(record: Record) -> list[str]:
    """Mark lifecycle runs that a process of this machine left behind, and their stages, as killed.

    Returns the ids of their Prefect flow runs.
    """
    mine = f"tags.`{STAGE}` = 'lifecycle' AND tags.`{HOST}` = '{socket.gethostname()}'"
    with answering():
        running = record.search(f"{mine} AND attributes.status = 'RUNNING'")
        gone = [run for run in running if not _alive(run.data.tags.get(PROCESS, ""))]
        for run in gone:
            parts = record.search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}' AND attributes.status = 'RUNNING'")
            for each in (*parts, run):
                record.client.set_terminated(each.info.run_id, "KILLED")
    return [run.data.tags["rlhf.flow_run"] for run in gone if run.data.tags.get("rlhf.flow_run")]


def _process(pid: int) -> str:
    """A process, told from a later one of the same number by when it began."""
    return f"{pid}/{psutil.Process(pid).create_time():.0f}"


def _alive(process: str) -> bool:
    pid = process.partition("/")[0]
    with suppress(psutil.Error):
        return pid.isdigit() and _process(int(pid)) == process
    return False
