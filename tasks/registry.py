"""MLflow's model registry: who is champion, and what it takes to become one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.artifact import Artifact, PipelineError
from tasks.lineage import DIGEST, KEY, Record
from tasks.tracking import answering

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
DIGITS = 9
"""No version has more; MLflow fails on what its database cannot hold."""
BEATEN, ROUND = "rlhf.beaten", "rlhf.round"


@dataclass(frozen=True)
class Registered:
    """One version of a registered model."""

    name: str
    version: str
    key: str
    """Key of the merged artifact it is."""
    digest: str
    run_id: str
    beaten: str | None
    """The version that was champion when this one was promoted."""
    round: int = 0
    """The round of the run that made it champion."""


class Registry:
    """The registered models of the pipeline."""

    def __init__(self, record: Record) -> None:
        self.client, self.experiment = record.client, record.experiment

    def find(self, name: str, version: str = CHAMPION) -> Registered | None:
        """A version by alias or number; None where there is no such model, alias or version."""
        from mlflow.exceptions import MlflowException

        with answering():
            try:
                if version.isdecimal():
                    if len(version) > DIGITS:
                        return None
                    return _registered(self.client.get_model_version(name, version))
                return _registered(self.client.get_model_version_by_alias(name, version))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def versions(self, name: str | None = None) -> list[Registered]:
        """All versions of one model, or of all."""
        with answering():
            query = f"name = '{name}'" if name else None
            found = self.client.search_model_versions(query, max_results=1000)
        return [_registered(version) for version in found if KEY in version.tags]

    def promote(
        self,
        name: str,
        artifact: Artifact,
        beaten: Registered | None,
        reason: str,
        figures: Mapping[str, float] | None = None,
        number: int = 1,
        last: bool = True,
    ) -> Registered:
        """Make a merged policy the champion; the same policy twice is one version.

        `figures` are shown beside the version for the reviewer.
        `number` is the round of its run, `last` whether the run ends with it: an earlier round's winner that was
        champion once and is not any more stays so.

        Raises `PipelineError` when somebody else's model became champion since the comparison.
        """
        now = self.find(name)
        if now and now.digest == artifact.digest:
            return now
        known = next((v for v in self.versions(name) if v.digest == artifact.digest), None)
        if (now and now.version) != (beaten and beaten.version):
            if known and not last:
                return known
            raise PipelineError(
                f"The champion of {name} changed during the run (now version {now.version if now else 'none'}); "
                "run again to compare with it."
            )
        self._ensure_model(name)
        version = known
        tags = {KEY: artifact.key, DIGEST: artifact.digest, BEATEN: beaten.version if beaten else ""}
        tags |= {ROUND: str(number)} | {metric: f"{value:.4g}" for metric, value in (figures or {}).items()}
        with answering():
            if version is None:
                source = f"{self.client.get_run(artifact.run_id).info.artifact_uri}/model"
                created = self.client.create_model_version(
                    name, source, run_id=artifact.run_id, tags=tags, description=reason, await_creation_for=0
                )
                version = _registered(created)
            else:
                for tag, value in tags.items():
                    self.client.set_model_version_tag(name, version.version, tag, value)
            self.client.set_registered_model_alias(name, CHAMPION, version.version)
        found = self.find(name)
        if found is None:
            raise PipelineError(f"MLflow did not keep the champion of {name}; run again.")
        return found

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        with answering():
            try:
                self.client.create_registered_model(
                    name, description="Policies of the RLHF pipeline. The alias `champion` moves only through the gate."
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise


def _registered(version: "ModelVersion") -> Registered:
    tags = version.tags
    return Registered(
        version.name,
        str(version.version),
        tags.get(KEY, ""),
        tags.get(DIGEST, ""),
        version.run_id or "",
        tags.get(BEATEN) or None,
        int(tags.get(ROUND) or 0),
    )
