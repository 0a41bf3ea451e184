"""Renders a chart with Helm's own SDK: python tests/release/render_charts.py CHART <REQUESTS >ANSWERS

Runs in the environment of deploy/helm.lock, which holds nothing of Sidestep. REQUESTS is a JSON list of objects with
`values` and `namespace`. ANSWERS is an object: `answers` has one object with `text` or `error` for each request, in the
same order, `problems` what `helm lint` finds, and `helm` the version.
"""

import json
import sys

import helm_python


def rendered(chart, request):
    try:
        chart.validate_schema(request["values"])
        texts = chart.render(request["values"], name="sidestep", namespace=request["namespace"])
    except helm_python.HelmError as error:
        return {"error": str(error)}
    return {"text": "\n---\n".join(text for name, text in texts.items() if name.endswith(".yaml"))}


def main(path):
    with helm_python.Chart.load(path) as chart:
        answers = [rendered(chart, request) for request in json.load(sys.stdin)]
    found = helm_python.lint(path, strict=True, namespace="sidestep")
    problems = [each for each in found["messages"] if each["severity"] > 1] + found["errors"]
    json.dump({"helm": helm_python.helm_sdk_version(), "problems": problems, "answers": answers}, sys.stdout)


main(sys.argv[1])
