"""Erasure: a person's judgements leave Argilla, the store and MLflow; what they shaped is told; a round goes on."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import erase as erasing
from flows.erase import SHAPED, erase
from flows.lifecycle import LABEL, PREFERENCES
from labeling.collection.sheets import done, follow_ups, share_out
from labeling.service.connection import connect, items
from labeling.service.erasure import answers_of, find_person, leave, sheets_of
from tasks.artifact import Artifact, PipelineError, Work, read_jsonl, write_jsonl
from tasks.labels.label import pseudonym
from tasks.labels.preferences import PreferencesRecipe
from tasks.labels.recipe import AnnotatorRecipe, LabelRecipe
from tasks.labels.round import plan_of
from tasks.lineage import Record
from tasks.recipe import Part
from tasks.registry import Registry
from tasks.store import Order, Stage, Store
from tasks.tombstones import Tombstone, not_erased, read_tombstones, recognised, write_tombstone
from tests.lifecycle_runs import TINY, built, rlhf, stages
from tests.test_sheets import comparisons, judge, plan


@pytest.fixture
def client(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """An owner's client, with all services in the environment."""
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url, key = services["ARGILLA_API_URL"], services["ARGILLA_API_KEY"]
    with closing(connect(url, key)) as owner, temporary_settings({PREFECT_API_URL: services["PREFECT_API_URL"]}):
        yield owner


# -- rounds that lost somebody ----------------------------------------------------------------------------------------


def test_a_record_that_was_done_stays_done_without_the_erased_vote() -> None:
    shared = plan(comparisons(3), people=("ada", "ben"), sharing="shared", erased={"0": 1})
    judgements = [judge("0", "ada"), judge("1", "ada"), judge("2", "ada"), judge("2", "ben")]
    assert done(shared, judgements, {}) == ["0", "2"], "record 1 waits for ben; record 0 had two votes"
    alone = plan(comparisons(2), people=("ada",), sharing="shared", erased={"0": 1})
    assert done(alone, [judge("0", "ada"), judge("1", "ada")], {}) == ["0", "1"], "nobody is left to ask"


def test_personal_sheets_are_not_filled_up_for_votes_that_were_given() -> None:
    """Overlap 2 of three people; cleo, who is gone, voted on record 0 only."""
    whole = plan(comparisons(2), people=("ada", "ben"), erased={"0": 1})
    issued = {"ada": {"0", "1"}}
    assert share_out(whole, issued) == {"ada": [], "ben": ["1"]}
    assert done(whole, [judge("0", "ada")], issued) == ["0"]
    assert follow_ups(whole, [judge("0", "ada")], issued) == {}
    alone = plan(comparisons(2), people=("ada",), erased={"0": 1})
    assert share_out(alone, {"ada": {"0", "1"}}) == {"ada": []}, "a shortage of people ends no round"
    assert done(plan(comparisons(1), people=("ada",), erased={"0": 2}), [], {}) == ["0"], "all its votes are gone"


def test_a_tombstone_recognises_a_name_that_it_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    salt, name_hash = recognised("ada")
    stone = Tombstone(annotator="annotator-00000000", state="done", begun_at="t", salt=salt, name_hash=name_hash)
    write_tombstone(stone)
    assert read_tombstones() == [stone]
    assert not_erased(("ada", "ben"), read_tombstones()) == ("ben",)
    text = (tmp_path / "tombstones" / "annotator-00000000.json").read_text()
    assert '"ada"' not in text and "salt" not in stone.public() and recognised("ada")[1] != name_hash
    row = {"id": "0", "prompt": [{"role": "user", "content": "?"}], "reference": None}
    row["completions"] = [{"id": f"{k}", "text": f"{k}"} for k in range(2)]
    shown = plan_of(LabelRecipe(people=("ada", "ben"), min_submitted=2), [row], 0)
    assert shown.people == ("ben",) and shown.overlap == 2
    with pytest.raises(PipelineError, match="name other annotators"):
        plan_of(LabelRecipe(people=("ada",), min_submitted=1), [row], 0)


# -- a small lifecycle, built in this process -------------------------------------------------------------------------


