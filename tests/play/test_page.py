"""The page in a real browser: words are typed, the policy succeeds, other words move the saliency; dragging, keys, tabs."""

from functools import partial

import pytest

from tests.play.conftest import TOY_PICK, make_play, serving
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.play.scenes.recording import Recording
from vla_mini.play.server import Play
from vla_mini.play.session import SAVED, Session


def outcome(page, text):
    """Wait until the outcome begins so."""
    page.wait_for_function("text => document.querySelector('#outcome').textContent.startsWith(text)", arg=text)


def brightest(page, figure):
    """Where the map is brightest, as fractions of its width and height."""
    return page.evaluate(
        """figure => {
            const canvas = document.querySelector(`#${figure} canvas`);
            const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let sum = 0, x = 0, y = 0;
            for (let p = 0; p < width * height; p++) {
                const colour = Math.max(0, data[4 * p] - data[4 * p + 2] - 20) ** 2;
                [sum, x, y] = [sum + colour, x + colour * (p % width), y + colour * Math.floor(p / width)];
            }
            return [x / sum / width, y / sum / height];
        }""",
        figure,
    )


def place(page, label):
    """The centre of an object, as fractions of the scene's width and height."""
    handle, stage = page.locator(f".handle[title='{label}']").bounding_box(), page.locator("#scene .stage").bounding_box()
    return [(handle[a] + handle[size] / 2 - stage[a]) / stage[size] for a, size in (("x", "width"), ("y", "height"))]


def highest_word(page):
    bars = page.locator("#words li")
    values = {bars.nth(i).inner_text().strip(): float(bars.nth(i).get_attribute("data-value")) for i in range(bars.count())}
    return max(values, key=values.get)


def test_type_watch_success_change_the_words_and_see_the_saliency_move(page):
    page.wait_for_selector("#scene canvas")
    page.select_option("#speed", "1000")
    page.fill("#instruction", "pick up the red star")
    page.click("#toggle")  # plays what is typed, also without Enter
    outcome(page, "Success: it lifted the red star.")
    page.wait_for_function("document.querySelector('#toggle').textContent.includes('Play')")
    assert page.locator("#step").is_disabled() and page.locator("#outcome").get_attribute("role") == "status"

    page.locator("#time").fill("0")
    for sentence, label in (("pick up the blue cube", "blue cube"), ("pick up the green cube", "green cube")):
        page.fill("#instruction", sentence)
        page.keyboard.press("Enter")
        outcome(page, f"The instruction names the {label}.")
        for figure in ("attention", "pixels"):
            assert brightest(page, figure) == pytest.approx(place(page, label), abs=0.08)
        assert highest_word(page) == label.split()[0]
    page.click("#toggle")
    outcome(page, "Success: it lifted the green cube.")


def test_drag_to_the_edge_and_move_by_keys_and_repaint(page):
    page.wait_for_selector(".handle")
    stage = page.locator("#scene .stage").bounding_box()
    before = brightest(page, "pixels")
    page.locator(".handle[title='green cube']").hover()
    page.mouse.down()
    page.mouse.move(stage["x"] + 0.5 * stage["width"], stage["y"] + 0.5 * stage["height"])
    page.mouse.move(stage["x"] + 0.98 * stage["width"], stage["y"] + 0.3 * stage["height"])
    page.mouse.up()
    page.wait_for_selector("#notes li:has-text('green cube lies nearer to the edge than any object')")
    assert page.locator("#notes").get_attribute("role") == "status"
    after = brightest(page, "pixels")
    assert after[0] > before[0] + 0.3
    page.select_option("#colour", "black")
    page.wait_for_selector("#notes li:has-text('Nothing is black in training.')")

    page.locator(".handle[title='red star']").focus()
    x, y = place(page, "red star")
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowLeft")
    assert place(page, "red star") == pytest.approx([x - 0.1, y - 0.1], abs=0.01)
    page.wait_for_timeout(500)  # no answer takes it back
    assert place(page, "red star") == pytest.approx([x - 0.1, y - 0.1], abs=0.01)
    page.click("#reset")
    page.wait_for_selector("#notes:empty", state="attached")


def test_steps_scenes_and_the_expert(page):
    page.wait_for_selector("#scene canvas")
    page.click("#step")
    page.wait_for_selector("#when:has-text('Step 1 of 1')")
    page.click("#back")
    page.wait_for_selector("#when:has-text('Step 0 of 1')")
    page.check("#expert input")
    page.wait_for_selector("#when:has-text('Step 0 of 0')")
    assert page.locator("#action .mark").count() == 4
    page.click("#next")
    page.wait_for_function("document.querySelector('#seed').value === '4'")
    page.fill("#instruction", "the " + "unheard-of " * 900)
    page.keyboard.press("Enter")
    page.wait_for_selector("#notes li:has-text('does not know')")
    page.wait_for_selector("#notes li:has-text('only the first 32 tokens')")
    assert not page.is_checked("#expert input")
    page.click("#expert input")
    outcome(page, "The expert needs an instruction that names one object")
    assert not page.is_checked("#expert input")


def test_tabs_by_keys_and_both_colour_schemes(page):
    page.wait_for_selector("#scene canvas")
    page.focus("#tab-play")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#backward .card h3:has-text('loss')")
    assert page.locator("#tab-backward").get_attribute("aria-selected") == "true" and page.is_visible("#backward")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#play") and not page.is_visible("#backward")
    page.click("#tab-learning")
    page.click("#learning button:has-text('Take one step')")
    page.wait_for_selector("#learning .losses:has-text('→')")
    page.click("#tab-play")
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.click("#theme")
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.evaluate("delete document.documentElement.dataset.theme")
    assert len(colours) == 2


def test_a_server_that_ends_is_told(browser, policy):
    page = browser.new_page()
    with serving(make_play(policy)) as address:
        page.goto(f"http://{address}/")
        page.wait_for_selector("#scene canvas")
    outcome(page, "The connection is lost")
    assert page.locator("#play button:enabled").count() == 0
    page.close()


def test_a_scene_that_cannot_be_made_is_told(browser, policy):
    def broken():
        raise ValueError("the package metaworld is missing")

    page = browser.new_page()
    with serving(Play(broken, policy, dict)) as address:
        page.goto(f"http://{address}/")
        outcome(page, "the package metaworld is missing")
        page.wait_for_function("document.querySelector('#step').disabled")
        outcome(page, "the package metaworld is missing")
        page.close()


def test_recorded_actions_are_drawn_beside_predicted_ones(browser, policy, tmp_path):
    collect(TOY_PICK, tmp_path / "data", episodes=2, num_workers=1)
    recording = partial(Recording, read_dataset(tmp_path / "data"), name="data=DIR")
    page = browser.new_page()
    with serving(Play(lambda: Session(recording(), {SAVED: lambda: policy}), policy, dict)) as address:
        page.goto(f"http://{address}/")
        for _ in range(3):
            page.click("#step")
        page.wait_for_selector("#when:has-text('Step 3 of 3')")
        lines = [line.get_attribute("points").split() for line in page.locator("#traces polyline").all()]
        assert len(lines) == 8 and {len(points) for points in lines} == {4} and lines[0] != lines[1]
        assert page.locator("#action .mark").count() == 4 and not page.is_visible("#expert")
        page.close()
