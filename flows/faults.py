"""How a command fails: one sentence with the next step on stderr, and an honest exit status."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from flows import services
from flows.plain_text import visible
from labeling.comparison import LabelingError
from tasks.artifact import PipelineError, without_credentials
from tasks.recipe import RecipeError

INTERRUPTED, TERMINATED = 130, 143
"""The exit statuses of a command that Ctrl-C ended, which typer makes of it, and of one that SIGTERM did."""


class PrefectSilentError(PipelineError):
    """Prefect's server stopped answering."""


@contextmanager
def told() -> Iterator[None]:
    """Every failure becomes one sentence on stderr, and status 1 (2 for a bad recipe)."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except PrefectSilentError as error:
        _print(str(error))
        os._exit(1)  # at a regular end Prefect would try to deliver each of its events, for minutes
    except (PipelineError, LabelingError) as error:
        _fail(str(error), 2 if isinstance(error, RecipeError) else 1)
    except Exception as error:
        _fail(_unforeseen(error), 1)
    except SystemExit as end:
        if end.code not in (INTERRUPTED, TERMINATED):
            raise
        how = "Interrupted" if end.code == INTERRUPTED else "Terminated"
        _fail(f"{how}; what was finished is kept, run the same command to go on.", end.code)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(TERMINATED)


@contextmanager
def prefect_answers() -> Iterator[None]:
    """A Prefect that stopped answering, as the sentence a user needs."""
    import httpx

    try:
        yield
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise
        url = without_credentials(os.environ.get("PREFECT_API_URL", ""))
        raise PrefectSilentError(
            f"Prefect at {url} does not answer ({type(error).__name__}); start it with `rlhf up` and run again: "
            "what is finished is kept."
        ) from error


def _fail(sentence: str, status: int) -> None:
    _print(sentence)
    sys.exit(status)


def _print(sentence: str) -> None:
    """A failure as the last line on stderr; with `--json` it is also the document."""
    if "--json" in sys.argv:
        print(json.dumps({"error": sentence}), flush=True)
    Console(stderr=True).print(f"[bold red]error:[/] {escape(visible(sentence))}", highlight=False, soft_wrap=True)


def _unforeseen(error: Exception) -> str:
    """The sentence for an error nobody foresaw; the trace goes to a file."""
    said = str(error).splitlines()[0] if str(error) else "no message"
    trace = "".join(traceback.format_exception(error))
    try:
        path = services.home() / "logs" / "last-error.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(trace, encoding="utf-8", errors="backslashreplace")  # half a character too
    except OSError as unwritable:
        return f"{type(error).__name__}: {said} (and no trace could be kept: {unwritable}); check RLHF_HOME."
    return (
        f"{type(error).__name__}: {said} (a fault of the pipeline or of a library; the trace is in {path}); "
        "what is finished is kept."
    )
