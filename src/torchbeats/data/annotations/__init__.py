"""Annotations of recordings, read and written.

`reading.py` reads files and folders of them. Each format has a file: `raven.py`, `audacity.py`, `kaleidoscope.py`,
`birdnet.py`, `hoplite.py`, `plain.py`. `dialects.py` recognises a table by its columns; `recordings.py` finds the sound
files.
"""
