"""What a server takes on, at most: each bound is a setting, and each has its status code."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from torchbeats.errors import SettingsError

MEGABYTE = 2**20
MOST_INPUTS = 2048  # as in OpenAI's interface


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body_mb: of a request's body, in MB of 2^20 bytes; 413 beyond.
        audio_seconds: of decoded sound in a request; 413 beyond.
        inputs: sounds in a request; 422 beyond.
        request_seconds: from a request's first byte to its answer; 408 while it is still being sent, 504 later.
        queue: requests that are worked on or wait, together; 429 beyond.
        held_mb: of all bodies that are held at once; 503 beyond.
        decoders: processes that decode.
        decoder_mb: memory that decoding one sound may take; 422 beyond.
        decoder_seconds: that decoding one sound may take; 422 beyond.

    Raises:
        SettingsError: a bound that is not positive.
    """

    body_mb: float = 64
    audio_seconds: float = 600
    inputs: int = 64
    request_seconds: float = 60
    queue: int = 256
    held_mb: float = 1024
    decoders: int = 2
    decoder_mb: float = 1024
    decoder_seconds: float = 20

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not 0 < value < math.inf:
                raise SettingsError(f"{setting.name} is a positive number, not {value}.")
        if self.inputs > MOST_INPUTS:
            raise SettingsError(f"A request may have at most {MOST_INPUTS} inputs, not {self.inputs}.")

    @property
    def body_bytes(self) -> int:
        """Of a request's body."""
        return round(self.body_mb * MEGABYTE)

    @property
    def held_bytes(self) -> int:
        """Of all bodies that are held at once; one of the largest always has room."""
        return max(round(self.held_mb * MEGABYTE), self.body_bytes)

    @property
    def computed_seconds(self) -> float:
        """Seconds of windows that a request may have computed: they overlap where a hop is shorter than a window."""
        return 4 * self.audio_seconds

    @property
    def waiting_seconds(self) -> float:
        """Of decoded sound that waits for the model before decoding waits for it, too: it takes 64 kB a second."""
        return 2 * self.audio_seconds
