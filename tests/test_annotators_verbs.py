"""`rlhf annotators`: accounts with passwords that work, shown once and found again; lists of names; pseudonyms."""

import json
import os
import stat
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from labeling.service.connection import connect, items
from tasks.labels.label import pseudonym
from tasks.labels.passwords import known_passwords
from tasks.labels.round import argilla as round_argilla
from tests.lifecycle_runs import rlhf


def sign_in(argilla: dict[str, str], name: str, password: str) -> httpx.Response:
    return httpx.post(f"{argilla['ARGILLA_API_URL']}/api/v1/token", data={"username": name, "password": password})


def test_accounts_are_made_once_with_passwords_that_work(
    argilla: dict[str, str], rlhf_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("verb-kim\n\nverb-lou\n")
    made = rlhf("annotators", "create", "verb-zoe", "--from", tmp_path / "names.txt", "--workspace", "verbs").document
    assert set(made["created"]) == {"verb-zoe", "verb-kim", "verb-lou"} and made["existing"] == []
    for name, password in made["created"].items():
        token = sign_in(argilla, name, password).raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        seen = httpx.get(f"{argilla['ARGILLA_API_URL']}/api/v1/me/workspaces", headers=headers).json()["items"]
        assert [workspace["name"] for workspace in seen] == ["verbs"]
    kept = rlhf_home / "credentials" / "verbs.json"
    again = rlhf("annotators", "create", "verb-zoe", "--workspace", "others")
    assert again.document == {"created": {}, "existing": ["verb-zoe"], "passwords_in": {"verb-zoe": str(kept)}}
    assert not any(password in again.stdout + again.stderr for password in made["created"].values())
    listed = {each["name"]: each["workspaces"] for each in rlhf("annotators", "list").document["annotators"]}
    assert listed["verb-kim"] == ["verbs"]
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600 and "verb-kim" in json.dumps(json.loads(kept.read_text()))


def test_no_names_and_a_missing_list_are_one_sentence(argilla: dict[str, str], tmp_path: Path) -> None:
    assert "Give usernames, or --from FILE" in rlhf("annotators", "create").error
    assert "cannot be read" in rlhf("annotators", "create", "--from", tmp_path / "none.txt").error


def test_a_lost_password_is_replaced_and_a_run_knows_the_new_one(
    argilla: dict[str, str], rlhf_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in argilla.items():
        monkeypatch.setenv(name, value)
    old = rlhf("annotators", "create", "reset-ann", "reset-bob", "--workspace", "here").document["created"]
    new = rlhf("annotators", "reset", "reset-ann", "--workspace", "elsewhere").document["reset"]
    assert new.keys() == {"reset-ann"} and new["reset-ann"] != old["reset-ann"]
    assert sign_in(argilla, "reset-ann", old["reset-ann"]).status_code == 401
    for name, password in (old | new).items():
        assert sign_in(argilla, name, password).is_success
    assert not (rlhf_home / "credentials" / "elsewhere.json").exists(), "it takes the place of the old one"
    with round_argilla() as client:
        assert (
            known_passwords(client, "third", ["reset-ann", "reset-bob", "nobody-else"]).items() >= (old | new).items()
        )
    assert "no annotator 'reset-nobody'" in rlhf("annotators", "reset", "reset-bob", "reset-nobody").error
    assert "is owner in Argilla, not annotator" in rlhf("annotators", "reset", "reset-bob", "owner").error
    assert sign_in(argilla, "reset-bob", old["reset-bob"]).is_success, "nobody's is changed where one is unknown"


@pytest.mark.parametrize("bad", ["bad name!", "-dash", "a" * 65])
def test_names_that_no_recipe_could_hold_are_refused_before_any_account_is_made(
    argilla: dict[str, str], tmp_path: Path, bad: str
) -> None:
    (tmp_path / "names.txt").write_text(f"# the team\n\n  list-eve\n{bad}\n")
    assert f"'{bad}' is no username" in rlhf("annotators", "create", "--from", tmp_path / "names.txt").error
    assert "list-eve" not in {each["name"] for each in rlhf("annotators", "list").document["annotators"]}


def test_comments_in_a_list_are_no_names_and_pseudonyms_are_those_of_reports(
    argilla: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("# the team\n\n  list-kai\nlist-kai\n")
    assert list(rlhf("annotators", "create", "--from", tmp_path / "names.txt").document["created"]) == ["list-kai"]
    with closing(connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])) as client:
        [user] = [user for user in items(client, "/api/v1/users") if user["username"] == "list-kai"]
    [listed] = [each for each in rlhf("annotators", "list").document["annotators"] if each["name"] == "list-kai"]
    assert listed == {"name": "list-kai", "pseudonym": pseudonym(user["id"]), "workspaces": ["rlhf"]}
