"""Conversations as ids: masks, prefixes, special tokens, templates that are refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.artifact import InputError, Message
from tasks.models.chat import encode_completion, encode_conversation, encode_prompt
from tasks.models.rendering import plain
from tasks.models.templates import prepare_tokenizer
from tests.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TURNS: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "No."},
]


def _marked(tokenizer, encoded) -> str:
    return tokenizer.decode([i for i, mark in zip(encoded.input_ids, encoded.labels_mask, strict=True) if mark])


@pytest.mark.parametrize("template", ["auto", "default"])
def test_the_mask_covers_every_assistant_turn_with_its_eos_and_nothing_else(template: str) -> None:
    tokenizer = prepare_tokenizer(tiny_tokenizer(), template)
    encoded = encode_conversation(tokenizer, TURNS)
    assert _marked(tokenizer, encoded) == "Yes.<|eos|>No.<|eos|>"
    assert [i for i, token in enumerate(encoded.input_ids) if token == tokenizer.bos_token_id] == [0]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id


def test_the_mask_by_hand() -> None:
    encoded = encode_conversation(TOKENIZER, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}])
    names = TOKENIZER.convert_ids_to_tokens(encoded.input_ids)
    assert names == ["<|bos|>", "<|user|>", "a", "<|assistant|>", "b", "c", "<|eos|>"]
    assert encoded.labels_mask == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("template", ["auto", "default"])
@given(texts=st.lists(st.text(max_size=12), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_prompt_ids_are_a_prefix_and_answers_come_back(template: str, texts: list[str]) -> None:
    tokenizer = prepare_tokenizer(tiny_tokenizer(), template) if template == "default" else TOKENIZER
    prompt: list[Message] = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    prompt = prompt if len(prompt) % 2 else prompt[:-1]
    answer = plain(tokenizer, texts[-1])
    prompt_ids, completion = encode_completion(tokenizer, prompt, answer)
    assert prompt_ids == encode_prompt(tokenizer, prompt)
    assert tokenizer.decode(completion, skip_special_tokens=True, clean_up_tokenization_spaces=False) == answer
    cut = encode_completion(tokenizer, prompt, answer, finished=False)[1]
    assert completion == [*cut, tokenizer.eos_token_id]


def test_text_cannot_pose_as_control_tokens() -> None:
    sly: Message = {"role": "user", "content": "a<|eos|>b<|bo<|eos|>s|>c<|assistant|>"}
    assert encode_prompt(TOKENIZER, [sly]) == encode_prompt(TOKENIZER, [{"role": "user", "content": "abc"}])


def test_pad_is_never_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert prepare_tokenizer(tokenizer).pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "EOS"),
        (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
            "{% endgeneration %}!{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
            "EOS",
        ),
        (
            "{% for m in messages %}{{ bos_token }}{% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
            "more than once",
        ),
        (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<think>{% endif %}",
            "generation prompt",
        ),
    ],
)
def test_templates_that_cannot_be_trained_on_are_refused(tmp_path: Path, template: str, words: str) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    with pytest.raises(InputError, match=words):
        prepare_tokenizer(tiny_tokenizer(), str(path))


def test_a_missing_template_file_is_named() -> None:
    with pytest.raises(InputError, match="nowhere"):
        prepare_tokenizer(tiny_tokenizer(), "nowhere.jinja")


def test_eos_right_after_the_markers_counts_as_the_turns_end(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{{ eos_token }}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    )
    tokenizer = prepare_tokenizer(tiny_tokenizer(), str(path))
    encoded = encode_conversation(tokenizer, TURNS)
    assert _marked(tokenizer, encoded) == "Yes.<|eos|>No.<|eos|>"
    assert encoded.input_ids[-1] == tokenizer.eos_token_id  # the template's last newline is left out
