"""The connection to MLflow's tracking server: patient with a busy database, and one sentence when it fails."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from tasks.artifact import PipelineError, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def answering() -> Iterator[None]:
    """Turns MLflow's connection failures into one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        uri = without_credentials(os.environ.get("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI (not set)"))
        if "Max retries" in str(error) or "Connection" in str(error) or "timed out" in str(error):
            raise PipelineError(
                f"MLflow at {uri} does not answer; start it with `rlhf up` and run again: what is finished is kept."
            ) from error
        raise PipelineError(f"MLflow at {uri} refused: {str(error).splitlines()[0]}") from error


def connect() -> "MlflowClient":
    """A client of the tracking server in `MLFLOW_TRACKING_URI`."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return cast("MlflowClient", _Patient(MlflowClient()))


class _Patient:
    """MLflow's client, one call at a time, tried again where another writer holds the server's SQLite database."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client, self._lock = client, threading.RLock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException

        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            for wait in (0.1, 0.3, 1.0, 3.0):
                try:
                    with self._lock:
                        return method(*arguments, **options)
                except MlflowException as error:  # the server rolled the whole call back
                    if "locked" not in str(error) and "autoflush" not in str(error):
                        raise
                    time.sleep(wait)
            return method(*arguments, **options)

        return call
