"""A small training run: sixteen episodes of toy_pick and a narrow policy."""

import math

import pytest

from tests.doctor.helpers import TwoCameras
from vla_mini import config
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.doctor import learning, machine
from vla_mini.doctor.checks import TrainingRun
from vla_mini.envs.toy_pick.spec import SPEC
from vla_mini.setup.policy import data_module, untrained_policy

SMALL = ["vision.width=16", "trunk.width=32", "language.width=16", "data.batch_size=16"]


def collected(folder, env_id):
    collect(env_id, folder, episodes=16, validation_episodes=2, num_workers=1)
    return folder


@pytest.fixture(autouse=True)
def no_time_limit(monkeypatch):
    """What a policy learns in a test must not depend on how busy the machine is."""
    monkeypatch.setattr(learning, "MAX_SECONDS", math.inf)


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch):
    """Of the speed, whose value no test looks at."""
    monkeypatch.setattr(machine.speed, "__kwdefaults__", {"seconds": 0.2})


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("doctor") / "data", SPEC.id)


@pytest.fixture(scope="session")
def demonstrations(root):
    return read_dataset(root)


@pytest.fixture(scope="session")
def two_cameras(tmp_path_factory):
    return read_dataset(collected(tmp_path_factory.mktemp("doctor") / "two", TwoCameras.env_spec.id))


@pytest.fixture
def make_run(demonstrations):
    """Makes a run as scripts/doctor.py does. A test may plant mistakes in all of it."""

    def make(*arguments, small=SMALL, data=demonstrations):
        settings = config.load("doctor", [*small, *arguments]).training
        policy = untrained_policy(settings, data)
        module = data_module(settings, data, policy)
        return TrainingRun(settings, data, policy, module.train_dataset, module.validation_dataset)

    return make
