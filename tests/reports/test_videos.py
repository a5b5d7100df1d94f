import json

import numpy as np
import pytest
from PIL import Image

from vla_mini.evaluation.rollout import EpisodeResult
from vla_mini.reports.videos import GREEN, NUM_STILLS, RED, film_strip, write_videos


def result(
    *, episode: int = 7, instruction: str = "pick up the red cube", success: bool = True, task: str | None = None, **info: bool
) -> EpisodeResult:
    frames = np.full((6, 64, 64, 3), 200, np.uint8)
    for step in range(6):
        frames[step, 10 * step : 10 * step + 10] = (200, 40 * step, 30)
    return EpisodeResult(episode, instruction, 5, success, {"two_words": True, "wrong_object": False} | info, frames, task)


def rgb_frames(path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        pictures = []
        for index in range(gif.n_frames):
            gif.seek(index)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
        return pictures


def test_names_and_index(tmp_path):
    failures = [
        result(episode=31, success=False, wrong_object=True),
        result(episode=32, success=False),
        result(episode=33)._replace(frames=None),
    ]
    write_videos(tmp_path / "videos", {"seen": [result(), *failures]}, rates=("wrong_object",))
    names = ["seen_0007_success", "seen_0031_wrong_object", "seen_0032_out_of_time"]
    index = json.loads((tmp_path / "videos" / "index.json").read_text())
    assert [entry["name"] for entry in index] == names
    assert index[1] == {
        "name": "seen_0031_wrong_object",
        "split": "seen",
        "task": None,
        "episode": 31,
        "instruction": "pick up the red cube",
        "steps": 5,
        "outcome": "wrong object",
    }
    files = {path.name for path in (tmp_path / "videos").iterdir()}
    assert files == {"index.json", *(f"{name}.{kind}" for name in names for kind in ("gif", "png"))}


@pytest.mark.parametrize(("success", "border"), [(True, GREEN), (False, RED)])
def test_gif_shows_every_frame_and_ends_in_the_colour_of_the_outcome(tmp_path, success, border):
    write_videos(tmp_path, {"seen": [result(success=success)]})
    (path,) = tmp_path.glob("*.gif")
    pictures = rgb_frames(path)
    assert len(pictures) == 6
    for step, picture in enumerate(pictures):  # the moving bar, four times as large, inside the last frame's border
        assert np.abs(picture[40 * step + 20, 128] - (200, 40 * step, 30)).max() < 12
    assert np.abs(pictures[-1][1, 100] - border).max() < 12
    assert np.abs(pictures[-2][250, 1] - border).max() > 40


@pytest.mark.parametrize("instruction", ["", "빨간 상자를 집어", "a " * 200, "x" * 100])
def test_any_instruction_can_be_drawn(tmp_path, instruction):
    write_videos(tmp_path, {"seen": [result(instruction=instruction)]})
    (path,) = tmp_path.glob("*.gif")
    assert rgb_frames(path)[0].shape == (320, 256, 3)
    assert json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))[0]["instruction"] == instruction


def test_film_strip_runs_from_the_first_to_the_last_frame():
    frames = result().frames
    strip = np.asarray(film_strip(frames))  # enlarged twofold, gaps of 6 pixels
    assert strip.shape == (128, NUM_STILLS * 134 - 6, 4)
    np.testing.assert_array_equal(strip[::2, :128:2, :3], frames[0])
    np.testing.assert_array_equal(strip[::2, -128::2, :3], frames[-1])
    assert (strip[:, 128:134, 3] == 0).all()
