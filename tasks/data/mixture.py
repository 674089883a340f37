"""Instruction data from many sets: read, told in phrasings, filtered, split by the ledger, and mixed by their rates.

Rows go through one at a time and wait on disk, so that memory holds a few numbers per row and no texts. The evaluation
sets come first: nothing of what they hold is trained on.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from tasks.artifact import InputError, Row, Work, write_jsonl
from tasks.data.decontamination import Protected
from tasks.data.duplicates import Signatures, find_root, join
from tasks.data.filters import (
    CharacterFilter,
    ContaminationFilter,
    DuplicateFilter,
    FilterPart,
    LanguageFilter,
    LengthFilter,
    PiiFilter,
    Rule,
)
from tasks.data.mixing import Mix, Wanted, amounts, rates
from tasks.data.model_filters import DifficultyFilter, JudgeFilter, PerplexityFilter
from tasks.data.phrasings import Told, tell
from tasks.data.rows import Example, read_examples
from tasks.data.scored import ModelFilter, quantiles, score
from tasks.data.sources import CsvSet, HubSet, JsonSet, ParquetSet, TextSet
from tasks.data.splits import SPLITS, Splitting, assign, prompt_id
from tasks.data.spool import Drops, Kept, Spool, answer_of, plain

AnySet = Annotated[JsonSet | CsvSet | ParquetSet | HubSet | TextSet, Field(discriminator="kind")]
AnyFilter = Annotated[
    LengthFilter
    | CharacterFilter
    | LanguageFilter
    | PiiFilter
    | DuplicateFilter
    | ContaminationFilter
    | PerplexityFilter
    | DifficultyFilter
    | JudgeFilter,
    Field(discriminator="kind"),
]


class MixtureData(Splitting):
    """Several sets of instructions, filtered and mixed."""

    source: Literal["mixture"]
    """The sets below."""
    sets: tuple[AnySet, ...] = Field(min_length=1)
    """Where rows come from, and how they are told."""
    mix: Mix = Mix()
    """How much of each set is used for fine-tuning."""
    filters: tuple[AnyFilter, ...] = ()
    """What keeps rows out; rules on single rows first, then what compares rows, each in the order given."""

    @field_validator("sets")
    @classmethod
    def _different_names(cls, sets: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [each.name for each in sets]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"two sets are named '{twice[0]}'; give each its own name")
        return sets

    @model_validator(mode="after")
    def _known_names(self) -> "MixtureData":
        names = {each.name for each in self.sets}
        for each in self.filters:
            unknown = sorted({*each.sets} - names)
            if unknown:
                raise ValueError(f"the filter '{each.kind}' names the set '{unknown[0]}', which is not there")
        if all(each.use == "evaluation" or each.kind == "text" for each in self.sets):
            raise ValueError("no set has conversations to learn from; add one that is not plain text or for evaluation")
        return self

    def brings_evaluation(self) -> bool:
        """Whether a set is there for evaluation alone."""
        return any(each.use == "evaluation" for each in self.sets)

    def external_files(self) -> list[Path]:
        """Files whose content is part of the identity: rows, templates, and what is protected from contamination."""
        files = [file for each in self.sets for file in [*each.source_files(), *each.template_files()]]
        for each in self.filters:
            if isinstance(each, ContaminationFilter):
                files += [Path(file).expanduser() for file in each.against]
            if isinstance(each, ModelFilter):
                files += each.external_files()
        return files


def prepare_mixture(recipe: MixtureData, work: Work) -> None:
    """Write the splits, the ledger, `dropped.jsonl` with every row that is not used, and the tables of the report.

    `sft.jsonl` has rows `{"id", "messages", "reference", "set", "form"}`, and `{"text", "set"}` of plain text. Raises
    `InputError` when a set cannot be read or gives nothing, or when a split would stay empty.
    """
    Preparing(recipe, work).run()


class Preparing:
    """One mixture on its way."""

    def __init__(self, recipe: MixtureData, work: Work) -> None:
        self.recipe, self.work = recipe, work
        work.scratch.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(work.scratch / "rows.jsonl")
        self.contents = Signatures(work.scratch / "contents.bin")
        self.drops = Drops(work.out / "dropped.jsonl")
        self.read: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.names = _filter_names(recipe.filters)
        self.scores: list[Row] = []

    def run(self) -> None:
        recipe, work = self.recipe, self.work
        rules = self._rules()
        order = sorted(range(len(recipe.sets)), key=lambda i: recipe.sets[i].use != "evaluation")
        protected = self._protected()
        for done, number in enumerate(order):
            self._read(number, rules, protected, done)
        self.spool.finish()
        keep = np.ones(len(self.spool), bool)
        total = len(order) + 3
        for name, part in self.names.items():
            if isinstance(part, DuplicateFilter):
                work.progress(len(order), total, "looking for duplicates")
                self._without_duplicates(name, part, keep)
            elif isinstance(part, ModelFilter):
                self._without_low_scores(name, part, keep)
        work.progress(len(order) + 1, total, "splitting")
        splits, groups = self._split(keep)
        work.progress(len(order) + 2, total, "mixing")
        self._write(keep, splits, groups)
        self.drops.close()
        self._report_filters()
        work.progress(total, total, f"{int(work.metrics['rows/sft'])} rows")

    def _rules(self) -> dict[str, tuple[Any, Rule]]:
        return {name: (part, part.rule()) for name, part in self.names.items() if hasattr(part, "rule")}

    def _protected(self) -> dict[str, tuple[ContaminationFilter, Protected]]:
        found: dict[str, tuple[ContaminationFilter, Protected]] = {}
        for name, part in self.names.items():
            if isinstance(part, ContaminationFilter):
                if not part.against and not self.recipe.brings_evaluation():
                    raise InputError(
                        'The contamination filter has nothing to protect; add a set with use = "evaluation", or '
                        "name files in its 'against'."
                    )
                found[name] = (part, Protected(part.words))
                for file in part.against:
                    for example in read_examples(Path(file).expanduser(), "drop")[0]:
                        found[name][1].add(turn["content"] for turn in example.prompt if turn["role"] == "user")
        return found

    def _read(
        self, number: int, rules: Mapping[str, tuple[Any, Rule]],
        protected: Mapping[str, tuple[ContaminationFilter, Protected]], done: int,
    ) -> None:  # fmt: skip
        """One set through its phrasings and the rules on single rows, into the spool."""
        part, total = self.recipe.sets[number], len(self.recipe.sets) + 3
        exempt = part.use == "evaluation"
        reasons: Counter[str] = Counter()
        begun = len(self.spool)
        with closing(part.lines()) as lines:  # type: ignore[arg-type]
            for told in tell(part, lines, self.work.seed):
                self.read[part.name] += 1
                if self.read[part.name] % 1000 == 0:
                    self.work.progress(done, total, f"{part.name}: {self.read[part.name]} rows")
                if told.problem:
                    reasons[f"{told.problem} {told.detail}".strip()] += 1
                    self.drops.add(part.name, told.line, "form", told.problem, told.excerpt)
                    continue
                self.told[part.name] += len(told.examples)
                examples = told.examples if exempt else self._passed(part.name, told, rules, protected)
                if not examples:
                    continue
                if exempt:
                    for _, guard in protected.values():
                        guard.add(_protected_texts(told))
                self.spool.add(Kept(number, told.line, told.content, examples))
                self.contents.add(told.content)
        if not self.read[part.name]:
            raise InputError(f"The set '{part.name}' is empty; check its path in the recipe.")
        if len(self.spool) == begun and sum(reasons.values()) == self.read[part.name]:
            reason, count = reasons.most_common(1)[0]
            raise InputError(
                f"The set '{part.name}' has no usable row: {count} of {self.read[part.name]} {reason}; "
                "check its format, or give it templates."
            )

    def _passed(
        self, name: str, told: Told, rules: Mapping[str, tuple[Any, Rule]],
        protected: Mapping[str, tuple[ContaminationFilter, Protected]],
    ) -> list[Example]:  # fmt: skip
        passed: list[Example] = []
        for example in told.examples:
            here: Example | str = example
            for filter_, (part, rule) in rules.items():
                if part.sets and name not in part.sets:
                    continue
                self.seen[filter_] += 1
                after = rule(here)
                if isinstance(after, str):
                    self.drops.add(name, told.line, filter_, after, plain(here))
                    here = after
                    break
                self.changed[filter_] += after is not here
                here = after
            if isinstance(here, str):
                continue
            for filter_, (part, guard) in protected.items():
                if part.sets and name not in part.sets:
                    continue
                self.seen[filter_] += 1
                if guard.share(_texts(here)) > part.share:
                    reason = f"shares {part.words} words in a row with an evaluation set"
                    self.drops.add(name, told.line, filter_, reason, plain(here))
                    break
            else:
                passed.append(here)
        return passed

    def _without_duplicates(self, name: str, part: DuplicateFilter, keep: np.ndarray) -> None:
        """Take out of `keep` what says the same as an earlier row."""
        among = keep & self._looked_at(part)
        signatures = self.contents
        if part.of == "conversation":
            signatures = Signatures(self.work.scratch / f"{name}.bin")
            for _, kept in self.spool.rows(np.ones(len(self.spool), bool)):
                signatures.add(_conversation_text(kept))
        text = _conversation_text if part.of == "conversation" else _content
        groups = signatures.groups(part.threshold, lambda index: text(self.spool.read(index)), among)
        again = among & (groups != np.arange(len(groups)))
        for index, kept in self.spool.rows(among):
            self.seen[name] += len(kept.examples)
            if again[index]:
                first = self.spool.read(int(groups[index]))
                reason = f"says what a row of {self.recipe.sets[first.set].name} says"
                for example in kept.examples:
                    self.drops.add(self.recipe.sets[kept.set].name, kept.line, name, reason, plain(example))
        keep &= ~again

    def _looked_at(self, part: FilterPart) -> np.ndarray:
        """The rows of the sets that a filter is for."""
        sets = enumerate(self.recipe.sets)
        looked = [i for i, each in sets if each.use != "evaluation" and each.name in (part.sets or [each.name])]
        return np.isin(np.frombuffer(self.spool.sets, np.uint16), looked)

    def _without_low_scores(self, name: str, part: ModelFilter, keep: np.ndarray) -> None:
        """Take out the conversations that a model scores too low or too high."""
        scored = score(part, self.spool, keep & self._looked_at(part), self.work)
        self.scores.append(quantiles(name, scored))
        self.seen[name] += len(scored.places)
        going: dict[int, dict[int, str]] = {}
        for (index, at), reason in zip(scored.places, scored.reasons, strict=True):
            if reason:
                going.setdefault(index, {})[at] = reason
        for index, reasons in going.items():
            out = self.spool.without.get(index, set())
            kept = self.spool.read(index)
            left = [at for at in range(len(kept.examples) + len(out)) if at not in out]
            for at, example in zip(left, kept.examples, strict=True):
                if at in reasons:
                    self.drops.add(self.recipe.sets[kept.set].name, kept.line, name, reasons[at], plain(example))
            self.spool.without[index] = out | reasons.keys()
            keep[index] = len(reasons) < len(kept.examples)

    def _split(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The split of each row that is kept (by its place in `SPLITS`, -1 for none), and its group.

        Near-duplicates are one group; so are conversations that go on from one another. A group with a row of an
        evaluation set is held out, and its rows of other sets are dropped.
        """
        recipe, size = self.recipe, len(self.spool)
        groups = self.contents.groups(recipe.near_duplicates, lambda index: self.spool.read(index).content, keep)
        self._join_conversations(groups, keep)
        use = np.array([each.use for each in recipe.sets])[np.frombuffer(self.spool.sets, np.uint16)]
        plain_text = np.array([each.kind == "text" for each in recipe.sets])[np.frombuffer(self.spool.sets, np.uint16)]
        splits = np.full(size, -1)
        splits[plain_text] = SPLITS.index("sft")
        held = set(groups[keep & (use == "evaluation")].tolist())
        forced = set(groups[keep & (use == "sft") & ~plain_text].tolist())
        free: list[int] = []
        ids: list[str] = []
        mute: list[bool] = []
        for index, kept in self.spool.rows(keep & ~plain_text):
            group = int(groups[index])
            if group in held:
                splits[index] = SPLITS.index("evaluation")
                if use[index] != "evaluation":
                    keep[index] = False
                    for example in kept.examples:
                        self.drops.add(recipe.sets[kept.set].name, kept.line, "ledger",
                                       "is a near-duplicate of an evaluation prompt", plain(example))  # fmt: skip
            elif group in forced:
                splits[index] = SPLITS.index("sft")
            else:
                free.append(index)
                ids.append(prompt_id(kept.examples[0].prompt))
                mute.append(not any(example.completions for example in kept.examples))
        assigned = assign(ids, [int(groups[i]) for i in free], recipe.shares, recipe.split_seed, no_sft=mute)
        splits[free] = [SPLITS.index(split) for split in assigned]
        splits[~keep] = -1
        self._check_filled(splits)
        return splits, groups

    def _join_conversations(self, groups: np.ndarray, keep: np.ndarray) -> None:
        """Join the groups of conversations of which one begins as the other."""
        seen: dict[int, int] = {}
        longer: list[tuple[int, int]] = []
        for index, kept in self.spool.rows(keep):
            for example in kept.examples:
                turns = [turn["content"] for turn in example.prompt if turn["role"] != "system"]
                if example.kind or not turns:
                    continue
                seen.setdefault(hash(tuple(turns)), index)
                longer += [(hash(tuple(turns[:length])), index) for length in range(1, len(turns), 2)]
        for beginning, index in longer:
            if beginning in seen:
                join(groups, seen[beginning], index)
        for index in range(len(groups)):
            groups[index] = find_root(groups, index)

    def _check_filled(self, splits: np.ndarray) -> None:
        for place, split in enumerate(SPLITS):
            if getattr(self.recipe.shares, split) > 0 and not (splits == place).any():
                raise InputError(
                    f"The split '{split}' stays empty: after the filters there are too few different prompts; "
                    f"add rows, loosen the filters, or set data.shares.{split} = 0."
                )

    def _write(self, keep: np.ndarray, splits: np.ndarray, groups: np.ndarray) -> None:
        """All files of the splits, the mixture drawn for SFT among them."""
        shared = self._shared_prompts(keep, groups)
        sizes, chosen = self._mixture(keep, splits, shared)
        rows: Counter[str] = Counter()
        ledger: dict[str, Row] = {}
        files = {split: (self.work.out / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        position: Counter[int] = Counter()
        tokens: Counter[str] = Counter()
        for index, kept in self.spool.rows(keep):
            split = SPLITS[splits[index]]
            name = self.recipe.sets[kept.set].name
            for example in kept.examples:
                known = prompt_id(example.prompt) if example.prompt else ""
                if known in shared and split != "sft":
                    reason = "has a prompt that rows of several splits share"
                    self.drops.add(name, kept.line, "ledger", reason, plain(example))
                    continue
                if split == "sft":
                    times = chosen[kept.set].get(position[kept.set], 0) if example.completions else 0
                    position[kept.set] += bool(example.completions)
                    for _ in range(times):
                        files[split].write(_line(_sft_row(known, example, name)))
                        rows["sft"] += 1
                        tokens[name] += sum(len(t.split()) for t in example.completions)
                elif known not in ledger:
                    row = {"id": known, "prompt": example.prompt, "reference": example.reference, "set": name}
                    files[split].write(_line(row))
                    rows[split] += 1
                if known:
                    first = kept if groups[index] == index else self.spool.read(int(groups[index]))
                    group = prompt_id(first.examples[0].prompt)
                    ledger.setdefault(known, {"id": known, "split": split, "group": group})
        for file in files.values():
            file.close()
        write_jsonl(self.work.out / "ledger.jsonl", ledger.values())
        self._report(rows, ledger, sizes, tokens)

    def _shared_prompts(self, keep: np.ndarray, groups: np.ndarray) -> set[str]:
        """Prompts that rows of different groups have, because their phrasing says nothing of the row: in SFT only."""
        first: dict[str, int] = {}
        shared: set[str] = set()
        for index, kept in self.spool.rows(keep):
            for example in kept.examples:
                if example.kind and example.prompt:
                    known = prompt_id(example.prompt)
                    if first.setdefault(known, int(groups[index])) != groups[index]:
                        shared.add(known)
        return shared

    def _mixture(
        self, keep: np.ndarray, splits: np.ndarray, shared: set[str]
    ) -> tuple[list[Row], dict[int, dict[int, int]]]:
        """The table of the sets, and for each set how often its n-th demonstration is used."""
        recipe = self.recipe
        in_sft = keep & (splits == SPLITS.index("sft"))
        sizes: Counter[int] = Counter()
        for _, kept in self.spool.rows(in_sft):
            sizes[kept.set] += sum(bool(example.completions) for example in kept.examples)
        if not sum(sizes.values()) and recipe.shares.sft:
            raise InputError(
                "No row of the data has a completion, so there is nothing to fine-tune on; "
                "add completions, or set data.shares.sft = 0 and start from a model that is fine-tuned already."
            )
        trained = [(i, each) for i, each in enumerate(recipe.sets) if each.use != "evaluation"]
        wanted = [Wanted(each.name, sizes[i], each.weight, each.boost, each.share) for i, each in trained]
        share, count = rates(recipe.mix, wanted), amounts(recipe.mix, wanted)
        chosen = {
            i: _drawn(sizes[i], count[each.name], Random(f"{self.work.seed}/{each.name}/mixture"))
            for i, each in trained
        }
        total = sum(count.values()) or 1
        table = [
            {
                "set": each.name,
                "use": each.use,
                "read": self.read[each.name],
                "kept": int((keep & (np.frombuffer(self.spool.sets, np.uint16) == i)).sum()),
                "for sft": sizes[i],
                "rate": round(share.get(each.name, 0.0), 4),
                "rows": count.get(each.name, 0),
                "share": round(count.get(each.name, 0) / total, 4),
                "times": round(count.get(each.name, 0) / sizes[i], 2) if sizes[i] else 0.0,
            }
            for i, each in enumerate(recipe.sets)
        ]
        return table, chosen

    def _report(self, rows: Counter[str], ledger: Mapping[str, Row], sizes: list[Row], words: Counter[str]) -> None:
        work, prompts = self.work, Counter(row["split"] for row in ledger.values())
        total = sum(words.values()) or 1
        work.table("mixture", [{**row, "share of words": round(words[row["set"]] / total, 4)} for row in sizes])
        work.table("ledger", [{"split": s, "prompts": prompts[s], "rows": rows[s]} for s in SPLITS])
        work.table("examples", list(self._examples()))
        work.log({f"prompts/{split}": prompts[split] for split in SPLITS})
        work.log({f"rows/{split}": rows[split] for split in SPLITS})
        work.log({"prompts/all": len(ledger), "groups": len({row["group"] for row in ledger.values()})})
        work.log({f"share/{row['set']}": row["share"] for row in sizes if row["use"] != "evaluation"})

    def _examples(self) -> Iterator[Row]:
        for split in SPLITS:
            with (self.work.out / f"{split}.jsonl").open(encoding="utf-8") as lines:
                for line, _ in zip(lines, range(5), strict=False):
                    yield {"split": split, "row": line.rstrip("\n")}

    def _report_filters(self) -> None:
        work, drops = self.work, self.drops
        names = ["form", *self.names, "ledger"]
        table = []
        for name in names:
            seen = {"form": sum(self.read.values())}.get(name, self.seen[name])
            dropped = drops.by_filter(name)
            if name != "ledger" or dropped:
                share = round(dropped / seen, 4) if seen else 0.0
                row = {"filter": name, "seen": seen, "dropped": dropped, "share": share}
                table.append({**row, "changed": self.changed[name]})
        work.table("filters", table)
        if self.scores:
            work.table("scores", self.scores)
        work.table(
            "dropped by set",
            [
                {"set": set_, "filter": name, "reason": reason, "rows": count}
                for (set_, name, reason), count in sorted(drops.counts.items(), key=lambda item: -item[1])
            ],
        )
        work.table("dropped", drops.first)
        work.log({"dropped/all": sum(drops.counts.values())})
        work.log({f"dropped/{row['filter']}": row["dropped"] for row in table})


def _filter_names(filters: Sequence[Any]) -> dict[str, Any]:
    """Each filter by its kind, numbered where a kind is there twice."""
    kinds = Counter(part.kind for part in filters)
    met: Counter[str] = Counter()
    names: dict[str, Any] = {}
    for part in filters:
        met[part.kind] += 1
        names[part.kind if kinds[part.kind] == 1 else f"{part.kind} {met[part.kind]}"] = part
    return names


def _drawn(size: int, count: int, rng: Random) -> dict[int, int]:
    """How often each of `size` rows is used that `count` may be used in all: as equally often as can be."""
    if not size or not count:
        return {}
    times, rest = divmod(count, size)
    drawn = dict.fromkeys(range(size), times) if times else {}
    for place in rng.sample(range(size), rest):
        drawn[place] = times + 1
    return drawn


def _sft_row(known: str, example: Example, name: str) -> Row:
    if not example.prompt:
        return {"text": example.completions[0], "set": name}
    about = {"id": known, "reference": example.reference, "set": name, "form": example.form}
    return {**about, "messages": [*example.prompt, answer_of(example)]}


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _texts(example: Example) -> list[str]:
    return [*(turn["content"] for turn in example.prompt), *example.completions]


def _content(kept: Kept) -> str:
    return kept.content


def _conversation_text(kept: Kept) -> str:
    """What a row says with its answer; of a row in phrasings, its columns hold both."""
    first = kept.examples[0]
    return kept.content if first.kind or not first.prompt else "\n".join([kept.content, *first.completions])


def _protected_texts(told: Told) -> list[str]:
    """What of an evaluation row must not be trained on: the columns that it is told from, or what its user says."""
    if told.examples[0].kind:
        return told.content.split("\n")
    return [turn["content"] for turn in told.examples[0].prompt if turn["role"] == "user"]
