"""`rlhf data preview`: conversations as SFT will see them, the shares, what the filters do; and training on it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import read_jsonl
from tasks.data.preview import sample, shown
from tasks.training.sft import SftRecipe, train_sft
from tests.lifecycle_runs import RLHF, rlhf
from tests.test_ai_endpoint import KEY, serving
from tests.test_mixture import alpaca, prepare
from tests.test_model_filters import answers, rate
from tests.tiny_models import tiny_base, tiny_model, tiny_tokenizer, work_in

RECIPE = """
name = "seen"
[data]
source = "mixture"
[[data.sets]]
name = "chat"
kind = "json"
path = "{chat}"
[[data.sets]]
name = "text"
kind = "text"
path = "{text}"
share = 0.25
[[data.filters]]
kind = "length"
[[policy]]
method = "dpo"
"""


def files(folder: Path) -> dict[str, str]:
    (folder / "text.txt").write_text("\n\n".join(f"A story about item {n}." for n in range(50)))
    return {"chat": alpaca(folder / "chat.jsonl", 80), "text": str(folder / "text.txt")}


def test_the_verb_shows_masks_counts_and_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    recipe = tmp_path / "seen.toml"
    recipe.write_text(RECIPE.format(**files(tmp_path)))
    document = rlhf("data", "preview", recipe, "--rows", "1").document
    assert [row["set"] for row in document["mixture"]] == ["chat", "text"]
    assert document["mixture"][1]["share"] == pytest.approx(0.25, abs=0.03)
    assert "not built yet" in document["tokenizer"] and document["conversations"][0]["tokens"] is None
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    story = tmp_path / "text.txt"
    story.write_text(story.read_text().replace(".", f".{tiny_tokenizer().eos_token}"))
    document = rlhf("data", "preview", recipe, "--rows", "1", "--set", f"base.model={model}", "--head", "60").document
    assert any("rows hold control tokens" in row["notice"] for row in document["notices"])
    chat, text = document["conversations"]
    learnt = "".join(piece["text"] for piece in chat["pieces"] if piece["loss"])
    assert learnt.startswith("It is ") and 0 < chat["loss_tokens"] < chat["tokens"] and document["head"] == 60
    assert text["loss_tokens"] == text["tokens"] and document["mixture"][0]["read"] == 60
    plain = subprocess.run(
        [RLHF, "data", "preview", recipe, "--of", "chat"], capture_output=True, text=True, check=True
    )
    assert "mixture" in plain.stdout and "filters" in plain.stdout and "not counted" in plain.stdout
    assert "has no set 'nothing'; its sets are chat, text" in rlhf("data", "preview", recipe, "--of", "nothing").error


def test_rows_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    names = files(tmp_path)
    rows = "".join(
        json.dumps({"prompt": f"\x1b[2JWhat of {n}? \u202eabc", "completion": f"\x1b]0;x\x07It is {n}."}) + "\n"
        for n in range(40)
    )
    Path(names["chat"]).write_text(rows + json.dumps({"instruction": "\x1b[31m", "output": " "}) + "\n")
    recipe = tmp_path / "seen.toml"
    recipe.write_text(RECIPE.format(**names))
    seen = subprocess.run([RLHF, "data", "preview", recipe, "--of", "chat"], capture_output=True, check=True)
    said = (seen.stdout + seen.stderr).decode()
    assert "\N{REPLACEMENT CHARACTER}[2JWhat of" in said and "It is" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_turns_of_weight_0_are_shown_outside_the_loss() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    row = {"messages": [*turns, turns[0], {"role": "assistant", "content": "d"}]}
    for tokenizer in (None, tiny_tokenizer()):
        learnt = "".join(piece["text"] for piece in shown(row, tokenizer)["pieces"] if piece["loss"])
        assert "d" in learnt and "b" not in learnt.replace("</s>", "")


def test_rows_shown_are_different_and_those_of_evaluation_sets_are_prompts(tmp_path: Path) -> None:
    sets: list[dict[str, Any]] = [
        {"name": "few", "kind": "json", "path": alpaca(tmp_path / "few.jsonl", 6), "use": "sft", "boost": 50.0},
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 60, 100)},
        {"name": "exam", "kind": "json", "path": alpaca(tmp_path / "exam.jsonl", 9, 500), "use": "evaluation"},
    ]
    data = prepare(tmp_path / "data", sets=sets, mix={"rows": 320, "repeats": 50})
    assert sum(row["set"] == "few" for row in read_jsonl(data.out / "sft.jsonl")) > 18
    rows = sample(data.out, 6, None, 0)
    assert [row["set"] for row in rows] == ["chat"] * 6 + ["exam"] * 6 + ["few"] * 6
    assert len({json.dumps(row) for row in rows}) == 18 and rows == sample(data.out, 6, None, 0)
    assert rows[:6] != sample(data.out, 6, "chat", 1)
    exam = sample(data.out, 20, "exam", 0)
    assert len(exam) == 9
    for tokenizer in (None, tiny_tokenizer()):
        document = shown(exam[0], tokenizer)
        said = "".join(piece["text"] for piece in document["pieces"])
        assert "What of" in said and "It is" not in said and not any(piece["loss"] for piece in document["pieces"])
    assert document["loss_tokens"] == 0 < document["tokens"]


def test_a_filter_that_drops_everything_is_shown_with_what_it_dropped(tmp_path: Path) -> None:
    recipe = tmp_path / "seen.toml"
    recipe.write_text(RECIPE.format(**files(tmp_path)).replace('"length"', '"length"\ncompletion = [100]'))
    command = [RLHF, "data", "preview", recipe]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "150"})
    assert done.returncode == 1 and "the completion has fewer than 100 words" in done.stderr
    assert "error: No row is left: of 130 rows 'length' dropped 130; loosen the filters" in done.stderr


def test_a_mixture_with_plain_text_is_trained_on(tmp_path: Path) -> None:
    paths = files(tmp_path)
    sets: list[dict[str, Any]] = [{"name": "chat", "kind": "json", "path": paths["chat"]}]
    sets.append({"name": "text", "kind": "text", "path": paths["text"], "share": 0.25})
    data = prepare(tmp_path / "data", sets=sets)
    rows = read_jsonl(data.out / "sft.jsonl")
    assert sum("text" in row for row in rows) > 4
    work = work_in(tmp_path / "sft")
    train_sft(SftRecipe(epochs=1), {"base": tiny_base(tmp_path / "base"), "data": data.out}, work)
    tokenizer = tiny_tokenizer()
    expected = sum(row["loss_tokens"] for row in (shown(row, tokenizer) for row in rows))
    assert work.metrics["trained_tokens"] == expected


def test_last_turns_alone_are_shown_as_they_are_trained() -> None:
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    every, last = (shown({"messages": turns}, tiny_tokenizer(), which) for which in ("all", "last"))  # type: ignore[arg-type]
    assert [piece["text"][0] for piece in every["pieces"] if piece["loss"]] == ["b", "d"]
    assert [piece["text"][0] for piece in last["pieces"] if piece["loss"]] == ["d"]


def test_a_paid_judge_is_asked_only_with_the_word_and_then_once(tmp_path: Path) -> None:
    """Its answers are kept in the project's own home, where nobody says where that is."""
    (tmp_path / ".rlhf").mkdir()
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers(30)))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with serving(rate(4, 2)) as server:
        (tmp_path / "judged.toml").write_text(
            f'name = "judged"\n[base]\nmodel = "{tmp_path / "model"}"\n[data]\nsource = "mixture"\n[[data.sets]]\n'
            f'name = "chat"\nkind = "json"\npath = "{tmp_path / "chat.jsonl"}"\n[[data.filters]]\nkind = "judge"\n'
            f'rubric = "Truth counts."\njudge = {{kind = "endpoint", url = "{server.url}", model = "judge"}}\n'
            '[[policy]]\nmethod = "dpo"\n'
        )
        for verb in (["data", "preview"], ["plan", "--estimate"]):
            done = rlhf(*verb, "judged.toml", cwd=tmp_path, RLHF_HOME="", JUDGE_KEY=KEY)
            assert not server.requests and "judge" in json.dumps(done.document.get("filters", done.document)), verb
            assert (
                verb[0] == "plan"
                or {"filter": "judge", "seen": "not asked"}.items() <= done.document["filters"][-1].items()
            )
        for _ in range(2):
            done = rlhf("data", "preview", "--judge", "judged.toml", cwd=tmp_path, RLHF_HOME="", JUDGE_KEY=KEY)
            assert done.document["filters"][-1]["dropped"] == 15 and len(server.requests) == 30
        plain = subprocess.run(
            [RLHF, "data", "preview", "judged.toml"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "RLHF_HOME": ""},
            check=True,
        )
        assert "not asked" in plain.stdout and "Not asked: judge; --judge asks" in plain.stdout
    assert list((tmp_path / ".rlhf" / "ai-answers").iterdir())


def test_a_row_the_template_refuses_is_shown_with_the_reason() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = f"{tokenizer.chat_template}{{{{ raise_exception('Not this one') }}}}"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    document = shown({"messages": turns, "form": "messages"}, tokenizer)
    assert document["form"] == "refused by the chat template: Not this one" and document["tokens"] is None
    assert "Hello" in "".join(piece["text"] for piece in document["pieces"])
    asked = shown({"prompt": turns[:1]}, tokenizer)
    assert asked["form"] == "refused by the chat template: Not this one" and asked["tokens"] is None
    assert "Hi" in "".join(piece["text"] for piece in asked["pieces"])
