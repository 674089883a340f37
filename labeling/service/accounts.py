"""Annotators' accounts in Argilla and the workspace they share."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from labeling.comparison import LabelingError
from labeling.service.connection import items, request


def find_workspace(client: httpx.Client, name: str) -> str | None:
    """The id of the workspace of that name, or None."""
    return next((each["id"] for each in items(client, "/api/v1/me/workspaces") if each["name"] == name), None)


def create_workspace(client: httpx.Client, name: str) -> str:
    """The id of the workspace of that name, made if need be."""
    if found := find_workspace(client, name):
        return found
    made = request(client, "POST", "/api/v1/workspaces", json={"name": name}, accept=(409,))
    return made["id"] if made else create_workspace(client, name)


def usernames(client: httpx.Client) -> set[str]:
    """Everybody who has an account."""
    return set(_users(client))


def users_by_id(client: httpx.Client) -> dict[str, str]:
    """Argilla's id of every account -> its username."""
    return {user["id"]: name for name, user in _users(client).items()}


def annotators_and_workspaces(client: httpx.Client) -> dict[str, list[str]]:
    """Username of every annotator -> names of the workspaces they see."""
    seen: dict[str, list[str]] = {n: [] for n, user in sorted(_users(client).items()) if user["role"] == "annotator"}
    for workspace in items(client, "/api/v1/me/workspaces"):
        for user in items(client, f"/api/v1/workspaces/{workspace['id']}/users"):
            if user["username"] in seen:
                seen[user["username"]].append(workspace["name"])
    return seen


def reset_password(client: httpx.Client, user_id: str, password: str) -> None:
    """Give an account another password."""
    request(client, "PATCH", f"/api/v1/users/{user_id}", json={"password": password})


def create_annotators(
    client: httpx.Client, workspace: str, names: Sequence[str], passwords: Mapping[str, str]
) -> dict[str, str]:
    """Make every name an annotator of the workspace and return their API keys by name.

    New accounts get the password in `passwords`, which the caller keeps before it calls, so that none gets lost on the
    way; an account that is there already keeps its own. Raises `LabelingError` when a name belongs to somebody who is
    not an annotator.
    """
    workspace_id = create_workspace(client, workspace)
    users = _users(client)
    members = {user["username"] for user in items(client, f"/api/v1/workspaces/{workspace_id}/users")}
    keys = {}
    for name in names:
        if name not in users:
            account = {"username": name, "first_name": name, "role": "annotator", "password": passwords[name]}
            made = request(client, "POST", "/api/v1/users", json=account, accept=(409,))
            users[name] = made or _users(client)[name]
        if users[name]["role"] != "annotator":
            raise LabelingError(f"'{name}' is {users[name]['role']} in Argilla, not annotator; use another name.")
        if name not in members:
            path = f"/api/v1/workspaces/{workspace_id}/users"
            request(client, "POST", path, json={"user_id": users[name]["id"]}, accept=(409,))
        keys[name] = users[name]["api_key"]
    return keys


def _users(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {user["username"]: user for user in items(client, "/api/v1/users")}
