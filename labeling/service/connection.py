"""Requests to Argilla: signed in, tried again when the connection fails, and failures told in one sentence."""

import time
from collections.abc import Sequence
from typing import Any

import httpx

from labeling.comparison import LabelingError

_ATTEMPTS = 4
_BACKOFF = 0.5
"""Seconds before the second attempt; doubled for each further one."""


class UnavailableError(LabelingError):
    """Argilla is away or busy: what failed may be done again later as it is."""


def connect(url: str, api_key: str) -> httpx.Client:
    """A client signed in to Argilla. Raises `LabelingError` when it cannot be reached or refuses the key."""
    headers = {"X-Argilla-Api-Key": api_key, "Accept-Encoding": "identity"}  # 4 times faster than gzip
    try:
        client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(60.0, connect=5.0))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise LabelingError("Argilla's address or API key is malformed; check ARGILLA_API_URL and its key.") from error
    try:
        request(client, "GET", "/api/v1/me")
    except LabelingError:
        client.close()
        raise
    return client


def request(client: httpx.Client, method: str, path: str, *, accept: Sequence[int] = (), **options: Any) -> Any:
    """The JSON answer of Argilla, or None for an error status in `accept`.

    A connection that fails and a server that is busy (502, 503, 504) are tried again for a few seconds. A request may
    so arrive twice: what would be doubled is refused with 409, which callers accept. Raises `LabelingError` on
    everything else (`UnavailableError` where Argilla does not answer or stumbles).
    """
    url, failure = str(client.base_url), ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_BACKOFF * 2 ** (attempt - 1))
        try:
            response = client.request(method, path, **options)
        except httpx.TransportError as error:
            failure = f"Argilla at {url} does not answer ({type(error).__name__})"
            continue
        if response.status_code not in (502, 503, 504):
            return _answer(response, url, accept)
        failure = f"Argilla at {url} is not ready (HTTP {response.status_code})"
    raise UnavailableError(f"{failure}; start it with `rlhf up` and run again, nothing given so far is lost.")


def _answer(response: httpx.Response, url: str, accept: Sequence[int]) -> Any:
    if response.status_code in accept:
        return None
    if response.status_code == 401:
        raise LabelingError(f"Argilla at {url} refuses the API key; set ARGILLA_API_KEY to the key of an owner.")
    if response.status_code == 403:
        raise LabelingError(
            f"The API key may not do {response.request.method} {response.request.url.path} at Argilla {url}; "
            "use the key of an owner."
        )
    if response.is_error:
        raise (UnavailableError if response.is_server_error else LabelingError)(
            f"Argilla at {url} answered {response.request.method} {response.request.url.path} with "
            f"{response.status_code}: {response.text[:300]}; see its log, then run again."
        )
    if response.status_code == 204:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise LabelingError(f"What answers at {url} is not Argilla; check ARGILLA_API_URL.") from error


def items(client: httpx.Client, path: str, **options: Any) -> list[dict[str, Any]]:
    """What a listing of Argilla holds."""
    return request(client, "GET", path, **options)["items"]
