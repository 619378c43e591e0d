"""Makes the clips in `examples/audio/`, so that everything the examples need is the project's own.

    python examples/make_audio.py [folder]

Needs `espeak-ng` (speech), `fluidsynth` with the FluidR3_GM soundfont (instruments; another place for it goes into the
environment variable `SOUNDFONT`) and the Python package itself. On Debian: `apt install espeak-ng fluidsynth
fluid-soundfont-gm`. What numpy makes is the same everywhere; speech and instruments depend on the versions installed.
"""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "audio"
SOUNDFONT = os.environ.get("SOUNDFONT", "/usr/share/sounds/sf2/FluidR3_GM.sf2")
PEAK = 10 ** (-3 / 20)  # -3 dB of full scale
TICKS = 480  # of MIDI time in a second: one quarter note at 60 a minute

SPEECH = {  # voice, words a minute, sentence
    "speech-english-1.flac": ("en-gb", 150, "The blackbird sings long before the sun is up."),
    "speech-english-2.wav": ("en-us+f3", 160, "Please leave a message after the tone."),
    "speech-german.opus": ("de+m3", 150, "Am Nachmittag regnet es an der ganzen Küste."),
}


def notes(pitches, length, *, start=0.0, velocity=95, overlap=0.0):
    """(start and length in seconds, MIDI pitch, velocity) of notes, or of chords (tuples), one after the other."""
    chords = [pitch if isinstance(pitch, tuple) else (pitch,) for pitch in pitches]
    return [
        (start + i * length, length + overlap, pitch, velocity) for i, chord in enumerate(chords) for pitch in chord
    ]


def rock_beat(bars, seconds, *, ride=42):
    """Bass drum (36), snare (38) and a cymbal in eighths: 42 the closed hi-hat, 51 the ride."""
    eighth = seconds / 8
    hits = [(start * eighth, 0.1, ride, 80) for start in range(8 * bars)]
    hits += [((8 * bar + at) * eighth, 0.2, 36, 115) for bar in range(bars) for at in (0, 3, 4)]
    return hits + [((8 * bar + at) * eighth, 0.2, 38, 110) for bar in range(bars) for at in (2, 6)]


DRUMS = None  # General MIDI has the drums on a channel of their own
MUSIC = {  # General MIDI program (from 0), rate, seconds, notes
    "piano-1.ogg": (0, 44_100, 3.5, notes([60, 64, 67, 72, 71, 67, 65, 64], 0.38, overlap=0.1)),
    "piano-2.mp3": (0, 44_100, 3.5, notes([(45, 57, 60), (50, 57, 62), (52, 56, 59), (45, 57, 61)], 0.8)),
    "guitar.ogg": (24, 44_100, 3.0, notes([40, 47, 52, 56, 59, 64, 59, 56, 52, 47], 0.28, overlap=0.8)),
    "strings.ogg": (48, 22_050, 3.5, notes([(55, 62, 67, 71), (54, 62, 69, 74)], 1.6, overlap=0.2)),
    "trumpet.flac": (56, 22_050, 2.5, notes([67, 67, 72, 76, 79, 76], 0.36)),
    "flute.ogg": (73, 44_100, 3.0, notes([79, 81, 83, 86, 83, 81, 79, 74], 0.34, overlap=0.05)),
    "drums-1.mp3": (DRUMS, 44_100, 3.0, rock_beat(2, 1.4)),
    "drums-2.ogg": (DRUMS, 44_100, 3.0, rock_beat(2, 1.2, ride=51)),
}


def variable_length(number):
    """A MIDI quantity: 7 bits a byte, the high bit on all but the last."""
    out = [number & 0x7F]
    while number := number >> 7:
        out.insert(0, 0x80 | (number & 0x7F))
    return bytes(out)


def midi(program, score):
    """A Standard MIDI File of one track."""
    channel = 9 if program is DRUMS else 0
    events = [
        (round(start * TICKS), 1, bytes([0x90 | channel, pitch, velocity])) for start, _, pitch, velocity in score
    ]
    events += [
        (round((start + length) * TICKS), 0, bytes([0x80 | channel, pitch, 0])) for start, length, pitch, _ in score
    ]
    track = b"\0\xff\x51\x03" + (1_000_000).to_bytes(3, "big")  # microseconds a quarter note
    if program is not DRUMS:
        track += bytes([0, 0xC0 | channel, program])
    now = 0
    for tick, _, message in sorted(events):  # at the same tick, notes end before others start
        track += variable_length(tick - now) + message
        now = tick
    track += b"\0\xff\x2f\0"
    return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, TICKS, b"MTrk", len(track)) + track


