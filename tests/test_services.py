import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from socket import socket

import httpx
import psutil
import pytest

from flows import services as local
from tasks.artifact import PipelineError

WEB = httpx.Client(trust_env=False, follow_redirects=True, headers={"Accept": "text/html"}, timeout=20)


def test_three_services_answer_and_their_addresses_are_in_the_environment(services: dict[str, str]) -> None:
    found = local.status()
    assert list(found) == ["prefect", "mlflow", "argilla"]
    assert all(service.healthy and service.local for service in found.values())
    assert services["PREFECT_API_URL"] == found["prefect"].url + "/api"
    assert services["MLFLOW_TRACKING_URI"] == found["mlflow"].url
    assert services["ARGILLA_API_URL"] == found["argilla"].url


def test_up_again_leaves_the_running_ones_alone(services: dict[str, str]) -> None:
    before = {name: service.pid for name, service in local.status().items()}
    assert {name: service.pid for name, service in local.up().items()} == before


def test_everything_listens_on_this_machine_only_and_is_one_process(services: dict[str, str]) -> None:
    for service in local.status().values():
        process = psutil.Process(service.pid)
        listening = [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"] and process.children() == []


def test_secrets_are_for_this_user_alone_and_sign_the_owner_in(services: dict[str, str], rlhf_home: Path) -> None:
    username, password, key = local.argilla_credentials()
    for name in ("owner-password", "owner-api-key", "auth-secret"):
        assert stat.S_IMODE((rlhf_home / "argilla" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((rlhf_home / "argilla").stat().st_mode) == 0o700  # the database holds keys too
    url = services["ARGILLA_API_URL"] + "/api/v1"
    token = WEB.post(f"{url}/token", data={"username": username, "password": password}).json()["access_token"]
    assert WEB.get(f"{url}/me", headers={"Authorization": f"Bearer {token}"}).json()["role"] == "owner"
    assert WEB.get(f"{url}/me", headers={"X-Argilla-Api-Key": key}).json()["username"] == username


def test_files_written_beside_mlflow_are_listed_and_shown_by_it(services: dict[str, str]) -> None:
    url = services["MLFLOW_TRACKING_URI"]
    run = WEB.post(f"{url}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]
    folder = Path(run["artifact_uri"].removeprefix("file://"))
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "summary.md").write_text("# a page")
    listed = WEB.get(f"{url}/api/2.0/mlflow/artifacts/list", params={"run_id": run["run_id"], "path": "report"})
    assert [file["path"] for file in listed.json()["files"]] == ["report/summary.md"]
    shown = WEB.get(f"{url}/get-artifact", params={"run_id": run["run_id"], "path": "report/summary.md"})
    assert shown.text == "# a page"


def test_the_web_pages_are_served_and_know_their_own_api(services: dict[str, str]) -> None:
    found = local.status()
    assert all("<script" in WEB.get(service.url).text for service in found.values())
    settings = WEB.get(found["prefect"].url + "/ui-settings").json()
    assert settings["api_url"] == services["PREFECT_API_URL"]
    assert settings["default_ui"] == "v1"  # the other one reports to a tracking service


def test_other_web_sites_may_not_call_the_services(services: dict[str, str]) -> None:
    for service in local.status().values():
        answer = WEB.options(service.url + "/api/v1/status", headers={"Origin": "http://evil.example"})
        assert answer.headers.get("access-control-allow-origin") not in ("*", "http://evil.example")


def test_a_killed_argilla_comes_back_with_its_data_port_and_logins(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local.up(only=("argilla",))["argilla"]
    username, password, key = local.argilla_credentials()
    url, headers = first.url + "/api/v1", {"X-Argilla-Api-Key": key}
    token = WEB.post(f"{url}/token", data={"username": username, "password": password}).json()["access_token"]
    WEB.post(f"{url}/workspaces", json={"name": "kept"}, headers=headers).raise_for_status()
    os.kill(first.pid or 0, signal.SIGKILL)

    second = local.up(only=("argilla",))["argilla"]
    assert second.healthy and second.url == first.url and second.pid != first.pid
    bearer = {"Authorization": f"Bearer {token}"}  # a browser that was signed in stays so
    assert [w["name"] for w in WEB.get(f"{url}/me/workspaces", headers=bearer).json()["items"]] == ["kept"]

    (fresh_home / "argilla" / "owner-api-key").unlink()  # a lost key is replaced by a new one at the next start
    assert local.down() == ["argilla"] and not local.status()["argilla"].healthy
    monkeypatch.delenv("RLHF_ARGILLA_PORT")
    assert local.up(only=("argilla",))["argilla"].url == first.url  # the port is remembered
    new = {"X-Argilla-Api-Key": local.argilla_credentials()[2]}
    assert new != headers and WEB.get(f"{url}/me", headers=new).json()["username"] == username


def test_two_commands_at_once_start_one_server_that_outlives_them(fresh_home: Path) -> None:
    code = "from flows import services; print(services.up(only=('mlflow',))['mlflow'].pid)"
    commands = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    pids = {int(command.communicate()[0]) for command in commands}
    assert len(pids) == 1 and local.status()["mlflow"].healthy
    assert local.down() == ["mlflow"] and not psutil.pid_exists(pids.pop())
    assert local.down() == []


def test_a_taken_port_is_refused_with_who_has_it_and_the_way_out(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("RLHF_ARGILLA_PORT", str(port))
        with pytest.raises(PipelineError, match=rf"Port {port}.*pid {os.getpid()}.*RLHF_ARGILLA_PORT=\d+"):
            local.up()
    assert not any(service.pid for service in local.status().values())  # nothing was started in vain
    monkeypatch.setenv("RLHF_ARGILLA_PORT", "many")
    with pytest.raises(PipelineError, match="RLHF_ARGILLA_PORT=many is not a port"):
        local.up()


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(
    fresh_home: Path, free_port: Callable[[], int]
) -> None:
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        fresh_home.mkdir()
        stale = {"port": free_port(), "pid": sleeper.pid, "created": 1000.0}  # as after a reboot
        (fresh_home / "services.json").write_text(json.dumps({"mlflow": stale}))
        assert local.status()["mlflow"].pid is None
        assert local.down() == [] and sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_server_that_dies_while_starting_is_named_with_its_log(fresh_home: Path) -> None:
    (fresh_home / "argilla").mkdir(parents=True)
    (fresh_home / "argilla" / "argilla.db").write_text("this is no database" * 100)
    with pytest.raises(PipelineError, match=r"Argilla ended while starting \(.*not a database.*argilla\.log"):
        local.up(only=("argilla",))


@pytest.mark.parametrize(
    "on_our_ports",
    [
        pytest.param(False, id="their ports"),
        pytest.param(True, id="the ports of services here", marks=pytest.mark.slow),
    ],
)
def test_addresses_given_by_the_user_win_and_nothing_is_started_for_them(
    services: dict[str, str],
    fresh_home: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    on_our_ports: bool,
) -> None:
    for name in local.NAMES:
        address = services[local.URL_VARIABLES[name]]
        monkeypatch.setenv(local.URL_VARIABLES[name], address)
        if on_our_ports:
            monkeypatch.setenv(f"RLHF_{name.upper()}_PORT", address.removesuffix("/api").rpartition(":")[2])
    with pytest.raises(PipelineError, match="ARGILLA_API_KEY is not"):
        local.up()
    monkeypatch.setenv("ARGILLA_API_KEY", "theirs")
    found = local.up()
    assert all(service.healthy and not service.local and service.pid is None for service in found.values())
    environment = local.environment()
    assert environment["ARGILLA_API_KEY"] == "theirs" and "PREFECT_HOME" not in environment
    assert {name: environment[name] for name in local.URL_VARIABLES.values()} == {
        name: services[name] for name in local.URL_VARIABLES.values()
    }
    assert local.down() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert not local.status()["mlflow"].healthy


def test_the_local_environment_in_a_child_process_still_means_local(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    assert all(service.local and service.healthy for service in local.status().values())
    assert local.environment() == services


def test_home_is_beside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_HOME")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "recipes")
    assert local.home() == tmp_path / ".rlhf"


def test_importing_services_brings_none_of_the_heavy_packages() -> None:
    code = "import sys; import flows.services; print({'prefect', 'mlflow', 'argilla', 'torch'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"


def test_secrets_asked_for_at_once_are_one(fresh_home: Path) -> None:
    found: list[tuple[str, str, str]] = []
    threads = [threading.Thread(target=lambda: found.append(local.argilla_credentials())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
