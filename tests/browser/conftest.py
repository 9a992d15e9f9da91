"""One Chromium, one JupyterLab and one server of the book for all tests of a run; every one of them ends with the run.

Chromium is the system's. It resolves no name, so that nothing outside 127.0.0.1 can be reached, and what was tried is seen.
"""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser.lab import jupyterlab

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = ("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")


def pytest_addoption(parser):
    parser.addoption("--screenshots", type=Path, help="where the pictures go instead of tests/browser/screenshots")
    parser.addoption("--book", type=Path, help="a built book to look at instead of book/_build/html")
    parser.addoption(
        "--installed", type=Path, help="commands of an environment with the wheel: tests/browser/test_installed.py"
    )


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser-test installs it")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(NAMES)}: make chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=OFFLINE, chromium_sandbox=False)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots(request):
    folder = request.config.getoption("screenshots", None) or Path(__file__).parent / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab on a copy of the course; depends on the browser, so that it does not start without one."""
    with jupyterlab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def book_folder(request):
    folder = request.config.getoption("book", None) or ROOT / "book" / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail(f"expected a built book in {folder}, found none: make book")
    return folder


@pytest.fixture(scope="session")
def served():
    """A folder -> the address under which it is served until the run ends."""
    servers = []

    def serve(folder):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)))
        Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def book(served, book_folder):
    """The address of the book."""
    return served(book_folder)


class Silent(SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/favicon.ico":  # asked for once a session, whatever the page
            return self.send_response(204) or self.end_headers()
        return super().do_GET()

    def log_message(self, *_):
        """A browser test has its own report."""
