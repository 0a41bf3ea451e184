"""Small inventories and intercepts for the tests of the node's pure parts."""

from __future__ import annotations

from ipaddress import ip_address

from sidestep.config.annotation_names import DOWNSTREAM_SECRET
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Location, Owner, Pod, PodKey, Service, ServicePort, Transport

HTTPS = ContainerPort(8443, name="https", container="app")
PLAIN = ContainerPort(8080, name="web", container="app")
DNS = ContainerPort(53, Transport.UDP, name="dns", container="app")

CERTIFIED = {f"{DOWNSTREAM_SECRET}.8443": "orders-tls"}


def pod(name="orders-1", *, namespace="shop", ports=(HTTPS, PLAIN, DNS), annotations=None, **fields):
    return Pod(
        key=PodKey(namespace, name),
        uid=f"uid-{name}",
        ips=(ip_address("10.0.0.1"),),
        ports=ports,
        containers=("app",),
        labels={"app": "orders"},
        annotations=CERTIFIED if annotations is None else annotations,
        owners=(Owner("deployment", "orders"),),
        location=Location(netns=f"/run/netns/{name}", root="/nowhere"),
        **fields,
    )


def service(*ports, namespace="shop", name="orders"):
    return Service(namespace, name, {"app": "orders"}, ports or (ServicePort(443, "https", name="https"),))


def inventory(*pods, services=(), **fields):
    return Inventory(pods={each.key: each for each in pods or (pod(),)}, services=services, **fields)


def header(value="dev", name="x-user"):
    return Filter(headers=(HeaderCondition(name, HeaderTest.EXACT, value),))


def intercept(uid="u1", *, port="8443", created=1.0, filter=None, **fields):  # noqa: A002 - the field's name
    return Intercept(
        uid=uid,
        namespace=fields.pop("namespace", "shop"),
        name=f"n-{uid}",
        kind=fields.pop("kind", Kind.INTERCEPT),
        workload=WorkloadRef(fields.pop("workload", "orders"), "deployment"),
        port=port,
        filter=header() if filter is None else filter,
        created=created,
        owner="ann",
        **fields,
    )
