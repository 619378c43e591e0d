"""One server for programs and people: a REST interface, and a page on top of it."""
