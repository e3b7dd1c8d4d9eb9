"""Shows the doctest examples of docstrings as code on the API page; mkdocs.yml names this file."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> (?:.*\n?)(?:^(?! *$).*\n?)*", re.MULTILINE)


class FenceDoctests(griffe.Extension):
    """Puts each example, from its first prompt to the next blank line, into a code block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )
