"""Surveys are kept as long as what they are made of is the same."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.config import annotation_names as names
from sidestep.model.pod import ContainerPort
from sidestep.node.planning.surveys import Surveys
from tests.unit.node.scenes import HTTPS, PLAIN, inventory, pod, service

NODE: dict[str, str] = {}


def test_the_same_pod_has_the_same_survey():
    surveys, stock = Surveys(), inventory()
    one = surveys.of(pod(), stock, node_annotations=NODE)
    assert surveys.of(pod(), inventory(), node_annotations={}) is one


@pytest.mark.parametrize(
    "again",
    [
        {"some": replace(pod(), labels={"app": "orders", "tier": "2"})},
        {"stock": inventory(services=(service(),))},
        {"stock": inventory(namespaces={"shop": {names.SKIP_VERIFY: "true"}})},
        {"node": {names.SKIP_VERIFY: "true"}},
        {"extra": [ContainerPort(9999)]},
    ],
)
def test_what_is_different_is_surveyed_again(again):
    surveys = Surveys()
    one = surveys.of(pod(), inventory(), node_annotations=NODE)
    other = surveys.of(
        again.get("some", pod()),
        again.get("stock", inventory()),
        node_annotations=again.get("node", NODE),
        extra_ports=again.get("extra", ()),
    )
    assert other is not one


def test_a_declared_port_is_no_extra_one():
    surveys = Surveys()
    one = surveys.of(pod(), inventory(), node_annotations=NODE)
    assert surveys.of(pod(), inventory(), node_annotations=NODE, extra_ports=[HTTPS, PLAIN]) is one


def test_a_question_need_not_leave_anything_behind():
    surveys = Surveys()
    one = surveys.of(pod(), inventory(), node_annotations=NODE)
    surveys.of(pod(), inventory(), node_annotations=NODE, extra_ports=[ContainerPort(9999)], keep=False)
    assert surveys.of(pod(), inventory(), node_annotations=NODE) is one


def test_the_surveys_of_other_pods_are_forgotten():
    surveys, a, b = Surveys(), pod("a"), pod("b")
    first = {each.key: surveys.of(each, inventory(a, b), node_annotations=NODE) for each in (a, b)}
    surveys.keep_only([a.key])
    assert surveys.of(a, inventory(a, b), node_annotations=NODE) is first[a.key]
    assert surveys.of(b, inventory(a, b), node_annotations=NODE) is not first[b.key]
