"""PushT as an environment: the scenes of gym-pusht, what the policy may see, coverage, and the human demonstrations."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.test_real_data import DATASETS
from vla_mini.envs import check_fits, get_spec, make

pytestmark = [
    pytest.mark.skipif(find_spec("gym_pusht") is None, reason="the package gym-pusht is missing"),
    pytest.mark.filterwarnings("ignore:.*symmetric and normalized space"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PUSHT = "vla_mini/PushT-v0"


@pytest.fixture(scope="module")
def env():
    env = make(PUSHT)
    yield env
    env.close()


def test_it_is_a_gymnasium_environment(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_scenes_are_gym_pushts_and_the_block_has_to_be_seen(env):
    import gymnasium

    other = gymnasium.make("gym_pusht:gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    observation, _ = env.reset(seed=3)
    expected, _ = other.reset(seed=1003)  # as LeRobot's fourth episode
    for _ in range(5):
        np.testing.assert_array_equal(observation["images"]["image"], expected["pixels"])
        np.testing.assert_allclose(observation["state"], expected["agent_pos"], rtol=1e-5)
        action = np.float32([300, 200])
        observation, expected = env.step(action)[0], other.step(action)[0]
    assert observation["images"]["image"].shape == (96, 96, 3) and len(observation["state"]) == 2


def test_coverage_is_counted_and_an_episode_ends_when_the_target_is_covered(env, monkeypatch):
    env.reset(seed=0)
    coverages = iter([0.2, 0.6, 0.4, 0.96])
    monkeypatch.setattr(type(env.unwrapped._simulation), "_get_coverage", lambda self: next(coverages))
    found = [env.step(np.float32([256, 256])) for _ in range(4)]
    assert [info["max_coverage"] for *_, info in found] == [0.2, 0.6, 0.6, 0.96]
    assert [info["final_coverage"] for *_, info in found] == [0.2, 0.6, 0.4, 0.96]
    assert [terminated for _, _, terminated, _, _ in found] == [info["success"] for *_, info in found] == [False] * 3 + [True]


def test_a_missing_package_is_said_with_what_installs_it():
    code = "import vla_mini.envs.pusht as module; module.find_spec = lambda name: None; from vla_mini.envs import make\n"
    code += f"make({PUSHT!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install 'vla-mini[pusht]'" in done.stderr.splitlines()[-1]


def test_the_human_demonstrations_fit():
    if not (DATASETS / "pusht").is_dir():
        pytest.skip(f"no dataset in {DATASETS / 'pusht'}")
    from vla_mini.data.reader import read_features

    features = read_features(root=DATASETS / "pusht")
    check_fits(get_spec(PUSHT), features, whose="the dataset", hint="")
