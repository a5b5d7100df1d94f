"""Words that training never uses: which split uses which of them, that they are new, and that they are evaluated on request."""

import re
from pathlib import Path

import pytest

from benchmarks.synonyms import DEVELOPMENT, DEVELOPMENT_VERBS, development_words, measure
from tests.factory import command, make_policy
from vla_mini.envs.seeds import episode_generator
from vla_mini.envs.toy_pick.phrasings import COLOURS, HELD_OUT, SHAPES, SYNONYM_VERBS, SYNONYMS, TRAINING
from vla_mini.envs.toy_pick.scene import sample_scene
from vla_mini.envs.toy_pick.spec import SPEC

USED = {word for phrasing in (*TRAINING, *HELD_OUT) for word in phrasing.split()} | {*COLOURS, *SHAPES}
NEW = {word for words in SYNONYMS.values() for word in words}


def scenes(split: str, number: int = 200):
    return [sample_scene(episode_generator("evaluation", 0, episode), split=split) for episode in range(number)]


def used_words(scene) -> tuple[str, str, str]:
    """The phrasing, colour and shape with which an instruction names its target."""
    colour, shape = scene.objects[scene.target].pair
    words = set(scene.instruction.split())
    (colour,) = words & {colour, *SYNONYMS[colour]}
    (shape,) = words & {shape, *SYNONYMS[shape]}
    return re.sub(rf"\b{shape}\b", "{shape}", re.sub(rf"\b{colour}\b", "{colour}", scene.instruction)), colour, shape


@pytest.mark.parametrize("split", SPEC.further_splits)
def test_each_split_replaces_its_own_words_and_no_others(split):
    expected = {"verbs", "colours", "shapes"} if split == "synonyms" else {split.removeprefix("synonyms_")}
    for scene in scenes(split):
        phrasing, colour, shape = used_words(scene)
        new = {"verbs": phrasing in SYNONYM_VERBS, "colours": colour in NEW, "shapes": shape in NEW}
        assert {name for name, is_new in new.items() if is_new} == expected and (new["verbs"] or phrasing in TRAINING)


@pytest.mark.parametrize("split", SPEC.further_splits)
def test_the_scenes_are_those_of_seen(split):
    for scene, seen in zip(scenes(split, 50), scenes("seen", 50), strict=True):
        assert scene._replace(instruction="") == seen._replace(instruction="")


def test_synonyms_are_new_words_and_each_means_one_thing():
    every = [word for words in SYNONYMS.values() for word in words]
    assert SYNONYMS.keys() == {*COLOURS, *SHAPES} and len(every) == len(NEW)
    for word in every:
        assert word not in USED and not word.startswith((*COLOURS, *SHAPES)) and not word.endswith((*COLOURS, *SHAPES))
    verbs = {word for phrasing in SYNONYM_VERBS for word in phrasing.split()} - USED
    assert len(verbs) == len(SYNONYM_VERBS) and all(verbs & {*phrasing.split()} for phrasing in SYNONYM_VERBS)


def test_the_words_for_selecting_a_method_are_others():
    development = [word for words in DEVELOPMENT.values() for word in words]
    assert DEVELOPMENT.keys() == SYNONYMS.keys() and len(development) == len({*development})
    verbs = {word for phrasing in DEVELOPMENT_VERBS for word in phrasing.split()} - USED
    final_verbs = {word for phrasing in SYNONYM_VERBS for word in phrasing.split()} - USED
    assert not {*development, *verbs} & (NEW | final_verbs | USED)


def test_a_method_is_selected_by_words_and_scenes_of_its_own():
    final = scenes("synonyms", 50)
    with development_words():
        words = {word for scene in scenes("synonyms", 50) for word in scene.instruction.split()}
    assert not words & NEW and words & {word for each in DEVELOPMENT.values() for word in each}
    assert scenes("synonyms", 50) == final
    figures = measure(make_policy(), episodes=2, seed=0)
    assert list(figures) == list(SPEC.further_splits) and all(each["episodes"] == 2 for each in figures.values())


def test_infer_warns_of_words_that_the_policy_does_not_know(tmp_path, capsys):
    make_policy().save_pretrained(tmp_path / "policy")
    image = Path(__file__).parents[2] / "docs" / "scene.png"
    arguments = [f"policy={tmp_path / 'policy'}", f"image={image}", "state=[0,0,0.8,0]"]
    for instruction, warning in (("pick up the red cube", ""), ("fetch the red cube", "'fetch'")):
        assert command("infer", *arguments, f"instruction={instruction}") == 0
        err = capsys.readouterr().err
        assert warning in err and bool(err) == bool(warning)
