"""What MkDocs fills in while it builds: the settings from their schema, the commands from their parsers."""

from __future__ import annotations

import argparse
import html
import importlib
import re
from typing import Any

from jras_jax.commands.cli import COMMANDS
from jras_jax.config import describe


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the marks `<!-- settings -->` and `<!-- commands -->` of a page."""
    for mark, content in (("<!-- settings -->", settings), ("<!-- commands -->", commands)):
        if mark in markdown:
            markdown = markdown.replace(mark, content())
    return markdown


def settings() -> str:
    """Every setting, a section of the schema a heading; keys can be linked to: configuration.md#retrieval.top_k."""
    lines: list[str] = []
    section = None
    for s in describe():
        own = s.key.rpartition(".")[0] or "the run"
        if own != section:
            lines += ["", f"## {own}", ""]
            section = own
        facts = s.rule if s.type == "choice" else ", ".join(filter(None, (s.type, s.rule)))
        changes = "Never changes" if s.change == "never" else f"May change {s.change}"
        lines += [f'<a id="{s.key}"></a>`{s.key}` = `{s.default!r}`']
        lines += [f":   {_text(s.doc)}<br>*{_text(facts)}. {changes}.*", ""]
    return "\n".join(lines)


def _text(words: str) -> str:
    """Words as Markdown shows them unchanged."""
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", html.escape(words, quote=False))


def commands() -> str:
    """What `jras COMMAND --help` says of each command."""
    parts = []
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"jras_jax.commands.{name}")
        parser = argparse.ArgumentParser(
            prog=f"jras {name}",
            description=module.__doc__,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
            add_help=False,
        )
        module.add_arguments(parser)
        parts.append(f"### jras {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)
