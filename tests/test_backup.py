"""A backup over HTTP and its restore into an empty Argilla: every rank, draft and suggestion, and nothing twice."""

import gzip
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import services as local
from labeling.comparison import LabelingError
from labeling.service import archive
from labeling.service.backup import backup, restore
from labeling.service.connection import connect, items, request
from tasks.labels.passwords import known_passwords
from tasks.labels.round import argilla as round_argilla
from tests.argilla_sheet import Sheet
from tests.lifecycle_runs import rlhf


@pytest.fixture(scope="module")
def original(argilla: dict[str, str]) -> Sheet:
    """30 random records of every shape with the answers of three people; beside it a draft and a second workspace."""
    sheet = Sheet(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "kept", count=30)
    other = sheet.post("workspaces", name="kept-too")["id"]
    spread = {"strategy": "overlap", "min_submitted": 1}
    draft = sheet.post("datasets", name="a draft", workspace_id=other, guidelines="# Wait", distribution=spread)
    sheet.post(f"datasets/{draft['id']}/fields", name="text", title="Text", required=True, settings={"type": "text"})
    row = next(row for row in sheet.rows if 0 not in row.responses)
    odd = {"status": "draft", "values": {"ranking": {"value": [{"value": "a"}]}, "note": {"value": "<b>&😀"}}}
    assert sheet.annotators[0].post(f"records/{row.id}/responses", json=odd).status_code == 201
    return sheet


def content(client: httpx.Client, workspace: str) -> dict[str, Any]:
    """All that an Argilla's workspace holds, without ids and times."""
    users = {user["id"]: user["username"] for user in items(client, "/api/v1/users")}
    place = next(each["id"] for each in items(client, "/api/v1/me/workspaces") if each["name"] == workspace)
    members = sorted(user["username"] for user in items(client, f"/api/v1/workspaces/{place}/users"))
    found: dict[str, Any] = {"members": members}
    for dataset in items(client, "/api/v1/me/datasets", params={"workspace_id": place}):
        path = f"/api/v1/datasets/{dataset['id']}"
        questions = {each["id"]: each["name"] for each in items(client, f"{path}/questions")}
        parts = [f"{path}/fields", f"{path}/questions", f"{path}/vectors-settings"]
        parts.append(f"/api/v1/me/datasets/{dataset['id']}/metadata-properties")
        page = {"limit": 1000, "include": "responses,suggestions,vectors"}
        listed = items(client, f"{path}/records", params=page) if dataset["status"] == "ready" else []
        found[dataset["name"]] = {
            "settings": {
                name: dataset[name] for name in ("guidelines", "status", "distribution", "allow_extra_metadata")
            },
            "parts": [[_bare(part) for part in items(client, each)] for each in parts],
            "records": [
                {
                    **_bare(record),
                    "responses": sorted(
                        [users[each["user_id"]], each["status"], json.dumps(each["values"], sort_keys=True)]
                        for each in record["responses"]
                    ),
                    "suggestions": sorted(
                        [questions[each["question_id"]], each["value"], each["score"], each["agent"], each["type"]]
                        for each in record["suggestions"]
                    ),
                }
                for record in listed
            ],
        }
    return found


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    gone = ("id", "dataset_id", "inserted_at", "updated_at", "responses", "suggestions")
    return {name: value for name, value in row.items() if name not in gone}


