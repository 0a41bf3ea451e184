"""The live page in a real Chromium: requests are shown, found, opened and saved, and text of theirs stays text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest
from msgspec.structs import replace
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sidestep.laptop.page.flow_ring import CAPACITY, FlowRing, ShownFlow
from sidestep.laptop.page.observer import InterceptShown, PageBoard
from sidestep.laptop.page.server import PageServer, bind
from sidestep.tunnel.messages import Answer, TlsFacts
from tests.harness.browser import browser, loopback_only, rows, text
from tests.harness.waiting import until
from tests.unit.laptop.page.test_flow_ring import request

pytestmark = pytest.mark.privileged

ADA = (("X-Dev", "ada"),)
HOSTILE = '"><img src=x onerror="document.title=`owned`"><script>document.title="owned"</script>'

SCROLLING = """
const [done] = arguments;
const rows = document.getElementById("rows");
let step = 0;
function go() {
  rows.scrollTop = ((rows.scrollHeight - rows.clientHeight) * step) / 10;
  step += 1;
  requestAnimationFrame(step > 10 ? () => done() : go);
}
go();
"""
"""Ends at the end, where new flows are followed."""


@pytest.fixture(scope="module")
def loopback():
    """A namespace with a loopback interface and nothing else."""
    with loopback_only("sdb") as netns:
        yield netns


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def chromium(loopback, downloads):
    with browser(loopback, downloads) as driver:
        yield driver


class Page:
    """A server in a thread of its own, and the browser that shows its page."""

    def __init__(self, loopback, driver):
        self.driver = driver
        self.replayed = []
        self.loop = asyncio.new_event_loop()
        self.ring = FlowRing()
        self.board = PageBoard("orders", self._changed)
        self.server = PageServer(ring=self.ring, board=self.board, har=har, replay=self._replay)
        self.thread = threading.Thread(target=self._serve, name="page")
        self.thread.start()
        self.address = self.call(self.server.start(loopback.call(lambda: bind(0))))

    def _serve(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _changed(self):
        self.server.changed()

    async def _replay(self, flows, to):
        self.replayed.append(([each.request.path for each in flows], to))
        return {"text": f"1 of {len(flows)} answers differs", "lines": [f"GET /1: status 200, now 500 {HOSTILE}"]}

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def tell(self, *flows):
        """Add flows: their values, or changed ones."""

        async def put():
            for each in flows:
                self.ring.put(flow(self.ring, **each) if isinstance(each, dict) else each)
            self.server.changed()

        self.call(put())

    def close(self):
        self.call(self.server.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()

    # --- what somebody in front of it sees and does -----------------------------------------------------------------

    def find(self, name):
        return self.driver.find_element(By.ID, name)

    def text(self, name):
        return text(self.driver, name)

    def rows(self):
        """The texts of the rows in view, by column, in their order."""
        return rows(self.driver)

    def work_of_scrolling(self):
        """Seconds that the browser spends on scripts, styles and layout for ten steps through the table, each drawn:
        the least of five turns."""
        self.driver.execute_cdp_cmd("Performance.enable", {})

        def spent():
            told = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
            return sum(
                each["value"]
                for each in told
                if each["name"] in {"ScriptDuration", "LayoutDuration", "RecalcStyleDuration"}
            )

        least = float("inf")
        for _ in range(5):
            before = spent()
            self.driver.execute_async_script(SCROLLING)
            least = min(least, spent() - before)
        return least

    def wait(self, look, what):
        return until(
            look, within=10, what=lambda: f"{what}: {self.text('count')!r} {self.text('note')!r} {self.rows()[:3]}"
        )

    def wait_count(self, text):
        self.wait(lambda: self.text("count") == text, text)

    def search(self, text):
        field = self.find("search")
        field.clear()
        field.send_keys(text)

    def choose_tab(self, name):
        """Choose a tab of the pane of one request."""
        [tab] = [each for each in self.find("detail").find_elements(By.TAG_NAME, "button") if each.text == name]
        tab.click()

    def pairs(self, name):
        """The names and values in the tables of a pane."""
        return dict(
            self.driver.execute_script(
                "return [...document.getElementById(arguments[0]).querySelectorAll('table.fields tr')]"
                ".map((row) => [...row.children].map((cell) => cell.textContent))",
                name,
            )
        )

    def press(self, *keys):
        self.find("rows").send_keys(*keys)


def flow(ring, *, status=0, answer=None, **values):
    """A flow of these values; `status`, or `answer`, is how it was answered."""
    told = {"status": status, "by": "", **(answer or {})} if status or answer else None
    made = request(time=1_700_000_000.0, **values)
    return ShownFlow(ring.new_id(), "flows orders:8443", replace(made, answer=Answer(**told) if told else None))


def har(flows):
    return json.dumps([each.request.path for each in flows]).encode()


@pytest.fixture
def page(loopback, chromium):
    made = Page(loopback, chromium)
    try:
        chromium.get(made.address)
        yield made
    finally:
        chromium.get("about:blank")
        made.close()


def test_requests_are_shown_as_they_come_and_get_their_answers(page):
    page.wait_count("0 requests")
    shown = flow(page.ring, method="POST", path="/pay?x=1", authority="shop.example")
    page.tell(shown)
    page.wait_count("1 requests")
    assert page.rows()[0][1:6] == ["POST", "", "", "", "shop.example/pay?x=1"]
    shown.request = replace(shown.request, answer=Answer(status=503, by="app", seconds=0.0123, received=2048))
    page.tell(shown)
    page.wait(
        lambda: page.rows()[0][1:7] == ["POST", "503", "12 ms", "2.0 KiB", "shop.example/pay?x=1", "app"], "answer"
    )


def test_searches_are_those_of_the_terminal_and_say_what_is_wrong(page):
    page.tell(
        {"path": "/api/a", "answer": {"status": 200, "by": "app", "seconds": 0.5}},
        {"path": "/api/b?api", "method": "POST", "fields": ADA, "answer": {"status": 503, "by": "handler"}},
        {"path": "/other", "status": 404, "trace": "abc123", "client": "10.9.9.9"},
        {"path": "/waits"},
    )
    for words, found in (
        ("", ["/api/a", "/api/b?api", "/other", "/waits"]),
        ("path:/api/", ["/api/a", "/api/b?api"]),
        ("path=/api/b", ["/api/b?api"]),
        ("path~^/[ow]", ["/other", "/waits"]),
        ("status:5xx", ["/api/b?api"]),
        ("status:404,2xx", ["/api/a", "/other"]),
        ("status:none", ["/waits"]),
        ("method:post", ["/api/b?api"]),
        ("header:x-dev", ["/api/b?api"]),
        ("header:x-dev=ada status:503", ["/api/b?api"]),
        ("header:x-dev=bob", []),
        ("header:x-dev~^a", ["/api/b?api"]),
        ("by:handler", ["/api/b?api"]),
        ("slower:200ms", ["/api/a"]),
        ("trace:abc", ["/other"]),
        ("10.9.9", ["/other"]),
        ("-path:/api/ -status:none", ["/other"]),
    ):
        page.search(words)
        page.wait(lambda found=found: [row[5].removeprefix("orders") for row in page.rows()] == found, words)
    for wrong in ("status:6xx", "path~(", "by:me", "slower:fast", "method:"):
        page.search(wrong)
        page.wait(lambda: page.text("problem"), wrong)


def test_text_of_the_network_is_never_markup(page):
    texts = dict.fromkeys(("authority", "method", "pod", "client", "trace", "protocol", "server"), HOSTILE)
    answer = {"status": 200, "by": "handler", "handler": HOSTILE, "head": f"{HOSTILE}: {HOSTILE}"}
    known = {"tls": True, "tls_facts": TlsFacts(*[HOSTILE] * 7), "fields": ((HOSTILE, HOSTILE),), "answer": answer}
    page.tell({**texts, **known, "path": f"/{HOSTILE}"})
    page.board.add(HOSTILE).conditions = (HOSTILE,)
    page.board.intercepts([InterceptShown(HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),))], [HOSTILE])
    page.call(asyncio.sleep(0, page.board.note(HOSTILE)))
    page.wait_count("1 requests")
    page.press("j", Keys.ENTER)
    page.wait(lambda: "x=" in page.text("detail") or HOSTILE in page.text("detail"), "the details")
    assert page.text("detail").count(HOSTILE) >= 5
    page.press("i")
    page.wait(lambda: page.text("board").count(HOSTILE) >= 8, "the board")
    for tab in ("Timing", "TLS", "Session", "Body"):
        page.choose_tab(tab)
        page.wait(lambda: HOSTILE in page.text("detail"), tab)
    assert page.driver.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    assert page.driver.title == "orders - Sidestep"


def test_tls_and_the_intercept_of_a_request_are_told(page):
    facts = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", alpn="h2", server_name="shop.test", client="CN=ada")
    facts = replace(facts, ja3="0" * 32, ja4="t13d0000h2_0_0")
    page.tell(
        {"path": "/clear", "answer": {"status": 200, "by": "app"}},
        {"path": "/early", "tls": True, "answer": {"status": 200, "by": "handler", "handler": "shop/gone"}},
        {
            "path": "/mine",
            "tls": True,
            "tls_facts": facts,
            "answer": {"status": 200, "by": "handler", "handler": "shop/mine"},
        },
    )
    page.board.add("flows orders:8443").conditions = ("Certificate: port 8443: expires soon",)
    fields = (("workload", "deployment/orders"), ("filter", "header x-dev=ada"), ("owner", "ada"))
    found = [InterceptShown("intercept", "shop/mine", fields), InterceptShown("wiretap", "shop/gone", fields)]
    page.call(asyncio.sleep(0, page.board.intercepts(found, ["Agent: node-1: is away"])))
    page.wait_count("3 requests")
    page.press("i")
    page.wait(lambda: "intercept shop/mine" in page.text("board"), "the intercepts")
    assert "Agent: node-1: is away" in page.text("board")
    page.press("j", Keys.ENTER)
    page.wait(lambda: "orders/clear" in page.text("detail"), "the first one")
    page.choose_tab("TLS")
    page.wait(lambda: "The client came in clear." in page.text("detail"), "no TLS")
    page.press("j")
    page.wait(lambda: "nothing more is known" in page.text("detail"), "TLS")
    page.press("j")
    page.wait(lambda: "shop.test" in page.text("detail"), "the facts")
    assert page.pairs("detail") == {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "server name (SNI)": "shop.test",
        "protocol chosen (ALPN)": "h2",
        "client certificate": "CN=ada",
        "JA4": "t13d0000h2_0_0",
        "JA3": "0" * 32,
    }
    page.choose_tab("Session")
    page.wait(lambda: "header x-dev=ada" in page.text("detail"), "the intercept")
    assert page.pairs("detail") == {"state": "begins", "pods": "none", **dict(fields)}
    assert "Certificate: port 8443: expires soon" in page.text("detail")
    page.press("k")
    page.wait(lambda: "not listed yet" in page.text("detail"), "an intercept that is gone")


def test_keys_move_open_pause_and_clear(page):
    page.tell(*({"path": f"/{number}", "status": 200, "fields": (("number", str(number)),)} for number in range(5)))
    page.wait_count("5 requests")
    page.press("j", "j", Keys.ENTER)
    page.wait(lambda: "GET orders/1" in page.text("detail"), "the second one")
    page.press("k")
    page.wait(lambda: "GET orders/0" in page.text("detail"), "the first one")
    page.press(Keys.END)
    page.wait(lambda: "GET orders/4" in page.text("detail"), "the last one")
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.find("detail").is_displayed(), "the pane to close")
    page.press("p")
    page.tell({"path": "/meanwhile"})
    page.wait_count("5 of 6 requests, 1 changes wait")
    assert all("meanwhile" not in row[5] for row in page.rows())
    page.press("p")
    page.wait(lambda: any("meanwhile" in row[5] for row in page.rows()), "what came meanwhile")
    page.press("c")
    page.wait_count("0 requests")
    assert len(page.ring) == 0
    page.press("/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "search"
    page.driver.switch_to.active_element.send_keys("c")  # a letter of a search is no key of the page
    assert page.find("search").get_attribute("value") == "c"


def test_clearing_while_paused_leaves_no_row(page):
    page.tell(*({"path": f"/{number}"} for number in range(3)))
    page.wait_count("3 requests")
    page.press("p")
    page.tell({"path": "/meanwhile"})
    page.wait_count("3 of 4 requests, 1 changes wait")
    page.press("c")
    page.wait_count("0 requests")
    assert page.rows() == []
    page.tell({"path": "/later"})
    page.wait_count("0 of 1 requests, 1 changes wait")


HELD_BACK = """
const asked = window.fetch;
window.held = [];
window.fetch = (path, ...rest) =>
  path === arguments[0] ? new Promise((go) => held.push(() => go(asked(path, ...rest)))) : asked(path, ...rest);
