"""How commands end that are stopped, whose reader goes, or that have no room: one sentence, and a status that says so.

What an interrupted run has done is kept: the same command goes on, and its table is that of a calm run.
"""

import errno
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

import torchbeats
from helpers import forking, small_model, small_tokenizer, write_sounds
from torchbeats import cli, files
from torchbeats.errors import DiskFullError, Stopped
from torchbeats.interrupts import as_exceptions, is_the_command, postponed
from torchbeats.tables import unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and pipes")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tagger = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label")
    tagger.label_dict = {0: "cat", 1: "dog"}
    torchbeats.save(tagger, folder / "model.safetensors")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.safetensors")
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Class folders with an hour of sound, which a small model takes many seconds for."""
    lengths = {f"{name}/{number}.wav": 60.0 for name in ("cat", "dog") for number in range(8)}
    return write_sounds(tmp_path_factory.mktemp("sounds"), lengths)


def arguments(command, models, sounds, out):
    small = ["--window", "0.5", "--batch-seconds", "0.5", "--jobs", "1"]
    return {
        "embed": ["embed", sounds, "-m", models / "model.safetensors", "-o", out / "t.parquet", *small],
        "tokens": ["tokens", sounds, "-t", models / "tokenizer.safetensors", "-o", out / "t.parquet", *small],
        "tag": ["tag", sounds, "-m", models / "model.safetensors", "-o", out / "t.csv", *small],
        "evaluate": ["evaluate", sounds, "-m", models / "model.safetensors", "-o", out / "figures", *small],
        "probe": ["probe", sounds, "-m", models / "model.safetensors", "--no-cache", *small],
    }[command]


def parts(out):
    try:
        return list(unfinished.parts(out / "t.parquet.parts"))
    except FileNotFoundError:
        return []


SENTENCES = {
    "embed": "What is done is kept; the same command goes on.",
    "tokens": "What is done is kept; the same command goes on.",
    "tag": "Nothing but the rows that were printed is kept; the same command begins anew.",
    "evaluate": "Nothing was written; the same command begins anew.",
    "probe": "Nothing was written; the same command begins anew.",
}


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("command", SENTENCES)
def test_stopped(fork, models, sounds, tmp_path, command, number):
    process = fork(arguments(command, models, sounds, tmp_path), tmp_path / "log")
    begun = time.monotonic()
    while process.is_alive() and time.monotonic() - begun < 30:
        if command in ("embed", "tokens") and len(parts(tmp_path)) >= 3:
            break
        if command not in ("embed", "tokens") and time.monotonic() - begun > 2:
            break
        time.sleep(0.01)
    assert process.is_alive()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == STATUS[number]
    said = (tmp_path / "log").read_text().splitlines()
    assert said == [f"Stopped: {SENTENCES[command]}"]
    left = {path.name for path in tmp_path.iterdir()} - {"log", "figures"}
    assert left == ({"t.parquet.parts"} if command in ("embed", "tokens") else set())
    assert not list((tmp_path / "figures").glob("*"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("command", ["embed", "tokens"])
def test_a_stopped_run_goes_on_to_the_same_table(fork, models, tmp_path, command):
    sounds = write_sounds(tmp_path / "sounds", {f"{number}.wav": 8.0 for number in range(12)})
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    process = fork(arguments(command, models, sounds, calm), tmp_path / "calm.log")
    process.join(60)
    assert process.exitcode == 0
    for number in (*STATUS, *STATUS):
        before = len(parts(stopped))
        process = fork(arguments(command, models, sounds, stopped), tmp_path / "log")
        while process.is_alive() and len(parts(stopped)) <= before:
            time.sleep(0.005)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode in (0, STATUS[number])
    process = fork(arguments(command, models, sounds, stopped), tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0
    assert pq.read_table(stopped / "t.parquet").equals(pq.read_table(calm / "t.parquet"), check_metadata=True)
    assert "Traceback" not in (tmp_path / "log").read_text()


def command_line(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "torchbeats", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.mark.parametrize("delay", [0.1, 0.4, 0.8])
def test_while_it_is_being_imported(delay):
    process = command_line("embed", "--help")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_while_it_ends(tmp_path):
    late = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    (tmp_path / "sitecustomize.py").write_text(late)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = command_line("models", env={**os.environ, "PYTHONPATH": path})
    out, err = process.communicate(timeout=60)
    assert "beats-nano" in out
    assert (err, process.returncode) == ("", -signal.SIGINT)


def test_a_program_that_imports_the_package_keeps_its_own_signals():
    script = "import signal, torchbeats; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert not is_the_command()  # but of the tests


def test_ignored_signals_stay_ignored(models, tmp_path):
    """As nohup and shells ask for jobs in the background."""
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": 1.0})
    command = [sys.executable, "-m", "torchbeats", *map(str, arguments("embed", models, sounds, tmp_path))]
    process = subprocess.Popen(["sh", "-c", "trap '' INT; sleep 0.3; exec \"$@\"", "sh", *command])
    time.sleep(0.2)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.wait(60) == 0


def into_a_closed_pipe(command, both, log):
    """In a new process: be the command, whose reader has gone; standard error goes there as well, or to a file."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing if both else os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["torchbeats", *map(str, command)]
    cli.main()


