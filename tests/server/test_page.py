"""The page at / in headless Chromium, against a real server process on the demo model.

FLASHMOE_SCREENSHOTS=DIR keeps pictures of what was seen.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashmoe.server.page import FOLDER
from tests.support.server_process import served

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
KEY = "a-key"
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1200,800",
)  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(
        "--api-key", KEY, "--ctx", "1024", "--cache", "25%", "--prefix-ram", "64M"
    ) as address:
        yield address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("BROWSER TESTS SKIPPED: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in (*OPTIONS, f"--user-data-dir={tmp_path}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, url: str) -> Any:
    """The page, with its key typed in."""
    browser.get(url)
    find(browser, "#key").send_keys(KEY)
    browser.execute_script("document.querySelector('#key').dispatchEvent(new Event('change'))")
    until(browser, lambda: "demo" in find(browser, "#model").text)
    return browser


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def until(driver: Any, condition: Callable[[], bool]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda _: condition())


def say(page: Any, text: str) -> None:
    find(page, "#input").send_keys(text)
    find(page, "#send").click()


def figures(page: Any) -> str:
    """The line under each answer."""
    return "\n".join(note.text for note in page.find_elements("css selector", ".notes"))


def heights(page: Any, chart: str) -> set[str]:
    """How high the points of a chart are."""
    drawn = find(page, f"{chart} path").get_attribute("d") or ""
    return {point.split()[1] for point in re.split("[ML]", drawn) if point}


def answered(page: Any) -> bool:
    return bool(find(page, "#send").is_displayed())


def keep_picture(page: Any, name: str) -> None:
    if folder := os.environ.get("FLASHMOE_SCREENSHOTS"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_a_chat_of_two_turns(page: Any) -> None:
    for number, question in enumerate(("What is the capital of Italy?", "And of France?"), 1):
        say(page, question)
        until(page, lambda turns=number: figures(page).count("tok/s") == turns)
    assert "Rome" in find(page, "#log").text
    keep_picture(page, "page")
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert [error for error in errors if "401" not in error] == []  # before the key was typed in


def test_stop_ends_an_answer(page: Any, url: str) -> None:
    page.execute_script("document.querySelector('#max-tokens').value = 900")
    say(page, "Tell me a long story about a dog and a cat.")
    until(page, lambda: find(page, "#stop").is_displayed())
    find(page, "#stop").click()
    until(page, lambda: answered(page))
    assert "stopped" in find(page, ".notes").text
    running = {"Authorization": f"Bearer {KEY}"}
    until(page, lambda: httpx.get(url + "/slots", headers=running).json() == [])


def test_on_a_phone_nothing_is_cut_off(browser: Any, url: str) -> None:
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(url)
    find(browser, "#toggle").click()
    for selector in ("#key", "#temperature"):
        assert_reachable(browser, selector)
    find(browser, "#key").send_keys(KEY)
    keep_picture(browser, "phone-side")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    find(browser, "#toggle").click()
    until(browser, lambda: "demo" in find(browser, "#model").text)
    say(browser, "What is the capital of Italy? " + "word" * 30)
    until(browser, lambda: answered(browser) and "tok/s" in figures(browser))
    keep_picture(browser, "phone")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    for selector in ("#input", "#send"):
        assert_reachable(browser, selector)


def assert_reachable(page: Any, selector: str) -> None:
    """Its middle is what a finger there would meet."""
    script = """const box = arguments[0]; box.scrollIntoView({block: "nearest"});
        const r = box.getBoundingClientRect();
        return box.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2))"""
    assert page.execute_script(script, find(page, selector)), selector


def test_the_charts_follow_the_metrics(page: Any) -> None:
    until(page, lambda: find(page, "#speed-now").text != "")
    say(page, "Tell me a story.")
    until(page, lambda: len(heights(page, "#speed")) > 1)
    until(page, lambda: len(heights(page, "#hits")) > 0)
    assert "GB/s" in find(page, "#disk-now").text


def test_what_a_model_writes_is_text(page: Any) -> None:
    """Markdown of a hostile answer becomes nodes, never HTML."""
    script = """
      const done = arguments[arguments.length - 1];
      import("/page/markdown.js").then(({ markdown }) => {
        const box = document.createElement("div");
        box.append(...markdown(arguments[0]));
        done([box.querySelectorAll("script, img, a").length, box.textContent]);
      });"""
    text = "<script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1))"
    count, shown = page.execute_async_script(script, text)
    assert (count, shown) == (0, text)


def test_a_wrong_key_is_said(browser: Any, url: str) -> None:
    browser.get(url)
    until(browser, lambda: "key" in find(browser, "#model").text.lower())


def test_nothing_comes_from_outside() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file
        assert "//cdn" not in text, file
