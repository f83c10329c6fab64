import av
import numpy as np
import pytest

from experiments.video import write_video


def ramp(ticks, height=48, width=64):
    """Frames of one grey each, brighter every tick."""
    for tick in range(ticks):
        yield np.full((height, width, 3), 8 * tick, np.uint8)


def test_every_frame_comes_back_in_order_at_its_rate(tmp_path):
    path = write_video(ramp(25), tmp_path / "deep" / "video.mp4", hz=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(12.5)
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    np.testing.assert_allclose([frame.mean() for frame in frames], 8 * np.arange(25), atol=3)


def test_the_index_stands_first_so_that_a_browser_starts_at_once(tmp_path):
    data = write_video(ramp(10), tmp_path / "video.mp4", hz=25).read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_odd_sizes_are_made_even(tmp_path):
    with av.open(str(write_video(ramp(4, 49, 63), tmp_path / "video.mp4", hz=25))) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (48, 62)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [np.zeros((48, 64, 3), np.float32)],
        [np.zeros((48, 64, 3), np.uint8), np.zeros((46, 64, 3), np.uint8)],
        [np.zeros((48, 64), np.uint8)],
    ],
)
def test_what_is_not_a_video_is_refused_and_an_older_one_stays(tmp_path, frames):
    path = write_video(ramp(4), tmp_path / "video.mp4", hz=25)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="frame"):
        write_video(frames, path, hz=25)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
