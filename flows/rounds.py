"""The rounds of one run: whom a round's candidates must beat, and with what it ends."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, PipelineError
from tasks.registry import Registered, Registry
from tasks.store import Order, Store, read_manifest


@dataclass(frozen=True)
class Built:
    """What the stages of a round end with."""

    number: int
    """Which round of the run it is, from 1."""
    last: bool
    """Whether the run ends with it."""
    preferences: Artifact
    reward: Artifact
    evaluation: Artifact
    gate: Artifact
    merged: Mapping[str, Artifact]
    """The standalone candidates by policy name."""
    champion: Registered | None
    """Whom the candidates were compared with."""

    @property
    def decision(self) -> Mapping[str, Any]:
        """What the gate says (see `tasks.evaluation.gate.Decision`)."""
        return json.loads((self.gate.path / "decision.json").read_text(encoding="utf-8"))

    @property
    def winner(self) -> Artifact | None:
        """The candidate that passed the gate; while a run is only planned nobody knows which one it will be."""
        if not self.gate.digest:
            return Artifact("", "merge", "", Path(), "", {})
        return self.merged[self.decision["best"]] if self.decision["promoted"] else None


@dataclass(frozen=True)
class Rivals:
    """Whom the candidates of a run compete with: the champion of the registered model `name`."""

    registry: Registry
    store: Store
    name: str

    def of_round(
        self, last: bool, merged: Mapping[str, Artifact], evaluation: Callable[[Artifact | None], Order]
    ) -> Registered | None:
        """Whom the candidates of a round must beat: the champion.

        A round that others followed stands as it was compared, whoever is champion by now: by a later round of the same
        run, or by another recipe while people ranked. So does the last one, where one of its candidates is the champion
        and was made so by this very comparison.
        """
        now = self.registry.find(self.name)
        if not last:
            versions = sorted(self.registry.versions(self.name), key=lambda version: int(version.version))
            return next((rival for rival in (None, *versions) if self._compared(evaluation, rival)), now)
        if now is None or now.digest not in {artifact.digest for artifact in merged.values()}:
            return now
        before = self._before(now)
        return before if self._compared(evaluation, before) else now

    def _compared(self, evaluation: Callable[[Artifact | None], Order], rival: Registered | None) -> bool:
        """Whether the comparison with this one has been made."""
        files = self.store.find(rival.key) if rival and rival.key else None
        if rival and files is None:
            return False
        return self.store.find(evaluation(files).key) is not None

    def files(self, champion: Registered | None) -> Artifact | None:
        """The champion's artifact; a champion whose files are lost is an error, for nobody is promoted uncompared."""
        found = self.store.find(champion.key) if champion and champion.key else None
        if champion and found is None:
            raise PipelineError(
                f"The files of the champion, {champion.name} version {champion.version}, are neither here nor in "
                "MLflow; run its recipe again, or remove the alias in MLflow."
            )
        return found

    def other_data(self, champion: Artifact | None, data: Artifact) -> Artifact | None:
        """What the champion learnt from, where that is not the data of this run."""
        found = champion
        for name in ("policy", "data"):
            source = read_manifest(found.path)["inputs"].get(name) if found else None
            found = self.store.find(source["key"]) if source else None
        return found if found and found.digest != data.digest else None

    def _before(self, champion: Registered) -> Registered | None:
        return self.registry.find(self.name, champion.beaten) if champion.beaten else None
