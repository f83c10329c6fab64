import dataclasses
import json
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hierarchy.corpus.record import Damaged, from_bytes, named_arrays, to_bytes
from hierarchy.corpus.store import Source, finished, write_source
from tests.hierarchy.corpus.corpus_toys import toy_episode

FACTS = dict(name="toy", tick_s=0.04, licence="Apache-2.0", expert="none")


def episodes(first, stop, ticks=30):
    return (toy_episode(number, ticks) for number in range(first, stop))


def same(one, other):
    assert named_arrays(one).keys() == named_arrays(other).keys()
    for (name, left), right in zip(named_arrays(one).items(), named_arrays(other).values()):
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right)
    plain = ("source", "tick_s", "text", "terminated", "truncated", "seed", "info")
    assert all(getattr(one, name) == getattr(other, name) for name in plain)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_episode_comes_back_as_it_was_and_cannot_be_written_to():
    episode = dataclasses.replace(toy_episode(3, 17), info={"success": np.bool_(True), "score": 1.5, "expert": "ü"})
    again = from_bytes(to_bytes(episode))
    same(again, dataclasses.replace(episode, info={"success": True, "score": 1.5, "expert": "ü"}))
    with pytest.raises(ValueError, match="read-only"):
        again.action[0] = 0


@pytest.mark.parametrize("dtype", ["?", "u1", ">f4", "<f8", "i8", "f2"])
def test_every_kind_of_number_is_kept_little_endian(dtype):
    pixels = np.arange(18 * 6).reshape(18, 2, 3).astype(dtype)
    episode = dataclasses.replace(toy_episode(0, 17), observation={"pixels": pixels})
    again = from_bytes(to_bytes(episode)).observation["pixels"]
    np.testing.assert_array_equal(again, pixels)
    assert again.dtype == np.dtype(dtype).newbyteorder("<")


def test_a_picture_that_never_changes_is_stored_and_held_once():
    picture = np.random.default_rng(0).integers(256, size=(1, 32, 32, 3), dtype=np.uint8)
    still, moving = np.repeat(picture, 18, axis=0), np.repeat(picture, 18, axis=0)
    moving[17, 0, 0, 0] ^= 1
    records = [to_bytes(dataclasses.replace(toy_episode(0, 17), observation={"p": frames})) for frames in (still, moving)]
    assert len(records[1]) - len(records[0]) > 16 * picture.nbytes
    for record, frames in zip(records, (still, moving)):
        np.testing.assert_array_equal(from_bytes(record).observation["p"], frames)
    assert from_bytes(records[0]).observation["p"].strides[0] == 0


def test_objects_are_not_stored():
    words = np.array(["a"] * 18, object)
    with pytest.raises(ValueError, match="field 'observation/words' holds object: only numbers"):
        to_bytes(dataclasses.replace(toy_episode(0, 17), observation={"words": words}))
    with pytest.raises(ValueError, match="no plain fact"):
        to_bytes(dataclasses.replace(toy_episode(0, 17), info={"path": [1]}))


@pytest.mark.parametrize("at", [0, 9, 40, 3000, -1])
def test_one_flipped_bit_anywhere_is_noticed(at):
    record = bytearray(to_bytes(toy_episode(0, 50)))
    record[at] ^= 4
    with pytest.raises(Damaged, match="checksum"):
        from_bytes(bytes(record))


def test_a_source_is_read_by_number_from_several_threads(tmp_path):
    source = write_source(tmp_path / "toy", episodes(5, 55), shard_size=8, **FACTS)
    assert len(source) == 50
    order = np.random.default_rng(0).permutation(50).tolist() * 4
    with ThreadPoolExecutor(8) as threads:
        for index, episode in zip(order, threads.map(source.__getitem__, order)):
            same(episode, toy_episode(index + 5, 30))
    same(source[-1], toy_episode(54, 30))
    assert [episode.seed for episode in source] == list(range(5, 55))
    with pytest.raises(IndexError, match="has 50 episodes, and no episode 50"):
        source[50]
    source.verify()


def test_the_manifest_tells_people_what_is_there(tmp_path):
    write_source(tmp_path, [*episodes(5, 9), toy_episode(20, 30)], shard_size=2, **FACTS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["episodes"], manifest["ticks"], manifest["hz"]) == (5, 150, 25)
    assert manifest["success"] == pytest.approx(3 / 5)
    assert manifest["mean_return"] == pytest.approx(15)
    assert manifest["seeds"] == ["5-8", "20-20"]
    assert manifest["fields"]["observation/state"] == "float32[2]"
    assert (manifest["licence"], manifest["expert"]) == ("Apache-2.0", "none")
    assert sorted(files(tmp_path)) == sorted([shard["file"] for shard in manifest["shards"]] + ["manifest.json"])


