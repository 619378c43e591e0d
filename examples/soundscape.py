"""Makes half an hour of soundscape: six recordings of five minutes, with 60 calls of three kinds hidden in noise.

    python examples/soundscape.py [folder]

A trill, a croak and a whistle, twenty of each, no two alike: pitch, tempo, length and loudness are drawn for each call.
Their power is between 3 and 15 dB above that of the noise, over all frequencies, while they last. The noise is pink,
with gusts of wind, and there are 90 other sounds that nobody looks for: clicks, hums and rustling. A list beside the
folder, `soundscape-truth.csv`, says where the calls are. Everything is made by numpy from a seed, so it is the same on
every machine, but for rounding.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import soundfile

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "soundscape")
TRUTH = FOLDER.with_name(f"{FOLDER.name}-truth.csv")  # beside it, as a list within would say what is to be embedded
RATE = 16_000
RECORDINGS, SECONDS = 6, 300
PER_KIND = 20
SNR_DB = (3.0, 15.0)
APART = 2.0  # seconds between two calls, at least
OTHERS = 15  # in each recording


def pink(n, random):
    """Noise whose power falls by 3 dB an octave, of power 1."""
    spectrum = random.normal(size=n // 2 + 1) + 1j * random.normal(size=n // 2 + 1)
    spectrum /= np.sqrt(np.maximum(np.arange(n // 2 + 1), n * 50 / RATE))
    samples = np.fft.irfft(spectrum, n)
    return samples / samples.std()


def fade(samples, seconds=0.02):
    n = min(round(seconds * RATE), len(samples) // 2)
    samples[:n] *= np.linspace(0, 1, n)
    samples[-n:] *= np.linspace(1, 0, n)
    return samples


def sweep(hertz):
    """A tone that has these frequencies, one a sample."""
    return np.sin(2 * np.pi * np.cumsum(hertz) / RATE)


def trill(random):
    """Short notes, one after the other, each falling from 5 to 3.5 kHz or so."""
    notes, length = random.integers(9, 16), random.uniform(0.07, 0.11)
    top, bottom = random.uniform(4300, 5600), random.uniform(3000, 3900)
    n = round(length * RATE)
    note = sweep(np.linspace(top, bottom, n)) * np.hanning(n)
    gap = np.zeros(round(random.uniform(0.01, 0.04) * RATE))
    return np.concatenate([part for _ in range(notes) for part in (note, gap)])


def croak(random):
    """Pulses of a low, rough tone, 25 to 45 a second."""
    n = round(random.uniform(0.8, 1.8) * RATE)
    time = np.arange(n) / RATE
    pitch, pulses = random.uniform(500, 950), random.uniform(25, 45)
    rough = sum(np.sin(2 * np.pi * k * pitch * time + random.uniform(0, 6)) / k for k in (1, 2, 3))
    return fade(rough * (0.5 + 0.5 * np.sin(2 * np.pi * pulses * time)) ** 3)


def whistle(random):
    """One clear note that falls or rises slowly around 2 kHz, with an overtone."""
    n = round(random.uniform(0.8, 1.8) * RATE)
    middle, slope = random.uniform(1600, 2500), random.choice([-1, 1]) * random.uniform(0.1, 0.25)
    hertz = middle * (1 + slope * np.linspace(-1, 1, n))
    return fade(sweep(hertz) + 0.2 * sweep(2 * hertz), 0.1)


KINDS = {"trill": trill, "croak": croak, "whistle": whistle}


def click(random):
    n = round(0.03 * RATE)
    return random.normal(size=n) * np.exp(-np.arange(n) / random.uniform(20, 120))


def hum(random):
    n = round(random.uniform(1, 4) * RATE)
    time, pitch = np.arange(n) / RATE, random.uniform(90, 240)
    return fade(sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 6)), 0.3)


def rustling(random):
    n = round(random.uniform(0.5, 2) * RATE)
    steps = np.repeat(random.uniform(size=n // 400 + 1) ** 4, 400)[:n]
    return fade(np.diff(random.normal(size=n + 1)) * steps, 0.05)


def power(samples):
    return float(np.mean(samples**2))


def free_place(taken, n, random):
    """A start, in samples, with room before and behind; and it is taken."""
    apart = round(APART * RATE)
    while True:
        start = int(random.integers(apart, SECONDS * RATE - n - apart))
        if all(start > end + apart or start + n < begin - apart for begin, end in taken):
            taken.append((start, start + n))
            return start


def recording(kinds, random):
    """Samples, and the calls in them: kind, start and end in seconds, and decibels above the noise."""
    n = SECONDS * RATE
    samples = pink(n, random)
    knots = random.uniform(0.4, 1.6, SECONDS // 10 + 2)  # gusts come and go within tens of seconds
    samples *= np.interp(np.arange(n) / RATE / 10, np.arange(len(knots)), knots)
    noise = samples.copy()
    for _ in range(OTHERS):
        other = [click, hum, rustling][random.integers(3)](random)
        start = int(random.integers(0, n - len(other)))
        samples[start : start + len(other)] += other * random.uniform(0.3, 1.2) / np.sqrt(power(other))
    calls, taken = [], []
    for kind in kinds:
        call, decibels = KINDS[kind](random), random.uniform(*SNR_DB)
        start = free_place(taken, len(call), random)
        place = slice(start, start + len(call))
        samples[place] += call * np.sqrt(power(noise[place]) / power(call) * 10 ** (decibels / 10))
        calls.append((kind, start / RATE, (start + len(call)) / RATE, decibels))
    return samples, sorted(calls, key=lambda call: call[1])


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    kinds = random.permutation(np.repeat(list(KINDS), PER_KIND))
    rows = []
    for number in range(RECORDINGS):
        samples, calls = recording(kinds[number::RECORDINGS].tolist(), random)
        name = f"{number + 1}.wav"
        soundfile.write(FOLDER / name, 0.05 * samples, RATE, "PCM_16")
        rows += [(FOLDER / name, round(start, 3), round(end, 3), kind, round(db, 1)) for kind, start, end, db in calls]
    with TRUTH.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "start", "end", "label", "decibels"))
        writer.writerows(rows)
    print(f"{FOLDER}: {RECORDINGS} recordings of {SECONDS // 60} minutes, {len(rows)} calls in {TRUTH}")


if __name__ == "__main__":
    main()
