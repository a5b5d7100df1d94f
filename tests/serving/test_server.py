"""The policy server with real connections: what clients get, which requests are refused, and that a client's mistake does not
affect the others."""

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.factory import ROOT, command, make_policy
from vla_mini.acting import Controller
from vla_mini.envs import make
from vla_mini.serving import Client
from vla_mini.serving.messages import pack, unpack
from vla_mini.serving.server import PolicyServer, run

LIMIT = 1 << 20  # bytes of a message


@contextmanager
def serving(policy, *, api_key=None, **options):
    """The address of a server in a thread of this process."""
    ports: queue.Queue[int] = queue.Queue()
    loop = asyncio.new_event_loop()
    until, listening = loop.create_future(), {"host": "127.0.0.1", "port": 0, "api_key": api_key, "started": ports.put}
    serves = run(PolicyServer(policy, **options), **listening, max_message_size=LIMIT, until=until)

    def work():
        with loop_errors(loop):
            loop.run_until_complete(serves)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{ports.get(timeout=20)}"
    finally:
        loop.call_soon_threadsafe(until.set_result, None)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def loop_errors(loop):
    """Whatever the event loop would only log is an error here."""
    found = []
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield
    assert not found


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def address(policy):
    with serving(policy) as address:
        yield address


def observation(seed=0):
    return make("vla_mini/ToyPick-v0").reset(seed=seed)[0]


def message(seed=0, **changes):
    seen = observation(seed)
    found = {"observation/image": seen["images"]["top"], "observation/state": seen["state"], "prompt": seen["instruction"]}
    return found | changes


def test_the_metadata_say_what_the_policy_takes_and_gives(policy, address):
    with Client(address) as client:
        assert client.metadata["cameras"] == {"top": [64, 64, 3]} and client.metadata["actions_shape"] == [8, 4]
        assert client.metadata["state"] == list(policy.features.state)
        assert client.metadata["keys"]["instruction"] == ["prompt", "task", "instruction"]


@pytest.mark.parametrize("action", ["regression", "flow"])
def test_whole_chunks_are_those_of_a_controller(action):
    policy = make_policy(action=action)
    with serving(policy, seed=3) as address, Client(address) as client:
        controller = Controller(policy, execute=1, ensemble="none", seed=(3, 0))
        for step in range(3):
            controller.step(observation(step))
            answer = client.infer(message(step))
            np.testing.assert_array_equal(answer["actions"], controller.chunk())
            assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in answer["server_timing"]) == (step > 0)


def test_with_execute_each_connection_has_chunks_history_and_ensemble_of_its_own():
    policy = make_policy(history=2)
    with serving(policy, execute=2, ensemble=0.1) as address, Client(address) as first, Client(address) as second:
        controllers = [Controller(policy, execute=2, ensemble=0.1) for _ in range(2)]
        for step in range(5):
            for offset, client, controller in zip((0, 10), (first, second), controllers, strict=True):
                expected = controller.step(observation(step + offset))
                np.testing.assert_allclose(client.step(observation(step + offset)), expected[None], rtol=0, atol=1e-6)
        first.reset()
        controllers[0].reset()
        np.testing.assert_allclose(first.step(observation(7)), controllers[0].step(observation(7))[None], rtol=0, atol=1e-6)


def test_an_image_of_another_size_is_resized_as_in_training(policy, address):
    large = np.random.default_rng(0).integers(0, 256, (48, 100, 3), dtype=np.uint8)
    with Client(address) as client:
        controller = Controller(policy, execute=1)
        controller.step(observation() | {"images": {"top": large}})
        np.testing.assert_array_equal(client.infer(message(**{"observation/image": large}))["actions"], controller.chunk())


