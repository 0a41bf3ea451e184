"""What a scrape shows."""

from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidestep.aio.meter import LoopMeter
from sidestep.model.intercept import Kind
from sidestep.node.api.metrics import exposition
from sidestep.node.sessions.answers import AnswerTotals
from sidestep.tunnel.messages import Answer, State
from sidestep.tunnel.views import (
    ConditionView,
    EngineView,
    InterceptView,
    LoopView,
    NodeStatus,
    OutboundView,
    PodView,
    StatusView,
)
from tests.unit.node.scenes import intercept

INGRESS, EGRESS = ("direction", "ingress"), ("direction", "egress")
STALL = "sidestep_loop_stall_seconds"


def status(**pod) -> StatusView:
    fields = {
        "proxy": "running",
        "proxy_pid": 7,
        "steered": ("8443/tcp",),
        "counters": {"connections": 3, "accepted": 9},
    }
    view = PodView(namespace="shop", name="orders-1", **{**fields, **pod})
    intercept = InterceptView(
        namespace="shop",
        name="mine",
        kind="intercept",
        owner="ada",
        workload="orders",
        port="https",
        transport="tcp",
        filter="x-dev=ada",
        created=1.0,
        state=State(pods=()),
        counters={"diverted": 5, "open": 2},
    )
    return StatusView(
        node=NodeStatus(name="n1", version="0.1.0", pid=1, uptime=2.5, counters={"restarts": 4}),
        pods=(view,),
        intercepts=(intercept,),
        conditions=(ConditionView("NoApp", "pod shop/orders-1 port 1", "text"),) * 2,
    )


