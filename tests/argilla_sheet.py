"""The random rows of `argilla_data` as a dataset in a running Argilla, asked over its HTTP API."""

import random
from typing import Any

import httpx

from tests import argilla_data as data
from tests.argilla_data import NAMES, Row


class Sheet:
    """The random rows in a running Argilla, asked by three annotators (0, 1, 2) or over all answers (None)."""

    def __init__(self, url: str, key: str, name: str, count: int = 90) -> None:
        self.url, self.owner = url, self.client(url, key)
        workspace = self.post("workspaces", name=name)["id"]
        spread = {"strategy": "overlap", "min_submitted": 2}
        self.id = self.post("datasets", name=name, workspace_id=workspace, distribution=spread)["id"]
        for field, kind in (("prompt", "text"), ("answer", "text"), ("talk", "chat"), ("photo", "image")):
            self.add("fields", name=field, required=field == "prompt", settings={"type": kind})
        labels = [{"value": label, "text": label} for label in data.LABELS]
        ratings = [{"value": value} for value in range(1, 6)]
        kinds: dict[str, dict[str, Any]] = {
            "ranking": {"type": "ranking", "options": [{"value": name, "text": name} for name in data.OPTIONS]},
            "score": {"type": "rating", "options": ratings},
            "label": {"type": "label_selection", "options": labels},
            "tags": {"type": "multi_label_selection", "options": labels},
            "note": {"type": "text"},
        }
        self.questions = {
            name: self.add("questions", name=name, required=name == "ranking", settings=settings)
            for name, settings in kinds.items()
        }
        metadata = {"aisle": "terms", "price": "integer", "weight": "float", "size": "terms", "quoted": "terms"}
        self.properties = {
            name: self.add("metadata-properties", name=NAMES[name], settings={"type": kind})
            for name, kind in metadata.items()
        }
        self.add("vectors-settings", name="meaning", dimensions=3)
        self.owner.put(f"datasets/{self.id}/publish").raise_for_status()
        self.dice = random.Random(4)
        self.rows = data.make_rows(count, seed=3)
        made = self.post(
            f"datasets/{self.id}/records/bulk", items=[row.body(self.questions, self.dice) for row in self.rows]
        )
        for row, record in zip(self.rows, made["items"], strict=True):
            row.id = record["id"]
        self.annotators = [self.annotator(f"{name}-{number}", workspace) for number in range(3)]
        for row in self.rows:
            for annotator, (status, values) in row.responses.items():
                self.answer(row, annotator, status, values)

    def client(self, url: str, key: str) -> httpx.Client:
        return httpx.Client(base_url=f"{url}/api/v1", headers={"X-Argilla-Api-Key": key}, trust_env=False, timeout=30)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.owner.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def add(self, what: str, **body: Any) -> str:
        return self.post(f"datasets/{self.id}/{what}", title=body["name"], **body)["id"]

    def annotator(self, name: str, workspace: str) -> httpx.Client:
        user = self.post("users", first_name=name, username=name, password="a-long-password", role="annotator")
        self.post(f"workspaces/{workspace}/users", user_id=user["id"])
        return self.client(self.url, user["api_key"])

    def answer(self, row: Row, annotator: int, status: str, values: dict[str, Any]) -> None:
        body = {"status": status, "values": {name: {"value": value} for name, value in values.items()}}
        response = self.annotators[annotator].post(f"records/{row.id}/responses", json=body)
        assert response.status_code == 201, response.text

    def ask(self, user: int | None, limit: int = 1000, offset: int = 0, **body: Any) -> tuple[list[int], int]:
        """Numbers of the records found, in order, and how many there are."""
        client, path = (self.owner, "") if user is None else (self.annotators[user], "me/")
        page = {"limit": limit, "offset": offset}
        response = client.post(f"{path}datasets/{self.id}/records/search", params=page, json=body)
        assert response.status_code == 200, f"{body}: {response.text}"
        found = response.json()
        return [int(item["record"]["external_id"][1:]) for item in found["items"]], found["total"]

    def texts(self, row: Row, field: str | None) -> list[list[list[str]]]:
        """The fields of a row that a query looks at, each a list of texts; a chat's messages are one text each."""
        each = {"prompt": [row.texts["prompt"]], "answer": [row.texts["answer"]], "photo": []}
        each["talk"] = [row.texts["talk"], row.texts["reply"], ["user"], ["model-1"]]
        return [each[field]] if field else list(each.values())
