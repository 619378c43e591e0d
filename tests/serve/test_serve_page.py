"""The page in a real browser without a window: what a person does, and that nothing leaves the machine."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from live_server import SOUNDS, group_is_alive, wait_for
from torchbeats.serve.security import COOKIE

for package in ("gradio", "matplotlib", "sklearn"):
    pytest.importorskip(package)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60_000  # milliseconds
PICTURES = Path(__file__).parents[2] / "build" / "pictures"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs the program chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def own_table(table, tmp_path_factory):
    """A table whose folder is this file's alone."""
    return shutil.copy(table, tmp_path_factory.mktemp("page") / "sounds.parquet")


def begin(start, table, **settings):
    server = start("--table", table, "--decoders", 1, **settings)
    token = (settings.get("env") or {}).get("TORCHBEATS_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def is_there():
        return "gradio" in httpx.get(server.address, timeout=60, headers=headers).text

    assert wait_for(is_there, 120)
    return server


@pytest.fixture(scope="module")
def server(start, own_table):
    server = begin(start, own_table)
    yield server
    assert "Traceback" not in server.said, server.said


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open the page; any request that would leave the machine fails, and so does the test."""
    outside, errors, contexts = [], [], []

    def check(route):
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(url)
            route.abort()

    def open_page(server, **settings):
        context = browser.new_context(viewport={"width": 1100, "height": 800}, **settings)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.route("**/*", check)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.address)
        page.get_by_role("tab", name="Listen").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []


def keep_picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def offer(page, path, shown):
    """Give the page a sound to listen to; again, as a person would, where nothing comes of it."""
    from playwright.sync_api import TimeoutError as TookTooLong

    sound = page.locator("input[type=file]").first
    sound.set_input_files(path)
    try:
        shown.wait_for(timeout=PATIENCE / 3)
    except TookTooLong:  # seen once: a page that had just opened took the file and asked for nothing
        page.reload()
        sound.set_input_files(path)
        shown.wait_for()


def rows_shown(page, grid):
    return [int(card.get_attribute("data-row")) for card in page.locator(f"{grid} .tb-card").all()]


@needs_browser
def test_listen(visit, server):
    page = visit(server)
    picture = page.locator("#heard img")
    offer(page, SOUNDS / "speech-english-1.flac", picture)
    assert "speech" in picture.get_attribute("alt")
    assert "speech" in page.get_by_role("table").inner_text()
    texts = {}
    for name in ("csv", "raven.txt", "audacity.txt", "png"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=f"speech-english-1.{name}").click()
        texts[name] = Path(waiting.value.path()).read_bytes()
    assert texts["csv"].startswith(b"path,start,end,label,peak,mean\nspeech-english-1.flac,0.0,")
    assert b"\tspeech" in texts["audacity.txt"]
    assert b"Begin Time (s)" in texts["raven.txt"]
    assert texts["png"].startswith(b"\x89PNG")
    page.locator("#heard").scroll_into_view_if_needed()
    keep_picture(page, "listen")


@needs_browser
def test_what_is_no_sound_is_said(visit, server, tmp_path):
    page = visit(server)
    wrong = tmp_path / "<b>note.wav"
    wrong.write_text("no sound at all\n" * 100)
    alert = page.locator("#heard [role=alert]")
    offer(page, wrong, alert)
    assert "it is no sound file" in alert.inner_text()
    assert page.locator("#heard b").count() == 0  # its name is text, whatever is in it


@needs_browser
def test_find_and_go_on_from_there(visit, server):
    page = visit(server)
    page.get_by_role("tab", name="Find").click()
    page.get_by_label("Start from a row of the table").fill("20")
    page.get_by_role("button", name="Find what is like this row").click()
    page.locator("#neighbours .tb-card").first.wait_for()
    before = rows_shown(page, "#neighbours")
    assert before[0] == 20
    assert len(before) == 12
    page.locator("#neighbours .tb-card").nth(5).get_by_role("button", name="More like this").click()
    page.get_by_text("2 liked and 0 not").wait_for()
    liked = rows_shown(page, "#neighbours")
    assert liked != before
    page.locator("#neighbours .tb-card").nth(4).get_by_role("button", name="Less like this").click()
    page.get_by_text("2 liked and 1 not").wait_for()
    assert liked[4] not in rows_shown(page, "#neighbours")
    image = page.locator("#neighbours img").first
    assert image.get_attribute("alt").startswith("Spectrogram of ")
    assert wait_for(lambda: image.evaluate("image => image.naturalWidth") == 256)
    sound = httpx.get(server.address + page.locator("#neighbours audio").first.get_attribute("src"))
    assert sound.content.startswith(b"RIFF")
    keep_picture(page, "find")


@needs_browser
def test_find_from_a_stretch_of_a_file(visit, server):
    page = visit(server)
    page.get_by_role("tab", name="Find").click()
    page.locator("input[type=file]").nth(1).set_input_files(SOUNDS / "siren.mp3")
    page.get_by_label("From second").fill("1")
    page.get_by_label("To second").fill("2")
    time.sleep(2)  # until the file is there
    page.get_by_role("button", name="Find what is like this sound").click()
    page.locator("#neighbours .tb-card").first.wait_for()
    assert "siren.mp3" in page.locator("#neighbours .tb-card").first.inner_text()


@needs_browser
def test_teach_by_keyboard_fit_and_save(visit, server, own_table, run, start):
    page = visit(server)
    page.get_by_role("tab", name="Teach").click()
    name = page.get_by_label("Class")
    name.fill("piano music")
    name.press("Enter")
    page.get_by_label("Start from a row").fill("24")  # of a piano
    page.get_by_role("button", name="Show rows to mark").click()
    page.locator("#to-mark .tb-card").first.wait_for()
    rows = rows_shown(page, "#to-mark")
    page.locator("#to-mark .tb-card").first.focus()
    for number in range(len(rows)):
        card = page.locator("#to-mark .tb-card:focus")
        is_piano = "piano" in card.inner_text()
        page.keyboard.press("y" if is_piano else "n")
        page.locator(f'#to-mark button[data-row="{rows[number]}"][aria-pressed=true]').wait_for()
        if number + 1 < len(rows):
            page.locator(f'#to-mark .tb-card[data-row="{rows[number + 1]}"]:focus').wait_for()
    file = Path(f"{own_table}.labels.csv")
    lines = file.read_text().splitlines()
    assert lines[0] == "path,start,end,label,right"
    assert len(lines) == 1 + len(rows)
    for line in lines[1:]:
        assert line.endswith(",piano music," + ("yes" if "piano-" in line else "no"))

    page.get_by_role("button", name="Fit", exact=True).click()
    page.locator("#outcome table").wait_for()
    figures = page.locator("#outcome table").inner_text()
    assert "precision" in figures
    assert "recall" in figures
    assert "piano music" in figures
    suggested = rows_shown(page, "#to-mark")
    assert suggested
    assert not set(suggested) & set(rows)
    keep_picture(page, "teach")
    page.get_by_role("button", name="Save model and labels").click()
    page.get_by_text("Saved:").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="labels.raven.txt").click()
    assert "piano music" in Path(waiting.value.path()).read_text()
    model = Path(f"{own_table}.head.safetensors")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="model.safetensors").click()
    assert Path(waiting.value.path()).read_bytes() == model.read_bytes()

    status, out, _ = run("tag", SOUNDS / "piano-1.ogg", SOUNDS / "siren.mp3", "-m", model, "--format", "jsonl")
    assert status == 0
    piano, siren = (json.loads(line)["labels"][0] for line in out.splitlines())
    assert piano["label"] == siren["label"] == "piano music"
    assert piano["probability"] > siren["probability"]

    page.reload()  # nothing is lost, by a reload or by another run of the server
    again = begin(start, own_table)
    for opened in (page, visit(again)):
        opened.get_by_role("tab", name="Teach").click()
        assert wait_for(lambda opened=opened: opened.get_by_label("Class").input_value() == "piano music")
        opened.get_by_role("button", name="Show what is marked").click()
        opened.locator("#to-mark .tb-card").first.wait_for()
        assert rows_shown(opened, "#to-mark") == sorted(rows)
        assert opened.locator("#to-mark [aria-pressed=true]").count() == len(rows)
        opened.get_by_role("button", name="Show rows to mark").click()
        opened.get_by_text("likeness").first.wait_for()
        assert not set(rows_shown(opened, "#to-mark")) & set(rows)
    assert again.stop(seconds=20) == 0  # though a browser still shows it


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_and_what_a_screen_reader_is_told(visit, server, scheme):
    page = visit(server, color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    for tab in ("Listen", "Find", "Teach"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Find":
            page.get_by_role("button", name="Find what is like this row").click()
            page.locator("#neighbours .tb-card").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
        keep_picture(page, f"narrow-{scheme}-{tab.lower()}")
    page.get_by_role("tab", name="Find").click()
    assert page.locator("img:not([alt])").count() == 0
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    seen = {}
    for node in nodes:
        if not node.get("ignored"):
            seen.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert seen["heading"][0] == "torchbeats"
    assert "Rows like row 0" in seen["list"]
    unnamed = {
        role: names.count("") for role, names in seen.items() if role in ("tab", "slider", "spinbutton", "textbox")
    }
    assert not any(unnamed.values()), unnamed
    ours = [name for name in seen["button"] if "like this: " in name]
    assert len(ours) == 2 * 12
    back = page.locator("#neighbours .tb-card").first.evaluate("card => getComputedStyle(card).backgroundColor")
    light = sum(map(int, back.removeprefix("rgb(").rstrip(")").split(",")[:3])) > 3 * 128
    assert light == (scheme == "light")


# --- without a browser


def call(server, function, data):
    """What Gradio does with a request that names a file."""
    config = httpx.get(f"{server.address}/config", timeout=60).json()
    (number,) = [one["id"] for one in config["dependencies"] if one["api_name"] == function]
    body = {"data": data, "fn_index": number, "session_hash": "test"}
    return httpx.post(f"{server.address}/gradio_api/queue/join", json=body, timeout=60)


FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd"},
        {"path": str(SOUNDS / "siren.mp3")},
        {"path": "http://127.0.0.1:9/sound.wav"},
        {"path": "https://example.org/sound.wav"},
        {"path": "sound.wav", "url": "http://127.0.0.1:9/sound.wav"},
        {"path": "/proc/self/environ"},
    ],
)
def test_no_path_is_opened_and_no_url_fetched(server, file):
    answer = call(server, "listen", [{**file, **FILE}, 0.3, 1.0])
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "The page may only name files that it has sent; send it again."
    for url in (f"/gradio_api/file={file['path']}", f"/gradio_api/proxy={file['path']}"):
        assert httpx.get(server.address + url, timeout=60).status_code in (400, 403, 404)


def test_a_browser_is_told_to_ask_nobody_else(server):
    policy = httpx.get(server.address, timeout=60).headers["content-security-policy"]
    sources = {word for word in policy.replace(";", " ").split() if not word.endswith("-src")} - {"frame-ancestors"}
    assert sources == {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}


def test_rows_and_results_that_there_are_not(server):
    for path in ("/rows/9999/sound.wav", "/rows/-1/sound.wav", "/rows/0/other", "/results/x/y", "/model.safetensorsx"):
        assert httpx.get(server.address + path, timeout=60).status_code in (404, 422)
    assert httpx.get(f"{server.address}/v1/nothing").json()["error"]["code"] == "not_found"


def sent(server):
    """The folder of a server in which a file lies that was sent to its page."""
    (path,) = httpx.post(f"{server.address}/gradio_api/upload", files={"files": ("a.wav", b"abc")}, timeout=60).json()
    return Path(path).parents[1]


def test_an_upload_lies_in_a_private_folder_that_is_gone_with_the_server_or_the_next(start, table):
    first = start("--table", table, "--decoders", 1, env={"TORCHBEATS_TOKEN": "secret"})
    right = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=first.address, timeout=60) as client:
        assert client.get("/").status_code == 401
        early = client.get("/", headers=right)  # before the page is there
        assert early.status_code == 200 or (early.status_code, 'http-equiv="refresh"' in early.text) == (503, True)
        assert wait_for(lambda: "gradio" in client.get("/", headers=right).text, 120)
        assert client.post("/gradio_api/upload", files={"files": ("a.wav", b"abc")}).status_code == 401
        answer = client.get("/?token=secret&__theme=dark")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?__theme=dark")
        assert client.cookies[COOKIE] != "secret"
        assert client.get("/").status_code == 200  # by the cookie
        client.post("/v1/search", json={"like": [0]})
        (path,) = client.post("/gradio_api/upload", files={"files": ("../../a.wav", b"abc")}).json()
    folder = Path(path).parents[1]
    assert folder.name.startswith("torchbeats-serve-")
    assert folder.stat().st_mode & 0o077 == 0
    first.kill()
    assert wait_for(lambda: not group_is_alive(first.process.pid))  # its decoders end by themselves
    assert folder.exists()
    second = begin(start, table)
    assert not folder.exists()
    folder = sent(second)
    assert folder.exists()
    assert second.stop() == 0
    assert not folder.exists()


def test_gradio_is_imported_for_the_page_alone():
    code = """
import sys
import torchbeats.serve.running, torchbeats.serve.page.application
print("gradio" in sys.modules, "matplotlib" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