def samples(view):
    families = text_string_to_metric_families(exposition(view).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_scrape_shows_the_status():
    found = samples(status(anomalies={"not-http": 2}))
    pod = (("namespace", "shop"), ("pod", "orders-1"))
    session = (("kind", "intercept"), ("name", "mine"), ("namespace", "shop"))
    assert found["sidestep_build_info", (("node", "n1"), ("version", "0.1.0"))] == 1
    assert found["sidestep_uptime_seconds", ()] == 2.5
    assert found["sidestep_target_pods", ()] == found["sidestep_intercepts", ()] == 1
    assert found["sidestep_conditions", (("type", "NoApp"),)] == 2
    assert found["sidestep_proxy_up", pod] == 1
    assert found["sidestep_proxy_connections", pod] == 3
    assert found["sidestep_proxy_events_total", (INGRESS, ("event", "accepted"), *pod)] == 9
    assert found["sidestep_proxy_anomalies_total", (*pod, ("reason", "not-http"))] == 2
    assert found["sidestep_session_connections", session] == 2
    assert found["sidestep_session_events_total", (("event", "diverted"), *session)] == 5


def test_what_inspection_counts_has_families_of_its_own():
    counted = {
        "connections": 3, "accepted": 9, "inspection_blocked": 2, "inspection_would_block": 1, "inspection_alerted": 4,
        "inspection_bypassed_not_http": 5, "inspection_closed_h1_ambiguous_length": 6,
    }  # fmt: skip
    found = samples(status(counters=counted))
    pod = (("namespace", "shop"), ("pod", "orders-1"))

    def of(name, label):
        wanted = f"sidestep_inspection_{name}_total"
        return {dict(labels)[label]: value for (each, labels), value in found.items() if each == wanted}

    assert of("hits", "action") == {"blocked": 2, "would_block": 1, "alerted": 4}
    assert of("bypassed", "reason") == {"not_http": 5}
    assert of("closed", "reason") == {"h1_ambiguous_length": 6}
    events = {dict(labels)["event"] for (name, labels) in found if name == "sidestep_proxy_events_total"}
    assert events == {"accepted"}
    assert found["sidestep_proxy_events_total", (INGRESS, ("event", "accepted"), *pod)] == 9


def test_stalls_of_the_loop_are_a_cumulative_histogram():
    meter = LoopMeter()
    for seconds in (0.001, 0.002, 0.3, 70.0):
        meter.turn(seconds)
    view = status()
    loop = LoopView(tuple(meter.counts), meter.seconds, meter.longest)
    found = samples(msgspec.structs.replace(view, node=msgspec.structs.replace(view.node, loop=loop)))
    buckets = {labels[0][1]: value for (name, labels), value in found.items() if name == f"{STALL}_bucket"}
    assert (buckets["0.005"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (2, 2, 3, 4)
    assert found[f"{STALL}_count", ()] == 4
    assert found[f"{STALL}_sum", ()] == pytest.approx(70.303)
    assert samples(view)[f"{STALL}_count", ()] == 0


def test_answers_are_a_histogram_and_bytes():
    totals = AnswerTotals()
    flows = intercept("flows", kind=Kind.WIRETAP, heads_only=True)
    for seconds, status_, by in ((0.004, 200, "app"), (0.3, 204, "app"), (70.0, 503, "handler"), (1.0, 0, "")):
        totals.count(flows, Answer(status_, by, seconds=seconds, sent=2, received=3))
    totals.count(intercept("mine"), Answer(999, "root"))
    view = status()
    found = samples(msgspec.structs.replace(view, node=msgspec.structs.replace(view.node, answers=totals.views())))

    def of(name, **labels):
        return found[f"sidestep_request_{name}", tuple(sorted(labels.items()))]

    good = {"kind": "flows", "by": "app", "status": "2xx"}
    assert (of("duration_seconds_bucket", le="0.005", **good), of("duration_seconds_count", **good)) == (1, 2)
    assert of("duration_seconds_sum", **good) == pytest.approx(0.304)
    assert of("body_bytes_total", direction="sent", **good) == 4
    assert of("body_bytes_total", direction="received", **good) == 6
    assert of("duration_seconds_bucket", le="10", kind="flows", by="handler", status="5xx") == 0
    assert of("duration_seconds_count", kind="flows", by="nobody", status="none") == 1
    assert of("duration_seconds_count", kind="intercept", by="nobody", status="none") == 1


def test_names_are_as_prometheus_wants_them():
    families = list(text_string_to_metric_families(exposition(status()).decode()))
    for family in families:
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
    names = {family.name for family in families}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"} <= names


def test_every_family_is_in_the_documentation():
    documented = (Path(__file__).parents[4] / "docs" / "metrics.md").read_text()
    engine = EngineView("suricata", "running", 42, "7.0.10", ("a/b",), 12, 33 << 20, 96 << 20, restarts=3)
    for family in text_string_to_metric_families(exposition(status(engines=(engine,))).decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in documented, name


def test_before_there_is_a_status_there_is_nothing():
    assert exposition(None) == b""


def test_engines_beside_the_proxy_are_shown():
    runs = EngineView("suricata", "running", 42, "7.0.10", ("a/b",), 12, 33 << 20, 96 << 20, restarts=3)
    found = samples(status(engines=(runs,)))
    pod = (("engine", "suricata"), ("namespace", "shop"), ("pod", "orders-1"))
    assert found["sidestep_engine_up", pod] == 1
    assert found["sidestep_engine_memory_bytes", pod] == 33 << 20
    assert found["sidestep_engine_rules", pod] == 12
    assert found["sidestep_engine_restarts_total", pod] == 3
    assert samples(status(engines=(EngineView("suricata", "paused"),)))["sidestep_engine_up", pod] == 0


def test_what_a_pod_sends_is_counted_apart_from_what_it_accepts():
    outbound = OutboundView(
        "steered", open=2, counters={"outbound": 7, "inspection_blocked": 3}, verdicts={"steered": 7}
    )
    found = samples(status(counters={"accepted": 9, "inspection_blocked": 1}, outbound=outbound))
    pod = (("namespace", "shop"), ("pod", "orders-1"))
    assert found["sidestep_inspection_hits_total", (("action", "blocked"), EGRESS, *pod)] == 3
    assert found["sidestep_inspection_hits_total", (("action", "blocked"), INGRESS, *pod)] == 1
    assert found["sidestep_proxy_events_total", (EGRESS, ("event", "outbound"), *pod)] == 7
    assert found["sidestep_outbound_connections", pod] == 2
    assert found["sidestep_outbound_verdicts_total", (*pod, ("verdict", "steered"))] == 7
    assert not [name for name, _ in samples(status()) if name.startswith("sidestep_outbound")]