def test_a_closed_pipe_is_silent(models, tmp_path):
    """The first two to the very end of the interpreter; the others as far as the exit status."""
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": 30.0})
    labelled = write_sounds(tmp_path / "labelled", {f"{n}/{i}.wav": 0.5 for n in ("cat", "dog") for i in range(4)})
    model = models / "model.safetensors"
    probe = ["probe", labelled, "-m", model, "--no-cache", "--folds", "2"]
    commands = [  # and whether standard error is closed as well
        (["--help"], False),
        (["models"], True),
        (["tag", sounds, "-m", model, "--every", "0.1"], False),
        (probe, False),
        (["embed", sounds / "none.wav", "-m", model, "-o", tmp_path / "t.parquet"], True),
        (["pretrain", sounds, "-o", tmp_path / "run", "--show"], False),
    ]
    for command, both in commands[2:]:
        log = tmp_path / "log"
        process = forking().Process(target=into_a_closed_pipe, args=(command, both, log))
        process.start()
        process.join(120)
        assert process.exitcode == 141, command
        assert both or not log.read_text(), command
    for command, both in commands[:2]:
        reading, writing = os.pipe()
        os.close(reading)
        more = {"stdout": writing, "stderr": writing if both else subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-m", "torchbeats", *map(str, command)], **more)
        os.close(writing)
        _, err = process.communicate(timeout=120)
        assert not err, command
        assert process.returncode == 141, command


def test_a_full_disk_behind_standard_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "torchbeats", "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == "Error: There is no room for the output: No space left on device.\n"
    assert done.returncode == 2


def test_no_room_for_a_table(fork, models, tmp_path):
    """A limit of a file's size takes the disk's place: parts fit in, the table does not."""
    sounds = write_sounds(tmp_path / "sounds", {f"{number}.wav": 8.0 for number in range(12)})
    command = arguments("embed", models, sounds, tmp_path)
    script = (
        "import resource, sys\n"
        "from torchbeats.tables import store\n"
        "store.FLUSH_SECONDS = 0.0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "from torchbeats.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: {tmp_path / 't.parquet'} could not be written: file too large. What was computed before is kept; make "
        "room, and the same command goes on.\n"
    )
    assert len(parts(tmp_path)) >= 3
    assert not list(tmp_path.rglob("*.tmp"))
    process = fork(command, tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 12 * 16


FULL = {
    "embed": "What was computed before is kept; make room, and the same command goes on.",
    "tokens": "What was computed before is kept; make room, and the same command goes on.",
    "tag": "Make room and try again.",
    "evaluate": "Make room and try again.",
}


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_names_the_file(run, models, tmp_path, monkeypatch, command):
    sounds = write_sounds(tmp_path / "sounds", {f"{n}/{i}.wav": 0.5 for n in ("cat", "dog") for i in range(2)})

    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    status, _, err = run(*arguments(command, models, sounds, tmp_path))
    assert status == 2
    assert err.startswith("Error: ")
    assert str(tmp_path) in err
    assert "could not be written: no space left on device. " in err
    assert not list(tmp_path.rglob("*.tmp"))


def test_errors_without_a_number_that_say_no_room(tmp_path):
    import torch

    for error in (
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file "
                     "write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ):  # fmt: skip
        (tmp_path / "x").write_text("old")
        with pytest.raises(DiskFullError, match="x could not be written") as caught, files.replacing(tmp_path / "x"):
            raise error
        assert caught.value.__cause__ is error
        assert (tmp_path / "x").read_text() == "old"
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "x"):
        raise RuntimeError("something else")
    assert os.listdir(tmp_path) == ["x"]
    if os.path.exists("/dev/full"):  # what torch really says
        with pytest.raises((RuntimeError, OSError)) as caught, open("/dev/full", "wb", buffering=0) as full:
            torch.save({"x": torch.zeros(1_000_000)}, full)
        assert files.is_full(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_signal_waits_where_an_exception_would_leave_a_lock_held():
    """In a child: a signal that is not caught would end this process, and with it all tests behind this one."""
    child = os.fork()
    if not child:
        steps, status = [], 1
        try:
            with as_exceptions(), postponed():
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("inside")
        except Stopped as stopped:
            status = 0 if (steps, stopped.status) == (["inside"], 143) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
