"""What a resource asked for when it was accepted is what counts: for every node, and for daemons that start later.

The API server of these tests is an old one: it lets a spec be changed.
"""

import asyncio
import copy
from contextlib import contextmanager

from sidestep.kube.errors import ApiError
from sidestep.kube.resources import observe
from sidestep.model.intercept import Kind
from sidestep.tunnel.proof import generate, public_text
from tests.integration.kube.cluster import GROUP, Laptop, daemon, resource, run, status, until
from tests.integration.kube.test_sessions import knock


def digest(found):
    return observe(Kind.INTERCEPT, found).digest


async def active_session(api, **spec):
    """A session whose intercept is active."""
    laptop = Laptop(api, **spec)
    await until(lambda: laptop.ear.active == 1, what=f"active: {spec}")
    return laptop


@contextmanager
def patches(node, answer):
    """Meanwhile `answer(path, send)` answers the daemon's patches; `send()` passes one on to the API server."""
    patch = node.cluster._api.patch

    async def answered(path, body, **more):
        return await answer(path, lambda: patch(path, body, **more))

    node.cluster._api.patch = answered
    try:
        yield
    finally:
        node.cluster._api.patch = patch


async def stolen(api, thief, *, name="orders-1"):
    """Somebody who may patch the resource takes it over: another key, every request."""
    found = copy.deepcopy(resource(api, name))
    found["spec"]["session"]["publicKey"] = public_text(thief)
    found["spec"]["filter"] = {}
    return await api.put(GROUP, "intercepts", found)


def test_a_restarted_daemon_refuses_a_spec_that_was_changed_meanwhile():
    async def test(api):
        thief = generate()
        async with daemon(api):
            laptop = await active_session(api)
            assert status(api)["specDigest"] == digest(resource(api))
        found = await stolen(api, thief)
        async with daemon(api, name="next") as node:
            await until(lambda: status(api).get("state") == "Refused", what="the refusal")
            assert "changed after it was accepted" in status(api)["message"]
            accepted = next(each for each in status(api)["conditions"] if each["type"] == "Accepted")
            assert (accepted["status"], accepted["reason"]) == ("False", "SpecChanged")
            assert not node.cluster.intercepts()
            assert not status(api).get("nodes")
            held = node.cluster.resources.find(found["metadata"]["uid"])
            assert not held.key
            # The rightful owner's spec again is still another than was seen here first, and still nobody's takeover.
            await api.put(GROUP, "intercepts", found | {"spec": found["spec"] | {"renewTime": "2027-01-01T00:00:00Z"}})
            assert not node.cluster.intercepts()
            await laptop.end()

    run(test)


def test_a_daemon_that_starts_again_serves_what_was_accepted():
    async def test(api):
        async with daemon(api):
            laptop = await active_session(api)
        async with daemon(api, name="next") as node:
            await until(lambda: len(node.cluster.intercepts()) == 1, what="served again")
            await laptop.end()

    run(test)


def test_a_node_that_sees_the_resource_later_follows_the_first():
    async def test(api):
        thief = generate()
        async with daemon(api, node="n1") as first:
            laptop = await active_session(api)
            await stolen(api, thief)
            async with daemon(api, node="n2") as second:
                uid = resource(api)["metadata"]["uid"]
                await until(lambda: second.cluster.resources.find(uid) is not None, what="n2 to see it")
                await until(lambda: "not followed" in status(api).get("message", ""), what="the message of n1")
                assert second.cluster.resources.find(uid).problem
                assert not second.cluster.intercepts()
                assert "n2" not in status(api)["nodes"]
                assert await knock(api, first, uid=uid, key=thief) is not None
                assert len(first.cluster.intercepts()) == 1
                await laptop.end()

    run(test)


def test_of_two_nodes_that_saw_different_specs_the_later_writer_gives_in():
    """n1 saw Ada's spec but its write is on the way; n2 sees the thief's and writes first: one spec for all nodes."""

    async def test(api):
        thief, late = generate(), asyncio.Event()
        async with daemon(api, node="n1") as first:

            async def slow(path, send):
                await late.wait()
                return await send()

            with patches(first, slow):
                laptop = Laptop(api)
                await until(lambda: resource(api) is not None, what="the resource")
                uid = resource(api)["metadata"]["uid"]
                await until(lambda: first.cluster.resources.find(uid) is not None, what="n1 to see it")
                await until(lambda: first.cluster.resources.find(uid).validated, what="n1 to validate it")
                stole = await stolen(api, thief)
                async with daemon(api, node="n2") as second:
                    await until(lambda: status(api).get("specDigest") == digest(stole), what="n2's digest")
                    late.set()
                    await until(lambda: first.cluster.resources.find(uid).problem, what="n1 to give in")
                    assert status(api)["specDigest"] == digest(stole)
                    assert not first.cluster.intercepts()
                    assert second.cluster.resources.find(uid).accepted
                    await laptop.end()

    run(test)


