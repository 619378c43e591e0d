"""A corpus of free sound from Debian packages, for pre-training a small model.

    python recipes/nano/fetch.py --out build/nano/audio [--only CORPUS ...]

Every corpus is made of packages, by name, and of sound that espeak-ng, flite, fluidsynth or this script makes from a
seed. All of it becomes 16 kHz mono 16-bit WAV under ``OUT/<corpus>/``. ``OUT/manifest.csv`` lists every file with its
licence, coarse label, group (speaker, voice, instrument, source file) and split; ``OUT/corpora.md`` lists packages,
versions and licences. A corpus that is complete is skipped; one whose packages cannot be had is reported, the rest goes
on, and the exit status is 1. Packages are unpacked under ``OUT/../packages``, nothing is installed.
"""

# ruff: noqa: SIM905  (lists of words are read more easily as text)

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
from everyday import OTHER, UNLABELLED, group_of, kind

from torchbeats import audio
from torchbeats.errors import AudioError

RATE = 16_000
SHORTEST = 0.1  # seconds
QUIETEST = 0.003  # peak; below it a file says nothing (full scale is 1)
COLUMNS = ("path", "corpus", "licence", "label", "group", "split", "seconds")
TOOLS = ("espeak-ng", "flite", "fluidsynth")


class Clip(NamedTuple):
    """One sound on its way to a file."""

    name: str  # below the corpus's folder, without suffix
    samples: audio.Floats
    label: str
    group: str  # what a split must keep together
    licence: str = ""  # where it differs from the corpus's


@dataclass(frozen=True)
class Corpus:
    """One row of the table: what it is, what it needs, how it is made."""

    name: str
    packages: tuple[str, ...]
    licence: str  # as the packages' copyright files have it, for the sounds
    about: str
    make: Callable[[list[Path]], Iterator[Clip]]  # from the folders of the unpacked packages
    heldout: frozenset[str] | None = None  # groups; None: a tenth, by a hash of the group's name
    keep_silence: bool = False
    tools: tuple[str, ...] = field(default=())  # programs whose packages' versions are to be recorded
    repositories: tuple[str, ...] = ()  # on GitHub, owner/name; their folders come behind those of the packages


# --- recordings in packages ------------------------------------------------------------------------------------------

SOUNDS = {".wav", ".ogg", ".oga", ".flac", ".aiff", ".aif", ".opus", ".wv", ".gsm", ".mp3"}
Describe = Callable[[str], "tuple[str, str] | tuple[str, str, str] | None"]  # path → label, group[, licence]


def read(path: Path) -> audio.Floats | None:
    """Decodes a file; None where it is broken."""
    try:
        if path.suffix == ".gsm":  # bare frames without a header, which no decoder can recognise by content
            with av.open(str(path), format="gsm") as container:
                frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
            return audio.from_array(np.concatenate(frames), 8000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", audio.AudioWarning)  # damaged on its way: half a word is worse than none
            return audio.load(path)
    except (AudioError, audio.AudioWarning, av.FFmpegError, ValueError):
        return None


def recordings(describe: Describe) -> Callable[[list[Path]], Iterator[Clip]]:
    """All sound files of packages; ``describe`` gives label and group, or None to leave a file out."""

    def make(roots: list[Path]) -> Iterator[Clip]:
        for root in roots:
            for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SOUNDS and p.is_file()):
                inside = path.relative_to(root).as_posix().removeprefix("usr/share/").removeprefix("games/")
                about = describe(inside)
                samples = read(path) if about else None
                if about and samples is not None:
                    yield Clip(os.path.splitext(inside)[0], samples, *about)

    return make


def asterisk(path: str) -> tuple[str, str] | None:
    """Prompts: one speaker a package, in a folder of its name where there is more than one."""
    if "silence/" in path:
        return None
    speaker = re.search(r"[a-z]{2}_[A-Z]{2}_[fm]_\w+", path)
    return "speech", speaker[0] if speaker else "prompts"


def asterisk_all(roots: list[Path]) -> Iterator[Clip]:
    """The older prompt packages name no speaker; the package does."""
    for root in roots:
        for clip in recordings(asterisk)([root]):
            group = clip.group if clip.group != "prompts" else root.name
            yield clip._replace(
                name=f"{group}/{clip.name.removeprefix('asterisk/sounds/')}",
                group=group,
                licence=ASTERISK_LICENCES[group],
            )


ASTERISK_LICENCES = {
    "en_US_f_Allison": "CC-BY-SA-3.0", "es_MX_f_Allison": "CC-BY-SA-3.0", "fr_CA_f_June": "CC-BY-SA-3.0",
    "it_IT_m_Carlo": "CC-BY-3.0", "ru_RU_f_IvrvoiceRU": "CC-BY-3.0", "it_IT_f_Menardi": "CC-BY-SA-3.0-it",
    "asterisk-prompt-es-co": "GPL-2", "asterisk-prompt-fr-armelle": "BSD-2-clause-like",
}  # fmt: skip

LANGUAGE = re.compile(r"_(en_gb|zh_tw|pt_br|fr|ru|ro|ca|bg|es|be|el|da|lt|nl|sv|pt|nn|nb|ko|ja|de|sl|it|ml)$")


def tuxpaint(path: str) -> tuple[str, str]:
    """Names and letters spoken in many languages, and what the things on the stamps sound like."""
    stem = Path(path).stem.lower()
    if language := LANGUAGE.search(stem):
        return "speech", f"tuxpaint-{language[1]}"
    if stem.endswith("_desc") or "/symbols/" in path:
        return "speech", "tuxpaint-en"
    return "effects", f"tuxpaint/{stem}"


def language_folder(part: int, prefix: str) -> Describe:
    """Speech in one folder a language: its ``part``-th."""
    return lambda path: ("speech", f"{prefix}-{path.split('/')[part]}")


def gcin(path: str) -> tuple[str, str, str]:
    """Mandarin syllables, read by two people under two licences; the file's name is the reader's number."""
    reader = Path(path).stem
    return "speech", f"gcin-{reader}", "CC-BY-3.0" if reader == "5" else "GPL-3 or LGPL-3"


def pocketsphinx(path: str) -> tuple[str, str] | None:
    """LibriVox sentences and spoken cards; the one file of TIDIGITS, which is not free elsewhere, stays out."""
    folder = path.split("/")[-2]
    return ("speech", f"pocketsphinx-{folder}") if folder in ("librivox", "cards") else None


def hedgewars(path: str) -> tuple[str, str] | tuple[str, str, str]:
    """Voices (a folder each), effects, music."""
    if "/voices/" in path:
        return "speech", f"hedgewars-{path.split('/voices/')[1].split('/')[0]}"
    if "/Music/" in path:
        return "music", path, "GPL-2"
    return ("effects", path, "CC-BY-SA-3.0") if "Droplet" in path else ("effects", path)


