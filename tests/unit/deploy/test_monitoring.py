"""deploy/monitoring: alerts and dashboard use metrics, labels and words that daemons have and docs/metrics.md tells.

`tests/release/test_alerts.py` has promtool judge the alerts.
"""

import json
import re

import kubernetes_validate
import pytest
import yaml

from sidestep.model.condition import ConditionType
from sidestep.node.api.metrics import StatusCollector
from sidestep.tunnel.views import EngineView, OutboundView
from tests.e2e import releases
from tests.unit.deploy.test_manifest import DEPLOY, the
from tests.unit.node.api.test_metrics import status

MONITORING = DEPLOY / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
ALERTS = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SERVICE, MONITOR = yaml.safe_load_all((MONITORING / "servicemonitor.yaml").read_text())

TARGET = {"job", "node"}
"""Labels that a scrape adds: the Service's name, and what the ServiceMonitor says."""
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def documented():
    """Labels by sample, as docs/metrics.md has them."""
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    found = {}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE):
        for suffix in SUFFIXES[kind]:
            sample = name if name.endswith(suffix) else f"{name}{suffix}"
            found[sample] = set(re.findall(r"`(\w+)`", labels)) | ({"le"} if suffix == "_bucket" else set())
    return found


def exported():
    """The samples that daemons have."""
    view = status(engines=(EngineView("suricata", "running"),), outbound=OutboundView("steered"))
    families = StatusCollector(view).collect()
    return {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES[family.type]}


def queries():
    yield from (rule["expr"] for rule in ALERTS)
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def selectors(query):
    """The metrics of a query, each with its matchers."""
    for name, matchers in re.findall(r"\b(sidestep_\w+|up)\b(?:\{([^}]*)\})?", query):
        yield name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers)


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_a_query_uses_metrics_and_labels_that_are_there(query):
    names = {name for name, _ in selectors(query)}
    assert names
    known = documented()
    for name in names - {"up"}:
        assert name in known, "docs/metrics.md does not have it"
        assert name in exported(), "daemons do not have it"
    labels = {label for name in names - {"up"} for label in known[name]} | TARGET
    used = {label for _, matchers in selectors(query) for label, _ in matchers}
    used |= {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.findall(r"\w+", group)}
    assert used <= labels


def test_words_in_matchers_are_those_of_the_code():
    seen = set()
    for query in queries():
        for _, matchers in selectors(query):
            for label, value in matchers:
                if label == "type":
                    assert set(value.split("|")) <= {each.value for each in ConditionType}
                if label == "outcome":
                    assert value in {"open", "closed"}
                if label == "le":
                    assert value == "0.1"
                if label == "job":
                    assert value == SERVICE["metadata"]["name"]
                seen.add(label)
    assert {"type", "outcome", "le", "job"} <= seen


def test_what_is_shown_of_an_alert_or_a_series_is_a_label_of_it():
    for rule in ALERTS:
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        [name] = {name for name, _ in selectors(rule["expr"])} if not grouped else {""}
        has = set(re.findall(r"\w+", grouped[0])) if grouped else documented().get(name, set()) | TARGET
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= has, rule["alert"]
    for panel in PANELS:
        for target in panel["targets"]:
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            has = set(re.findall(r"\w+", grouped[0])) if grouped else TARGET
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= has, panel["title"]


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names)
    for rule in ALERTS:
        assert rule["alert"].startswith("Sidestep")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["annotations"]["description"]
        for path in re.findall(r"docs/[\w-]+\.md", rule["annotations"]["description"]):
            assert (DEPLOY.parent / path).is_file()


def test_the_monitor_selects_the_service_and_the_service_the_daemons():
    labels = the("DaemonSet")["spec"]["template"]["metadata"]["labels"]
    [container] = the("DaemonSet")["spec"]["template"]["spec"]["containers"]
    [port], [endpoint] = SERVICE["spec"]["ports"], MONITOR["spec"]["endpoints"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= SERVICE["metadata"]["labels"].items()
    assert endpoint["port"] == port["name"]
    assert endpoint["honorLabels"] is True
    assert (port["targetPort"], port["port"]) == (container["ports"][0]["name"], container["ports"][0]["containerPort"])
    for version in releases.schemas():
        kubernetes_validate.validate(SERVICE, version, strict=True)


def test_panels_have_places_of_their_own_and_a_data_source_to_choose():
    taken = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}
