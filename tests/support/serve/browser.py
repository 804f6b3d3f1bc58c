"""Chromium without a window, and what a test asks of a page in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# Texts of the page with their contrast to what is behind them. A canvas turns every notation of a colour into numbers.
CONTRAST = """
const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
}
const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
function behind(element) {
  if (!element) return [255, 255, 255, 1];
  const box = element.closest("g.node")?.querySelector("rect");
  if (box) return over(rgba(getComputedStyle(box).fill), behind(element.closest("svg").parentElement));
  const own = rgba(getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own : over(own, behind(element.parentElement));
}
function light([r, g, b]) {
  const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
}
const found = [];
function look(element, colour, text) {
  if (!element.checkVisibility({visibilityProperty: true}) || element.closest(":disabled") || !text.trim()) return;
  const back = behind(element), [one, other] = [light(over(rgba(colour), back)), light(back)];
  const size = parseFloat(getComputedStyle(element).fontSize);
  found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), size, text.trim().slice(0, 40)]);
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  look(element, element.namespaceURI.endsWith("svg") ? style.fill : style.color, walker.currentNode.data);
}
for (const each of document.querySelectorAll("input, textarea, select")) look(each, getComputedStyle(each).color, each.value || "x");
for (const each of document.querySelectorAll("[placeholder]")) look(each, getComputedStyle(each, "::placeholder").color, each.placeholder);
return found;
"""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Selenium's driver of a Chromium with an empty ``profile`` directory. Skips the test where either is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield page
    finally:
        page.quit()


def requested(page: Any) -> list[str]:
    """The addresses that the page has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]


def resize(page: Any, width: int, height: int) -> None:
    """Give the page a width that a window cannot have."""
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})


def until(page: Any, script: str, seconds: float = 60.0) -> Any:
    """Wait until ``script`` gives something that is true, and return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, seconds, 0.1).until(lambda driver: driver.execute_script(script), script)


def low_contrast(page: Any) -> list[Any]:
    """Texts with less contrast than level AA of WCAG 2 asks for."""
    found = page.execute_script(CONTRAST)
    assert len(found) > 30
    return [each for each in found if each[0] < (3 if each[1] >= 24 else 4.5)]


def accessible_names(page: Any) -> list[tuple[str, str]]:
    """Role and name of every control, as a screen reader hears them."""
    roles = {"button", "textbox", "combobox", "slider", "spinbutton", "checkbox", "link", "DisclosureTriangle"}
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each.get("ignored")]
    return [each for each in found if each[0] in roles]
