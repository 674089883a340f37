"""The files of a mixture: rows for SFT drawn by the rates of each stage, prompts of the other splits, the ledger."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifact import InputError, Row, Work
from tasks.data.held_out import NO_ANSWERS
from tasks.data.intake import Intake
from tasks.data.mixing import Wanted, amounts, rates, shortfalls
from tasks.data.prompts import Prompts, prompt_name
from tasks.data.rows import Example
from tasks.data.splits import SPLITS
from tasks.data.spool import answer_of, made_of, plain
from tasks.data.telling import CUT

if TYPE_CHECKING:
    from tasks.data.mixture import MixtureData, MixtureStage

_SHOTS = re.compile(r" \d+-shot$")


@dataclass
class Drawn:
    """What one stage of SFT learns from."""

    name: str
    """Empty for the first."""
    table: list[Row]
    """A line for each set."""
    times: dict[int, np.ndarray]
    """By set: how often its n-th demonstration is used."""
    words: Counter[str]
    """By set: words of completions that were written."""
    forms: Counter[tuple[str, str, str]]
    """By set, phrasing and its kind: rows that were written."""

    @property
    def file(self) -> str:
        return f"sft.{self.name}.jsonl" if self.name else "sft.jsonl"


def write_files(recipe: "MixtureData", intake: Intake, splits: np.ndarray, groups: np.ndarray, work: Work) -> None:
    """Write everything the stage promises but what was dropped. Raises `InputError` without any demonstration."""
    prompts = Prompts(intake, groups)
    sizes = _sizes(recipe, intake, splits)
    stages = [_drawn_for(recipe, intake, sizes, stage, work.seed) for stage in (None, *recipe.stages)]
    rows: Counter[str] = Counter()
    ledger: Counter[str] = Counter()
    named = np.zeros(len(groups), np.uint64)  # groups by their first prompt here: a group may begin with plain text
    listed = np.zeros(len(groups), bool)
    position: Counter[int] = Counter()
    unused: Counter[int] = Counter()
    place = -1
    with ExitStack() as opened:
        names = [*(f"{split}.jsonl" for split in SPLITS), *(stage.file for stage in stages[1:]), "ledger.jsonl"]
        files = {name: opened.enter_context((work.out / name).open("w", encoding="utf-8")) for name in names}
        for index, kept in intake.spool.rows(intake.keep):
            split, name = SPLITS[splits[index]], recipe.sets[kept.set].name
            left = len(kept.examples)
            for example in kept.examples:
                place += 1
                intake.seen["ledger"] += 1
                known = prompts.name(place)
                if known and prompts.is_shared(place) and split != "sft":
                    reason = "has a prompt that rows of several splits share"
                    intake.drops.add(name, kept.line, "ledger", reason, plain(example))
                    left -= 1
                    continue
                if split == "sft" and not example.completions:
                    intake.drops.add(name, kept.line, "ledger", "has no completion to learn from", plain(example))
                    left -= 1
                    continue
                new = bool(known) and prompts.note(place)
                if split == "sft":
                    for stage in stages:
                        drawn = stage.times.get(kept.set)
                        times = 0 if drawn is None else int(drawn[position[kept.set]])
                        files[stage.file].write(_line(_sft_row(known, example, name)) * times)
                        rows[stage.file] += times
                        stage.forms[name, example.form, example.kind] += times
                        stage.words[name] += times * len(example.completions[0].split())
                    position[kept.set] += 1
                elif new:
                    row = {"id": known, "prompt": example.prompt, "reference": example.reference, "set": name}
                    row |= made_of(example)
                    files[f"{split}.jsonl"].write(_line(row))
                    rows[f"{split}.jsonl"] += 1
                group = groups[index]
                named[group] = named[group] or prompts.number(place)
                if new:
                    listed[group] = True
                    files["ledger.jsonl"].write(
                        _line({"id": known, "split": split, "group": prompt_name(int(named[group]))})
                    )
                    ledger[split] += 1
            unused[kept.set] += not left
    for stage in stages:
        for number, row in enumerate(stage.table):
            row["kept"] -= unused[number]
    _report(work, rows, ledger, _different(named[listed]), stages)


def _sizes(recipe: "MixtureData", intake: Intake, splits: np.ndarray) -> Counter[int]:
    """How many demonstrations of each set SFT has."""
    sizes: Counter[int] = Counter()
    for _, kept in intake.spool.rows(intake.keep & (splits == SPLITS.index("sft"))):
        sizes[kept.set] += sum(bool(example.completions) for example in kept.examples)
    if not sum(sizes.values()) and recipe.shares.sft:
        raise InputError(NO_ANSWERS)
    return sizes


def _drawn_for(
    recipe: "MixtureData", intake: Intake, sizes: Mapping[int, int], stage: "MixtureStage | None", seed: int
) -> Drawn:
    """One stage's mixture; None: the first, with the settings of the sets themselves."""
    name, mix = (stage.name, stage.mix) if stage else ("", recipe.mix)
    boost = stage.boost if stage else {}
    trained = [
        (i, each)
        for i, each in enumerate(recipe.sets)
        if each.use != "evaluation" and (stage is None or each.name in (stage.sets or [each.name]))
    ]
    wanted = [
        Wanted(each.name, sizes[i], each.weight, boost.get(each.name, each.boost), each.share) for i, each in trained
    ]
    share, count = rates(mix, wanted), amounts(mix, wanted)
    times = {i: _drawn(sizes[i], count[each.name], Random(f"{seed}/{each.name}/mixture{name}")) for i, each in trained}
    for notice in shortfalls(mix, wanted):
        intake.notify(f"Stage '{name}': {notice}" if name else notice)
    total = sum(count.values()) or 1
    table = [
        {
            "set": each.name,
            "use": each.use,
            "read": intake.read[each.name],
            "kept": int((intake.keep & (intake.sets() == i)).sum()),
            "for sft": sizes[i],
            "rate": round(share.get(each.name, 0.0), 4),
            "rows": count.get(each.name, 0),
            "share": round(count.get(each.name, 0) / total, 4),
            "times": round(count.get(each.name, 0) / sizes[i], 2) if sizes[i] else 0.0,
        }
        for i, each in enumerate(recipe.sets)
    ]
    return Drawn(name, table, times, Counter(), Counter())


