"""HTML as text: elements whose contents are escaped."""

import base64
import html
from collections.abc import Iterable

VOID = frozenset({"img", "meta", "br", "path", "circle", "line", "rect"})
"""Elements without contents."""


class Html(str):
    """Markup, which is not escaped again."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Html:
    """An element; children that are not `Html` are escaped, and so are the values of attributes.

    Args:
      name: of the element.
      children: texts and elements.
      attributes: by name. An underscore stands for a hyphen, and one at the end is dropped, as in ``class_``. None
        leaves an attribute out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    shown = (f' {key}="{_escaped(str(value))}"' for key, value in given.items() if value is not None)
    start = f"<{name}{''.join(shown)}"
    return Html(f"{start}/>" if name in VOID else f"{start}>{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Html:
    """Texts and elements as one; texts are escaped."""
    return Html("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], **attributes: object) -> Html:
    """A table; the first cell of each row names it."""
    titles = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = (_row(row) for row in rows)
    return element("table", element("thead", titles), element("tbody", *body), **attributes)


def image(data: bytes, description: str, **attributes: object) -> Html:
    """A PNG as a part of the page.

    Args:
      description: of what it shows, for readers who do not see it.
    """
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return element("img", src=source, alt=description, **attributes)


def details(summary: str, *children: str) -> Html:
    """Contents that are shown on a click."""
    return element("details", element("summary", summary), *children)


def _row(cells: Iterable[str]) -> Html:
    name, *others = cells
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in others))


def _escaped(text: str) -> str:
    """A text without marks of HTML, and without characters that no page may contain."""
    allowed = "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )
    return html.escape(allowed)
