"""Damage in a file is found, whatever it hits."""

import json
import random
import re
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import torchbeats
from helpers import small_model, small_tokenizer
from torchbeats import CheckpointError, RandomProjectionTokenizer


def contents(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["torchbeats"])  # noqa: SIM118


def spans(path):
    """First byte and length of every record's content in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with archive.open(record) as content:
                yield record.filename, content._orig_compress_start, record.file_size


def test_every_flipped_bit_in_a_record_of_a_pt_file_is_found(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    draw = random.Random(0)
    for name, start, size in spans(tmp_path / "m.pt"):
        data = bytearray(whole)
        data[start + draw.randrange(size)] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"flipped\.pt: .*damaged.*{re.escape(name)}"):
            torchbeats.load(tmp_path / "flipped.pt")


def test_every_flipped_bit_in_our_safetensors_is_found(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [draw.randrange(header, len(whole)) for _ in range(40)]
    places += [whole.index(b"max_distance") + len(b"max_distance") + 5]  # a digit in the settings
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1
        (tmp_path / "flipped.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"flipped\.safetensors: .*damaged"):
            torchbeats.load(tmp_path / "flipped.safetensors")


@pytest.mark.parametrize("make", [small_model, small_tokenizer, RandomProjectionTokenizer])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_digest_does_not_depend_on_the_order_of_tensors(tmp_path, make, dtype):
    torchbeats.save(make(), tmp_path / "m.safetensors", dtype)
    tensors, about = contents(tmp_path / "m.safetensors")
    assert about["digest"].startswith("sha256-crc32:")
    names = list(tensors)
    random.Random(0).shuffle(names)
    save_file(
        {name: tensors[name] for name in names}, tmp_path / "other.safetensors", {"torchbeats": json.dumps(about)}
    )
    torchbeats.load(tmp_path / "other.safetensors")


def test_exchanged_tensors_are_found(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    tensors, about = contents(tmp_path / "m.safetensors")
    one, other = (f"encoder.layers.{layer}.fc1.weight" for layer in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, tmp_path / "m.safetensors", {"torchbeats": json.dumps(about)})
    with pytest.raises(CheckpointError, match="damaged"):
        torchbeats.load(tmp_path / "m.safetensors")


def test_files_without_a_digest_or_checksums_still_load(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    tensors, about = contents(tmp_path / "m.safetensors")
    del about["digest"]
    save_file(tensors, tmp_path / "old.safetensors", {"torchbeats": json.dumps(about)})
    torchbeats.load(tmp_path / "old.safetensors")
    torchbeats.save(small_model(), tmp_path / "m.pt")
    stored = torch.load(tmp_path / "m.pt", weights_only=True)
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(stored, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torchbeats.load(tmp_path / "unchecked.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, method):
    torchbeats.save(small_model(), tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", method) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    with pytest.raises(CheckpointError, match="compressed archive"):
        torchbeats.load(tmp_path / "bomb.pt")
