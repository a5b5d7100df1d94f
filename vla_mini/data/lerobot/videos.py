"""A video file -> its frames by number, uint8 (h, w, 3) RGB, bit for bit as when it is decoded from its start.

A frame's number is its place in the order of presentation, found from the packets' timestamps without decoding. Numbers, and
not times, say which frame is meant. By PyAV, which brings FFmpeg: AV1, H.264, H.265, MPEG-4 and more.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vla_mini.utils.errors import one_line

ERRORS = (av.FFmpegError, OSError, ValueError, IndexError, MemoryError)


class VideoIndex(NamedTuple):
    """The frames of a video: when each is shown, in units of its stream, and those that decoding may begin at."""

    times: np.ndarray  # (n,) int64, rising
    keyframes: np.ndarray  # (m,) int64, rising numbers of frames


@lru_cache(maxsize=4096)
def read_index(path: Path) -> VideoIndex:
    """The index of a video's frames, from its packets. ValueError, naming the file, where it cannot be read."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("there is no video in it")
            packets = [packet for packet in container.demux(video=0) if packet.pts is not None and not packet.is_discard]
            times = np.array(sorted(packet.pts for packet in packets), np.int64)
            if not len(times) or (np.diff(times) == 0).any():
                raise ValueError("two of its frames have one time" if len(times) else "it has no frames")
            return VideoIndex(times, np.searchsorted(times, sorted(packet.pts for packet in packets if packet.is_keyframe)))
    except ERRORS as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from error


def read_frames(path: Path, numbers: np.ndarray, *, reduction: int = 1) -> Iterator[np.ndarray]:
    """The frames of these `numbers`, which rise. ValueError, naming the file, for one that it lacks or that is damaged.

    - reduction: height and width are divided by this number, and rounded down, which is faster than resizing afterwards
    """
    times, keyframes = read_index(path)
    if len(numbers) and numbers[-1] >= len(times):
        raise ValueError(f"{path} has {len(times)} frames, and no frame {numbers[-1]}")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # several videos are decoded side by side
            stream.codec_context.options = {"err_detect": "explode"}
            reformatter = VideoReformatter()  # each frame's own would be set up anew, which takes as long as the conversion
            position, decoded = -1, iter(())  # the frame that was decoded last, and those that follow it
            for number in numbers.tolist():
                keyframe = int(keyframes[max(0, np.searchsorted(keyframes, number, side="right") - 1)])
                if position < 0 or keyframe > position + 1:
                    container.seek(int(times[keyframe]), stream=stream)
                    position, decoded = keyframe - 1, container.decode(stream)
                while position < number:
                    frame = next(decoded, None)
                    if frame is not None and frame.pts is not None and frame.pts < times[position + 1]:
                        continue  # a seek may end before its keyframe
                    if frame is None or frame.pts != times[position + 1] or frame.is_corrupt:
                        raise ValueError(f"frame {position + 1} of {len(times)} cannot be decoded")
                    position += 1
                yield _to_rgb(frame, reduction, reformatter)
    except ERRORS as error:
        raise ValueError(f"{path} is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Without number and path of FFmpeg's own; and what can be done."""
    text = error.strerror if isinstance(error, av.FFmpegError) and error.strerror else error
    return f"{one_line(text)}; data.exclude_episodes=[...] leaves an episode out"


def _to_rgb(frame: av.VideoFrame, reduction: int, reformatter: VideoReformatter) -> np.ndarray:
    components = frame.format.components
    if len(components) < 3 and components[0].bits > 8 and not frame.format.name.startswith("pal"):
        raise ValueError(f"its pixels are {frame.format.name}, as those of depth are, and not of colours")
    if reduction == 1:
        return reformatter.reformat(frame, format="rgb24").to_ndarray()
    size = {"width": frame.width // reduction, "height": frame.height // reduction}
    return reformatter.reformat(frame, format="rgb24", **size, interpolation="FAST_BILINEAR").to_ndarray()