class Texts(Part):
    """What completions say."""

    prompts: int = 8
    word: str = "answer"


def sampled(recipe: Texts, inputs: Mapping[str, Path], work: Work) -> None:
    rows = [
        {
            "id": f"{recipe.word}-{number:08x}",
            "split": "train" if number % 4 else "validation",
            "prompt": [{"role": "user", "content": f"{recipe.word} {number}?"}],
            "reference": None,
            "completions": [
                {"id": f"{recipe.word}-{number:08x}-{k}", "text": f"{recipe.word}{'!' * k}", "finished": True}
                for k in range(3)
            ],
        }
        for number in range(recipe.prompts)
    ]
    write_jsonl(work.out / "completions.jsonl", rows)


def trained(recipe: Texts, inputs: Mapping[str, Path], work: Work) -> None:
    """Stands for training: its content depends on the pairs, and does not tell who judged them."""
    rows = read_jsonl(inputs["preferences"] / "train.jsonl")
    weights = [row["weight"] for row in rows] + [len(row["judgements"]) for row in rows]
    (work.out / "model").mkdir()
    (work.out / "model" / "weights.json").write_text(json.dumps(weights))


def copied(recipe: Texts, inputs: Mapping[str, Path], work: Work) -> None:
    (work.out / "model").mkdir()
    (work.out / "model" / "weights.json").write_text((inputs["policy"] / "model" / "weights.json").read_text())


def worth(row: Mapping[str, Any], completion: str) -> float:
    """The hidden utility of these tests: shorter is better."""
    return -float(len(completion))


SAMPLE, DPO, MERGE = Stage("sample", sampled), Stage("dpo", trained), Stage("merge", copied)


class Pipeline:
    """Four stages over a real Argilla, store and MLflow."""

    def __init__(self, home: Path) -> None:
        self.home, self.word = home, f"w{uuid.uuid4().hex[:8]}"
        self.names = tuple(f"{self.word}-{name}" for name in ("ada", "ben", "cleo"))
        self.built: list[str] = []
        self.artifacts: dict[str, Artifact] = {}
        self.record = Record()

    def run(self, **label: Any) -> dict[str, Artifact]:
        """Build what is missing."""
        self.built, store = [], Store(self.home, self.record)

        def build(order: Order, run_id: str, out: Path, scratch: Path) -> dict[str, float]:
            self.built.append(order.name)
            work = Work(out, scratch, order.seed, order.key)
            order.stage.function(order.part, {name: each.path for name, each in order.inputs.items()}, work)
            return work.metrics

        def get(stage: Stage, part: Part, **inputs: Artifact) -> Artifact:
            artifact = store.get(Order(stage, part, inputs, 0), build)
            store.settle()
            return artifact

        crowd = tuple(AnnotatorRecipe(name=name, noise=0.5, discard_rate=0.1) for name in self.names)
        settings = {"simulated": crowd, "min_submitted": 2, "workspace": self.word, **label}
        part = LabelRecipe(source="simulated", utility="tests.test_erasure:worth", **settings)
        completions = get(SAMPLE, Texts(word=self.word))
        judgements = get(LABEL, part, completions=completions)
        preferences = get(PREFERENCES, PreferencesRecipe(), judgements=judgements, completions=completions)
        policy = get(DPO, Texts(), preferences=preferences)
        merged = get(MERGE, Texts(), policy=policy)
        found = {"sample": completions, "label": judgements, "preferences": preferences, "dpo": policy, "merge": merged}
        self.artifacts = found
        return found

    def judgements(self) -> list[dict[str, Any]]:
        return read_jsonl(self.artifacts["label"].path / "judgements.jsonl")


@pytest.fixture
def pipeline(client: httpx.Client, rlhf_home: Path) -> Iterator[Pipeline]:
    yield Pipeline(rlhf_home)
    shutil.rmtree(rlhf_home / "tombstones", ignore_errors=True)  # other tests know nothing of who was erased here


