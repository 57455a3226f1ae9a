"""Weights as files: in buckets, in the engine's precision, with what is missing told."""

import pytest
import torch

from rlhf.rollouts.server_weights import KeptWeights
from rlhf.rollouts.serving import weight_files
from rlhf.rollouts.serving.weight_files import read_weight_files, write_weight_files


def test_files_hold_every_tensor_once_in_buckets_of_bounded_size(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{n}": torch.randn(n + 1, 100, generator=generator) for n in range(8)}
    weights["tied"] = weights["w3"]
    weights["transposed"] = weights["w5"].T
    names = write_weight_files(iter(weights.items()), tmp_path, torch.bfloat16, bucket_bytes=1000)
    read = dict(read_weight_files(tmp_path, names))
    assert set(read) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(read[name], tensor.to(torch.bfloat16))
    for name in names:
        sizes = [tensor.numel() * 2 for _, tensor in read_weight_files(tmp_path, [name])]
        assert sum(sizes) <= 1000 or len(sizes) == 1
    assert len(names) < len(weights)


def test_memory_that_is_used_again_does_not_change_what_was_drawn(tmp_path):
    def walk():
        buffer = torch.zeros(10)
        for number in range(4):
            yield f"w{number}", buffer.fill_(number)

    names = write_weight_files(walk(), tmp_path, torch.float32, bucket_bytes=2**20)
    assert [tensor[0].item() for _, tensor in read_weight_files(tmp_path, names)] == [0, 1, 2, 3]


def test_a_folder_that_the_server_does_not_see_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"00000\.safetensors is not visible.*engine\.transfer: http"):
        list(read_weight_files(tmp_path / "elsewhere", ["00000.safetensors"]))
    with pytest.raises(FileNotFoundError):
        list(read_weight_files(tmp_path / "a" / "b", ["../../00000.safetensors"]))


def test_no_room_is_told_before_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match=r"MiB free.*--shm-size.*engine\.weights_folder"):
        write_weight_files(iter([("w", torch.zeros(100))]), tmp_path, torch.float32, 2**20)
    assert not list(tmp_path.iterdir())


def test_weights_are_kept_until_the_next_and_those_of_ended_trainers_removed(tmp_path):
    ended = KeptWeights(str(tmp_path), torch.float32, 2**20)
    ended.replace(iter([("w", torch.ones(3))]))
    ended._lock.close()  # as the kernel does when a process ends
    kept = KeptWeights(str(tmp_path), torch.float32, 2**20)
    assert list(tmp_path.iterdir()) == [kept.folder]
    kept.replace(iter([("a", torch.ones(3)), ("b", torch.ones(2**18))]))
    assert len(kept.names) == 2
    kept.replace(iter([("a", torch.zeros(3))]))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["00000.safetensors", "in-use"]
    other = KeptWeights(str(tmp_path), torch.float32, 2**20)
    assert kept.folder.is_dir()
    for each in (kept, other, other):
        each.close()
    assert not list(tmp_path.iterdir())
