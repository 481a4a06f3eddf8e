"""MkDocs hook: links to files outside docs/ lead to the repository; README.md and CONTRIBUTING.md become pages."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(\.\./([^)\s]+)\)")
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}  # -> files beside docs/


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page's text with links that work on the site; one to a file that is missing is left as it is."""
    if beside := PAGES.get(page.file.src_uri):
        text = (ROOT / beside).read_text(encoding="utf-8")
        markdown = re.sub(r"\]\((?!https?:|#)", "](../", text).replace("](../docs/", "](")

    def to_repository(link: re.Match[str]) -> str:
        file = link[1].partition("#")[0]
        return f"]({config.extra['repository']}/blob/main/{link[1]})" if (ROOT / file).exists() else link[0]

    return LINK.sub(to_repository, markdown)
