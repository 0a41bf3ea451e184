"""EndpointSlices that no selector made: which pods they tie to a Service, and by which ports."""

from ipaddress import ip_address

import pytest

from sidestep.config.field_error import FieldError
from sidestep.kube.endpoints import SERVICE_NAME, slice_of, with_slices
from sidestep.model.pod import Pod, PodKey, Service, ServicePort, Transport

POD = Pod(PodKey("shop", "orders-1"), "uid", ips=(ip_address("10.0.0.7"),))
OTHER = Pod(PodKey("elsewhere", "orders-1"), "other", ips=(ip_address("10.0.0.8"),))
PODS = {each.key: each for each in (POD, OTHER)}


def value(*, service="orders", endpoints=None, ports=None):
    return {
        "metadata": {"namespace": "shop", "name": "orders-x", "labels": {SERVICE_NAME: service}},
        "endpoints": [{"addresses": ["10.0.0.7"]}] if endpoints is None else endpoints,
        "ports": [{"name": "https", "port": 8443, "appProtocol": "https"}] if ports is None else ports,
    }


def service(*ports, selector=None):
    return Service(namespace="shop", name="orders", selector=selector or {}, ports=ports)


def joined(found, *slices):
    return with_slices([found], [slice_of(each) for each in slices], PODS)[0]


def test_an_endpoint_is_a_pod_by_name_or_by_address():
    by_name = value(endpoints=[{"addresses": [], "targetRef": {"kind": "Pod", "name": "orders-1"}}])
    for each in (by_name, value()):
        assert joined(service(), each).pods == {POD.key}


def test_ports_are_those_of_the_slice_under_the_services_numbers():
    assert joined(service(), value()).ports == (ServicePort(8443, 8443, "https", "https", Transport.TCP),)
    found = joined(service(ServicePort(443, "x", "https")), value())
    assert found.ports == (ServicePort(443, 8443, "https", "https", Transport.TCP),)
    stated = joined(service(ServicePort(443, "x", "https", "http")), value())
    assert stated.ports[0].app_protocol == "http"


@pytest.mark.parametrize(
    "port", [{"name": "a"}, {"port": 0}, {"port": 65536}, {"port": 9, "protocol": "SCTP"}], ids=str
)
def test_ports_that_cannot_be_steered_are_left_out(port):
    assert slice_of(value(ports=[port])).ports == ()


def test_a_service_with_a_selector_and_slices_of_others_stay_alone():
    selected = service(ServicePort(443, "https"), selector={"app": "orders"})
    assert joined(selected, value()) == selected
    assert joined(service(), value(service="another")) == service()
    assert joined(service(), value(service="")) == service()


def test_an_endpoint_without_a_pod_here_changes_nothing():
    stated = service(ServicePort(443, "https"))
    assert joined(stated, value(endpoints=[{"addresses": ["10.9.9.9"]}])) == stated
    assert joined(stated, value(endpoints=[])) == stated


def test_a_slice_of_the_wrong_form_is_an_error_of_its_field():
    with pytest.raises(FieldError):
        slice_of(value(ports=[{"port": "many"}]))
