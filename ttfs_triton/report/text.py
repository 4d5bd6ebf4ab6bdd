"""Texts with links."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

ADDRESS = re.compile(r"(?:https?://|\b(?:github\.com|doi\.org|arxiv\.org)/)[\w./~%?&=#:+@-]*[\w/]")


def linked(text: str) -> Markup:
    """Text as HTML, escaped, in which web addresses are links."""
    parts, done = [], 0
    for found in ADDRESS.finditer(text):
        address = found.group()
        target = address if address.startswith("http") else f"https://{address}"
        parts += [
            escape(text[done : found.start()]),
            Markup('<a href="{}" rel="noopener">{}</a>').format(target, address),
        ]
        done = found.end()
    return Markup("").join([*parts, escape(text[done:])])
