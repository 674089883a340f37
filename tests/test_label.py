"""The labeling stage against a real Argilla: simulated annotators, people, interruptions, secrets."""

import json
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from rich.console import Console

from flows.screen import table_of
from labeling.collection.rounds import Standing
from labeling.comparison import OPTIONS, Judgement
from labeling.measures.agreement import Estimate
from labeling.question import QUESTION, guidelines_version
from labeling.service.connection import connect, items, request
from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.labels.label import collect_judgements, standing_rows
from tasks.labels.recipe import AnnotatorRecipe, EnoughRecipe, GroupRecipe, LabelRecipe
from tasks.labels.round import plan_of, publish_round
from tasks.labels.selection import SelectRecipe, select_completions

PENDING = {
    "query": {},
    "filters": {
        "and": [
            {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]},
        ]
    },
}
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
    monkeypatch.setattr("tasks.labels.label.POLL_SECONDS", 0.1)
    recipe = LabelRecipe(round="people", people=("ada", "ben"), min_submitted=2)
    told: list[str] = []
    waited = threading.Event()
    work = work_in(
        tmp_path / "a", "beef0001", on_notify=told.append, on_progress=lambda *step: "lacks" in step[2] and waited.set()
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


def people_rank(url: str, passwords: Mapping[str, str], dataset: str, discarding: str, most: int = 50) -> None:
    """Everybody signs in with their password and ties all answers to some records; one discards their first."""
    for name, password in passwords.items():
        with httpx.Client(base_url=url, timeout=30) as browser:
            token = browser.post("/api/v1/token", data={"username": name, "password": password}).json()["access_token"]
            browser.headers["Authorization"] = f"Bearer {token}"
            found = browser.get("/api/v1/me/datasets", params={"name": dataset}).json()["items"][0]["id"]
            path = f"/api/v1/me/datasets/{found}/records/search"
            records = browser.post(path, params={"limit": most}, json=PENDING).json()["items"] if most else []
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
    monkeypatch.setattr("labeling.service.connection._BACKOFF", 0.01)

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


def test_the_report_shows_what_was_spent_of_what_the_selection_may_spend(
    signed_in: dict[str, str], tmp_path: Path
) -> None:
    recipe = LabelRecipe(**SIMULATED, round="budget")
    chosen = work_in(tmp_path / "select", "5e1e")
    part = SelectRecipe(method="random", budget_judgements=16, budget_hours=2).in_round(recipe)
    select_completions(part, completions(tmp_path / "in", 9), chosen)
    work = work_in(tmp_path / "label", "1abe")
    collect_judgements(recipe, {"completions": chosen.out}, work)
    assert len(read_jsonl(work.out / "judgements.jsonl")) == 15, "five records, by three"
    report = (work.out / "report" / "round.md").read_text()
    [spent] = [line for line in report.splitlines() if line.startswith("Spent: ")]
    assert spent.startswith("Spent: 15 judgements")
    assert "| judgements | 16 | 94% |" in report and re.search(r"\| hours \| 2.00 \| \d+% \|", report)


def test_the_table_says_how_far_a_round_is_within_80_columns() -> None:
    made = "2026-11-20T10:00:00"
    judgements = [
        Judgement(f"{who}", "r", who, "submitted", {"r-0": 1, "r-1": worse}, "v", made, made)
        for who, worse in (("ada-of-the-long-name", 2), ("ben", 2), ("cleo", 1))
    ]
    answers = Counter(each.annotator for each in judgements)
    now = Standing(
        records=40,
        done=11,
        started=3,
        answers=answers,
        given=dict.fromkeys(answers, 20),
        judgements=tuple(judgements),
        alpha=Estimate(0.61, 0.4, 0.75),
        missing=("29 of 40 records", "agreement (alpha's lower bound 0.50, now 0.40)"),
        seconds_left=5 * 3600,
        datasets=(),
    )
    screen = StringIO()
    Console(width=80, file=screen, color_system=None).print(table_of(standing_rows(now)))
    shown = screen.getvalue()
    for line in (
        "ada-of-the-long-name  1 of 20   50%",
        "all                   3 of 60           11 done, 3 in progress, 40 in all",
        " alpha 0.61 [0.40, 0.75]",
        " 5.0 h to go at this pace",
        " lacks 29 of 40 records",
    ):
        assert line in shown, shown
    times = {20: "1 min", 5399: "90 min", 7200: "2.0 h", 300_000: "3.5 days"}
    for seconds, said in times.items():
        assert f"{said} to go" in str(standing_rows(replace(now, seconds_left=seconds))[-1])
    assert "The round is complete." in str(standing_rows(replace(now, missing=()))[-1])
    nothing = float("nan")
    assert "alpha" not in str(standing_rows(replace(now, alpha=Estimate(nothing, nothing, nothing), missing=()))[-1])
    assert "nan" not in str(standing_rows(replace(now, alpha=Estimate(0.6, nothing, nothing)))[-1]), "one record, say"
    late = str(standing_rows(replace(now, left_out={"dan": 1}, overdue="The deadline has passed."))[-1])
    assert "1 answer of 'dan', who is not in label.people, is left out" in late and "deadline has passed" in late


@pytest.mark.parametrize(
    ("at_deadline", "judged", "ends"),
    [
        ("use", 2, "uses 2"),
        ("use", 0, "deadline has passed and no record is done; move the deadline"),
        ("fail", 2, "deadline has passed and it lacks [12] of 3 records; move it or lower the rule"),
        ("extend", 2, "waits"),
    ],
)
def test_what_a_deadline_does_to_a_round(
    signed_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_deadline: Any, judged: int, ends: str
) -> None:
    """Two people, three records; the stage waits for them until the deadline and does then what the recipe says."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.labels.label.POLL_SECONDS", 0.1)
    name = f"late-{at_deadline}-{judged}"
    recipe = LabelRecipe(round=name, workspace=name, people=(f"{name}-ada", f"{name}-ben"), min_submitted=2)
    inputs, work = completions(tmp_path / "in", 3), work_in(tmp_path / "a", "dead0001")
    publish_round(recipe, inputs, work.seed)
    path = tmp_path / "home" / "credentials" / f"{name}.json"
    passwords = json.loads(path.read_text())[signed_in["ARGILLA_API_URL"].rstrip("/")]
    dataset = plan_of(recipe, read_jsonl(inputs["completions"] / "completions.jsonl"), work.seed).round.name
    people_rank(signed_in["ARGILLA_API_URL"], passwords, dataset, discarding="", most=judged)
    deadline = datetime.now(UTC) + timedelta(seconds=3)
    enough = EnoughRecipe(deadline=deadline, at_deadline=at_deadline)
    ended: list[str] = []

    def stage() -> None:
        try:
            collect_judgements(recipe.model_copy(update={"enough": enough}), inputs, work)
            ended.append(f"uses {len(read_jsonl(work.out / 'judgements.jsonl')) // 2}")
        except PipelineError as error:
            ended.append(str(error))

    thread = threading.Thread(target=stage)
    thread.start()
    while datetime.now(UTC) < deadline:
        assert not ended, "it ended before the deadline"
        time.sleep(0.05)
    thread.join(2 if ends == "waits" else 30)
    if ends != "waits":
        assert re.search(ends, ended[0])
        return
    assert thread.is_alive(), ended
    people_rank(signed_in["ARGILLA_API_URL"], passwords, dataset, discarding="")
    thread.join(30)
    assert ended == ["uses 3"]


def test_a_run_goes_on_when_answers_are_changed(
    signed_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people disagree about everything, until one of them ranks everything anew."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.labels.label.POLL_SECONDS", 0.1)
    people = ("revised-ada", "revised-ben")
    enough = EnoughRecipe(alpha_low=0.5)
    recipe = LabelRecipe(round="revised", workspace="revised", people=people, min_submitted=2, enough=enough)
    counts: list[str] = []
    inputs = completions(tmp_path / "in", 6)
    work = work_in(tmp_path / "a", "dead0002", on_progress=lambda _, __, note: counts.append(note))
    ended: list[str] = []

    def stage() -> None:
        try:
            collect_judgements(recipe, inputs, work)
            ended.append("done")
        except BaseException as error:
            ended.append(repr(error))

    thread = threading.Thread(target=stage, daemon=True)  # were it to wait for ever, the tests would not
    publish_round(recipe, inputs, work.seed)
    with closing(connect(*signed_in.values())) as owner:
        keys = {user["username"]: user["api_key"] for user in items(owner, "/api/v1/users")}
    name = plan_of(recipe, read_jsonl(inputs["completions"] / "completions.jsonl"), work.seed).round.name
    for person in people:
        rank_by_text(keys[person], name, best_first=person == people[0])
    thread.start()
    wait_until(lambda: any("agreement" in note for note in counts) or bool(ended))
    before = len(counts)
    time.sleep(1.5)
    assert not ended and len(counts) - before <= 1, "nothing happened, so nothing is counted"
    rank_by_text(keys[people[1]], name, best_first=True)
    thread.join(30)
    assert ended == ["done"]
    made = read_jsonl(work.out / "judgements.jsonl")
    assert len(made) == 12 and all(sorted(row["ranks"].values()) == [1, 2, 3, 4] for row in made)
    assert len({json.dumps(row["ranks"], sort_keys=True) for row in made}) == 6, "both say the same now"


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rank_by_text(key: str, dataset: str, best_first: bool) -> None:
    """Rank all records of a dataset in the order of `TEXTS` or the other way round; given answers are changed."""
    with closing(connect(os.environ["ARGILLA_API_URL"], key)) as person:
        [found] = items(person, "/api/v1/me/datasets", params={"name": dataset})
        path = f"/api/v1/me/datasets/{found['id']}/records/search?limit=50&include=responses"
        for item in request(person, "POST", path, json={"query": {}})["items"]:
            record = item["record"]
            places = {option: TEXTS.index(record["fields"][option]) for option in OPTIONS[:4]}
            ranks = [{"value": o, "rank": n + 1 if best_first else 4 - n} for o, n in places.items()]
            body = {"status": "submitted", "values": {QUESTION: {"value": ranks}}}
            if given := record.get("responses"):
                request(person, "PUT", f"/api/v1/responses/{given[0]['id']}", json=body)
            else:
                request(person, "POST", f"/api/v1/records/{record['id']}/responses", json=body)


@pytest.mark.parametrize(
    "wanted",
    [
        {"enough": EnoughRecipe(strata={"nosuch": 3})},
        {"sharing": "personal", "groups": (GroupRecipe(people=("strata-ada",), strata=("nosuch",)),)},
    ],
)
def test_strata_that_are_not_there_are_refused_before_anything_is_published(
    signed_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    recipe = LabelRecipe(workspace="no-strata", people=("strata-ada",), min_submitted=1, **wanted)
    with pytest.raises(InputError, match=r"of stratum 'nosuch'.*the completions have no strata"):
        publish_round(recipe, completions(tmp_path / "in", 3), 5)
    with closing(connect(*signed_in.values())) as owner:
        assert "no-strata" not in {each["name"] for each in items(owner, "/api/v1/me/workspaces")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flags": ("a", "b", "a")}, "'flags' has 'a' twice; remove one"),
        ({"criteria": ("a", "a")}, "'criteria' has 'a' twice; remove one"),
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
