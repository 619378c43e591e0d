"""Clips of many lengths → batches that waste little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches_of_like_length(lengths: Sequence[int], budget: float) -> Iterator[list[int]]:
    """Indices of like lengths, longest first; a batch's padded size stays within ``budget`` samples if it can."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
