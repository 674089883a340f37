"""What several test files ask for: real services, started once in a temporary home, and a tiny chain of artifacts."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import services as local

PROJECT = Path(__file__).parents[1]

# a shell that starts the tests in its background has SIGINT ignored, and the runs they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session", autouse=True)
def rlhf_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's own state or services: all state goes to a temporary `RLHF_HOME`."""
    home = tmp_path_factory.mktemp("rlhf")
    venv = os.environ.get("RLHF_TEST_ARGILLA_VENV") or PROJECT / ".rlhf" / "argilla-venv"
    with pytest.MonkeyPatch.context() as patch:
        for name in (*local.URL_VARIABLES.values(), "ARGILLA_API_KEY", "PREFECT_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("RLHF_HOME", str(home))
        patch.setenv("RLHF_ARGILLA_VENV", str(venv))  # the one `rlhf up` makes; made here if it is not there
        for name in local.NAMES:
            patch.setenv(f"RLHF_{name.upper()}_PORT", str(_free_port()))
        yield home
        local.down()


@pytest.fixture(scope="session")
def argilla(rlhf_home: Path) -> dict[str, str]:
    """Environment variables of a real, running Argilla (`ARGILLA_API_URL`, and `ARGILLA_API_KEY` of its owner)."""
    local.up(only=("argilla",))
    return {name: value for name, value in local.environment().items() if name.startswith("ARGILLA_")}


@pytest.fixture(scope="session")
def services(argilla: dict[str, str]) -> dict[str, str]:
    """Environment variables of the three real services, running (see `flows.services.environment`)."""
    local.up()
    return local.environment()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a port nobody listens on now."""
    return _free_port


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Path]:
    """A home of the test's own (not made yet), with free ports; what it starts is stopped at its end."""
    home = tmp_path / "a home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_HOME", str(home))
        for name in local.NAMES:
            patch.setenv(f"RLHF_{name.upper()}_PORT", str(_free_port()))
        yield home
        if home.exists():
            local.down()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny base model."""
    from tests.tiny_models import tiny_base

    return tiny_base(tmp_path / "base")


@pytest.fixture
def chain(tmp_path: Path, base: Path) -> dict[str, Path]:
    """base, a short SFT and preferences."""
    from tasks.models.adapters import LoraRecipe
    from tasks.training.sft import SftRecipe, train_sft
    from tests.tiny_models import demonstrations, preferences, work_in

    work, inputs = work_in(tmp_path / "sft"), {"base": base, "data": demonstrations(tmp_path / "data")}
    train_sft(SftRecipe(adapter=LoraRecipe(rank=4), epochs=1), inputs, work)
    return {"base": base, "sft": work.out, "preferences": preferences(tmp_path / "preferences")}
