"""What remains of an erased annotator: that, when and what was erased, and what keeps them erased.

A tombstone names nobody. It holds the pseudonym, the ids of the judgements and how many votes each record had from
them, so that a round is not asked to make up for what it had. A salted hash of the username (scrypt, RFC 7914) lets a
recipe that still names the person be told apart: their account is not made anew.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TOMBSTONE = "rlhf.tombstone"
"""On the MLflow run that is a tombstone's copy: the pseudonym."""


class Tombstone(BaseModel):
    """One erased annotator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotator: str
    """The pseudonym."""
    state: Literal["begun", "done"]
    """An interrupted erasure is begun and goes on when it is run again."""
    begun_at: str
    erased_at: str | None = None
    salt: str
    name_hash: str
    """What a username is recognised by; the name itself is not kept."""
    judgements: tuple[str, ...] = ()
    """Ids of the judgements."""
    votes: dict[str, dict[str, int]] = {}
    """Round -> record -> votes it had from them."""
    artifacts: tuple[str, ...] = ()
    """Keys of the erased snapshots."""

    def names(self, username: str) -> bool:
        """Whether a username is that of the erased person."""
        return secrets.compare_digest(self.name_hash, _hash(username, self.salt))

    def public(self) -> dict[str, Any]:
        """What others may see of it: nothing that a username can be tried against."""
        return self.model_dump(mode="json", exclude={"salt", "name_hash"})


def recognised(username: str) -> tuple[str, str]:
    """A fresh salt and the hash of a username with it."""
    salt = secrets.token_hex(16)
    return salt, _hash(username, salt)


def folder(home: Path | None = None) -> Path:
    """Where tombstones lie: under `home`, else under `RLHF_HOME`."""
    return (home or Path(os.environ.get("RLHF_HOME", ".rlhf"))) / "tombstones"


def read_tombstones(home: Path | None = None) -> list[Tombstone]:
    """All tombstones, oldest first."""
    stones = [Tombstone.model_validate_json(path.read_text()) for path in folder(home).glob("*.json")]
    return sorted(stones, key=lambda stone: stone.begun_at)


def write_tombstone(stone: Tombstone, home: Path | None = None) -> None:
    """Keep a tombstone, in one step and readable by this user only."""
    folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder(home) / f"{stone.annotator}.json"
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(stone.model_dump(mode="json"), file, indent=1)
    partial.replace(path)


def not_erased(usernames: Sequence[str], stones: Sequence[Tombstone]) -> tuple[str, ...]:
    """The usernames without those of erased people."""
    return tuple(name for name in usernames if not any(stone.names(name) for stone in stones))


def erased_votes(round: str, stones: Sequence[Tombstone]) -> Mapping[str, int]:
    """Record -> votes it had from people who were erased since."""
    votes: dict[str, int] = {}
    for stone in stones:
        for record, count in stone.votes.get(round, {}).items():
            votes[record] = votes.get(record, 0) + count
    return votes


def _hash(username: str, salt: str) -> str:
    return hashlib.scrypt(username.encode(), salt=bytes.fromhex(salt), n=2**13, r=8, p=1, dklen=32).hex()
