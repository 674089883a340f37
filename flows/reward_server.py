"""`rlhf serve-reward`: a reward model on a server of its own, for training that runs elsewhere.

What waits is scored together, so many small requests cost one pass of the model; when too much waits, a request is told
to come back (HTTP 503 with `Retry-After`) instead of being queued for minutes.
"""

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows import services
from flows.processes import port_free, port_holder
from flows.tree import resolve_model
from tasks.artifact import Message, PipelineError
from tasks.lineage import Record
from tasks.recipe import explain
from tasks.registry import Registry
from tasks.store import Store
from tasks.training.rewards import Score

PORT = 8500
WAITING = 4096
"""Completions that may wait; a request that would make it more is told to come back."""
RETRY_AFTER = 2
"""Seconds it is told to wait."""
LONGEST = 100_000
"""Characters of a text."""


class Turn(BaseModel):
    """One message of a conversation, as `Message` has it."""

    role: str
    content: str
    tools: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Asked(BaseModel):
    """A request: `completions` of `messages` (conversations) or of `prompts` (what a user said)."""

    model_config = ConfigDict(extra="ignore")

    messages: list[list[Turn]] | None = None
    prompts: list[str] | None = None
    completions: list[str] = Field(min_length=1, max_length=WAITING)
    finished: list[bool] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Asked":
        asked = self.messages if self.messages is not None else self.prompts
        if asked is None:
            raise ValueError("'messages' or 'prompts' is missing: one for each completion")
        if len(asked) != len(self.completions) or (self.finished and len(self.finished) != len(self.completions)):
            raise ValueError("'completions', 'messages' (or 'prompts') and 'finished' must be of one length")
        if any(not turns for turns in self.messages or []) or any(len(text) > LONGEST for text in self.completions):
            raise ValueError(f"a conversation is empty, or a completion is over {LONGEST} characters")
        return self

    @property
    def conversations(self) -> list[list[Message]]:
        """The prompt of each completion."""
        if self.messages is not None:
            return [[cast(Message, turn.model_dump(exclude_none=True)) for turn in turns] for turns in self.messages]
        return [[{"role": "user", "content": text}] for text in self.prompts or []]


@dataclass
class Batches:
    """Scores what waits, all of it at once, one pass at a time."""

    score: Score
    waiting: list[tuple[Asked, "asyncio.Future[list[float]]"]] = field(default_factory=list)
    rows: int = 0
    """Completions that wait or are being scored."""
    passes: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, asked: Asked) -> list[float]:
        """The rewards of a request, when its turn has come."""
        answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.waiting.append((asked, answer))
        self.rows += len(asked.completions)
        self._wake.set()
        try:
            return await answer
        finally:
            self.rows -= len(asked.completions)

    async def run(self) -> None:
        """Score until cancelled; a batch that fails fails its own requests only."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self.waiting = self.waiting, []
            if not batch:
                continue
            try:
                await self._answer(batch)
            except Exception:  # one of them cannot be scored: it alone is told so
                for one in batch:
                    try:
                        await self._answer([one])
                    except Exception as error:  # whatever the model does, the server goes on
                        if not one[1].done():
                            one[1].set_exception(error)

    async def _answer(self, batch: "Sequence[tuple[Asked, asyncio.Future[list[float]]]]") -> None:
        self.passes += 1
        rewards = await asyncio.to_thread(self._score, [asked for asked, _ in batch])
        if not all(map(math.isfinite, rewards)):
            raise ValueError("the reward model gave a number that is not finite")
        each = iter(rewards)
        for asked, answer in batch:
            own = [next(each) for _ in asked.completions]
            if not answer.done():
                answer.set_result(own)

    def _score(self, batch: Sequence[Asked]) -> list[float]:
        prompts = [prompt for asked in batch for prompt in asked.conversations]
        texts = [text for asked in batch for text in asked.completions]
        ended = [end for asked in batch for end in asked.finished or [True] * len(asked.completions)]
        return self.score(prompts, texts, ended)


def application(score: Score) -> Starlette:
    """`POST /score` answers `{"rewards": [...]}` for what `Asked` describes; `GET /health` says what waits."""
    batches = Batches(score)

    async def ask(http: Request) -> Response:
        try:
            asked = Asked.model_validate_json(await http.body())
        except ValidationError as error:
            return JSONResponse({"error": "; ".join(explain(Asked, error))}, 422)
        if batches.rows and batches.rows + len(asked.completions) > WAITING:
            busy = {"error": f"{batches.rows} completions wait; come back."}
            return JSONResponse(busy, 503, {"Retry-After": str(RETRY_AFTER)})
        try:
            return JSONResponse({"rewards": await batches.ask(asked)})
        except Exception as error:  # the model's failure, whatever it is, is the answer to this request
            return JSONResponse({"error": f"{type(error).__name__}: {error}"[:500]}, 422)

    async def health(http: Request) -> Response:
        return JSONResponse({"waiting": batches.rows, "passes": batches.passes})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()

    routes = [Route("/score", ask, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def load(model: str) -> tuple[Score, str]:
    """The rewards of a reward artifact as its run's optimisers get them, and its key. Raises `PipelineError`.

    `model` is the beginning of its key, or a policy's name or key: then the reward model that policy learnt from.
    """
    from tasks.training.reward_scoring import RewardScorer

    record = Record()
    store, records = Store(services.home(), record), record.artifacts()
    key, _ = resolve_model(model, Registry(record), records)
    found = _reward_behind(key, records)
    if found is None:
        raise PipelineError(f"'{model}' is no reward model and learnt from none; name a reward artifact's key.")
    base, reward = (store.find(part) for part in (records[found]["inputs"]["base"], found))
    if base is None or reward is None:
        raise PipelineError(f"Files of the reward model {found[:12]} are neither here nor in MLflow; run its recipe.")
    return RewardScorer(base.path, reward.path).normalised, found


def _reward_behind(key: str, records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The artifact itself if it is a reward model, else the one its policy learnt from."""
    while key in records and records[key]["stage"] != "reward":
        inputs = records[key]["inputs"]
        key = inputs.get("reward") or inputs.get("policy") or ""
    return key or None


def serve(model: str, host: str, port: int) -> None:
    """Serve until interrupted. Raises `PipelineError` when the port is taken or the model is not there."""
    import uvicorn

    if not port_free(port):
        raise PipelineError(f"Port {port} is held by {port_holder(port)}; choose another one with --port.")
    score, key = load(model)
    url = f"http://{host}:{port}/score"
    print(f"Serving reward model {key[:12]} at {url}; stop with Ctrl-C.", file=sys.stderr, flush=True)
    uvicorn.run(application(score), host=host, port=port, log_level="warning")
