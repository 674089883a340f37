"""`rlhf chat`: commands, a conversation that outgrows the model, names that are not known."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.talk import Talk
from flows.tree import resolve_model
from tasks.artifact import InputError, PipelineError
from tests.tiny_models import tiny_model, tiny_tokenizer


def model(folder: Path, kind: str) -> str:
    """A plain model folder of 128 positions."""
    tiny_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


class Typed(Console):
    """A terminal at which these lines are typed."""

    def __init__(self, *lines: str) -> None:
        super().__init__(record=True, width=200, quiet=True)
        self.lines, self.said = list(lines), []

    def input(self, *given: Any, **more: Any) -> str:
        return self.lines.pop(0) if self.lines else "/quit"

    def print(self, *given: Any, **more: Any) -> None:
        self.said.append(" ".join(map(str, given)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_conversation_that_is_too_long_goes_on(tmp_path: Path, kind: str) -> None:
    name = model(tmp_path, kind)
    talk, console = Talk(0.0, 400), Typed("Hi", "word " * 200, "/new", "Hi")
    talk.use(name)
    talk.converse(console)
    _, first, refused, again = console.said
    assert "model has 128 positions" in refused and "/new" in refused
    assert first == again and first.startswith(name), "answers end where the positions do"
    talk = Talk(0.0, 4)
    talk.use(name)
    with pytest.raises(InputError, match="begin another with /new"):
        talk.ask("word " * 200)
    assert isinstance(talk.ask("Hi"), str), "the turn that was too long is not kept"


def test_commands_are_not_sent_to_the_model(tmp_path: Path) -> None:
    name, other = model(tmp_path / "a", "llama"), model(tmp_path / "b", "gpt2")
    talk, console = Talk(0.0, 4), Typed("/help", "/use", "/use nowhere", f"/use {other}", "Hi")
    talk.use(name)
    talk.converse(console)
    told, used = console.said[1], console.said[2]
    assert "/use MODEL" in told and f"Loaded: {name}." in used
    assert console.said[-2] == f"Talking to {other}, in the same conversation."
    assert console.said[-1].startswith(f"{other}: ")


def test_candidates_that_no_gate_let_pass_are_told_by_key() -> None:
    class Empty:
        def find(self, *given: str) -> None:
            return None

        def versions(self) -> list[Any]:
            return []

    records = {"a" * 64: {"stage": "merge", "name": "merge dpo"}, "b" * 64: {"stage": "reward", "name": "reward"}}
    with pytest.raises(PipelineError, match=r"none yet, run a recipe; candidates by key: merge dpo aaaaaaaaaaaa\."):
        resolve_model("dpo", Empty(), records)  # type: ignore[arg-type]
    assert resolve_model("aaaaaaaaaaaa", Empty(), records) == ("a" * 64, None)  # type: ignore[arg-type]