def _drawn(size: int, count: int, rng: Random) -> np.ndarray:
    """How often each of `size` rows is used that `count` may be used in all: as equally often as can be."""
    times, rest = divmod(count, size) if size else (0, 0)
    drawn = np.full(size, times, np.uint32)
    drawn[rng.sample(range(size), rest)] += 1
    return drawn


def _sft_row(known: str, example: Example, name: str) -> Row:
    if not example.prompt:
        goes_on: Row = {"goes_on": True} if example.form == CUT else {}
        return {"text": example.completions[0], "set": name, **goes_on}
    about = {"id": known, "reference": example.reference, "set": name, "form": example.form, **made_of(example)}
    return {**about, "messages": [*example.prompt, answer_of(example)]}


def _different(numbers: np.ndarray) -> int:
    """How many different ones there are."""
    numbers.sort()
    return int(np.count_nonzero(numbers[1:] != numbers[:-1])) + bool(len(numbers))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _report(
    work: Work, rows: Mapping[str, int], prompts: Mapping[str, int], groups: int, stages: Sequence[Drawn]
) -> None:
    for stage in stages:
        total = sum(stage.words.values()) or 1
        table = [{**row, "share of words": round(stage.words[row["set"]] / total, 4)} for row in stage.table]
        work.table(f"mixture {stage.name}".strip(), table)
        prefix = f"share/{stage.name}/" if stage.name else "share/"
        work.log({prefix + row["set"]: row["share"] for row in stage.table if row["use"] != "evaluation"})
    work.table("phrasings", _phrasings(stages[0]))
    work.table("ledger", [{"split": s, "prompts": prompts[s], "rows": rows.get(f"{s}.jsonl", 0)} for s in SPLITS])
    work.table("examples", list(_examples(work.out)))
    work.log({f"prompts/{split}": prompts[split] for split in SPLITS})
    files = [f"{split}.jsonl" for split in SPLITS] + [stage.file for stage in stages[1:]]
    work.log({f"rows/{file.removesuffix('.jsonl')}": rows.get(file, 0) for file in files})
    work.log({"prompts/all": sum(prompts.values()), "groups": groups})


def _phrasings(stage: Drawn) -> list[Row]:
    """How many rows were told in each phrasing, with any number of examples before it."""
    told: Counter[tuple[str, str, str]] = Counter()
    for (name, form, kind), rows in stage.forms.items():
        told[name, _SHOTS.sub("", form), kind or "conversation"] += rows
    return [{"set": s, "phrasing": f, "kind": k, "rows": n} for (s, f, k), n in sorted(told.items())]


def _examples(out: Path) -> Iterator[Row]:
    for split in SPLITS:
        with (out / f"{split}.jsonl").open(encoding="utf-8") as lines:
            for line, _ in zip(lines, range(5), strict=False):
                yield {"split": split, "row": line.rstrip("\n")}
