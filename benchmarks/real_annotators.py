"""Files of comparisons that several real people judged, as rounds."""

import json
from collections.abc import Sequence
from pathlib import Path

from labeling.comparison import Comparison, Completion, Judgement, compare


def comparison(record: str, ids: Sequence[str], seed: int) -> Comparison:
    return compare(record, [{"role": "user", "content": "?"}], [Completion(name, name) for name in ids], seed)


def pandalm(folder: Path) -> tuple[list[Comparison], list[Judgement]]:
    """Two answers per record, three annotators: 1, 2 or 0 for a tie."""
    comparisons, judgements = [], []
    for row in json.loads((folder / "testset-v1-first200.json").read_text(encoding="utf-8")):
        record = str(row["idx"])
        comparisons.append(comparison(record, ["1", "2"], 0))
        for n in (1, 2, 3):
            said = row[f"annotator{n}"]
            ranks = {"1": 1 + (said == 2), "2": 1 + (said == 1)}
            judgements.append(Judgement(f"{record}/{n}", record, str(n), "submitted", ranks, "", "", ""))
    return comparisons, judgements


def squality(folder: Path) -> tuple[list[Comparison], list[Judgement]]:
    """Several summaries per question, ranked by three reviewers each."""
    comparisons, judgements = [], []
    for line in (folder / "human-eval-first5.jsonl").open(encoding="utf-8"):
        passage = json.loads(line)
        for number, summaries in passage["questions"].items():
            record = f"{passage['passage-id']}-{number}"
            comparisons.append(comparison(record, sorted(summaries), 0))
            ranks: dict[str, dict[str, int]] = {}
            for system, summary in summaries.items():
                for review in summary["reviews"]:
                    ranks.setdefault(review["worker_id"], {})[system] = review["overall-rank"]
            judgements += [Judgement(f"{record}/{w}", record, w, "submitted", r, "", "", "") for w, r in ranks.items()]
    return comparisons, judgements
