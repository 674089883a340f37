"""What a synthesis wrote as a set of the mixture: filters, ledger and provenance; and as a stage of the lifecycle."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from flows.lifecycle import DATA, build_syntheses, data_order
from flows.recipe import LifecycleRecipe
from tasks.artifact import Artifact, InputError, Message, Row, Work, read_jsonl
from tasks.data.prepare import DataRecipe, prepare_data
from tasks.data.preview import made_by
from tasks.data.splits import SPLITS, prompt_id
from tasks.recipe import RecipeError, load_recipe
from tasks.store import Order
from tests.lifecycle_runs import ROOT, rlhf
from tests.synthesis_author import PRINCIPLES, SEEDS, Author, chain
from tests.test_ai_endpoint import ChatServer, serving
from tests.test_mixture import alpaca, by_set, question, save, sft

WRITTEN = {"name": "written", "kind": "synthesis", "of": "tasks"}


def step(name: str, **more: Any) -> Row:
    return {"step": name, **more}


def written(folder: Path, rows: list[tuple[str, list[Row]]]) -> Path:
    """A synthesis artifact of (instruction, steps)."""
    about = {"synthesis": "tasks", "model": "author-1", "temperature": 0.7, "seed": 0}
    folder.mkdir()
    told: list[Row] = []
    for n, (text, steps) in enumerate(rows):
        prompt: list[Message] = [{"role": "user", "content": text}]
        turns = [*prompt, {"role": "assistant", "content": f"It is number {n}."}]
        made = {**about, "prompt_id": prompt_id(prompt), "steps": steps}
        told.append({"id": str(n), "prompt_id": prompt_id(prompt), "messages": turns, "made": made})
    save(folder / "rows.jsonl", told)
    return folder


def prepare(folder: Path, artifact: Path, **settings: Any) -> Work:
    work = Work(folder / "out", folder / "scratch", 0)
    work.out.mkdir(parents=True)
    part = TypeAdapter(DataRecipe).validate_python({"source": "mixture", **settings})
    prepare_data(part, {"synthesis.tasks": artifact}, work)
    return work


def test_a_file_of_written_rows_keeps_families_in_one_split(tmp_path: Path) -> None:
    parents = [question(n, 1) for n in range(40)]
    ids = [prompt_id([{"role": "user", "content": text}]) for text in parents]
    rows = [(text, [step("answer")]) for text in parents]
    rows += [(question(500 + n), [step("evolve", parent=parent)]) for n, parent in enumerate(ids)]
    path = written(tmp_path / "made", rows) / "rows.jsonl"
    work = Work(tmp_path / "out", tmp_path / "scratch", 0)
    work.out.mkdir(parents=True)
    prepare_data(TypeAdapter(DataRecipe).validate_python({"source": "jsonl", "path": str(path)}), {}, work)
    split = {row["id"]: row["split"] for row in read_jsonl(work.out / "ledger.jsonl")}
    children = [prompt_id([{"role": "user", "content": question(500 + n)}]) for n in range(40)]
    assert len({*split.values()}) > 2 and len(split) == 80
    assert [split[child] for child in children] == [split[parent] for parent in ids]
    assert all(row["made"]["synthesis"] == "tasks" for row in sft(work))


def test_rows_keep_how_they_were_made_through_filters_ledger_and_mixture(tmp_path: Path) -> None:
    rows = [(question(n, 1), [step("self_instruct", shown=["seed_1"]), step("answer")]) for n in range(60)]
    rows += [(question(900 + n), [step("self_instruct"), step("answer")]) for n in range(10)]  # the exam's own
    exam = save(tmp_path / "exam.jsonl", [{"prompt": question(900 + n)} for n in range(10)])
    sets = [
        {**WRITTEN, "boost": 2.0},
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 60, 300)},
        {"name": "exam", "kind": "json", "path": exam, "use": "evaluation"},
    ]
    filters = [{"kind": "length", "unit": "characters", "prompt": [1, 40]}, {"kind": "contamination", "words": 5}]
    work = prepare(tmp_path, written(tmp_path / "made", rows), sets=sets, filters=filters)
    learnt = [row for row in sft(work) if row["set"] == "written"]
    assert learnt and all(row["made"]["model"] == "author-1" for row in learnt)
    assert learnt[0]["made"]["steps"][0] == step("self_instruct", shown=["seed_1"])
    assert all("made" not in row for row in sft(work) if row["set"] == "chat")
    others = [row for split in SPLITS[1:] for row in read_jsonl(work.out / f"{split}.jsonl") if row["set"] == "written"]
    assert others and all(row["made"]["synthesis"] == "tasks" for row in others)
    dropped = [row for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "written"]
    exams = {question(900 + n) for n in range(10)}
    assert {row["row"]["messages"][0]["content"] for row in dropped} == exams
    assert {row["filter"] for row in dropped} == {"contamination"} and all("made" in row["row"] for row in dropped)
    assert not exams & {row["messages"][0]["content"] for row in sft(work)}
    assert by_set(work)["written"]["read"] == 70 and by_set(work)["written"]["kept"] == 60


def test_what_was_made_of_one_instruction_stays_in_one_split(tmp_path: Path) -> None:
    rows: list[tuple[str, list[Row]]] = []
    family: dict[str, int] = {}
    for n in range(40):
        root = question(n, 3)
        parent = prompt_id([{"role": "user", "content": root}])
        child = f"Wholly other words {n * 37} {n * 53} about iron, copper and tin."
        grandchild = f"Yet {n * 41} more unlike things {n * 59} of ships and sails."
        between = prompt_id([{"role": "user", "content": child}])
        first = step("evolve", operation="broaden", parent=parent)
        rows += [(root, []), (child, [first]), (grandchild, [first, step("evolve", parent=between)])]
        family |= {root: n, child: n, grandchild: n}
    exam = save(tmp_path / "exam.jsonl", [{"prompt": question(0, 3)}, {"prompt": question(1, 3)}])
    sets = [WRITTEN, {"name": "exam", "kind": "json", "path": exam, "use": "evaluation"}]
    work = prepare(tmp_path, written(tmp_path / "made", rows), sets=sets, near_duplicates=0.9)
    where: dict[int, set[str]] = {}
    for split in SPLITS:
        for row in read_jsonl(work.out / f"{split}.jsonl"):
            text = row["messages"][0]["content"] if split == "sft" else row["prompt"][0]["content"]
            where.setdefault(family[text], set()).add(split)
    assert len(where) == 40 and all(len(splits) == 1 for splits in where.values())
    assert len({split for splits in where.values() for split in splits}) == 5
    dropped = [row for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "written"]
    assert len(dropped) == 6, "what was made of an evaluation prompt is not learnt from either"


def test_a_set_of_a_synthesis_takes_phrasings_like_any_other(tmp_path: Path) -> None:
    artifact = written(tmp_path / "made", [(question(n), [step("answer")]) for n in range(60)])
    told = {"prompt": "Please: {{ messages[0].content }}", "completion": "{{ messages[1].content }}"}
    work = prepare(tmp_path, artifact, sets=[{**WRITTEN, "templates": [told]}])
    assert sft(work)[0]["messages"][0]["content"].startswith("Please: What of")
    assert all(row["made"]["steps"] == [step("answer")] and "made" not in row["reference"] for row in sft(work))


def test_a_column_made_of_something_else_is_left_alone(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "completion": "Yes.", "made": "in Japan"} for n in range(60)]
    told = {"prompt": "{{ prompt }} Made {{ made }}?", "completion": "{{ completion }}"}
    sets = [{"name": "a", "kind": "json", "path": save(tmp_path / "a.jsonl", rows), "templates": [told]}]
    work = prepare(tmp_path, tmp_path, sets=sets)
    assert sft(work)[0]["messages"][0]["content"].endswith("Made in Japan?") and "made" not in sft(work)[0]


def test_a_data_stage_without_its_synthesis_says_so(tmp_path: Path) -> None:
    work = Work(tmp_path / "out", tmp_path / "scratch")
    work.out.mkdir()
    part = TypeAdapter(DataRecipe).validate_python({"source": "mixture", "sets": [WRITTEN]})
    with pytest.raises(InputError, match="holds what the synthesis 'tasks' writes"):
        prepare_data(part, {}, work)


def test_whatever_stands_in_made_can_be_shown() -> None:
    assert made_by({"steps": [3, {"step": "evolve", "operation": "deepen", "parent": "p"}, {}]}).endswith(
        "evolve deepen, , from p"
    )


# in the lifecycle


def recipe(folder: Path, url: str = "http://127.0.0.1:9/v1", **more: Any) -> Path:
    """The lifecycle's recipe, with a synthesis of every step and seeds beside it."""
    (folder / "made").mkdir(exist_ok=True)
    steps = chain(folder)
    steps[3]["principles"] = PRINCIPLES
    lines = ['name = "synthetic"', "[base]", "documents = 400", "hidden = 32", "layers = 2"]
    lines += ["[[synthesis]]", 'name = "tasks"', "[synthesis.writer]", 'kind = "endpoint"', f'url = "{url}"']
    lines += ['model = "author-1"', 'api_key_env = "WRITER_KEY"']
    for each in steps:
        lines += ["[[synthesis.steps]]", *(f"{name} = {json.dumps(value)}" for name, value in each.items())]
    lines += ["[data]", 'source = "mixture"', "[[data.sets]]", 'name = "written"', 'kind = "synthesis"', 'of = "tasks"']
    lines += ["[[data.sets]]", 'name = "chat"', 'kind = "json"', f'path = "{alpaca(folder / "chat.jsonl", 60)}"']
    lines += ["[[policy]]", 'method = "dpo"']
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.sets.written.of=other", "has a set of 'other', which 'synthesis' lacks"),
        ("data.sets.written={name='written', kind='json', path='x'}", "'tasks', whose rows nothing uses"),
        ("synthesis.tasks.steps.0.kind=shout", "self_instruct"),
        ("synthesis.tasks.writer.url=nowhere", "malformed"),
    ],
)
def test_a_lifecycle_whose_syntheses_do_not_fit_is_refused(tmp_path: Path, change: str, message: str) -> None:
    if change.startswith("data.sets.written={"):
        path = recipe(tmp_path)
        path.write_text(path.read_text().replace('kind = "synthesis"\nof = "tasks"', 'kind = "json"\npath = "x"'))
        overrides: list[str] = []
    else:
        path, overrides = recipe(tmp_path), [change]
    with pytest.raises(RecipeError, match=message):
        load_recipe(LifecycleRecipe, path, overrides)


