"""The labeling stage with a judge model in it, against a real Argilla and simulated annotators."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from labeling.collection.rounds import read_sheets
from labeling.service.argilla import records
from labeling.service.connection import connect
from tasks.ai.feedback import judge_comparisons, judging_of
from tasks.artifact import Row, Work, read_jsonl
from tasks.labels.label import collect_judgements
from tasks.labels.recipe import AnnotatorRecipe, LabelRecipe
from tasks.labels.round import campaign_of
from tests.lifecycle_runs import ROOT, TINY, built, rlhf, stages
from tests.test_ai_endpoint import KEY, Brain, completion, serving
from tests.test_ai_stage import GUIDELINES, TEXTS, completions, endpoint, position_biased, reader
from tests.tiny_models import work_in


def politeness(row: Row, text: str) -> float:
    """What the simulated annotators of these tests value."""
    return float(-TEXTS.index(text))


def contrary(body: dict[str, Any], number: int) -> tuple[int, Any]:
    """A judge that is sure of the opposite, wherever it is shown."""
    said = reader(body, number)[1]["choices"][0]["message"]["content"].splitlines()[1]
    head, order = said.split(": ")
    return 200, completion(f"{head}: {' > '.join(reversed(order.split(' > ')))}")


def sure_of_half(body: dict[str, Any], number: int) -> tuple[int, Any]:
    item = int(body["messages"][0]["content"].split("Where is item ")[1].split("?")[0])
    return reader(body, number) if item < 12 else position_biased(body, number)


NOTICES: list[str] = []
"""What the labeling stage of a test told whoever runs it."""


@pytest.fixture(autouse=True)
def surroundings(argilla: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NOTICES.clear()
    for name, value in {**argilla, "JUDGE_KEY": KEY, "RLHF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)


def labelled(
    tmp_path: Path, brain: Brain, sharing: str = "shared", **ai: Any
) -> tuple[LabelRecipe, Work, dict[str, Path]]:
    exact = [AnnotatorRecipe(name=f"exact-{n}", noise=0, tie_margin=0, discard_rate=0) for n in range(2)]
    with serving(brain) as server:
        label = LabelRecipe(
            guidelines=GUIDELINES,
            round=f"ai-{random.randrange(10**9)}",
            workspace="ai-round",
            source="simulated",
            simulated=tuple(exact),
            utility="tests.test_ai_round:politeness",
            min_submitted=2,
            sharing=sharing,  # type: ignore[arg-type]
            ai={"judge": endpoint(server.url), **ai},  # type: ignore[arg-type]
        )
        assert label.ai
        judged = work_in(tmp_path / "judged")
        inputs = completions(tmp_path / "in", 24)
        judge_comparisons(judging_of(label.ai, label), inputs, judged)
    inputs["ai"] = judged.out
    work = work_in(tmp_path / "label")
    work.on_notify = NOTICES.append
    collect_judgements(label, inputs, work)
    return label, work, inputs


@pytest.mark.parametrize("sharing", ["shared", "personal"])
def test_people_and_a_validated_judge_share_a_round(tmp_path: Path, sharing: str) -> None:
    _, work, _ = labelled(
        tmp_path, sure_of_half, sharing, use="route", audit_share=0.5, at_least=5, minimum_agreement=0.6
    )
    judgements = read_jsonl(work.out / "judgements.jsonl")
    by = {who: {row["record"] for row in judgements if row["by"] == who} for who in ("person", "ai")}
    assert len(by["person"]) == 12 + 6 and len(by["ai"]) == 6 and not by["person"] & by["ai"]
    assert len(read_jsonl(work.out / "comparisons.jsonl")) == 24
    report = (work.out / "report" / "ai.md").read_text()
    assert "**Validated" in report and "It answered 48 questions: " in report and not NOTICES


@pytest.mark.parametrize("sharing", ["shared", "personal"])
def test_people_get_everything_when_the_judge_is_wrong(tmp_path: Path, sharing: str) -> None:
    label, work, inputs = labelled(tmp_path, contrary, sharing, use="route", audit_share=0.3, at_least=5)
    judgements = read_jsonl(work.out / "judgements.jsonl")
    assert {row["by"] for row in judgements} == {"person"} and len({row["record"] for row in judgements}) == 24
    assert "NOT VALIDATED" in (work.out / "report" / "ai.md").read_text()
    [told] = NOTICES
    assert "is not validated: " in told and "people get 16 records more, 24 instead of 8." in told
    again = work_in(tmp_path / "again")
    collect_judgements(label, inputs, again)
    assert read_jsonl(again.out / "judgements.jsonl") == judgements, "run again, it goes on where it was"


def test_the_judge_alone_needs_no_argilla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARGILLA_API_URL")
    _, work, _ = labelled(tmp_path, reader, use="ai_only", audit_share=0, unvalidated=True)
    judgements = read_jsonl(work.out / "judgements.jsonl")
    assert {row["by"] for row in judgements} == {"ai"} and len(judgements) == 24
    assert "UNVALIDATED" in (work.out / "report" / "ai.md").read_text()


def test_assisted_annotators_see_what_the_judge_says(tmp_path: Path, argilla: dict[str, str]) -> None:
    label, work, inputs = labelled(tmp_path, reader, use="assisted")
    client = connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])
    [sheet] = read_sheets(client, campaign_of(label, inputs, work.seed).start)
    shown = [record["suggestions"] for record in records(client, sheet.dataset, "suggestions")]
    assert len(shown) == 24 and {suggestion["agent"] for [suggestion] in shown} == {"ai-judge-1"}
    assert {row["by"] for row in read_jsonl(work.out / "judgements.jsonl")} == {"person"}
    assert "People saw the judge's ranks" in (work.out / "report" / "ai.md").read_text()


@pytest.mark.slow
def test_a_lifecycle_with_its_own_model_as_judge_runs_whole_and_is_reused(
    services: dict[str, str], rlhf_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(rlhf_home))
    judge = '{use = "route", sure = 0.5, audit_share = 0.2, at_least = 5, judge = {kind = "local", model = "sft"}}'
    arguments = ["--set", f"label.ai={judge}", "--set", "base.positions=4096", "--set", "name=judged"]
    document = rlhf("run", ROOT / "tests" / "recipes" / "tiny.toml", *arguments).document
    assert {"judge", "label"} <= set(stages(document))
    assert built(rlhf("run", ROOT / "tests" / "recipes" / "tiny.toml", *arguments).document) == set()
    edited = [*arguments[:1], arguments[1].replace("audit_share = 0.2", "audit_share = 0.4"), *arguments[2:]]
    again = built(rlhf("run", ROOT / "tests" / "recipes" / "tiny.toml", *edited).document)
    assert "label" in again and "judge" not in again, "another share asks nothing again"


def shortest_first(body: dict[str, Any], number: int) -> tuple[int, Any]:
    text = body["messages"][0]["content"]
    shown = dict(re.findall(r"\[answer ([A-H]) \w{8}\]\n(.*?)\n\[end of answer", text, re.DOTALL))
    mark = re.search(r"\[guidelines (\w{8})\]", text)
    assert mark and shown
    order = sorted(shown, key=lambda letter: (len(shown[letter]), shown[letter]))
    return 200, completion(f"Verdict {mark[1]}: {' > '.join(order)}")


@pytest.mark.slow
def test_a_lifecycle_with_a_broken_judge_ends_there_and_goes_on_when_it_is_mended(
    services: dict[str, str], rlhf_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(rlhf_home))
    with serving(lambda body, number: (200, completion("As a model I like all of them."))) as server:
        judge = f'{{kind = "endpoint", url = "{server.url}", model = "vendor/judge-1", api_key_env = "JUDGE_KEY"}}'
        ai = f'{{use = "ai_only", audit_share = 0, unvalidated = true, judge = {judge}}}'
        arguments = ["run", TINY, "--set", f"label.ai={ai}", "--set", "name=broken-judge"]
        error = rlhf(*arguments).error
        assert "None of the judge's first 50 answers can be used (the last one: no verdict" in error
        assert "'As a model I like all of them.'" in error
        asked, server.brain = len(server.requests), shortest_first
        assert {"judge", "label", "preferences"} <= built(rlhf(*arguments).document)
        assert 50 <= asked < 60 and len(server.requests) >= asked + 98, "all were asked"
