"""The page in a headless browser: it plays as Python does, and does what its controls say."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.playground.helpers import PAGE, TIMEOUT, exported_scene
from vla_mini.acting import Controller, step_together
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.envs.toy_pick.spec import SPEC
from vla_mini.evaluation.metrics import wilson
from vla_mini.export import ExportedPolicy, runtime

# Plays scenes of Python's with the policy in a folder: what was lifted in how many steps.
PLAY = """async ({scenes, folder}) => {
  const {Scene} = await import("/scene.js");
  const {Controller, Policy} = await import("/policy.js");
  const {Random} = await import("/random.js");
  const ort = await import("/vendor/onnxruntime.js");
  ort.env.wasm.wasmPaths = {wasm: new URL("/vendor/onnxruntime.wasm", location).href};
  ort.env.wasm.numThreads = 1;
  const read = (name) => fetch(`/${folder}/${name}`);
  const policy = await Policy.load(ort, {
    config: await (await read("policy.json")).json(),
    tokenizer: await (await read("tokenizer.json")).json(),
    graph: new Uint8Array(await (await read("policy.onnx")).arrayBuffer()),
  });
  const results = [];
  for (const {table, noise, ...fields} of scenes) {
    const bytes = Uint8Array.from(atob(table), (letter) => letter.charCodeAt(0));
    const scene = new Scene({...fields, table: new Float32Array(bytes.buffer)});
    const random = noise ? {normal: () => noise.shift()} : new Random(1);
    const controller = new Controller(policy, random);
    const actions = [];
    while (!scene.over) {
      const observation = {image: scene.render(), state: scene.state, instruction: scene.instruction};
      const action = await controller.step(observation);
      scene.step(action);
      actions.push([...action]);
    }
    const attention = controller.attention && [...controller.attention];
    results.push({lifted: scene.lifted, steps: scene.steps, named: fields.named, actions, attention});
  }
  return results;
}"""


def play_in_python(policy: ExportedPolicy, number: int) -> tuple[list[dict], list[dict]]:
    """(the scenes for the page, what was lifted in how many steps)."""
    envs = [ToyPick() for _ in range(number)]
    observations = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    controllers = [Controller(policy, seed=seed) for seed in range(number)]
    scenes = [exported_scene(env) | {"named": env.scene.target} for env in envs]
    results = [{"steps": 0, "lifted": None, "over": False} for _ in envs]
    while active := [i for i, result in enumerate(results) if not result["over"]]:
        actions = step_together([controllers[i] for i in active], [observations[i] for i in active])
        for i, action in zip(active, actions, strict=True):
            observations[i], _, over, _, _ = envs[i].step(action)
            steps = results[i]["steps"] + 1
            lifted = envs[i].held if over else None
            results[i] = {"steps": steps, "lifted": lifted, "over": over or steps == SPEC.max_episode_steps}
    return scenes, results


@pytest.mark.parametrize(("folder", "number"), [("policy", 20), ("built", 100)])
def test_the_policy_succeeds_as_in_python(site, open_page, folder, number):
    """policy: one that needs no training; built: what `make playground` has exported."""
    if folder == "built":
        if not (PAGE / "policy" / "policy.onnx").is_file():
            pytest.skip("docs/playground/policy is missing: make playground")
        (site / folder).symlink_to(PAGE / "policy")
    scenes, expected = play_in_python(ExportedPolicy(site / folder), number)
    found = open_page(site).evaluate(PLAY, {"scenes": scenes, "folder": folder})
    successes = [sum(end["lifted"] == s["named"] for end, s in zip(ends, scenes, strict=True)) for ends in (expected, found)]
    low, high = wilson(successes[0], number)
    print(f"{folder}: {successes[1]} of {number} scenes in the page, {successes[0]} in Python ({low:.3f} to {high:.3f})")
    assert successes[0] > number / 2 and low <= successes[1] / number <= high
    # Sums of floats in another order can change an action by a little, and at a threshold by more.
    same = [(a["lifted"], a["steps"]) == (b["lifted"], b["steps"]) for a, b in zip(expected, found, strict=True)]
    print(f"{sum(same)} of {number} end in the same step")
    assert np.mean(same) >= 0.9
    assert np.mean([a["lifted"] == b["lifted"] for a, b in zip(expected, found, strict=True)]) >= 0.95


def test_history_ensembles_and_noise_are_those_of_the_controller(site, open_page, monkeypatch):
    """sampling/ observes two frames, averages overlapping chunks and starts from noise, here the same in both."""
    noises, draw = [], runtime.draw_noise

    def draw_noise(*arguments):
        noises.append(draw(*arguments))
        return noises[-1]

    policy, env = ExportedPolicy(site / "sampling"), ToyPick()
    monkeypatch.setattr("vla_mini.export.runtime.draw_noise", draw_noise)
    observation, _ = env.reset(seed=3)
    scene, controller, expected = exported_scene(env), Controller(policy), []
    for _ in range(SPEC.max_episode_steps):
        expected.append(controller.step(observation))
        observation = env.step(expected[-1])[0]
    assert env.held is None  # so that the page, too, takes all steps
    (found,) = open_page(site).evaluate(
        PLAY, {"scenes": [scene | {"noise": torch.cat(noises).flatten().tolist()}], "folder": "sampling"}
    )
    np.testing.assert_allclose(found["actions"], expected, rtol=1e-3, atol=1e-3)
    assert np.ptp(expected, axis=0).min() > 0.1  # the actions differ from step to step
    assert len(found["attention"]) == 256 and sum(found["attention"]) < 1  # the rest is on the frame before


def test_instructions_are_tokenized_as_in_python(site, open_page):
    tokenizer = Tokenizer.from_file(str(site / "policy" / "tokenizer.json"))
    texts = [
        *(
            "",
            "Pick up the RED cube!",
            "pick up the crimson,star",
            "  red\u00a0cube\t",
            "ＲＥＤ ball",
            "red-cube's",
            "😀 star…",
        ),
        *("[UNK] cube", "red[START]ball[PAD]", "빨간 공", "x\u0301y_z \u200d", "constructor", "red " * 40, "crimson " * 3000),
    ]
    generator = np.random.default_rng(0)
    letters = [*"abcRED _-.,'[]0²ßÄİ\u0301\u3000ﬁ🟥공", " red ", " cube ", "[UNK]"]
    texts += ["".join(generator.choice(letters, 12)) for _ in range(300)]
    code = """async (texts) => {
      const {Tokenizer} = await import("/policy.js");
      const tokenizer = new Tokenizer(await (await fetch("/policy/tokenizer.json")).json());
      return texts.map((text) => tokenizer.encode(text));
    }"""
    for text, found in zip(texts, open_page(site).evaluate(code, texts), strict=True):
        expected = tokenizer.encode(text)
        assert found["tokens"] == expected.ids, text
        assert len(found["unknown"]) == expected.tokens.count("[UNK]")
        assert found["cut"] == bool(expected.overflowing)


def until(page, condition) -> None:
    """Wait for what the page does in its own time."""
    for _ in range(TIMEOUT // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page did not get there")


def outcome(page, *, after: str = "Play again") -> str:
    page.get_by_role("button", name=after, exact=True).and_(page.locator(":enabled")).wait_for()
    return page.locator("#outcome").inner_text()


def glow(page) -> list[float]:
    """Where the glow is brightest, as shares of the image's width and height."""
    return page.evaluate("""() => {
      const {data} = document.querySelector("#attention").getContext("2d").getImageData(0, 0, 64, 64);
      let best = 0;
      for (let i = 0; i < 64 * 64; i++) if (data[4 * i + 3] > data[4 * best + 3]) best = i;
      return [(best % 64) / 64, Math.floor(best / 64) / 64];
    }""")


