"""The page's server: what visitors get, that each has a scene of its own, what is refused, and scripts/play.py."""

import gc
import json
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.factory import ROOT, command, make_policy
from tests.play.conftest import make_play
from vla_mini.play.server import MAX_MESSAGE, STATIC, Play, application
from vla_mini.play.session import Session
from vla_mini.types import Batch


@pytest.fixture
def client(policy):
    with TestClient(application(make_play(policy))) as client:
        yield client


def ask(visitor, what, *given):
    visitor.send_text(json.dumps({"do": what, "with": given}))
    return json.loads(visitor.receive_text())


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/").text
    assert 'role="tabpanel"' in page and [f'id="{name}"' in page for name in ("play", "backward", "learning")] == [True] * 3
    for path in STATIC.iterdir():
        response = client.get(f"/static/{path.name}")
        assert response.status_code == 200 and not re.search(
            r"(src|href|from|url|import|fetch)\W{1,3}(https?:)?//", response.text
        )


def test_a_visitor_sees_the_first_step_and_then_what_it_asks_for(client):
    with client.websocket_connect("/ws") as visitor:
        first = json.loads(visitor.receive_text())
        assert first["about"]["expert"] and first["about"]["policies"] == ["saved policy"] and first["step"] == 0
        assert first["images"][0]["width"] == 64 and first["attention"]["largest"] > 0
        view = ask(visitor, "step")
        assert view["step"] == 1 and [row["name"] for row in view["action"]] == ["dx", "dy", "dz", "close"]
        assert ask(visitor, "expert", True)["action"][0]["other"] is not None
        assert ask(visitor, "reset", 7)["seed"] == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "Expecting value"),
        ("[]", "a request is do, one of reset, step"),
        ('{"do": "close", "with": []}', "a request is do"),
        ('{"do": "step"}', "and with, a list"),
        ('{"do": "step", "with": [1]}', "positional argument"),
        ('{"do": "go", "with": ["three"]}', "There is no step three"),
        ('{"do": "go", "with": [0.5]}', "There is no step 0.5"),
        ('{"do": "say", "with": ["\\ud800"]}', "surrogates not allowed"),
        pytest.param("[" * 100_000, "RecursionError", id="nested"),
        ('{"do": "go", "with": [9]}', "There is no step 9: the steps so far are 0 to 0."),
        ('{"do": "say", "with": [7]}', "is no instruction"),
        ('{"do": "reset", "with": [-1]}', "scene -1: give a whole number from 0 to 2147483647"),
        ('{"do": "reset", "with": [1.5]}', "scene 1.5"),
        ('{"do": "change", "with": ["paint", 1]}', "paint"),
        ('{"do": "policy", "with": ["best"]}', "There is no policy 'best'"),
    ],
)
def test_a_request_that_cannot_be_is_answered_by_a_line_and_the_scene_stays(client, text, says):
    with client.websocket_connect("/ws") as visitor:
        first = json.loads(visitor.receive_text())
        visitor.send_text(text)
        answer = json.loads(visitor.receive_text())
        assert set(answer) == {"error"} and says in answer["error"] and "\n" not in answer["error"]
        again = ask(visitor, "go", 0)
        assert again["images"] == first["images"] and again["words"] == first["words"]


def test_ten_thousand_characters_are_read_as_far_as_the_policy_reads(client):
    with client.websocket_connect("/ws") as visitor:
        visitor.receive_text()
        view = ask(visitor, "say", "pick up the red star " * 500)
        assert len(view["instruction"]) == 10_500 and len(view["words"]) == 32
        assert view["notes"] == ["The policy reads only the first 32 tokens of these words."]


def test_two_visitors_have_a_scene_each(client):
    with client.websocket_connect("/ws") as one, client.websocket_connect("/ws") as other:
        first = json.loads(one.receive_text())
        assert json.loads(other.receive_text())["images"] == first["images"]
        ask(other, "reset", 8)
        ask(other, "say", "any ball")
        assert ask(one, "step")["seed"] == first["seed"] and ask(one, "go", 0)["images"] == first["images"]
        assert ask(other, "go", 0)["instruction"] == "any ball"


def test_a_closed_tab_leaves_nothing_behind(policy):
    closed = []

    class Watched(Session):
        def close(self):
            super().close()
            closed.append(self.seed)

    play = make_play(policy)
    make = play.make_session

    def watched():
        session = make()
        session.__class__ = Watched
        return session

    play.make_session = watched
    with TestClient(application(play)) as client:
        for _ in range(3):
            with client.websocket_connect("/ws") as visitor:
                visitor.receive_text()
                assert len(play.sessions) == 1
            wait_until(lambda: (gc.collect(), not play.sessions)[1])
    assert len(closed) == 3


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_visitor_is_told_why_there_is_no_scene(policy):
    def broken():
        raise ValueError("the package metaworld is missing: pip install 'vla-mini[metaworld]'")

    with TestClient(application(Play(broken, policy, dict))) as client, client.websocket_connect("/ws") as visitor:
        assert json.loads(visitor.receive_text()) == {
            "error": "the package metaworld is missing: pip install 'vla-mini[metaworld]'"
        }
        with pytest.raises(WebSocketDisconnect):
            visitor.receive_text()


