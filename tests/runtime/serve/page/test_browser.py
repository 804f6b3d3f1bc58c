"""The page in a real browser, over the demo model: what it shows, for whom it is usable, and what it asks of whom.

With RESPS_SCREENSHOTS=DIR the screenshots are written there; docs/images has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.serve.browser import accessible_names, chromium, low_contrast, requested, resize, until
from tests.support.serve.process import running

pytestmark = pytest.mark.browser

DESKTOP, PHONE = (1200, 860), (360, 1500)
QUESTION = "List three fruits and say why each is good."
ENDED = "return document.getElementById('said').textContent || document.getElementById('problem').textContent"


@pytest.fixture(scope="module")
def page(demo_engine: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page after one answer. Its console is empty at the end, and it has asked nobody but the server."""
    with (
        chromium(tmp_path_factory.mktemp("profile")) as page,
        running(demo_engine("fp32"), "--lanes", "2", "--threads", "1", "--past-mib", "0") as (_, url),
    ):
        server = url.removesuffix("/v1")
        requested(page)
        resize(page, *DESKTOP)
        page.get(server)
        until(page, "return document.getElementById('model').textContent")
        dress(page, "light")
        set_fields(page, max_tokens="64")
        say(page, QUESTION)
        assert until(page, ENDED).startswith("The answer has ended: 64 tokens")
        until(page, "return document.getElementById('count').textContent === '64'")  # the panel is drawn now and then
        yield page
        assert page.get_log("browser") == []
        assert {each for each in requested(page) if not each.startswith(f"{server}/")} == set()


def say(page: Any, text: str) -> None:
    """Write a message, and send it by the keyboard."""
    page.find_element("id", "message").send_keys(text + "\n")


def set_fields(page: Any, **values: str) -> None:
    page.execute_script("for (const [id, value] of Object.entries(arguments[0])) document.getElementById(id).value = value", values)


def dress(page: Any, theme: str) -> None:
    script = "const field = document.getElementById('theme'); field.value = arguments[0]; field.dispatchEvent(new Event('change'))"
    page.execute_script(script, theme)


def go_to(page: Any, cycle: int) -> None:
    script = "const field = document.getElementById('cycle'); field.value = arguments[0]; field.dispatchEvent(new Event('input'))"
    page.execute_script(script, cycle)


def count(page: Any, selector: str) -> int:
    return len(page.find_elements("css selector", selector))


def keep(page: Any, tmp_path: Path, name: str) -> None:
    """A screenshot, small enough for the documents."""
    file = Path(os.environ.get("RESPS_SCREENSHOTS", tmp_path)) / f"page-{name}.png"
    Image.open(BytesIO(page.get_screenshot_as_png())).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)
    assert 10_000 < file.stat().st_size < 150_000


def test_tokens_are_marked_and_every_cycle_has_its_tree(page: Any, tmp_path: Path) -> None:
    cycles = int(page.find_element("id", "cycle").get_attribute("max"))
    assert count(page, "#log .token") == 64
    drawn = {"accepted": 0, "rejected": 0, "own": 0}
    best = (0, 1)
    for cycle in range(1, cycles + 1):
        go_to(page, cycle)
        found = {kind: count(page, f"#tree .node.{kind}") for kind in drawn}
        assert count(page, "#tree .node.root") == 1
        assert count(page, "#log .token.chosen") == found["accepted"] + found["own"]
        drawn = {kind: drawn[kind] + found[kind] for kind in drawn}
        best = max(best, (4 * found["accepted"] + found["rejected"], cycle))
    marked = count(page, "#log .token.draft") + count(page, "#log .token.lookup")
    assert marked == drawn["accepted"] == count(page, "#log .token[data-depth]:not([data-depth='0'])") > 5
    assert drawn["rejected"] > 0
    assert cycles + marked + 1 == 64
    go_to(page, best[1])
    keep(page, tmp_path, "light")


def test_it_proves_that_nothing_differs(page: Any, tmp_path: Path) -> None:
    page.find_element("id", "to-prove").click()
    set_fields(page, temperature="0.3", seed="7", policy="fixed")  # which guesses on a slow machine, too
    say(page, "Tell me about the sea.")
    verdict = until(page, "return document.querySelector('#verdict.same, #verdict.different')?.textContent", 120)
    assert verdict.startswith("All 64 tokens are the same."), verdict
    assert count(page, "#plain .token") == count(page, "#plain .token.target") == 64
    assert count(page, "#fast .token.draft") > 5
    dress(page, "dark")
    keep(page, tmp_path, "dark")
    set_fields(page, temperature="0", seed="", policy="", message="")
    page.find_element("id", "to-chat").click()
    dress(page, "light")


def test_lanes_and_times_are_shown(page: Any) -> None:
    assert until(page, "return document.querySelectorAll('#rows path').length")
    assert page.find_element("id", "pass").text.startswith("0 of 2 in use")
    for bar in ("time", "server-time"):
        shown = page.find_element("id", bar).text
        assert all(part in shown for part in ("draft", "verify", "accept and commit", "other")), shown


def test_it_can_be_read_and_used_by_everybody(page: Any) -> None:
    page.execute_script("document.getElementById('settings').open = true")
    page.execute_script("document.getElementById('depths').click()")
    for theme in ("light", "dark"):
        dress(page, theme)
        assert low_contrast(page) == []
    dress(page, "light")
    page.execute_script("document.getElementById('depths').click()")
    names = accessible_names(page)
    assert len(names) > 20
    assert [each for each in names if not each[1]] == []
    page.execute_script("document.body.focus(); document.querySelector('.skip').focus()")
    reached = set()
    for _ in range(40):
        page.switch_to.active_element.send_keys("\t")
        reached.add(page.execute_script("return document.activeElement.id"))
    assert {"to-prove", "theme", "message", "send", "policy", "schema", "tools", "key", "cycle", "tree", "depths"} <= reached
    page.execute_script("document.getElementById('settings').open = false")


def test_it_fits_a_phone(page: Any, tmp_path: Path) -> None:
    resize(page, *PHONE)
    wide = "return [...document.querySelectorAll('body *')].filter((each) => each.getBoundingClientRect().right > innerWidth + 1 "
    wide += "&& !each.closest('#tree, .unseen, .skip')).map((each) => each.outerHTML.slice(0, 80))"
    for settings in (True, False):
        page.execute_script("document.getElementById('settings').open = arguments[0]", settings)
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        assert page.execute_script(wide) == []
    page.find_element("css selector", ".under button").click()
    go_to(page, int(page.find_element("id", "cycle").get_attribute("max")) - 3)
    keep(page, tmp_path, "phone")
    resize(page, *DESKTOP)


def test_what_is_wrong_is_said_where_it_is_written(page: Any) -> None:
    set_fields(page, schema="{")
    say(page, "Hello")
    problem = until(page, "return document.getElementById('problem').textContent")
    assert problem.startswith("JSON schema: this is no JSON")
    assert page.switch_to.active_element.get_attribute("id") == "schema"
    set_fields(page, schema="", message="")