def place_of(page, name: str) -> list[float]:
    """Of an object, as shares of the image's width and height."""
    stage, handle = (page.locator(each).bounding_box() for each in ("#stage", f"#objects button[aria-label^='{name}']"))
    return [(handle[at] + handle[size] / 2 - stage[at]) / stage[size] for at, size in (("x", "width"), ("y", "height"))]


def looks_at(page, name: str) -> bool:
    return np.allclose(glow(page), place_of(page, name), atol=0.04)


def names(page) -> list[str]:
    return page.locator("#suggestions button").all_inner_texts()


def test_it_picks_up_what_is_named_also_when_the_words_change_on_the_way(site, open_page):
    page = open_page(site)
    assert outcome(page, after="Play") == "Press Play."
    one, other = names(page)[:2]
    instruction = page.get_by_label("Instruction")
    instruction.fill(f"grab the {one}")
    instruction.press("Enter")
    assert outcome(page).startswith(f"Success: it picked up the {one} in ")
    instruction.fill(f"grab the {other}")
    assert one in page.locator("#outcome").inner_text()  # what has happened stays
    page.get_by_role("button", name="Start over").click()
    instruction.fill(f"grab the {one}")
    for step in range(1, 4):
        page.get_by_role("button", name="One step").click()
        page.get_by_text(f"Step {step} of at most 48").wait_for()
    instruction.fill(f"grab the {other}")
    page.get_by_role("button", name="Play").click()
    assert outcome(page).startswith(f"Success: it picked up the {other} in ")


