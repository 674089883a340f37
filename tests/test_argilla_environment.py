"""Argilla's private environment, made here from a lock of one tiny package that lies beside it."""

import base64
import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from labeling.server import environment


def _lock(folder: Path, version: str = "1.0", digest: str | None = None) -> Path:
    """A lock of one wheel, offline."""
    folder.mkdir(exist_ok=True)
    wheel = folder / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = folder / "lock.txt"
    lock.write_text(f"--no-index\n--find-links {folder}\ntiny=={version} \\\n    --hash=sha256:{digest}\n")
    return lock


def test_an_environment_is_made_once_and_again_when_half_made_or_the_lock_changes(tmp_path: Path) -> None:
    venv, lock = tmp_path / "venv", _lock(tmp_path / "wheels")
    told: list[str] = []
    python = environment.ensure(venv, lock, lambda done, total, note: told.append(f"{done}/{total} {note}"))
    assert python.exists() and environment.ready(venv, lock) and any("tiny" in line for line in told)

    made = (venv / "pyvenv.cfg").stat().st_mtime_ns
    environment.ensure(venv, lock)
    assert (venv / "pyvenv.cfg").stat().st_mtime_ns == made

    (venv / environment.MARKER).unlink()
    (venv / "leftover").touch()
    assert not environment.ready(venv, lock)
    threads = [threading.Thread(target=environment.ensure, args=(venv, lock)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert environment.ready(venv, lock) and not (venv / "leftover").exists()

    assert not environment.ready(venv, _lock(tmp_path / "wheels", "2.0"))


def test_a_package_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    lock = _lock(tmp_path / "wheels", digest=base64.b16encode(b"\0" * 32).decode())
    with pytest.raises(environment.EnvironmentFailed, match="could not be made"):
        environment.ensure(tmp_path / "venv", lock)
    assert not environment.ready(tmp_path / "venv", lock)
