"""Recorded episodes -> an annotated GIF and a film strip of each, and an index of them.

videos/seen_0007_success.gif  the first camera's images, enlarged, with the instruction, the step and the outcome
videos/seen_0007_success.png  the same episode as a strip of NUM_STILLS frames, first to last
videos/index.json             [{"name", "split", "task", "episode", "instruction", "steps", "outcome"}]
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_mini.evaluation.rollout import EpisodeResult, frame_stride
from vla_mini.utils import files

WIDTH = 256  # pixels of a GIF, nearly: frames are enlarged by a whole factor, so that pixels stay square and sharp
CAPTION = 64  # pixels below a frame
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.1, 1.5
NUM_STILLS, STILL_SCALE, STILL_GAP = 8, 2, 6  # of a film strip: frames, how far they are enlarged, pixels between them
BACKGROUND, INK, QUIET, GREEN, RED = (31, 35, 40), (240, 240, 236), (160, 165, 170), (63, 160, 108), (208, 84, 76)


def write_videos(folder: Path, episodes: Mapping[str, Sequence[EpisodeResult]], *, rates: Sequence[str] = ()) -> None:
    """Write the files of every episode that was recorded, split by split.

    - rates: those of the environment's spec; the first one that is true of a failure is its outcome, as "wrong object"
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for split, results in episodes.items():
        for result in results:
            if result.frames is None:
                continue
            reason = next((rate.replace("_", " ") for rate in rates if result.info[rate] is True), "out of time")
            outcome = "success" if result.success else reason
            name = "_".join(filter(None, [split, result.task, f"{result.episode:04d}", outcome.replace(" ", "_")]))
            write_gif(folder / f"{name}.gif", result, outcome)
            film_strip(result.frames).save(folder / f"{name}.png")
            entry = {"name": name, "split": split, "task": result.task, "episode": result.episode}
            index.append(entry | {"instruction": result.instruction, "steps": result.steps, "outcome": outcome})
    files.write_json(folder / "index.json", index)


def write_gif(path: Path, result: EpisodeResult, outcome: str) -> None:
    """The episode as an endless loop at 10 frames a second that stops at the last frame, with a green or red border there."""
    scale = max(1, WIDTH // result.frames.shape[2])
    frames = _enlarge(result.frames, scale)
    stride, colour = frame_stride(result.steps), GREEN if result.success else RED
    pictures = [_annotate(frame, result.instruction, stride * number) for number, frame in enumerate(frames[:-1])]
    pictures.append(_annotate(frames[-1], result.instruction, result.steps, outcome=outcome, colour=colour))
    durations = [1000 * FRAME_SECONDS] * (len(pictures) - 1) + [1000 * LAST_FRAME_SECONDS]
    # One palette for all and no dithering: pixels that do not change stay equal, so that only the others are stored again.
    # 128 colours leave room for one more, which Pillow uses for "unchanged". One pixel of each that was enlarged is enough.
    palette = Image.fromarray(np.concatenate([np.asarray(picture)[::scale, ::scale] for picture in pictures])).quantize(128)
    quantized = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    quantized[0].save(path, save_all=True, append_images=quantized[1:], duration=durations, loop=0, optimize=True)


def film_strip(frames: np.ndarray) -> Image.Image:
    """Frames (n, h, w, 3) -> a strip of NUM_STILLS of them, evenly spaced in time, with transparent gaps."""
    stills = _enlarge(frames[np.linspace(0, len(frames) - 1, NUM_STILLS).round().astype(int)], STILL_SCALE)
    distance = stills.shape[2] + STILL_GAP
    strip = Image.new("RGBA", (NUM_STILLS * distance - STILL_GAP, stills.shape[1]))
    for number, still in enumerate(stills):
        strip.paste(Image.fromarray(still), (number * distance, 0))
    return strip


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _annotate(
    frame: np.ndarray, instruction: str, step: int, *, outcome: str = "", colour: tuple[int, int, int] | None = None
) -> Image.Image:
    """The frame over a caption: two lines for the instruction, then the step and, with a border in its colour, the outcome."""
    height, width, _ = frame.shape
    canvas = Image.new("RGB", (width, height + CAPTION), BACKGROUND)
    canvas.paste(Image.fromarray(frame))
    draw, large, small = ImageDraw.Draw(canvas), ImageFont.load_default(14), ImageFont.load_default(12)
    instruction = instruction or "(no instruction)"
    letters = int(len(instruction) * (width - 20) / large.getlength(instruction))  # that fit into a line, about
    lines = textwrap.wrap(instruction, width=max(8, letters), max_lines=2, placeholder=" …")
    draw.multiline_text((10, height + 6), "\n".join(lines), font=large, fill=INK, spacing=2)
    draw.text((10, height + 45), f"step {step}", font=small, fill=QUIET)
    if outcome:
        draw.text((width - 10, height + 45), outcome, font=small, fill=colour, anchor="ra")
        draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=5)
    return canvas