GAMES = {"frozen-bubble": "GPL-2", "lincity-ng": "GPL-2+", "pingus": "GPL-2+", "tuxtype": "GPL-2",
         "tuxmath": "public domain"}  # fmt: skip


def game(path: str) -> tuple[str, str, str]:
    """Music where the folder or the name says so, else effects; one group a file."""
    if re.search(r"tuxmath/sounds/0\d_", path):
        return "music", path, "CC-BY-SA-3.0"
    music = re.search(r"/music/|mainzik|introzik|/0\d_", path.lower())
    return "music" if music else "effects", path, GAMES[path.split("/")[0]]


DESKTOP = {"audio-c": "GPL-2+", "audio-t": "GPL-2+", "bell": "CC-BY-3.0", "complete": "CC-BY-3.0",
           "trash": "CC-BY-3.0", "message-n": "GPL-2+", "phone": "GPL-2+", "service": "GPL-2"}  # fmt: skip


def desktop(path: str) -> tuple[str, str, str]:
    """The freedesktop theme, with one licence an author and some spoken names of loudspeakers, and sound-icons."""
    stem = Path(path).stem
    licence = next((name for start, name in DESKTOP.items() if stem.startswith(start)), "CC-BY-SA-3.0")
    if "freedesktop" not in path:
        return "effects", path, "GPL-2+"
    return ("speech", "alsa", licence) if stem.startswith("audio-channel") else ("effects", path, licence)


SONIC_PI = {"ambi": "ambience", "bass": "bass", "bd": "drums", "drum": "drums", "guit": "guitar", "perc": "drums",
            "sn": "drums", "tabla": "drums", "vinyl": "noise"}  # fmt: skip
LMMS = {"drums": "drums", "basses": "bass", "bassloops": "bass", "beats": "drums", "effects": "effects"}
KITS = {"Audiophob": "CC0-1.0", "BJA_Pacific": "CC-BY-SA-3.0-us", "circAfrique v4": "CC-BY-SA-3.0",
        "rumpf_kit_z01_h2": "CC-BY-3.0", "ElectricEmpireKit": "GPL-2+", "HardElectro1": "GPL-2+",
        "VariBreaks": "GPL-2+", "ColomboAcousticDrumkit": "GPL-2+ with composition exception"}  # fmt: skip


def drumkit(path: str) -> tuple[str, str, str]:
    """Hydrogen's kits, one group each."""
    kit = path.split("/drumkits/")[1].split("/")[0]
    return "drums", f"kit-{kit}", KITS.get(kit, "GPL-2")


def opensfx(roots: list[Path]) -> Iterator[Clip]:
    """OpenTTD keeps its effects as whole RIFF files one behind the other in one ``.cat``."""
    data = next(roots[0].rglob("*.cat")).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for number, found in enumerate(re.finditer(rb"RIFF....WAVE", data, re.DOTALL)):
            size = 8 + struct.unpack_from("<I", data, found.start() + 4)[0]
            path = Path(folder, f"{number:03d}.wav")
            path.write_bytes(data[found.start() : found.start() + size])
            samples = read(path)
            if samples is not None:
                yield Clip(path.stem, samples, "effects", f"opensfx-{number}")


def everyday(name: str, licence: str = "", unknown: str = OTHER, only: str = "") -> Describe:
    """Sounds that their names tell the kind of; those below a folder, where one is given."""

    def describe(path: str) -> tuple[str, str, str] | None:
        if only not in path or "/music" in path.lower() or "/voice/" in path:
            return None
        return kind(path, unknown), f"{name}/{group_of(path)}", licence

    return describe


def ufoai(roots: list[Path]) -> Iterator[Clip]:
    """UFO: Alien Invasion keeps its sounds in an archive."""
    with tempfile.TemporaryDirectory() as folder:
        for archive in sorted(roots[0].rglob("*snd.pk3")):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder, [name for name in opened.namelist() if name.startswith("sound/")])
        yield from recordings(everyday("ufoai"))([Path(folder, "sound")])


def syllables(path: str) -> tuple[str, str] | None:
    """Mandarin syllables by one speaker, which the repository has at three qualities."""
    return ("speech", "cmn-chen-wang") if "64k/syllabs/" in path else None


def double_bass(path: str) -> tuple[str, str]:
    """Notes of one double bass, bowed and plucked."""
    return ("strings" if path.startswith("arco") else "bass"), "double-bass"


VCSL = {"Idiophones": "drums", "Membranophones": "drums", "Aerophones": "woodwind", "Electrophones": "electronic"}
VCSL_STRINGS = {"Violin": "strings", "Viola": "strings", "Cello": "strings", "Piano": "piano", "Guitar": "guitar"}


def vcsl(path: str) -> tuple[str, str]:
    """Instruments by their kind in the system of Hornbostel and Sachs; of strings only what has a class."""
    family, *inner = path.split("/")
    label = VCSL.get(family, "")
    if family == "Chordophones":
        label = next((name for word, name in VCSL_STRINGS.items() if word in path), "")
    elif "Brass" in path or "Horn" in path or "Trumpet" in path or "Trombone" in path:
        label = "brass"
    elif "Struck Idiophones" in path and any(word in path for word in ("phone", "Glock", "Marimba", "Vibra")):
        label = "chromatic_percussion"
    return label, f"vcsl/{'/'.join(inner[:2])}"


# --- speech from synthesisers ----------------------------------------------------------------------------------------

