"""The REST interface of a live server: what it answers, and what it refuses."""

import base64
import io
import json
import math
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile

from helpers import cut_short, noise, tone, write_av, write_sound
from live_server import SOUNDS, url, wav
from torchbeats import embed, load, search, tag

TOLERANCE = 1e-5  # what padding in a batch may change in float32


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def expected(inputs, **settings):
    rows = {}
    for row in embed(inputs, "beats-nano", **settings):
        rows.setdefault(row.path, []).append(row)
    return rows


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


def refusal(answer, status, code):
    """The sentence of an error, which has the one shape that all have."""
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "code", "param"}
    assert error["code"] == code
    assert error["message"].endswith(".")
    return error["message"]


# --- what it answers


def test_every_format_has_the_embedding_that_the_library_gives(client):
    paths = [path for path in sorted(SOUNDS.iterdir()) if path.suffix != ".md"]
    for start in range(0, len(paths), 8):
        some = paths[start : start + 8]
        answer = client.post("/v1/embeddings", files=[("file", (p.name, p.read_bytes())) for p in some])
        for vector, path in zip(vectors(answer), some, strict=True):
            (row,) = expected([path])[str(path)]
            np.testing.assert_allclose(vector, row.embedding, atol=TOLERANCE)


def test_json_and_base64_say_the_same(client):
    clip = noise(2.0)
    numbers = client.post("/v1/embeddings", json={"input": url(wav(clip)), "model": "beats-nano"})
    packed = client.post("/v1/embeddings", json={"input": [url(wav(clip))], "encoding_format": "base64"})
    ((row,),) = expected([clip]).values()
    np.testing.assert_allclose(vectors(numbers)[0], row.embedding, atol=TOLERANCE)
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(vectors(packed)[0]), "<f4"), row.embedding, atol=TOLERANCE
    )
    body = numbers.json()
    assert (body["object"], body["model"], body["data"][0]["index"]) == ("list", "beats-nano", 0)
    assert body["usage"] == {"prompt_tokens": 96, "total_tokens": 96, "audio_seconds": 2.0}


def test_what_shares_a_batch_does_not_matter(client):
    """Clips of many lengths and kinds of plan at once, from many clients: each has what it has alone."""
    clips = [noise(0.3 + 0.7 * number, seed=number) for number in range(12)]
    alone = [rows[0].embedding for rows in expected(clips).values()]

    def ask(number):
        route = "/v1/tags" if number % 3 == 2 else "/v1/embeddings"
        return client.post(route, json={"input": url(wav(clips[number % 12]))})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(36)))
    batches = float(client.get("/metrics").text.split("\ntorchbeats_batches_total ")[1].split()[0])
    sounds = float(client.get("/metrics").text.split("\ntorchbeats_sounds_total ")[1].split()[0])
    assert batches < sounds  # some did share one
    for number, answer in enumerate(answers):
        if number % 3 == 2:
            assert len(answer.json()["data"][0]["rows"][0]["labels"]) == 5
        else:
            np.testing.assert_allclose(vectors(answer)[0], alone[number % 12], atol=TOLERANCE)


def test_a_long_sound_has_the_mean_of_its_windows_or_each(client):
    clip = noise(25.0)
    (rows,) = expected([clip]).values()
    each = client.post("/v1/embeddings", json={"input": url(wav(clip)), "each_window": True}).json()["data"]
    assert [(row["start"], row["end"]) for row in each] == [(row.start, row.end) for row in rows]
    for row, mine in zip(rows, each, strict=True):
        np.testing.assert_allclose(mine["embedding"], row.embedding, atol=TOLERANCE)
    mean = np.average([row.embedding for row in rows], 0, [row.end - row.start for row in rows])
    np.testing.assert_allclose(
        vectors(client.post("/v1/embeddings", json={"input": url(wav(clip))}))[0], mean, atol=TOLERANCE
    )


