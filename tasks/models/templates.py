"""What a tokenizer must have before it is used: a pad token that is not EOS, and a reliable chat template."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifact import InputError
from tasks.models.chat import closing_of, encode_conversation
from tasks.models.rendering import PROBE, render, special_strings, why_unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for tool in tools or [] %}{{ 'Tool to call: ' + tool | tojson + '\\n' }}{% endfor %}"
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant:\\n' }}{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ 'Call: ' + {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}"
    "{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:\\n' }}{% endif %}"
)
"""Plain turns for models that come without a chat template."""

SEPARATED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""Turns with separators between them, `[CLS] question [SEP] answer [SEP]`: what encoders know as a pair of texts."""


def prepare_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str = "auto", *, scoring: bool = False
) -> "PreTrainedTokenizerBase":
    """Give the tokenizer a pad token that is not EOS and a chat template that shows the assistant's text; in place.

    `chat_template`: "auto" keeps the tokenizer's own or takes the default where it has none, "default" takes the
    default, anything else is the path of a Jinja file. A control token with which the template ends the assistant's
    turns becomes EOS, and a template without the BOS that the tokenizer itself would write gets it. Raises `InputError`
    for a template that cannot be trained on.

    scoring: for a reward model of its own family. Its template need not end the assistant's turns with EOS, and its
    tokenizer may be an encoder's: the separator is then EOS, CLS is BOS, and the default template separates turns with
    them.
    """
    default = DEFAULT_TEMPLATE
    if scoring and tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        default = SEPARATED_TEMPLATE
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    if tokenizer.eos_token_id is None:
        raise InputError("The tokenizer has no EOS token, so nothing could end an answer; set eos_token in its config.")
    tokenizer.padding_side = "right"
    tokenizer.chat_template = _template(tokenizer, chat_template, default)
    if not scoring:
        _end_turns(tokenizer)
        _begin_with_bos(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        _set_pad(tokenizer)
    if scoring and why_unmarked(tokenizer):
        closing_of(tokenizer)
    else:
        check_template(tokenizer)
    return tokenizer


def prepare_to_answer(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Give the tokenizer of a model that only answers a chat template and the EOS that its turns end with, in place.

    Its template need not be one that can be trained on. Raises `InputError` where it has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("The tokenizer has no EOS token, so nothing could end an answer; set eos_token in its config.")
    tokenizer.chat_template = _template(tokenizer, "auto", DEFAULT_TEMPLATE)
    _end_turns(tokenizer)
    _begin_with_bos(tokenizer)
    return tokenizer


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `InputError` unless the assistant's text can be found, ends with EOS and extends its prompt."""
    if reason := why_unmarked(tokenizer):
        raise InputError(reason)
    encode_conversation(tokenizer, PROBE)
    for count in (2, 4):
        prompt, whole = render(tokenizer, PROBE[: count - 1], True)[0], render(tokenizer, PROBE[:count], False)[0]
        if not whole.startswith(prompt):
            raise InputError(
                "The chat template's generation prompt is not the beginning of the finished conversation; "
                'set chat_template = "default" or the path of a template without such a prefill.'
            )


def check_special_tokens(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `InputError` where padding would hide EOS: what is padded is then taken for a finished answer."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            "The tokenizer's pad token is missing or is its EOS token; build the base anew with `rlhf run`, which "
            "gives it one of its own."
        )


def _template(tokenizer: "PreTrainedTokenizerBase", asked: str, default: str) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if asked == "default" or (asked == "auto" and not own):
        return default
    if asked == "auto":
        return str(own)
    path = Path(asked)
    if not path.is_file():
        raise InputError(f'The chat template {path} does not exist; give "auto", "default" or a Jinja file.')
    return path.read_text(encoding="utf-8")


def _end_turns(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the control token that ends the assistant's turns EOS: Gemma's <end_of_turn>, a base model's <|im_end|>."""
    try:
        closing = closing_of(tokenizer).strip()
    except InputError:
        return
    if closing in special_strings(tokenizer):
        tokenizer.eos_token = closing


def _begin_with_bos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let the template write the BOS that the tokenizer puts before any text, where it does not."""
    bos = tokenizer.bos_token
    writes = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]  # type: ignore[index]
    if writes and not render(tokenizer, PROBE[:1], True)[0].startswith(str(bos)):
        tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)


def _set_pad(tokenizer: "PreTrainedTokenizerBase") -> None:
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        tokenizer.pad_token = tokenizer.unk_token
        return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
