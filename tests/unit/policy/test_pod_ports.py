"""What the names and numbers of a pod's ports mean."""

import pytest

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Pod, PodKey, Service, ServicePort, Transport
from sidestep.policy.pod_ports import MAX_LISTED, PodPorts, listed, ports_of

UDP = Transport.UDP
PORTS = (
    ContainerPort(8443, name="https", container="app"),
    ContainerPort(8080, name="web", container="app"),
    ContainerPort(9090, container="metrics"),
    ContainerPort(5353, UDP, name="dns", container="app"),
    ContainerPort(8080, UDP, name="quic", container="app"),
)
POD = Pod(PodKey("shop", "orders-1"), uid="orders-1", ports=PORTS, labels={"app": "orders"})
FRONT = Service(
    "shop",
    "front",
    {"app": "orders"},
    (
        ServicePort(443, "https", "secure", "https"),
        ServicePort(80, 8080, "plain"),
        ServicePort(9090, 8080, "clash"),
        ServicePort(7000, 7001, "undeclared"),
        ServicePort(53, "dns", "dns", transport=UDP),
        ServicePort(1, "missing", "broken"),
    ),
)
SECOND = Service("shop", "second", {"app": "orders"}, (ServicePort(443, 8080, "tls", "http"), ServicePort(81, 8080)))


@pytest.mark.parametrize(
    ("text", "transport", "numbers"),
    [
        ("443", Transport.TCP, [8443]),
        ("secure", Transport.TCP, [8443]),
        ("plain", Transport.TCP, [8080]),
        ("80", Transport.TCP, [8080]),
        ("8443", Transport.TCP, [8443]),
        ("https", Transport.TCP, [8443]),
        ("web", Transport.TCP, [8080]),
        ("9090", Transport.TCP, [8080]),
        ("7000", Transport.TCP, [7001]),
        ("7001", Transport.TCP, [7001]),
        ("6000", Transport.TCP, [6000]),
        ("53", UDP, [5353]),
        ("dns", UDP, [5353]),
        ("8080", UDP, [8080]),
        ("quic", UDP, [8080]),
    ],
)
def test_resolve_port(text, transport, numbers):
    found = PodPorts(POD, [FRONT]).resolve(text, transport=transport)
    assert [each.port.number for each in found] == numbers
    assert all(each.port.transport is transport for each in found)


@pytest.mark.parametrize(
    ("text", "transport"),
    [
        ("dns", Transport.TCP),
        ("web", UDP),
        ("nothing", Transport.TCP),
        ("0", Transport.TCP),
        ("65536", Transport.TCP),
        ("080x", Transport.TCP),
        ("", Transport.TCP),
        ("missing", Transport.TCP),
        ("broken", Transport.TCP),
        ("\u0668\u0660", Transport.TCP),
        ("-1", Transport.TCP),
        ("1" * 5000, Transport.TCP),
    ],
)
def test_an_unknown_port_lists_the_ports_there_are(text, transport):
    with pytest.raises(RefusedError) as caught:
        PodPorts(POD, [FRONT]).resolve(text, transport=transport)
    assert "443 (secure) of service front" in str(caught.value)
    assert "8443 (https)" in str(caught.value)
    assert "5353/UDP (dns)" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_one_name_in_two_services_may_mean_two_ports():
    assert [each.port.number for each in PodPorts(POD, [SECOND, FRONT]).resolve("443")] == [8443, 8080]


def test_a_port_is_described_by_all_service_ports_that_lead_to_it():
    (found,) = PodPorts(POD, [SECOND, FRONT]).resolve("web")
    assert [each.number for each in found.service_ports] == [80, 9090, 443, 81]
    assert found.app_protocol == "http"
    facts = found.facts()
    assert facts.names == {"web", "plain", "clash", "tls"}
    assert facts.numbers == {8080, 80, 9090, 443, 81}
    assert found == PodPorts(POD, [FRONT, SECOND]).describe(PORTS[1])


def test_undeclared_ports_say_so():
    (found,) = PodPorts(POD, [FRONT]).resolve("6000")
    assert not found.declared
    assert found.port == ContainerPort(6000)
    assert PodPorts(POD, [FRONT]).resolve("8443")[0].declared


def intercept(name, port, transport=Transport.TCP):
    return Intercept("u", "shop", name, Kind.INTERCEPT, WorkloadRef("orders"), port, transport=transport)


def test_claimed_names_the_intercepts_by_the_port_they_mean():
    claimed = PodPorts(POD, [FRONT]).claimed(
        [intercept("a", "plain"), intercept("b", "8080"), intercept("c", "53", UDP), intercept("d", "no-such-port")]
    )
    named = {port: [each.display for each in claiming] for port, claiming in claimed.items()}
    assert named == {(8080, Transport.TCP): ["shop/a", "shop/b"], (5353, UDP): ["shop/c"]}


def test_the_ports_of_an_inventorys_pod_are_made_once():
    inventory = Inventory(pods={POD.key: POD}, services=(FRONT,))
    ports = ports_of(POD, inventory)
    assert ports_of(POD, inventory) is ports
    assert ports.weight == len(PORTS) + len(FRONT.ports)
    earlier = Pod(POD.key, uid="orders-1", ports=PORTS, labels={"app": "orders"})
    assert ports_of(earlier, inventory) is not ports, "another state of the pod has ports of its own"
    assert ports_of(earlier, inventory).texts == ports.texts


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "none"), (2, "p0, p1"), (MAX_LISTED + 3, ", ".join(f"p{n}" for n in range(MAX_LISTED)) + " and 3 more")],
)
def test_an_error_lists_a_few(count, text):
    assert listed([f"p{number}" for number in range(count)]) == text