def test_a_resource_from_before_digests_gets_one():
    async def test(api):
        async with daemon(api):
            laptop = await active_session(api)
            found = copy.deepcopy(resource(api))
            del found["status"]["specDigest"]
            await api.put(GROUP, "intercepts", found)
            await until(lambda: status(api).get("specDigest") == digest(found), what="a digest")
            await laptop.end()

    run(test)


def test_a_flood_of_changes_does_not_keep_the_digest_from_being_written():
    """Each change makes the version stale on which a first write depends."""

    async def test(api):
        async with daemon(api) as node:
            laptop = Laptop(api)

            async def flood():
                for number in range(1000):
                    found = resource(api)
                    if found is not None:
                        changed = copy.deepcopy(found)
                        changed["metadata"].setdefault("labels", {})["n"] = str(number)
                        await api.put(GROUP, "intercepts", changed)
                    await asyncio.sleep(0.02)

            flooding = asyncio.create_task(flood())
            await until(lambda: len(node.cluster.intercepts()) == 1, what="served")
            flooding.cancel()
            await laptop.end()

    run(test)


def test_definitions_that_drop_the_digest_are_told_of():
    """An upgrade of the daemons alone: nothing can be pinned, so nothing is served, and the message says what to do."""

    async def test(api):
        put = api.put

        async def pruning(group, plural, value):
            value.get("status", {}).pop("specDigest", None)
            return await put(group, plural, value)

        api.put = pruning
        async with daemon(api) as node:
            laptop = Laptop(api)
            outcome = await laptop.task
            assert "kubectl apply -f deploy/daemonset.yaml" in str(outcome.error)
            assert not node.cluster.intercepts()

    run(test)


def test_a_flood_of_changes_costs_few_writes_and_delays_nobody_for_long():
    """Somebody patches a spec fifty times a second, back and forth; the status says what is so, now and then."""

    async def test(api):
        async with daemon(api) as node:
            ada = await active_session(api)
            before = sum(each.startswith("PATCH") and "/orders-1/status" in each for each in api.requests)
            began = asyncio.get_running_loop().time()
            for number in range(150):
                changed = copy.deepcopy(resource(api))
                changed["spec"]["filter"] = {} if number % 2 else {"methods": ["GET"]}
                changed["spec"]["owner"] = "eve" if number % 4 < 2 else "ada"
                await api.put(GROUP, "intercepts", changed)
                await asyncio.sleep(0.02)
            took = asyncio.get_running_loop().time() - began
            written = sum(each.startswith("PATCH") and "/orders-1/status" in each for each in api.requests) - before
            assert written <= 8 + took + 1
            bob = await active_session(api, user="bob", name="bobs")
            assert len(node.cluster.intercepts()) == 2
            await ada.end()
            await bob.end()

    run(test)


def test_a_resource_whose_status_cannot_be_written_is_in_nobodys_way():
    """The API server refuses one object, as it does when an older one does not meet newer definitions."""

    async def test(api):
        async with daemon(api) as node:
            refused = []

            async def refuse_one(path, send):
                if "/orders-1/" in path:
                    refused.append(path)
                    raise ApiError(422, "Invalid", "spec.port: Invalid value")
                return await send()

            with patches(node, refuse_one):
                ada = Laptop(api)
                await until(lambda: len(refused) > 1, what="two refusals")
                bob = await active_session(api, user="bob", name="bobs")
            await until(lambda: ada.ear.active == 1, what="the first session")
            await ada.end()
            await bob.end()

    run(test)


def test_an_answer_to_a_write_that_is_no_resource_ends_nothing():
    async def test(api):
        async with daemon(api) as node:
            answered = []

            async def empty(path, send):
                answered.append(await send())
                return b"{}"

            with patches(node, empty):
                laptop = Laptop(api)
                await until(lambda: answered, what="an answer")
            await until(lambda: laptop.ear.active == 1, what="active")
            bob = await active_session(api, user="bob", name="bobs")
            await laptop.end()
            await bob.end()

    run(test)
