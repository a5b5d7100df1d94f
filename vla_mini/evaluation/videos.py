"""Recorded episodes in, pictures for people out: an annotated GIF and a film strip of each, and an index of them.

videos/seen_0007_success.gif  what the first camera saw, enlarged, with the instruction, the step and the outcome
videos/seen_0007_success.png  the same episode as a strip of NUM_STILLS frames, first to last
videos/index.json             [{"name", "split", "episode", "instruction", "steps", "outcome"}]
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_mini.evaluation.rollout import EpisodeResult

NUM_STILLS = 8
WIDTH = 256  # pixels of a GIF, nearly: frames grow by a whole factor, so that pixels stay square and sharp
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.1, 1.5
PAPER, INK, QUIET = (31, 35, 40), (240, 240, 236), (160, 165, 170)
OUTCOME_COLOURS = {"success": (63, 160, 108), "wrong object": (208, 84, 76), "out of time": (208, 84, 76)}


def write_videos(folder: Path, played: Mapping[str, Sequence[EpisodeResult]]) -> list[Path]:
    """Writes the pictures of every result that was recorded, split by split; returns the GIFs."""
    folder.mkdir(parents=True, exist_ok=True)
    gifs, index = [], []
    for split, results in played.items():
        for result in results:
            if result.frames is None:
                continue
            name = f"{split}_{result.episode:04d}_{outcome(result).replace(' ', '_')}"
            write_gif(folder / f"{name}.gif", result)
            film_strip(result.frames).save(folder / f"{name}.png")
            gifs.append(folder / f"{name}.gif")
            facts = {"name": name, "split": split, "episode": result.episode, "instruction": result.instruction}
            index.append(facts | {"steps": result.steps, "outcome": outcome(result)})
    (folder / "index.json").write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return gifs


def outcome(result: EpisodeResult) -> str:
    """In words: success, wrong object or out of time."""
    if result.success:
        return "success"
    return "wrong object" if result.wrong_object else "out of time"


def write_gif(path: Path, result: EpisodeResult) -> None:
    """The episode as an endless loop at 10 frames a second that rests on the last frame, framed green or red."""
    assert result.frames is not None, f"episode {result.episode} was not recorded"
    last = len(result.frames) - 1
    pictures = [_annotate(frame, result, step=step, is_last=step == last) for step, frame in enumerate(result.frames)]
    durations = [1000 * FRAME_SECONDS] * last + [1000 * LAST_FRAME_SECONDS]
    # One palette for all and no dithering: what does not move stays equal, and only what moves is stored again. 128
    # colours leave Pillow room for one more, which means "as before".
    palette = _side_by_side(pictures).quantize(128)
    quantized = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    quantized[0].save(path, save_all=True, append_images=quantized[1:], duration=durations, loop=0, optimize=True)


def film_strip(frames: np.ndarray, *, num_stills: int = NUM_STILLS, scale: int = 2, gap: int = 6) -> Image.Image:
    """Frames (n, h, w, 3) -> a strip of `num_stills` of them, evenly spaced, on a transparent ground."""
    chosen = np.linspace(0, len(frames) - 1, num_stills).round().astype(int)
    return _side_by_side([_enlarge(frames[index], scale) for index in chosen], gap=gap)


def _annotate(frame: np.ndarray, result: EpisodeResult, *, step: int, is_last: bool) -> Image.Image:
    """One frame, enlarged, over a caption of two lines of instruction and one that counts the steps."""
    picture = _enlarge(frame, max(1, WIDTH // frame.shape[1]))
    width, height = picture.size
    canvas = Image.new("RGB", (width, height + 64), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(14), ImageFont.load_default(12)
    instruction = result.instruction or "(no instruction)"
    letters = int(len(instruction) * (width - 20) / large.getlength(instruction))  # that fit into a line, about
    lines = textwrap.wrap(instruction, width=max(8, letters), max_lines=2, placeholder=" …")
    draw.multiline_text((10, height + 6), "\n".join(lines), font=large, fill=INK, spacing=2)
    draw.text((10, height + 45), f"step {step}", font=small, fill=QUIET)
    if is_last:
        colour = OUTCOME_COLOURS[outcome(result)]
        draw.text((width - 10, height + 45), outcome(result), font=small, fill=colour, anchor="ra")
        draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=5)
    return canvas


def _enlarge(frame: np.ndarray, scale: int) -> Image.Image:
    return Image.fromarray(frame).resize((scale * frame.shape[1], scale * frame.shape[0]), Image.Resampling.NEAREST)


def _side_by_side(pictures: Sequence[Image.Image], *, gap: int = 0) -> Image.Image:
    """One row of pictures of one size; what shows in the gaps between them is transparent."""
    width, height = pictures[0].size
    row = Image.new("RGBA" if gap else "RGB", (len(pictures) * (width + gap) - gap, height))
    for position, picture in enumerate(pictures):
        row.paste(picture, (position * (width + gap), 0))
    return row
