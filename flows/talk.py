"""`rlhf chat`: a conversation with a registered model, an artifact or a model folder."""

import os
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import services
from flows.plain_text import visible
from flows.tree import SPEAKING
from tasks.artifact import InputError, Message, PipelineError, below

HELP = "/use MODEL changes the model (NAME, NAME@ALIAS, an artifact's key or a folder), /new begins anew, /quit leaves."
COMMAND = re.compile(r"/[a-z]+")


class Talk:
    """One conversation. Models that were loaded stay loaded, and adapters on the same model share it, so changing
    between them is quick."""

    def __init__(self, temperature: float, max_new_tokens: int) -> None:
        self._temperature, self._max_new_tokens = temperature, max_new_tokens
        from tasks.models.shelf import Shelf

        self._shelf = Shelf()
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._model = ""
        self._messages: list[Message] = []

    def use(self, model: str) -> None:
        """Answer with this model from now on. Raises `PipelineError` when there is none of that name."""
        if model not in self._loaded:
            self._loaded[model] = self._shelf.take(_chain(model))
        self._model = model

    def ask(self, text: str) -> str:
        """The model's answer to a user's turn, in the conversation so far, cut where the model's positions end.

        Raises `InputError` when there is no position left; that turn is not kept.
        """
        from tasks.models.chat import encode_prompt
        from tasks.models.loading import positions
        from tasks.sampling.local import generate

        model, tokenizer = self._loaded[self._model]
        messages: list[Message] = [*self._messages, {"role": "user", "content": text}]
        prompt, limit = encode_prompt(tokenizer, messages), positions(model)
        room = self._max_new_tokens if limit is None else limit - len(prompt)
        if room < 1:
            raise InputError(
                f"The conversation is {len(prompt)} tokens, and the model has {limit} positions for it and an answer; "
                "begin another with /new, or say less."
            )
        self._messages = messages
        [[completion]] = generate(
            model,
            tokenizer,
            [prompt],
            max_new_tokens=min(room, self._max_new_tokens),
            temperature=self._temperature or 1.0,
            greedy=self._temperature == 0,
            seed=len(self._messages),
        )
        self._messages.append({"role": "assistant", "content": completion.text})
        return completion.text

    def converse(self, console: Console) -> None:
        """Read turns until /quit or the end of input."""
        console.print(f"Talking to {self._model}. {HELP}", markup=False)
        while True:
            try:
                text = console.input("[bold]you:[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if text == "/quit":
                return
            try:
                self._turn(text, console)
            except PipelineError as error:
                console.print(visible(str(error)), markup=False, highlight=False)

    def _turn(self, text: str, console: Console) -> None:
        if text == "/new":
            self._messages = []
        elif text.startswith("/use "):
            self.use(text.removeprefix("/use ").strip())
            console.print(f"Talking to {self._model}, in the same conversation.", markup=False, highlight=False)
        elif text == "/use":
            console.print(f"Loaded: {', '.join(self._loaded)}. {HELP}", markup=False)
        elif COMMAND.fullmatch(text):
            console.print(HELP, markup=False)
        elif text:
            console.print(visible(f"{self._model}: {self.ask(text)}"), markup=False, highlight=False)


def _chain(model: str) -> list[Path]:
    """The artifacts that make up a registered model, an artifact or a folder; a merged model's are what it was merged
    of, where that is still here, so that those on the same SFT model share it."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file():
        return [folder]
    found = services.status()["mlflow"]
    if not found.healthy:
        raise PipelineError(f"MLflow at {found.url} does not answer; start it with `rlhf up`.")
    os.environ.update(services.environment())
    from flows.tree import resolve_model
    from tasks.lineage import Record
    from tasks.registry import Registry
    from tasks.store import Store

    record = Record()
    store, records = Store(services.home(), record), record.artifacts()
    key, _ = resolve_model(model, Registry(record), records)
    inputs, stage = records[key]["inputs"], records[key]["stage"]
    if stage not in SPEAKING:
        raise PipelineError(
            f"{model} is what stage '{stage}' made, which cannot talk; name a policy or a merged model."
        )

    def files(parts: list[str]) -> list[Path]:
        chain = [artifact.path for part in parts if (artifact := store.find(part))]
        return chain if len(chain) == len(parts) else []

    beneath = [inputs[name] for name in below(inputs)]
    if stage == "merge" and (chain := files([*beneath, inputs["policy"]])) and (chain[-1] / "adapter").is_dir():
        return chain
    if chain := files([key] if stage in ("merge", "base") else [*beneath, key]):
        return chain
    raise PipelineError(f"Files of {model} are neither here nor in MLflow; run its recipe again.")
