"""Pre-training a base from generated text."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifact import InputError
from tasks.models.chat import encode_conversation
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.models.pretrain import BaseRecipe, build_base
from tasks.models.pretrain_engine import document_rows
from tests.tiny_models import tiny_tokenizer, work_in

SMALL: dict[str, Any] = {
    "corpus": "tests.tiny_models:corpus",
    "documents": 64,
    "vocabulary": 320,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "positions": 128,
}


def test_a_base_learns_its_corpus_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = []
    works = [work_in(tmp_path / name, seed=4) for name in "ab"]
    for work in works:
        build_base(BaseRecipe(**SMALL, epochs=8), {}, work)
        made.append({str(p.relative_to(work.out)): p.read_bytes() for p in work.out.rglob("*") if p.is_file()})
    work = works[0]
    assert made[0] == made[1]
    assert work.metrics["last_loss"] < 0.7 * work.metrics["first_loss"]
    tokenizer: Any = load_tokenizer(work.out)
    model = load_causal_lm([work.out])
    assert len(tokenizer) == model.config.vocab_size <= 320
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert encode_conversation(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_a_base_takes_the_chat_template_that_is_asked_for(tmp_path: Path) -> None:
    """Its own is a token for each role, and knows no tools."""
    called = {"type": "function", "function": {"name": "add", "arguments": '{"of": [1, 2]}'}}
    tools = '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'
    turns: list[Any] = [
        {"role": "user", "content": "1 + 2?", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": [called]},
    ]
    for asked in ("auto", "default"):
        work = work_in(tmp_path / asked)
        build_base(BaseRecipe(**SMALL, chat_template=asked), {}, work)
        tokenizer = load_tokenizer(work.out)
        if asked == "auto":
            with pytest.raises(InputError, match=r'leaves out the tools.* set chat_template = "default"'):
                encode_conversation(tokenizer, turns)
        else:
            assert 'Call: {"name": "add"' in tokenizer.decode(encode_conversation(tokenizer, turns).input_ids)


def test_rows_begin_where_documents_do_and_roles_are_one_token() -> None:
    tokenizer = tiny_tokenizer()
    rows = document_rows(["<|user|>a<|assistant|>b", "abcdefgh"], tokenizer, context=6)
    assert [tokenizer.convert_ids_to_tokens(row.input_ids) for row in rows] == [
        ["<|bos|>", "<|user|>", "a", "<|assistant|>", "b", "<|eos|>"],
        ["<|bos|>", "a", "b", "c", "d", "e"],
        ["f", "g", "h", "<|eos|>"],
    ]


def test_an_empty_corpus_is_one_sentence(tmp_path: Path) -> None:
    recipe = BaseRecipe(**{**SMALL, "corpus": "tests.tiny_models:no_corpus"})
    with pytest.raises(InputError, match="gave no text"):
        build_base(recipe, {}, work_in(tmp_path))


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"layers": 0}, {"hiden": 4}, {"corpus": "nowhere:nothing"}])
def test_impossible_bases_are_refused_before_anything_runs(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        BaseRecipe(**{**SMALL, **wrong})