def test_settings_of_embeddings(client):
    clip = noise(3.0)
    settings = {"pool": "statistics", "layer": 1, "window": 1.0, "hop": 0.5}
    (rows,) = expected([clip], **settings).values()
    answer = client.post("/v1/embeddings", json={"input": url(wav(clip)), "each_window": True, **settings})
    np.testing.assert_allclose(vectors(answer), [row.embedding for row in rows], atol=TOLERANCE)
    form = client.post("/v1/embeddings", files={"file": wav(clip)}, data={**settings, "each_window": "true"})
    assert form.json()["data"] == answer.json()["data"]


def test_tags_are_those_of_the_library(client):
    path = SOUNDS / "siren.mp3"
    (row,) = tag(path, "beats-nano-tagger", top=3)
    answer = client.post("/v1/tags", files={"file": path.read_bytes()}, data={"top": 3})
    ((mine,),) = (sound["rows"] for sound in answer.json()["data"])
    assert [label["label"] for label in mine["labels"]] == [label for label, _ in row.labels]
    np.testing.assert_allclose(
        [label["probability"] for label in mine["labels"]], [value for _, value in row.labels], atol=TOLERANCE
    )
    timeline = client.post("/v1/tags", files={"file": path.read_bytes()}, data={"every": 0.5, "threshold": 0.3})
    rows = list(tag(path, "beats-nano-tagger", every=0.5, threshold=0.3))
    mine = timeline.json()["data"][0]["rows"]
    assert [(row["start"], row["end"]) for row in mine] == [(row.start, row.end) for row in rows]
    assert [[x["label"] for x in row["labels"]] for row in mine] == [[x for x, _ in row.labels] for row in rows]


def test_events(client):
    clip = np.concatenate([np.zeros(48_000, np.float32), tone(3.0)])
    body = {"input": url(wav(clip)), "events": True, "threshold": 0.4}
    events = client.post("/v1/tags", json=body).json()["data"][0]["events"]
    assert events
    assert all(0 <= event["start"] < event["end"] <= 6.0 and 0.4 <= event["mean"] <= event["peak"] for event in events)


def test_search_by_row_and_by_sound(client, table):
    by_row = client.post("/v1/search", json={"like": [3], "n": 5}).json()["data"]
    assert [(row["row"], row["path"]) for row in by_row] == [(m.row, m.path) for m in search(table, 3, n=5)]
    path = SOUNDS / "flute.ogg"
    wanted = search(table, path, unlike=["row:0"], n=4)
    body = {"like": [url(path.read_bytes(), "audio/ogg")], "unlike": [0], "n": 4}
    found = client.post("/v1/search", json=body).json()["data"]
    assert [row["row"] for row in found] == [match.row for match in wanted]
    np.testing.assert_allclose([row["score"] for row in found], [match.score for match in wanted], atol=TOLERANCE)
    form = client.post("/v1/search", files={"file": path.read_bytes()}, data={"n": 2}).json()["data"]
    assert [row["row"] for row in form] == [match.row for match in search(table, path, n=2)]
    others = client.post("/v1/search", json={"like": [3], "not_same_file": True}).json()["data"]
    assert [row["row"] for row in others] == [match.row for match in search(table, 3, not_same_file=True)]
    assert [row["row"] for row in others] != [row["row"] for row in by_row]


def test_what_the_server_is(client):
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["beats-nano", "beats-nano-tagger"]
    assert models["data"][1]["labels"] == load("beats-nano-tagger").labels
    assert client.get("/health").json() == {"status": "ok"}
    text = client.get("/metrics").text
    assert '\ntorchbeats_requests_total{route="/health",status="200"} ' in text
    assert "\ntorchbeats_held_bytes 0\n" in text
    document = client.get("/openapi.json").json()
    examples = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v1/search", json=examples).status_code == 200