@pytest.mark.slow
def test_everything_comes_back_in_an_empty_argilla_and_only_once(
    original: Sheet, tmp_path: Path, fresh_home: Path
) -> None:
    here, file = connect(original.url, original.owner.headers["X-Argilla-Api-Key"]), tmp_path / "kept.backup"
    steps: list[tuple[int, int]] = []
    counts = backup(here, file, progress=lambda done, total: steps.append((done, total)))
    assert counts["records"] >= 30 and steps[0][0] == 0 and steps[-1] == (counts["records"], counts["records"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and archive.check(file) == counts
    keys = [user["api_key"] for user in items(here, "/api/v1/users")]
    text = gzip.decompress(file.read_bytes()).decode()
    assert not any(key in text for key in keys) and "password" not in text

    local.up(only=("argilla",))
    there = connect(local.status()["argilla"].url, local.argilla_credentials()[2])
    given: dict[str, str] = {}
    added = restore(there, file, password=lambda name: given.setdefault(name, f"a new one for {name}"))
    assert set(added.users) == set(given) >= {"kept-0", "kept-1", "kept-2"} and "owner" not in given
    assert (added.records, added.responses, added.refused) == (counts["records"], counts["responses"], ())
    for workspace in ("kept", "kept-too"):
        assert content(there, workspace) == content(here, workspace)
    signed = {"username": "kept-0", "password": given["kept-0"]}
    assert httpx.post(f"{there.base_url}/api/v1/token", data=signed, trust_env=False).status_code == 201

    before = content(there, "kept")
    again = restore(there, file)
    assert (again.users, again.workspaces, again.datasets, again.records, again.responses) == ((), 0, 0, 0, 0)
    assert content(there, "kept") == before

    _what_was_lost_comes_back_and_what_is_newer_stays(there, file, before)


def test_the_verb_says_where_passwords_are_and_a_run_finds_them(
    original: Sheet, tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.backup"
    backup(connect(original.url, original.owner.headers["X-Argilla-Api-Key"]), file, workspace="kept")
    local.up(only=("argilla",))
    document = rlhf("restore", file).document
    assert document["users"] == 3 and document["passwords_in"] == [str(fresh_home / "credentials" / "restored.json")]
    for name, value in local.environment().items():
        monkeypatch.setenv(name, value)
    with round_argilla() as there:
        known = known_passwords(there, "kept", ["kept-0", "kept-1", "kept-2"])
        for name, password in known.items():
            signed = {"username": name, "password": password}
            assert httpx.post(f"{there.base_url}/api/v1/token", data=signed, trust_env=False).status_code == 201
    assert len(known) == 3 and "passwords_in" not in rlhf("restore", file).document


def _what_was_lost_comes_back_and_what_is_newer_stays(client: httpx.Client, file: Path, before: dict[str, Any]) -> None:
    dataset = items(client, "/api/v1/me/datasets", params={"name": "kept"})[0]["id"]
    path = f"/api/v1/datasets/{dataset}/records"
    found = items(client, path, params={"include": "responses", "limit": 1000})
    answered = [record for record in found if record["responses"]]
    request(client, "DELETE", f"/api/v1/records/{answered[0]['id']}")
    request(client, "DELETE", f"/api/v1/responses/{answered[1]['responses'][0]['id']}")
    newer = answered[2]["responses"][0]
    request(client, "PUT", f"/api/v1/responses/{newer['id']}", json={"status": "discarded", "values": {}})
    lost = len(answered[0]["responses"]) + 1
    added = restore(client, file)
    assert (added.records, added.responses) == (1, lost)
    was = {record["external_id"]: record for record in before["kept"]["records"]}
    now = {record["external_id"]: record for record in content(client, "kept")["kept"]["records"]}
    assert {name for name in was if was[name] != now[name]} == {answered[2]["external_id"]}


def test_one_workspace_alone(original: Sheet, tmp_path: Path) -> None:
    client = connect(original.url, original.owner.headers["X-Argilla-Api-Key"])
    counts = backup(client, tmp_path / "one", workspace="kept")
    assert (counts["workspaces"], counts["datasets"], counts["records"], counts["users"]) == (1, 1, 30, 3)
    with pytest.raises(LabelingError, match="no workspace 'nowhere'"):
        backup(client, tmp_path / "none", workspace="nowhere")
    assert not (tmp_path / "none").exists()


def test_records_without_a_name_are_not_doubled(original: Sheet, tmp_path: Path) -> None:
    client = connect(original.url, original.owner.headers["X-Argilla-Api-Key"])
    bodies = [row.body(original.questions, original.dice) for row in original.rows[:2]]
    for body in bodies:
        del body["external_id"]
    made = original.post(f"datasets/{original.id}/records/bulk", items=bodies)["items"]
    try:
        backup(client, tmp_path / "nameless", workspace="kept")
        assert restore(client, tmp_path / "nameless").records == 0
    finally:
        ids = ",".join(record["id"] for record in made)
        original.owner.delete(f"datasets/{original.id}/records", params={"ids": ids}).raise_for_status()


def test_a_dataset_of_the_same_name_with_other_questions_is_left_alone(original: Sheet, tmp_path: Path) -> None:
    client = connect(original.url, original.owner.headers["X-Argilla-Api-Key"])
    backup(client, tmp_path / "file", workspace="kept")
    rows = list(archive.lines(tmp_path / "file"))
    next(row for row in rows if row["kind"] == "dataset")["questions"].pop()
    _write(tmp_path / "other", rows)
    with pytest.raises(LabelingError, match="other fields or questions"):
        restore(client, tmp_path / "other")


# Files that are no backups


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def _backup_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = {"workspaces": 0, "users": 0, "datasets": 0, "records": 0, "responses": 0}
    return [{"kind": "backup", "version": 1}, *rows, {"kind": "end", "counts": counts}]


BAD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "not compressed": lambda path: path.write_text('{"kind": "backup", "version": 1}\n'),
    "cut": lambda path: path.write_bytes(gzip.compress(json.dumps({"kind": "backup", "version": 1}).encode())[:-9]),
    "no end": lambda path: _write(path, [{"kind": "backup", "version": 1}]),
    "no beginning": lambda path: _write(path, _backup_of([])[1:]),
    "no JSON": lambda path: path.write_bytes(gzip.compress(b"kind: backup\n")),
    "deep": lambda path: path.write_bytes(gzip.compress(b"[" * 200_000)),
    "a list": lambda path: path.write_bytes(gzip.compress(b"[1]\n")),
    "unknown line": lambda path: _write(path, _backup_of([{"kind": "command", "run": "rm"}])),
    "wrong type": lambda path: _write(path, _backup_of([{"kind": "user", "id": 1}])),
    "miscounted": lambda path: _write(path, _backup_of([{"kind": "workspace", "id": "1", "name": "w", "users": []}])),
    "newer": lambda path: _write(path, [{"kind": "backup", "version": 2}]),
    "bomb": lambda path: path.write_bytes(gzip.compress(b" " * (archive.LONGEST_LINE + 2), 9)),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_backup_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    BAD[kind](path)
    with pytest.raises(LabelingError, match=r"backup|newer version") as refusal:
        archive.check(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_bad_file_is_refused_before_anything_is_asked_of_argilla(tmp_path: Path) -> None:
    with httpx.Client(base_url="http://127.0.0.1:1") as nobody, pytest.raises(LabelingError, match="whole backup"):
        (tmp_path / "file").write_bytes(b"PK\x03\x04")
        restore(nobody, tmp_path / "file")
