"""What the filters of a mixture did, as tables, figures and in a sentence."""

from collections import Counter

from tasks.artifact import Row
from tasks.data.intake import Intake


def report(intake: Intake) -> None:
    """Write the tables of filters, scores, dropped rows, personal data and notices, and their figures."""
    work, drops = intake.work, intake.drops
    table = filters(intake)
    work.table("filters", table)
    if intake.scores:
        work.table("scores", intake.scores)
    work.table(
        "dropped by set",
        [
            {"set": set_, "filter": name, "reason": reason, "rows": count}
            for (set_, name, reason), count in sorted(drops.counts.items(), key=lambda item: -item[1])
        ],
    )
    work.table("dropped", drops.first)
    found = {(name, kind): n for name, kinds in intake.pii.items() for kind, n in sorted(kinds.items()) if n}
    if found:
        work.table("personal data", [{"set": name, "kind": kind, "found": n} for (name, kind), n in found.items()])
    total = sum(intake.pii.values(), Counter())
    work.log({f"pii/{kind}": n for kind, n in total.items()})
    if intake.notices:
        work.table("notices", [{"notice": notice} for notice in intake.notices])
    work.log({"dropped/all": sum(drops.counts.values())})
    work.log({f"dropped/{row['filter']}": row["dropped"] for row in table})


def filters(intake: Intake) -> list[Row]:
    """A line for each filter, in their order: conversations seen, dropped and changed."""
    table = []
    for name in ["form", *intake.names, "ledger"]:
        seen = {"form": sum(intake.read.values())}.get(name, intake.seen[name])
        dropped = intake.drops.by_filter(name)
        if name != "ledger" or dropped:
            share = round(dropped / seen, 4) if seen else 0.0
            row = {"filter": name, "seen": seen, "dropped": dropped, "share": share}
            table.append({**row, "changed": intake.changed[name]})
    return table


def losses(intake: Intake, only: str | None = None) -> str:
    """What was read, of one set or of all, and what each filter dropped of it, the most first."""
    dropped: Counter[str] = Counter()
    for (set_, name, _), count in intake.drops.counts.items():
        dropped[name] += count * (only in (None, set_))
    said = ", ".join(f"'{name}' dropped {count}" for name, count in dropped.most_common() if count)
    return f"of {intake.read[only] if only else sum(intake.read.values())} rows {said or 'nothing was dropped'}"
