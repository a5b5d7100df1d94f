"""Words that training never says: which split changes which of them, that none is a word of training, and who hears of it."""

import re
from pathlib import Path

import pytest

from benchmarks.synonyms import DEVELOPMENT, DEVELOPMENT_VERBS, development_words, measure
from tests.factory import command, make_policy
from vla_mini.envs.seeds import episode_generator
from vla_mini.envs.toy_pick.scene import SYNONYM_SPLITS, sample_scene
from vla_mini.envs.toy_pick.wordings import COLOURS, HELD_OUT, SHAPES, SYNONYM_VERBS, SYNONYMS, TRAINING
from vla_mini.evaluation.evaluate import evaluate

SAID = {word for wording in (*TRAINING, *HELD_OUT) for word in wording.split()} | {*COLOURS, *SHAPES}
NEW = {word for words in SYNONYMS.values() for word in words}


def scenes(split: str, number: int = 200):
    return [sample_scene(episode_generator("evaluation", 0, episode), split=split) for episode in range(number)]


def as_said(scene) -> tuple[str, str, str]:
    """The wording, colour and shape by which an instruction names its target."""
    colour, shape = scene.things[scene.target].pair
    said = set(scene.instruction.split())
    (colour,) = said & {colour, *SYNONYMS[colour]}
    (shape,) = said & {shape, *SYNONYMS[shape]}
    return re.sub(rf"\b{shape}\b", "{shape}", re.sub(rf"\b{colour}\b", "{colour}", scene.instruction)), colour, shape


@pytest.mark.parametrize("split", SYNONYM_SPLITS)
def test_each_split_says_its_own_words_anew_and_no_others(split):
    expected = {"verbs", "colours", "shapes"} if split == "synonyms" else {split.removeprefix("synonyms_")}
    for scene in scenes(split):
        wording, colour, shape = as_said(scene)
        new = {"verbs": wording in SYNONYM_VERBS, "colours": colour in NEW, "shapes": shape in NEW}
        assert {name for name, is_new in new.items() if is_new} == expected and (new["verbs"] or wording in TRAINING)


@pytest.mark.parametrize("split", SYNONYM_SPLITS)
def test_the_scenes_are_those_of_seen(split):
    for scene, seen in zip(scenes(split, 50), scenes("seen", 50), strict=True):
        assert scene._replace(instruction="") == seen._replace(instruction="")


def test_synonyms_are_new_words_and_each_means_one_thing():
    every = [word for words in SYNONYMS.values() for word in words]
    assert SYNONYMS.keys() == {*COLOURS, *SHAPES} and len(every) == len(NEW)
    for word in every:
        assert word not in SAID and not word.startswith((*COLOURS, *SHAPES)) and not word.endswith((*COLOURS, *SHAPES))
    verbs = {word for wording in SYNONYM_VERBS for word in wording.split()} - SAID
    assert len(verbs) == len(SYNONYM_VERBS) and all(verbs & {*wording.split()} for wording in SYNONYM_VERBS)


def test_the_words_to_choose_a_method_by_are_others():
    development = [word for words in DEVELOPMENT.values() for word in words]
    assert DEVELOPMENT.keys() == SYNONYMS.keys() and len(development) == len({*development})
    verbs = {word for wording in DEVELOPMENT_VERBS for word in wording.split()} - SAID
    final_verbs = {word for wording in SYNONYM_VERBS for word in wording.split()} - SAID
    assert not {*development, *verbs} & (NEW | final_verbs | SAID)


def test_a_method_is_chosen_by_words_and_scenes_of_its_own():
    final = scenes("synonyms", 50)
    with development_words():
        words = {word for scene in scenes("synonyms", 50) for word in scene.instruction.split()}
    assert not words & NEW and words & {word for each in DEVELOPMENT.values() for word in each}
    assert scenes("synonyms", 50) == final
    figures = measure(make_policy(), episodes=2, seed=0)
    assert tuple(figures) == SYNONYM_SPLITS and all(each["episodes"] == 2 for each in figures.values())


def test_further_splits_are_played_on_request_only():
    policy = make_policy()
    metrics = evaluate(policy, "vla_mini/ToyPick-v0", episodes=2, further_splits=["synonyms_verbs"])
    assert list(metrics["splits"]) == ["seen", "held_out_pairs", "held_out_wordings", "synonyms_verbs"]
    assert metrics["splits"]["synonyms_verbs"]["episodes"] == 2
    with pytest.raises(ValueError, match=r"further_splits: .* has no split 'synonym'; did you mean 'synonyms'\?"):
        evaluate(policy, "vla_mini/ToyPick-v0", episodes=2, further_splits=["synonym"])


def test_infer_warns_of_words_that_the_policy_does_not_know(tmp_path, capsys):
    make_policy().save_pretrained(tmp_path / "policy")
    image = Path(__file__).parents[2] / "docs" / "scene.png"
    asked = [f"policy={tmp_path / 'policy'}", f"image={image}", "state=[0,0,0.8,0]"]
    for instruction, said in (("pick up the red cube", ""), ("fetch the red cube", "does not know the words 'fetch': to it")):
        assert command("infer", *asked, f"instruction={instruction}") == 0
        err = capsys.readouterr().err
        assert said in err and bool(err) == bool(said)
