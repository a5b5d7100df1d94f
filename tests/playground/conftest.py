"""The page in a headless browser, with a policy that needs no training; without npm or a browser its tests are skipped."""

import importlib.util
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.factory import make_policy, spec
from tests.playground.helpers import PAGE, TIMEOUT
from tests.playground.matching_policy import MatchingPolicy
from vla_mini.export.onnx import export
from vla_mini.parts import ActingDefaults


@pytest.fixture(scope="session")
def build():
    """The module docs/playground/build.py."""
    found = importlib.util.spec_from_file_location("playground_build", PAGE / "build.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def site(build, tmp_path_factory) -> Path:
    """A folder with the built page, whose policy is a MatchingPolicy, and an untrained one, sampling/, with all that can be."""
    try:
        build.fetch_onnxruntime(PAGE / "vendor")
    except ValueError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("playground")
    for path in PAGE.iterdir():
        if path.name != "policy":
            (folder / path.name).symlink_to(path)
    export(MatchingPolicy().eval(), folder / "policy")
    sampling = make_policy(action=spec("action", "flow") | {"num_steps": 2, "hidden": 32}, history=2)
    sampling.acting = ActingDefaults(execute=2, ensemble=0.1)
    export(sampling, folder / "sampling")
    return folder


@pytest.fixture
def serve():
    """serve(folder) -> the address of a static file server, which sends no further headers."""
    servers = []

    def start(folder: Path) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=folder)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def open_page(browser, serve):
    """open_page(folder) -> a browser's page; an error in its scripts fails the test."""
    errors = []
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)

    def start(folder: Path):
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(serve(folder))
        return page

    yield start
    context.close()
    assert errors == []
