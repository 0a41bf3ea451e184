"""Variables of a process as text that shells, Node.js, Docker and Compose read back."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from sidestep.cli import variables
from sidestep.cli.variables import chosen, for_a_command, on_a_terminal, parse, written

VALUES = {
    "PLAIN": "db.shop:5432",
    "EMPTY": "",
    "SPACES": "  two words ",
    "QUOTE": "it's",
    "DOUBLE": 'say "hi"',
    "BOTH": 'it\'s "so"',
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "QUOTED_DOLLAR": "it's $HOME",
    "BACKSLASH": "C:\\new\\",
    "EXPRESSION": r"^\d+ [\w#]$",
    "QUOTED_BACKSLASH": r"it's DOMAIN\User",
    "SHARE": r"\\files\orders",
    "SPACES_AND_BACKSLASH": "C:\\Program Files\\",
    "HASH": "a # b",
    "EQUALS": "a=b==",
    "LINES": "one\ntwo\n",
    "TAB": "a\tb",
    "UNICODE": "grüße 日本",
    "PASSWORD": "p'a\"s\\s$w`o!rd #1",
}
BYTES = {name.encode(): value.encode() for name, value in VALUES.items()}


def test_what_proc_has():
    content = b"A=1\0B=two=2\0\0=x\0nothing\0A=2\0C=\0"
    assert parse(content) == {b"A": b"1", b"B": b"two=2", b"C": b""}
    assert parse(b"") == parse(b"\0") == {}


def test_globs():
    found = {b"DB_HOST": b"1", b"DB_PASSWORD": b"2", b"PATH": b"3", b"\xff": b"4"}
    assert chosen(found, (), ()) == found
    assert chosen(found, ("DB_*",), ()) == {b"DB_HOST": b"1", b"DB_PASSWORD": b"2"}
    assert chosen(found, ("DB_*", "PATH"), ("*PASS*",)) == {b"DB_HOST": b"1", b"PATH": b"3"}
    assert chosen(found, ("db_*",), ()) == {}


def test_a_command_keeps_what_is_about_its_machine_unless_it_is_named():
    found = dict.fromkeys((b"PATH", b"LD_PRELOAD", b"HOME", b"DB_HOST", b"PATHS"), b"x")
    assert set(for_a_command(found, ())) == {b"DB_HOST", b"PATHS"}
    assert set(for_a_command(found, ("*", "LD_*"))) == {b"DB_HOST", b"PATHS"}
    assert set(for_a_command(found, ("PATH", "DB_*"))) == {b"PATH", b"DB_HOST", b"PATHS"}


def test_json():
    text, left_out = written({**BYTES, b"odd-name": b"1"}, "json")
    assert json.loads(text) == {**VALUES, "odd-name": "1"}
    assert left_out == ()


def test_a_shell_reads_it_back(tmp_path):
    text, left_out = written(BYTES, "shell")
    script = tmp_path / "variables.sh"
    script.write_text(text)
    for shell in ("dash", "bash"):
        program = shutil.which(shell)
        assert program is not None
        done = subprocess.run(
            [program, "-c", '. "$0"; exec env -0', script], env={}, capture_output=True, check=True, timeout=20
        )
        found = {name.decode(): value.decode() for name, value in parse(done.stdout).items()}
        assert VALUES.items() <= found.items()
    assert left_out == ()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js here; others read the same rules below")
def test_node_reads_all_but_what_needs_escapes(tmp_path):
    text, _ = written(BYTES, "dotenv")
    path = tmp_path / "variables.env"
    path.write_text(text)
    script = (
        "const {parseEnv} = require('node:util');"
        "if (!parseEnv) process.exit(9);"
        "console.log(JSON.stringify(parseEnv(require('node:fs').readFileSync(process.argv[1], 'utf8'))))"
    )
    done = subprocess.run(
        ["node", "-e", script, str(path)], capture_output=True, text=True, check=False, timeout=60, env={**os.environ}
    )
    if done.returncode == 9:
        return  # older than 20.12
    assert done.returncode == 0, done.stderr
    escaped = {"BOTH", "QUOTED_DOLLAR", "SPACES_AND_BACKSLASH", "PASSWORD"}
    found = json.loads(done.stdout)
    assert {name: found[name] for name in VALUES if name not in escaped} == {
        name: value for name, value in VALUES.items() if name not in escaped
    }


def test_dotenv_as_python_dotenv_reads_it():
    """Its rules (python-dotenv, parser.py): single quotes know escapes of both, double quotes more of them."""
    text, left_out = written({**BYTES, b"CARRIAGE": b"a\r\nb", b"odd-name": b"1"}, "dotenv")
    assert left_out == ("CARRIAGE", "odd-name")
    found = {}
    pattern = re.compile(r"(\w+)=(?:'((?:\\.|[^'\\])*)'|\"([^\"$`\n]*)\"|([^'\"\n]*))\n", re.DOTALL)
    end = 0
    for match in pattern.finditer(text):
        assert match.start() == end, text[end : match.start()]
        end = match.end()
        name, single, double, bare = match.groups()
        assert not re.search(r"\\[\\'\"abfnrtv]", double or "")
        found[name] = re.sub(r"\\([\\'])", r"\1", single) if single is not None else double or bare or ""
    assert end == len(text)
    assert found == VALUES


def test_docker_has_lines_as_they_are():
    text, left_out = written(BYTES, "docker")
    assert left_out == ("LINES",)
    assert dict(line.split("=", 1) for line in text.splitlines()) == {
        name: value for name, value in VALUES.items() if name != "LINES"
    }


def test_compose_is_yaml_that_expands_nothing():
    text, _ = written(BYTES, "compose")
    read = yaml.safe_load(text)["environment"]
    assert re.search(r"(?<!\$)\$(?!\$)", text.replace("$$", "")) is None
    assert {name: value.replace("$$", "$") for name, value in read.items()} == VALUES
    assert yaml.safe_load(written({}, "compose")[0]) == {"environment": {}}


@pytest.mark.parametrize("syntax", variables.SYNTAXES)
def test_what_is_no_text_is_left_out_and_named(syntax):
    text, left_out = written({b"BINARY": b"\xff\xfe", b"\xff": b"x", b"A": b"1"}, syntax)
    assert "BINARY" in left_out
    assert len(left_out) == 2
    assert "A" in text


def test_a_terminal_is_shown_what_it_would_obey_as_escapes():
    text, _ = written({b"A": b"x\x1b[2Jy\nnext\ttab \xc2\x9b1m", b"B": b"plain"}, "dotenv")
    assert on_a_terminal(text) == "A='x\\x1b[2Jy\nnext\\ttab \\x9b1m'\nB=plain\n"
    long = "C=" + "c" * 10_000 + "\n"
    assert on_a_terminal(long) == long
