"""A headless Chromium in a network namespace of a test, driven by Selenium.

Chromium looks for updates and the like by itself. It therefore runs in a namespace of its own that has a loopback
interface and nothing else; chromedriver talks to it by pipes, which cross namespaces.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

from tests.harness.namespaces import Netns, run

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
WIDTH, HEIGHT = 1400, 800
PATIENCE = 60.0
"""Seconds for what a page does at once."""


@contextlib.contextmanager
def loopback_only(prefix: str) -> Iterator[Netns]:
    """A namespace with a loopback interface and nothing else, of a name of this process."""
    netns = Netns(f"{prefix}-{os.getpid()}")
    run("ip", "netns", "add", netns.name)
    try:
        netns.run("ip", "link", "set", "lo", "up")
        yield netns
    finally:
        run("ip", "netns", "del", netns.name)


def text(driver: WebDriver, name: str) -> str:
    """The text of the element with this id, whether it is in view or not."""
    found: str = driver.execute_script("return document.getElementById(arguments[0]).textContent", name)
    return found


def rows(driver: WebDriver) -> list[list[str]]:
    """The texts of the live page's rows in view, by column, in their order."""
    found: list[list[str]] = driver.execute_script(
        "return [...document.querySelectorAll('#rows .row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    return found


@contextlib.contextmanager
def browser(netns: Netns, folder: Path) -> Iterator[WebDriver]:
    """A browser inside `netns`; what it downloads is in `folder`."""
    folder.mkdir(exist_ok=True)
    program = folder / "chromium"
    program.write_text(f'#!/bin/sh\nexec {" ".join(netns.enter([CHROMIUM]))} "$@"\n')
    program.chmod(0o755)
    options = Options()
    options.binary_location = str(program)
    for word in (
        "--headless=new",
        "--no-sandbox",  # root may not use it; the page is ours
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},{HEIGHT}",
    ):
        options.add_argument(word)
    service = Service(
        CHROMEDRIVER, log_output=str(folder / "chromedriver.log"), env={**os.environ, "HOME": str(folder)}
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield driver
    finally:
        driver.quit()
