"""The product's story: a developer's requests reach their laptop, everybody else's the pods, over TLS, on all pods."""

from __future__ import annotations

import signal

from tests.e2e import shop as shops
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")


def check(shop, pods, requests):
    """So many requests in turn to all pods, every second one with the header, each answered by whom it should be."""
    for number in range(requests):
        pod = pods[number % len(pods)]
        answer = shop.get(pod, f"/{number}", *([shops.DEV] if number % 2 else []))
        assert answer.status == 200, (number, answer.errors)
        assert answer.served_by == ("handler" if number % 2 else "app"), number
        assert number % 2 or answer.headers["x-pod"] == [pod.name]


def test_half_of_sixty_requests(cluster, product, shop):
    """Matches are answered by the handler, others by the pod that was asked; pods do not notice."""
    before = {(pod.uid, pod.restarts) for pod in shop.pods()}
    with product.handler() as handler, product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=3):
        check(shop, shop.pods(), 60)
    assert {(pod.uid, pod.restarts) for pod in shop.pods()} == before
    pods = shop.pods()
    until(lambda: shop.get(pods[0], "/", shops.DEV).served_by == "app", within=5, what="the app to answer again")


def test_pods_come_and_go(cluster, product, shop):
    """3 → 5 → 2 replicas during one intercept."""
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=3) as session,
    ):
        try:
            for replicas in (5, 2):
                cluster.kubectl("scale", "deploy/orders", "-n", shop.namespace, f"--replicas={replicas}")
                pods = shop.wait(replicas)
                session.wait_active(pods=replicas, within=15)
                check(shop, pods, 4 * replicas)
        finally:
            cluster.kubectl("scale", "deploy/orders", "-n", shop.namespace, "--replicas=3")
        pods = shop.wait(3)
        session.wait_active(pods=3, within=15)
        check(shop, pods, 6)


def test_plain_http(cluster, product, shop):
    with (
        product.handler(tls=False) as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:http", pods=3),
    ):
        for pod in shop.pods():
            assert shop.get(pod, "/", shops.DEV, port=shops.PLAIN_PORT).served_by == "handler"
            assert shop.get(pod, "/", port=shops.PLAIN_PORT).served_by == "app"


def test_two_developers(cluster, product, shop):
    """Each gets their own requests; the same filter twice is refused and the refusal names the holder."""
    product.grant("bob", shop.namespace)
    with (
        product.handler(name="ada's") as hers,
        product.handler(name="bob's") as his,
        product.intercept("orders", *FILTER, "--name", "adas", port=f"{hers}:https", pods=3),
        product.intercept("orders", "--http-header", "x-dev=bob", port=f"{his}:https", pods=3, user="bob"),
    ):
        for pod in shop.pods():
            assert shop.get(pod, "/", "x-dev: ada").served_by == "ada's"
            assert shop.get(pod, "/", "x-dev: bob").served_by == "bob's"
            assert shop.get(pod, "/").served_by == "app"
        words = ["intercept", "orders", "-n", shop.namespace, "--port", f"{his}:https", *FILTER, "--name", "second"]
        refused = product.run(*words, user="bob")
        assert refused.code == 1, refused
        assert "shop/adas" in refused.error


def test_a_wiretap(cluster, product, shop):
    """Copies arrive on the laptop, the app answers; a wiretap stands beside an intercept."""
    with (
        product.handler(name="ada's") as hers,
        product.handler() as copies,
        product.intercept("orders", *FILTER, port=f"{hers}:https", pods=3),
        product.intercept("orders", "--http-path-prefix", "/c", port=f"{copies}:https", pods=3, kind="wiretap") as tap,
    ):
        for pod in shop.pods():
            assert shop.get(pod, "/copied").served_by == "app"
            assert shop.get(pod, "/taken", shops.DEV).served_by == "ada's"
        until(lambda: len(tap.of("request")) >= 3, within=10, what=lambda: f"copies\n{tap.process.output()}")
        assert {(event["path"], event["copied"]) for event in tap.of("request")} == {("/copied", True)}


def test_one_pod_only(cluster, product, shop):
    chosen, *others = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, "--pod", chosen.name, port=f"{handler}:https", pods=1),
    ):
        assert shop.get(chosen, "/", shops.DEV).served_by == "handler"
        assert {shop.get(pod, "/", shops.DEV).served_by for pod in others} == {"app"}


def test_a_session_that_is_killed(cluster, product, shop):
    """The CLI gets no chance to say goodbye: requests return to the app at once, the resource shows what happened."""
    pod = shop.pods()[0]
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, "--name", "killed", port=f"{handler}:https", pods=3) as session,
    ):
        assert shop.get(pod, "/", shops.DEV).served_by == "handler"
        session.process.signal(signal.SIGKILL)
        until(lambda: shop.get(pod, "/", shops.DEV).served_by == "app", within=5, what="the app to answer")
        until(
            lambda: cluster.get("intercept", "killed", namespace=shop.namespace)["status"]["state"] == "Stale",
            within=45,
            every=1,
            what="the resource to be stale",
        )
        assert product.run("leave", "killed", "-n", shop.namespace).code == 0
        assert cluster.try_get("intercept", "killed", namespace=shop.namespace) is None


def test_what_a_stranger_sees(cluster, product, shop):
    """`kubectl get intercepts -A` and `kubectl describe` tell what is going on."""
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, "--name", "shown", port=f"{handler}:https", pods=3),
    ):
        until(
            lambda: "Active" in cluster.kubectl("get", "intercepts", "-A"),
            within=10,
            every=0.5,
            what=lambda: f"an active intercept\n{cluster.kubectl('get', 'intercepts', '-A')}",
        )
        heads, row = cluster.kubectl("get", "intercepts", "-A").splitlines()
        assert heads.split() == ["NAMESPACE", "NAME", "WORKLOAD", "PORT", "FILTER", "OWNER", "STATE", "PODS", "AGE"]
        for word in ("shop", "shown", "orders", "https", "x-dev", "ada", "Active", " 3 "):
            assert word in row
        described = cluster.kubectl("describe", "intercept", "shown", "-n", shop.namespace)
        for pod in shop.pods():
            assert pod.name in described
        listed = product.run("list", "-n", shop.namespace)
        assert listed.code == 0, listed
        assert "orders" in listed.stdout
        status = product.run("status", "-n", shop.namespace)
        assert status.code == 0, status
        assert "shown" in status.stdout
    until(lambda: not cluster.get("intercepts"), within=10, every=0.3, what="the resource to be gone")
