"""``python -m torchbeats`` is the command ``torchbeats``."""

from torchbeats.cli import main

main()
