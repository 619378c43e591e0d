import torchbeats
from torchbeats.weights import hub


def test_every_name_is_there_with_what_it_is():
    entries = {entry.name: entry for entry in torchbeats.models()}
    assert list(entries) == [*hub.BUILT_INS, *hub.MODELS]
    built_in = entries[hub.BUILT_IN]
    assert built_in.built_in
    assert built_in.cached
    assert built_in.bytes == hub.BUILT_INS[hub.BUILT_IN].stat().st_size
    assert entries["beats-iter3"].licence == "MIT"
    assert entries["beats-iter3"].source.startswith("https://huggingface.co/")
    tagger = entries[hub.BUILT_IN_TAGGER]
    assert list(torchbeats.load(hub.BUILT_IN_TAGGER).labels) == tagger.about.partition("classes: ")[2].split(", ")
    assert all(entry.about for entry in entries.values())