def holding(home: Path, needles: list[str]) -> list[Path]:
    """Files under a home that hold a needle, tombstones left out."""
    wanted = [needle.encode() for needle in needles]
    files = [file for file in home.rglob("*") if file.is_file() and "argilla-venv" not in file.parts]
    kept = [file for file in files if file.name != "tombstone.json" and file.parent.name != "tombstones"]
    return [file for file in kept if any(needle in file.read_bytes() for needle in wanted)]


def person(client: httpx.Client, name: str) -> str:
    found = find_person(client, name)
    assert found is not None
    return pseudonym(found.id)


@pytest.mark.parametrize("sharing", ["shared", "personal"])
def test_a_person_is_erased_and_the_next_run_rebuilds_what_they_shaped(
    pipeline: Pipeline, client: httpx.Client, sharing: str
) -> None:
    first = pipeline.run(sharing=sharing)
    name, annotator = pipeline.names[1], person(client, pipeline.names[1])
    rows = pipeline.judgements()
    theirs = [row["id"] for row in rows if row["annotator"] == annotator]
    model = Registry(pipeline.record).promote(pipeline.word, first["merge"], None, "test")
    assert theirs and len({row["annotator"] for row in rows}) == 3
    needles = [annotator, *theirs, *(each.replace("-", "") for each in theirs)]
    before = holding(pipeline.home, needles)
    assert before, "or the test below shows nothing"

    plan = erase(name)
    assert plan["dry_run"] and plan["state"] == "present" and plan["judgements"] == sorted(theirs)
    assert {each["artifact"] for each in plan["snapshots"]} == {first[each].key for each in ("label", "preferences")}
    assert {each["artifact"] for each in plan["shaped"]} == {first[each].key for each in ("dpo", "merge")}
    assert plan["models"] == [{"name": pipeline.word, "version": model.version}]
    assert sum(each["judgements"] for each in plan["rounds"]) == len(theirs)
    assert bool(plan["personal_datasets"]) == (sharing == "personal")
    assert all(name in json.dumps(pipeline.record.client.get_run(run).data.params) for run in plan["runs_naming_them"])
    assert any("take the name out" in each for each in plan["stays"])
    assert holding(pipeline.home, needles) == before, "a dry run changes nothing"
    assert pipeline.run(sharing=sharing) == {n: a for n, a in pipeline.artifacts.items()} and not pipeline.built

    document = erase(name, dry_run=False)
    assert document["state"] == "done" and document["judgements"] == plan["judgements"]
    assert document["shaped"] == plan["shaped"] and document["models"] == plan["models"]
    assert not holding(pipeline.home, [each for each in needles if each != annotator])
    left = {file.name for file in holding(pipeline.home, needles)}
    assert left <= {"mlflow.db", "mlflow.db-wal"}, "MLflow's marks name the pseudonym"
    assert find_person(client, name) is None and not [
        each for each in items(client, "/api/v1/me/workspaces") if each["name"].endswith(f"-{name}")
    ]
    version = pipeline.record.client.get_model_version(pipeline.word, model.version)
    assert version.tags[SHAPED] == annotator
    assert pipeline.record.client.get_registered_model(pipeline.word).tags[SHAPED] == "champion (version 1)"
    for stage in ("dpo", "merge"):
        assert pipeline.record.client.get_run(first[stage].run_id).data.tags[SHAPED] == annotator
    [stone] = read_tombstones()
    assert stone.annotator == annotator and stone.judgements == tuple(sorted(theirs)) and name not in stone.name_hash
    [told] = pipeline.record.client.search_runs([pipeline.record.experiment], f"tags.`rlhf.tombstone` = '{annotator}'")
    assert told.data.metrics["judgements"] == len(theirs)

    second = pipeline.run(sharing=sharing)
    assert pipeline.built == ["label", "preferences", "dpo", "merge"], "and not sample"
    left = pipeline.judgements()
    assert {row["annotator"] for row in left} == {
        person(client, each) for each in (pipeline.names[0], pipeline.names[2])
    }
    assert {row["id"] for row in rows} - set(theirs) <= {row["id"] for row in left}, "others' judgements stay"
    assert second["label"].key == first["label"].key and second["label"].digest != first["label"].digest
    records = pipeline.record.artifacts()
    assert not records[second["label"].key]["erased"] and records[first["preferences"].key]["erased"]
    pipeline.run(sharing=sharing)
    assert not pipeline.built, "what was rebuilt is served"

    again = erase(name, dry_run=False)
    assert again["state"] == "done" and again["erased_at"] == document["erased_at"]
    assert again["judgements"] == document["judgements"] and again["models"] == document["models"]
    assert {each["artifact"] for each in again["snapshots"]} == {each["artifact"] for each in document["snapshots"]}
    pipeline.run(sharing=sharing)
    assert not pipeline.built, "and is left alone when the person is erased once more"