def test_openais_own_client(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0)
    clips = [noise(1.0), tone(2.0)]
    alone = [rows[0].embedding for rows in expected(clips).values()]
    for form in ({}, {"encoding_format": "float"}):  # it asks for base64 where nothing is said
        answer = client.embeddings.create(model="beats-nano", input=[url(wav(clip)) for clip in clips], **form)
        np.testing.assert_allclose([row.embedding for row in answer.data], alone, atol=TOLERANCE)
        assert answer.usage.total_tokens == 48 + 96
    assert [model.id for model in client.models.list()] == ["beats-nano", "beats-nano-tagger"]
    with pytest.raises(openai.NotFoundError, match="There is no model 'text-embedding-3-small' here"):
        client.embeddings.create(model="text-embedding-3-small", input=url(wav(tone(1.0))))
    with pytest.raises(openai.UnprocessableEntityError, match="nothing is fetched from a URL"):
        client.embeddings.create(model="beats-nano", input="https://example.org/bird.wav")


# --- what it refuses

CLIP = url(wav(tone(0.5)))
REFUSED = {
    "no JSON": (b"{", 422, "invalid_request", "Invalid JSON"),
    "nesting": (b'{"input": ' + b"[" * 100_000, 422, "invalid_request", "Invalid JSON"),
    "nothing": ({}, 422, "invalid_request", "input: Field required"),
    "no inputs": ({"input": []}, 422, "invalid_request", "at least 1 item"),
    "many inputs": ({"input": [CLIP] * 9}, 422, "too_many_inputs", "may have 8 sounds, not 9"),
    "an unknown field": ({"input": CLIP, "dimensions": 8}, 422, "invalid_request", "dimensions: Extra inputs"),
    "an unknown model": ({"input": CLIP, "model": "x"}, 404, "model_not_found", "There is no model 'x' here"),
    "a layer beyond": ({"input": CLIP, "layer": 99}, 422, "wrong_model", "there is no layer 99"),
    "a hop beyond": ({"input": CLIP, "hop": 20}, 422, "invalid_request", "hop must lie between"),
    "a window of hours": ({"input": CLIP, "window": 7200}, 422, "invalid_request", "window: Input should be less"),
    "infinity": (b'{"input": "", "window": Infinity}', 422, "invalid_request", "window: Input should be a finite"),
    "a text": ({"input": "hello"}, 422, "invalid_input", "input 0: a sound is sent as data:audio"),
    "a path": ({"input": "/etc/passwd"}, 422, "invalid_input", "nothing is fetched from a URL or read from a path"),
    "a file URL": ({"input": "file:///etc/passwd"}, 422, "invalid_input", "nothing is fetched"),
    "no base64": ({"input": "data:audio/wav,abc"}, 422, "invalid_input", "must be in base64"),
    "bad base64": ({"input": "data:audio/wav;base64,a$c="}, 422, "invalid_input", "is no base64"),
    "no sound": ({"input": url(b"no sound at all" * 400)}, 422, "unreadable_audio", "input 0: it is no sound file"),
    "an empty file": ({"input": [CLIP, url(b"")]}, 422, "unreadable_audio", r"input 1: the file is empty \(0 bytes\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_sentences(client, name):
    body, status, code, sentence = REFUSED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = refusal(client.post("/v1/embeddings", content=content), status, code)
    assert re.search(sentence, message), message


def test_other_refusals(client):
    message = refusal(client.post("/v1/search", json={"like": [10**6]}), 422, "no_such_row")
    assert "and no row 1000000" in message
    refusal(client.post("/v1/tags", data={"top": 1}, files={"sound": b""}), 422, "invalid_form")
    refusal(client.post("/v1/tags", content=b"x", headers={"Content-Type": "multipart/form-data"}), 422, "invalid_form")
    refusal(client.post("/v1/tags", json={"input": CLIP, "top": 0}), 422, "invalid_request")
    refusal(client.post("/v1/tags", json={"input": CLIP, "model": "beats-nano"}), 422, "wrong_model")
    refusal(client.get("/v1/embeddings"), 405, "method_not_allowed")
    refusal(client.get("/v1/nothing"), 404, "not_found")
    refusal(client.get("/health", headers={"Host": "evil.example"}), 421, "wrong_host")
    refusal(client.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "wrong_origin")


def test_too_much_is_refused(client):
    refusal(client.post("/v1/embeddings", content=b" " * (9 * 2**20)), 413, "body_too_large")

    def endless():
        for _ in range(64):
            yield b" " * 2**18

    refusal(client.post("/v1/embeddings", content=endless()), 413, "body_too_large")  # its length is not declared
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 121, np.float32), 16_000, format="FLAC")
    assert len(file.getvalue()) < 100_000  # a small file that is long
    refusal(client.post("/v1/embeddings", files={"file": file.getvalue()}), 413, "too_much_audio")
    halves = [("file", wav(noise(70.0))[:2_000_000]) for _ in range(4)]
    refusal(client.post("/v1/embeddings", files=halves), 413, "too_much_audio")  # together
    body = {"input": url(wav(noise(60.0))), "every": 0.05}
    assert "take longer hops or rows" in refusal(client.post("/v1/tags", json=body), 413, "too_much_work")


