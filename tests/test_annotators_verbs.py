"""`rlhf annotators`: accounts with passwords that work, shown once."""

import json
import os
import stat
from pathlib import Path

import httpx

from tests.lifecycle_runs import rlhf


def test_accounts_are_made_once_with_passwords_that_work(
    argilla: dict[str, str], rlhf_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("verb-kim\n\nverb-lou\n")
    made = rlhf("annotators", "create", "verb-zoe", "--from", tmp_path / "names.txt", "--workspace", "verbs").document
    assert set(made["created"]) == {"verb-zoe", "verb-kim", "verb-lou"} and made["existing"] == []
    for name, password in made["created"].items():
        answer = httpx.post(f"{argilla['ARGILLA_API_URL']}/api/v1/token", data={"username": name, "password": password})
        token = answer.raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        seen = httpx.get(f"{argilla['ARGILLA_API_URL']}/api/v1/me/workspaces", headers=headers).json()["items"]
        assert [workspace["name"] for workspace in seen] == ["verbs"]
    again = rlhf("annotators", "create", "verb-zoe", "--workspace", "verbs")
    assert again.document == {"created": {}, "existing": ["verb-zoe"]}
    assert not any(password in again.stdout + again.stderr for password in made["created"].values())
    listed = {each["name"]: each["workspaces"] for each in rlhf("annotators", "list").document["annotators"]}
    assert listed["verb-kim"] == ["verbs"]
    kept = rlhf_home / "credentials" / "verbs.json"
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600 and "verb-kim" in json.dumps(json.loads(kept.read_text()))


def test_no_names_and_a_missing_list_are_one_sentence(argilla: dict[str, str], tmp_path: Path) -> None:
    assert "Give usernames, or --from FILE" in rlhf("annotators", "create").error
    assert "cannot be read" in rlhf("annotators", "create", "--from", tmp_path / "none.txt").error
