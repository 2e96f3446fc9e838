"""What the tests in a real browser share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import FLAGS, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*given: object, **options: object) -> Server:
        servers.append(Server(*given, **options))  # pyright: ignore
        return servers[-1]

    yield start
    for started in servers:
        started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "there is no chromium: make test-browser installs it"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages, none of which may complain, show a dialog or ask another host."""
    wrong: list[str] = []
    contexts = []

    def watch(page: Page, address: str) -> None:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: None if asked.url.startswith(address) else wrong.append(asked.url))

    def opened(server: Server, path: str = "/", **options: object) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}))  # pyright: ignore
        page = contexts[-1].new_page()
        watch(page, server.address)
        page.goto(server.address + path)
        return page

    opened.wrong = wrong  # pyright: ignore[reportFunctionMemberAccess]
    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
