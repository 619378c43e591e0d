"""Words of pictures in any script."""

import pytest

from torchbeats.plots import fonts


def test_letters_that_no_font_has():
    pytest.importorskip("matplotlib")
    assert fonts.writable("Größe  \n $x$ звук")[0] == "Größe $x$ звук"
    assert fonts.writable("a\U0010fffdb \ud800")[0] == r"a b \ud800"
    words, families = fonts.writable("犬 dog")
    assert words in ("犬 dog", "□ dog")
    assert (words == "犬 dog") == (len(families) > 1)
    assert len(fonts.writable("x" * 100)[0]) == fonts.LONGEST_LABEL
