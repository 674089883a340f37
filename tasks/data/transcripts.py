"""Whole conversations written as one text: Human and Assistant, the marks of chat templates, Alpaca's."""

import re
from collections.abc import Iterator

from tasks.artifact import Message

_TURN = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)
_BEGINS = re.compile(r"\s*(?:Human|Assistant):")
_MARKS: dict[str, re.Pattern[str]] = {
    "<|im_start|>": re.compile(r"<\|im_start\|>\s*(system|user|assistant)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL),
    "<|start_header_id|>": re.compile(
        r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL
    ),
    "<start_of_turn>": re.compile(r"<start_of_turn>(user|model)\n(.*?)(?:<end_of_turn>|\Z)", re.DOTALL),
    "<|": re.compile(r"<\|(system|user|assistant)\|>(.*?)(?=<\|(?:system|user|assistant)\|>|\Z)", re.DOTALL),
    "###": re.compile(
        r"###\s*(Human|User|Assistant|System):(.*?)(?=###\s*(?:Human|User|Assistant|System):|\Z)", re.DOTALL
    ),
}
"""What a conversation begins with in the marks of a chat template, and its turns."""
_BOS = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*")
_ENDS = re.compile(r"\s*(?:</s>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>)?\s*\Z")
_LLAMA2 = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=</?s>|\[INST\]|\Z)", re.DOTALL)
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_ALPACA = re.compile(
    r"###\s*Instruction:\s*\n(.*?)\n+(?:###\s*Input:\s*\n(.*?)\n+)?###\s*Response:\s*(.*)\Z", re.DOTALL
)
_SPEAKERS = {"human": "user", "user": "user", "assistant": "assistant", "model": "assistant", "system": "system"}


def transcript(text: str) -> list[Message]:
    """The turns of an hh-rlhf transcript; none where it is no such text."""
    if not _BEGINS.match(text):
        return []
    return _said(_TURN.findall("\n\n" + text.lstrip()))


def asked_in(text: str) -> list[Message]:
    """The turns of a prompt that is a transcript, without an empty `Assistant:` at its end; none where it is none."""
    turns = transcript(text) if len(_TURN.findall("\n\n" + text.lstrip())) > 1 or text[:2] == "\n\n" else []
    turns = turns or _marked(text)
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def told_in(text: str) -> list[Message]:
    """The turns of a text in any of the forms; none where it is no conversation."""
    turns = transcript(text) or _marked(text)
    if not turns and (alpaca := _ALPACA.search(text)):
        asked = "\n\n".join(part.strip() for part in alpaca.groups()[:2] if part and part.strip())
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": _ENDS.sub("", alpaca[3])}]
    return turns


def _marked(text: str) -> list[Message]:
    """The turns of a text that begins with the marks of a chat template."""
    begin = text[_BOS.match(text).end() :]  # type: ignore[union-attr]
    for mark, turn in _MARKS.items():
        if begin.startswith(mark):
            return _said(turn.findall(begin))
    return list(_llama2(begin)) if begin.startswith("[INST]") else []


def _said(found: list[tuple[str, str]]) -> list[Message]:
    return [
        {"role": _SPEAKERS[speaker.casefold()], "content": _ENDS.sub("", content).strip()} for speaker, content in found
    ]


def _llama2(text: str) -> Iterator[Message]:
    for asked, answer in _LLAMA2.findall(text):
        if system := _SYSTEM.match(asked):
            yield {"role": "system", "content": system[1].strip()}
            asked = asked[system.end() :]
        yield {"role": "user", "content": asked.strip()}
        yield {"role": "assistant", "content": answer.strip()}
