"""Rows of a table that are like other sounds."""