def synthesis(name: str, of: str) -> Row:
    rows = {"kind": "synthesis", "name": "before", "of": of}
    writer = {"kind": "endpoint", "url": "https://host/v1", "model": "m"}
    return {"name": name, "writer": writer, "rows": rows, "steps": [{"kind": "answer"}]}


@pytest.mark.parametrize(
    ("syntheses", "message"),
    [
        ([synthesis("a", "a")], "'a' begins with the rows of 'a', which does not stand before it"),
        ([synthesis("a", "b"), synthesis("b", "a")], "'a' begins with the rows of 'b'"),
        ([synthesis("a", "none")], "begins with the rows of 'none'"),
    ],
)
def test_syntheses_in_a_circle_are_refused(syntheses: list[Row], message: str) -> None:
    sets = [{"name": "written", "kind": "synthesis", "of": "a"}]
    data = {"source": "mixture", "sets": sets}
    with pytest.raises(ValidationError, match=message):
        LifecycleRecipe.model_validate(
            {"name": "x", "synthesis": syntheses, "data": data, "policy": [{"method": "dpo"}]}
        )


class Looking:
    """Notes what would be built."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def one(self, order: Order) -> Artifact:
        self.orders.append(order)
        return Artifact(order.key, order.stage.name, f"digest of {order.name}", Path(), "", {})


def test_a_synthesis_may_begin_with_another_and_the_data_depends_on_what_it_uses(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    more = '[[synthesis]]\nname = "again"\nrows = { kind = "synthesis", name = "first", of = "tasks" }\n'
    more += '[synthesis.writer]\nkind = "endpoint"\nurl = "https://host/v1"\nmodel = "other"\n'
    more += '[[synthesis.steps]]\nkind = "answer"\nagain = true\n'
    text = path.read_text().replace("[data]", more + "[data]").replace('of = "tasks"\n[[data', 'of = "again"\n[[data')
    path.write_text(text)
    parsed, looking = load_recipe(LifecycleRecipe, path), Looking()
    data = data_order(parsed, build_syntheses(parsed, looking))
    assert [order.name for order in looking.orders] == ["synthesis tasks", "synthesis again"]
    assert list(looking.orders[1].inputs) == ["synthesis.tasks"] and list(data.inputs) == ["synthesis.again"]
    keys = [order.key for order in looking.orders]
    (tmp_path / "seeds.jsonl").write_text((tmp_path / "seeds.jsonl").read_text() + json.dumps(SEEDS[0]) + "\n")
    changed = Looking()
    build_syntheses(parsed, changed)
    assert changed.orders[0].key != keys[0], "the seeds' bytes are part of what it is"


def test_without_synthesis_nothing_changes() -> None:
    parsed = load_recipe(LifecycleRecipe, ROOT / "deployments" / "recipes" / "demo.toml")
    looking = Looking()
    assert data_order(parsed, build_syntheses(parsed, looking)).key == Order(DATA, parsed.data, {}, parsed.seed).key
    assert not looking.orders


@pytest.fixture(scope="module")
def author() -> Iterator[tuple[Author, ChatServer]]:
    each = Author()
    with serving(each) as server:
        yield each, server


def test_written_planned_looked_at_and_never_asked_twice(
    services: dict[str, str], tmp_path: Path, author: tuple[Author, ChatServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, author[1].url)
    path.write_text(path.read_text().replace("[synthesis.writer]\n", "[synthesis.writer]\nprompt_price = 1.0\n"))
    assert "WRITER_KEY is not set; put the writer's API key" in rlhf("data", "synthesise", path).error
    monkeypatch.setenv("WRITER_KEY", "sk-of-nobody-else")
    assert "not written yet" in rlhf("data", "preview", path).error
    plan = rlhf("plan", path).document["stages"]
    assert [each["name"] for each in plan[:3]] == ["synthesis tasks", "base", "data"] and not plan[0]["reused"]
    [made] = rlhf("data", "synthesise", path).document["syntheses"]
    asked = len(author[1].requests)
    assert made["rows"] > 20 and not made["reused"] and made["cost_now"] > 0
    assert {h["Authorization"] for h in author[1].headers} == {"Bearer sk-of-nobody-else"}
    plan = rlhf("plan", path).document["stages"]
    assert plan[0]["reused"] and not plan[2]["reused"]
    shown = rlhf("data", "preview", path, "--of", "written", "--rows", "2").document
    assert [row["set"] for row in shown["mixture"]] == ["written", "chat"]
    assert all(row["made"]["synthesis"] == "tasks" for row in shown["conversations"]) and shown["conversations"]
    again = rlhf("data", "synthesise", path).document["syntheses"]
    assert again[0]["reused"] and again[0]["cost_now"] == 0 and len(author[1].requests) == asked
    folder = Path(made["rows_file"]).parent
    assert not any("sk-of-nobody" in file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file())


def where_they_are(work: Work) -> dict[str, str]:
    """The split of each answer number ("It is number N."), or of each prompt's last word."""
    found: dict[str, str] = {}
    for split in SPLITS:
        for row in read_jsonl(work.out / f"{split}.jsonl"):
            turns = row["messages"][:-1] if split == "sft" else row["prompt"]
            found[turns[-1]["content"].split("|")[-1]] = split
    return found


