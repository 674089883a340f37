"""What a tokenizer must have before it is used: a pad token that is not EOS, and a reliable chat template."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifact import InputError
from tasks.models.chat import PROBE, closing_of, encode_conversation, marks_assistant, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant:\\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
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
    """Give the tokenizer a pad token that is not EOS and a chat template that marks the assistant's text; in place.

    `chat_template`: "auto" keeps the tokenizer's own or takes the default where it has none, "default" takes the
    default, anything else is the path of a Jinja file. Raises `InputError` for a template that cannot be trained on.

    scoring: for a reward model of its own family. Its template need not mark the assistant's text, and its tokenizer
    may be an encoder's: the separator is then EOS, CLS is BOS, and the default template separates turns with them.
    """
    default = DEFAULT_TEMPLATE
    if scoring and tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        default = SEPARATED_TEMPLATE
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    if tokenizer.eos_token_id is None:
        raise InputError("The tokenizer has no EOS token, so nothing could end an answer; set eos_token in its config.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        _set_pad(tokenizer)
    tokenizer.padding_side = "right"
    if chat_template == "default" or (chat_template == "auto" and not tokenizer.chat_template):
        tokenizer.chat_template = default
    elif chat_template != "auto":
        path = Path(chat_template)
        if not path.is_file():
            raise InputError(f'The chat template {path} does not exist; give "auto", "default" or a Jinja file.')
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if scoring and not marks_assistant(tokenizer):
        closing_of(tokenizer)
    else:
        check_template(tokenizer)
    return tokenizer


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `InputError` unless the template marks the assistant's text, ends it with EOS and extends its prompts."""
    if not marks_assistant(tokenizer):
        raise InputError(
            "The chat template does not mark the assistant's text with {% generation %}, so the loss could not be "
            'limited to it; set chat_template = "default" or the path of a template with the markers.'
        )
    encode_conversation(tokenizer, PROBE)
    for count in (2, 4):
        prompt, whole = render(tokenizer, PROBE[: count - 1], True)[0], render(tokenizer, PROBE[:count], False)[0]
        if not whole.startswith(prompt):
            raise InputError(
                "The chat template's generation prompt is not the beginning of the finished conversation; "
                'set chat_template = "default" or the path of a template without such a prefill.'
            )


def _set_pad(tokenizer: "PreTrainedTokenizerBase") -> None:
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        tokenizer.pad_token = tokenizer.unk_token
        return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