WORDS = """able above accept across afternoon again agree airport album almost alone always amount animal answer apple
april area arrive artist august autumn avenue balloon banana basket beach bear because bedroom before begin behind
believe below between bicycle bird black blanket blue boat body book bottle bread breakfast bridge bright brother brown
bucket butter button cabbage camera candle captain careful carpet castle cat cause center chair change cheese cherry
chicken child choose circle city clean clock cloud coffee cold color come company cookie corner cotton country cousin
cow cream dance danger daughter december deep desert different dinner doctor dog dollar door double down dream dress
drink driver duck early earth east easy egg elephant empty engine enough evening every example eye face family farm
father february feather field fifth finger finish fire first fish flag flower follow food forest forget forty forward
fourth fox friday friend frog fruit garden gate gentle giant girl glass goat gold good grape grass green guess guitar
hammer happy hat heavy hello help hill history holiday honey horse hospital hour house hundred hungry hurry ice idea
island jacket january jelly join jump june kettle key kitchen kitten knife ladder lake language laugh leave left lemon
letter light lion listen little lobster lunch machine magic market math maybe measure medicine metal middle milk minute
mirror monday money monkey month moon morning mother mountain mouse music narrow nature needle neighbor never new news
night noise north nose nothing november number ocean october office often oil old onion open orange order outside oven
owner page paint paper parent park pencil people pepper person phone picture pig pillow planet please pocket point
police potato present problem purple queen question quick quiet rabbit radio rain ready reason red remember repeat
return ribbon right river road robot rock room round salt sand saturday school science sea second secret seed september
shadow sheep ship shirt shoe shop short silver simple sing sister sky sleep slow small smile snow soap soldier something
song sound south spider spoon spring square stairs start station stone stop story street strong student sugar summer
sunday supper sweet table talk tall teacher ten thank theater thing third thirsty thousand thumb thursday ticket tiger
today together tomorrow tooth touch tower train tree triangle trouble tuesday turn uncle under understand until
vegetable very village violin visit voice wagon wait walk wall warm wash watch water weather wednesday week welcome west
wheel where whisper white why wide wind window winter wish woman wonder wood word work world write yellow yes yesterday
yet young zebra""".split()
DIGITS = "zero one two three four five six seven eight nine".split()
PHRASES = """good morning|thank you|see you later|how are you|come back|over there|wait a minute|not at all|of course|
excuse me|turn left|turn right|try again|well done|at the door|in the garden|call me back|press the button|no problem|
what time is it|it is raining|open the window|happy birthday|that is enough|once upon a time|half past ten""".split("|")
SUBJECTS = """the old captain|my youngest sister|a small grey cat|every student in the room|the man from the north|
our neighbor|nobody at the station|the weather report|a very tired driver|the woman with the violin""".split("|")
VERBS = """could not find|was looking for|had never seen|carefully painted|talks about|will remember|has forgotten|
wanted to buy|sang about|walked slowly past|asked me about|is afraid of""".split("|")
OBJECTS = """the yellow house behind the bridge|seven silver spoons|a letter from the city|the price of bread|
three of the tallest trees|an island in the ocean|the key to the kitchen|nine hundred paper boats|
the music in the market|what happened on wednesday|a bottle of cold milk|the shadow on the wall""".split("|")
# Digits are read as numbers in every language; these are a few words besides, where a language has them here.
NATIVE = {
    "de": "ja nein danke bitte wasser straße freund morgen zwischen vögel schön zug licht brot kirche",
    "fr-fr": "oui non merci bonjour rouge eau maison garçon fenêtre demain oiseau chien lumière pain nuit",
    "es": "sí no gracias hola agua casa perro mañana ventana amigo lluvia calle rojo noche pan niño",
    "it": "sì no grazie ciao acqua casa strada giorno finestra amico luce pane notte bambino chiesa",
    "pt-br": "sim não obrigado água casa rua amanhã janela amigo luz pão noite coração criança chuva",
    "nl": "ja nee bedankt water huis straat vriend morgen licht brood nacht vogel groot deur schip",
    "sv": "ja nej tack vatten hus gata vän morgon ljus bröd natt fågel stor dörr sjö",
    "pl": "tak nie dziękuję woda dom ulica przyjaciel jutro światło chleb noc ptak duży drzwi deszcz",
    "ru": "да нет спасибо вода дом улица друг завтра свет хлеб ночь птица большой дверь дождь",
    "uk": "так ні дякую вода дім вулиця друг завтра світло хліб ніч птах великий двері дощ",
    "el": "ναι όχι ευχαριστώ νερό σπίτι δρόμος φίλος αύριο φως ψωμί νύχτα πουλί μεγάλο πόρτα βροχή",
    "tr": "evet hayır teşekkürler su ev sokak arkadaş yarın ışık ekmek gece kuş büyük kapı yağmur",
    "fi": "kyllä ei kiitos vesi talo katu ystävä huomenna valo leipä yö lintu suuri ovi sade",
    "hu": "igen nem köszönöm víz ház utca barát holnap fény kenyér éjszaka madár nagy ajtó eső",
    "cs": "ano ne děkuji voda dům ulice přítel zítra světlo chléb noc pták velký dveře déšť",
    "hi": "हाँ नहीं धन्यवाद पानी घर सड़क दोस्त कल रोशनी रोटी रात पक्षी बड़ा दरवाज़ा बारिश",
    "ar": "نعم لا شكرا ماء بيت شارع صديق غدا نور خبز ليل طائر كبير باب مطر",
    "ko": "네 아니요 감사합니다 물 집 거리 친구 내일 빛 빵 밤 새 문 비",
    "ja": "はい いいえ ありがとう みず いえ みち ともだち あした ひかり パン よる とり おおきい あめ",
    "vi": "vâng không cảm ơn nước nhà đường bạn mai ánh sáng bánh đêm chim lớn cửa mưa",
}
ENGLISH = "en-us en-us en-gb en-029 en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-gb-x-rp en-us-nyc".split()
LATIN = """af ca cs cy da de eo es es-419 et eu fi fr-be fr-fr ga hr hu id is it la lt lv ms nb nl pl pt pt-br ro sk sl
sq sv sw tr vi haw mi mt""".split()  # languages that can read made-up words in Latin letters
OTHERS = "ar bg bn cmn el fa gu hi hy ja ka kk kn ko mk ml mr ne ru sr ta te th uk ur yue".split()
VARIANTS = """f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 croak whisper whisperf klatt klatt2 klatt3 klatt4 klatt5 klatt6
Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Storm
Tweaky adam anika antonio aunty belinda benjamin boris caleb david ed edward edward2 grandma grandpa gustave iven
iven2 iven3 john kaukovalta linda marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby
steph steph2 steph3 travis victor zac announcer""".split()
HELDOUT_VARIANTS = frozenset(f"espeak-{v}" for v in "f4 m6 klatt3 Andrea Mario boris grandma paul steph2".split())


def pseudo_word(rng: random.Random) -> str:
    """A word no language has, so that speech is more than a list of words."""
    onsets = "b d f g h k l m n p r s t v z br st pl tr kr sk".split()
    return "".join(rng.choice(onsets) + rng.choice("aeiou") + rng.choice(["", "", "n", "s", "l"])
                   for _ in range(rng.randint(1, 3)))  # fmt: skip


def short_text(rng: random.Random, language: str) -> str:
    """A word, a number, a letter or a short phrase."""
    draw = rng.random()
    if language.startswith("en"):
        if draw < 0.2:
            return rng.choice(DIGITS)
        choices = [str(rng.randint(0, 100)), rng.choice("abcdefghijklmnopqrstuvwxyz"), rng.choice(PHRASES).strip(),
                   pseudo_word(rng), " ".join(rng.sample(WORDS, 2)), *rng.sample(WORDS, 3)]  # fmt: skip
        return rng.choice(choices)
    if draw < 0.3 and language in NATIVE:
        return " ".join(rng.sample(NATIVE[language].split(), rng.choice([1, 1, 2])))
    if draw < 0.6 and language in LATIN:
        return rng.choice([pseudo_word(rng), pseudo_word(rng), rng.choice("abcdefghijklmnoprstuvz")])
    return str(rng.choice([rng.randint(0, 9), rng.randint(10, 100), rng.randint(10, 999)]))


