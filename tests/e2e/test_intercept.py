"""The product's story: a developer's requests reach their laptop, everybody else's the pods, over TLS, on all pods."""

from __future__ import annotations

from tests.e2e import shop as shops

FILTER = ("--http-header", "x-dev=ada")


def test_half_of_sixty_requests(cluster, product, shop):
    """Matches are answered by the handler, others by the pod that was asked; pods do not notice."""
    before = {(pod.uid, pod.restarts) for pod in shop.pods()}
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=3),
    ):
        pods = shop.pods()
        for number in range(60):
            pod = pods[number % 3]
            answer = shop.get(pod, f"/{number}", *([shops.DEV] if number % 2 else []))
            assert answer.status == 200, answer.errors
            assert answer.served_by == ("handler" if number % 2 else "app")
            assert number % 2 or answer.headers["x-pod"] == [pod.name]
    assert {(pod.uid, pod.restarts) for pod in shop.pods()} == before