def speak(voice, words_a_minute, sentence):
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(words_a_minute), "-w", file.name, sentence], check=True)
        samples, rate = soundfile.read(file.name)
    return soxr.resample(samples, rate, 16_000), 16_000


def play(program, rate, seconds, score):
    with tempfile.TemporaryDirectory() as folder:
        song, sound = Path(folder, "song.mid"), Path(folder, "song.wav")
        song.write_bytes(midi(program, score))
        subprocess.run(
            ["fluidsynth", "-q", "-n", "-i", "-r", str(rate), "-g", "0.6", "-F", str(sound), SOUNDFONT, str(song)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        samples = soundfile.read(sound, always_2d=True)[0].mean(axis=1)
    return samples[: round(seconds * rate)], rate


def noise(colour, rate, seconds, seed):
    """Noise whose power falls with frequency to the power of `colour`: 0 white, 1 pink, 2 brown."""
    n = round(rate * seconds)
    frequency = np.fft.rfftfreq(n, 1 / rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=n))
    return np.fft.irfft(spectrum * np.maximum(frequency, 40) ** (-colour / 2) * (frequency > 20), n)


def rain():
    """Soft noise with drops: short bursts at random times, of random loudness and pitch."""
    rate, seconds = 16_000, 3.0
    samples = noise(0.5, rate, seconds, 2)
    samples *= 0.4 / np.abs(samples).max()
    random = np.random.default_rng(3)
    time = np.arange(rate // 50) / rate  # a drop takes 20 ms
    for start in random.integers(0, len(samples) - len(time), 260):
        drop = np.sin(2 * np.pi * random.uniform(1500, 6000) * time) * np.exp(-time * random.uniform(300, 900))
        samples[start : start + len(time)] += 0.35 * random.uniform(0.2, 1.5) * drop
    return samples, rate


def siren():
    """A tone that rises and falls between 600 and 1400 Hz once a second, with two overtones."""
    rate, seconds = 16_000, 3.0
    time = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * np.cumsum(1000 - 400 * np.cos(2 * np.pi * time)) / rate
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase), rate


def engine():
    """A four-cylinder engine that speeds up: 25 to 60 firings a second, every fourth louder, with exhaust noise."""
    rate, seconds = 16_000, 3.0
    n = round(rate * seconds)
    firing = np.cumsum(np.linspace(25, 60, n)) / rate
    stroke = np.exp(-8 * (firing % 1)) * np.where(firing.astype(int) % 4 == 0, 1.0, 0.7)
    rumble = sum(np.sin(2 * np.pi * k * firing) / k for k in range(1, 9))
    hiss = noise(1, rate, seconds, 4)
    return 0.5 * rumble + 2.0 * stroke * hiss / np.abs(hiss).max(), rate


MADE = {
    "noise-pink.flac": lambda: (noise(1, 16_000, 2.0, 1), 16_000),
    "noise-rain.ogg": rain,
    "siren.mp3": siren,
    "engine.opus": engine,
}


def save(name, samples, rate):
    fade = min(round(0.01 * rate), len(samples) // 2)  # 10 ms, so that nothing clicks
    samples = samples - samples.mean()
    samples[:fade] *= np.linspace(0, 1, fade)
    samples[-fade:] *= np.linspace(1, 0, fade)
    samples *= PEAK / np.abs(samples).max()
    if name.endswith(".opus"):
        soundfile.write(FOLDER / name, samples, rate, "OPUS", format="OGG")
    else:
        soundfile.write(FOLDER / name, samples, rate)
    print(f"{name:24}{len(samples) / rate:6.2f} s {rate:7d} Hz {(FOLDER / name).stat().st_size / 1024:7.1f} KiB")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, spoken in SPEECH.items():
        save(name, *speak(*spoken))
    for name, played in MUSIC.items():
        save(name, *play(*played))
    for name, make in MADE.items():
        save(name, *make())