def test_requests_that_come_together_are_answered_by_one_call(policy, monkeypatch):
    sizes, act = [], type(policy).act

    def slow(self, observed, generator=None):
        sizes.append(len(observed.state))
        time.sleep(0.2)
        return act(self, observed, generator)

    monkeypatch.setattr(type(policy), "act", slow)
    with serving(policy) as address, ThreadPoolExecutor(9) as pool:
        clients = [Client(address) for _ in range(9)]
        answers = list(pool.map(lambda pair: pair[1].infer(message(pair[0]))["actions"], enumerate(clients)))
        for client in clients:
            client.close()
    assert sum(sizes) == 9 and len(sizes) <= 3 and max(sizes) >= 7
    for seed, actions in enumerate(answers):
        controller = Controller(policy, execute=1)
        controller.step(observation(seed))
        np.testing.assert_allclose(actions, controller.chunk(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xc1 garbage", "9 bytes are no message of msgpack"),
        ("text", "an observation is a binary message of msgpack, not text"),
        (pack(message(extra=1)), "unknown key 'extra'"),
        (pack(message(**{"observation/state": [0, 0, float("nan"), 0]})), "the state is not finite"),
        (pack(message(**{"observation/state": [0, 0]})), "state is of shape (2,), but the policy takes x, y, height, closed"),
        (pack(message(**{"observation/image": np.zeros((3, 8, 8), np.float32)})), "the image of 'top' is float32 (3, 8, 8)"),
        (pack({"prompt": "go"}), "state is missing"),
    ],
)
def test_a_mistake_is_answered_and_ends_its_own_connection_alone(address, data, text):
    with Client(address) as other:
        with connect(address) as connection:
            connection.recv()
            connection.send(data)
            answer = connection.recv()
            assert isinstance(answer, str) and answer.startswith(text) and "\n" not in answer and "Traceback" not in answer
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv()
            assert closed.value.rcvd.code == 1011
        assert other.infer(message())["actions"].shape == (8, 4)
    with Client(address) as client, pytest.raises(RuntimeError, match="state is missing"):
        client.infer({"prompt": "go"})


def test_an_error_of_ours_shows_no_path_and_with_debug_all(policy, monkeypatch):
    def broken(self, observed, generator=None):
        raise KeyError("/secret/path")

    monkeypatch.setattr(type(policy), "act", broken)
    for debug, text in ((False, "^the server failed: KeyError$"), (True, "(?s)Traceback.*/secret/path")):
        with serving(policy, debug=debug) as address, Client(address) as client:
            with pytest.raises(RuntimeError, match=text) as raised:
                client.infer(message())
            assert ("secret" in str(raised.value)) == debug


def test_actions_that_are_not_finite_end_their_own_connection_alone(policy, monkeypatch):
    act = type(policy).act

    def overflows(self, observed, generator=None):
        return act(self, observed, generator) * torch.where(observed.state[:, :1] > 1e3, torch.nan, 1.0)[:, None]

    monkeypatch.setattr(type(policy), "act", overflows)
    with serving(policy) as address, Client(address) as good, Client(address) as bad:
        with pytest.raises(RuntimeError, match="the policy's actions are not finite"):
            bad.infer(message(**{"observation/state": [1e4, 0, 0, 0]}))
        assert np.isfinite(good.infer(message())["actions"]).all()


def test_a_message_above_the_limit_is_refused(address):
    with connect(address) as connection:
        connection.recv()
        connection.send(bytes(LIMIT + 1))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
    assert closed.value.rcvd.code == 1009


