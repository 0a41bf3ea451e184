"""Hook of mkdocs: the documents of the repository's root become pages of the site, beside those of docs/.

Documents link to each other as the repository lays them out: `docs/tls.md` from the root, `../ARCHITECTURE.md` from
docs/. On the site all lie in one folder, so each link between documents is put right; a link to a file that is no page
is left as it is, which a strict build refuses. Lists may begin right below a paragraph, as they may on GitHub; mkdocs
wants an empty line there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "reporting.md",
}
"""The documents of the root, and what they are on the site. docs/security.md is another text than SECURITY.md."""

_ITEM = re.compile(r"[-*] |1\. ")
_LINK = re.compile(r"\]\((?P<path>[\w./-]+\.(?:md|svg|png))(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the root."""
    root = Path(config.docs_dir).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text()))
    return files


def with_lists(markdown: str) -> str:
    """The document with an empty line before each list."""
    lines: list[str] = []
    code = listed = False
    for line in markdown.split("\n"):
        code ^= line.lstrip().startswith("```")
        item = not code and _ITEM.match(line) is not None
        if item and not listed and lines and lines[-1].strip():
            lines.append("")
        listed = item or (listed and bool(line.strip()))
        lines.append(line)
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the links and the lists of one document right."""
    above = page.file.src_uri in PAGES.values()

    def right(found: re.Match[str]) -> str:
        path = found["path"]
        if above:
            path = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, path)
        elif path.startswith("../"):
            path = PAGES.get(path.removeprefix("../"), path)
        return f"]({path}{found['anchor'] or ''})"

    return with_lists(_LINK.sub(right, markdown))