def test_other_sites_are_refused(address):
    with connect(f"ws://{address}/ws", origin=f"http://{address}") as visitor:
        assert "about" in json.loads(visitor.recv())
    with (
        connect(f"ws://{address}/ws", origin="https://elsewhere.org") as visitor,
        pytest.raises(ConnectionClosed, match="1008"),
    ):
        visitor.recv()
    for headers in ({"Host": "elsewhere.org"}, {"Origin": "http://["}):
        request = urllib.request.Request(f"http://{address}/api/backward", data=b"{}", headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)


def test_a_message_that_is_too_long_ends_its_own_connection(address):
    with connect(f"ws://{address}/ws") as visitor, connect(f"ws://{address}/ws") as other:
        visitor.recv(), other.recv()
        visitor.send("x" * (MAX_MESSAGE + 1))
        with pytest.raises(ConnectionClosed, match="1009"):
            visitor.recv()
        other.send(json.dumps({"do": "step", "with": []}))
        assert json.loads(other.recv())["step"] == 1


# ---- what the two other tabs ask for


@pytest.fixture
def tab(monkeypatch):
    """A module in the place of vla_mini/play/learning.py, which shows what it was asked."""

    def answer(policy, batch, request):
        if "bad" in request:
            raise ValueError("bad: two\nlines")
        return {"policy": type(policy).__name__, "size": len(batch.is_pad), "id": id(batch), "request": request}

    module = types.ModuleType("vla_mini.play.learning")
    module.answer = answer
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_other_tabs_are_answered_with_the_policy_and_one_batch(client, tab):
    first = client.post("/api/learning", json={"lr": 1}).json()
    assert first["policy"] == "ColourPolicy" and first["size"] == 16 and first["request"] == {"lr": 1}
    assert client.post("/api/learning", json={}).json()["id"] == first["id"]
    for content, status, line in (
        ('{"bad": 1}', 400, "bad: two lines"),
        ("[1]", 400, "a request is a JSON object"),
        ("{", 400, "Exp"),
    ):
        answer = client.post("/api/learning", content=content)
        assert answer.status_code == status and answer.json()["error"].startswith(line)
    assert client.post("/api/nothing", json={}).status_code == 404
    assert client.get("/api/learning").status_code == 405


def test_the_batch_is_the_experts_own(policy):
    batch = make_play(policy).make_batch()
    assert isinstance(batch, Batch) and batch.actions.shape == (16, 8, 4)
    assert policy.loss(batch)[0].isfinite().all() and batch.observation.tokens.unique(dim=0).shape[0] > 1


# ---- scripts/play.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    make_policy().save_pretrained(folder / "policy")
    return folder


def test_the_command_serves_until_a_signal(folder):
    code = [sys.executable, str(ROOT / "scripts/play.py"), f"policy={folder / 'policy'}", "port=0", "open=false", "seed=4"]
    with subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        line = process.stdout.readline()
        address = re.fullmatch(rf"play with {folder / 'policy'} at http://(127.0.0.1:\d+)/ \(Ctrl-C ends it\)\n", line)[1]
        with connect(f"ws://{address}/ws") as visitor:
            assert json.loads(visitor.recv())["seed"] == 4
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed, match="1012"):
                visitor.recv(timeout=60)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == "play: stopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "neither given: use policy=DIR for a saved policy, or run=DIR"),
        (["policy=POLICY", "run=RUN"], "both given"),
        (["policy=nowhere"], "policy=nowhere: there is no such folder"),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=POLICY"], "it is no run, or has saved no policy yet"),
        (["run=RUN"], "there is no checkpoint in it"),
        (["policy=POLICY", "env=pusht"], "env=vla_mini/PushT-v0 does not fit the policy"),
        (["policy=POLICY", "data=nowhere"], "nowhere"),
        (["policy=POLICY", "data=a", "env=pusht"], "data=a and env=vla_mini/PushT-v0: give one"),
        (["policy=POLICY", "execute=9"], "execute=9 is not between 1 and 8"),
        (["policy=POLICY", "num_steps=3"], "num_steps=3"),
        (["policy=POLICY", "port=99999"], "port=99999 is not an integer of at most 65535"),
        (["policy=POLICY", "host=nowhere.invalid"], "host=nowhere.invalid port=8300: "),
        (["polcy=POLICY"], "did you mean 'policy'?"),
    ],
)
def test_mistakes_are_refused_in_one_line(folder, capsys, arguments, says):
    given = [argument.replace("POLICY", str(folder / "policy")).replace("RUN", str(folder)) for argument in arguments]
    assert command("play", *given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err, err


def test_a_port_in_use_is_named(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("play", f"policy={folder / 'policy'}", f"port={port}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"port={port}: " in err and "address already in use" in err.lower()


def test_without_the_extra_the_line_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "vla_mini.play.server")
    assert command("play", f"policy={folder / 'policy'}") == 2
    assert capsys.readouterr().err.endswith("is missing: pip install 'vla-mini[play]'\n")


def test_no_browser_is_opened_where_there_is_no_screen(monkeypatch):
    from vla_mini.play.server import open_page

    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    open_page("http://127.0.0.1:1/")
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    open_page("http://127.0.0.1:2/")
    wait_until(lambda: opened == ["http://127.0.0.1:2/"])
