"""How a lifecycle run ends: the champion moves or stays, and one document says what was built and what came of it."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flows.rounds import Built
from tasks.artifact import Artifact, without_credentials
from tasks.lineage import Record
from tasks.registry import Registered, Registry

TRAINING = "?workflowType=machine_learning"
"""Opens MLflow's pages as they are for training; by default it shows those for traces of agents."""


def conclude(
    name: str, built: Built, done: Sequence[tuple[str, Artifact]], registry: Registry, run_id: str, flow_run: str
) -> dict[str, Any]:
    """Register the winner if the gate let one through; returns the document `rlhf run --json` prints."""
    decision = built.decision
    evaluation = json.loads((built.evaluation.path / "evaluation.json").read_text())
    best = decision["best"]
    promoted = None
    if decision["promoted"]:
        rates = {f"win_rate.{bound}": rate for bound, rate in _rates(evaluation, best).items()}
        promoted = registry.promote(
            name, built.merged[best], built.champion, decision["reason"], rates, built.number, built.last
        )
    return {
        "run_id": run_id,
        "name": name,
        "stages": [
            {"name": stage, "artifact": a.key, "reused": a.reused, "seconds": round(a.seconds, 2), "run_id": a.run_id}
            for stage, a in done
        ],
        "win_rate": {
            "vs_sft": evaluation["models"][best]["win_rate_vs_sft"]["judge"] if best else None,
            "vs_champion": _judge(evaluation["models"][best]["win_rate_vs_champion"]) if best else None,
        },
        "candidates": [
            {"name": candidate, "refused": decision["verdicts"].get(candidate, []), **evaluation["models"][candidate]}
            for candidate in built.merged
        ],
        "sft": evaluation["models"]["sft"],
        "judge": evaluation["judge"],
        "best": best,
        "promoted": promoted is not None,
        "champion": {"name": name, "version": promoted.version} if promoted else _champion(registry.find(name)),
        "reason": decision["reason"],
        "urls": urls(),
        "links": {
            "prefect": f"{urls()['prefect']}/runs/flow-run/{flow_run}",
            "mlflow": f"{urls()['mlflow']}/#/experiments/{registry.experiment}/runs/{run_id}{TRAINING}",
            "experiment": f"{urls()['mlflow']}/#/experiments/{registry.experiment}",
            "registry": f"{urls()['mlflow']}/#/models/{name}{TRAINING}",
        },
    }


def round_row(document: Mapping[str, Any], built: Built) -> dict[str, Any]:
    """One round of a run in its document: what its best candidate reached, and what that was learnt from."""
    best = next((each for each in document["candidates"] if each["name"] == document["best"]), None)
    return {
        "round": built.number,
        "best": document["best"],
        "win_rate": document["win_rate"],
        "checks": best["checks"] if best else {},
        "kl_to_sft": best["kl_to_sft"] if best else None,
        "pairs": built.preferences.metrics.get("pairs"),
        "reward_accuracy": built.reward.metrics.get("validation/accuracy"),
        "promoted": document["promoted"],
        "champion": document["champion"],
        "reason": document["reason"],
    }


