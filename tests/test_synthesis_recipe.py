"""What a recipe may say about synthesis, and what it is told where it may not."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifact import InputError, Row
from tasks.recipe import explain
from tasks.synthesis.recipe import SynthesisRecipe
from tests.synthesis_author import Author, chain, endpoint, made
from tests.test_ai_endpoint import serving


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


def test_the_recipes_own_words_take_the_place_of_a_prompt(tmp_path: Path) -> None:
    author = Author()
    words = "You rewrite instructions, my way.\n----------\n{{ instruction }}\n----------\n"
    with serving(author) as server:
        steps = [*chain(tmp_path)[:1], {"kind": "evolve", "operations": ["deepen"]}]
        made(tmp_path / "w", endpoint(server.url), steps, prompts={"evolve_deepen": words})
        assert sum("my way" in str(body) for body in server.requests) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "is empty; write one seed task per line"),
        ('{"text": "x"}\n[1]\n', "holds no seed task: row 1 as a seed has no prompt"),
        ("\xff", "holds no seed task|UTF-8"),
    ],
)
def test_seeds_that_are_none_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "none.jsonl").write_text(content, encoding="latin-1")
    step = {"kind": "self_instruct", "seeds": str(tmp_path / "none.jsonl")}
    with pytest.raises(InputError, match=message):
        made(tmp_path / "w", endpoint("http://127.0.0.1:9/v1"), [step])


BASE: Row = {"name": "made", "writer": endpoint("https://host/v1"), "steps": [{"kind": "answer"}]}
FROM: Row = {"rows": {"kind": "json", "name": "mine", "path": "x.jsonl"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "begins with either 'rows' or a first step 'self_instruct'"),
        ({**FROM, "steps": [{"kind": "answer"}, {"kind": "self_instruct", "seeds": "x"}]}, "is not the first step"),
        ({**FROM, "steps": [{"kind": "self_instruct", "seeds": "x"}]}, "give one of both"),
        ({**FROM, "steps": []}, "at least 1 item"),
        ({**FROM, "steps": [{"kind": "revise"}]}, "needs 'principles' or 'principles_file'"),
        ({**FROM, "steps": [{"kind": "revise", "principles": [" "]}]}, "holds an empty one"),
        ({**FROM, "steps": [{"kind": "evolve", "operations": ["shout"]}]}, "constraints"),
        (
            {**FROM, "writer": endpoint("https://h/v1", temperature=0), "steps": [{"kind": "answer", "candidates": 8}]},
            "several 'candidates' at temperature 0",
        ),
        ({**FROM, "prompts": {"shout": "x"}}, "the prompts are instructions"),
        ({**FROM, "prompts": {"critique": "x"}}, "has no place for what it is about"),
        ({**FROM, "writer": endpoint("https://me:secret@host/v1")}, "environment variable"),
        ({**FROM, "writer": endpoint("https://h/v1", options={"temperature": 1})}, "has a field of its own"),
        ({**FROM, "writer": {"kind": "local", "model": "sft"}}, "before the SFT model is there"),
        ({"steps": [{"kind": "self_instruct", "seeds": "x", "words": [9, 3]}]}, "fewest <= most"),
    ],
)
def test_a_synthesis_that_cannot_be_is_refused(change: Row, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        SynthesisRecipe.model_validate({**BASE, **change})
    assert "secret" not in "; ".join(explain(SynthesisRecipe, error.value))
