"""Samples against a slow, plain reading of the same episodes; the order of batches, and resuming within an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mini.data.chunks import ActionChunkDataset, BatchLoader, sample_chunks
from vla_mini.data.frames import LazyFrames
from vla_mini.data.reader import Demonstrations
from vla_mini.data.statistics import training_statistics
from vla_mini.utils.features import Features

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
        episode_index=np.arange(len(lengths)),
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
        notes=(),
        mixture=(),
    )


def plain_sample(data, frame, horizon):
    """The actions and the padding of one frame's sample, read step by step."""
    end = min(end for end in data.episode_ends if frame < end)
    steps = range(frame, frame + horizon)
    return np.array([data.actions[min(step, end - 1)] for step in steps]), np.array([step >= end for step in steps])


lengths_of_episodes = st.lists(st.integers(1, 12), min_size=2, max_size=6)


@given(lengths_of_episodes, st.integers(1, 10), st.sampled_from(["train", "validation"]))
def test_chunks_never_cross_an_episodes_end(lengths, horizon, split):
    data = demonstrations(lengths)
    if horizon > max(lengths):
        with pytest.raises(ValueError, match=f"horizon={horizon} must be 1 to {max(lengths)}, the number of frames of"):
            ActionChunkDataset(data, split=split, horizon=horizon, tokenize=tokenize)
        return
    targets = {"number": np.arange(len(data.states)), "doubled": 2 * data.states}
    dataset = ActionChunkDataset(data, split=split, horizon=horizon, tokenize=tokenize, targets=targets)
    first, last = (sum(lengths[:-1]), sum(lengths)) if split == "validation" else (0, sum(lengths[:-1]))
    assert len(dataset) == last - first
    batch = dataset.__getitems__(range(len(dataset)))
    for i in range(len(dataset)):
        actions, is_pad = plain_sample(data, first + i, horizon)
        np.testing.assert_array_equal(batch.actions[i], actions)
        np.testing.assert_array_equal(batch.is_pad[i], is_pad)
        assert not batch.is_pad[i, 0], "the present action always exists"
        assert batch.targets["number"][i] == first + i
        np.testing.assert_array_equal(batch.targets["doubled"][i], 2 * data.states[first + i])


@given(lengths_of_episodes, st.integers(1, 12), st.sampled_from(["train", "validation"]))
def test_past_frames_follow_the_newest_and_never_cross_an_episodes_start(lengths, history, split):
    data, history = demonstrations(lengths), min(history, max(lengths))
    dataset = ActionChunkDataset(data, split=split, horizon=1, tokenize=tokenize, history=history)
    observation = dataset.__getitems__(range(len(dataset))).observation
    for i in range(len(dataset)):
        frame = i if split == "train" else i + sum(lengths[:-1])
        start = max(start for start in data.episode_starts if start <= frame)
        images, states = [], []
        for age in range(history):
            past = max(frame - age, start)
            images += [data.frames[past, 0], data.frames[past, 1]]  # two cameras
            states += data.states[past].tolist()
        np.testing.assert_array_equal(observation.images[i], np.stack(images))
        np.testing.assert_array_equal(observation.state[i], np.float32(states))


@pytest.mark.parametrize("history", [0, 6, 10**12])
def test_a_history_that_no_episode_has_is_refused(history):
    with pytest.raises(ValueError, match=f"history={history} must be 1 to 5, the number of frames of the longest episode"):
        ActionChunkDataset(demonstrations([3, 5, 2]), split="train", horizon=1, tokenize=tokenize, history=history)


@pytest.mark.parametrize("most", [100, 5])
def test_sampled_chunks_are_those_of_the_training_samples(most):
    data = demonstrations([4, 1, 6, 9])
    dataset = ActionChunkDataset(data, split="train", tokenize=tokenize, horizon=3)
    expected = dataset.__getitems__(range(len(dataset))).actions.numpy()
    chunks, valid = sample_chunks(data, 3, most=most)
    if most > len(dataset):
        np.testing.assert_array_equal(chunks, expected)
    if most > len(dataset):
        np.testing.assert_array_equal(valid, ~dataset.__getitems__(range(len(dataset))).is_pad.numpy())
    found = [np.flatnonzero((expected == chunk).all((1, 2)))[0] for chunk in chunks]
    assert len(chunks) == min(most, 11) and found[0] == 0 and found[-1] == 10 and sorted(set(found)) == found