OFTEN, SELDOM = ("write_tombstone", "leave", "_erase_snapshots"), ("_mark", "erase_traces", "_tell_mlflow")


@pytest.mark.parametrize("step", [*OFTEN, *(pytest.param(step, marks=pytest.mark.slow) for step in SELDOM)])
def test_an_interrupted_erasure_goes_on(
    pipeline: Pipeline, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Interrupted right after each of its steps."""
    first = pipeline.run()
    name, annotator = pipeline.names[0], person(client, pipeline.names[0])
    theirs = sorted(row["id"] for row in pipeline.judgements() if row["annotator"] == annotator)
    expected = erase(name)

    with monkeypatch.context() as patch:
        real: Callable[..., Any] = getattr(erasing, step)

        def cut(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            raise KeyboardInterrupt

        patch.setattr(erasing, step, cut)
        with pytest.raises(KeyboardInterrupt):
            erase(name, dry_run=False)
    dry = erase(name)
    assert dry["state"] == "begun" and dry["judgements"] == theirs, "what is to be done is still known"
    document = erase(name, dry_run=False)
    assert document["state"] == "done" and document["judgements"] == theirs
    assert {each["artifact"] for each in document["shaped"]} == {each["artifact"] for each in expected["shaped"]}
    needles = [*theirs, *(each.replace("-", "") for each in theirs)]
    assert not holding(pipeline.home, needles)
    assert pipeline.record.client.get_run(first["merge"].run_id).data.tags[SHAPED] == annotator
    pipeline.run()
    assert pipeline.built == ["label", "preferences", "dpo", "merge"]


def test_files_of_a_half_deleted_snapshot_go_with_the_second_try(
    pipeline: Pipeline, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the mark and before the files: nothing serves them, and the next try deletes them."""
    first = pipeline.run()
    annotator = person(client, pipeline.names[0])
    with monkeypatch.context() as patch:
        patch.setattr("tasks.erasure.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(pipeline.names[0], dry_run=False)
    assert holding(pipeline.home / "store", [annotator]), "the copy is still here"
    assert Store(pipeline.home, Record()).find(first["preferences"].key) is None, "but not served"
    erase(pipeline.names[0], dry_run=False)
    left = {file.name for file in holding(pipeline.home, [annotator])}
    assert left <= {"mlflow.db", "mlflow.db-wal"}


def test_files_that_mlflow_keeps_of_a_deleted_run_go_too(pipeline: Pipeline, client: httpx.Client) -> None:
    first = pipeline.run()
    theirs = [row["id"] for row in pipeline.judgements() if row["annotator"] == person(client, pipeline.names[0])]
    pipeline.record.client.delete_run(first["label"].run_id)
    assert holding(pipeline.home / "mlflow" / "artifacts", theirs)
    document = erase(pipeline.names[0], dry_run=False)
    assert document["judgements"] == sorted(theirs), "known from the store and Argilla"
    assert not holding(pipeline.home, theirs)
    pipeline.run()
    assert pipeline.built == ["label", "preferences", "dpo", "merge"]


def test_a_copy_on_another_machine_is_not_served_and_goes(
    pipeline: Pipeline, client: httpx.Client, tmp_path: Path
) -> None:
    first = pipeline.run()
    elsewhere = Store(tmp_path / "elsewhere", pipeline.record)
    copy = elsewhere.find(first["label"].key)
    assert copy is not None and copy.path.is_dir()
    erase(pipeline.names[2], dry_run=False)
    assert Store(tmp_path / "elsewhere", Record()).find(first["label"].key) is None
    assert not copy.path.exists()


@pytest.mark.slow
def test_two_people_are_erased_one_after_the_other(pipeline: Pipeline, client: httpx.Client) -> None:
    """The second one shaped models through a snapshot that the first one's erasure has deleted."""
    first = pipeline.run()
    who = [person(client, name) for name in pipeline.names]
    erase(pipeline.names[0], dry_run=False)
    plan = erase(pipeline.names[1])
    assert first["merge"].key in {each["artifact"] for each in plan["shaped"]}
    erase(pipeline.names[1], dry_run=False)
    tags = pipeline.record.client.get_run(first["merge"].run_id).data.tags
    assert tags[SHAPED].split(",") == sorted(who[:2])
    pipeline.run()
    assert {row["annotator"] for row in pipeline.judgements()} == {who[2]}


def test_who_cannot_be_erased_is_told_in_one_sentence(pipeline: Pipeline, client: httpx.Client) -> None:
    with pytest.raises(PipelineError, match="no annotator 'nobody-at-all'; `rlhf annotators list`"):
        erase("nobody-at-all")
    owner = client.get("/api/v1/me").json()["username"]
    with pytest.raises(PipelineError, match=r"is owner in Argilla, not annotator"):
        erase(owner, dry_run=False)
    assert read_tombstones() == []


def test_others_keep_their_answers_and_their_workspaces(pipeline: Pipeline, client: httpx.Client) -> None:
    """Also in Argilla alone: drafts go, other people's answers stay, and records ask for nobody new."""
    pipeline.run()
    ben = find_person(client, pipeline.names[1])
    assert ben is not None
    others = [find_person(client, name) for name in (pipeline.names[0], pipeline.names[2])]
    before = [len(answers_of(client, other)) for other in others if other]
    assert answers_of(client, ben) and sheets_of(client, ben) == []
    leave(client, ben)
    assert answers_of(client, ben) == []
    assert [len(answers_of(client, other)) for other in others if other] == before
    leave(client, ben)


ERASE = (
    "import json, os, sys; from flows import services; os.environ.update(services.environment())\n"
    "from flows.erase import erase; print(json.dumps(erase(sys.argv[1], dry_run=sys.argv[2] != 'yes')))"
)


def erase_as_the_verb_does(name: str, yes: str = "") -> dict[str, Any]:
    command = [sys.executable, "-c", ERASE, name, yes]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.slow
def test_a_whole_lifecycle_is_rebuilt_from_the_labels_on(fresh_home: Path) -> None:
    first = rlhf("run", TINY).document
    rows = read_jsonl(fresh_home / "store" / stages(first)["label"]["artifact"] / "judgements.jsonl")
    time.sleep(12)  # Prefect writes its events in the background, every five seconds
    plan = erase_as_the_verb_does("sim-hasty")
    theirs = [row["id"] for row in rows if row["annotator"] == plan["annotator"]]
    assert theirs and plan["judgements"] == sorted(theirs)
    kept = {"base", "data", "sft", "sample"}
    told = {each["name"] for each in (*plan["snapshots"], *plan["shaped"])}
    assert told == set(stages(first)) - kept
    assert erase_as_the_verb_does("sim-hasty", "yes")["state"] == "done"
    assert not holding(fresh_home, [*theirs, *(each.replace("-", "") for each in theirs)])
    left = {file.name for file in holding(fresh_home, [plan["annotator"]])}
    assert left <= {"mlflow.db", "mlflow.db-wal"}
    steps = rlhf("plan", TINY).document["stages"]
    assert {step["name"] for step in steps if step["reused"]} == kept
    second = rlhf("run", TINY).document
    assert built(second) == set(stages(first)) - kept
    again = read_jsonl(fresh_home / "store" / stages(second)["label"]["artifact"] / "judgements.jsonl")
    assert len({row["annotator"] for row in again}) == 2 and plan["annotator"] not in {
        row["annotator"] for row in again
    }
    old = stages(first)["merge dpo"]["artifact"]
    assert rlhf("lineage", old).document["artifact"]["artifact"] == old, "the lineage of what was can still be read"
