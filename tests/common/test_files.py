"""Files are written whole or not at all."""

import os
import stat

import pytest

from mmzoo.common.files import hash_file, hash_unchanged, staged_file, staged_folder, write_atomically


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("first")

    def fail():
        with staged_file(path) as staged:
            staged.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_staged_folder_goes_unless_it_was_moved(tmp_path):
    target = tmp_path / "model"
    with staged_folder(target) as staged:
        assert staged.parent == tmp_path
        (staged / "a").write_text("a")
    assert os.listdir(tmp_path) == []
    with staged_folder(target) as staged:
        (staged / "a").write_text("a")
        staged.rename(target)
    assert (target / "a").read_text() == "a"
    assert os.listdir(tmp_path) == ["model"]


def test_a_hash_is_of_the_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_file(path) == hash_unchanged(path) == empty
    path.write_bytes(b"other")
    assert hash_file(path) == hash_unchanged(path) != empty
