"""Both tabs in a real browser: back to the pixels by button and by key, a switch, a mistake, a step of learning."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import vla_mini
from tests.factory import make_batch, make_policy
from vla_mini.play import backward, learning
from vla_mini.play.trace import PIXELS

STATIC = Path(vla_mini.__file__).parent / "play" / "static"
TABS = {"backward": backward, "learning": learning}
PAGE = """<!doctype html><html lang="en"><title>{tab}</title><link rel="icon" href="data:,">
<style>:root {{ --surface: #fff; --accent: #00f; --positive: #0a0; --negative: #a00 }}</style>
<link rel="stylesheet" href="/{tab}.css">
<section role="tabpanel" id="panel"></section><script type="module">
import {{ mount }} from "/{tab}.js";
mount(document.getElementById("panel"), async (request) => {{
  const answer = await fetch("/{tab}", {{ method: "POST", body: JSON.stringify(request) }});
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}});</script></html>"""


class Handler(SimpleHTTPRequestHandler):
    policy, batch = None, None

    def __init__(self, *args):
        super().__init__(*args, directory=str(STATIC))

    def log_message(self, *args):
        pass

    def do_GET(self):
        tab = self.path.strip("/")
        if tab in TABS:
            self.reply(200, "text/html", PAGE.format(tab=tab))
        else:
            super().do_GET()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            self.reply(200, "application/json", json.dumps(TABS[self.path.strip("/")].answer(self.policy, self.batch, request)))
        except ValueError as error:
            self.reply(400, "application/json", json.dumps({"error": str(error)}))

    def reply(self, status, kind, text):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def server():
    Handler.policy = make_policy()
    Handler.batch = make_batch(Handler.policy, 16)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@contextmanager
def opened(browser, url):
    """A page that has no errors of its own."""
    page, errors = browser.new_page(), []
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(url)
    yield page
    assert errors == []
    page.close()


def test_stepping_back_to_the_pixels(browser):
    with server() as url, opened(browser, f"{url}/backward") as page:
        title, count = page.locator(".card h3"), page.locator(".count")
        page.get_by_text("Its derivative by itself is 1").wait_for()
        assert title.inner_text() == "loss" and count.inner_text().startswith("1 of ")
        seen = []
        while title.inner_text() != PIXELS:
            page.get_by_role("button", name="Step").click()
            seen.append(title.inner_text())
            assert len(seen) < 20
        assert {"action", "trunk", "vision"} <= set(seen)

        shown = backward.answer(Handler.policy, Handler.batch, {})
        (row,) = (row for row in shown["components"] if row["name"] == PIXELS)
        assert f"norm {row['norm']:.3g}" in page.locator(".card").inner_text()
        picture = page.get_by_role("img", name="at each pixel")
        data = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        red = picture.evaluate(data)[::4]
        drawn = next(step["picture"] for step in shown["steps"] if step["component"] == PIXELS and step["picture"])
        expected = base64.b64decode(drawn["data"])  # 127 = the accent's blue, 0 = white
        assert red == [round(255 * (1 - size / 127)) for size in expected]

        number = int(count.inner_text().split()[0])
        page.keyboard.press("ArrowLeft")
        assert count.inner_text().split()[0] == str(number - 1) and title.inner_text() == "vision"
        page.get_by_label("one node of the graph").check()
        assert count.inner_text().endswith(f"of {len(shown['steps'])}")
        here = int(count.inner_text().split()[0])
        page.keyboard.press("ArrowRight")  # a step, not the other choice
        assert count.inner_text() == f"{here + 1} of {len(shown['steps'])}"
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Play").click()
        page.wait_for_function("Number(document.querySelector('.count').textContent.split(' ')[0]) > 2")
        page.get_by_role("button", name="Pause").click()


def test_a_switch_shows_where_the_flow_ends_and_a_mistake_is_shown(browser):
    with server() as url, opened(browser, f"{url}/backward") as page:
        page.locator(".switches summary").click()
        page.get_by_label("no_grad").select_option("vision")
        page.get_by_text("The flow ends before vision and pixels").wait_for()
        assert page.locator(".box.cut text").all_text_contents() == ["vision", "pixels"]
        assert "no gradient" in page.get_by_role("row", name="pixels").inner_text()
        for name in backward.answer(Handler.policy, Handler.batch, {})["choices"]["freeze"]:
            page.get_by_role("checkbox", name=name, exact=True).check()
        page.get_by_text("nothing trainable is left").wait_for()
        page.get_by_role("button", name="All switches off").click()
        page.wait_for_function("document.querySelectorAll('.box.cut').length === 0")
        assert page.locator(".mistake").text_content() == ""


def test_a_step_of_learning_and_ten(browser):
    with server() as url, opened(browser, f"{url}/learning") as page:
        shown = learning.answer(Handler.policy, Handler.batch, {})
        page.get_by_role("button", name="Take one step").click()
        page.get_by_text(f"Loss {shown['before']:.3g} → {shown['after']:.3g}").wait_for()
        page.get_by_label("Optimizer").select_option("sgd")
        page.get_by_role("spinbutton", name="learning rate", exact=True).fill("0")
        page.get_by_role("button", name="Take one step").click()
        page.get_by_text("learning_rate=0 is not a number above 0").wait_for()
        page.get_by_label("SGD: learning rate").fill("1e36")
        page.get_by_role("button", name="Take ten steps").click()
        page.get_by_text("SGD: not finite after 1 step").wait_for()
        page.get_by_text("The same as a table").click()
        assert page.locator(".chart tbody tr").count() == 11
        assert "not finite" in page.locator(".chart tbody tr").nth(1).inner_text()
