"""The labeling stage against a real Argilla: simulated annotators, people, interruptions, secrets."""

import json
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from labeling.comparison import OPTIONS
from labeling.question import QUESTION, guidelines_version
from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.label import collect_judgements
from tasks.label_recipe import AnnotatorRecipe, LabelRecipe

TEXTS = ("Aisle 4, with pleasure!", "Aisle 4.", "Aisle 9.", "Not again.")


def worth(row: Row, completion: str) -> float:
    """The hidden utility of these tests: earlier in `TEXTS` is better."""
    assert row["reference"] == {"known": True}
    return float(len(TEXTS) - TEXTS.index(completion))


SIMULATED: dict[str, Any] = {"source": "simulated", "utility": "tests.test_label:worth"}


@pytest.fixture
def signed_in(argilla: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in argilla.items():
        monkeypatch.setenv(name, value)
    return argilla


def completions(folder: Path, prompts: int, texts: tuple[str, ...] = TEXTS) -> dict[str, Path]:
    rows = [
        {
            "id": f"{number:016x}",
            "split": "train" if number % 4 else "validation",
            "prompt": [{"role": "user", "content": f"Where is item {number}?"}],
            "reference": {"known": True},
            "completions": [
                {"id": f"{number:016x}-{k}", "text": text, "tokens": 3, "finished": True}
                for k, text in enumerate(texts)
            ],
        }
        for number in range(prompts)
    ]
    write_jsonl(folder / "completions.jsonl", rows)
    return {"completions": folder}


def work_in(folder: Path, key: str, **callbacks: Any) -> Work:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Work(out=folder / "out", scratch=folder / "scratch", seed=5, key=key, **callbacks)


def test_simulated_round_ranks_everything(signed_in: dict[str, str], tmp_path: Path) -> None:
    progress: list[tuple[int, int, str]] = []
    work = work_in(tmp_path / "a", "aaaa1111cccc", on_progress=lambda *step: progress.append(step))
    annotators = (
        AnnotatorRecipe(name="exact", noise=0, tie_margin=0, discard_rate=0),
        AnnotatorRecipe(name="ties-all", noise=0, tie_margin=10, discard_rate=0),
        AnnotatorRecipe(name="sometimes", noise=0, tie_margin=0, discard_rate=0.5),
    )
    recipe = LabelRecipe(**SIMULATED, round="whole", simulated=annotators, guidelines="# Rank\nBest first.")

    collect_judgements(recipe, completions(tmp_path / "in", 12), work)

    comparisons = {row["id"]: row for row in read_jsonl(work.out / "comparisons.jsonl")}
    judgements = read_jsonl(work.out / "judgements.jsonl")
    assert len(comparisons) == 12
    report = (work.out / "report" / "round.md").read_text()
    assert "## What to do next" in report and (work.out / "report" / "annotators.png").exists()
    assert len({tuple(name[-1] for name in row["shown"]) for row in comparisons.values()}) > 1, "options are shuffled"
    assert len(judgements) == 36
    per_annotator = Counter(row["annotator"] for row in judgements)
    assert sorted(per_annotator.values()) == [12, 12, 12]
    assert all(row["guidelines"] == guidelines_version(recipe.guidelines) for row in judgements)
    patterns = Counter(
        tuple(row["ranks"][f"{row['record']}-{k}"] for k in range(4)) for row in judgements if row["ranks"] is not None
    )
    discarded = [row for row in judgements if row["status"] == "discarded"]
    assert patterns == {(1, 2, 3, 4): 24 - len(discarded), (1, 1, 1, 1): 12}, "the order shown is undone, ties survive"
    assert 0 < len(discarded) < 12
    assert work.metrics["discarded"] == len(discarded)
    assert work.metrics["judgements"] == 36 - len(discarded)
    assert {note for _, _, note in progress} >= {"publishing", "ranking"}
    assert (work.out / "guidelines.md").read_text(errors="ignore") == recipe.guidelines
    assert (work.out / "report" / "judgements.json").exists()
    for file in work.out.rglob("*"):
        assert file.is_dir() or "ties-all" not in file.read_text(errors="ignore"), "no username in the artifact"


def test_ranks_do_not_depend_on_who_answers_when(signed_in: dict[str, str], tmp_path: Path) -> None:
    inputs = completions(tmp_path / "in", 8)
    outcomes = []
    for key in ("00000001", "00000002"):
        recipe = LabelRecipe(**SIMULATED, round="same", workspace=f"same-{key}")
        work = work_in(tmp_path / key, key)
        collect_judgements(recipe, inputs, work)
        rows = read_jsonl(work.out / "judgements.jsonl")
        outcomes.append([(row["record"], row["annotator"], row["status"], row["ranks"]) for row in rows])
    assert outcomes[0] == outcomes[1]


def test_interrupted_round_goes_on(signed_in: dict[str, str], tmp_path: Path) -> None:
    recipe = LabelRecipe(**SIMULATED, round="cut")
    inputs = completions(tmp_path / "in", 10)

    def interrupt(done: int, total: int, note: str) -> None:
        if note == "ranking" and done >= 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_judgements(recipe, inputs, work_in(tmp_path / "a", "ffff0000", on_progress=interrupt))
    seen: list[int] = []
    work = work_in(
        tmp_path / "b", "ffff0000", on_progress=lambda done, _, note: note == "ranking" and seen.append(done)
    )
    collect_judgements(recipe, inputs, work)

    assert min(seen) > 11, "what was answered is not answered again"
    assert len(read_jsonl(work.out / "judgements.jsonl")) == 30


def test_waits_for_people_and_keeps_their_passwords(
    signed_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.label.POLL_SECONDS", 0.1)
    recipe = LabelRecipe(round="people", people=("ada", "ben"), min_submitted=2)
    told: list[str] = []
    waited = threading.Event()
    work = work_in(
        tmp_path / "a", "beef0001", on_notify=told.append, on_progress=lambda *step: step[2][0] == "0" and waited.set()
    )
    failures: list[BaseException] = []

    def stage() -> None:
        try:
            collect_judgements(recipe, completions(tmp_path / "in", 3), work)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=stage)
    thread.start()
    assert waited.wait(30), failures
    for _ in range(100):  # the invitation follows the first count
        if told:
            break
        time.sleep(0.1)
    path = tmp_path / "home" / "credentials" / "rlhf.json"
    passwords = json.loads(path.read_text())[signed_in["ARGILLA_API_URL"].rstrip("/")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signed_in["ARGILLA_API_URL"] in told[0]
    assert all(f"{name}  {password}" in told[0] for name, password in passwords.items())

    [dataset] = re.findall(r"dataset '(people-[0-9a-f]{8})'", told[0])
    people_rank(signed_in["ARGILLA_API_URL"], passwords, dataset, discarding="ben")
    thread.join(30)

    assert not thread.is_alive() and not failures
    judgements = read_jsonl(work.out / "judgements.jsonl")
    assert Counter(row["status"] for row in judgements) == {"submitted": 5, "discarded": 1}
    everything = "".join(file.read_text(errors="ignore") for file in work.out.rglob("*") if file.is_file())
    assert not any(password in everything for password in passwords.values())


def people_rank(url: str, passwords: Mapping[str, str], dataset: str, discarding: str) -> None:
    """Everybody signs in with their password and ties all answers; one discards their first record."""
    for name, password in passwords.items():
        with httpx.Client(base_url=url, timeout=30) as browser:
            token = browser.post("/api/v1/token", data={"username": name, "password": password}).json()["access_token"]
            browser.headers["Authorization"] = f"Bearer {token}"
            found = browser.get("/api/v1/me/datasets", params={"name": dataset}).json()["items"][0]["id"]
            path = f"/api/v1/me/datasets/{found}/records/search"
            records = browser.post(path, params={"limit": 50}, json={"query": {}}).json()["items"]
            for place, item in enumerate(records):
                value = [{"value": option, "rank": 1} for option in OPTIONS[:4]]
                answer = {"status": "submitted", "values": {QUESTION: {"value": value}}}
                if name == discarding and place == 0:
                    answer = {"status": "discarded"}
                browser.post(f"/api/v1/records/{item['record']['id']}/responses", json=answer).raise_for_status()
                time.sleep(0.02)


def test_what_cannot_be_reached_or_ranked_is_said_in_one_sentence(
    signed_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, inputs = LabelRecipe(**SIMULATED), completions(tmp_path / "in", 2)
    monkeypatch.setattr("labeling.connection._BACKOFF", 0.01)

    monkeypatch.setenv("ARGILLA_API_KEY", "wrong")
    with pytest.raises(PipelineError, match="refuses the API key; set ARGILLA_API_KEY"):
        collect_judgements(recipe, inputs, work_in(tmp_path / "a", "abcd"))
    monkeypatch.setenv("ARGILLA_API_URL", "http://127.0.0.1:9")
    with pytest.raises(PipelineError, match=r"does not answer \(ConnectError\); start it with `rlhf up`"):
        collect_judgements(recipe, inputs, work_in(tmp_path / "b", "abcd"))
    monkeypatch.delenv("ARGILLA_API_URL")
    with pytest.raises(PipelineError, match="ARGILLA_API_URL is not set"):
        collect_judgements(recipe, inputs, work_in(tmp_path / "c", "abcd"))
    with pytest.raises(InputError, match="No prompt has two different completions"):
        collect_judgements(recipe, completions(tmp_path / "same", 2, ("A", "A")), work_in(tmp_path / "d", "abcd"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "simulated"}, "'utility' is needed"),
        ({"people": ("ada", "ada", "ben")}, "names an annotator twice"),
        ({"people": ("ada",), "min_submitted": 2}, "has 1 annotators"),
        ({"round": "Has Spaces"}, "round"),
        ({"guidelines": ""}, "guidelines"),
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelRecipe(**fields)


def test_default_recipe_asks_three_people() -> None:
    assert LabelRecipe().annotators == ("annotator-1", "annotator-2", "annotator-3")
