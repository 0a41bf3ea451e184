"""Man pages say what `--help` says, word for word, and leave nothing of it for roff to act upon."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sidestep.cli.main import COMMANDS, sidestep
from tests.unit.deploy.test_manifest import DEPLOY

NAMES = ["", *COMMANDS, "policy check", "policy except"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("man")
    command = [sys.executable, DEPLOY / "man-pages", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {path.stem: path.read_text() for path in folder.iterdir()}


def stem(name):
    return "-".join(["sidestep", *name.split()])


def parts(page):
    """The sections of a page as plain text without blanks."""
    text = re.sub(r"^\.(PP|TP|nf|fi)\n|^\.B ", "", page, flags=re.MULTILINE)
    plain = text.replace(r"\&", "").replace(r"\-", "-").replace(r"\(ga", "`").replace(r"\e", "\\")
    found = re.split(r"^\.SH (.*)\n", plain, flags=re.MULTILINE)
    return {title: squeezed(body) for title, body in zip(found[1::2], found[2::2], strict=True)}


def squeezed(text):
    return "".join(text.split())


def test_every_command_has_a_page(pages):
    assert set(pages) == {stem(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_words_of_the_help(pages, name):
    done = CliRunner().invoke(sidestep, [*name.split(), "--help"], prog_name="sidestep")
    assert done.exit_code == 0
    usage, options, *commands = re.split(r"^(?:Options|Commands):\n", done.output, flags=re.MULTILINE)
    found = parts(pages[stem(name)])
    assert squeezed(usage) == f"Usage:{found['SYNOPSIS']}{found['DESCRIPTION']}"
    assert squeezed(options) == found["OPTIONS"]
    assert squeezed("".join(commands)) == found.get("COMMANDS", "")


@pytest.mark.parametrize("name", NAMES)
def test_only_requests_of_the_generator_begin_a_line(pages, name):
    lines = pages[stem(name)].splitlines()
    requests = {line.split()[0] for line in lines if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".PP", ".TP", ".B", ".nf", ".fi"}
    assert not [line for line in lines if re.search(r"(?<!\\)\\(?![-&e]|\(ga|f[BR])", line)]
