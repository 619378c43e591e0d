"""Freed memory is kept while a training needs it, and given back behind it."""

import ctypes
import resource
import sys

import pytest
import torch

from torchbeats.training import heap

glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")


def faults(times):
    """Pages that the system has to find for a block of 64 MB, made and freed some times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_a_block_is_asked_for_once():
    with heap.freed_memory_kept() as kept:
        if not kept:
            pytest.skip("another C library")
        faults(2)  # the heap grows
        within = faults(8)
    assert 2 * within < faults(8)  # behind it, blocks are given back again


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with heap.freed_memory_kept() as kept:
        assert not kept
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    with heap.freed_memory_kept() as kept:
        assert not kept
