"""A command's last words: also where the failure itself holds what cannot be written."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_error_with_half_a_character_is_told_and_its_trace_is_kept(tmp_path: Path) -> None:
    code = "from flows import faults\nwith faults.told():\n    raise ValueError('half of it: \\ud83d')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"RLHF_HOME": str(tmp_path), "PATH": ""},
        check=False,
    )
    assert done.returncode == 1 and "ValueError: half of it" in done.stderr and "the trace is in" in done.stderr
    assert "\\ud83d" in (tmp_path / "logs" / "last-error.txt").read_text(encoding="utf-8")
