"""The documentation as a site, after `make site`: complete, without rests of markup, loading nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

from tests.unit.deploy.test_manifest import DEPLOY

ROOT = DEPLOY.parent
SITE = ROOT / "build" / "site"
LOADING = {
    ("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"),
    ("audio", "src"), ("object", "data"), ("embed", "src"), ("use", "href"), ("form", "action"),
}  # fmt: skip
"""What a browser fetches by itself, or sends what is typed to."""
MARKUP = re.compile(r"^\s*[-*] \w|^\s*\|.*\||^\s*\d+\. \w|```|\]\(", re.MULTILINE)


class Reader(HTMLParser):
    """What a page loads, and its text without code."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.text, self.classes, self._code = [], [], set(), 0
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        self._code += tag in {"pre", "code", "script", "style"}
        for name, value in attrs:
            if (tag, name) in LOADING:
                self.loaded.append(value)
            if name == "class":
                self.classes |= set((value or "").split())

    def handle_endtag(self, tag):
        self._code -= tag in {"pre", "code", "script", "style"}

    def handle_data(self, data):
        self.text.append("x" if self._code else data)


PAGES = {page.name: Reader(page) for page in sorted(SITE.glob("*.html"))}


def test_every_document_is_a_page():
    wanted = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert wanted | {"index.html", "architecture.html", "changelog.html", "contributing.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_elsewhere(name):
    assert PAGES[name].loaded
    elsewhere = [each for each in PAGES[name].loaded if re.match(r"(\w+:)?//", each)]
    assert elsewhere == []
    # The theme's script would fetch what draws diagrams and counts stars.
    assert not PAGES[name].classes & {"mermaid", "md-source"}


def test_styles_load_nothing_from_elsewhere():
    for sheet in (SITE / "assets").rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//|@import", sheet.read_text()), sheet


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_left_of_the_markup(name):
    assert MARKUP.search("".join(PAGES[name].text)) is None


def test_a_link_that_leads_nowhere_stops_the_build():
    said = (DEPLOY / "site" / "mkdocs.yml").read_text()
    assert "\nstrict: true\n" in said
    for kind in ("unrecognized_links", "absolute_links", "anchors"):
        assert f"  {kind}: warn\n" in said
