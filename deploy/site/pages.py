"""Hook of mkdocs: the documents of the repository's root become pages of the site, beside those of docs/.

Documents link to each other as the repository lays them out: `docs/tls.md` from the root, `../ARCHITECTURE.md` from
docs/. On the site all lie in one folder, so each link between documents is put right; a link to a file that is no page
is left as it is, which a strict build refuses.
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

_LINK = re.compile(r"\]\((?P<path>[\w./-]+\.(?:md|svg|png))(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the root."""
    root = Path(config.docs_dir).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the links of one document right."""
    above = page.file.src_uri in PAGES.values()

    def right(found: re.Match[str]) -> str:
        path = found["path"]
        if above:
            path = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, path)
        elif path.startswith("../"):
            path = PAGES.get(path.removeprefix("../"), path)
        return f"]({path}{found['anchor'] or ''})"

    return _LINK.sub(right, markdown)
