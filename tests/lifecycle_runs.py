"""Running `rlhf` as a user does, for the tests of whole lifecycles."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RLHF = Path(sys.executable).with_name("rlhf")
TINY = ROOT / "tests" / "recipes" / "tiny.toml"
LOOSE = (
    *("gate.min_win_rate=0", "gate.min_win_rate_vs_champion=0", "gate.check_tolerance=1", "gate.max_finished_drop=1"),
    *("gate.min_distinct_2=0", "gate.min_length=0", "gate.max_length=99", "gate.max_kl=1000"),
)
"""A gate that refuses nobody for a figure, unless it loses everything."""


@dataclass(frozen=True)
class Ended:
    """One finished command."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        assert self.status == 0, self.stderr
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The sentence of a failure."""
        assert self.status != 0, self.stdout
        assert "Traceback" not in self.stderr, self.stderr
        return json.loads(self.stdout)["error"]


def rlhf(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> Ended:
    """Run a verb with `--json` and wait for it."""
    command = [str(RLHF), *map(str, arguments), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=cwd, timeout=900, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a verb with `--json` and do not wait."""
    command = [str(RLHF), *map(str, arguments), "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def stages(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a run's document by name."""
    return {stage["name"]: stage for stage in document["stages"]}


def built(document: dict[str, Any]) -> set[str]:
    """Names of the stages that a run built."""
    return {name for name, stage in stages(document).items() if not stage["reused"]}
