"""The owner's login and the server's secrets: files that only this user may read."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

USERNAME = "owner"
PASSWORD, API_KEY, AUTH_SECRET = "owner-password", "owner-api-key", "auth-secret"


def secret(folder: Path, name: str) -> str:
    """The secret kept in `folder/name` (mode 0600), made up on first use. Safe when two processes ask at once."""
    path = folder / name
    if not path.exists():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        handle, draft = tempfile.mkstemp(prefix=f".{name}.", dir=folder)  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, this does not replace a secret someone else has just made
        os.unlink(draft)
    return path.read_text().strip()


def owner(folder: Path) -> tuple[str, str, str]:
    """The owner's (username, password, API key) of the Argilla whose home is `folder`."""
    return USERNAME, secret(folder, PASSWORD), secret(folder, API_KEY)
