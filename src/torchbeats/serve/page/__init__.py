"""The page: hear what is in a sound, find what is like it, teach a class."""
