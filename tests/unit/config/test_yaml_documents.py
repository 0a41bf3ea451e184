import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config.yaml_documents import (
    MAX_DEPTH,
    MAX_DOCUMENTS,
    MAX_TEXT,
    MAX_WEIGHT,
    LineIndex,
    YamlError,
    load,
    split,
)


def load_all(text):
    return [load(document) for document in split(text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        ("a: b", {"a": "b"}),
        ("[1, -2, +3, 0]", [1, -2, 3, 0]),
        ("[0755, 0o17, 0x1F]", [493, 15, 31]),
        ("[1.5, -.5, 1e3, 1.]", [1.5, -0.5, 1000.0, 1.0]),
        ("[true, False, YES, no, on, Off]", [True, False, True, False, True, False]),
        ("[null, ~, Null, ]", [None, None, None]),
        ("a:", {"a": None}),
        ("""["1", '2', "true", 'null', ""]""", ["1", "2", "true", "null", ""]),
        ("[2024-01-01, 12:30, 1_000, 0b1, .inf, 08]", ["2024-01-01", "12:30", "1_000", "0b1", ".inf", "08"]),
        ("1" * 30, "1" * 30),
        ("80: a\ntrue: b\nnull: c", {"80": "a", "true": "b", "null": "c"}),
        ("a: !!str 1\nb: !!int 2\nc: ! 3\nd: !!bool yes", {"a": "1", "b": 2, "c": "3", "d": True}),
        ("a: |\n  x\n   y\nb: >\n  x\n  y\n", {"a": "x\n y\n", "b": "x y\n"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x 1\nb: *x\nc: &y {k: *x}\nd: *y", {"a": 1, "b": 1, "c": {"k": 1}, "d": {"k": 1}}),
        ("base: &b {x: 1, y: 2}\nd: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "d": {"y": 3, "x": 1}}),
        ("- &a {x: 1}\n- &b {x: 2, z: 3}\n- <<: [*a, *b]", [{"x": 1}, {"x": 2, "z": 3}, {"x": 1, "z": 3}]),
        ('{"<<": 1}', {"<<": 1}),
        ('{"json": [true, null, 1.5, "x"]}', {"json": [True, None, 1.5, "x"]}),
    ],
)
def test_values(text, value):
    assert load_all(text) == [value]


def test_documents_are_separate_and_numbered_by_what_they_hold():
    text = "\ufeff# intro\n---\n---\na: 1\n--- # two\nb: 2\n---\n# nothing\n...\n"
    text += "--- {c: 3}\n---\n%YAML 1.1\n---\nd: 4\n...\n"
    documents = list(split(text))
    assert [load(each) for each in documents] == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]
    assert [each.number for each in documents] == [1, 2, 3, 4]
    assert [each.line for each in documents] == [3, 5, 10, 13]


def test_windows_line_ends():
    assert load_all("a: 1\r\n---\r\n# x\r\n---\r\nb: |\r\n  x\r\n") == [{"a": 1}, {"b": "x\n"}]


def test_dashes_that_separate_nothing():
    assert load_all("a: |\n  ---\n  x\n") == [{"a": "---\nx\n"}]
    assert load_all("---a: 1\n") == [{"---a": 1}]


def test_a_broken_document_costs_itself_only():
    documents = list(split("a: 1\n---\nb: ]\n---\nc: 3\n"))
    assert load(documents[0]) == {"a": 1}
    with pytest.raises(YamlError) as caught:
        load(documents[1])
    assert caught.value.line == 3
    assert load(documents[2]) == {"c": 3}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: ]\n", 2, "did not find expected"),
        ("a: 1\n\tb: 2\n", 2, "found a tab character"),
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' stands twice"),
        ("a: 1\n'a': 3\n", 2, "key 'a' stands twice"),
        ("a:\n- b\n- *x\n", 3, "alias *x stands for nothing"),
        ("a: &x\n  b: *x\n", 2, "alias *x stands for nothing"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "is not possible here"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "tag 'tag:yaml.org,2002:python/name:os.system' is not possible"),
        ("a: !mine {}\n", 1, "tag '!mine' is not possible"),
        ("a: !!binary aGk=\n", 1, "is not possible"),
        ("a: !!int x\n", 1, "is not possible"),
        ("a: !mine x\n", 1, "tag '!mine' is not possible"),
        ("? [a]\n: 1\n", 1, "a key must be a text"),
        ("? {a: 1}\n: 1\n", 1, "a key must be a text"),
        ("- &x [1]\n- *x : 2\n", 2, "a key must be a text"),
        ("a: {<<: 1}\n", 1, "a merge key takes a mapping"),
        ("a: {<<: [1]}\n", 1, "a merge key takes a mapping"),
        ("a: 1\nb: \x07\n", 2, "characters that YAML does not allow"),
        ("a: 1\nb: \udcff\n", 2, "characters that YAML does not allow"),
        ("a: 1\n...\nb: 2\n", 3, ""),
    ],
)
def test_bad_documents(text, line, reason):
    with pytest.raises(YamlError) as caught:
        load_all(text)
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert str(caught.value).isprintable()