def show_rounds(record: Record, run_id: str, rounds: Sequence[Mapping[str, Any]]) -> None:
    """The last round as points of curves in MLflow and all of them as a figure, while the run goes on."""
    record.curve(run_id, _points(rounds[-1]), int(rounds[-1]["round"]), int(time.time() * 1000))
    record.flush()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    numbers = [row["round"] for row in rounds]
    names = [name for name in _points(rounds[-1]) if name not in ("round/kl_to_sft", "round/pairs", "round/promoted")]
    for name in names:
        axes.plot(numbers, [_points(row).get(name, float("nan")) for row in rounds], "o-", label=name[len("round/") :])
    axes.set(xlabel="round", ylabel="best candidate", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    record.figure(run_id, figure, "rounds.png")


def _points(row: Mapping[str, Any]) -> dict[str, float]:
    found = {f"win_rate_{against}": rate and rate["mean"] for against, rate in row["win_rate"].items()}
    found |= {check: value["mean"] for check, value in row["checks"].items()}
    found |= {name: row[name] for name in ("kl_to_sft", "pairs", "reward_accuracy", "promoted")}
    return {f"round/{name}": float(value) for name, value in found.items() if value is not None}


def urls() -> dict[str, str]:
    """The web UIs people work in."""
    given = {
        "prefect": os.environ.get("PREFECT_API_URL", "").removesuffix("/api"),
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI", ""),
        "argilla": os.environ.get("ARGILLA_API_URL", ""),
    }
    return {name: without_credentials(url) for name, url in given.items()}


def figures(document: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run that its MLflow page shows without opening a child."""
    found: dict[str, float] = {"promoted": float(document["promoted"])}
    for candidate in document["candidates"]:
        name = candidate["name"]
        found[f"{name}/win_rate_vs_sft"] = candidate["win_rate_vs_sft"]["judge"]["mean"]
        if candidate["kl_to_sft"] is not None:
            found[f"{name}/kl_to_sft"] = candidate["kl_to_sft"]
        for check, value in candidate["checks"].items():
            found[f"{name}/{check}"] = value["mean"]
    found["seconds_building"] = sum(stage["seconds"] for stage in document["stages"] if not stage["reused"])
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """The summary as people read it in Prefect, MLflow and the terminal."""
    built = [stage for stage in document["stages"] if not stage["reused"]]
    seconds = document["seconds"]
    lines = [
        f"# {document['name']}",
        "",
        f"**{'Promoted' if document['promoted'] else 'Not promoted'}**: {document['reason']}",
        "",
        f"Built {len(built)} of {len(document['stages'])} stages in {seconds:.0f} s"
        + ("; the rest was reused." if len(built) < len(document["stages"]) else ".")
        if built
        else f"Nothing to build: all {len(document['stages'])} stages were reused ({seconds:.0f} s).",
        "",
        *_candidate_table(document),
        "",
        *_rounds_table(document),
        *(
            f"- {c['name']} is refused: {reason}"
            for c in document["candidates"]
            for reason in c["refused"]
            if reason not in document["reason"]
        ),
        "",
        "| stage | | seconds |",
        "|---|---|---|",
        *(
            f"| [{s['name']}]({document['links']['experiment']}/runs/{s['run_id']}{TRAINING}) "
            f"| {'reused' if s['reused'] else 'built'} | {s['seconds']:.1f} |"
            for s in document["stages"]
        ),
        "",
        *(f"- {line}" for line in where_to_look(document)),
    ]
    return "\n".join(lines) + "\n"


def _candidate_table(document: Mapping[str, Any]) -> list[str]:
    checks = list(document["sft"]["checks"])
    against = any(candidate["win_rate_vs_champion"] for candidate in document["candidates"])
    champion = ["wins against the champion"] if against else []
    head = ["model", "wins against SFT", *champion, "says the reward model", *checks, "KL", "tokens", "ended", "gate"]
    rows = [
        [
            "SFT",
            "",
            *("" for _ in champion),
            "",
            *(_interval(document["sft"]["checks"][check]) for check in checks),
            "",
            f"{document['sft']['length']:.1f}",
            f"{document['sft']['finished']:.2f}",
            "",
        ]
    ]
    for candidate in document["candidates"]:
        rows.append(
            [
                candidate["name"],
                _interval(candidate["win_rate_vs_sft"]["judge"]),
                *(_interval(candidate["win_rate_vs_champion"]["judge"]) for _ in champion),
                f"{candidate['win_rate_vs_sft']['reward_model']['mean']:.2f}",
                *(_interval(candidate["checks"][check]) for check in checks),
                "" if candidate["kl_to_sft"] is None else f"{candidate['kl_to_sft']:.2f}",
                f"{candidate['length']:.1f}",
                f"{candidate['finished']:.2f}",
                _standing(candidate, document),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _rounds_table(document: Mapping[str, Any]) -> list[str]:
    """The rounds of a run one below the other; nothing where there was one."""
    rounds = document["rounds"]
    if len(rounds) < 2:
        return []
    checks = sorted({check for row in rounds for check in row["checks"]})
    head = ["round", "pairs", "reward accuracy", "best", "wins against SFT", "against the champion", *checks, "gate"]
    rows = [
        [
            str(row["round"]),
            "" if row["pairs"] is None else f"{row['pairs']:.0f}",
            "" if row["reward_accuracy"] is None else f"{row['reward_accuracy']:.2f}",
            str(row["best"] or ""),
            *(_interval(rate) if rate else "" for rate in row["win_rate"].values()),
            *(_interval(row["checks"][check]) if check in row["checks"] else "" for check in checks),
            "new champion" if row["promoted"] else "stays",
        ]
        for row in rounds
    ]
    return [*(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]), ""]


def _standing(candidate: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    if candidate["refused"]:
        return "refused"
    if candidate["name"] != document["best"]:
        return "passed"
    return "champion" if document["promoted"] else "passed"


def where_to_look(document: Mapping[str, Any]) -> list[str]:
    """The three web UIs, with what to look at in each."""
    ui, links = document["urls"], document["links"]
    return [
        f"Prefect {links['prefect']}: this run, its stages and this summary",
        f"MLflow {links['mlflow']}: this run; the stages above link to theirs, with curves, figures and completions "
        "side by side",
        f"MLflow {links['registry']}: the versions of {document['name']} and its champion",
        f"Argilla {ui['argilla']}: the round as an annotator sees it (`rlhf status` says how to sign in); everybody's "
        "judgements and the round's report are with the label stage",
    ]


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _judge(rates: Mapping[str, Any] | None) -> Any:
    return rates["judge"] if rates else None


def _rates(evaluation: Mapping[str, Any], best: str) -> dict[str, float]:
    return evaluation["models"][best]["win_rate_vs_sft"]["judge"]


def _champion(registered: Registered | None) -> dict[str, str] | None:
    return {"name": registered.name, "version": registered.version} if registered else None