def test_a_batch_holds_images_states_and_instructions_of_its_frames():
    data = demonstrations([5, 4, 3])
    dataset = ActionChunkDataset(data, split="validation", horizon=2, tokenize=tokenize)
    indices = [2, 0, 2]
    observation = dataset.__getitems__(indices).observation
    frames = 9 + np.array(indices)
    np.testing.assert_array_equal(observation.images, data.frames[frames])
    np.testing.assert_array_equal(observation.state, data.states[frames])
    tokens, mask = tokenize([data.tasks[i] for i in data.task_index[frames]])
    assert torch.equal(observation.tokens, tokens) and torch.equal(observation.token_mask, mask)
    assert observation.images.dtype == torch.uint8 and observation.state.dtype == torch.float32


def test_a_batch_is_a_copy():
    data = demonstrations([5, 4])
    dataset = ActionChunkDataset(data, split="train", horizon=2, tokenize=tokenize)
    before = data.frames.copy(), data.actions.copy(), data.states.copy()
    batch = dataset.__getitems__(np.arange(5))
    for tensor in (batch.observation.images, batch.actions, batch.observation.state):
        tensor.zero_()
    for kept, now in zip(before, (data.frames, data.actions, data.states), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_arrays_reach_torch_without_another_copy_and_keep_their_dtype(monkeypatch):
    """One gather makes the batch; its tensors share the arrays' memory."""
    arrays, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: arrays.append(array) or from_numpy(array))
    data, has_target = demonstrations([5, 4]), np.arange(9) % 2 == 0
    dataset = ActionChunkDataset(data, split="train", horizon=2, tokenize=tokenize, targets={"has_target": has_target})
    batch = dataset.__getitems__([1, 3])
    tensors = [*batch.observation, batch.actions, batch.is_pad, batch.targets["has_target"]]
    dtypes = {array.__array_interface__["data"][0]: array.dtype for array in arrays}
    expected = [np.uint8, np.int64, bool, np.float32, np.float32, bool, bool]
    assert [dtypes[tensor.data_ptr()] for tensor in tensors] == expected


def batches(num_frames=23, **how):
    data = demonstrations([num_frames, 1])
    return BatchLoader(ActionChunkDataset(data, split="train", horizon=2, tokenize=tokenize), **how)


def states(loader):
    return [batch.observation.state for batch in loader]


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_each_epoch_is_a_permutation_of_its_own_drawn_from_seed_and_epoch_alone():
    loader = batches(batch_size=5, seed=3)
    seen = states(loader)
    assert len(loader) == len(seen) == 4 and all(len(batch) == 5 for batch in seen), "the last 3 are dropped"
    order = np.random.default_rng([3, 0]).permutation(23)[:20]
    np.testing.assert_array_equal(torch.cat(seen), demonstrations([23, 1]).states[order])
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
def test_it_resumes_within_an_epoch_where_it_stopped(num_yielded, epoch):
    loader = batches(batch_size=5, seed=3)
    loader.sampler.set_epoch(epoch)
    expected = states(loader)
    running = iter(loader)
    for _ in range(num_yielded):
        next(running)
    resumed = batches(batch_size=5, seed=3)
    resumed.load_state_dict(loader.state_dict() if num_yielded else {**loader.state_dict(), "batches": 0})
    resumed.sampler.set_epoch(epoch)  # as Lightning does
    assert same(states(resumed), expected[num_yielded:])
    resumed.sampler.set_epoch(epoch + 1)
    assert len(states(resumed)) == 4, "the next epoch is complete"


