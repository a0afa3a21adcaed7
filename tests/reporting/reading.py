"""Pages read with Python's parser of HTML: elements that are nested well, and what they contain."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {"img", "meta", "br", "path", "circle", "line", "rect"}


class Node:
    """An element: name, attributes, and children, which are nodes and texts."""

    def __init__(self, name, attributes):
        self.name, self.attributes, self.children = name, dict(attributes), []

    def all(self, name):
        """The elements of a name, below this one, in order."""
        found = [self] if self.name == name else []
        return found + [each for child in self.nodes for each in child.all(name)]

    def of_class(self, name):
        own = [self] if name in (self.attributes.get("class") or "").split() else []
        return own + [each for child in self.nodes for each in child.of_class(name)]

    @property
    def nodes(self):
        return [child for child in self.children if isinstance(child, Node)]

    @property
    def text(self):
        return "".join(child.text if isinstance(child, Node) else child for child in self.children)


class Reader(HTMLParser):
    """Raises `AssertionError` where an element ends that is not the innermost open one."""

    def __init__(self):
        super().__init__()
        self.open = [Node("", ())]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(text):
    """The root of a page; every element must be closed."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def rows(table):
    """The cells of a table as nodes, by the text of the row's first cell and of the column's head."""
    head = [cell.text for cell in table.all("thead")[0].all("th")]
    found = {}
    for row in table.all("tbody")[0].all("tr"):
        name, *cells = row.nodes
        found[name.text] = dict(zip(head[1:], cells, strict=True))
    return found


def numbers(cell):
    """The numbers of a cell in all digits."""
    return [float(data.attributes["value"]) for data in cell.all("data")]


def pictures(root):
    """The images of a page as bytes; each must decode."""
    found = []
    for image in root.all("img"):
        kind, comma, text = image.attributes["src"].partition("base64,")
        assert (kind, comma) == ("data:image/png;", "base64,")
        found.append(base64.b64decode(text, validate=True))
        Image.open(io.BytesIO(found[-1])).load()
    return found
