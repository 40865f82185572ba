"""Reads this project's docstrings for the reference: its section titles, and the comments that document constants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

#: `Source:` at the end of a docstring, with the lines that continue it.
_SOURCE = re.compile(r"^Source: (.*(?:\n(?!\n).*)*)", re.MULTILINE)
#: "low, high: ..." in a section: arguments or fields that are described together.
_TOGETHER = re.compile(r"^    \w+(?:, \w+)+(?=: )", re.MULTILINE)
#: A name in backticks, alone.
_NAME = re.compile(r"(?<![`\w])`(pj\.[\w.]+|\w+)`(?![`\w])")


class Docstrings(griffe.Extension):
    """What griffe's parser of Google-style docstrings does not know by itself."""

    def __init__(self) -> None:
        pages = Path(__file__).parent.glob("reference/*.md")
        shown = re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in pages), re.MULTILINE)
        self._public = {re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in shown}

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """A function that hides its module, such as `pj.models.flow`, is found under the module's name too."""
        for module in _modules(pkg):
            own = module.members.get(module.name)
            if isinstance(own, griffe.Function):
                own.aliases[module.path] = own  # type: ignore[assignment]

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a function, class, attribute or module, before it is parsed."""
        if isinstance(obj, griffe.Attribute) and obj.docstring is None:
            comment = _comment(obj)
            if comment:
                obj.docstring = griffe.Docstring(comment, parent=obj, lineno=obj.lineno)
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            # No-break spaces hold several names in one entry.
            text = _TOGETHER.sub(lambda found: found[0].replace(", ", ",\u00a0"), text)
            text = _SOURCE.sub(lambda found: f"*Source:* {' '.join(found[1].split())}", text)
            lines = (line if line.lstrip().startswith(">>>") else self._linked(line, obj) for line in text.split("\n"))
            obj.docstring.value = "\n".join(lines)

    def _linked(self, line: str, obj: griffe.Object) -> str:
        """Public names in backticks as links: `pj.density.large_pool` anywhere, `large_pool` in its own package."""
        package = ".".join(obj.path.split(".")[:2])

        def link(found: re.Match[str]) -> str:
            name = found[1]
            full = f"plural_jax.{name[3:]}" if name.startswith("pj.") else f"{package}.{name}"
            return f"[{found[0]}][{full}]" if full in self._public and name != obj.name else found[0]

        return _NAME.sub(link, line)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """A module and all below it."""
    yield module
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield from _modules(member)


def _comment(obj: griffe.Attribute) -> str:
    """The `#:` comment above an assignment, or the one behind it."""
    if obj.lineno is None or not isinstance(obj.module, griffe.Module):
        return ""
    try:
        lines = obj.module.source.splitlines()
    except (ValueError, griffe.BuiltinModuleError):
        return ""
    above: list[str] = []
    for line in reversed(lines[: obj.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        above.insert(0, line.strip().removeprefix("#:").strip())
    if not above and "#:" in lines[obj.lineno - 1]:
        above = [lines[obj.lineno - 1].split("#:", 1)[1].strip()]
    return " ".join(above)
