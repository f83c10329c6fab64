"""Frames to an mp4 that browsers play."""

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = ("libx264", "libopenh264", "h264", "libvpx-vp9", "mpeg4")


def codec() -> str:
    """Returns the best encoder that this build of FFmpeg has; every codec but the last plays in browsers.

    Raises:
        RuntimeError: it has none of them.
    """
    for name in CODECS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise RuntimeError(f"PyAV has none of the encoders {', '.join(CODECS)}: install av from its wheels on PyPI")


def write_video(frames: Iterable[np.ndarray], path: Path, hz: float) -> Path:
    """Returns the path of an mp4 with these uint8 [H, W, 3] frames at `hz` frames a second; it is put in place whole.

    An odd height or width loses its last row or column, since H.264 in browsers wants even ones.

    Raises:
        ValueError: there is no frame, or one is not like the first.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    try:
        with av.open(str(draft), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = _stream(container, first.shape, hz)
            for number, frame in enumerate(itertools.chain([first], frames)):
                if frame.dtype != np.uint8 or frame.shape != first.shape or frame.ndim != 3 or frame.shape[2] != 3:
                    raise ValueError(f"{path}: frame {number} is {frame.dtype} {frame.shape}, not uint8 [H, W, 3] like the first")
                even = np.ascontiguousarray(frame[: stream.height, : stream.width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            container.mux(stream.encode())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _stream(container: av.container.OutputContainer, shape: tuple[int, ...], hz: float) -> av.VideoStream:
    name = codec()
    stream = container.add_stream(name, rate=Fraction(hz).limit_denominator(1000))
    stream.height, stream.width = shape[0] // 2 * 2, shape[1] // 2 * 2
    stream.pix_fmt = "yuv420p"
    if name == "libx264":
        stream.options = {"crf": "20", "preset": "medium", "threads": "1"}
    return stream