def test_it_looks_elsewhere_when_words_or_objects_change(site, open_page):
    page = open_page(site)
    page.locator("#looking").wait_for()
    one, other = names(page)[:2]
    for name in (one, other):
        page.locator("#suggestions").get_by_role("button", name=name).click()
        assert page.locator("#instruction").input_value() == f"pick up the {name}"
        until(page, lambda name=name: looks_at(page, name))
        assert f" % on the {name}" in page.locator("#looking").inner_text()
    handle, before = page.get_by_label(other), place_of(page, other)
    handle.focus()
    for key in ("ArrowLeft", "ArrowUp"):
        handle.press(key)
    np.testing.assert_allclose(place_of(page, other), np.subtract(before, 0.04 / 2.2), atol=0.003)
    stage = page.locator("#stage").bounding_box()
    handle.hover()
    page.mouse.down()
    page.mouse.move(stage["x"] + 0.95 * stage["width"], stage["y"] + 0.5 * stage["height"], steps=5)
    page.mouse.up()
    np.testing.assert_allclose(place_of(page, other), [0.95, 0.5], atol=0.02)
    until(page, lambda: looks_at(page, other))
    assert page.locator("#unlike").inner_text() == f"Unlike in training, the {other} lies nearer to the edge."
    page.get_by_label("Show where it looks").uncheck()
    assert not page.locator("#attention").is_visible()
    page.get_by_role("button", name="New scene").click()
    assert page.locator("#unlike").inner_text() == "" and names(page) != [one, other]


def test_unknown_and_too_many_words_are_named(site, open_page):
    page = open_page(site)
    outcome(page, after="Play")
    instruction, words = page.get_by_label("Instruction"), page.locator("#words")
    for text, said in {
        "pick up the crimson <b>Cube": "Not in the policy's vocabulary: “crimson”, “<”, “b”, “>”. To the policy,",
        "red " * 2500: "It reads only the first 31 words.",
        "w1 w2 w3 w4 w5 w6 w7": "“w5” and 2 more.",
        "pick up the red cube": "",
    }.items():
        instruction.fill(text)
        assert said in words.inner_text() if said else words.inner_text() == ""
    page.get_by_role("button", name="One step").click()
    page.get_by_text("Step 1 of at most 48").wait_for()


def sources(folder):
    """The page as it is in the repository."""
    for path in PAGE.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


def test_a_page_that_was_not_built_says_what_is_missing(open_page, tmp_path):
    page = open_page(sources(tmp_path))
    said = page.get_by_role("alert").inner_text()
    missing = ("vendor/onnxruntime.js", "policy/policy.json", "policy/tokenizer.json", "policy/policy.onnx")
    assert said.startswith("This page has not been built: ") and all(f"{name} is missing" in said for name in missing)
    assert said.endswith("make playground")
    assert page.get_by_role("button", name="Play").is_disabled()
    page.get_by_role("button", name="New scene").click()
    assert len(names(page)) >= 2


def test_a_page_that_is_opened_without_a_server_says_so(browser):
    page = browser.new_page()
    page.goto((PAGE / "index.html").as_uri())
    assert "This page runs only from a web server: python -m http.server" in page.get_by_role("alert").inner_text()
    page.close()


def test_another_environments_policy_is_refused(site, open_page, tmp_path):
    sources(tmp_path)
    (tmp_path / "vendor").symlink_to(PAGE / "vendor")
    shutil.copytree(site / "policy", tmp_path / "policy")
    config = tmp_path / "policy" / "policy.json"
    config.write_text(config.read_text().replace("ToyPick", "PushT"))
    alert = open_page(tmp_path).get_by_role("alert")
    assert alert.inner_text() == "The policy was trained on vla_mini/PushT-v0; this page plays vla_mini/ToyPick-v0."
