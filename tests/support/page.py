"""Read an HTML page as a browser would: what is open, what is written, what is fetched."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {"img", "br", "meta", "link", "hr"}


class Page(HTMLParser):
    """The text, tags, tables and pictures of a page; AssertionError for tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    @property
    def fetched(self) -> list[str]:
        """Every address that a browser would open."""
        names = ("src", "href", "srcset", "poster", "data", "action")
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names and value]

    def pictures(self) -> list[Image.Image]:
        urls = [attrs["src"] for tag, attrs in self.tags if tag == "img"]
        assert all(url.startswith("data:image/png;base64,") for url in urls)
        return [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in urls]