def families(count: int, name: str) -> list[tuple[str, list[Row]]]:
    """So many families of a parent, with an address in it, and three of its kind; or of four instances of one task."""
    rows: list[tuple[str, list[Row]]] = []
    for n in range(count):
        texts = [f"{question(n * 7 + k, 2)} Write to a{n}{k}@b.example {n * 53 + k}|{n}.{k}" for k in range(4)]
        task = prompt_id([{"role": "user", "content": texts[0]}])
        told = step("self_instruct", task=f"{n:016x}") if name == "task" else step("evolve", parent=task)
        rows += [(text, [told] if name == "task" or k else []) for k, text in enumerate(texts)]
    return rows


@pytest.mark.parametrize("name", ["task", "parent"])
@pytest.mark.parametrize("change", ["none", "pii", "templates"])
def test_families_stay_together_also_where_their_prompts_change(tmp_path: Path, name: str, change: str) -> None:
    artifact = written(tmp_path / "made", families(30, name))
    told = {"prompt": "Please: {{ messages[0].content }}", "completion": "{{ messages[1].content }}"}
    sets = [{**WRITTEN, **({"templates": [told]} if change == "templates" else {})}]
    filters = [{"kind": "pii"}] if change == "pii" else []
    work = prepare(tmp_path, artifact, sets=sets, filters=filters, near_duplicates=1)
    splits: dict[str, set[str]] = {}
    for label, split in where_they_are(work).items():
        splits.setdefault(label.split(".")[0], set()).add(split)
    assert len(splits) == 30 and all(len(each) == 1 for each in splits.values())
    assert len(set().union(*splits.values())) == 5


