"""Imported by a fork server: until their command begins, its processes end at a Ctrl-C, as a command that is starting does."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
