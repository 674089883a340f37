"""What the verbs share: their common options, the checked recipe, the services they need."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from flows import services
from tasks.artifact import PipelineError, without_credentials

if TYPE_CHECKING:
    from flows.recipe import LifecycleRecipe

out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe (*.toml).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value: --set sft.learning_rate=1e-4", metavar="KEY=VALUE"),
]
Labels = Annotated[
    Literal["simulated", "people"] | None,
    typer.Option("--labels", help="Who ranks: simulated annotators, or people in Argilla (the run waits for them)."),
]


def set_environment() -> None:
    """The services' addresses, the home and the user's own modules, for whatever is imported next."""
    os.environ.update(services.environment(), RLHF_HOME=str(services.home()))  # before Prefect is imported
    sys.path.insert(0, os.getcwd())  # functions of the user's that a recipe names are found from here
    for handler in ("CONSOLE", "DEBUG"):  # Prefect's log lines stay in its UI; the terminal shows the stages
        os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")


def load(path: Path, overrides: list[str] | None, labels: str | None, *, here: bool = False) -> "LifecycleRecipe":
    """The checked recipe; nothing runs before it is right. A run `here` needs the keys of the models it asks, too."""
    set_environment()
    from flows.recipe import LifecycleRecipe
    from tasks.ai.recipe import check_key
    from tasks.recipe import load_recipe

    extra = [f"label.source={labels}"] if labels else []
    recipe = load_recipe(LifecycleRecipe, path, [*(overrides or []), *extra])
    if here:
        asked = [recipe.label.ai.judge] if recipe.label.ai else []
        for model in [*asked, *(each.writer for each in recipe.synthesis)]:
            check_key(model)
    return recipe


def need_services(*names: str) -> None:
    """Where the services are. Raises `PipelineError` when one of these does not answer."""
    found = services.status()
    for name in names:
        if not found[name].healthy:
            title, url = services.TITLES[name], without_credentials(found[name].url)
            raise PipelineError(f"{title} at {url} does not answer; start it with `rlhf up`.")
    os.environ.update(services.environment(), RLHF_HOME=str(services.home()))  # one home, whatever folder this runs in
