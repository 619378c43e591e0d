"""Where a sound may be that is no file of this machine: one name for all such places."""

from __future__ import annotations

from typing import TypeAlias

from torchbeats.data.shards import ShardSound, UnreadableShard
from torchbeats.data.stored import MemorySound, StoredSound
from torchbeats.data.urls import RemoteSound

SoundSource: TypeAlias = StoredSound | MemorySound | RemoteSound | ShardSound | UnreadableShard
