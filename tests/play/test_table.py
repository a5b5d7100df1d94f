"""toy_pick's table in a visitor's hands: which changes are possible, and what is said of those that training never showed."""

import numpy as np
import pytest

from tests.play.conftest import make_session


@pytest.fixture
def session(policy):
    return make_session(policy)


def test_scenes_as_in_training_have_no_notes(policy):
    session = make_session(policy)
    for seed in range(30):
        session.reset(seed)
        assert session.shown.notes == []


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ([("move", 0, 0.02, 0.5)], "The red star lies nearer to the edge than any object does in training."),
        ([("recolour", 0, "cyan")], "Nothing is cyan in training."),
        (
            [("recolour", 2, "yellow"), "the yellow cube"],
            "Training never asks for a yellow cube: this pair of words is held out.",
        ),
        ([("recolour", 1, "green")], "Two objects have the same colour and shape, which happens in no scene of training."),
        (
            [("move", 0, 0.5, 0.5), ("move", 1, 0.55, 0.5)],
            "The red star and the blue cube are nearer to each other than objects are at the start of an episode in training.",
        ),
        (["grab the crimson gizmo"], "The policy does not know “crimson”, “gizmo”: all unknown words are the same to it."),
        (
            ["a b c d e f g h"],
            "The policy does not know “a”, “b”, “c”, “d”, “e”, “f” and 2 more: all unknown words are the same to it.",
        ),
        (["pick up the red star " * 500], "The policy reads only the first 32 tokens of these words."),
    ],
)
def test_what_training_never_showed_is_said(session, changes, note):
    for change in changes:
        session.say(change) if isinstance(change, str) else session.change(*change)
    assert note in session.shown.notes


def test_an_unknown_word_has_a_bar_of_its_own(session):
    session.say("grab the crimson cube")
    assert [word for word, _ in session.shown.look.words] == ["[START]", "grab", "the", "crimson", "cube"]
    assert session.shown.outcome[1] == "The instruction names no single object of this scene."  # there is no red cube


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("move", 7, 0.5, 0.5), "index=7 is no object of this scene, which has 3"),
        (("move", 0, float("nan"), 0.5), "is no place in the image"),
        (("recolour", 0, "beige"), "colour='beige' is not one of red, green"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(session, change, message):
    before = session.unwrapped.render()
    with pytest.raises(ValueError, match=message):
        session.change(*change)
    np.testing.assert_array_equal(session.unwrapped.render(), before)
    assert session.shown.changes == []


def test_an_object_that_is_held_cannot_be_dragged(session):
    while session.unwrapped.held is None:
        session.step()
    assert [handle["label"] for handle in session.shown.handles] == ["red star", "blue cube", "gripper"]
    with pytest.raises(ValueError, match="the green cube is held: move the gripper"):
        session.change("move", 2, 0.5, 0.5)


def test_a_repainted_object_is_named_by_its_new_colour_alone(session):
    session.say("pick up the blue cube")
    session.change("recolour", 1, "yellow")
    assert session.shown.outcome == ("running", "The instruction names no single object of this scene.")
    session.change("recolour", 2, "blue")
    assert session.shown.outcome == ("running", "The instruction names the blue cube.")
    assert session.unwrapped.scene.target == 2
