"""`sidestep.yaml`: what it may say, what is wrong with it in one line, and its published schema."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sidestep.config.session_file import read_session_file, schema
from sidestep.model.errors import ConfigurationError

PUBLISHED = Path(__file__).parents[3] / "docs" / "sidestep.schema.json"
WHOLE = """
namespace: shop
intercepts:
- workload: deployment/orders
  port: 9443:https
  headers: [x-dev=ada]
  methods: [GET, POST]
  pathPrefix: [/api/]
  plaintext: true
  resetExisting: true
- {workload: carts, port: 8080}
wiretaps:
- {workload: svc/orders, port: 9000:https, name: tap, namespace: other, handlerCa: ca.pem}
handlers:
  orders: {command: [npm, run, dev], directory: orders, environment: {NODE_ENV: development}}
"""


def test_a_whole_file():
    found = read_session_file(WHOLE)
    workloads = [each.workload for each in (*found.intercepts, *found.wiretaps)]
    assert workloads == ["deployment/orders", "carts", "svc/orders"]
    assert (found.intercepts[0].port, found.intercepts[1].port) == ("9443:https", 8080)
    assert found.intercepts[0].reset_existing
    assert found.handlers["orders"].command == ("npm", "run", "dev")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 documents"),
        ("a: 1\n---\nb: 2", "has 2 documents"),
        ("namespace: shop", "has neither intercepts nor wiretaps"),
        ("intercepts: [{workload: a}]", "intercepts[0]"),
        ("intercepts: [{workload: a, port: 0}]", "intercepts[0].port: "),
        ("intercepts: [{workload: a, port: 1, prot: 2}]", "prot"),
        ("wiretaps: [{workload: a, port: 1, resetExisting: true}]", "resetExisting"),
        ("intercepts: [{workload: '', port: 1}]", "intercepts[0].workload: "),
        ("intercepts: [{workload: a, port: 1}]\nhandlers: {a: {command: []}}", "command: "),
        ("intercepts: [{workload: a, port: 1}]\nhandlers: {a: {command: run}}", "command: "),
        ("- a", "list"),
        ("intercepts: [", "line 2: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, said):
    with pytest.raises(ConfigurationError) as caught:
        read_session_file(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_schema_that_is_published_is_that_of_the_code():
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(schema()))


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (WHOLE, True),
        ("intercepts: [{workload: a, port: 1, prot: 2}]", False),
        ("intercepts: [{workload: a}]", False),
        ("intercepts: [{workload: a, port: 70000}]", False),
        ("handlers: {a: {command: []}}", False),
    ],
)
def test_the_schema_says_what_the_code_says(text, valid):
    found = jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))
    assert found.is_valid(yaml.safe_load(text)) is valid