def long_text(rng: random.Random) -> str:
    """A sentence of 3 to 6 seconds."""
    text = " ".join(rng.choice(part).strip() for part in (SUBJECTS, VERBS, OBJECTS))
    return text if rng.random() < 0.6 else f"{text}, and {rng.choice(SUBJECTS).strip()} {rng.choice(DIGITS)}"


def spoken(command: list[str], wav: str) -> audio.Floats | None:
    """Runs a synthesiser that writes ``wav``; its silence before and after goes, but for 30 ms."""
    subprocess.run(command, check=True, capture_output=True)
    samples = read(Path(wav))
    return None if samples is None else trimmed(samples, 0.005, before=0.03, after=0.03)


def trimmed(samples: audio.Floats, relative: float, before: float, after: float) -> audio.Floats:
    """Cuts what is quieter than ``relative`` times the peak off both ends, but for some seconds."""
    loud = np.flatnonzero(np.abs(samples) > relative * np.abs(samples).max(initial=0))
    if not len(loud):
        return samples
    return samples[max(0, loud[0] - int(before * RATE)) : loud[-1] + int(after * RATE)]


def espeak(_: list[Path]) -> Iterator[Clip]:
    """Short clips in many languages and voices, then sentences; a voice is a variant, whatever it speaks."""
    rng = random.Random("espeak")
    with tempfile.TemporaryDirectory() as folder:
        wav = os.path.join(folder, "speech.wav")
        for number in range(20_800):
            language = rng.choice(ENGLISH if (draw := rng.random()) < 0.45 else LATIN if draw < 0.8 else OTHERS)
            variant, short = rng.choice(VARIANTS), number < 20_000
            speed, pitch = rng.randint(110, 220), rng.randint(20, 80)
            text = short_text(rng, language) if short else long_text(rng)
            language = language if short else rng.choice(ENGLISH)
            command = ["espeak-ng", "-z", "-v", f"{language}+{variant}", "-s", str(speed), "-p", str(pitch)]
            samples = spoken([*command, "-w", wav, text], wav)
            if samples is not None:
                yield Clip(f"{variant}/{number:05d}-{language}", samples, "speech", f"espeak-{variant}")


def flite(_: list[Path]) -> Iterator[Clip]:
    """American and Scottish voices made of recorded people; pitch and speed vary, the person does not."""
    rng = random.Random("flite")
    with tempfile.TemporaryDirectory() as folder:
        wav = os.path.join(folder, "speech.wav")
        for number in range(3500):
            voice, pitch = rng.choice([("slt", 175), ("rms", 100), ("awb", 125), ("kal16", 105)])
            mean = pitch * 2 ** rng.uniform(-0.35, 0.35)
            text = short_text(rng, "en") if number < 3200 else long_text(rng)
            settings = [f"int_f0_target_mean={mean:.0f}", f"duration_stretch={rng.uniform(0.75, 1.4):.2f}"]
            command = ["flite", "-voice", voice, "--setf", settings[0], "--setf", settings[1], "-t", text, "-o", wav]
            samples = spoken(command, wav)
            if samples is not None:
                yield Clip(f"{voice}/{number:04d}", samples, "speech", f"flite-{voice}")


# --- instruments -----------------------------------------------------------------------------------------------------

# (first General MIDI program behind the family, label, lowest and highest note that makes sense)
FAMILIES = [(8, "piano", 28, 96), (16, "chromatic_percussion", 48, 96), (24, "organ", 36, 88), (32, "guitar", 40, 84),
            (40, "bass", 28, 60), (52, "strings", 36, 88), (55, "choir", 43, 79), (64, "brass", 36, 82),
            (80, "woodwind", 48, 90), (104, "electronic", 36, 88), (112, "world", 43, 84), (120, "drums", 36, 84),
            (128, "effects", 36, 84)]  # fmt: skip
HELDOUT_PROGRAMS = {2, 14, 19, 27, 37, 42, 48, 54, 59, 71, 75, 85, 98, 108, 117, 125}
HELDOUT_NOTES = frozenset({f"program-{p:03d}" for p in HELDOUT_PROGRAMS} | {"drumkit-024", "drumkit-048"})
KIT_PROGRAMS = (0, 8, 16, 24, 25, 32, 40, 48)  # those between are variations, some held out would be heard elsewhere
SCALES = [(0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9)]
Event = tuple[int, bytes]  # at a millisecond, a MIDI message


