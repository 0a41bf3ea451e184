"""docs/inspection.md tells the truth: its policy is accepted; fields, bounds, patterns and roles are all there."""

import re
import time

import kubernetes_validate
import pytest
import yaml

from sidestep.config import inspection_fields as fields
from sidestep.config import objects
from sidestep.config.inspection import MAX_REGEX
from sidestep.kube.conversion import READINESS_GATE
from sidestep.model.inspection import Builtin
from sidestep.node import policies as store
from sidestep.node.planning import inspection as planning
from sidestep.policy.accepted_policy import accept
from sidestep.policy.pattern_probe import MAX_COST
from tests.e2e import releases
from tests.unit.deploy import test_manifest
from tests.unit.deploy.test_inspection_manifest import DOCUMENTS, POLICIES, fits, spec

DOCS = test_manifest.DEPLOY.parent / "docs"
TEXT = (DOCS / "inspection.md").read_text()
WORDS = " ".join(TEXT.split())


def test_its_documents_are_accepted():
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    documents = [one for block in blocks for one in yaml.safe_load_all(block)]
    for document in (one for one in documents if one["kind"] == "Deployment"):
        kubernetes_validate.validate(document, releases.schemas()[-1], strict=True)
        [gate] = document["spec"]["template"]["spec"]["readinessGates"]
        assert gate["conditionType"] == READINESS_GATE
    policies = [one for one in documents if one["kind"] != "Deployment"]
    assert policies
    for document in policies:
        group, _, _ = document["apiVersion"].rpartition("/")
        policy = objects.converter(group, document["kind"])(document)
        accepted = accept(policy, time.thread_time)
        assert accepted.rules or accepted.outward.rules
        assert fits(POLICIES[0], document["spec"])


def test_it_names_every_field():
    named = set(re.findall(r"^\| `([\w.]+)`", TEXT, re.MULTILINE))
    for name in POLICIES:
        part = spec(name)["properties"]
        rule = part["rules"]["items"]["properties"]
        wanted = {*part} - {"log", "redact"} | {*rule} | {*rule["match"]["properties"]}
        wanted |= {f"{outer}.{inner}" for outer in ("log", "redact") for inner in part[outer]["properties"]}
        assert wanted <= named


def test_it_names_every_built_in_pattern():
    assert {each.value for each in Builtin} <= set(re.findall(r"`(\w+)`", TEXT))


@pytest.mark.parametrize(
    "said",
    [
        f"1 to {fields.MAX_RULES}, each with its own name",
        f"by number or name, at most {fields.MAX_PORTS};",
        f"at most {fields.MAX_PATTERNS}; one of them must be found",
        f"of at most {MAX_REGEX} bytes",
        f"in no record, at most {fields.MAX_NAMES}",
        f"At most {planning.MAX_POLICIES} policies apply to one pod and {store.MAX_POLICIES} to one node",
        f"stay below {MAX_COST:.0f} microseconds per KiB",
    ],
)
def test_it_has_the_bounds(said):
    assert said in WORDS


def test_it_names_the_roles_and_how_they_are_bound():
    roles = {one["metadata"]["name"] for one in DOCUMENTS if one["kind"] == "ClusterRole"}
    assert set(re.findall(r"--clusterrole=(\S+)", TEXT)) == roles


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (DOCS / target).is_file(), target


TLS = "system/test_failing_tls.py"
SYSTEM, PRIVILEGED = "system/test_failing.py", "privileged/node/test_left_to_the_app.py"
FAILING = {
    "framing that can be read in two ways": (
        (SYSTEM, "test_what_cannot_be_read_is_closed_or_passed_and_counted"),
        (SYSTEM, "test_an_upgrade_that_cannot_be_read_is_closed_or_passed_and_counted"),
    ),
    "a TLS port without a usable certificate": (
        (SYSTEM, "test_a_tls_port_that_cannot_be_opened_is_closed_or_carried_end_to_end"),
        (TLS, "test_a_name_or_protocol_that_cannot_be_offered_to_the_app_is_closed_or_carried_end_to_end"),
        (TLS, "test_tls_with_the_app_that_fails_is_closed_or_carried_end_to_end"),
    ),
    "a body in an encoding other than gzip": (("unit/engine/inspection/test_evasions.py", "test_http1"),),
    "the pod proxy is dead": (
        (SYSTEM, "test_a_pod_without_a_proxy_is_closed_or_left_to_the_app_and_the_policys_end_opens_it_at_once"),
        (SYSTEM, "test_an_overloaded_port_is_closed_or_left_to_the_app"),
        (PRIVILEGED, "test_a_port_whose_proxy_cannot_serve_is_left_to_the_app"),
        ("privileged/node/test_closing.py", "test_a_proxy_without_room_closes_the_port_until_it_has_some"),
    ),
    "a new pod, before the policy": (
        (SYSTEM, "test_a_pod_is_open_until_the_policy_is_programmed_there_and_the_time_is_counted"),
    ),
    "no node daemon runs": (("system/test_absence.py", "test_the_gap_stands_in_record_status_and_metrics"),),
    "the policy was never accepted": (
        (SYSTEM, "test_a_policy_that_was_never_accepted_leaves_its_pods_open_with_a_condition"),
    ),
}
"""The rows of the table of failures, each with tests for both settings."""


def test_each_row_of_the_table_of_failures_has_tests():
    table = TEXT.partition("## When it cannot be inspected")[2].partition("**A closed port")[0]
    rows = re.findall(r"^\| (?!event|---)(.+?) \|", table, re.MULTILINE)
    assert len(rows) == len(FAILING)
    for row in rows:
        [tests] = [tests for begins, tests in FAILING.items() if row.startswith(begins)]
        for file, name in tests:
            assert f"def {name}(" in (DOCS.parent / "tests" / file).read_text(), (row, name)
