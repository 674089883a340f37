"""A local causal LM as judge, over the project's own decoding engine.

Letters: the probabilities of `A`, `B`, ... as next token after the question. No answer is invalid and each says how
sure it is; the judge cannot reason first. With K answers the letters' shares are read as a Plackett-Luce first choice
(Luce 1959), which orders the rest too. Text: it writes, greedily, and the verdict is read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from labeling.ai.endpoint import Messages
from labeling.ai.prompts import Question
from tasks.ai.answers import letter_options
from tasks.ai.kept import Kept, Said, now
from tasks.ai.recipe import MODEL_FILES, LocalJudge, LocalModel
from tasks.artifact import InputError, Work
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer, positions
from tasks.models.rendering import RowRefused
from tasks.models.source import resolve_hub_model
from tasks.models.templates import prepare_to_answer
from tasks.sampling.local import CausalLM, decode, generate, output_layer

TOLERANCE = 0.1
"""How far a log-probability from the output layer may be from the model's own (bf16 rounds)."""
ROUNDS = 8
"""Batches answered between two writes to disk."""


def chain_of(recipe: LocalModel, inputs: Mapping[str, Path]) -> list[Path]:
    """The artifacts that make the model. Raises `InputError` when it cannot be found."""
    if recipe.model == "sft":
        return [inputs["base"], inputs["sft"]]
    folder = recipe.folder()
    if folder is not None:
        return [folder]
    try:
        return [resolve_hub_model(recipe.model, recipe.revision)[0]]
    except InputError as error:
        raise InputError(f"The {recipe.who} is not there: {error}") from error


def chain_digest(chain: Sequence[Path]) -> str:
    """SHA-256 of the files that decide what a chain of artifacts answers."""
    digest = hashlib.sha256()
    for folder in chain:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix in MODEL_FILES and file.relative_to(folder).parts[0] != "report":
                with file.open("rb") as opened:
                    digest.update(f"{file.relative_to(folder)}".encode())
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def local_answers(
    recipe: LocalJudge, chain: Sequence[Path], judge: str, work: Work
) -> Callable[[Sequence[Question]], list[Said]]:
    """The model, loaded when it is first needed, as a function from questions to what it says to each.

    Answers so far survive a kill in the work's scratch.
    """
    kept = Kept(work.scratch / "answers.jsonl", judge)
    loaded: list[Callable[[Sequence[Question]], list[Said]]] = []

    def answers(questions: Sequence[Question]) -> list[Said]:
        keys = [kept.key(question.messages) for question in questions]
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in kept}
        total, before = len(set(keys)), len(set(keys)) - len(missing)
        step = recipe.batch_size * ROUNDS
        if missing and not loaded:
            loaded.append(_answering(recipe, chain, work.seed))
        for start in range(0, len(missing), step):
            part = list(missing.items())[start : start + step]
            for (key, _), said in zip(part, loaded[0]([question for _, question in part]), strict=True):
                kept.add(key, said)
            work.progress(before + start + len(part), total, "questions to the judge")
        return list(map(kept.read, keys))

    return answers


def _answering(recipe: LocalJudge, chain: Sequence[Path], seed: int) -> Callable[[Sequence[Question]], list[Said]]:
    """The model, loaded, as a function of questions."""
    loaded = Loaded(chain, recipe.batch_size)

    def answer(questions: Sequence[Question]) -> list[Said]:
        asked = [question.messages for question in questions]
        if recipe.answer == "text":
            return loaded.texts(asked, recipe.max_new_tokens, seed=seed)
        return loaded.answer(
            asked,
            1,
            lambda prompts, places: _letters(
                loaded.model, loaded.tokenizer, prompts, [questions[place] for place in places], recipe.batch_size
            ),
        )

    return answer


class Loaded:
    """A model that answers conversations."""

    def __init__(self, chain: Sequence[Path], batch_size: int, who: str = "judge") -> None:
        self.batch_size, self.who = batch_size, who
        self.tokenizer = prepare_to_answer(load_tokenizer(chain[0]))
        self.model = load_causal_lm(chain)
        self.ends = _ends(self.model)
        self.longest = positions(self.model) or float("inf")

    def texts(
        self, asked: Sequence[Messages], new_tokens: int, *, temperature: float = 0.0, top_p: float = 1.0, seed: int
    ) -> list[Said]:
        """What it writes to each conversation; greedily at temperature 0.

        A text depends on the seed and on its place among `asked`.
        """
        greedy = temperature == 0

        def write(prompts: list[list[int]], places: list[int]) -> list[Said]:
            groups = generate(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=new_tokens,
                temperature=1.0 if greedy else temperature,
                top_p=top_p,
                greedy=greedy,
                seed=seed,
                batch_size=self.batch_size,
                ends=self.ends,
            )
            return [
                Said(now(), one.text, one.finished, prompt_tokens=len(ids), completion_tokens=len(one.token_ids))
                for ids, [one] in zip(prompts, groups, strict=True)
            ]

        return self.answer(asked, new_tokens, write)

    def answer(
        self, asked: Sequence[Messages], new_tokens: int, write: Callable[[list[list[int]], list[int]], list[Said]]
    ) -> list[Said]:
        """What `write` makes of the conversations that fit the model, given as tokens and their places."""
        said = [Said(now(), refused=f"longer than the {self.who}'s context of {self.longest} tokens")] * len(asked)
        prompts: dict[int, list[int]] = {}
        for place, each in enumerate(asked):
            try:
                ids = encode_prompt(self.tokenizer, [{**message} for message in each])  # type: ignore[typeddict-item]
            except RowRefused as error:
                said[place] = Said(now(), refused=f"the {self.who}'s chat template refuses it ({error.__cause__})")
                continue
            if len(ids) + new_tokens <= self.longest:
                prompts[place] = ids
        given = write(list(prompts.values()), list(prompts)) if prompts else []
        for place, each in zip(prompts, given, strict=True):
            said[place] = each
        return said


def _ends(model: CausalLM) -> list[int]:
    """The tokens that the model's own settings end an answer with, beside the tokenizer's EOS."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if known is None else [known] if isinstance(known, int) else list(known)


@torch.no_grad()
def _letters(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    questions: Sequence[Question],
    batch_size: int,
) -> list[Said]:
    ids = letter_ids(tokenizer)
    decoded = decode(
        model, tokenizer, prompts, max_new_tokens=1, greedy=True, seed=0, batch_size=batch_size, features=True
    )
    assert decoded.features is not None
    layer = output_layer(model)
    logits = layer(decoded.features[:, 0].to(layer.weight.dtype)).float()
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(-1, decoded.tokens[:, :1]).squeeze(-1)
    if (chosen - decoded.logprobs[:, 0]).abs().max() > TOLERANCE:
        raise InputError(
            "This judge changes its logits after the output layer, so letters cannot be read; set "
            'judge.answer = "text".'
        )
    probabilities = logprobs.exp()
    said: list[Said] = []
    for row, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        worth = [float(probabilities[row, ids[letter]].sum()) for letter in letter_options(question)]
        said.append(Said(now(), worth=tuple(worth), prompt_tokens=len(prompt), completion_tokens=1))
    return said


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The tokens that say a letter, with and without a space before it. Raises `InputError` where there is none."""
    found: dict[str, list[int]] = {}
    for letter in "ABCDEFGH":
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f" {letter}")]
        found[letter] = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not found[letter]:
            raise InputError(f"The judge's tokenizer has no token for '{letter}'; set judge.answer = \"text\".")
    return found
