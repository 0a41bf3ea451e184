"""docs/ide.md: its commands are understood, and what VS Code waits for is what an intercept prints."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from sidestep.cli.command import SESSION_NAME
from sidestep.cli.main import sidestep
from sidestep.cli.session_choice import Wanted, parse_session

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "ide.md").read_text()
TASKS, LAUNCH = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
LINES = re.findall(r"^sidestep (.*)$", TEXT, re.MULTILINE)
SCRIPTS = re.findall(r'SCRIPT_TEXT" value="sidestep ([^"]*)"', TEXT)
COMMANDS = [
    *(shlex.split(each) for each in (*LINES, *SCRIPTS)),
    *([word.replace("${env:USER}", "ada") for word in task["args"]] for task in TASKS["tasks"]),
]
SESSION = re.findall(
    r"^(?:Pod|Intercept) shop/\S+ is .*$",
    (ROOT / "README.md").read_text().partition("## A session")[2].partition("## ")[0],
    re.MULTILINE,
)
"""What an intercept printed, as the README shows it."""


def test_there_are_commands_of_every_recipe():
    assert (len(LINES), len(SCRIPTS), len(TASKS["tasks"])) == (4, 1, 2)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_understood(words):
    name, *rest = words
    command = sidestep.get_command(None, name)
    above = click.Context(sidestep, info_name="sidestep", **sidestep.context_settings)
    context = command.make_context(name, rest, parent=above)
    assert context.params.get("workload") == "orders" or context.params.get("name") == "intercept/orders-ada"


def test_the_task_that_leaves_ends_the_intercept_of_the_other_one_and_nobody_elses():
    begin, end = (task["args"] for task in TASKS["tasks"])
    name = begin[begin.index("--name") + 1]
    assert parse_session(end[1]) == Wanted(name, "intercept")
    assert name.endswith("${env:USER}")
    with pytest.raises(click.BadParameter):
        SESSION_NAME.convert(name.replace("${env:USER}", ""), None, None)


def test_vs_code_waits_for_what_is_printed():
    [background] = [task["problemMatcher"] for task in TASKS["tasks"] if task.get("isBackground")]
    begins, ends = (background["background"][name] for name in ("beginsPattern", "endsPattern"))
    told = [("ends" if re.search(ends, line) else "begins" if re.search(begins, line) else line) for line in SESSION]
    assert told == ["begins", "ends", "begins", "begins", "ends"]
    failure = re.search(background["pattern"]["regexp"], "sidestep: no daemon answers")
    assert failure[background["pattern"]["message"]] == "no daemon answers"


def test_the_debugger_starts_and_ends_the_tasks_that_there_are():
    [configuration] = LAUNCH["configurations"]
    assert {configuration["preLaunchTask"], configuration["postDebugTask"]} == {
        task["label"] for task in TASKS["tasks"]
    }
