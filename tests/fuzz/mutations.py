"""Good files → damaged ones: the edits that Hypothesis chooses, and shrinks once one of them breaks something."""

from hypothesis import strategies as st

# What tends to be looked at as a size, a count, a number or a sign of structure.
TELLING = [
    b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0" * 8, b"\xff" * 8,
    b"NaN", b"-1", b"1e999", b"99999999999999999999", b"null", b"true", b"[" * 50, b"{" * 50, b'"', b"'",
    b",", b";", b"\t",
    b"\r", b"\n", b"\x1b[31m", b"\xe9", b"\xef\xbb\xbf", b"../", b"&a [*a, *a]", b"!!python/object:os.system ",
    b"path", b"label",
]  # fmt: skip

_places = st.floats(0, 1, exclude_max=True)  # of a file's length; most of what matters is at its beginning
_bytes = st.sampled_from(TELLING) | st.binary(min_size=1, max_size=8)
_edits = st.one_of(
    st.tuples(st.just("replace"), _places, st.booleans(), _bytes),
    st.tuples(st.just("insert"), _places, st.booleans(), _bytes),
    st.tuples(st.just("delete"), _places, st.booleans(), st.integers(1, 64)),
    st.tuples(st.just("flip"), _places, st.booleans(), st.integers(0, 7)),
    st.tuples(st.just("repeat"), _places, st.booleans(), st.integers(1, 64)),
    st.tuples(st.just("cut"), _places, st.just(False), st.none()),
)
edits = st.lists(_edits, min_size=1, max_size=6)


def damaged(data, changes):
    """The bytes after the changes, one after the other."""
    for kind, share, early, value in changes:
        place = int(share * min(len(data), 256 if early else len(data)))
        before, behind = data[:place], data[place:]
        if kind == "replace":
            data = before + value + behind[len(value) :]
        elif kind == "insert":
            data = before + value + behind
        elif kind == "delete":
            data = before + behind[value:]
        elif kind == "flip" and behind:
            data = before + bytes([behind[0] ^ 1 << value]) + behind[1:]
        elif kind == "repeat":
            data = before + behind[:value] * 2 + behind[value:]
        elif kind == "cut":
            data = before
    return data
