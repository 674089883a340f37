"""Instructions that a program can check: the kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911), by its names.

A row's `reference` holds `instruction_id_list` and `kwargs`, as IFEval's own rows do; a template of the data recipe
that names `{{ prompt }}` hands a whole row on as its reference. Sentences are counted by their closing marks and
languages are told by py3langid, where the authors take NLTK and langdetect: both may differ from theirs on odd texts.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from tasks.artifact import Row
from tasks.checks.answers import follows

Kwargs = dict[str, Any]
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bvs)[.!?…]+["'”’)\]*]*(?=\s|\Z)|[。！？।]"""
)
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def strict(row: Row, completion: str) -> bool:
    """Whether a completion follows all instructions of its prompt."""
    return all(followed(row, completion))


def loose(row: Row, completion: str) -> bool:
    """The same, each instruction forgiven a first or last line beside the answer, and asterisks."""
    return all(any(each) for each in zip(*(followed(row, text) for text in _variants(completion)), strict=True))


def share(row: Row, completion: str) -> float:
    """The share of its prompt's instructions that a completion follows (a softer reward than all or nothing)."""
    found = followed(row, completion)
    return sum(found) / len(found)


def followed(row: Row, completion: str) -> list[bool]:
    """For each instruction of the row's reference whether a completion follows it; an empty completion follows none.

    Raises `ValueError` for a reference without instructions, or with one that is not known or lacks what it needs.
    """
    reference = row.get("reference")
    names = reference.get("instruction_id_list") if isinstance(reference, dict) else None
    if not isinstance(reference, dict) or not isinstance(names, list) or not names:
        raise ValueError("the row's reference has no 'instruction_id_list'")
    given = reference.get("kwargs") or [{}] * len(names)
    if len(given) != len(names):
        raise ValueError(f"the row has {len(names)} instructions and {len(given)} kwargs")
    return [
        _follows(name, {key: value for key, value in (kwargs or {}).items() if value is not None}, completion)
        for name, kwargs in zip(names, given, strict=True)
    ]


def _follows(name: str, kwargs: Kwargs, text: str) -> bool:
    if name not in CHECKS:
        raise ValueError(f"the instruction '{name}' is not known; known are {', '.join(CHECKS)}")
    try:
        return bool(text.strip()) and CHECKS[name](text, kwargs)
    except KeyError as error:
        raise ValueError(f"the instruction '{name}' needs {error} in its kwargs") from error


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(each.replace("*", "") for each in cut)]


def _compared(count: int, relation: str, bound: int) -> bool:
    match relation:
        case "at least":
            return count >= bound
        case "less than":
            return count < bound
    raise ValueError(f"the relation '{relation}' is neither 'at least' nor 'less than'")


def _found(word: str, text: str) -> int:
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _letters(text: str, kwargs: Kwargs) -> bool:
    count = text.lower().count(str(kwargs["letter"]).lower())
    return _compared(count, kwargs["let_relation"], kwargs["let_frequency"])


def _language(text: str, kwargs: Kwargs) -> bool:
    import py3langid

    return py3langid.classify(text)[0] == kwargs["language"]


def _parts(pieces: Sequence[str]) -> list[str] | None:
    """The pieces that are not blank; None where one within is: only the outermost may be."""
    return None if any(not piece.strip() for piece in pieces[1:-1]) else [piece for piece in pieces if piece.strip()]


def _paragraphs(text: str, kwargs: Kwargs) -> bool:
    parts = _parts(re.split(r"\s?\*\*\*\s?", text))
    return parts is not None and len(parts) == kwargs["num_paragraphs"]


def _nth_paragraph(text: str, kwargs: Kwargs) -> bool:
    paragraphs, nth = text.split("\n\n"), kwargs["nth_paragraph"]
    if sum(bool(part.strip()) for part in paragraphs) != kwargs["num_paragraphs"] or not 1 <= nth <= len(paragraphs):
        return False
    word = re.match(r"[\"'“‘]*([^\s.,?!'\"”’]*)", paragraphs[nth - 1].strip())
    return word is not None and word.group(1).lower() == str(kwargs["first_word"]).lower()


def _sentences(text: str) -> int:
    ends = list(_SENTENCE_END.finditer(text.strip()))
    rest = text.strip()[ends[-1].end() :] if ends else text
    return len(ends) + bool(_WORD.search(rest))


def _postscript(text: str, kwargs: Kwargs) -> bool:
    given = str(kwargs["postscript_marker"]).strip()
    dotted = re.fullmatch(r"(?:\w\.\s?)+\w?\.?", given) is not None  # "P.S." is "P. S." too
    marker = re.escape(given).replace(r"\.", r"\.\s?") if dotted else re.escape(given)
    return re.search(rf"(?:^|\s){marker}", text, re.IGNORECASE) is not None


def _bullets(text: str, kwargs: Kwargs) -> bool:
    stars = re.findall(r"^\s*\*[^*\n].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == kwargs["num_bullets"]


def _highlights(text: str, kwargs: Kwargs) -> bool:
    single, double = re.findall(r"\*([^\n*]*)\*", text), re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(inner.strip()) for inner in [*single, *double]) >= kwargs["num_highlights"]


def _sections(text: str, kwargs: Kwargs) -> bool:
    found = re.findall(rf"\s?{re.escape(str(kwargs['section_spliter']))}\s?\d+\s?", text)
    return len(found) >= kwargs["num_sections"]


def _title(text: str, kwargs: Kwargs) -> bool:
    return any(inner.strip("<> ") for inner in re.findall(r"<<([^\n]+)>>", text))


def _two(text: str, kwargs: Kwargs) -> bool:
    parts = _parts(text.split("******"))
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _repeats(text: str, kwargs: Kwargs) -> bool:
    return text.strip().lower().startswith(str(kwargs["prompt_to_repeat"]).strip().lower())


def _ends(text: str, kwargs: Kwargs) -> bool:
    return text.strip().strip('"').lower().endswith(str(kwargs["end_phrase"]).strip().lower())


def _quoted(text: str, kwargs: Kwargs) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


def _capitals(text: str, kwargs: Kwargs) -> bool:
    count = sum(word.isupper() for word in _WORD.findall(text))
    return _compared(count, kwargs["capital_relation"], kwargs["capital_frequency"])


CHECKS: dict[str, Callable[[str, Kwargs], bool]] = {
    "keywords:existence": lambda text, kwargs: all(_found(word, text) for word in kwargs["keywords"]),
    "keywords:frequency": lambda text, kwargs: _compared(
        _found(kwargs["keyword"], text), kwargs["relation"], kwargs["frequency"]
    ),
    "keywords:forbidden_words": lambda text, kwargs: (
        not any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in kwargs["forbidden_words"]
        )
    ),
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": lambda text, kwargs: _compared(
        _sentences(text), kwargs["relation"], kwargs["num_sentences"]
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, kwargs: _compared(
        len(_WORD.findall(text)), kwargs["relation"], kwargs["num_words"]
    ),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda text, kwargs: (
        len(re.findall(r"\[.*?\]", text)) >= kwargs["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text, kwargs: any(answer in text for answer in _ANSWERS),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": lambda text, kwargs: follows(None, text),
    "detectable_format:title": _title,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text, kwargs: text.isupper() and _language(text.lower(), {"language": "en"}),
    "change_case:english_lowercase": lambda text, kwargs: text.islower() and _language(text, {"language": "en"}),
    "punctuation:no_comma": lambda text, kwargs: "," not in text,
}
"""IFEval's names and how each is checked: (completion, kwargs) -> whether it is followed."""
