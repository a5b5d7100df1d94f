"""The page's toy_pick, in node, against Python's: equal images, states, outcomes, words."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from tests.factory import ROOT
from tests.playground.helpers import PAGE, exported_scene
from vla_mini.envs.toy_pick import drawing, phrasings
from vla_mini.envs.toy_pick import scene as scenes
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.envs.toy_pick.spec import SPEC

EPISODES = 200

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="node is missing")


def node(*arguments: str) -> str:
    result = subprocess.run(["node", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def evaluate(code: str):
    """What an expression gives in a module that imports scene.js as `scene` and random.js as `random`."""
    imports = "".join(f"import * as {name} from {json.dumps((PAGE / name).as_uri() + '.js')};" for name in ("scene", "random"))
    return json.loads(node("--input-type=module", "--eval", f"{imports} console.log(JSON.stringify({code}))"))


def observe(env: ToyPick, steps: int) -> tuple[np.ndarray, dict]:
    info = env._info()
    lifted = info["success"] or info["wrong_object"]
    state = {
        "position": env.position.tolist(),
        "closedness": env.closedness,
        "held": env.held,
        "lifted": env.held if lifted else None,
        "over": lifted or steps == SPEC.max_episode_steps,
        "objects": env.object_positions.tolist(),
    }
    return env.render(), state


def play(env: ToyPick, episode: int) -> tuple[dict, list[np.ndarray], list[dict]]:
    """The expert with noise, which in some episodes picks another object, while objects are dragged: (scene and moves, images,
    states)."""
    generator = np.random.default_rng(episode)
    split = (*SPEC.splits,)[episode % len(SPEC.splits)]
    env.reset(seed=episode, options={"split": split})
    written, named = exported_scene(env), env.scene.target
    if episode % 3 == 0:
        env.scene = env.scene._replace(target=(named + 1) % len(env.scene.objects))
    moves, steps, seen = [], 0, [observe(env, 0)]
    while not seen[-1][1]["over"]:
        if generator.random() < 0.1 and moves:
            index, point = int(generator.integers(len(env.scene.objects))), generator.uniform(-1, 1, 2).tolist()
            if index != env.held:
                env.object_positions[index] = point
                env._hold(env.held)
            moves.append({"place": [index, *point]})  # the page ignores it where the object is held
        else:
            noise = generator.uniform(-2, 2, 4) * (generator.random() < 0.25)
            action = np.float32(env.expert_action() + noise)
            env.step(action)
            steps += 1
            moves.append({"action": action.tolist()})
        seen.append(observe(env, steps))
    images, states = zip(*seen, strict=True)
    return written | {"moves": moves, "target": named}, images, states


def test_the_same_moves_lead_to_the_same_images_states_and_outcome(tmp_path):
    env = ToyPick()
    episodes, images, states = zip(*(play(env, episode) for episode in range(EPISODES)), strict=True)
    (tmp_path / "episodes.json").write_text(json.dumps(episodes))
    script = ROOT / "tests" / "playground" / "replay.mjs"
    played = json.loads(node(str(script), str(PAGE / "scene.js"), str(tmp_path / "episodes.json"), str(tmp_path / "frames")))
    frames = np.fromfile(tmp_path / "frames", np.uint8).reshape(-1, 64, 64, 3)
    np.testing.assert_array_equal(frames, np.concatenate([[*each, each[0]] for each in images]))  # the last after a reset
    ends = set()
    for episode, expected, found in zip(episodes, states, played, strict=True):
        assert found["states"] == list(expected) and found["afterReset"] == expected[0]
        assert found["named"] == [episode["target"]]
        ends.add(None if expected[-1]["lifted"] is None else expected[-1]["lifted"] == episode["target"])
    assert ends == {True, False, None}  # picked up, another one, none


def test_words_and_limits_are_those_of_python():
    found = evaluate("scene")
    assert found["COLOURS"] == list(phrasings.COLOURS) == list(drawing.PAINTS) and found["SHAPES"] == list(phrasings.SHAPES)
    assert found["PHRASINGS"] == list(phrasings.TRAINING)
    assert found["HELD_OUT_PAIRS"] == [list(pair) for pair in phrasings.HELD_OUT_PAIRS]
    assert (found["TABLE"], found["CLEARANCE"]) == (scenes.TABLE, scenes.CLEARANCE)
    assert (found["MAX_STEPS"], found["FPS"]) == (SPEC.max_episode_steps, SPEC.features.fps)


def test_new_scenes_are_distributed_as_those_of_training():
    """Rules that hold in each, and means that do not depend on the generator."""
    found = evaluate("""Array.from({length: 1000}, (_, seed) => {
      const {objects, gripper, instruction, table} = scene.sampleScene(new random.Random(seed));
      const mean = table.reduce((sum, value) => sum + value) / table.length;
      return {objects, gripper, instruction, named: scene.namedObjects(instruction, objects), mean};
    })""")
    theirs = []
    for each in found:
        objects = tuple(scenes.SceneObject(**item) for item in each["objects"])
        assert len({item.pair for item in objects}) == len(objects) in (2, 3, 4)
        points = np.array([(item.x, item.y) for item in objects])
        assert np.abs(points).max() <= scenes.TABLE
        assert min(np.hypot(*(a - b)) for i, a in enumerate(points) for b in points[:i]) >= scenes.CLEARANCE
        assert all(0.17 <= item.size <= 0.2 and 0.85 <= item.brightness <= 1.1 for item in objects)
        (target,) = each["named"]
        assert objects[target].pair not in phrasings.HELD_OUT_PAIRS
        assert each["instruction"] in [text.format(**objects[target]._asdict()) for text in phrasings.TRAINING]
        theirs.append(scenes.Scene(objects, target, each["instruction"], tuple(each["gripper"])))
        assert each["mean"] == pytest.approx(drawing.TABLE.mean(), abs=0.3)
    ours = [scenes.sample_scene(np.random.default_rng(seed)) for seed in range(1000)]
    summaries = [
        np.mean([(len(s.objects), s.two_words, s.target, *s.gripper, *s.objects[0][2:]) for s in each], axis=0)
        for each in (ours, theirs)
    ]
    np.testing.assert_allclose(*summaries, atol=0.08)
    assert len({s.objects for s in theirs}) == 1000


def test_an_instruction_names_objects_by_colour_and_shape():
    objects = [{"colour": c, "shape": s} for c, s in (("red", "cube"), ("red", "ball"), ("blue", "cube"))]
    for instruction, named in {
        "Grab the CUBE that is red!": [0],
        "the cube": [0, 2],
        "something red": [0, 1],
        "the blue ball": [],
        "pick it up": [],
        "": [],
    }.items():
        assert evaluate(f"scene.namedObjects({json.dumps(instruction)}, {json.dumps(objects)})") == named


def test_what_training_never_has_is_named():
    places = [("red", "cube", 0.9, 0), ("blue", "ball", 0, 0), ("green", "star", 0.3, 0)]
    objects = [dict(zip(("colour", "shape", "x", "y"), place, strict=True)) for place in places]
    found = evaluate(f"scene.unlikeTraining({json.dumps({'objects': objects, 'held': None})})")
    assert found == ["the red cube lies nearer to the edge", "the blue ball and the green star lie closer together"]
    assert len(evaluate(f"scene.unlikeTraining({json.dumps({'objects': objects, 'held': 0})})")) == 1
