"""A judge's or another model's API key: where it comes from, and how it is kept out of what is shown."""

import os
import re

from labeling.comparison import LabelingError


def key_in(key_env: str | None, who: str = "judge") -> str:
    """The key in an environment variable; empty where none is named. Raises `LabelingError` when it is not there."""
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise LabelingError(f"{key_env} is not set; put the {who}'s API key into that environment variable.")
    if not key.isascii() or not key.isprintable():
        raise LabelingError(f"{key_env} holds characters no API key has; set it to the {who}'s key.")
    return key


def quoted(text: str, key: str, longest: int = 200) -> str:
    """What somebody else wrote as it may be shown: one line, shortened, without control characters or keys."""
    shown = text.replace(key, "(key)") if key else text
    shown = re.sub(r"\bsk-[\w*.-]{4,}", "(key)", shown)[: 4 * longest]
    shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
