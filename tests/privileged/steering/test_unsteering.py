"""Steering and unsteering under load: every client gets an answer, from one side or the other."""

from __future__ import annotations

import threading
import time

import pytest

from sidestep.netns import queue_length
from tests.harness.waiting import until
from tests.privileged.steering.answering import app, ask
from tests.privileged.steering.conftest import PORT, steered

pytestmark = pytest.mark.privileged

CLIENTS = 8


def test_no_client_is_reset_while_steering_comes_and_goes(program, dual_stack_pod):
    pod = dual_stack_pod
    answers: list[bytes] = []
    failures: list[OSError] = []
    done = threading.Event()

    def client(ip: str) -> None:
        while not done.is_set():
            try:
                answers.append(ask(pod.client, ip, PORT))
            except OSError as error:
                failures.append(error)

    def answered(by: bytes, count: int) -> None:
        start = answers.count(by)
        until(lambda: failures or answers.count(by) >= start + count, within=20, what=f"{by!r} to answer")

    with steered(program, pod) as pair, app(pod.pod, "::", PORT):
        clients = [threading.Thread(target=client, args=(pod.ips[number % 2],)) for number in range(CLIENTS)]
        for each in clients:
            each.start()
        try:
            for _ in range(5):
                answered(b"app", 10)
                pair.steer()
                answered(b"proxy", 10)
                pair.unsteer()
            answered(b"app", 10)
            accepting_until = time.monotonic() + 1
            until(
                lambda: time.monotonic() > accepting_until and queue_length(pair.proxy.listener) == 0,
                within=5,
                what="the queue to be empty",
            )
            pair.proxy.stop()
            pair.proxy.listener.close()
            answered(b"app", 50)
        finally:
            done.set()
            for each in clients:
                each.join()
        assert failures == []
        assert set(answers) == {b"app", b"proxy"}


def test_connections_in_the_queue_survive_unsteering(program, pod):
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT):
        pair.steer()
        pair.proxy.stop()
        waiting = [threading.Thread(target=lambda: answers.append(ask(pod.client, pod.ip, PORT))) for _ in range(20)]
        answers: list[bytes] = []
        for each in waiting:
            each.start()
        until(lambda: queue_length(pair.proxy.listener) == 20, within=5, what="the queue to fill")
        pair.unsteer()
        assert ask(pod.client, pod.ip, PORT) == b"app"
        assert queue_length(pair.proxy.listener) == 20
        for _ in range(20):
            connection, _ = pair.proxy.listener.accept()
            with connection:
                connection.sendall(b"late")
        for each in waiting:
            each.join()
        assert answers == [b"late"] * 20
        assert queue_length(pair.proxy.listener) == 0
