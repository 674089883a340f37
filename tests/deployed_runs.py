"""Deployed runs as an engineer has them: a served deployment, a receiver, people who rank, and what Prefect tells."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows import services as local
from tests.lifecycle_runs import ROOT, TINY

FEWER = ["data.max_rows=60", "label.source=people", "label.min_submitted=1", 'policy=[{method="dpo", epochs=1}]']


def until(condition: Callable[[], Any], seconds: float, what: str | Path) -> Any:
    """What the condition gives once it gives something; else the test fails with `what`, or with that log."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what.read_text()
        time.sleep(0.3)
    return found


class Process:
    """`python -m MODULE` in the background, its output in a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "RLHF_WORKERS": "1"},
                start_new_session=True,
            )

    def runs(self) -> list[int]:
        """Processes of flow runs that it started and that still live."""
        found: list[int] = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and "PREFECT__FLOW_RUN_ID" in child.environ():
                    found.append(child.pid)
        return found

    def kill(self) -> None:
        """As the kernel does when memory runs out: at once, with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Prefect:
    """What Prefect's server says of one flow run."""

    def __init__(self, flow_run: str) -> None:
        self.id = flow_run
        self._api = httpx.Client(base_url=local.environment()["PREFECT_API_URL"] + "/", trust_env=False, timeout=30)

    def run(self) -> dict[str, Any]:
        return self._api.get(f"flow_runs/{self.id}").json()

    def is_in(self, *states: str) -> bool:
        """Whether it is in one of these states; a server that restarts just now does not say."""
        try:
            name = self.run()["state_name"]
        except (httpx.HTTPError, KeyError):
            return False
        assert name not in ("Failed", "Crashed") or name in states, self.run()["state"]["message"]
        return name in states

    def history(self) -> list[str]:
        """The names of its states, oldest first."""
        states = self._api.get("flow_run_states/", params={"flow_run_id": self.id}).json()
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def resume(self) -> None:
        """Resume it; a server whose database is busy (503) is asked again, as Prefect's own client does."""
        while (answer := self._api.post(f"flow_runs/{self.id}/resume")).status_code == 503:
            time.sleep(0.5)
        answer.raise_for_status()


def deployed() -> bool:
    """Whether the deployment of `rlhf` can be asked for a run."""
    url = local.environment()["PREFECT_API_URL"]
    return httpx.get(f"{url}/deployments/name/rlhf/rlhf", trust_env=False).status_code == 200


def changes_of(name: str) -> list[str]:
    """What makes the tiny recipe one whose people rank, in a round of its own."""
    return [*FEWER, f"name={name}", f"label.round={name}"]


def submitted(name: str, *changes: str) -> Prefect:
    """A run of the tiny recipe with people instead of simulated annotators, and with these further changes."""
    program = (
        "import os, sys; from flows import services; os.environ.update(services.environment())\n"
        "from pathlib import Path; from flows.recipe import LifecycleRecipe; from flows.serve import submit\n"
        "from tasks.recipe import load_recipe\n"
        "print(submit(load_recipe(LifecycleRecipe, Path(sys.argv[1]), sys.argv[2:])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(TINY), *changes_of(name), *changes],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Prefect(done.stdout.split()[-1])


def swept() -> dict[str, Any]:
    """What one sweep by hand finds."""
    program = (
        "import json, os; from flows import services; os.environ.update(services.environment())\n"
        "from flows.collect import resume_finished_rounds; print(json.dumps(resume_finished_rounds()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ranked(home: Path, round: str, leave: int = 0) -> int:
    """One annotator ranks all records of a round but the last `leave`; returns how many were ranked."""
    url = local.environment()["ARGILLA_API_URL"]
    password = json.loads((home / "credentials" / "rlhf.json").read_text())[url]["annotator-1"]
    token = httpx.post(f"{url}/api/v1/token", data={"username": "annotator-1", "password": password}, trust_env=False)
    headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
    with httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=30, trust_env=False) as client:
        datasets = client.get("/me/datasets").json()["items"]
        [dataset] = [each for each in datasets if each["name"].startswith(f"{round}-")]
        pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
        found = client.post(
            f"/me/datasets/{dataset['id']}/records/search",
            params={"limit": 500, "offset": 0},
            json={"query": {}, "filters": {"and": [pending]}},
        ).json()["items"]
        records = [item["record"] for item in found][: len(found) - leave]
        for record in records:
            options = sorted(name for name in record["fields"] if name.startswith("response_"))
            ranks = [{"value": option, "rank": place} for place, option in enumerate(options, 1)]
            answer = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
            client.post(f"/records/{record['id']}/responses", json=answer).raise_for_status()
    return len(records)
