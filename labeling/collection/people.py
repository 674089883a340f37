"""Whose answers count in a dataset: those of the people it was opened for, now or before.

Argilla lets everybody in a workspace answer, and knows nobody's place in a round. So a dataset that people share keeps
the ids of all whom its plan ever listed, in metadata properties that annotators do not see: ids and no names, so that
nothing is left to tell who it was when an account is erased.
"""

from collections.abc import Collection

import httpx

from labeling.service.connection import items, request

LISTED = "people-"
"""A metadata property that holds ids of accounts is called this and its number."""
MOST = 250
"""Ids in one property; Argilla takes no more."""


def list_people(client: httpx.Client, dataset: str, users: Collection[str]) -> None:
    """Keep Argilla's ids of the people a dataset is for, beside those who were listed before."""
    listed = _listed(client, dataset)
    fresh = sorted(set(users) - {user for ids in listed for user in ids})[:MOST]
    if not fresh:
        return
    number = len(listed) + 1
    body = {
        "name": f"{LISTED}{number}",
        "title": f"People of this round, part {number}",
        "settings": {"type": "terms", "values": fresh},
        "visible_for_annotators": False,
    }
    request(client, "POST", f"/api/v1/datasets/{dataset}/metadata-properties", json=body, accept=(409,))
    list_people(client, dataset, users)  # there are more, or another run took the number


def ever_listed(client: httpx.Client, dataset: str) -> set[str]:
    """Argilla's ids of all whom the dataset was ever opened for."""
    return {user for ids in _listed(client, dataset) for user in ids}


def _listed(client: httpx.Client, dataset: str) -> list[list[str]]:
    found = items(client, f"/api/v1/me/datasets/{dataset}/metadata-properties")
    return [each["settings"]["values"] for each in found if each["name"].startswith(LISTED)]
