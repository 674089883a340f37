"""`--labels people`: a run waits, says who signs in where, survives Ctrl-C and SIGTERM, and ends when all is ranked."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from tests.lifecycle_runs import RLHF, ROOT, TINY, built, rlhf

FEW = ["--set", "data.max_rows=60", "--set", "name=people", "--set", "label.min_submitted=1", "--labels", "people"]


def start(errors: Path) -> subprocess.Popen[str]:
    with errors.open("w") as file:
        return subprocess.Popen(
            [str(RLHF), "run", str(TINY), *FEW, "--json"], stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT
        )


def wait_for_invitation(run: subprocess.Popen[str], errors: Path) -> str:
    deadline = time.monotonic() + 240
    while "Sign in at" not in errors.read_text():
        assert run.poll() is None, errors.read_text()
        assert time.monotonic() < deadline, errors.read_text()
        time.sleep(0.2)
    time.sleep(1)  # the account lines follow
    return errors.read_text()


def sign_in(url: str, username: str, password: str) -> httpx.Client:
    """As the web UI does: a password for a token."""
    answer = httpx.post(f"{url}/api/v1/token", data={"username": username, "password": password})
    answer.raise_for_status()
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {answer.json()['access_token']}"}, timeout=30)


def rank_everything(client: httpx.Client) -> int:
    """Rank each pending record, the first two options tied; returns how many."""
    [dataset] = [d for d in client.get("/api/v1/me/datasets").json()["items"] if d["name"].startswith("tiny-")][-1:]
    records = client.get(f"/api/v1/datasets/{dataset['id']}/records", params={"limit": 500}).json()
    if "items" not in records:
        filters = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
        found = client.post(
            f"/api/v1/me/datasets/{dataset['id']}/records/search",
            params={"limit": 500, "offset": 0},
            json={"query": {}, "filters": {"and": [filters]}},
        ).json()
        records = {"items": [item["record"] for item in found["items"]]}
    for record in records["items"]:
        options = sorted(name for name in record["fields"] if name.startswith("response_"))
        ranks = [{"value": option, "rank": max(place, 1)} for place, option in enumerate(options)]
        answer = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
        client.post(f"/api/v1/records/{record['id']}/responses", json=answer).raise_for_status()
    return len(records["items"])


def test_people_rank_and_the_run_goes_on(services: dict[str, str], rlhf_home: Path, tmp_path: Path) -> None:
    errors = tmp_path / "stderr.txt"
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run = start(errors)
        wait_for_invitation(run, errors)
        run.send_signal(number)
        out, _ = run.communicate(timeout=60)
        assert run.returncode == status and "run the same command to go on" in json.loads(out)["error"]

    run = start(errors)
    text = wait_for_invitation(run, errors)
    url = services["ARGILLA_API_URL"]
    assert url in text
    file = rlhf_home / "credentials" / "rlhf.json"
    assert oct(os.stat(file).st_mode & 0o777) == "0o600"
    passwords = json.loads(file.read_text())[url]
    assert passwords["annotator-1"] in text, "the person at the terminal sees the accounts"
    before = rlhf("labels", TINY, *FEW).document
    assert before["done"] == 0 and not before["sufficient"] and before["missing"] and before["alpha"] is None
    ranked = rank_everything(sign_in(url, "annotator-1", passwords["annotator-1"]))
    after = rlhf("labels", TINY, *FEW).document
    assert after["sufficient"] and after["done"] == after["records"] == ranked
    [one] = [person for person in after["people"] if person["answered"]]
    assert one["name"] == "annotator-1" and one["answered"] == ranked
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, errors.read_text()
    document = json.loads(out)
    [label] = [stage for stage in document["stages"] if stage["name"] == "label"]
    folder = rlhf_home / "store" / label["artifact"]
    rows = [json.loads(line) for line in (folder / "judgements.jsonl").read_text().splitlines()]
    assert len(rows) == ranked and all(sorted(row["ranks"].values())[:2] == [1, 1] for row in rows)
    assert "preferences" in built(document)
    for text in (p.read_text(errors="ignore") for p in [*rlhf_home.glob("logs/*"), *folder.rglob("*.json*")]):
        assert not any(password in text for password in passwords.values()), "a password in a log or an artifact"
