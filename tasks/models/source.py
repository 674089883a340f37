"""A model that a recipe names, a local folder or a hub id: found, referred to by an artifact, and not copied.

Knows nothing about what is in it; imports no torch.
"""

import hashlib
import json
from pathlib import Path

import httpx

from tasks.artifact import InputError, PipelineError

LOCATION = "report/location.txt"
"""Where the weights of a model that is not copied lie (a folder or a hub id); in `report/`: no part of its identity."""


def local_folder(model: str, field: str) -> Path | None:
    """A local model's folder, None for a hub id. Raises `InputError`, naming the recipe's field, when it is missing."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    if path.is_dir():
        raise InputError(f"{path} holds no config.json, so it is not a model; set {field} to a model's folder.")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"The model folder {path} does not exist; check {field}, or give a hub id.")
    return None


def model_files(folder: Path | None) -> list[Path]:
    """The files that make a local model what it is; none of a model on the hub, whose id and commit say that."""
    return sorted(path for path in folder.iterdir() if _is_wanted(path)) if folder else []


def find_model(model: str, revision: str | None, field: str) -> tuple[Path, str | None]:
    """The folder of a local or a hub model, and the hub's commit that `revision` stands for.

    Raises `InputError` when it is not there or holds no safetensors.
    """
    folder, commit = local_folder(model, field), None
    if folder is None:
        folder, commit = resolve_hub_model(model, revision)
    require_safetensors(folder)
    return folder, commit


def find_configuration(model: str, revision: str | None, field: str) -> Path:
    """As `find_model`, where weights are not needed: of a hub model everything but them is fetched."""
    folder = local_folder(model, field)
    return folder or download(model, revision, weights=False)


def refer(out: Path, model: str, folder: Path, commit: str | None) -> None:
    """Let the artifact in `out` stand on a model that stays where it is: `source.json` says what, `LOCATION` where."""
    files = {path.name: _sha256(path) for path in model_files(folder)}
    (out / "source.json").write_text(json.dumps({"revision": commit, "files": files}, indent=2) + "\n")
    (out / LOCATION).parent.mkdir(exist_ok=True)
    (out / LOCATION).write_text(model if commit else str(folder))  # a moved model is the same model


def model_folder(artifact: Path) -> Path:
    """Where the weights of a base, a merged or a plain model lie: in it, where source.json says, or the hub's cache."""
    if (artifact / "model" / "config.json").exists():
        return artifact / "model"
    if (artifact / "config.json").exists():
        return artifact
    if not (artifact / "source.json").exists():
        raise PipelineError(f"{artifact} holds neither model/ nor source.json; run again to rebuild that artifact.")
    location = (artifact / LOCATION).read_text()
    path = Path(location)
    if path.is_dir():
        return path
    if path.is_absolute():
        raise InputError(f"The model folder {path} is gone; put it back or name another one in the recipe.")
    return download(location, json.loads((artifact / "source.json").read_text())["revision"])


def require_safetensors(folder: Path) -> None:
    """Raise `InputError` where there are no weights, or only pickles."""
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no .safetensors weights (pickles are not opened); convert the model first.")


def resolve_hub_model(model: str, revision: str | None) -> tuple[Path, str]:
    """A hub model's folder in the local cache and the commit that `revision` stands for."""
    folder = download(model, revision)
    return folder, folder.name  # the cache keeps snapshots in folders named by commit


def download(model: str, revision: str | None, weights: bool = True) -> Path:
    """A hub model's folder in the local cache: configuration, tokenizer and safetensors, never pickles or code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.jinja", "tokenizer.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(
            f"The hub model '{model}' cannot be fetched ({reason}); check the name, the revision and the network, "
            "or give a local folder."
        ) from error


def _is_wanted(path: Path) -> bool:
    return path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
