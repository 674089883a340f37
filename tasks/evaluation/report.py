"""The evaluation as people look at it: figures, and completions side by side. Completions are untrusted: text only."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.artifact import Message, Row, Work
from tasks.evaluation.best_of import figure as best_of_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 60
"""Prompts in the table of completions."""


def report(work: Work, evaluation: Mapping[str, Any], samples: Mapping[str, Sequence[Row]]) -> None:
    """Figures and tables under `report/`, and the final metrics of the artifact."""
    models = evaluation["models"]
    _win_rate_figure(work, evaluation)
    _scatter(work, models, "kl_vs_win_rate", "KL to SFT (nats per completion)", "win rate vs SFT", _by_kl)
    last = "utility" if evaluation["judge"] == "utility" else "length"
    _scatter(work, models, f"reward_vs_{last}", "mean reward", f"mean {last}", lambda m: (m["reward"], m[last]))
    work.table("models", [{"model": name, **_flat(figures)} for name, figures in models.items()])
    work.table(
        "completions",
        [
            {"prompt": spoken(row["prompt"])}
            | {name: rows[place]["completions"][0]["text"] for name, rows in samples.items()}
            for place, row in enumerate(samples["sft"][:SHOWN])
        ],
    )
    if best_of := evaluation.get("best_of"):
        work.figure("best_of_n", best_of_figure(best_of, "judge's value"))
        work.table("best_of_n", best_of)
    for name, figures in models.items():
        work.log({f"{key}/{name}": value for key, value in _flat(figures).items() if value is not None})


def spoken(prompt: Sequence[Message]) -> str:
    """A prompt as text: what the user said, or every turn with its role where there are several."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _flat(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one model under names that MLflow allows; the same names for every model."""
    row: dict[str, float | None] = {}
    for key, short in (("win_rate_vs_sft", "win_rate"), ("win_rate_vs_champion", "win_rate_vs_champion")):
        for judge in ("judge", "reward_model"):
            for bound in ("mean", "low", "high"):
                suffix = "" if judge == "judge" else "_by_reward"
                row[f"{short}{suffix}_{bound}"] = figures[key][judge][bound] if figures[key] else None
    for check, interval in figures["checks"].items():
        row |= {f"check_{check}_{bound}": interval[bound] for bound in ("mean", "low", "high")}
    return row | {key: figures[key] for key in ("kl_to_sft", "length", "distinct_2", "finished", "reward", "utility")}


def _axes(width: float = 6, height: float = 4) -> "Axes":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _win_rate_figure(work: Work, evaluation: Mapping[str, Any]) -> None:
    models = {name: figures for name, figures in evaluation["models"].items() if figures["win_rate_vs_sft"]}
    if not models:
        return
    axes = _axes(6, 1.2 + 0.6 * len(models))
    judges = ("judge", "reward_model") if evaluation["judge"] == "utility" else ("reward_model",)
    for shift, judge in zip((-0.12, 0.12), judges, strict=False):
        rates = [figures["win_rate_vs_sft"][judge] for figures in models.values()]
        centres = [rate["mean"] for rate in rates]
        spread = [[r["mean"] - r["low"] for r in rates], [r["high"] - r["mean"] for r in rates]]
        label = "by the utility" if judge == "judge" else "by the reward model"
        places = [place + shift for place in range(len(models))]
        axes.errorbar(centres, places, xerr=spread, fmt="o", capsize=3, label=label)
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.set(xlim=(0, 1), xlabel="win rate vs SFT, 95 % interval over prompts")
    axes.set_yticks(range(len(models)), [_plain(name) for name in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.legend(loc="lower left")
    work.figure("win_rates", axes.figure)  # type: ignore[arg-type]


def _by_kl(figures: Mapping[str, Any]) -> tuple[float | None, float | None]:
    rates = figures["win_rate_vs_sft"]
    return figures["kl_to_sft"], rates["judge"]["mean"] if rates else 0.5  # SFT against itself


def _scatter(work: Work, models: Mapping[str, Any], name: str, x: str, y: str, point: Any) -> None:
    axes = _axes()
    for place, (model, figures) in enumerate(models.items()):
        across, up = point(figures)
        if across is None or up is None:
            continue
        axes.scatter([across], [up], color=f"C{place % 10}")  # a model has one colour in all figures
        axes.annotate(_plain(model), (across, up), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel=x, ylabel=y)
    axes.margins(0.2)
    if point is _by_kl:
        axes.set_ylim(0, 1)
        axes.axhline(0.5, color="grey", linestyle=":")
    work.figure(name, axes.figure)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    """A name without matplotlib's formula signs."""
    return name.replace("$", r"\$")
