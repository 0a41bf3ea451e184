"""Views once, or again when they have changed; and as YAML and names."""

import pytest
import yaml

from sidestep.cli import viewing
from sidestep.cli.viewing import name_lines, show, yaml_lines
from sidestep.model.pod import Pod, PodKey, common_labels
from sidestep.tunnel.views import PortView, WorkloadView

PORT = PortView(8443, "tcp", "https", "always", "probe", "port name https")
VIEW = WorkloadView("shop", "deployment", "or\x1bders", ("orders-1",), (PORT,), sessions=("intercept/a",))


def test_a_view_is_watched_until_ctrl_c_and_printed_when_it_changes(monkeypatch, capsys):
    monkeypatch.setattr(viewing, "EVERY", 0.0)
    seen = iter([1, 1, 2, 2, 1])

    def look():
        try:
            number = next(seen)
        except StopIteration:
            raise KeyboardInterrupt from None
        return number, [f"number {number}"]

    show(look, watch=True)
    assert capsys.readouterr().out == "number 1\n\nnumber 2\n\nnumber 1\n"


def test_a_view_that_is_not_watched_is_looked_at_once(capsys):
    looks = []
    show(lambda: (looks.append(1), ["a line"]), watch=False)
    assert (len(looks), capsys.readouterr().out) == (1, "a line\n")
    with pytest.raises(KeyboardInterrupt):
        show(lambda: (_ for _ in ()).throw(KeyboardInterrupt), watch=False)


def test_yaml_has_every_field_and_no_control_character():
    text = "\n".join(yaml_lines([VIEW]))
    [read] = yaml.safe_load(text)
    assert read["name"] == "or\x1bders"
    assert read["ports"][0]["number"] == 8443
    assert read["sessions"] == ["intercept/a"]
    assert "\x1b" not in text


def test_names_are_one_on_a_line():
    assert name_lines([("deployment", "orders"), ("pod", "a\nb")]) == ["deployment/orders", "pod/a\\nb"]


@pytest.mark.parametrize(
    ("labels", "common"),
    [
        ([], {}),
        ([{"a": "1", "b": "2"}], {"a": "1", "b": "2"}),
        ([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}], {"a": "1"}),
    ],
)
def test_the_labels_of_a_workload_are_those_that_all_its_pods_have(labels, common):
    pods = [Pod(PodKey("shop", f"p{index}"), uid=str(index), labels=each) for index, each in enumerate(labels)]
    assert common_labels(pods) == common
