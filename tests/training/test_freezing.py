"""What is frozen costs nothing on the way back: memory, arithmetic and time of a step, with the default vision part frozen."""

import time

from torch.utils.flop_counter import FlopCounterMode

from tests.factory import make_batch, make_policy, mean_loss
from vla_mini.autograd.saved import count_saved_bytes
from vla_mini.training.freezing import freeze


def pair():
    policy, frozen = make_policy(), make_policy()
    freeze(frozen, ["vision"])
    return policy, frozen, make_batch(policy, 32)


def test_a_frozen_part_keeps_nothing_for_backward_and_is_not_computed_back_through():
    policy, frozen, batch = pair()
    saved, arithmetic = [], []
    for each in (policy, frozen):
        with count_saved_bytes(each) as bytes_, FlopCounterMode(display=False) as flops:
            mean_loss(each, batch).backward()
        saved.append(bytes_.bytes)
        arithmetic.append(flops.get_flop_counts()["Global"])
    assert saved[1] < 0.5 * saved[0]
    backward = [{str(op): count for op, count in counts.items() if "backward" in str(op)} for counts in arithmetic]
    assert sum(backward[0].values()) > 0 and not backward[1]  # of the convolutions, which are all in vision
    assert sum(arithmetic[1].values()) < 0.5 * sum(arithmetic[0].values())


def test_a_step_with_a_frozen_part_takes_less_time():
    """The quickest of some, in turns, of the processor's time, which others do not count in: about half."""
    policy, frozen, batch = pair()

    def seconds(each):
        started = time.process_time()
        mean_loss(each, batch).backward()
        return time.process_time() - started

    full, part = zip(*((seconds(policy), seconds(frozen)) for _ in range(12)), strict=True)
    assert min(part) < 0.85 * min(full)