def write_midi(events: list[Event], path: Path) -> None:
    """A MIDI file of one track in which a tick is a millisecond."""
    body, now = bytearray(b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big")), 0
    for at, message in sorted(events, key=lambda event: event[0]):
        wait, now = at - now, at
        delta = [wait & 127]
        while wait := wait >> 7:
            delta.insert(0, (wait & 127) | 128)
        body += bytes(delta) + message
    body += b"\x00\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500)
    path.write_bytes(header + b"MTrk" + struct.pack(">I", len(body)) + bytes(body))


def note(at: float, seconds: float, channel: int, key: int, velocity: int) -> list[Event]:
    """One note, from when to when."""
    on, key, velocity = round(at * 1000), max(0, min(127, key)), max(1, min(127, velocity))
    off = on + max(20, round(seconds * 1000))
    return [(on, bytes([0x90 | channel, key, velocity])), (off, bytes([0x80 | channel, key, 0]))]


def render(music: list[Event] | Path, soundfont: Path) -> audio.Floats:
    """What fluidsynth makes of events or of a MIDI file."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        if isinstance(music, Path):
            shutil.copy(music, midi)
        else:
            write_midi(music, midi)
        command = ["fluidsynth", "-q", "-n", "-i", "-r", "32000", "-g", "0.5", "-T", "wav", "-O", "s16"]
        subprocess.run([*command, "-F", wav, soundfont, midi], check=True, capture_output=True)
        return audio.load(wav)


def soundfont_in(root: Path) -> Path:
    """The soundfont of a package; others are links to it."""
    return next(path for path in root.rglob("*.sf2") if path.is_file() and not path.is_symlink())


def presets(soundfont: Path) -> list[tuple[int, int]]:
    """(bank, program) of all presets of a soundfont; asking for one that is missing would give another."""
    with soundfont.open("rb") as file:
        file.seek(-min(soundfont.stat().st_size, 4_000_000), os.SEEK_END)  # the presets lie behind the samples
        tail = file.read()
    at = tail.index(b"phdr")
    size = struct.unpack_from("<I", tail, at + 4)[0]
    records = (struct.unpack_from("<20sHH", tail, start) for start in range(at + 8, at + 8 + size - 38, 38))
    return [(bank, program) for _, program, bank in records]


def figure(rng: random.Random, at: float, low: int, high: int) -> tuple[list[Event], float]:
    """A single note (mostly), a chord, an arpeggio or a piece of a scale; and how long it is held."""
    kind, key, velocity = rng.random(), rng.randint(low, high), rng.randint(45, 127)
    scale = rng.choice(SCALES)
    if kind < 0.6:
        held = rng.choice([0.25, 0.5, 0.8, 1.2, 1.8, 2.4]) * rng.uniform(0.8, 1.2)
        return note(at, held, 0, key, velocity), held
    degrees = rng.choice([(0, 2, 4), (0, 2, 4, 6), (0, 4), (0, 3, 5)])
    keys = [key + scale[d % len(scale)] + 12 * (d // len(scale)) for d in degrees]
    if kind < 0.75:
        held = rng.uniform(0.5, 2.0)
        return [event for k in keys for event in note(at, held, 0, k, velocity)], held
    if kind < 0.9:
        start, direction = rng.randint(0, 4), rng.choice([1, -1])
        keys = [key + scale[(start + direction * i) % len(scale)] for i in range(rng.randint(3, 7))]
    step = rng.uniform(0.1, 0.35)
    events = [event for i, k in enumerate(keys) for event in note(at + i * step, step * 0.95, 0, k, velocity)]
    return events, step * len(keys)


def drum_figure(rng: random.Random, at: float) -> tuple[list[Event], float]:
    """One hit, or a loop of one or two bars of made-up drumming."""
    if rng.random() < 0.6:
        return note(at, 0.3, 9, rng.randint(35, 81), rng.randint(50, 127)), 0.3
    step, keys = rng.uniform(0.08, 0.2), rng.sample(range(35, 82), 3)
    keys = rng.choice([[36, 38, 42], [35, 40, 46], [41, 45, 50], keys])
    chances = [[rng.random() ** 2 for _ in range(8)] for _ in keys]  # the same bar twice: a loop
    events = [
        event
        for beat in range(16)
        for k, chance in zip(keys, chances, strict=True)
        if rng.random() < chance[beat % 8]
        for event in note(at + beat * step, 0.1, 9, k, rng.randint(60, 127))
    ]
    return events or note(at, 0.3, 9, 38, 100), 16 * step


def instruments(roots: list[Path]) -> Iterator[Clip]:
    """Notes, chords and scales of every program and drum kit of two soundfonts, many in one rendering, then cut."""
    for root, licence, count in zip(roots, ("MIT", "GPL-2"), (28, 22), strict=True):
        soundfont = soundfont_in(root)
        has = presets(soundfont)
        sounds = [(0, program) for program in range(128) if (0, program) in has]
        sounds += [(128, kit) for kit in KIT_PROGRAMS if (128, kit) in has]
        for start in range(0, len(sounds), 8):  # loading a soundfont costs as much as many notes
            events, cuts, now = [], [], 0.2
            rng = random.Random(f"{root.name}/{start}")
            for bank, program in sounds[start : start + 8]:
                channel = 9 if bank else 0
                family = next(f for f in FAMILIES if program < f[0])
                for number in range(count if not bank else 2 * count):
                    now_ms, wet = round(now * 1000) - 20, rng.choice([0, 0, 40, 80])
                    events += [(now_ms, bytes([0xC0 | channel, program])), (now_ms, bytes([0xB0 | channel, 91, wet]))]
                    made, held = drum_figure(rng, now) if bank else figure(rng, now, *family[2:])
                    events += made
                    end = now + held + 0.6  # time to ring, then all sound off and time for the reverberation to go
                    events.append((round(end * 1000), bytes([0xB0 | channel, 120, 0])))
                    group = f"drumkit-{program:03d}" if bank else f"program-{program:03d}"
                    cuts.append((f"{root.name}/{group}/{number:02d}", "drums" if bank else family[1], group, now, end))
                    now = end + 0.8
            wave = render(events, soundfont)
            for name, label, group, begin, end in cuts:
                samples = wave[int((begin - 0.02) * RATE) : int(end * RATE)].copy()
                if np.abs(samples).max(initial=0) < QUIETEST:
                    continue
                samples = trimmed(samples, 0.003, before=0.02, after=0.05)
                samples[-160:] *= np.linspace(1, 0, len(samples[-160:]), dtype=np.float32)  # no click at the cut
                samples *= 10 ** rng.uniform(-1.0, -0.05) / np.abs(samples).max()
                yield Clip(name, samples, label, group, licence)


def piece(rng: random.Random, seconds: float) -> list[Event]:
    """A made-up piece: a chord progression for pad and bass, a melody that walks, and drums."""
    free = [p for p in range(112) if p not in HELDOUT_PROGRAMS]  # what is held out is not heard in a mixture either
    programs = [rng.choice([p for p in free if low <= p < high]) for low, high in ((0, 112), (0, 96), (32, 40))]
    events = [(0, bytes([0xC0 | channel, program])) for channel, program in enumerate(programs)]
    events += [(0, bytes([0xB0 | channel, 91, rng.randint(0, 90)])) for channel in range(3)]
    scale, root, beat = rng.choice(SCALES[:2]), rng.randint(45, 56), 60 / rng.randint(70, 160)
    chords = [rng.choice([0, 3, 4, 5, 1]) for _ in range(4)]
    drums = [(key, [rng.random() ** 2 for _ in range(8)]) for key in (36, 38, 42, rng.randint(43, 75))]
    drums = drums if rng.random() < 0.75 else []

    def pitch(degree: int) -> int:
        return root + scale[degree % 7] + 12 * (degree // 7)

    now, bar, walk = 0.1, 0, 7
    while now < seconds:
        chord = chords[bar % 4]
        for degree in (0, 2, 4):
            events += note(now, beat * 3.8, 1, pitch(chord + degree), 70)
        for i in range(4):
            events += note(now + i * beat, beat * 0.9, 2, pitch(chord + (4 if i == 2 else 0)) - 24, 90)
        for i in range(8):
            if rng.random() < 0.6:
                walk = max(3, min(17, walk + rng.randint(-2, 2)))
                events += note(now + i * beat / 2, beat * rng.choice([0.45, 0.9]), 0, pitch(walk), rng.randint(70, 115))
            for key, chance in drums:
                if rng.random() < chance[i]:
                    events += note(now + i * beat / 2, 0.1, 9, key, rng.randint(60, 110))
        now, bar = now + 4 * beat, bar + 1
    return events


def pieces(roots: list[Path]) -> Iterator[Clip]:
    """An hour of made-up pieces, on two soundfonts in turn."""
    soundfonts = [soundfont_in(root) for root in roots]
    for number in range(72):
        samples = render(piece(random.Random(f"piece/{number}"), 50), soundfonts[number % 2])
        yield Clip(f"{number:02d}", 0.7 * samples / np.abs(samples).max(), "music", f"piece-{number}")


def openmsx(roots: list[Path]) -> Iterator[Clip]:
    """OpenTTD's free music, the first two minutes of each, played by fluidsynth."""
    for path in sorted(roots[0].rglob("*.mid")):
        samples = render(path, soundfont_in(roots[1]))[: 120 * RATE]
        yield Clip(path.stem, samples, "music", f"openmsx-{path.stem}")


# --- noise, tones, silence -------------------------------------------------------------------------------------------


def noises(_: list[Path]) -> Iterator[Clip]:
    """Noise of any slope that swells, rain, crackle, hum."""
    for number in range(90):
        rng = np.random.default_rng([1, number])
        size, kind = 10 * RATE, ("slope", "rain", "hum")[number % 3 if number % 2 else 0]
        white = rng.standard_normal(size)
        if kind == "rain":  # drops: short clicks that ring, few to very many
            white *= rng.random(size) < 10 ** rng.uniform(-3.5, -0.7)
        frequencies = np.fft.rfftfreq(size, 1 / RATE)
        gain = np.maximum(frequencies, 20) ** -rng.uniform(0, 1.2)  # 0 is white, 0.5 pink, 1 brown
        samples = np.fft.irfft(np.fft.rfft(white) * gain, size)
        samples /= np.abs(samples).max()
        time_ = np.arange(size) / RATE
        if kind == "hum":
            mains = rng.choice([50, 60, 100])
            samples *= 0.3
            samples += sum(rng.random() / k * np.sin(2 * np.pi * mains * k * time_) for k in range(1, 12))
        swell = 1 + rng.uniform(0, 0.9) * np.sin(2 * np.pi * (rng.uniform(0.05, 2) * time_ + rng.random()))
        samples *= swell / np.abs(samples * swell).max() * 10 ** rng.uniform(-1.3, -0.1)
        yield Clip(f"{kind}-{number:02d}", samples.astype(np.float32), "noise", f"noise-{number}")


def tones(_: list[Path]) -> Iterator[Clip]:
    """Tones and chords of four waveforms, chirps, warbles, beeps in a row, telephone keys."""
    keys = [(low, high) for low in (697, 770, 852, 941) for high in (1209, 1336, 1477)]
    dial = [(440, 480), (350, 440), (425, 425), (480, 620)]
    for number in range(500):
        rng = np.random.default_rng([2, number])
        kind = ("chord", "chirp", "warble", "beeps", "keys")[number % 5]
        time_ = np.arange(int(rng.uniform(0.4, 4) * RATE)) / RATE
        base = 80 * 2 ** rng.uniform(0, 5)
        if kind == "chirp":
            phases = [base * time_ * (1 + rng.uniform(-0.8, 2) * time_ / time_[-1] / 2)]
        elif kind == "warble":
            rate = rng.uniform(1, 30)
            phases = [base * time_ + base * rng.uniform(0.01, 0.2) / rate * np.sin(2 * np.pi * rate * time_)]
        elif kind == "keys":
            pairs = np.array([keys[rng.integers(12)] for _ in range(20)] if rng.random() < 0.7 else [dial[number % 4]])
            phases = list((pairs[(time_ * 5).astype(int) % len(pairs)] * time_[:, None]).T)
        else:
            phases = [base * r * time_ for r in [1, 1.25, 1.5, 2][: rng.integers(1, 5)]]
        shape = 0 if kind == "keys" else rng.integers(4)
        forms = (lambda p: np.sin(2 * np.pi * p), lambda p: np.sign(np.sin(2 * np.pi * p)), lambda p: 2 * (p % 1) - 1,
                 lambda p: 4 * np.abs(p % 1 - 0.5) - 1)  # fmt: skip
        samples = sum(forms[shape](phase) for phase in phases)
        if kind in ("beeps", "keys"):
            rate = 5 if kind == "keys" else rng.uniform(1, 8)
            samples = samples * ((time_ * rate) % 1 < rng.uniform(0.3, 0.8))
        envelope = np.minimum(1, np.minimum(time_, time_[-1] - time_) / 0.01) * np.exp(-rng.choice([0, 0, 2]) * time_)
        samples = samples * envelope / np.abs(samples).max() * 10 ** rng.uniform(-1.3, -0.1)
        yield Clip(f"{kind}-{number:03d}", samples.astype(np.float32), "tones", f"tone-{number}")


def silences(_: list[Path]) -> Iterator[Clip]:
    """Nothing, the last bit of nothing, and the hiss of an open line."""
    for number in range(20):
        rng = np.random.default_rng([3, number])
        samples = rng.standard_normal(9 * RATE) * (0 if number < 3 else 10 ** rng.uniform(-4.8, -3.2))
        yield Clip(f"{number:02d}", samples.astype(np.float32), "silence", f"silence-{number}")


# --- the table -------------------------------------------------------------------------------------------------------

SOUNDFONTS = ("fluid-soundfont-gm", "timgm6mb-soundfont")
# The same volunteer may have lent a voice to several programs: a language is held out of all of them or of none.
LANGUAGES = ("da", "hu", "lt", "nds", "nl", "sl")
SCRIPT = "CC0-1.0 (computed by this script)"
ESPEAK = "output of espeak-ng (program and voices GPL-3+)"
FLITE = "output of flite (program and voices BSD-like)"
CORPORA = [
    Corpus("asterisk", (*(f"asterisk-core-sounds-{language}-wav" for language in ("en", "es", "fr", "it", "ru")),
                        "asterisk-prompt-it-menardi-wav", "asterisk-prompt-es-co", "asterisk-prompt-fr-armelle"),
           "CC-BY-SA-3.0, CC-BY-3.0, GPL-2, BSD-2-clause-like (by speaker)", "telephone prompts, seven speakers",
           asterisk_all, frozenset({"asterisk-prompt-fr-armelle"})),
    Corpus("espeak", (), ESPEAK, "words, numbers, letters, sentences: 74 languages and accents, 83 voices",
           espeak, HELDOUT_VARIANTS, tools=("espeak-ng", "espeak-ng-data")),
    Corpus("instruments", SOUNDFONTS, "MIT, GPL-2 (by soundfont)", "notes, chords, scales of 128 programs; drum kits",
           instruments, HELDOUT_NOTES, tools=("fluidsynth",)),
    Corpus("sonic-pi", ("sonic-pi-samples",), "CC0-1.0", "drums, loops, ambience",
           recordings(lambda path: (SONIC_PI.get(Path(path).stem.split("_")[0], ""), path))),
    Corpus("tuxpaint", ("tuxpaint-stamps-default",), "GPL-2", "names of things in two dozen languages; animals",
           recordings(tuxpaint), frozenset(f"tuxpaint-{n}" for n in LANGUAGES)),
    Corpus("flite", (), FLITE, "English words and sentences, four voices", flite, frozenset({"flite-kal16"}),
           tools=("flite",)),
    Corpus("klettres", ("klettres-data",), "GPL-2+", "letters and syllables in twenty languages",
           recordings(language_folder(1, "klettres")), frozenset(f"klettres-{n}" for n in LANGUAGES)),
    Corpus("ktuberling", ("ktuberling-data",), "GPL-2+", "names of things in two dozen languages",
           recordings(language_folder(2, "ktuberling")), frozenset(f"ktuberling-{n}" for n in LANGUAGES)),
    Corpus("gcin", ("gcin-voice",), "GPL-3 or LGPL-3, CC-BY-3.0 (by reader)", "Mandarin syllables", recordings(gcin),
           frozenset()),
    Corpus("hedgewars", ("hedgewars-data",), "GFDL-1.3 (music GPL-2, two effects CC-BY-SA-3.0)",
           "cries in many voices, effects, music", recordings(hedgewars),
           frozenset({"hedgewars-Surfer", "hedgewars-Mobster"})),
    Corpus("pocketsphinx", ("pocketsphinx-testdata",), "BSD-2-clause", "read sentences",
           recordings(pocketsphinx), frozenset()),
    Corpus("festvox-ru", ("festvox-ru",), "BSD-like (Nickolay V. Shmyrev 2005)", "Russian sentences, one speaker",
           recordings(lambda _: ("speech", "festvox-ru")), frozenset()),
    Corpus("moh", ("asterisk-moh-opsound-wav",), "CC-BY-SA-3.0", "music on hold",
           recordings(lambda path: ("music", Path(path).stem))),
    Corpus("openmsx", ("openttd-openmsx", SOUNDFONTS[0]), "GPL-2", "OpenTTD's music", openmsx, tools=("fluidsynth",)),
    Corpus("pieces", SOUNDFONTS, "CC0-1.0 (composed by this script; soundfonts MIT, GPL-2)", "made-up music",
           pieces, tools=("fluidsynth",)),
    Corpus("noise", (), SCRIPT, "noise, rain, hum", noises),
    Corpus("tones", (), SCRIPT, "tones, chirps, beeps, telephone keys", tones),
    Corpus("silence", (), SCRIPT, "silence and nearly", silences, keep_silence=True),
    Corpus("opensfx", ("openttd-opensfx",), "CC-BY-SA-3.0", "effects of OpenTTD", opensfx),
    Corpus("minetest", ("minetest-data",), "CC-BY-SA-3.0 (doors CC-BY-3.0)", "steps, water, fire, doors",
           recordings(lambda path: ("effects", path))),
    Corpus("teeworlds", ("teeworlds-data",), "CC-BY-SA-3.0", "effects", recordings(lambda path: ("effects", path))),
    Corpus("lincity", ("lincity-ng-data",), "GPL-2+", "city sounds and music", recordings(game)),
    Corpus("games", ("frozen-bubble-data", "pingus-data", "tuxmath-data", "tuxtype-data"),
           "GPL-2, GPL-2+, CC-BY-SA-3.0, public domain (by package)", "effects and music", recordings(game)),
    Corpus("desktop", ("sound-theme-freedesktop", "sound-icons"), "CC-BY-SA-3.0, CC-BY-3.0, GPL-2, GPL-2+ (by file)",
           "desktop sounds", recordings(desktop)),
    Corpus("lmms", ("lmms-common",), "GPL-2+", "drums, basses, pads",
           recordings(lambda path: (LMMS.get(path.split("/")[2], ""), path))),
    Corpus("hydrogen", ("hydrogen-drumkits",), "GPL-2, GPL-2+, CC-BY-3.0, CC-BY-SA-3.0, CC0-1.0 (by kit)", "drum kits",
           recordings(drumkit), frozenset({"kit-ColomboAcousticDrumkit", "kit-HardElectro1"})),
    # Sounds of the house, the street and the fields, for the tagger. SOURCES are held out whole.
    Corpus("berklee", (), "CC-BY-3.0", "objects, tools, water, crowds: the Berklee library of OLPC",
           recordings(everyday("berklee", only="berklee/")), repositories=("Tonejs/audio",)),
    Corpus("wesnoth", ("wesnoth-1.16-data",), "GPL-2+, CC-BY-SA-4.0 (by file)", "animals, weapons",
           recordings(everyday("wesnoth"))),
    Corpus("widelands", ("widelands-data",), "GPL-2+", "birds, farm animals, crafts",
           recordings(everyday("widelands"))),
    Corpus("megaglest", ("megaglest-data",), "CC-BY-SA-3.0", "animals, weather, crafts",
           recordings(everyday("megaglest"))),
    Corpus("ufoai", ("ufoai-sound",), "GPL-2+, CC-BY-3.0, CC-BY-SA-3.0 (by file)", "steps, doors, machines", ufoai),
    Corpus("unknown-horizons", ("unknown-horizons",), "CC-BY-SA-3.0", "crafts, bells",
           recordings(everyday("unknown-horizons"))),
    Corpus("searchandrescue", ("searchandrescue-data",), "GPL-2", "helicopters, jets",
           recordings(everyday("searchandrescue"))),
    Corpus("mobs", (), "CC0-1.0, CC-BY-3.0, MIT (by file)", "farm animals", recordings(everyday("mobs")),
           repositories=("minetest-mirrors/mobs_animal",)),
    Corpus("cmn", (), "CC-BY-SA-3.0", "Mandarin syllables, one speaker", recordings(syllables), frozenset(),
           repositories=("hugolpz/audio-cmn",)),
    Corpus("scratch", ("scratch",), "CC-BY-SA-3.0", "animals, people, things", recordings(everyday("scratch"))),
    Corpus("lugaru", ("lugaru-data",), "CC-BY-SA-3.0", "steps, dogs, blows", recordings(everyday("lugaru"))),
    Corpus("homedecor", ("minetest-mod-homedecor",), "CC-BY-SA-4.0", "doors, taps", recordings(everyday("homedecor"))),
    Corpus("bucklespring", ("bucklespring-data",), "GPL-2+", "a keyboard, key by key",
           recordings(lambda path: (OTHER, "bucklespring"))),
    Corpus("blanket", (), "CC0-1.0, CC-BY-3.0, CC-BY-SA, public domain (by file)", "rain, fire, birds, trains",
           recordings(everyday("blanket")), repositories=("rafaelmardojai/blanket",)),
    Corpus("openrct2", (), "CC-BY-4.0", "roller coasters, rain, thunder", recordings(everyday("openrct2")),
           repositories=("OpenRCT2/OpenSoundEffects",)),
    Corpus("double-bass", (), "CC0-1.0", "a double bass", recordings(double_bass),
           repositories=("sfzinstruments/dsmolken.double-bass",)),
    # Some gigabytes each; the weights in the package were made without them.
    Corpus("ms-snsd", (), "CC0-1.0, CC-BY-SA-3.0 (by file)", "noise of rooms, machines, traffic",
           recordings(everyday("ms-snsd", unknown=UNLABELLED, only="noise_")), repositories=("microsoft/MS-SNSD",)),
    Corpus("vcsl", (), "CC0-1.0", "instruments", recordings(vcsl), repositories=("sgossner/VCSL",)),
]  # fmt: skip
SOURCES = frozenset({"scratch", "lugaru", "homedecor", "bucklespring", "blanket", "openrct2", "double-bass"})
WANTED = frozenset(corpus.name for corpus in CORPORA) - {"ms-snsd", "vcsl"}  # where --only names none
# What the model was pre-trained on does not change with the corpora for the tagger.
PRETRAINING = frozenset(name.name for name in CORPORA[: [corpus.name for corpus in CORPORA].index("berklee")])


# --- packages, files, tables -----------------------------------------------------------------------------------------


def unpack(package: str, cache: Path) -> tuple[Path, str]:
    """Gets a Debian package by name, once, and unpacks it; its folder and version."""
    folder = cache / "root" / package
    archives = cache / "deb"
    archives.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(exist_ok=True)
    if not list(archives.glob(f"{package}_*.deb")):
        done = subprocess.run(["apt-get", "download", "-q", package], cwd=archives, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"apt-get download {package}: {reason} (apt-get update first?)")
    archive = min(archives.glob(f"{package}_*.deb"))
    if not folder.exists():
        fresh = folder.with_name(f"{package}.new{os.getpid()}")  # whole or not there
        subprocess.run(["dpkg", "-x", archive, fresh], check=True, capture_output=True)
        fresh.rename(folder)
    version = subprocess.run(["dpkg-deb", "-f", archive, "Version"], check=True, capture_output=True, text=True)
    return folder, version.stdout.strip()


def clone(repository: str, cache: Path) -> tuple[Path, str]:
    """Gets a repository of GitHub, once; its folder and commit."""
    folder = cache / "git" / repository.replace("/", "+")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.new{os.getpid()}")  # whole or not there
        command = ["git", "clone", "-q", "--depth", "1", f"https://github.com/{repository}", fresh]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"git clone of {repository}: {reason}")
        fresh.rename(folder)
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True)
    return folder, commit.stdout.strip()


