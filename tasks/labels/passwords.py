"""Passwords of annotators' accounts, where only this user reads them: made and kept here before the accounts are."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from labeling.service.accounts import usernames


@dataclass(frozen=True)
class Kept:
    """A password and the file it lies in."""

    password: str
    file: Path


def new_password() -> str:
    return secrets.token_urlsafe(12)


def known_passwords(client: httpx.Client, workspace: str, names: Sequence[str]) -> dict[str, str]:
    """Passwords by name, as far as they are known; made for names without an account, in the file of a workspace."""
    known = {name: kept.password for name, kept in kept_passwords().items()}
    strangers = set(names) - usernames(client)
    fresh = {name: new_password() for name in sorted(strangers - known.keys())}
    keep_passwords(fresh, workspace)
    return {name: (known | fresh)[name] for name in names if name in known | fresh}


def kept_passwords() -> dict[str, Kept]:
    """What is known of the accounts of this Argilla, which are the same in all its workspaces."""
    return {
        name: Kept(password, path)
        for path in sorted(_folder().glob("*.json"))
        for name, password in json.loads(path.read_text()).get(_url(), {}).items()
    }


def keep_passwords(passwords: Mapping[str, str], workspace: str) -> None:
    """Keep passwords (mode 0600) in the place of former ones, else in the file of a workspace."""
    before = kept_passwords()
    changed: dict[Path, dict[str, str]] = {}
    for name, password in passwords.items():
        path = before[name].file if name in before else _folder() / f"{workspace}.json"
        changed.setdefault(path, {})[name] = password
    for path, fresh in changed.items():
        kept: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        kept.setdefault(_url(), {}).update(fresh)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(kept, file, indent=1)
        partial.replace(path)


def _folder() -> Path:
    return Path(os.environ.get("RLHF_HOME", ".rlhf")) / "credentials"


def _url() -> str:
    return os.environ["ARGILLA_API_URL"].rstrip("/")
