from collections.abc import Callable
from pathlib import Path
from socket import socket

import pytest

from flows import doctor
from flows import services as local


def _found(name: str) -> doctor.Check:
    return next(check for check in doctor.check() if check.name == name)


def test_a_working_machine_is_well(services: dict[str, str]) -> None:
    checks = doctor.check()
    assert [check for check in checks if not check.ok and check.name not in ("disk", "memory", "packages")] == []
    assert {"python", "packages", "torch", "home", "secrets", "argilla environment", *local.NAMES} < {
        check.name for check in checks
    }


def test_what_does_not_run_comes_with_the_command_that_starts_it_and_nothing_is_made(fresh_home: Path) -> None:
    check = _found("mlflow")
    assert not check.ok and "not running" in check.detail and check.remedy == "run `rlhf up`"
    assert not fresh_home.exists()


def test_a_port_held_by_another_program_is_named(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("RLHF_PREFECT_PORT", str(port := other.getsockname()[1]))
        check = _found("prefect")
    assert not check.ok and f"port {port} is held by" in check.detail and "RLHF_PREFECT_PORT=" in check.remedy


def test_a_secret_that_others_may_read_comes_with_its_chmod(fresh_home: Path) -> None:
    local.argilla_credentials()
    assert _found("secrets").ok
    path = fresh_home / "argilla" / "owner-api-key"
    path.chmod(0o644)
    check = _found("secrets")
    assert not check.ok and check.remedy == f"run `chmod 600 {path}`"


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "file"))
    assert "RLHF_HOME" in doctor._home().remedy and not doctor._home().ok


def test_versions_other_than_the_pins_are_listed(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a comment\npsutil==0.0.1\nnot-installed==1.0\n")
    check = doctor._packages(pins)
    assert not check.ok and "psutil is" in check.detail and "not 0.0.1" in check.detail
    assert "not-installed" not in check.detail


def test_an_environment_that_is_not_made_is_said(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_ARGILLA_VENV")
    check = _found("argilla environment")
    assert not check.ok and "not made yet" in check.detail and "rlhf up" in check.remedy


def test_an_argilla_elsewhere_needs_its_key(
    fresh_home: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGILLA_API_URL", f"http://127.0.0.1:{free_port()}")
    check = _found("argilla")
    assert not check.ok and "ARGILLA_API_KEY" in check.remedy
    monkeypatch.setenv("ARGILLA_API_KEY", "key")
    assert "does not answer" in _found("argilla").detail
