"""Imported by a fork server: until their command begins, a Ctrl-C ends its processes as one that is starting."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
