"""What tests of pages read in them."""

from __future__ import annotations

import html.parser


class Reader(html.parser.HTMLParser):
    """Collects a page's words, headings and addresses, and checks that its tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.addresses, self.open, self.headings = "", [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.words += data
        if self.open[-1:] in (["h1"], ["h2"], ["summary"]):
            self.headings.append(data)