def test_pairs_of_a_synthesis_keep_their_families_and_how_they_were_made(tmp_path: Path) -> None:
    rows = read_jsonl(written(tmp_path / "made", families(30, "parent")) / "rows.jsonl")
    pairs = [
        {"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": "No.", "made": row["made"]}
        for row in rows
    ]
    work = Work(tmp_path / "out", tmp_path / "scratch", 0)
    work.out.mkdir()
    part = {"source": "preferences", "path": save(tmp_path / "pairs.jsonl", pairs), "near_duplicates": 1}
    prepare_data(TypeAdapter(DataRecipe).validate_python(part), {}, work)
    splits: dict[str, set[str]] = {}
    for label, split in where_they_are(work).items():
        splits.setdefault(label.split(".")[0], set()).add(split)
    assert len(splits) == 30 and all(len(each) == 1 for each in splits.values())
    for file in ("sft", "evaluation", "preferences_train"):
        assert all(row["made"]["model"] == "author-1" for row in read_jsonl(work.out / f"{file}.jsonl")), file


def test_personal_data_is_masked_in_how_a_row_was_made_too(tmp_path: Path) -> None:
    number = "4111111111111111"  # an id that looks like a card
    told = [step("answer"), step("revise", original="Write to ada@b.example.", parent=number)]
    rows = [(question(n), told) for n in range(40)] + [("Is it ada@c.example? No.", told)]
    for action, kept in (("redact", 41), ("drop", 40)):
        (tmp_path / action).mkdir()
        artifact = written(tmp_path / action / "made", rows)
        exam = save(tmp_path / action / "exam.jsonl", [{"prompt": question(0)}])
        sets = [WRITTEN, {"name": "exam", "kind": "json", "path": exam, "use": "evaluation"}]
        filters = [{"kind": "pii", "action": action}]
        work = prepare(tmp_path / action, artifact, sets=sets, filters=filters, shares={
            "sft": 1, **dict.fromkeys(SPLITS[1:], 0)
        })  # fmt: skip
        written_out = [read_jsonl(work.out / f"{name}.jsonl") for name in ("sft", "dropped")]
        assert "@" not in str(written_out) and number in str(written_out)
        assert by_set(work)["written"]["read"] == 41 and len(written_out[1]) == 1 + 41 - kept
