"""The formats of lists of sounds."""
