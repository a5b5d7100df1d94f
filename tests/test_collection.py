"""Expert + environment -> dataset: reproducible, with the expert's actions as labels; a failure leaves nothing behind."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest

import vla_mini.envs
from vla_mini import collection
from vla_mini.collection import collect, demonstrate
from vla_mini.data.reader import read_dataset
from vla_mini.envs import Environment, EnvSpec
from vla_mini.utils.features import Features

TOY_PICK = "vla_mini/ToyPick-v0"


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def toy_pick(tmp_path_factory):
    root = tmp_path_factory.mktemp("collection") / "toy_pick"
    num_frames = collect(TOY_PICK, root, episodes=6, validation_episodes=2, seed=3, num_workers=1)
    return root, num_frames, read_dataset(root)


def test_a_dataset_has_the_requested_episodes(toy_pick):
    _, num_frames, data = toy_pick
    assert data.splits == {"train": (0, 6), "validation": (6, 8)}
    assert len(data.episode_ends) == 8 and num_frames == len(data.states)
    lengths = data.episode_ends - data.episode_starts
    assert lengths[:6].tolist() == [28, 14, 19, 30, 23, 21], "as of every version: scenes, action noise and expert"
    assert data.features == vla_mini.envs.get_spec(TOY_PICK).features
    assert len({data.frames[start].tobytes() for start in data.episode_starts}) == 8, "no scene twice"


def test_what_is_stored_is_what_the_expert_observed_and_would_do(toy_pick):
    _, _, data = toy_pick
    env = vla_mini.envs.make(TOY_PICK)
    for episode, purpose in ((0, "demonstration"), (6, "validation")):
        observation, _ = env.reset(seed=0, options={"purpose": purpose, "seed": 3})
        first = data.episode_starts[episode]
        np.testing.assert_array_equal(data.frames[first, 0], observation["images"]["top"].transpose(2, 0, 1))
        np.testing.assert_array_equal(data.states[first], observation["state"])
        np.testing.assert_array_equal(data.actions[first], env.unwrapped.expert_action())
        assert data.tasks[data.task_index[first]] == observation["instruction"]


def test_the_same_bytes_whatever_the_number_of_workers(toy_pick, tmp_path):
    root, _, _ = toy_pick
    collect(TOY_PICK, tmp_path / "d", episodes=6, validation_episodes=2, seed=3, num_workers=3)
    assert contents(tmp_path / "d") == contents(root)


def test_others_help_only_where_it_takes_long(toy_pick, tmp_path, monkeypatch):
    root, _, _ = toy_pick
    monkeypatch.setattr(collection, "num_cores", lambda: 2)
    for seconds, helped in ((60.0, False), (0.02, True)):
        pool = ThreadPoolExecutor(1)  # starts faster than processes
        pool.submit = Mock(wraps=pool.submit)
        monkeypatch.setattr(collection, "ProcessPoolExecutor", Mock(return_value=pool))
        monkeypatch.setattr(collection, "ALONE", seconds)
        collect(TOY_PICK, tmp_path / str(helped), episodes=6, validation_episodes=2, seed=3)
        assert pool.submit.called == helped
        assert contents(tmp_path / str(helped)) == contents(root)


def test_another_seed_gives_other_scenes(toy_pick, tmp_path):
    collect(TOY_PICK, tmp_path / "d", episodes=6, validation_episodes=2, seed=4, num_workers=1)
    _, _, data = toy_pick
    other = read_dataset(tmp_path / "d")
    starts = {data.frames[start].tobytes() for start in data.episode_starts}
    assert not starts & {other.frames[start].tobytes() for start in other.episode_starts}


FEATURES = Features(cameras=("top",), image_size=(2, 2), state=("x",), action=("dx",), fps=10)


class Line(Environment):
    """Move from x to 0 in equal steps; the expert never arrives in every third scene."""

    env_spec = EnvSpec("vla_mini_tests/Line-v0", FEATURES, robot_type="line", max_episode_steps=20, has_expert=True)
    observation_space = gymnasium.spaces.Dict()
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.scene, self.x = seed, np.float32(4)
        return self._observe(), {"success": False}

    def step(self, action):
        self.x += action[0]
        return self._observe(), 0.0, abs(self.x) < 0.5, False, {"success": abs(self.x) < 0.5}

    def expert_action(self):
        return np.clip(np.array([0.0 if self.scene % 3 == 2 else -self.x]), -1, 1).astype(np.float32)

    def _observe(self):
        image = np.full((2, 2, 3), self.scene % 256, np.uint8)
        return {"images": {"top": image}, "state": np.array([self.x], np.float32), "instruction": "go to 0"}


class Hopeless(Line):
    env_spec = EnvSpec("vla_mini_tests/Hopeless-v0", FEATURES, robot_type="line", max_episode_steps=2, has_expert=True)

    def expert_action(self):
        return np.zeros(1, np.float32)


class Expertless(Line):
    env_spec = EnvSpec("vla_mini_tests/Expertless-v0", FEATURES, robot_type="line", max_episode_steps=20)
    expert_action = Environment.expert_action


class Suite(Line):
    """Three tasks, the second of which the expert cannot do; an attempt is expensive."""

    env_spec = replace(
        Line.env_spec,
        id="vla_mini_tests/LineSuite-v0",
        tasks={"near": "go to 0", "never": "go to 0", "far": "go to 0"},
        vectorization="async",
    )

    def expert_action(self):
        return np.clip(np.array([0.0 if self.scene % 3 == 1 or self.scene == 3 else -self.x]), -1, 1).astype(np.float32)


for environment in (Line, Hopeless, Expertless, Suite):
    spec = environment.env_spec
    gymnasium.register(spec.id, environment, max_episode_steps=spec.max_episode_steps)


def test_failures_are_dropped_and_the_first_successes_kept(tmp_path):
    collect("vla_mini_tests/Line-v0", tmp_path / "d", episodes=5, action_noise=0.0, num_workers=1)
    data = read_dataset(tmp_path / "d")
    assert data.frames[data.episode_starts, 0, 0, 0, 0].tolist() == [0, 1, 3, 4, 6]


def test_so_many_of_each_task_are_collected_and_one_that_the_expert_cannot_do_is_named(tmp_path):
    given = {"episodes": 2, "validation_episodes": 1, "action_noise": 0.0, "num_workers": 1}
    with pytest.warns(UserWarning, match="task never is left out: the expert failed in 101 of 101 attempts"):
        collect(Suite.env_spec.id, tmp_path / "d", **given)
    data = read_dataset(tmp_path / "d")
    scenes = data.frames[data.episode_starts, 0, 0, 0, 0].tolist()
    assert scenes == [0, 2, 5, 6, 0, 2]  # of task 0 attempt 3 fails, and is replaced
    assert data.splits == {"train": (0, 4), "validation": (4, 6)}


def test_an_interrupted_collection_of_expensive_attempts_resumes(tmp_path, monkeypatch):
    given = {"action_noise": 0.5, "num_workers": 1, "validation_episodes": 1}
    with pytest.warns(UserWarning, match="task never"):
        collect(Suite.env_spec.id, tmp_path / "whole", episodes=3, **given)
    with pytest.raises(KeyboardInterrupt):
        collect(
            Suite.env_spec.id, tmp_path / "d", episodes=3, progress=Mock(side_effect=[None] * 4 + [KeyboardInterrupt]), **given
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".d.attempts", "whole"]
    kept = len(list((tmp_path / ".d.attempts").iterdir()))
    assert kept > 4
    played = Mock(wraps=collection.play)
    monkeypatch.setattr(collection, "play", played)
    with pytest.warns(UserWarning, match="task never"):
        collect(Suite.env_spec.id, tmp_path / "d", episodes=3, **given)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    assert not (tmp_path / ".d.attempts").exists()
    remaining = played.call_count
    with pytest.warns(UserWarning, match="task never"):
        collect(Suite.env_spec.id, tmp_path / "again", episodes=3, **given)
    assert played.call_count - remaining == remaining + kept


def test_kept_attempts_are_of_the_same_settings(tmp_path):
    settings = {"purpose": "demonstration", "seed": 0, "folder": tmp_path}
    noisy, again = (demonstrate(Suite.env_spec.id, 0, action_noise=1.0, **settings) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1 and noisy.images == again.images
    for one, other in zip(noisy[2:4], again[2:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(demonstrate(Suite.env_spec.id, 0, action_noise=0.0, **settings).states) == 4
    assert demonstrate(Suite.env_spec.id, 1, action_noise=0.0, **settings) is None
    assert demonstrate(Suite.env_spec.id, 1, action_noise=0.0, **settings) is None
    assert len(list(tmp_path.iterdir())) == 3


def test_a_worker_that_dies_is_a_failure_while_working(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "demonstrate", end_process)
    with pytest.raises(RuntimeError, match="a process died"):
        collect(TOY_PICK, tmp_path / "d", episodes=2, num_workers=2)
    assert list(tmp_path.iterdir()) == []


def end_process(*_, **__):
    os._exit(1)


def test_labels_are_the_experts_actions_while_noisy_ones_are_executed():
    settings = {"purpose": "demonstration", "seed": 0}
    clean, noisy = (demonstrate("vla_mini_tests/Line-v0", 0, action_noise=noise, **settings) for noise in (0.0, 1.0))
    assert clean.states.ravel().tolist() == [4, 3, 2, 1]
    for episode in (clean, noisy):
        np.testing.assert_array_equal(episode.actions, np.clip(-episode.states, -1, 1))
    moved = np.diff(noisy.states.ravel())
    assert np.abs(moved).max() <= 1 and not np.allclose(moved, noisy.actions[:-1].ravel())


def test_an_expert_that_never_succeeds_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="the expert failed in 101 of 101 attempts"):
        collect("vla_mini_tests/Hopeless-v0", tmp_path / "d", episodes=1, num_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_failure_while_working(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(collection.DatasetWriter, "add_episode", full)
    with pytest.raises(RuntimeError, match=r"collecting failed.*No space left"):
        collect(TOY_PICK, tmp_path / "d", episodes=1, num_workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"episodes": 0}, "episodes=0"),
        ({"validation_episodes": -1}, "validation_episodes=-1"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"action_noise": -0.5}, "action_noise=-0.5"),
        ({"env_id": "vla_mini/ToyPikc-v0"}, "env='vla_mini/ToyPikc-v0'"),
        ({"env_id": "vla_mini_tests/Expertless-v0"}, "env='vla_mini_tests/Expertless-v0' has no scripted expert"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, changes, message):
    arguments = {"env_id": TOY_PICK, "episodes": 1} | changes
    with pytest.raises(ValueError, match=message):
        collect(arguments.pop("env_id"), tmp_path / "d", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_untouched(toy_pick):
    root, _, _ = toy_pick
    before = contents(root)
    with pytest.raises(ValueError, match="exists already"):
        collect(TOY_PICK, root, episodes=1)
    assert contents(root) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_collection_leaves_no_dataset_and_no_process(tmp_path, number):
    code = f"""
from vla_mini.collection import collect
if __name__ == "__main__":
    progress = lambda *_: print("working", flush=True)
    collect({TOY_PICK!r}, {str(tmp_path / "d")!r}, episodes=100_000, num_workers=2, progress=progress)
"""
    script = tmp_path / "collect_without_end.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline() for _ in range(30)] == ["working\n"] * 30
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the workers, too
    else:
        process.kill()
    # The workers hold the pipes' other ends, too: they close when the last worker is gone.
    _, complaints = process.communicate(timeout=20)
    assert process.returncode != 0 and not (tmp_path / "d").exists()
    assert not list(tmp_path.rglob("info.json"))
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [script] and "SpawnProcess" not in complaints


def test_it_loads_no_torch():
    code = "import sys, vla_mini.collection, vla_mini.data.reader; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