def stops(first, stop):
    yield from episodes(first, stop)
    raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_the_old_source_and_can_go_on(tmp_path):
    write_source(tmp_path, episodes(100, 105), shard_size=2, **FACTS)
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_source(tmp_path, stops(0, 7), shard_size=3, **FACTS)
    assert before.items() <= files(tmp_path).items()
    assert [episode.seed for episode in Source.open(tmp_path)] == list(range(100, 105))
    assert finished(tmp_path) == 6
    with pytest.raises(ValueError, match="begun with another expert: 'none'"):
        write_source(tmp_path, episodes(6, 10), resume=True, **FACTS | {"expert": "LQR"})
    resumed = write_source(tmp_path, episodes(6, 10), shard_size=3, resume=True, **FACTS)
    write_source(tmp_path / "whole", episodes(0, 10), shard_size=3, **FACTS)
    whole = files(tmp_path / "whole")
    (tmp_path / "whole").rename(tmp_path.with_name("elsewhere"))
    assert files(tmp_path) == whole
    assert len(resumed) == 10
    assert finished(tmp_path) == 0


def test_a_killed_writer_leaves_no_source(tmp_path):
    code = f"""
        import os
        from hierarchy.corpus.store import write_source
        from tests.hierarchy.corpus.corpus_toys import toy_episode
        def episodes():
            yield from (toy_episode(number, 30) for number in range(7))
            os._exit(9)
        write_source({str(tmp_path)!r}, episodes(), name="toy", tick_s=0.04, licence="", expert="", shard_size=3)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {"PYTHONPATH": "."}).returncode == 9
    with pytest.raises(ValueError, match=r"no source in .*: it has no manifest.json; record it first"):
        Source.open(tmp_path)
    assert finished(tmp_path) == 6
    write_source(tmp_path, episodes(0, 2), **FACTS)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_said_in_one_line_and_harms_nothing(tmp_path):
    write_source(tmp_path, episodes(0, 3), **FACTS)
    before = files(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = (dataclasses.replace(toy_episode(n, 999), reward=np.random.default_rng(n).random(999)) for n in range(40))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
        with pytest.raises(OSError, match=r"Make room and write again: what stood there still stands$") as caught:
            write_source(tmp_path, noise, **FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_an_experts_own_error_is_not_taken_for_a_full_disk(tmp_path):
    def fails():
        yield toy_episode(0, 9)
        raise RuntimeError("the expert fell over")

    with pytest.raises(RuntimeError, match="the expert fell over"):
        write_source(tmp_path, fails(), **FACTS)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def complaint(source, index):
    try:
        same(source[index], toy_episode(index, 300))
    except Damaged as error:
        return str(error)
    return ""


def test_a_file_cut_short_flipped_or_gone_is_named_with_the_mend(tmp_path):
    write_source(tmp_path, episodes(0, 40, ticks=300), shard_size=20, **FACTS)
    shard = sorted(tmp_path.glob("*00001*"))[0]
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    shard.write_bytes(flipped)
    source = Source.open(tmp_path)
    damaged = {index: words for index in range(40) if (words := complaint(source, index))}
    assert 1 <= len(damaged) < 20
    assert min(damaged) >= 20
    for index, words in damaged.items():
        assert words.startswith(f"{shard}, episode {index}: ")
        assert words.endswith("record 'toy' again")
    with pytest.raises(Damaged, match="sha256 differs"):
        source.verify()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name} has {len(whole) - 100} of {len(whole)} bytes: record 'toy' again"):
        Source.open(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="has 0 of"):
        Source.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        Source.open(tmp_path)


def test_a_source_has_one_kind_of_episode(tmp_path):
    odd = toy_episode(1, 30, elements=2)
    with pytest.raises(ValueError, match=r"source 'toy', seed 1: field 'action' is float64\[2\], and float64\[1\] in the first"):
        write_source(tmp_path, [toy_episode(0, 30), odd], **FACTS)
    with pytest.raises(ValueError, match=r"a tick lasts 0.04 s, and the source's 0.02 s"):
        write_source(tmp_path, episodes(0, 1), **FACTS | {"tick_s": 0.02})
    with pytest.raises(ValueError, match="there is no episode to write"):
        write_source(tmp_path, [], **FACTS)
    reward = np.where(np.arange(30) == 4, np.nan, 0.0)
    with pytest.raises(ValueError, match="reward is not finite at tick 4"):
        write_source(tmp_path, [dataclasses.replace(toy_episode(0, 30), reward=reward)], **FACTS)