def test_a_new_epoch_has_yielded_nothing_yet():
    loader = batches(batch_size=5, seed=3)
    states(loader)
    assert loader.state_dict()["batches"] == 4
    loader.sampler.set_epoch(1)
    assert loader.state_dict()["batches"] == 0


def test_resuming_with_other_batches_is_refused():
    state = batches(batch_size=5, seed=3).state_dict()
    with pytest.raises(ValueError, match="batch_size was 5 and is 4 now"):
        batches(batch_size=4, seed=3).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [0, 24])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: the split has 23 frames"):
        batches(batch_size=batch_size, seed=0)


# ---- mixtures, and frames that are decoded when they are needed


def test_the_frames_of_a_mixture_come_as_often_as_their_weights_ask_for():
    data = demonstrations([20, 60, 1])._replace(mixture=((20, 3.0), (60, 1.0)))
    dataset = ActionChunkDataset(data, split="train", horizon=2, tokenize=tokenize)
    order = dataset.order(np.random.default_rng(0))
    counts = np.bincount(order, minlength=80)
    assert len(order) == 80 and counts[:20].tolist() == [3] * 20 and counts[20:].sum() == 20 and counts[20:].max() == 1
    np.testing.assert_array_equal(dataset.order(np.random.default_rng(0)), order)
    assert (np.diff(np.flatnonzero(order < 20)) > 1).any()  # they are mixed
    held_out = ActionChunkDataset(data, split="validation", horizon=2, tokenize=tokenize)
    np.testing.assert_array_equal(held_out.order(None), [0])


class Streamed(LazyFrames):
    """As frames that are decoded when they are asked for."""

    decoded = False

    def __init__(self, frames):
        self._frames, self.shape = frames, frames.shape

    def take(self, rows, axis=0):
        return self._frames.take(rows, axis=axis)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mixture", [(), ((30, 1.0), (40, 3.0))])
def test_streamed_frames_are_drawn_in_runs_and_resume_at_any_batch(num_workers, mixture):
    data = demonstrations([30, 40, 1])
    data = data._replace(frames=Streamed(data.frames), mixture=mixture)
    dataset = ActionChunkDataset(data, split="train", horizon=2, tokenize=tokenize)

    def loader():
        return BatchLoader(dataset, batch_size=9, seed=0, num_workers=num_workers)

    order = dataset.order(np.random.default_rng([0, 0]), dataset.run_length)
    assert (np.diff(order) == 1).mean() > 0.7 and len(order) == 70
    assert mixture or sorted(order.tolist()) == list(range(70))
    whole = states(loader())
    np.testing.assert_array_equal(torch.cat(whole), data.states[order[:63]])
    resumed = loader()
    resumed.load_state_dict(loader().state_dict() | {"batches": 3})
    assert same(states(resumed), whole[3:])
    decoded = ActionChunkDataset(data._replace(frames=data.frames._frames), split="train", horizon=2, tokenize=tokenize)
    resumed = BatchLoader(decoded, batch_size=9, seed=0)  # in the meantime they were decoded
    resumed.load_state_dict(loader().state_dict() | {"batches": 3})
    assert same(states(resumed), whole[3:])


def test_with_the_same_order_every_epoch_the_first_batches_are_always_the_same():
    loader = batches(batch_size=5, seed=3, same_every_epoch=True)
    first = states(loader)
    loader.sampler.set_epoch(7)
    assert same(states(loader), first) and same(first, states(batches(batch_size=5, seed=3)))


class Unreadable(Streamed):
    def take(self, rows, axis=0):
        raise ValueError("video.mp4 is damaged: frame 3 cannot be decoded")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_worker_refuses_is_one_line(num_workers):
    data = demonstrations([30, 1])
    dataset = ActionChunkDataset(data._replace(frames=Unreadable(data.frames)), split="train", horizon=2, tokenize=tokenize)
    with pytest.raises(ValueError) as error:
        next(iter(BatchLoader(dataset, batch_size=9, seed=0, num_workers=num_workers)))
    assert str(error.value) == "video.mp4 is damaged: frame 3 cannot be decoded"
