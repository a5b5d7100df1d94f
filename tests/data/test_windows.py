"""Windows against a slow, plain reading of the same episodes; the order of batches, and going on within an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mini.data.reader import Demonstrations
from vla_mini.data.statistics import training_statistics
from vla_mini.data.windows import ActionWindows, Keyframe, WindowBatches, sample_chunks
from vla_mini.features import Features

FEATURES = Features(("a", "b"), (2, 3), ("x", "y", "closed"), ("dx", "close"), 10)


def tokenize(texts):
    """The number of letters, and a second word for long texts only."""
    lengths = torch.tensor([[len(text), 1] for text in texts])
    return lengths, torch.tensor([[True, len(text) > 3] for text in texts])


def demonstrations(lengths, *, seed=0, num_validation=1):
    generator = np.random.default_rng(seed)
    num_frames, ends = sum(lengths), np.cumsum(lengths)
    states = generator.standard_normal((num_frames, 3)).astype(np.float32)
    actions = generator.standard_normal((num_frames, 2)).astype(np.float32)
    return Demonstrations(
        features=FEATURES,
        tasks=("go", "stay there"),
        episode_starts=ends - lengths,
        episode_ends=ends,
        splits={
            "train": (0, len(lengths) - num_validation),
            "validation": (len(lengths) - num_validation, len(lengths)),
        },
        states=states,
        actions=actions,
        task_index=generator.integers(0, 2, num_frames),
        frames=generator.integers(0, 256, (num_frames, 2, 3, 2, 3), dtype=np.uint8),
        statistics=training_statistics(states, actions),
        fingerprint="made up",
    )


def plain_window(data, frame, horizon, threshold):
    """What the sample of one frame must be, read step by step."""
    episode = next(i for i, end in enumerate(data.episode_ends) if frame < end)
    start, end = int(data.episode_starts[episode]), int(data.episode_ends[episode])
    actions, is_pad = [], []
    for step in range(frame, frame + horizon):
        actions.append(data.actions[min(step, end - 1)])
        is_pad.append(step >= end)
    keyframe = None
    for step in range(frame, end):
        closed = data.actions[step, 1] > threshold
        before = step > start and data.actions[step - 1, 1] > threshold
        if closed and not before:
            keyframe = data.states[step, :2]
            break
    return np.array(actions), np.array(is_pad), keyframe


lengths_of_episodes = st.lists(st.integers(1, 12), min_size=2, max_size=6)


@given(lengths_of_episodes, st.integers(1, 10), st.sampled_from(["train", "validation"]), st.floats(-1, 1))
def test_windows_never_cross_an_episodes_end(lengths, horizon, split, threshold):
    data = demonstrations(lengths)
    keyframe = Keyframe(state=("x", "y"), closes="close", threshold=threshold)
    if horizon > max(lengths):
        with pytest.raises(ValueError, match=f"horizon={horizon} is longer than the longest episode, which has {max(lengths)}"):
            ActionWindows(data, split=split, horizon=horizon, tokenize=tokenize)
        return
    windows = ActionWindows(data, split=split, horizon=horizon, tokenize=tokenize, keyframe=keyframe)
    first, last = (sum(lengths[:-1]), sum(lengths)) if split == "validation" else (0, sum(lengths[:-1]))
    assert len(windows) == last - first
    batch = windows.__getitems__(range(len(windows)))
    for i in range(len(windows)):
        actions, is_pad, expected = plain_window(data, first + i, horizon, threshold)
        np.testing.assert_array_equal(batch.actions[i], actions)
        np.testing.assert_array_equal(batch.is_pad[i], is_pad)
        assert not batch.is_pad[i, 0], "the present action always exists"
        assert batch.has_keyframe[i] == (expected is not None)
        np.testing.assert_array_equal(batch.keyframe[i], np.zeros(2) if expected is None else expected)


@given(lengths_of_episodes, st.integers(1, 12), st.sampled_from(["train", "validation"]))
def test_past_frames_follow_the_newest_and_never_cross_an_episodes_start(lengths, history, split):
    data, history = demonstrations(lengths), min(history, max(lengths))
    windows = ActionWindows(data, split=split, horizon=1, tokenize=tokenize, history=history)
    observation = windows.__getitems__(range(len(windows))).observation
    for i in range(len(windows)):
        frame = i if split == "train" else i + sum(lengths[:-1])
        start = max(start for start in data.episode_starts if start <= frame)
        images, states = [], []
        for age in range(history):
            seen = max(frame - age, start)
            images += [data.frames[seen, 0], data.frames[seen, 1]]  # two cameras
            states += data.states[seen].tolist()
        np.testing.assert_array_equal(observation.images[i], np.stack(images))
        np.testing.assert_array_equal(observation.state[i], np.float32(states))


@pytest.mark.parametrize("history", [0, 6, 10**12])
def test_a_history_that_no_episode_has_is_refused(history):
    with pytest.raises(ValueError, match=f"history={history}: the longest episode has 5 frames, so 1 to 5 can be seen"):
        ActionWindows(demonstrations([3, 5, 2]), split="train", horizon=1, tokenize=tokenize, history=history)


@pytest.mark.parametrize("most", [100, 5])
def test_sampled_chunks_are_those_of_the_training_windows(most):
    data = demonstrations([4, 1, 6, 9])
    windows = ActionWindows(data, split="train", tokenize=tokenize, horizon=3)
    expected = windows.__getitems__(range(len(windows))).actions.numpy()
    chunks = sample_chunks(data, horizon=3, most=most)
    if most > len(windows):
        np.testing.assert_array_equal(chunks, expected)
    found = [np.flatnonzero((expected == chunk).all((1, 2)))[0] for chunk in chunks]
    assert len(chunks) == min(most, 11) and found[0] == 0 and found[-1] == 10 and sorted(set(found)) == found


def test_a_batch_holds_what_the_robot_saw_felt_and_was_told():
    data = demonstrations([5, 4, 3])
    windows = ActionWindows(data, split="validation", horizon=2, tokenize=tokenize)
    indices = [2, 0, 2]
    observation, *_, keyframe, has_keyframe = windows.__getitems__(indices)
    frames = 9 + np.array(indices)
    np.testing.assert_array_equal(observation.images, data.frames[frames])
    np.testing.assert_array_equal(observation.state, data.states[frames])
    tokens, mask = tokenize([data.tasks[i] for i in data.task_index[frames]])
    assert torch.equal(observation.tokens, tokens) and torch.equal(observation.token_mask, mask)
    assert observation.images.dtype == torch.uint8 and observation.state.dtype == torch.float32
    assert keyframe.shape == (3, 0) and not has_keyframe.any()


def test_a_batch_is_a_copy():
    data = demonstrations([5, 4])
    windows = ActionWindows(data, split="train", horizon=2, tokenize=tokenize)
    before = data.frames.copy(), data.actions.copy(), data.states.copy()
    batch = windows.__getitems__(np.arange(5))
    for tensor in (batch.observation.images, batch.actions, batch.observation.state):
        tensor.zero_()
    for kept, now in zip(before, (data.frames, data.actions, data.states), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_arrays_reach_torch_without_another_copy_and_keep_their_dtype(monkeypatch):
    """One gather makes the batch; torch looks at the very same memory."""
    handed_over, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: handed_over.append(array) or from_numpy(array))
    batch = ActionWindows(demonstrations([5, 4]), split="train", horizon=2, tokenize=tokenize).__getitems__([1, 3])
    fields = [*batch.observation, *batch[1:]]
    memory = {array.__array_interface__["data"][0]: array.dtype for array in handed_over}
    assert [memory[field.data_ptr()] for field in fields if field.numel()] == [
        *(np.uint8, np.int64, bool, np.float32),
        *(np.float32, bool, bool),
    ]


@pytest.mark.parametrize(
    "keyframe, message",
    [
        (Keyframe(("x", "hight"), "close"), "keyframe.state: 'hight' is not one of x, y, closed"),
        (Keyframe(("x",), "closed"), "keyframe.closes: 'closed' is not one of dx, close; did you mean 'close'"),
    ],
)
def test_unknown_names_are_refused(keyframe, message):
    with pytest.raises(ValueError, match=message):
        ActionWindows(demonstrations([2, 2]), split="train", horizon=1, tokenize=tokenize, keyframe=keyframe)


def batches(num_frames=23, **how):
    data = demonstrations([num_frames, 1])
    return WindowBatches(ActionWindows(data, split="train", horizon=2, tokenize=tokenize), **how)


def states(loader):
    return [batch.observation.state for batch in loader]


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_each_epoch_is_a_permutation_of_its_own_drawn_from_seed_and_epoch_alone():
    loader = batches(batch_size=5, seed=3)
    seen = states(loader)
    assert len(loader) == len(seen) == 4 and all(len(batch) == 5 for batch in seen), "the last 3 are dropped"
    assert len(torch.cat(seen).unique(dim=0)) == 20
    assert same(states(loader), seen), "asking again for the same epoch gives the same"
    loader.sampler.set_epoch(1)
    second = states(loader)
    assert not same(second, seen)
    fresh = batches(batch_size=5, seed=3)
    fresh.sampler.set_epoch(1)
    assert same(states(fresh), second) and not same(states(batches(batch_size=5, seed=4)), seen)


def test_without_a_seed_all_come_in_order():
    loader = batches(batch_size=5)
    expected = demonstrations([23, 1]).states[:23]
    assert len(loader) == 5
    np.testing.assert_array_equal(torch.cat(states(loader)), expected)


@pytest.mark.parametrize("num_frames, seed", [(23, 0), (23, None), (19, None)])
def test_processes_share_the_batches_of_one(num_frames, seed):
    whole = states(batches(num_frames, batch_size=6, seed=seed))
    parts = [states(batches(num_frames, batch_size=3, seed=seed, rank=rank, world_size=2)) for rank in (0, 1)]
    for i, (left, right) in enumerate(zip(*parts, strict=True)):
        assert len(left) > 0 and len(right) > 0
        both = torch.cat([left, right])
        assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole[i].tolist()))


@given(st.integers(0, 4), st.integers(0, 3))
def test_it_goes_on_within_an_epoch_where_it_stopped(given_batches, epoch):
    loader = batches(batch_size=5, seed=3)
    loader.sampler.set_epoch(epoch)
    expected = states(loader)
    running = iter(loader)
    for _ in range(given_batches):
        next(running)
    resumed = batches(batch_size=5, seed=3)
    resumed.load_state_dict(loader.state_dict() if given_batches else {**loader.state_dict(), "batches": 0})
    resumed.sampler.set_epoch(epoch)  # as Lightning does
    assert same(states(resumed), expected[given_batches:])
    resumed.sampler.set_epoch(epoch + 1)
    assert len(states(resumed)) == 4, "the next epoch is whole again"


def test_a_new_epoch_has_given_nothing_yet():
    loader = batches(batch_size=5, seed=3)
    states(loader)
    assert loader.state_dict()["batches"] == 4
    loader.sampler.set_epoch(1)
    assert loader.state_dict()["batches"] == 0


def test_going_on_with_other_batches_is_refused():
    state = batches(batch_size=5, seed=3).state_dict()
    with pytest.raises(ValueError, match="batch_size was 5 and is 4 now"):
        batches(batch_size=4, seed=3).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [0, 24])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: the split has 23 frames"):
        batches(batch_size=batch_size, seed=0)
