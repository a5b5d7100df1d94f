"""A server in a thread of this process, and a page of it in a real browser."""

import threading
from contextlib import contextmanager

import pytest

from tests.play.colour_policy import ColourPolicy
from vla_mini.envs import make
from vla_mini.play.server import Play, listen, make_server
from vla_mini.play.session import SAVED, Session
from vla_mini.play.setup import collect_batch

TOY_PICK = "vla_mini/ToyPick-v0"
SCENE = 3  # a red star, a blue cube and a green cube: the colour alone says which


@pytest.fixture(scope="session")
def policy():
    return ColourPolicy()


def make_session(policy, **options):
    return Session(make(TOY_PICK), {SAVED: lambda: policy}, **{"seed": SCENE} | options)


def make_play(policy):
    return Play(lambda: make_session(policy), policy, lambda: collect_batch(policy, TOY_PICK))


@contextmanager
def serving(play):
    """The address of a server."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(play)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def address(policy):
    """A server of scene SCENE with the policy that follows instructions."""
    with serving(make_play(policy)) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page as it is opened. An error in one of its scripts fails the test."""
    errors = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://{address}/")
    yield page
    page.close()
    assert errors == []
