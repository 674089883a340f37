"""Rows of all sets on their way in: told in phrasings, through the filters, onto disk."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tasks.artifact import InputError, Row, Work
from tasks.data.decontamination import Asked, Protected, Whole, says_enough
from tasks.data.duplicates import Signatures
from tasks.data.files import read_examples
from tasks.data.filters import ContaminationFilter, DuplicateFilter, PiiFilter, Rule
from tasks.data.pii import redact
from tasks.data.rows import Example
from tasks.data.scored import ModelFilter
from tasks.data.set_filters import without_duplicates, without_low_scores
from tasks.data.spool import Drops, Kept, Spool, plain
from tasks.data.telling import Told, tell
from tasks.data.tools import text_of

if TYPE_CHECKING:
    from tasks.data.mixture import MixtureData

Said = TypeVar("Said", Example, str)
NEAR = "is a near-duplicate of an evaluation prompt"


class Intake:
    """What came in: rows in `spool`, those that stay marked in `keep`, and what was dropped."""

    def __init__(self, recipe: "MixtureData", work: Work) -> None:
        self.recipe, self.work = recipe, work
        work.scratch.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(work.scratch / "rows.jsonl")
        self.contents = Signatures(work.scratch / "contents.bin")
        self.drops = Drops(work.out / "dropped.jsonl")
        self.read: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.pii: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By set: personal data that a filter found, by its kind."""
        self.names = filter_names(recipe.filters)
        self.scores: list[Row] = []
        self.keep = np.zeros(0, bool)
        self.notices: list[str] = []
        """What is not as the recipe asks, and does not stop it."""
        self.shots: list[int] = []
        """Rows in `spool` that are shown as few-shot examples; they are not in `keep`."""
        self.held = Whole()
        self.asked = Asked()

    def run(self) -> None:
        """Read every set, the evaluation sets first, and apply the filters.

        Raises `InputError` when a set cannot be read or gives nothing, and what filters raise.
        """
        rules, protected = self._rules(), self._protected()
        order = sorted(range(len(self.recipe.sets)), key=lambda i: self.recipe.sets[i].use != "evaluation")
        protecting = False
        for done, number in enumerate(order):
            if not protecting and self.recipe.sets[number].use != "evaluation":
                protecting = True
                self._protect([self.held, *(guard for _, guard in protected.values())])
            self._read(number, rules, protected, done)
        self.spool.finish()
        self.keep = np.ones(len(self.spool), bool)
        self.keep[self.shots] = False
        for name, part in self.names.items():
            if isinstance(part, DuplicateFilter):
                self.work.progress(len(order), len(order) + 3, "looking for duplicates")
                without_duplicates(self, name, part)
        for name, part in self.names.items():
            if isinstance(part, ModelFilter):
                without_low_scores(self, name, part)

    def close(self) -> None:
        """Close what is open."""
        self.drops.close()
        self.spool.close()
        self.contents.close()

    def _protect(self, guards: Sequence[Protected | Whole]) -> None:
        """Tell the guards what the evaluation rows ask, which are all in the spool."""
        for _, kept in self.spool.rows(np.ones(len(self.spool), bool)):
            if kept.examples:
                texts = list(self.asked.of(kept.asked, kept.examples[0]))
                for guard in guards:
                    guard.add(texts)

    def notify(self, notice: str) -> None:
        """A sentence for the person at the terminal and for the report."""
        self.notices.append(notice)
        self.work.notify(notice)

    def sets(self) -> np.ndarray:
        """Of each row the place of its set in the recipe."""
        return np.frombuffer(self.spool.sets, np.uint16)

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
                    examples, dropped = read_examples(Path(file).expanduser(), "drop")
                    if dropped:
                        self.notify(
                            f"{len(dropped)} rows of {file} are not protected (the first, row {dropped[0]['line']}, "
                            f'{dropped[0]["reason"]}); mend them, or bring the file as a set with use = "evaluation".'
                        )
                    for example in examples:
                        asked = [turn["content"] for turn in example.prompt if turn["role"] == "user"]
                        found[name][1].add(filter(says_enough, asked))
        return found

    def _read(
        self, number: int, rules: Mapping[str, tuple[Any, Rule]],
        protected: Mapping[str, tuple[ContaminationFilter, Protected]], done: int,
    ) -> None:  # fmt: skip
        """One set through its phrasings and the rules on single rows, into the spool."""
        part, total = self.recipe.sets[number], len(self.recipe.sets) + 3
        evaluated = part.use == "evaluation"
        exempt = evaluated or part.kind == "identity"
        problems: Counter[str] = Counter()
        details: dict[str, str] = {}
        before = self.read[part.name] - len(self.shots)
        for remark in part.remarks():
            self.notify(remark)
        bare = 0
        unused: Counter[str] = Counter()
        with closing(part.lines()) as lines:  # type: ignore[arg-type]
            for told in tell(part, lines, self.work.seed, self._known):
                self.read[part.name] += 1
                if self.read[part.name] % 1000 == 0:
                    self.work.progress(done, total, f"{part.name}: {self.read[part.name]} rows")
                if told.problem:
                    problems[told.problem] += not told.shot
                    first = f" (the first: {self._masked(part.name, told.excerpt)[:80]})" if told.excerpt else ""
                    details.setdefault(told.problem, told.detail + first)
                    self.drops.add(part.name, told.line, "form", told.problem, self._masked(part.name, told.excerpt))
                    if told.shot:
                        self.shots.append(len(self.spool))
                        self._put(Kept(number, told.line, told.content, []))
                    continue
                examples = told.examples if exempt else self._passed(part.name, told, rules, protected)
                if not examples:
                    continue
                if told.unused and not evaluated:
                    bare += 1
                    unused.update(told.unused)
                if evaluated:
                    self.asked.add(told.asked, told.examples[0])
                self._put(Kept(number, told.line, told.content, examples, told.asked))
        if not self.read[part.name]:
            raise InputError(f"The set '{part.name}' is empty; check its path in the recipe.")
        rows = self.read[part.name] - len(self.shots) - before
        if sum(problems.values()) == rows:
            problem, count = problems.most_common(1)[0]
            raise InputError(
                f"The set '{part.name}' has no usable row: {count} of {rows} {problem} {details[problem].strip()}"
                "; check its format, name its columns with 'rename', or give it templates."
            )
        if names := [column for column, count in unused.items() if 2 * count > bare and 2 * bare > rows]:
            self._tell_unused(part.name, names, bare, rows)

    def _tell_unused(self, name: str, columns: Sequence[str], bare: int, rows: int) -> None:
        self.notify(
            f"The set '{name}': {bare} of {rows} rows are prompts alone, and their columns {', '.join(columns)} are "
            "not used; if one of them is the answer, give it the name 'completion' with 'rename', or tell the rows in "
            "templates."
        )

    def _masked(self, name: str, dropped: Said) -> Said:
        """A dropped conversation or row of a set without the personal data that its filters look for."""
        for part in self.names.values():
            if isinstance(part, PiiFilter) and (not part.sets or name in part.sets):
                dropped = redact(dropped, part.find) if isinstance(dropped, str) else part.masked(dropped)
        return dropped

    def _put(self, kept: Kept) -> None:
        self.spool.add(kept)
        self.contents.add(kept.content)

    def _known(self, said: list[str]) -> bool:
        """Whether one of a row's texts is an evaluation prompt."""
        return self.held.says(filter(says_enough, said))

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
                if after is not here and isinstance(part, PiiFilter):
                    self.pii[name] += part.found(here)
                if isinstance(after, str):
                    self.drops.add(name, told.line, filter_, after, plain(self._masked(name, here)))
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
                if reason := _contaminated(here, told, part, guard):
                    self.drops.add(name, told.line, filter_, reason, plain(here))
                    break
            else:
                passed.append(here)
        if passed and self._known(told.said):
            for example in passed:
                self.seen["ledger"] += 1
                self.drops.add(name, told.line, "ledger", NEAR, plain(example))
            return []
        return passed


def filter_names(filters: Sequence[Any]) -> dict[str, Any]:
    """Each filter by its kind, numbered where a kind is there twice."""
    kinds = Counter(part.kind for part in filters)
    met: Counter[str] = Counter()
    names: dict[str, Any] = {}
    for part in filters:
        met[part.kind] += 1
        names[part.kind if kinds[part.kind] == 1 else f"{part.kind} {met[part.kind]}"] = part
    return names


def _contaminated(example: Example, told: Told, part: ContaminationFilter, guard: Protected) -> str:
    """What of an evaluation set is in a conversation; empty: nothing."""
    texts = _texts(example) + (told.said if example.kind else [])
    if guard.says([told.content, *(turn["content"] for turn in example.prompt if turn["role"] == "user")]):
        return "asks what an evaluation set asks"
    if guard.holds(texts):
        return "holds a prompt of an evaluation set"
    return f"shares {part.words} words in a row with an evaluation set" if guard.share(texts) > part.share else ""


def _texts(example: Example) -> list[str]:
    return [*map(text_of, example.prompt), *example.answers]
