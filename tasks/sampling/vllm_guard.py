"""`python vllm_guard.py COMMAND ...` runs a command for as long as whoever started it holds its standard input.

A worker that is killed cannot end its children; the kernel closes its pipes all the same. Then everything in the
command's session is ended: politely, and after `PATIENCE` seconds by force. Imports nothing of ours.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

PATIENCE = 10.0


def main() -> int:
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end(*_: Any) -> None:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGTERM)
        killing = threading.Timer(PATIENCE, _kill, [command.pid])
        killing.daemon = True
        killing.start()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=wait_for_parent, daemon=True).start()
    code = command.wait()
    _kill(command.pid)  # what the command left behind
    return code if code >= 0 else 128 - code


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