def test_what_can_be_read_of_a_file_that_breaks_off(client, tmp_path):
    path = cut_short(write_sound(tmp_path / "clip.wav", tone(4.0), 16_000))
    body = client.post("/v1/embeddings", files={"file": path.read_bytes()}).json()
    assert body["usage"]["audio_seconds"] == pytest.approx(2.4, abs=0.01)
    assert body["warnings"][0]["message"].endswith("2.40 s were read.")


def playlist(path):
    secret = write_av(path.with_name("secret.aac"), tone(1.0), 16_000, "aac")
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n")
    return path


def concat(path):
    secret = write_av(path.with_name("secret.aac"), tone(1.0), 16_000, "aac")
    path.write_text(f"ffconcat version 1.0\nfile {secret}\n")
    return path


HOSTILE = {
    "playlist.m3u8": playlist,
    "list.ffconcat": concat,
    "random.mp3": lambda p: p.write_bytes(np.random.default_rng(2).bytes(50_000)) and p,
    "zeros.flac": lambda p: p.write_bytes(bytes(50_000)) and p,
    "picture.mp4": lambda p: write_av(p, None, 0, "", video=True, sound=False),
    "broken.m4a": lambda p: cut_short(write_av(p, tone(2.0, 44_100), 44_100, "aac")),
    "headless.wav": lambda p: p.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\xff\xff" + bytes(40)) and p,
    "nan.wav": lambda p: write_sound(p, np.full(16_000, math.nan), 16_000, "FLOAT"),
    "huge.wav": lambda p: write_sound(p, np.full(16_000, 1e30), 16_000, "FLOAT"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_their_own_request_alone(client, tmp_path, name):
    content = HOSTILE[name](tmp_path / name).read_bytes()
    assert "file 0: " in refusal(client.post("/v1/embeddings", files={"file": content}), 422, "unreadable_audio")
    assert client.post("/v1/embeddings", json={"input": CLIP}).status_code == 200


def test_damaged_files_of_every_kind(client):
    """Random damage to each example: an answer or a sentence, and nothing else."""
    random = np.random.default_rng(0)
    for path in sorted(SOUNDS.iterdir()):
        data = bytearray(path.read_bytes())
        for place in random.integers(0, len(data), 20):
            data[place] = random.integers(256)
        answer = client.post("/v1/embeddings", files={"file": bytes(data)})
        assert answer.status_code == 200 or refusal(answer, 422, "unreadable_audio")


def test_schemathesis_finds_no_server_error(server, tmp_path):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json"]
    command += ["--max-examples", "8", "--phases", "examples,fuzzing", "--seed", "1", "--max-time", "12"]
    command += ["--checks", "not_a_server_error,status_code_conformance,response_schema_conformance"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_nothing_is_left_behind(client, server):
    """After all of the above: nothing is held, nothing waits, and no thread of a request is left."""
    client.post("/v1/embeddings", json={"input": CLIP})
    text = client.get("/metrics").text
    assert "\ntorchbeats_held_bytes 0\n" in text
    assert "\ntorchbeats_waiting_audio_seconds 0\n" in text
    assert "\ntorchbeats_requests_in_progress 0\n" in text
    assert 'status="500"' not in text
    assert threading.active_count() < 50
