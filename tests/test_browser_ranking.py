"""An annotator in a real browser signs in, ranks by keyboard with a tie, and submits; the ranks come back intact."""

import shutil
import uuid
from contextlib import closing

import pytest

from labeling.comparison import Completion, compare
from labeling.question import DEFAULT_GUIDELINES, Round
from labeling.service import argilla as rounds
from labeling.service.accounts import create_annotators
from labeling.service.connection import connect

CHROMIUM = shutil.which("chromium")
RANKS = (1, 2, 2, 4)
HOSTILE = (
    "<script>parent.document.title = 'taken over'</script>",
    "<img src=x onerror=\"document.title = 'taken over'\">",
    "</div><style>body { display: none }</style> **bold**",
    "It is in aisle 4.\nA & B &lt; C",
)


@pytest.mark.slow
def test_a_person_ranks_in_the_web_ui(argilla: dict[str, str]) -> None:
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    url, name, password = argilla["ARGILLA_API_URL"], f"browser-{uuid.uuid4().hex[:6]}", "correct horse battery"
    completions = [Completion(f"p-{number}", text) for number, text in enumerate(HOSTILE)]
    comparison = compare("p", [{"role": "user", "content": "Which aisle has the bread?"}], completions, seed=3)
    campaign = Round(f"browser-{uuid.uuid4().hex[:6]}", "browser", DEFAULT_GUIDELINES, options=4, min_submitted=1)
    with closing(connect(url, argilla["ARGILLA_API_KEY"])) as client:
        dataset = rounds.publish(client, campaign, [comparison])
        create_annotators(client, "browser", [name], {name: password})

        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
            page.goto(f"{url}/sign-in")
            page.locator("input[name=Username]").fill(name)
            page.locator("input[name=Password]").fill(password)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_text(campaign.name).first.wait_for()
            page.goto(f"{url}/dataset/{dataset}/annotation-mode")
            fields = page.locator("[id^=fields-content-]")
            fields.nth(len(HOSTILE)).wait_for()
            texts = [text.strip() for text in fields.all_inner_texts()]
            assert texts == ["Which aisle has the bread?", *(c.text for c in comparison.options.values())]
            for option, rank in zip(comparison.options, RANKS, strict=True):
                slot = page.locator(".draggable__slot").nth(rank - 1).locator(f"#{option}")
                for _ in range(20):  # the page moves the focus itself a moment after each key
                    page.locator(f"#{option}").focus()
                    page.keyboard.press(str(rank))
                    page.wait_for_timeout(300)
                    if slot.count():
                        break
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("You have no pending records").or_(page.get_by_text("100.00%")).first.wait_for()
            assert page.title() == "Argilla", "no script of a completion ran"
            browser.close()

        [judgement] = rounds.fetch_judgements(client, dataset, campaign, [comparison], lambda user: user)
    shown = zip(comparison.options.values(), RANKS, strict=True)
    assert judgement.ranks == {completion.id: rank for completion, rank in shown}
