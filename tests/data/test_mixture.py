"""Several datasets as one: their episodes, frames and tasks, and what is refused."""

import numpy as np
import pytest

from tests.data.recordings import record
from vla_mini.data.mixture import read_demonstrations
from vla_mini.data.reader import read_dataset
from vla_mini.data.statistics import training_statistics


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
        ValueError, match=r"data.roots: image_size is \[32, 48\] in .*one, and \[16, 16\] in .*two; give data.image_size"
    ):
        read_demonstrations(roots=roots)
    assert read_demonstrations(roots=roots, image_size=(16, 16)).features.image_size == (16, 16)
    three = record(tmp_path / "three", info=lambda info: info["features"]["action"].update(names=["a", "b", "c"]))
    with pytest.raises(
        ValueError, match=r"data.roots: action is \['action_0', .*\] in .*one, and \['a', 'b', 'c'\] in .*three"
    ):
        read_demonstrations(roots={str(one): 1.0, str(three): 1.0})
