"""A small dataset in a running Argilla, made and asked over its HTTP API as the web UI does."""

from typing import Any

import httpx

RECORDS: list[dict[str, Any]] = [
    {"prompt": "Where is the bread?", "answer": "Aisle four.", "aisle": "bakery", "price": 3, "weight": 0.5},
    {"prompt": "Where is the milk?", "answer": "Aisle two, near the BREAD.", "aisle": "dairy", "price": 1},
    {"prompt": "Où est le café?", "answer": "Allée sept.", "aisle": "drinks", "price": 7, "weight": 0.25},
    {"prompt": "Is there cheese?", "answer": "Aisle two; aisle two!", "aisle": "dairy", "price": 9, "weight": 2.0},
    {"prompt": "Where are pastries?", "answer": "Aisle four, near the bread.", "aisle": "bakery", "price": 4},
    {"prompt": "Nothing to declare", "answer": "-", "weight": 1.0},
]
ANGLES = [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0), (-1.0, 0.0), (0.7, 0.7), (0.1, 0.9)]


class Round:
    """A published dataset of six records, its owner, and two annotators."""

    def __init__(self, url: str, key: str, name: str) -> None:
        self.url = url
        self.owner = self.client(key)
        workspace = self.post("workspaces", name=name)["id"]
        self.id = self.post(
            "datasets", name=name, workspace_id=workspace, distribution={"strategy": "overlap", "min_submitted": 2}
        )["id"]
        for field in ("prompt", "answer"):
            self.post(f"datasets/{self.id}/fields", name=field, title=field, required=True, settings={"type": "text"})
        options = [{"value": value, "text": value} for value in ("a", "b", "c")]
        self.questions = {
            "ranking": self.question("ranking", {"type": "ranking", "options": options}),
            "score": self.question("score", {"type": "rating", "options": [{"value": n} for n in range(1, 6)]}),
        }
        self.properties = {
            name: self.post(f"datasets/{self.id}/metadata-properties", name=name, title=name, settings={"type": kind})[
                "id"
            ]
            for name, kind in (("aisle", "terms"), ("price", "integer"), ("weight", "float"))
        }
        self.post(f"datasets/{self.id}/vectors-settings", name="meaning", title="meaning", dimensions=2)
        self.owner.put(f"datasets/{self.id}/publish").raise_for_status()
        items = self.post(f"datasets/{self.id}/records/bulk", items=[self.item(n) for n in range(6)])["items"]
        self.records = [item["id"] for item in items]
        self.annotators = [self.annotator(f"{name}-{n}", workspace) for n in range(2)]

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/api/v1", headers={"X-Argilla-Api-Key": key}, trust_env=False)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.owner.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def question(self, name: str, settings: dict[str, Any]) -> str:
        path = f"datasets/{self.id}/questions"
        return self.post(path, name=name, title=name, required=name == "ranking", settings=settings)["id"]

    def item(self, number: int) -> dict[str, Any]:
        row = RECORDS[number]
        suggestion = {"question_id": self.questions["score"], "value": 1 + number % 5, "score": number / 10}
        return {
            "external_id": str(number),
            "fields": {"prompt": row["prompt"], "answer": row["answer"]},
            "metadata": {name: row[name] for name in ("aisle", "price", "weight") if name in row},
            "vectors": {"meaning": list(ANGLES[number])},
            "suggestions": [{**suggestion, "agent": "judge" if number < 3 else "rule"}] if number != 5 else [],
        }

    def annotator(self, name: str, workspace: str) -> httpx.Client:
        user = self.post("users", first_name=name, username=name, password="a-long-password", role="annotator")
        self.post(f"workspaces/{workspace}/users", user_id=user["id"])
        return self.client(user["api_key"])

    def rank(self, annotator: int, record: int, score: int = 3, status: str = "submitted") -> httpx.Response:
        ranks = [{"value": "b", "rank": 1}, {"value": "a", "rank": 2}, {"value": "c", "rank": 2}]
        values = {"ranking": {"value": ranks}, "score": {"value": score}}
        return self.annotators[annotator].post(
            f"records/{self.records[record]}/responses", json={"values": values, "status": status}
        )

    def search(self, who: httpx.Client | None = None, page: str = "", **query: Any) -> list[int]:
        """The numbers of the records found, in the order given."""
        response = (who or self.owner).post(f"me/datasets/{self.id}/records/search{page}", json=query)
        assert response.status_code == 200, response.text
        return [int(item["record"]["external_id"]) for item in response.json()["items"]]

    def text(self, q: str, field: str | None = None) -> set[int]:
        return set(self.search(query={"text": {"q": q, "field": field}}))

    def filter(self, *filters: dict[str, Any], who: httpx.Client | None = None) -> set[int]:
        return set(self.search(who, filters={"and": list(filters)}))

    def sort(self, scope: dict[str, Any], order: str = "asc") -> list[int]:
        return self.search(sort=[{"scope": scope, "order": order}])
