"""Two people in a real browser: one ranks by keyboard and by drag, ties two, flags one; the other completes the round,
and the run that waited for them goes on. `RLHF_SCREENSHOTS=docs/images` keeps what they saw."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lifecycle_runs import RLHF, ROOT, TINY, built, rlhf
from tests.test_people import sign_in, wait_for_invitation

CHROMIUM = shutil.which("chromium")
ROUND = [
    *("--labels", "people", "--set", "name=browser", "--set", "data.max_rows=60", "--set", "label.round=browser"),
    *("--set", 'label.people=["bea", "bo"]', "--set", 'label.flags=["unsafe", "broken", "cannot_judge"]'),
    *("--set", "label.rationale=true", "--set", 'label.criteria=["helpful"]', "--set", "label.workspace=browser-run"),
]


@pytest.mark.slow
def test_two_people_in_a_browser_complete_a_round_and_the_run_goes_on(
    services: dict[str, str], rlhf_home: Path, tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    errors, url = tmp_path / "stderr.txt", services["ARGILLA_API_URL"]
    with errors.open("w") as file:
        command = [str(RLHF), "run", str(TINY), *ROUND, "--json"]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT)
    try:
        told = wait_for_invitation(run, errors)
        passwords = dict(re.findall(r"^  (bea|bo)  (\S+)$", told, re.MULTILINE))
        [dataset] = sign_in(url, "bea", passwords["bea"]).get("/api/v1/me/datasets").json()["items"]
        left = {name: rank_all_but_one(sign_in(url, name, passwords[name]), dataset["id"]) for name in passwords}
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for name in ("bea", "bo"):
                page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
                page.route(
                    "**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort()
                )
                enter(page, url, name, passwords[name], dataset["id"])
                rank_by_keyboard(page, "response_a", 1)
                rank_by_drag(page, "response_b", 2)
                rank_by_keyboard(page, "response_c", 2)
                if name == "bea":
                    page.get_by_text("Broken", exact=True).first.click()
                    page.wait_for_timeout(500)
                    keep(page, "ranking")
                page.get_by_role("button", name="Submit").click()
                page.get_by_text(re.compile(r"no pending records|100\.00%")).first.wait_for()
                if name == "bea":
                    assert not rlhf("labels", TINY, *ROUND).document["sufficient"]
            browser.close()
        out, _ = run.communicate(timeout=400)
    finally:
        run.send_signal(signal.SIGKILL)
    document = json.loads(out)
    assert run.returncode == 0 and "preferences" in built(document), errors.read_text()
    [label] = [stage for stage in document["stages"] if stage["name"] == "label"]
    lines = (rlhf_home / "store" / label["artifact"] / "judgements.jsonl").read_text().splitlines()
    judgements = [json.loads(line) for line in lines]
    [flagged] = [judgement for judgement in judgements if judgement["flags"]]
    assert flagged["flags"] == ["broken"] and flagged["record"] == left["bea"]
    assert sorted(flagged["ranks"].values()) == [1, 2, 2]
    assert sum(judgement["record"] == left["bo"] for judgement in judgements) == 2


def rank_all_but_one(client: httpx.Client, dataset: str) -> str:
    """Everything but one record, over the endpoints that the web UI uses; returns that record's id."""
    path = f"/api/v1/me/datasets/{dataset}/records/search"
    filters = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    body = {"query": {}, "filters": {"and": [filters]}}
    items = client.post(path, params={"limit": 500, "offset": 0}, json=body).json()["items"]
    records = sorted((item["record"] for item in items), key=lambda record: record["external_id"])
    for record in records[1:]:
        options = sorted(name for name in record["fields"] if name.startswith("response_"))
        ranks = [{"value": option, "rank": place} for place, option in enumerate(options, 1)]
        answer = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
        client.post(f"/api/v1/records/{record['id']}/responses", json=answer).raise_for_status()
    return records[0]["external_id"]


def enter(page: Any, url: str, name: str, password: str, dataset: str) -> None:
    """Sign in and open the round."""
    page.goto(f"{url}/sign-in")
    page.locator("input[name=Username]").fill(name)
    page.locator("input[name=Password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text(re.compile("browser-[0-9a-f]{8}")).first.wait_for()
    keep(page, f"datasets-{name}")
    page.goto(f"{url}/dataset/{dataset}/annotation-mode")
    page.locator("#response_c").first.wait_for()


def slot(page: Any, option: str, rank: int) -> Any:
    """The option where it stands when it has this rank."""
    return page.locator(".draggable__slot").nth(rank - 1).locator(f"#{option}")


def rank_by_keyboard(page: Any, option: str, rank: int) -> None:
    for _ in range(20):  # the page moves the focus itself a moment after each key
        page.locator(f"#{option}").focus()
        page.keyboard.press(str(rank))
        page.wait_for_timeout(300)
        if slot(page, option, rank).count():
            return
    raise AssertionError(f"{option} does not get rank {rank}")


def rank_by_drag(page: Any, option: str, rank: int) -> None:
    for _ in range(5):
        start = page.locator(f"#{option}").bounding_box()
        end = page.locator(".draggable__slot").nth(rank - 1).bounding_box()
        page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        page.mouse.down()
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=15)
        page.wait_for_timeout(200)
        page.mouse.up()
        page.wait_for_timeout(300)
        if slot(page, option, rank).count():
            return
    raise AssertionError(f"{option} cannot be dragged to rank {rank}")


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("RLHF_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")
