"""The shape of the code: who may import whom, and that the packages are this repository's."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("labeling", "tasks", "flows", "deployments")
FILES = sorted(file for package in OURS[:3] for file in (ROOT / package).rglob("*.py"))
STAGES = {
    "base": "tasks.models.pretrain",
    "synthesis": "tasks.synthesis.synthesise",
    "data": "tasks.data.prepare",
    "sft": "tasks.training.sft",
    "sample": "tasks.sampling.completions",
    "select": "tasks.labels.selection",
    "judge": "tasks.ai.feedback",
    "label": "tasks.labels.label",
    "preferences": "tasks.labels.preferences",
    "reward": "tasks.training.reward",
    "dpo": "tasks.training.direct",
    "ppo": "tasks.training.ppo",
    "rejection": "tasks.training.rejection",
    "grpo": "tasks.training.grpo",
    "merge": "tasks.merging",
    "evaluate": "tasks.evaluation.evaluate",
    "gate": "tasks.evaluation.gate",
}


def imported(file: Path) -> set[str]:
    """Every module a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    above = OURS[OURS.index(package) + 1 :]
    tops = {module.split(".")[0] for module in imported(file)}
    assert not tops & set(above), "imports point from flows to tasks to labeling"
    if package == "labeling":
        assert not tops & {"tasks", "flows", "torch", "transformers", "prefect", "mlflow"}
    if package == "flows":
        assert not tops & {"torch", "transformers", "trl", "peft", "argilla"}
    if "argilla" in tops or "argilla_server" in tops:
        assert package == "labeling"
    if "mlflow" in tops:
        assert name_of(file) in ("tasks.tracking", "tasks.lineage", "tasks.registry", "tasks.erasure")
    if "trl" in tops:
        assert name_of(file).startswith("tasks.training.")


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_knows_no_other_stage(stage: str) -> None:
    file = ROOT / Path(*STAGES[stage].split(".")).with_suffix(".py")
    others = {module for name, module in STAGES.items() if name != stage}
    assert not imported(file) & others


def test_flows_start_without_the_heavy_libraries() -> None:
    heavy = "('torch', 'transformers', 'argilla', 'trl')"
    code = f"import sys, flows.lifecycle; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip().splitlines()[-1] == "[]"


def test_the_packages_are_this_repositorys() -> None:
    import flows
    import labeling
    import tasks

    for package in (flows, tasks, labeling):
        assert Path(str(package.__file__)).is_relative_to(ROOT)