def test_clients_that_disconnect_or_send_no_http_do_not_affect_others(address):
    host, port = address.removeprefix("ws://").split(":")
    with Client(address) as other:
        for data in (b"garbage\r\n\r\n", b"\x00" * 100, b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n"):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(data)
        for sent in (b"\x82\xfe\xff\xff" + bytes(100), None):  # a frame that announces 65,535 bytes; a whole observation
            with connect(address) as vanishes:
                vanishes.recv()
                vanishes.send(pack(message())) if sent is None else vanishes.socket.sendall(sent)
                vanishes.socket.shutdown(socket.SHUT_RDWR)
        assert other.infer(message())["actions"].shape == (8, 4)


def test_a_client_that_reads_nothing_is_disconnected_and_does_not_delay_others(policy, monkeypatch):
    monkeypatch.setattr("vla_mini.serving.server.SEND_TIMEOUT", 0.5)
    monkeypatch.setattr("vla_mini.serving.server.pack", lambda answer: pack(answer | {"more": bytes(LIMIT // 2)}))
    small = message(**{"observation/image": np.zeros((4, 4, 3), np.uint8)})
    with serving(policy) as address, Client(address) as other, socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = address.removeprefix("ws://").split(":")
        narrow.connect((host, int(port)))
        with connect(address, sock=narrow, max_queue=1) as slow, pytest.raises(ConnectionClosed):
            for _ in range(6000):  # asks without reading, until the server's answers fit nowhere
                slow.send(pack(small))
                time.sleep(0.01)
        assert other.infer(message())["actions"].shape == (8, 4)


def resident_pages():
    """Of this process's memory, each of 4 kB."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory is in use")
def test_many_clients_at_once_and_one_after_another_leave_nothing_behind(policy, address):
    with ThreadPoolExecutor(32) as pool:
        clients = [Client(address) for _ in range(32)]
        answers = list(pool.map(lambda client: client.infer(message())["actions"], clients))
        for client in clients:
            client.close()
    assert len(answers) == 32 and all(actions.shape == (8, 4) for actions in answers)

    def connections(number):
        for index in range(number):
            with Client(address) as client:
                if index % 10 == 0:
                    client.infer(message())

    connections(50)
    before = resident_pages()
    connections(1000)
    assert resident_pages() - before < 2500  # 10 MB


def test_health_and_keys(policy):
    with serving(policy, api_key="secret") as address:
        with urllib.request.urlopen(address.replace("ws", "http") + "/healthz") as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        for api_key in (None, "wrong", "secrets"):
            with pytest.raises(PermissionError, match="Authorization: Api-Key"):
                Client(address, api_key=api_key)
        with Client(address, api_key="secret") as client:
            assert client.infer(message())["actions"].shape == (8, 4)


# ---- scripts/serve.py


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "policy"
    policy.save_pretrained(folder)
    return folder


def start(*arguments):
    code = [sys.executable, str(ROOT / "scripts" / "serve.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal_and_closes_connections(folder, number):
    with start(f"policy={folder}", "port=0") as process:
        line = process.stdout.readline()
        address = line.split()[-1]
        assert line.startswith(f"serving {folder} at ws://127.0.0.1:")
        with connect(address) as connection:
            unpack(connection.recv())
            process.send_signal(number)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=120)
            assert closed.value.rcvd.code == 1001
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert err == f"serve: stopped by {signal.Signals(number).name}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0 can be reached from other machines: give api_key=TEXT, or api_key=none"),
        (["ensemble=0.1"], "ensemble=0.1 needs execute=N"),
        (["execute=9"], "execute=9 is not between 1 and 8"),
        (["port=70000"], "port=70000 is not an integer of at most 65535"),
        (["keys={tip: a}"], "the policy has no 'tip'; did you mean 'top'?"),
        (["ssl_key=key.pem"], "ssl_certificate and ssl_key are needed together"),
        (["ssl_key=key.pem", "ssl_certificate=none.pem"], "ssl_certificate=none.pem: [Errno 2] No such file or directory"),
        (["prt=1"], "unknown key 'prt'"),
    ],
)
def test_mistakes_are_refused_before_it_serves(folder, capsys, arguments, text):
    assert command("serve", f"policy={folder}", *arguments) == 2
    assert text in capsys.readouterr().err


def test_a_port_in_use_is_named(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("serve", f"policy={folder}", f"port={port}") == 2
    err = capsys.readouterr().err
    assert f"host=127.0.0.1 port={port}: " in err and "address already in use" in err and "Traceback" not in err


def test_clients_connect_by_tls(folder, tmp_path):
    import ssl

    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject], capture_output=True)
    assert made.returncode == 0, made.stderr
    with start(f"policy={folder}", "port=0", f"ssl_certificate={tmp_path}/cert.pem", f"ssl_key={tmp_path}/key.pem") as process:
        address = process.stdout.readline().split()[-1]
        assert address.startswith("wss://")
        with Client(address, tls=ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))) as client:
            assert client.infer(message())["actions"].shape == (8, 4)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


# ---- openpi's own client

OPENPI = """
import sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

host, port, file = sys.argv[1:]
seen = dict(np.load(file))
observation = {"observation/image": seen["image"], "observation/state": seen["state"], "prompt": str(seen["prompt"])}
policy = WebsocketClientPolicy(host, int(port))
broker = ActionChunkBroker(policy, action_horizon=policy.get_server_metadata()["actions_shape"][0])
np.savetxt(sys.stdout, [broker.infer(observation)["actions"] for _ in range(8)])
"""


@pytest.mark.slow
def test_openpis_own_client_drives_it(policy, address, tmp_path):
    """In a virtual environment of its own, since it needs numpy below 2."""
    python = tmp_path / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    packages = ["openpi-client==0.1.2", "typing_extensions"]  # it imports the second without asking for it
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"openpi-client cannot be installed: {installed.stderr.splitlines()[-1]}")
    seen = observation()
    np.savez(tmp_path / "seen.npz", image=seen["images"]["top"], state=seen["state"], prompt=seen["instruction"])
    place = address.removeprefix("ws://").split(":")
    printed = subprocess.run([python, "-c", OPENPI, *place, tmp_path / "seen.npz"], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    controller = Controller(policy, execute=1)
    controller.step(seen)
    np.testing.assert_allclose(np.loadtxt(printed.stdout.splitlines()), controller.chunk(), rtol=0, atol=1e-5)
