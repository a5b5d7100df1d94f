"""Several datasets as one: their episodes, frames and tasks, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.recordings import record
from tests.factory import make_observation, make_policy
from vla_mini.data.mixture import read_demonstrations
from vla_mini.data.reader import read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.utils.features import Units


@pytest.mark.parametrize("cache", [None, "none"])
def test_a_mixture_holds_the_episodes_of_all(tmp_path, cache):
    one = record(tmp_path / "one", lengths=(5, 3, 6))
    two = record(tmp_path / "two", version="v2.1", video="libx264", lengths=(4, 7), tasks=("lift it", "turn it"))
    mixed = read_demonstrations(roots={str(one): 3.0, str(two): 1.0}, cache=cache)
    parts = [read_dataset(one, cache=cache), read_dataset(two, cache=cache)]
    assert mixed.tasks == ("push it", "lift it", "turn it")
    training = [(part, episode) for part in parts for episode in range(*part.splits["train"])]
    held_out = [(part, episode) for part in parts for episode in range(*part.splits["validation"])]
    assert mixed.splits == {"train": (0, len(training)), "validation": (len(training), len(training) + len(held_out))}
    for number, (part, episode) in enumerate(training + held_out):
        old = slice(part.episode_starts[episode], part.episode_ends[episode])
        new = slice(mixed.episode_starts[number], mixed.episode_ends[number])
        assert mixed.episode_index[number] == part.episode_index[episode]
        for name in ("states", "actions", "frames"):
            np.testing.assert_array_equal(getattr(mixed, name)[new], getattr(part, name)[old])
        found = [mixed.tasks[i] for i in mixed.task_index[new]]
        assert found == [part.tasks[i] for i in part.task_index[old]]
    frames = mixed.episode_ends[len(training) - 1]
    expected = training_statistics(mixed.states[:frames], mixed.actions[:frames])
    np.testing.assert_array_equal(mixed.statistics.action.q99, expected.action.q99)
    assert [weight for _, weight in mixed.mixture] == [3, 1] and sum(count for count, _ in mixed.mixture) == frames
    rows = np.array([[0, mixed.frames.shape[0] - 1], [7, 7]])
    np.testing.assert_array_equal(mixed.frames.take(rows, axis=0), np.stack([mixed.frames[row] for row in rows]))
    again = read_demonstrations(roots={str(one): 1.0, str(two): 1.0}, cache=cache)
    assert again.fingerprint != mixed.fingerprint


def test_datasets_of_other_features_are_not_mixed(tmp_path):
    one, two = record(tmp_path / "one"), record(tmp_path / "two", size=(16, 16))
    roots = {str(one): 1.0, str(two): 1.0}
    with pytest.raises(
        ValueError,
        match=r"same features: image_size is \[32, 48\] in .*one, and \[16, 16\] in .*two; give data.image_size",
    ):
        read_demonstrations(roots=roots)
    assert read_demonstrations(roots=roots, image_size=(16, 16)).features.image_size == (16, 16)
    three = record(tmp_path / "three", info=lambda info: info["features"]["action"].update(names=["a", "b", "c"]))
    with pytest.raises(
        ValueError,
        match=r"data.roots .* the same features: action is \['action_0', .*\] in .*one, and \['a', 'b', 'c'\] in .*three",
    ):
        read_demonstrations(roots={str(one): 1.0, str(three): 1.0})


def test_each_dataset_may_be_normalised_by_its_own_statistics(tmp_path):
    """The second robot counts its joints twice as large and from elsewhere, and its third joint stands still."""
    scale, shift = np.array([2, -0.5, 1], np.float32), np.array([1, 3, 0], np.float32)
    one = record(tmp_path / "a/arm", lengths=(30, 20, 10))

    def change(table):
        for name in ("observation.state", "action"):
            values = np.array(table[name].to_pylist(), np.float32) * np.abs(scale) + shift
            values[:, 2] = 0.25
            table = table.set_column(table.column_names.index(name), name, pa.array(values.tolist(), pa.list_(pa.float32())))
        return table

    two = record(tmp_path / "b/arm2", lengths=(30, 20, 10), rows=change)
    roots = {str(one): 1.0, str(two): 1.0}
    mixed = read_demonstrations(roots=roots, statistics="by_dataset")
    frames = [slice(0, 50), slice(50, 100)]
    first, second = (mixed.actions[each] for each in frames)
    np.testing.assert_allclose(first[:, :2], second[:, :2], atol=1e-5)
    assert second[:, 2].std() < 1e-6 and abs(second[:, 2].mean() - first[:, 2].mean()) < 1e-5
    assert list(mixed.units) == ["arm", "arm2"]
    assert read_demonstrations(roots=roots).fingerprint != mixed.fingerprint
    theirs = read_dataset(two)
    units = mixed.units["arm2"]
    np.testing.assert_allclose(second * units.action_scale + units.action_shift, theirs.actions[:50], atol=1e-5)


def test_a_policy_changes_to_the_units_of_another_dataset(tmp_path):
    policy = make_policy()
    states, actions = policy.features.state_size, policy.features.action_size
    units = Units((2.0,) * states, (1.0,) * states, (0.5,) * actions, (-3.0,) * actions)
    policy.units = {"other": units}
    policy.save_pretrained(tmp_path / "policy")
    other = type(policy).from_pretrained(tmp_path / "policy").in_units_of("other")
    observation = make_observation(policy)
    theirs = observation._replace(state=observation.state * 2 + 1)
    first = type(policy).from_pretrained(tmp_path / "policy")
    first.in_units_of("other")
    torch.testing.assert_close(first.act(observation), policy.eval().act(observation))  # it is unchanged
    torch.testing.assert_close(other.act(theirs), policy.eval().act(observation) * 0.5 - 3, rtol=1e-4, atol=1e-4)
    other.save_pretrained(tmp_path / "other")
    again = type(policy).from_pretrained(tmp_path / "other")
    torch.testing.assert_close(again.act(theirs), other.act(theirs))
    with pytest.raises(ValueError, match="no statistics of a dataset 'othr': did you mean 'other'"):
        type(policy).from_pretrained(tmp_path / "policy").in_units_of("othr")