def installed(package: str) -> str:
    """The version of a program's package, for the record."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def split_of(corpus: Corpus, group: str) -> str:
    """Which side a group is on: named in the table, or a tenth by its hash; of a source all."""
    if corpus.name in SOURCES:
        return "heldout"
    held = zlib.crc32(group.encode()) % 10 == 0 if corpus.heldout is None else group in corpus.heldout
    return "heldout" if held else "train"


def write_corpus(corpus: Corpus, out: Path, cache: Path) -> str:
    """Makes one corpus beside its place and moves it there, so that it is complete or absent. Returns a line on it."""
    began, unpacked = time.monotonic(), [unpack(package, cache) for package in corpus.packages]
    unpacked += [clone(repository, cache) for repository in corpus.repositories]
    places = (*corpus.packages, *corpus.repositories)
    versions = [f"{p} {version}" for p, (_, version) in zip(places, unpacked, strict=True)]
    versions += [f"{p} {installed(p)}" for p in corpus.tools]
    folder = out / f".{corpus.name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows: list[tuple[str, ...]] = []
    seen: set[bytes] = set()
    dropped, total = 0, 0.0
    for clip in corpus.make([root for root, _ in unpacked]):
        peak = float(np.abs(clip.samples).max(initial=0))
        pcm = np.round(clip.samples * (32767 / max(1.0, peak))).astype(np.int16)
        content = hashlib.sha256(pcm.tobytes()).digest()
        silent = peak < QUIETEST and not corpus.keep_silence
        if len(pcm) < SHORTEST * RATE or silent or content in seen:
            dropped += 1
            continue
        seen.add(content)
        path = folder / f"{clip.name}.wav"
        for copy in range(2, 9):  # the same name with another suffix
            if not path.exists():
                break
            path = folder / f"{clip.name}-{copy}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, pcm, RATE, subtype="PCM_16")
        seconds = len(pcm) / RATE
        total += seconds
        place = f"{corpus.name}/{path.relative_to(folder).as_posix()}"
        rows.append((place, corpus.name, clip.licence or corpus.licence, clip.label, clip.group,
                     split_of(corpus, clip.group), f"{seconds:.3f}"))  # fmt: skip
    if not rows:
        raise RuntimeError("its packages hold no sound where it used to be")
    write_table(folder / "files.csv", rows)
    (folder / "packages.txt").write_text("\n".join(versions) + "\n")
    shutil.rmtree(out / corpus.name, ignore_errors=True)
    folder.rename(out / corpus.name)
    minutes = (time.monotonic() - began) / 60
    return f"{len(rows)} files, {total / 3600:.2f} h, {dropped} dropped, in {minutes:.1f} min"


def write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    """A CSV file that is complete or absent."""
    fresh = path.with_name(f"{path.name}.new{os.getpid()}")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    fresh.replace(path)


def write_summary(out: Path) -> None:
    """The manifest of all corpora that are complete, and the table of what they are."""
    rows: list[tuple[str, ...]] = []
    lines = ["| corpus | what | packages | licence | files | hours |", "|---|---|---|---|---|---|"]
    for corpus in CORPORA:
        files = out / corpus.name / "files.csv"
        if not files.exists():
            continue
        with files.open(newline="", encoding="utf-8") as file:
            here = [tuple(row) for row in csv.reader(file)][1:]
        rows += here
        packages = ", ".join((out / corpus.name / "packages.txt").read_text().split("\n")).strip(", ") or "–"
        hours = sum(float(row[-1]) for row in here) / 3600
        lines.append(f"| {corpus.name} | {corpus.about} | {packages} | {corpus.licence} | {len(here)} | {hours:.2f} |")
    write_table(out / "manifest.csv", rows)
    corpus_name, label, split = (COLUMNS.index(name) for name in ("corpus", "label", "split"))
    learned = [row for row in rows if row[corpus_name] in PRETRAINING]
    write_table(out / "train.csv", [row for row in learned if row[split] == "train"])
    write_table(out / "labelled.csv", [row for row in learned if row[label]])
    (out / "corpora.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Makes what is missing, says how it went; 1 where a corpus could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano/audio"), help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CORPORA], metavar="CORPUS", help="only these")
    options = parser.parse_args()
    out = options.out.resolve()
    wanted = options.only or WANTED
    needed = {tool for corpus in CORPORA if corpus.name in wanted for tool in corpus.tools}
    if missing := [tool for tool in TOOLS if tool in needed and shutil.which(tool) is None]:
        print(f"{' and '.join(missing)} not found: apt-get install {' '.join(TOOLS)}", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for corpus in CORPORA:
        if corpus.name not in wanted:
            continue
        if (out / corpus.name / "files.csv").exists():
            print(f"{corpus.name}: complete", flush=True)
            continue
        try:
            print(f"{corpus.name}: {write_corpus(corpus, out, out.parent / 'packages')}", flush=True)
        except (RuntimeError, OSError, StopIteration, subprocess.CalledProcessError) as problem:
            failed += 1
            print(f"{corpus.name}: skipped, {problem}", file=sys.stderr, flush=True)
        write_summary(out)
    write_summary(out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