"""
"""Requests of this address are not made until `held` is called."""

REPLIED = """
const [done] = arguments;
for (const go of held.splice(0)) go();
setTimeout(done, 500);
"""
"""Make them; what they lead to has been done, or would have been."""


def test_a_reply_that_is_late_opens_nothing(page):
    page.tell(*({"path": f"/{number}"} for number in range(3)))
    page.wait_count("3 requests")
    page.driver.execute_script(HELD_BACK, "flows/1")
    page.press("j", Keys.ENTER)
    page.wait(lambda: page.driver.execute_script("return held.length") == 1, "the first one to be asked for")
    page.press("j", Keys.ENTER)
    page.wait(lambda: "GET orders/1" in page.text("detail"), "the second one")
    page.driver.execute_async_script(REPLIED)
    assert "GET orders/1" in page.text("detail")
    page.press("k")
    page.wait(lambda: page.driver.execute_script("return held.length") == 1, "the first one to be asked for again")
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.find("detail").is_displayed(), "the pane to close")
    page.driver.execute_async_script(REPLIED)
    assert not page.find("detail").is_displayed()


def test_what_is_shown_is_saved_and_replayed(page, downloads):
    page.tell(*({"path": f"/{number}", "status": 500 if number % 2 else 200} for number in range(6)))
    page.search("status:5xx")
    page.wait_count("3 of 6 requests")
    page.find("save").click()
    saved = downloads / "flows.har"
    until(saved.exists, within=10, what="the download")
    assert json.loads(saved.read_text()) == ["/1", "/3", "/5"]
    page.find("again").click()
    prompt = page.wait(lambda: _alert(page.driver), "the question")
    prompt.send_keys("http://127.0.0.1:9")
    prompt.accept()
    page.wait(lambda: page.text("note") == "1 of 3 answers differs", "the result")
    assert page.replayed == [(["/1", "/3", "/5"], "http://127.0.0.1:9")]
    assert f"GET /1: status 200, now 500 {HOSTILE}" in page.text("board")


def test_ten_thousand_are_there_and_only_those_in_view_are_drawn(page):
    count = CAPACITY + 50
    page.tell(*({"path": f"/{number}", "status": 200} for number in range(100)))
    page.wait_count("100 requests")
    page.work_of_scrolling()  # until its scripts are compiled
    few = page.work_of_scrolling()
    page.tell(*({"path": f"/{number}", "status": 200} for number in range(100, count)))
    page.wait_count(f"{CAPACITY} requests")
    page.wait(lambda: page.rows()[-1][5] == f"orders/{count - 1}", "the newest, which is followed")
    assert len(page.rows()) < 100
    # What a step costs does not grow with the flows; a table of them all would take a hundred times as long.
    assert page.work_of_scrolling() < 4 * few
    page.press(Keys.HOME)
    page.wait(lambda: page.rows()[0][5] == "orders/50", "the oldest")
    page.search("path=/777")
    page.wait_count(f"1 of {CAPACITY} requests")


def test_a_page_finds_its_server_again_and_says_when_it_is_gone(page):
    page.tell({"path": "/a"})
    page.wait_count("1 requests")
    page.call(page.server.aclose())
    page.wait(lambda: "cannot be reached" in page.text("note"), "the note")


def _alert(driver):
    with contextlib.suppress(Exception):
        return driver.switch_to.alert
    return None