def test_lines_of_values():
    text = "x: 1\n---\nspec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: 1\n"
    text += "    - name: b\n      containerPort: 2\n"
    index = LineIndex(list(split(text))[1])
    assert index.of("") == 3
    assert index.of("spec") == 3
    assert index.of("spec.containers[0]") == 5
    assert index.of("spec.containers[0].ports[1]") == 8
    assert index.of("spec.containers[0].ports[1].containerPort") == 9
    assert index.of("spec.containers[0].ports[1].missing.deep[3]") == 8
    assert index.of("nothing.of.this") == 3


# --- hostile input --------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGE_BOMB = "m0: &m0 {k: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
LONG_BOMB = "s: &s " + "x" * 500_000 + "\n" + "".join(f"k{n}: *s\n" for n in range(10_000))


def rep(text):
    return text * (MAX_TEXT // len(text))


HOSTILE = {
    "bomb": BOMB,
    "merge bomb": MERGE_BOMB,
    "long text aliased": LONG_BOMB,
    "open brackets": rep("["),
    "open braces": rep("{"),
    "sequences on one line": rep("- "),
    "deep mappings": "".join(" " * n + "a:\n" for n in range(1400)),
    "mappings in sequences": rep("[{a: "),
    "explicit keys": rep("? "),
    "anchors": rep("&a "),
    "many anchors": "".join(f"- &a{n} x\n" for n in range(60_000)),
    "tags": rep("!"),
    "verbatim tag": "!<" + rep("a"),
    "aliases": rep("*a "),
    "items": "[" + rep("a,"),
    "pairs": "[" + rep("a: b,"),
    "keys": "".join(f"k{n}: x\n" for n in range(90_000)),
    "open quote": '"' + rep("\n"),
    "escapes": '"' + rep("\\n"),
    "comments": rep("#\r\n") + "x: [",
    "directives": rep("%TAG !a! b\n"),
    "separators": rep("---\n"),
    "documents": rep("--- a\n"),
    "blanks": rep(" "),
    "digits": rep("1"),
    "floats": rep("1") + ".5e9",
    "nul": rep("\0"),
    "folded": ">\n" + rep(" a\n\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_quick_and_ends_in_a_value_or_the_documented_error(name):
    text = HOSTILE[name]
    begin = time.process_time()
    told = ""
    try:
        load_all(text)
    except YamlError as error:
        told = str(error)
    assert told.isprintable()
    # 1 MiB takes 0.5 s at worst; without the bounds several of these take minutes or all memory.
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("name", ["bomb", "merge bomb", "long text aliased", "items", "keys"])
def test_weight_is_bounded(name):
    with pytest.raises(YamlError, match=f"more than {MAX_WEIGHT} values"):
        load_all(HOSTILE[name])


@pytest.mark.parametrize("name", ["open brackets", "sequences on one line", "deep mappings", "mappings in sequences"])
def test_depth_is_bounded(name):
    with pytest.raises(YamlError, match=f"nested more than {MAX_DEPTH} deep"):
        load_all(HOSTILE[name])


def test_depth_up_to_the_bound_is_read():
    value = load_all("[" * MAX_DEPTH + "]" * MAX_DEPTH)[0]
    for _ in range(MAX_DEPTH - 1):
        (value,) = value
    assert value == []


def test_number_of_documents_is_bounded():
    assert len(load_all("--- a\n" * MAX_DOCUMENTS)) == MAX_DOCUMENTS
    with pytest.raises(YamlError, match="more than 1000 documents"):
        load_all("--- a\n" * (MAX_DOCUMENTS + 1))


# PyYAML writes these line breaks so that nobody reads them back.
_TEXTS = st.text(st.characters(exclude_characters="\x85\u2028\u2029", codec="utf-8"), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | _TEXTS
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4))


@given(_VALUES)
def test_what_pyyaml_writes_is_read_back(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    assert load_all("---\n" + text) == ([value] if value is not None or "null" in text else [])


@given(st.text(alphabet="ab:- \n\t[]{}#&*!|>'\"%?,<~01.e---", max_size=60))
def test_only_the_documented_error(text):
    line = 1
    try:
        load_all(text)
    except YamlError as error:
        line = error.line
    assert 1 <= line <= text.count("\n") + 2
