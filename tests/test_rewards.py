"""Rewards from anywhere: every kind of term, their sum, and a reward model behind HTTP with a real server."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import TypeAdapter, ValidationError

from flows import reward_server
from flows.reward_server import WAITING, application
from tasks.artifact import InputError, Message, PipelineError
from tasks.lineage import Record
from tasks.recipe import Part, identity
from tasks.training import reward_client
from tasks.training.ppo import PpoRecipe
from tasks.training.rewards import FunctionReward, Rewards, RewardTerm, ServerReward, parts_of
from tests.lifecycle_runs import RLHF, ROOT, TINY, built, rlhf, stages

ROWS = [
    {"prompt": [{"role": "user", "content": "two and two?"}], "reference": 4},
    {"prompt": [{"role": "user", "content": "one and two?"}], "reference": 3},
]
PROMPTS: list[list[Message]] = [row["prompt"] for row in ROWS]
HERE = "tests.test_rewards"


def exact(row: dict[str, Any], text: str) -> float:
    """1 for the right number."""
    return float(text.strip() == str(row["reference"]))


def failing(row: dict[str, Any], text: str) -> float:
    raise KeyError("reference")


def infinite(row: dict[str, Any], text: str) -> float:
    return float("nan")


def term(**given: Any) -> RewardTerm:
    return TypeAdapter(RewardTerm).validate_python(given)


def by_length(
    prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
) -> list[float]:
    """A score that anyone can check: characters of prompt and completion, one less for a cut one."""
    asked = zip(prompts, completions, finished, strict=True)
    return [len(prompt[-1]["content"]) + len(text) - (not ended) for prompt, text, ended in asked]


def of(*terms: RewardTerm) -> Rewards:
    return Rewards(terms, ROWS, lambda prompts, completions, finished, _: by_length(prompts, completions, finished))


def test_every_kind_of_term() -> None:
    texts, ended = ["4", "I think it is three"], [True, True]
    assert of(term(kind="function", function=f"{HERE}:exact"))(PROMPTS, texts, ended) == [1, 0]
    assert of(term(kind="pattern", pattern=r"\d"))(PROMPTS, texts, ended) == [1, 0]
    assert of(term(kind="pattern", pattern="I think", whole=True))(PROMPTS, texts, ended) == [0, 0]
    assert of(term(kind="length", most=2, least=1, per=3))(PROMPTS, texts, ended) == pytest.approx([0, -1])
    assert of(term(kind="length", least=3, per=1))(PROMPTS, texts, ended) == [-2, 0]
    assert of(term(kind="model"))(PROMPTS, texts, ended) == by_length(PROMPTS, texts, ended)


def test_the_sum_is_weighted_and_its_parts_are_told() -> None:
    rewards = of(
        term(kind="model", weight=0.5),
        term(kind="function", function=f"{HERE}:exact", weight=10, name="right"),
        term(kind="pattern", pattern="sorry", weight=-3),
    )
    texts = ["4", "sorry"]
    assert rewards(PROMPTS, texts, [True, False]) == [0.5 * 13 + 10, 0.5 * 16 - 3]
    assert parts_of(rewards) == {"reward/model": 14.5, "reward/right": 0.5, "reward/pattern": 0.5}
    assert parts_of(of(term(kind="model"))) == {} == parts_of(by_length)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "pattern", "pattern": "("}, "not a regular expression"),
        ({"kind": "function", "function": "nowhere:f"}, "cannot be imported"),
        ({"kind": "server", "url": "ftp://x"}, "url"),
        ({"kind": "judge"}, "'model', 'function', 'pattern', 'json', 'length', 'server'"),
    ],
)
def test_terms_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        term(**given)


def test_a_reward_that_fails_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"failing fails on row .*\(KeyError: 'reference'\), which has"):
        of(term(kind="function", function=f"{HERE}:failing"))(PROMPTS, ["a", "b"], [True, True])
    with pytest.raises(InputError, match="'function' must give a finite number"):
        of(term(kind="function", function=f"{HERE}:infinite"))(PROMPTS, ["a", "b"], [True, True])
    with pytest.raises(PipelineError, match="needs the run's reward model"):
        Rewards([term(kind="model")], ROWS, None)(PROMPTS, ["a", "b"], [True, True])


CALLED: list[Message] = [
    {"role": "user", "content": "two and two?", "tools": "[]"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}, "id": "c"}]},
    {"role": "tool", "content": "4", "tool_call_id": "c", "name": "add"},
]


def test_prompts_that_differ_only_in_their_tools_have_rows_of_their_own() -> None:
    other: list[Message] = [{"role": "user", "content": "two and two?", "tools": "[]"}]
    rows = [*ROWS, {"prompt": other, "reference": 5}]
    rewards = Rewards([term(kind="function", function=f"{HERE}:exact")], rows, None)
    assert rewards([PROMPTS[0], other], ["4", "5"], [True, True]) == [1.0, 1.0]


def test_code_deep_in_a_recipe_belongs_to_its_identity() -> None:
    recipe = PpoRecipe(rewards=(FunctionReward(function=f"{HERE}:exact"),))
    assert set(identity(recipe)["sources"]) == {f"{HERE}:exact"} and not identity(PpoRecipe())["sources"]

    class Deep(Part):
        policy: PpoRecipe

    assert set(identity(Deep(policy=recipe))["sources"]) == {f"{HERE}:exact"}


# --- over HTTP -------------------------------------------------------------------------------------------------------


class Served:
    """A reward server in a thread; its score is counted, and held up while `free` is not set."""

    def __init__(self) -> None:
        self.free, self.batches = threading.Event(), []
        self.free.set()
        self.server = uvicorn.Server(uvicorn.Config(application(self.score), port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/score"

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool], /
    ) -> list[float]:
        self.batches.append(len(completions))
        self.prompts = [*prompts]
        self.free.wait(60)
        if "broken" in completions:
            raise ValueError("cannot render that")
        return by_length(prompts, completions, finished)

    def waits(self, rows: int) -> None:
        """Return when so many completions wait or are being scored."""
        deadline = time.monotonic() + 60
        while httpx.get(self.url.replace("/score", "/health")).json()["waiting"] != rows:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        self.free.set()
        self.server.should_exit = True
        self.thread.join(timeout=10)


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_client, "FIRST_WAIT", 0.05)


def test_a_served_reward_is_the_reward_itself(served: Served) -> None:
    texts = [f"answer {i}" * (1 + i % 3) for i in range(600)]
    prompts, ended = [PROMPTS[i % 2] for i in range(600)], [i % 5 > 0 for i in range(600)]
    rewards = of(ServerReward(url=served.url))(prompts, texts, ended)
    assert rewards == by_length(prompts, texts, ended) and served.batches == [256, 256, 88]
    asked = {"prompts": ["two and two?"], "completions": ["4"], "labels": [None]}
    assert httpx.post(served.url, json=asked).json() == {"rewards": [13.0]}, "as other clients ask"


def test_tools_and_their_calls_reach_a_served_reward(served: Served) -> None:
    reward_client.ask(ServerReward(url=served.url), [CALLED, PROMPTS[0]], ["4", "4"], [True, True])
    assert served.prompts == [CALLED, PROMPTS[0]]


def test_what_waits_is_scored_together_and_too_much_is_told_to_come_back(served: Served) -> None:
    served.free.clear()
    answers: list[httpx.Response] = []

    def ask(count: int) -> None:
        asked = {"prompts": ["p"] * count, "completions": ["c"] * count}
        answers.append(httpx.post(served.url, json=asked, timeout=30))

    threads = [threading.Thread(target=ask, args=(n,)) for n in (1, *[3] * 10)]
    for rows, thread in zip(range(1, 32, 3), threads, strict=True):
        thread.start()
        served.waits(rows)
    refused = httpx.post(served.url, json={"prompts": ["p"] * WAITING, "completions": ["c"] * WAITING})
    assert refused.status_code == 503 and refused.headers["Retry-After"]
    served.free.set()
    for thread in threads:
        thread.join()
    assert all(answer.is_success for answer in answers) and served.batches == [1, 30]
    assert httpx.get(served.url.replace("/score", "/health")).json() == {"waiting": 0, "passes": 2}


def test_one_bad_request_fails_alone(served: Served) -> None:
    served.free.clear()
    codes: dict[str, int] = {}

    def ask(text: str) -> None:
        asked = {"prompts": ["p"], "completions": [text]}
        codes[text] = httpx.post(served.url, json=asked, timeout=30).status_code

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("first", "good", "broken", "fine")]
    for rows, thread in enumerate(threads, 1):
        thread.start()
        served.waits(rows)
    served.free.set()
    for thread in threads:
        thread.join()
    assert codes == {"first": 200, "good": 200, "broken": 422, "fine": 200}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"completions": ["a"]}, "'messages' or 'prompts' is missing"),
        ({"prompts": ["p"], "completions": ["a", "b"]}, "must be of one length"),
        ({"prompts": ["p"], "completions": ["a" * 100_001]}, "over 100000 characters"),
        ({"messages": [[]], "completions": ["a"]}, "a conversation is empty"),
        ({"query": ["p a"]}, "'completions' is missing"),
    ],
)
def test_nonsense_is_refused(served: Served, asked: dict[str, Any], words: str) -> None:
    answer = httpx.post(served.url, json=asked)
    assert answer.status_code == 422 and words in answer.json()["error"]
    assert httpx.post(served.url, content=b"{").status_code == 422


def test_a_server_that_comes_late_is_waited_for_and_one_that_stays_away_is_one_sentence(served: Served) -> None:
    url = served.url
    served.stop()
    away = of(ServerReward(url=url, attempts=2))
    with pytest.raises(PipelineError, match=r"cannot be reached .*2 times; start it and run again"):
        away(PROMPTS, ["a", "b"], [True, True])
    with pytest.raises(PipelineError, match=r"gave no answer within 0.2 s, 2 times"):
        slow = Served()
        slow.free.clear()
        try:
            of(ServerReward(url=slow.url, attempts=2, timeout=0.2))(PROMPTS, ["a", "b"], [True, True])
        finally:
            slow.stop()


def test_a_server_that_refuses_or_talks_nonsense_is_not_asked_again(served: Served) -> None:
    with pytest.raises(PipelineError, match=r"refuses .HTTP 422.: .*cannot render that"):
        of(ServerReward(url=served.url))(PROMPTS, ["broken", "b"], [True, True])
    health = served.url.replace("/score", "/health")
    with pytest.raises(PipelineError, match=r"refuses .HTTP 405."):
        of(ServerReward(url=health))(PROMPTS, ["a", "b"], [True, True])


def test_a_reward_server_has_a_model(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services["MLFLOW_TRACKING_URI"])
    with pytest.raises(PipelineError, match="no model or artifact 'nothing-of-the-kind'"):
        reward_server.load("nothing-of-the-kind")


@pytest.mark.slow
def test_a_run_learns_from_the_reward_model_of_another_over_http(
    services: dict[str, str], free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served, the reward model gives the rewards it gives in the run itself: PPO's curve is the same."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services["MLFLOW_TRACKING_URI"])
    first, port = rlhf("run", TINY).document, free_port()
    key = stages(first)["reward"]["artifact"][:12]
    command = [str(RLHF), "serve-reward", key, "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/score"
    rewards = f'policy.ppo.rewards=[{{kind="server", url="{url}", attempts=8}}]'
    try:
        assert server.stderr is not None
        assert any(line.startswith(f"Serving reward model {key}") for line in server.stderr)
        second = rlhf("run", TINY, "--set", rewards).document
        assert "ppo" in built(second) and "reward" not in built(second)
        assert httpx.get(url.replace("/score", "/health")).json()["passes"] == 2, "one for each of two updates"
    finally:
        server.terminate()
        server.wait(timeout=30)
    client = Record().client
    here, served = (client.get_metric_history(stages(d)["ppo"]["run_id"], "reward") for d in (first, second))
    assert [point.value for point in served] == pytest.approx([point.value for point in here], abs=1e-4)
    gone = rlhf("run", TINY, "--set", rewards.replace("attempts=8", "attempts=1"))
    assert "cannot be reached" in gone.error and "what is finished is kept" in gone.error
