"""The page of scripts/play.py: how long until its first picture, and how many actions a second, each with its saliency.

python benchmarks/play.py policy=DIR [seconds=10] [output=benchmarks/results/play.json]

- first picture: from the moment at which the server listens until a browser that is running already has drawn the scene
- actions a second, page: in that browser, played as fast as it can, all pictures drawn; server: without a browser

Needs the package playwright, and chromium.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from websockets.sync.client import connect

from benchmarks._machine import print_table, read_arguments, save

TARGETS = {"first_picture_seconds": 3.0, "page_actions_per_second": 10.0}


def main() -> None:
    defaults = {"policy": "runs/toy_pick/latest/policy", "seconds": 10.0}
    arguments = read_arguments(**defaults, output="benchmarks/results/play.json")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        command = [sys.executable, "scripts/play.py", f"policy={arguments['policy']}", "port=0", "open=false"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            address = process.stdout.readline().split(" at http://")[1].split("/")[0]
            figures = in_browser(browser, address, arguments["seconds"])
            figures["server_actions_per_second"] = without_browser(address, arguments["seconds"])
            figures["load_average"] = os.getloadavg()[0]  # of the last minute, this benchmark included
            process.terminate()
        browser.close()
    print_table(list(figures.items()), header=("", "value"))
    save({name: arguments[name] for name in defaults} | figures | {"targets": TARGETS}, arguments["output"])


def in_browser(browser: Browser, address: str, seconds: float) -> dict[str, Any]:
    start = time.perf_counter()
    page = browser.new_page()
    page.goto(f"http://{address}/")
    page.wait_for_selector("#scene canvas")
    first = time.perf_counter() - start
    page.select_option("#speed", "1000")
    actions, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:  # each episode of another scene, until it is over
        page.click("#toggle")
        page.wait_for_function("document.querySelector('#step').disabled")
        actions += int(page.input_value("#time"))
        page.click("#next")
        page.wait_for_function("document.querySelector('#when').textContent.startsWith('Step 0 of 0')")
    return {"first_picture_seconds": first, "page_actions_per_second": actions / (time.perf_counter() - start)}


def without_browser(address: str, seconds: float) -> float:
    with connect(f"ws://{address}/ws", max_size=None) as visitor:
        view, actions, start = json.loads(visitor.recv()), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            over = view["outcome"]["kind"] != "running"
            visitor.send(json.dumps({"do": "reset", "with": [view["seed"] + 1]} if over else {"do": "step", "with": []}))
            view, actions = json.loads(visitor.recv()), actions + (not over)
        return actions / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
