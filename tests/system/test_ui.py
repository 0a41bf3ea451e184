"""`sidestep ui` in a real Chromium, with a real daemon: requests of a pod over TLS, found, opened, saved, replayed.

The command runs where the browser does, in a namespace that has a loopback interface only; it reaches the daemon by its
unix socket.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.harness import scene
from tests.harness.browser import browser, loopback_only, rows, text
from tests.harness.cli import sidestep
from tests.harness.http1 import Message
from tests.harness.peers import Server
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

REQUESTS = 200
FAILING = (17, 80, 133)
"""Which of them the app answers with 503, and the server of the replay with 200."""
SECRET = "S3CRETtoken"


def numbers(failing=()):
    """An application that answers `/N` with 200, and with 503 where N is one of `failing`."""

    def script(server, connection):
        while True:
            head = Message(connection.reader.until(b"\r\n\r\n"))
            connection.reader.read_body(head, response=False, keep_body=True)
            number = int(head.target.removeprefix("/").partition("?")[0] or 0)
            status = b"503 Service Unavailable" if number in failing else b"200 OK"
            body = b"%d" % number
            connection.send(
                b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n%b"
                % (status, number, len(body), body)
            )

    return script


@pytest.fixture(scope="module")
def orders(shop):
    with Server(
        numbers(FAILING), netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=shop.app_tls(alpn=())
    ):
        yield shop


@pytest.fixture(scope="module")
def loopback():
    with loopback_only("sdu") as netns:
        yield netns


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def chromium(loopback, downloads):
    with browser(loopback, downloads) as driver:
        yield driver


def served(orders, loopback, *words):
    """A command with a page; the process and the address it prints."""
    line = loopback.enter([SIDESTEP, *words, "-n", "shop", "--socket", orders.node.socket])
    log = (
        orders.folder / f"{words[0]}-{len([*orders.folder.glob('*.err')])}.err"
    )  # the folder is that of all tests here
    process = Process(line, log=log, stdout=log.with_suffix(".out"))
    try:
        address = until(lambda: re.search(r"Page: (http://\S+)", process.text()), within=20, what=process.text)
        until(lambda: "Ctrl-C ends it" in process.output(), within=20, what=lambda: process.output() + process.text())
    except BaseException:
        process.stop()
        raise
    return process, address[1]


def wait_count(driver, wanted):
    """Wait until the page says that it shows so many requests."""
    until(lambda: text(driver, "count") == wanted, within=20, what=lambda: text(driver, "count"))


def keep_screen(driver, name):
    """Keep what the browser shows, if it is asked for: `SCREENS=docs` makes the pictures of the documents."""
    if "SCREENS" in os.environ:
        driver.save_screenshot(str(Path(os.environ["SCREENS"]) / name))


def wait_detail(driver, wanted):
    """Wait until the pane of details has a text."""
    until(lambda: wanted in text(driver, "detail"), within=20, what=lambda: text(driver, "detail"))


def test_200_requests_are_searched_opened_saved_and_replayed(orders, loopback, chromium, downloads, tmp_path):
    process, address = served(orders, loopback, "ui", "orders", "--port", str(scene.TLS_PORT))
    with process, Server(numbers(), name="local", netns=loopback) as local:
        chromium.get(address)
        for start in range(0, REQUESTS, 50):
            answers = orders.get_in_turn(
                [[f"/{number}?token={number}", f"Authorization: Bearer {SECRET}", "X-Dev: ada"]
                 for number in range(start, start + 50)]
            )  # fmt: skip
            assert {each.status for each in answers} <= {200, 503}
        wait_count(chromium, f"{REQUESTS} requests")

        chromium.find_element(By.ID, "search").send_keys("status:5xx")
        wait_count(chromium, f"{len(FAILING)} of {REQUESTS} requests")
        assert [row[2] for row in rows(chromium)] == ["503"] * len(FAILING)
        assert [row[6] for row in rows(chromium)] == ["app"] * len(FAILING)

        chromium.find_element(By.ID, "rows").send_keys("j", Keys.ENTER)
        until(lambda: "x-number" in text(chromium, "detail").lower(), within=20, what=lambda: text(chromium, "detail"))
        shown = text(chromium, "detail")
        assert f"/{FAILING[0]}?token={FAILING[0]}" in shown
        assert "x-devada" in shown
        assert SECRET not in chromium.page_source
        chromium.find_element(By.XPATH, "//aside//button[text()='TLS']").click()
        wait_detail(chromium, scene.HOST)
        assert "TLSv1.3" in text(chromium, "detail")
        keep_screen(chromium, "ui.png")

        chromium.find_element(By.ID, "search").clear()
        chromium.find_element(By.ID, "search").send_keys(" ")
        wait_count(chromium, f"{REQUESTS} requests")
        chromium.find_element(By.ID, "save").click()
        saved = downloads / "flows.har"
        until(saved.exists, within=20, what="the download")
        entries = json.loads(saved.read_text())["log"]["entries"]
        assert len(entries) == REQUESTS
        assert [each["response"]["status"] for each in entries].count(503) == len(FAILING)
        assert SECRET not in saved.read_text()

        chromium.find_element(By.ID, "again").click()
        prompt = until(lambda: _prompt(chromium), within=20, what="the question")
        prompt.send_keys(f"http://127.0.0.1:{local.port}")
        prompt.accept()
        wanted = f"{len(FAILING)} of {REQUESTS} answers differ"
        until(lambda: wanted in text(chromium, "note"), within=60, what=lambda: text(chromium, "note"))
        assert text(chromium, "board").count("503") == len(FAILING)

        # The same file by the command, from a terminal of this machine.
        line = loopback.enter([SIDESTEP, "replay", saved, "--to", f"http://127.0.0.1:{local.port}", "--compare"])
        with Process(line, log=tmp_path / "replay.err", stdout=tmp_path / "replay.out") as replay:
            until(lambda: not replay.running, within=60, what=replay.text)
            assert wanted in replay.output()

        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, process.text()


def test_flows_have_a_page_beside_what_they_print(orders, loopback, chromium):
    process, address = served(orders, loopback, "flows", "orders", "--port", str(scene.TLS_PORT), "--ui")
    with process:
        chromium.get(address)
        orders.get("/1")
        wait_count(chromium, "1 requests")
        until(lambda: "/1" in process.output(), within=20, what=process.output)
        for path, origin in (("wrong/", ""), ("", "http://other.example")):
            url = address if not path else address.rsplit("/", 2)[0] + "/" + path
            extra = ["-H", f"Origin: {origin}"] if origin else []
            answer = loopback.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *extra, url)
            assert answer == "403"


def test_a_wiretap_shows_fields_and_bodies_of_what_it_copies(orders, loopback, chromium):
    with Server(numbers(), name="recorder", netns=loopback) as recorder:
        port = f"{recorder.port}:{scene.TLS_PORT}"
        words = ("wiretap", "orders", "--port", port, "--http-method", "POST", "--plaintext", "--ui")
        process, address = served(orders, loopback, *words)
        with process:
            chromium.get(address)
            orders.get("/1", "X-Dev: ada", f"Authorization: Bearer {SECRET}", options=["--data", '{"card": [1, 2]}'])
            wait_count(chromium, "1 requests")
            chromium.find_element(By.ID, "rows").send_keys("j", Keys.ENTER)
            wait_detail(chromium, "x-devada")
            assert SECRET not in chromium.page_source
            keep_screen(chromium, "wiretap.png")
            for name, shown in (("Body", '{"card": [1, 2]}'), ("JSON", '"card": [\n'), ("Hex", "7b 22 63 61 72 64")):
                chromium.find_element(By.XPATH, f"//aside//button[text()='{name}']").click()
                until(
                    lambda shown=shown: shown in text(chromium, "detail"),
                    within=20,
                    what=lambda: text(chromium, "detail"),
                )


def test_a_service_means_the_workload_behind_it(orders, loopback, chromium):
    words = ("ui", "svc/orders", "deployment/orders", "--port", str(scene.TLS_PORT))
    process, address = served(orders, loopback, *words)
    with process:
        assert process.output() == "Requests (everything) of deployment/orders. Ctrl-C ends it.\n"
        chromium.get(address)
        orders.get("/1")
        wait_count(chromium, "1 requests")
        chromium.find_element(By.ID, "rows").send_keys("i")
        wanted = f"flows deployment/orders:{scene.TLS_PORT}: active"
        until(lambda: wanted in text(chromium, "board"), within=20, what=lambda: text(chromium, "board"))
        assert text(chromium, "board").count("flows deployment/orders") == 1
    done = sidestep("ui", "orders", "svc/nothing", "-n", "shop", socket=orders.node.socket)
    assert done.code == 1
    assert done.error == "sidestep: service shop/nothing leads to no pod; sidestep list shows workloads"


def test_a_port_of_the_page_that_is_taken_is_one_line(orders):
    with Server(numbers(), name="taken") as taken:
        done = sidestep("ui", "orders", "-n", "shop", "--ui-port", str(taken.port), socket=orders.node.socket)
    assert done.code == 1
    assert done.error == f"sidestep: the page cannot be served on port {taken.port}: Address already in use"


def _prompt(driver):
    try:
        return driver.switch_to.alert
    except Exception:  # noqa: BLE001 - there is none yet
        return None
