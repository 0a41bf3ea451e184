import pytest
from msgspec.structs import replace

from sidestep.config import annotation_names as names
from sidestep.config.node_settings import NodeSettings
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.intercept import Kind, Live
from sidestep.model.pod import PodKey, ServicePort, Transport
from sidestep.node.planning.admission import MAX_PREPARED, admit, certificates_of
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.planning.surveys import Surveys
from sidestep.policy.survey import CertificateKey, Side
from tests.unit.node.scenes import CERTIFIED, PLAIN, header, intercept, inventory, pod, service

POD = PodKey("shop", "orders-1")
KEY = CertificateKey(POD, 8443, Side.DOWNSTREAM)
GOOD = {KEY: CertificateFacts("identity:a")}


def judged(new, *, stock=None, existing=(), settings=None, certificates=GOOD):
    stock = stock or inventory()
    return admit(new, existing, stock, settings or NodeSettings(), certificates, node_annotations={})


def test_a_good_intercept_is_accepted_and_its_pods_named():
    assert [each.key for each in judged(intercept())] == [POD]


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (intercept(workload="nothing"), "no workload deployment/nothing in namespace shop"),
        (intercept(port="metrics"), "no TCP port 'metrics'"),
        (intercept(pod="orders-9"), "no pod orders-9"),
        (intercept(port="dns", transport=Transport.UDP), "HTTP filters do not apply to UDP"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(new, reason):
    with pytest.raises(RefusedError, match=reason):
        judged(new)


def test_who_listens_to_what_pods_make_needs_no_port_and_no_certificate():
    new = intercept(kind=Kind.WIRETAP, port="", egress=True, records=Live.ALL)
    assert [each.key for each in judged(new, certificates={})] == [POD]
    assert certificates_of(new, inventory(), node_annotations={}, surveys=Surveys()) == ()


def test_a_bad_regex_is_refused():
    bad = Filter(headers=(HeaderCondition("x", HeaderTest.REGEX, "("),))
    with pytest.raises(ConfigurationError):
        judged(intercept(filter=bad))


def test_a_tls_port_without_certificate_names_both_annotations():
    with pytest.raises(RefusedError, match=r"downstream-tls-path\.8443 or telepresence.io/downstream-tls-secret\.8443"):
        judged(intercept(), stock=inventory(pod(annotations={})))
    assert judged(intercept(filter=Filter()), stock=inventory(pod(annotations={})))


def test_a_bad_certificate_is_named_with_what_is_wrong():
    bad = {KEY: CertificateFacts(problem="the private key does not belong to the certificate")}
    with pytest.raises(RefusedError, match=r"'orders-tls'\) cannot be used: the private key does not belong"):
        judged(intercept(), certificates=bad)


def test_a_certificate_not_looked_at_yet_is_no_reason_to_refuse():
    assert judged(intercept(), certificates={})


def test_app_protocol_tcp_refuses_a_filter():
    stock = inventory(services=(service(ServicePort(80, "web", app_protocol="tcp")),))
    with pytest.raises(RefusedError, match="appProtocol tcp rules out HTTP filters"):
        judged(intercept(port="80"), stock=stock)


@pytest.mark.parametrize(
    ("some", "settings", "reason"),
    [
        (pod(host_network=True), NodeSettings(), "host's network"),
        (pod(), NodeSettings(enabled=False), "sidestep.dev/enabled"),
        (pod(), NodeSettings(namespaces=("prod",)), "may not be steered"),
    ],
)
def test_a_pod_that_may_not_be_steered_is_refused(some, settings, reason):
    with pytest.raises(RefusedError, match=reason):
        judged(intercept(), stock=inventory(some), settings=settings)


def test_one_able_pod_is_enough():
    stock = inventory(pod(annotations={}), pod("orders-2", annotations=CERTIFIED))
    assert [each.key.name for each in judged(intercept(), stock=stock)] == ["orders-2"]


def test_conflicts_are_refused():
    existing = [intercept("old")]
    with pytest.raises(RefusedError, match="claimed owner ann"):
        judged(intercept("new", filter=Filter()), existing=existing)
    with pytest.raises(RefusedError, match="same filter"):
        judged(intercept("new"), existing=existing)
    assert judged(intercept("new", filter=header("other")), existing=existing)


def test_what_lost_its_workload_is_no_obstacle():
    assert judged(intercept("new", filter=Filter()), existing=[intercept("old", workload="gone")])


FORWARDING = {**CERTIFIED, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}


def test_a_port_that_must_be_opened_is_judged_as_such_whoever_wants_it():
    stock = inventory(pod(annotations=FORWARDING))
    whole = intercept(filter=Filter())
    assert judged(whole, stock=stock)
    assert judged(whole, stock=stock, certificates={})
    for kind in Kind:
        with pytest.raises(RefusedError, match="cannot be used: it expired"):
            judged(replace(whole, kind=kind), stock=stock, certificates={KEY: CertificateFacts(problem="it expired")})
    wanted = certificates_of(whole, stock, node_annotations={}, surveys=Surveys())
    assert [each.key for each in wanted] == [KEY]
    assert not certificates_of(whole, inventory(), node_annotations={}, surveys=Surveys())
    udp = intercept(port="dns", transport=Transport.UDP, filter=Filter())
    assert not certificates_of(udp, stock, node_annotations={}, surveys=Surveys())


WANTED = {
    # what is asked for, of which inventory: the ports whose certificates are read
    "a filter": (intercept(), inventory(), [8443]),
    "through a service": (intercept(port="443"), inventory(services=(service(),)), [8443]),
    "the whole port is not opened": (intercept(filter=Filter()), inventory(), []),
    "unless it must be": (
        intercept(filter=Filter()),
        inventory(pod(annotations={**CERTIFIED, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"})),
        [8443],
    ),
    "UDP has none": (intercept(port="53", transport=Transport.UDP, filter=Filter()), inventory(), []),
    "no such workload": (intercept(workload="carts"), inventory(), []),
    "no such port in any pod": (intercept(port="metrics"), inventory(), []),
    "no such port in one pod": (
        intercept(port="https"), inventory(pod("a", ports=(PLAIN,)), pod("b")), [8443],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WANTED)
def test_the_certificates_that_an_intercept_needs(case):
    new, stock, ports = WANTED[case]
    found = certificates_of(new, stock, node_annotations={}, surveys=Surveys())
    assert [each.key.port for each in found] == ports


def test_the_certificates_of_few_pods_are_read_before_an_answer():
    pods = [pod(f"orders-{number}") for number in range(MAX_PREPARED + 2)]
    found = certificates_of(intercept(), inventory(*pods), node_annotations={}, surveys=Surveys())
    assert len(found) == MAX_PREPARED


def test_a_pod_without_the_port_is_no_reason_while_another_has_it():
    stock = inventory(pod("a", ports=(PLAIN,)), pod("b"))
    key = CertificateKey(PodKey("shop", "b"), 8443, Side.DOWNSTREAM)
    able = judged(intercept(port="https"), stock=stock, certificates={key: CertificateFacts("identity:a")})
    assert [each.key.name for each in able] == ["b"]


def test_a_certificate_that_is_not_there_yet_refuses_nobody():
    by_path = pod(annotations={f"{names.DOWNSTREAM_PATH}.8443": "/tls"})
    pending = {KEY: CertificateFacts(pending="container app has no process yet")}
    assert judged(intercept(), stock=inventory(by_path), certificates=pending) == (by_path,)
