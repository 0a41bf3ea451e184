"""Requests and the answers that come later."""

import asyncio

from sidestep.cli import joined_requests
from sidestep.cli.joined_requests import JoinedRequests
from sidestep.tunnel.messages import Answer, Answered, Request

OK = Answer(200, "app")
BUSY = Answer(503, "app")


def request(number=0, answer=None, pod="shop/a"):
    return Request(
        time=0.0,
        pod=pod,
        port=80,
        client="::1",
        client_port=1,
        method="GET",
        path=f"/{number}",
        authority="a",
        number=number,
        answer=answer,
    )


def answered(number, answer=OK, pod="shop/a"):
    return Answered(pod=pod, port=80, number=number, answer=answer)


class Shown(list):
    """What was shown: path, status, whether late."""

    def __call__(self, event, late):
        self.append((event.path, None if event.answer is None else event.answer.status, late))


def test_what_will_get_no_other_answer_is_shown_at_once():
    shown = Shown()
    joined = JoinedRequests(shown, patience=60.0)
    joined.request(request(answer=OK))
    joined.request(request())
    assert shown == [("/0", 200, False), ("/0", None, False)]


def test_one_line_tells_a_request_and_an_answer_that_comes_soon():
    async def scene():
        shown = Shown()
        joined = JoinedRequests(shown, patience=60.0)
        joined.request(request(1))
        joined.request(request(1, pod="shop/b"))
        assert shown == []
        joined.answered(answered(1, BUSY, pod="shop/b"))
        joined.answered(answered(1))
        joined.answered(answered(1))
        assert shown == [("/1", 503, False), ("/1", 200, False)]

    asyncio.run(scene())


def test_an_answer_that_comes_late_has_a_line_of_its_own():
    async def scene():
        shown = Shown()
        seen = asyncio.Event()
        joined = JoinedRequests(lambda event, late: (shown(event, late), seen.set()), patience=0.001)
        joined.request(request(1))
        await seen.wait()
        joined.answered(answered(1))
        assert shown == [("/1", None, False), ("/1", 200, True)]

    asyncio.run(scene())


def test_without_patience_the_pod_has_waited():
    shown = Shown()
    joined = JoinedRequests(shown)
    joined.request(request(1))
    joined.answered(answered(1))
    assert shown == [("/1", None, False), ("/1", 200, True)]


def test_where_statuses_are_wanted_only_answers_are_shown():
    shown = Shown()
    joined = JoinedRequests(shown, statuses=("5xx",), patience=60.0)
    for number, answer in ((1, OK), (2, BUSY)):
        joined.request(request(number))
        joined.answered(answered(number, answer))
        joined.request(request(answer=answer))
    joined.request(request())
    joined.close()
    assert shown == [("/2", 503, False), ("/0", 503, False)]


def test_what_is_held_is_shown_at_the_end():
    async def scene():
        shown = Shown()
        joined = JoinedRequests(shown, patience=60.0)
        joined.request(request(1))
        joined.close()
        joined.close()
        assert shown == [("/1", None, False)]

    asyncio.run(scene())


def test_an_answer_of_the_next_tunnel_is_of_no_request_of_the_last_one():
    async def scene():
        shown = Shown()
        joined = JoinedRequests(shown, patience=60.0)
        joined.request(request(1))
        joined.interrupted()
        assert shown == [("/1", None, False)]
        joined.answered(answered(1))
        assert shown == [("/1", None, False)]
        joined.request(request(1))
        joined.answered(answered(1, BUSY))
        assert shown[1:] == [("/1", 503, False)]

    asyncio.run(scene())


def test_a_number_that_comes_again_is_another_request():
    async def scene():
        loop, failed = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _, context: failed.append(context))
        shown = Shown()
        joined = JoinedRequests(shown, patience=0.001)
        joined.request(request(1))
        joined.request(request(1))
        joined.answered(answered(1))
        assert shown == [("/1", None, False), ("/1", 200, False)]
        passed = asyncio.Event()
        loop.call_later(0.01, passed.set)  # after the timers of both, which are due before
        await passed.wait()
        assert not failed

    asyncio.run(scene())


def test_only_so_many_are_waited_for(monkeypatch):
    async def scene():
        monkeypatch.setattr(joined_requests, "WAITING", 2)
        shown = Shown()
        joined = JoinedRequests(shown, patience=60.0)
        for number in (1, 2, 3):
            joined.request(request(number))
        assert shown == [("/1", None, False)]
        joined.answered(answered(1))
        joined.answered(answered(3))
        assert shown == [("/1", None, False), ("/3", 200, False)]

    asyncio.run(scene())
