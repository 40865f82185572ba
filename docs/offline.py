"""Built pages load nothing from a network: the theme's one remote script is replaced by ours, and the rest is checked."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

#: Warnings of this logger fail `mkdocs build --strict`.
_log = logging.getLogger("mkdocs.hooks.offline")
#: What the theme loads so that search works on pages opened as files, and our own script for it.
_SHIM, _OWN = "https://unpkg.com/iframe-worker/shim", "worker.js"
_REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)
#: Relations of a `<link>` that load nothing.
_LOAD_NOTHING = {"canonical", "prev", "next", "alternate", "author", "license"}


class _Resources(HTMLParser):
    """Collects the addresses that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        named = {name: value or "" for name, value in attrs}
        found = [named[name] for name in ("src", "srcset", "poster", "data") if name in named]
        if tag == "link" and not set(named.get("rel", "").split()) & _LOAD_NOTHING:
            found.append(named.get("href", ""))
        found += _IN_CSS.findall(named.get("style", ""))
        self.remote += [address for address in found if _REMOTE.match(address)]


def remote_resources(folder: Path) -> list[str]:
    """What the pages and style sheets of a folder load from elsewhere, as `file: address`."""
    found = []
    for path in sorted(folder.rglob("*.html")):
        parser = _Resources()
        parser.feed(path.read_text())
        found += [f"{path.relative_to(folder)}: {address}" for address in parser.remote]
    for path in sorted(folder.rglob("*.css")):
        found += [f"{path.relative_to(folder)}: {address}" for address in _IN_CSS.findall(path.read_text())]
    return found


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Called by MkDocs after the build."""
    folder = Path(config["site_dir"])
    for path in folder.rglob("*.html"):
        page = path.read_text()
        if _SHIM in page:
            up = "../" * (len(path.relative_to(folder).parts) - 1)
            path.write_text(page.replace(_SHIM, up + _OWN))
    for line in remote_resources(folder):
        _log.warning("loaded from a network: %s", line)
