"""The page of a map: what lies in it, that it asks nobody for anything, and what a person can do with it."""

import base64
import json
import re
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
import soundfile

from helpers import noise, tone
from torchbeats import EmbeddingPlan, write_table
from torchbeats.data.labelled import read_labelled
from torchbeats.extras import is_installed
from torchbeats.maps import media
from torchbeats.maps.mapping import make_map
from torchbeats.maps.page import write_page

HOSTILE = "</script><b>{{data}} & Größe #1.wav"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings, one with a name that HTML and URLs would misread, their table, and labels."""
    folder = tmp_path_factory.mktemp("collection")
    recordings = folder / "sounds"
    (recordings / "<").mkdir(parents=True)
    soundfile.write(recordings / "hiss.wav", noise(6.0), 16_000)
    soundfile.write(recordings / HOSTILE, tone(6.0, 44_100, 1000.0), 44_100, format="WAV")
    (folder / "labels.csv").write_text("path,start,end,label\nsounds/hiss.wav,0,2,<i>hiss</i>\n", "utf-8")
    write_table(recordings, folder / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0))
    return folder


@pytest.fixture
def shown(folder):
    return make_map(folder / "t.parquet", method="pca", labelled=read_labelled([folder / "labels.csv"]))


def data_of(page):
    text = page.read_text("utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block)


def test_what_lies_in_a_page(folder, shown):
    result = write_page(shown, folder / "map.html", spectrograms=5)
    data = data_of(folder / "map.html")
    assert data["row"] == shown.rows.tolist()
    assert [(data["paths"][p], s, e) for p, s, e in zip(data["path"], data["start"], data["end"], strict=True)] == [
        (name, start, end) for name, start, end in shown.stretches
    ]
    places = np.stack([data["x"], data["y"]], 1)
    span = np.ptp(shown.places, axis=0).max()
    np.testing.assert_allclose(places, (shown.places - shown.places.min(0)) / span, atol=1e-4)  # four decimals
    assert [(group["name"], group["count"]) for group in data["groups"]] == [("<i>hiss</i>", 2), ("no label", 10)]
    assert data["labels"][:2] == ["<i>hiss</i>"] * 2
    assert (result.spectrograms, result.sounds, sorted(data["spectrograms"])) == (5, 0, list("01234"))
    assert data["sounds"] == {}
    assert sorted(data["sources"]) == [
        "sounds/%3C/script%3E%3Cb%3E%7B%7Bdata%7D%7D%20%26%20Gr%C3%B6%C3%9Fe%20%231.wav",
        "sounds/hiss.wav",
    ]


def test_sounds_in_a_page_up_to_a_limit(folder, shown):
    result = write_page(shown, folder / "small.html", sound_megabytes=0.03)
    assert 0 < result.sounds < result.spectrograms == 12
    sounds = data_of(folder / "small.html")["sounds"]
    assert sum(map(len, sounds.values())) <= 30_000
    kind, content = sounds["0"].split(",", 1)
    assert kind in ("data:audio/mpeg;base64", "data:audio/flac;base64")
    (folder / "first").write_bytes(base64.b64decode(content))
    heard, rate = soundfile.read(folder / "first")
    assert rate == 16_000
    assert len(heard) == pytest.approx(16_000, abs=2400)  # MP3 has whole frames
    assert write_page(shown, folder / "all.html", sound_megabytes=5).sounds == 12


def test_sounds_that_are_gone(folder, shown):
    (folder / "sounds" / "hiss.wav").rename(folder / "away")
    try:
        result = write_page(shown, folder / "map.html", sound_megabytes=1)
    finally:
        (folder / "away").rename(folder / "sounds" / "hiss.wav")
    assert {name.rsplit("/", 1)[1] for name in result.missing} == {"hiss.wav"}
    assert (result.spectrograms, result.sounds) == (6, 6)
    assert data_of(folder / "map.html")["sources"].count(None) == 1


def test_a_spectrogram_shows_a_tone_where_it_is():
    png = media.spectrogram(np.concatenate([np.zeros(8000, np.float32), tone(0.5, hertz=1000.0)]))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    parts, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        name, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + content)
        parts[name] = content
        place += 12 + length
    assert struct.unpack(">II", parts[b"IHDR"][:8]) == (media.WIDTH, media.HEIGHT)
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(media.HEIGHT, -1)
    assert not lines[:, 0].any()
    pixels = np.stack([lines[:, 1:] >> 4, lines[:, 1:] & 15], 2).reshape(media.HEIGHT, media.WIDTH)
    assert not pixels[:, : media.WIDTH // 2 - 4].any()
    loudest = pixels[:, media.WIDTH // 2 + 4 :].argmax(0)
    mel = 1127 * np.log1p(np.array([20, 1000, 8000]) / 700)
    assert abs((1 - (mel[1] - mel[0]) / (mel[2] - mel[0])) * media.HEIGHT - np.median(loudest)) <= 1.5


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or not is_installed("playwright"):
        pytest.skip("needs playwright and a Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait(page, condition):
    """Until a condition holds; the page's policy lets nobody evaluate text, as Playwright's own way of waiting does."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


