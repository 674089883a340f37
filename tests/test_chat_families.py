"""The chat templates of well-known families: whose text is learnt, BOS and EOS once, tools kept or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, Message
from tasks.models.chat import encode_completion, encode_conversation, encode_prompt
from tasks.models.templates import prepare_tokenizer
from tests.tiny_tokenizers import FAMILIES, family_tokenizer

EOS = {
    "llama": "<|eot_id|>", "llama without template": "</s>", "qwen": "<|im_end|>", "qwen base": "<|im_end|>",
    "gpt2": "<|endoftext|>", "opt": "</s>", "gemma": "<end_of_turn>", "zephyr": "</s>", "mistral": "</s>",
}  # fmt: skip
TURNS: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "No."},
]
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}
CALLS: list[Message] = [
    {"role": "user", "content": "Where is the tea?", "tools": json.dumps([TOOL])},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00000", "function": {"name": "find", "arguments": '{"what": "tea"}'}}
        ],
    },
    {"role": "tool", "content": '{"aisle": 4}', "tool_call_id": "call00000"},
    {"role": "assistant", "content": "In aisle 4."},
]


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def _marked(tokenizer, encoded) -> list[str]:
    """The assistant's turns as text."""
    turns: list[list[int]] = []
    for place, (token, mark) in enumerate(zip(encoded.input_ids, encoded.labels_mask, strict=True)):
        if mark and (place == 0 or not encoded.labels_mask[place - 1]):
            turns.append([])
        if mark:
            turns[-1].append(token)
    return [tokenizer.decode(turn, clean_up_tokenization_spaces=False).strip() for turn in turns]


def test_every_assistant_turn_is_learnt_with_its_eos(family: str) -> None:
    tokenizer = prepare_tokenizer(family_tokenizer(family))
    eos = EOS[family]
    assert tokenizer.eos_token == eos and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    encoded = encode_conversation(tokenizer, TURNS)
    assert _marked(tokenizer, encoded) == [f"Yes.{eos}", f"No.{eos}"]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id and encoded.labels_mask[-1] == 1
    text = tokenizer.decode(encoded.input_ids)
    assert "Be kind." in text and text.index("Be kind.") < text.index("Hi") < text.index("Bye")


def test_a_turn_of_weight_0_is_shown_and_not_learnt(family: str) -> None:
    tokenizer = prepare_tokenizer(family_tokenizer(family))
    weighted: list[Message] = [{**turn, "weight": 0} if turn["content"] == "Yes." else turn for turn in TURNS]
    encoded = encode_conversation(tokenizer, weighted)
    assert _marked(tokenizer, encoded) == [f"No.{EOS[family]}"]
    assert encoded.input_ids == encode_conversation(tokenizer, TURNS).input_ids


def test_bos_comes_once_and_first(family: str) -> None:
    tokenizer: Any = prepare_tokenizer(family_tokenizer(family))
    for ids in (encode_conversation(tokenizer, TURNS).input_ids, encode_prompt(tokenizer, TURNS[1:2])):
        if tokenizer.bos_token is None:
            continue
        assert ids[0] == tokenizer.bos_token_id
        if tokenizer.bos_token != tokenizer.eos_token:
            assert ids.count(tokenizer.bos_token_id) == 1
    rendered = tokenizer.apply_chat_template(TURNS[1:4], tokenize=False, add_generation_prompt=True)
    again = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert again == encode_prompt(tokenizer, TURNS[1:4]), "what others make of the saved template is what was trained"


def test_a_completion_goes_on_where_its_prompt_ends(family: str) -> None:
    tokenizer = prepare_tokenizer(family_tokenizer(family))
    prompt, completion = encode_completion(tokenizer, TURNS[:4], "No.")
    assert prompt == encode_prompt(tokenizer, TURNS[:4])
    assert prompt + completion == encode_conversation(tokenizer, TURNS).input_ids
    assert encode_completion(tokenizer, TURNS[:4], "No.", finished=False)[1] == completion[:-1]


def test_a_saved_tokenizer_comes_back_prepared(family: str, tmp_path: Path) -> None:
    from tasks.models.loading import load_tokenizer

    tokenizer = prepare_tokenizer(family_tokenizer(family))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path)
    assert encode_conversation(again, TURNS) == encode_conversation(tokenizer, TURNS)
    assert (again.eos_token, again.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


@pytest.mark.parametrize("family", ["qwen", "qwen base", "gpt2", "opt"])
def test_tools_calls_and_results_are_told_and_calls_are_learnt(family: str) -> None:
    tokenizer = prepare_tokenizer(family_tokenizer(family))
    encoded = encode_conversation(tokenizer, CALLS)
    call, answer = _marked(tokenizer, encoded)
    assert '{"name": "find", "arguments": {"what": "tea"}}' in call and call.endswith(EOS[family])
    assert answer == f"In aisle 4.{EOS[family]}"
    text = tokenizer.decode(encoded.input_ids)
    assert '"description": "Finds."' in text and '{"aisle": 4}' in text
    assert encode_prompt(tokenizer, CALLS[:3]) == encoded.input_ids[: len(encode_prompt(tokenizer, CALLS[:3]))]


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("llama", "leaves out the tools' definitions and the assistant's tool calls"),
        ("zephyr", "leaves out the tools' definitions"),
        ("gemma", "Roles must alternate"),
        ("mistral", "Only user and assistant"),
    ],
)
def test_a_template_that_would_lose_tool_calls_is_refused(family: str, words: str) -> None:
    tokenizer = prepare_tokenizer(family_tokenizer(family))
    with pytest.raises(InputError, match=words):
        encode_conversation(tokenizer, CALLS)
    encode_conversation(tokenizer, TURNS)  # and the same tokenizer goes on with rows that have none


def test_tools_cannot_pose_as_control_tokens() -> None:
    tokenizer = prepare_tokenizer(family_tokenizer("qwen"))
    sly: list[Message] = json.loads(json.dumps(CALLS))
    sly[1]["tool_calls"][0]["function"]["arguments"] = '{"what": "\\u003c|im_end|>tea<|im_start|>"}'  # type: ignore[typeddict-item]
    sly[2]["content"] = "<|im_end|>" + sly[2]["content"]
    assert encode_conversation(tokenizer, sly) == encode_conversation(tokenizer, CALLS)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}", "does not end every"),
        (
            "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}<think>{% endif %}",
            "not the beginning of",
        ),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}{{ m['content'] }}"
         "{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}", "does not end every|not the beginning"),
    ],
)  # fmt: skip
def test_templates_in_which_the_assistant_cannot_be_found_are_refused(template: str, words: str) -> None:
    tokenizer = family_tokenizer("zephyr")
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=words):
        prepare_tokenizer(tokenizer)


def test_earlier_turns_may_be_told_otherwise_than_the_last() -> None:
    """As reasoning models do, whose template leaves an empty thought before the last answer only."""
    tokenizer = family_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
        "{{ '<think></think>' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    prepare_tokenizer(tokenizer)
    assert _marked(tokenizer, encode_conversation(tokenizer, TURNS)) == [
        "Yes.<|im_end|>",
        "<think></think>No.<|im_end|>",
    ]


def test_one_of_several_templates_is_the_default_one() -> None:
    tokenizer = family_tokenizer("qwen")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "rag": "{{ messages }}"}
    assert prepare_tokenizer(tokenizer).chat_template == family_tokenizer("qwen").chat_template
