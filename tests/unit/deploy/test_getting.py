"""The ways to get Sidestep (package metadata, kustomize base, Helm chart), without the tools that install them.

`tests/release` renders the chart, and `tests/e2e/test_kustomize.py` builds the base.
"""

import json
import re
import tomllib

import jsonschema
import yaml

from sidestep import __version__
from tests.unit.deploy.test_manifest import DEPLOY, the

CHART = DEPLOY / "chart"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_the_metadata_says_what_it_runs_on_and_what_it_is_about():
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    groups = {each.partition(" :: ")[0] for each in project["classifiers"]}
    assert {"Development Status", "Intended Audience", "Operating System", "Topic", "Typing"} <= groups
    assert project["keywords"] == sorted(project["keywords"])


def test_one_line_of_the_manifests_names_the_image():
    lines = [
        line
        for path in (DEPLOY / "daemonset.yaml", DEPLOY / "inspection.yaml")
        for line in re.findall(r"^ *image: .*", path.read_text(), re.MULTILINE)
    ]
    [container] = the("DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert [line.split() for line in lines] == [["image:", container["image"]]]


def test_the_base_consists_of_files_that_are_there():
    base = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert base["resources"] == ["daemonset.yaml"]
    assert (base["apiVersion"], base["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")


def test_the_chart_has_the_manifests_themselves():
    for name in ("daemonset.yaml", "inspection.yaml"):
        # Links in the repository; a copy of the sources may have files in their places.
        assert (CHART / "files" / name).read_bytes() == (DEPLOY / name).read_bytes()


def test_the_chart_has_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_values_are_those_of_the_manifest():
    pod = the("DaemonSet")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert VALUES["tolerations"] == pod["tolerations"]
    assert VALUES["nodeSelector"] == pod["nodeSelector"]
    assert VALUES["resources"] == container["resources"]
    assert VALUES["image"]["pullPolicy"] == container["imagePullPolicy"]
    assert f"{VALUES['image']['repository']}:{__version__}" == container["image"]


def test_the_schema_of_the_values_knows_each_of_them():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA, cls=jsonschema.Draft7Validator)
    assert set(SCHEMA["properties"]) == {*VALUES, "global"}
    for name in ("image", "inspection", "namespaces", "definitions"):
        assert set(SCHEMA["properties"][name]["properties"]) == set(VALUES[name])


def test_the_readme_of_the_chart_names_each_value():
    said = (CHART / "README.md").read_text()
    for name, value in VALUES.items():
        inner = value if name in {"image", "inspection", "namespaces", "definitions"} else [None]
        for each in inner:
            assert f"`{name}.{each}`" in said if each else f"`{name}`" in said