@pytest.fixture
def opened(browser, folder, shown):
    """The page, and what it has asked for and complained of."""
    write_page(shown, folder / "map.html", sound_megabytes=1)
    page = browser.new_page(viewport={"width": 1000, "height": 700}, color_scheme="dark")
    page.set_default_timeout(20_000)
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((folder / "map.html").as_uri())
    wait(page, "box.width > 1")
    yield page, asked, faults
    page.close()


def test_by_mouse(opened, folder):
    page, asked, faults = opened
    assert page.title() == "t.parquet: map"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"  # dark
    number = next(i for i in range(12) if HOSTILE in page.evaluate(f"nameOf({i})"))
    bounds = page.locator("#map").bounding_box()
    x, y = (page.evaluate(f"to{axis}({number})") for axis in "XY")
    page.mouse.move(bounds["x"] + x, bounds["y"] + y)
    wait(page, "!document.getElementById('tip').hidden")
    assert HOSTILE in page.inner_text("#tip")
    page.mouse.click(bounds["x"] + x, bounds["y"] + y)
    assert HOSTILE in page.inner_text("#about")
    wait(page, "document.getElementById('picture').naturalWidth === 128")
    assert page.get_attribute("#picture", "alt").startswith("Spectrogram of")
    page.keyboard.press("Enter")
    wait(page, "document.getElementById('player').currentTime > 0.1")
    page.mouse.wheel(0, -400)
    wait(page, "view.scale > 2")
    page.get_by_role("button", name="hiss").click()
    assert page.get_by_role("button", name="hiss").get_attribute("aria-pressed") == "false"
    assert (asked, faults) == ([(folder / "map.html").as_uri()], [])


def test_by_keyboard(opened):
    page, _, faults = opened
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    first = page.evaluate("selected")
    assert first >= 0
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert "File" in page.inner_text("#about")
    before = page.evaluate("[view.scale, view.left]")
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("[view.scale, view.left]") != before
    page.keyboard.press("0")
    assert page.evaluate("[view.scale, view.left]") == before
    focused = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert focused[:3] == ["in", "out", "all"]
    assert "player" in focused
    assert faults == []


def test_a_sound_is_played_from_its_file(opened, folder, shown):
    page, asked, faults = opened
    write_page(shown, folder / "map.html", spectrograms=0)
    page.reload()
    wait(page, "box.width > 1")
    page.evaluate("select(data.path.findIndex(p => data.paths[p].includes('hiss')), true)")
    wait(page, "document.getElementById('player').currentTime > 0.1")
    assert "No spectrogram of this point is in the page" in page.inner_text("#nopicture")
    assert any(url.endswith("sounds/hiss.wav") for url in asked)
    assert faults == []


def test_sounds_at_urls_are_fetched_where_asked_for(folder, tmp_path):
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    gone, url = tmp_path / "gone.wav", (folder / "sounds" / "hiss.wav").as_uri()
    soundfile.write(gone, noise(6.0), 16_000)
    write_table([url, gone.as_uri()], tmp_path / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0))
    gone.unlink()
    shown = make_map(tmp_path / "t.parquet", method="pca")
    result = write_page(shown, tmp_path / "map.html")
    assert (result.spectrograms, result.sounds, result.missing) == (0, 0, {url, gone.as_uri()})
    result = write_page(shown, tmp_path / "map.html", sound_megabytes=5)
    assert (result.spectrograms, result.sounds, result.missing) == (6, 6, {gone.as_uri()})
    assert data_of(tmp_path / "map.html")["sources"] == [None, None]  # the page itself asks nobody
