"""Where the number of processes of a pod's proxy may be written."""

import pytest
from msgspec.structs import replace

from sidestep.config.annotation_names import PROXY_WORKERS
from sidestep.config.proxy_workers import Workers, resolve
from tests.unit.node.scenes import pod


def resolved(own=None, owner=None, namespace=None):
    """(processes, origins of problems) where these values are written."""
    written = [{} if value is None else {PROXY_WORKERS: value} for value in (own, owner, namespace)]
    made = pod()
    owners = tuple(replace(each, annotations=written[1]) for each in made.owners)
    assert owners
    workers, problems = resolve(replace(made, annotations=written[0], owners=owners), written[2])
    return workers, [problem.origin.split()[0] for problem in problems]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, (None, [])),
        ({"own": "4", "owner": "3", "namespace": "2"}, (Workers(4), [])),
        ({"owner": "3", "namespace": "2"}, (Workers(3), [])),
        ({"namespace": "2"}, (Workers(2), [])),
        ({"own": "auto", "namespace": "2"}, (Workers(16, automatic=True), [])),
        ({"own": "Auto", "namespace": "2"}, (Workers(2), ["pod"])),
        ({"own": "many", "namespace": "2"}, (Workers(2), ["pod"])),
        ({"own": "0", "namespace": "-1"}, (None, ["pod", "namespace"])),
        ({"own": ""}, (None, ["pod"])),
        ({"own": "017"}, (None, ["pod"])),
    ],
)
def test_the_nearest_good_value_counts(written, expected):
    assert resolved(**written) == expected
