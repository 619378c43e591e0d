"""What an everyday sound is, by the name of its file: a kind that the built-in tagger tells apart, or none of them.

People who collect sounds name them by what makes them. `kind` reads that off, for the corpora of `fetch.py` that hold
sounds of the house, the street and the fields, and for the effects of games.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

OTHER = "other"  # a sound that is none of the kinds
UNLABELLED = ""  # an instrument, a voice, several kinds at once, or a name that does not tell

# Words of names, each a regular expression; the first rule that matches decides. A word begins behind what is no
# letter, or where a capital follows a small letter. It ends where no small letter follows; with "~" it may go on.
_RULES = [
    # First what a later word of the same name would decide wrongly.
    ("laughter", "laugh~ laughing~ laughter~ giggle~ babycry baby_cry cry crying cackle"),
    ("engine", "helicopter~ jet_engine~ sewingmachine washing-machine"),
    ("door", "car_door~"),
    (OTHER, "gun~ firework~ fake_gunfire (?:cross)?bow catapult~ rain_?stick~ rainbow cowbell toy~ rubber~ balloon~ "
            "can_~ "
            "fire_?arrow~ ink windmill wind_?up~ bottle~ cat_rattle bar+el~ shoes_in goat_hoof~ foghorn paper~ "
            "card_in_fan "
            "hand_fan eating~ cereal cabbage water_on~ water_can water_jug water_pan water_glass water_balloon "
            "water_bottle~ "
            "locker~ ballbearing~ bubblewrap boing~ zube~ metal_creamer~ phone_card computer~ rattle~ mouth_bubbles "
            "miss fire_start fire_end fire_hose fire_flint~ extinguish~ bite~ horse_?man~ orni~ golem~ machine_walk~ "
            "tiger_flash~ red_bul~ cool_whale~ bullet~ cannon~"),
    (UNLABELLED, "synth~ casio~ guitar~ piano~ violin~ cello~ bass~ flute~ sitar~ kalimba~ theremin~ drum~ cym~ conga~ "
                 r"bongo~ tabla~ marimba~ vibra~ gong~ music~ banjo~ recorder~ sax~ di[gd]\w*do~ harp~ horn-~ "
                 r"fanfare organ~ "
                 r"male~ female~ \w*death~ \w*hurt~ voc\w*~ sing~ choir ahntone~ \w+tones?_~ arpeggio~ arp~ groov~ "
                 r"beat~ "
                 "khaen~ an[gk]lung~ bamboo~ tambourine~ shaker~ woodblock~ snare~ kick_~ analogsynth~ longsynth~ "
                 "shortsynth~ "
                 r"fm~ glitch~ sound_collage~ ambien~ atmos~ \w*atm misc~ multi_~ tavern~ inn city~ street~ "
                 r"outside_boston "
                 "outdoors~ day night~ summer-night morning desert~ sand-city grocery~ coffee-shop restaurant hell "
                 "civ~ "
                 "subway_station chat~ crowd~ underground~ children~ wild human_animals~ good_morning lobby~ tv_~ "
                 "disco "
                 "jingle~ pink-noise white-noise singer~ hey-~ beatbox~ partynoise trumpet~ instruments? vocals "
                 r"\w+_ack~ \w+_select~ \w+_sel~ (?:ack|select|attack|die|hit)\d~ \w+attack\d~ "
                 "(?:human|dwarf|elf|orc|ogre|goblin|troll|soldier)~ "
                 "(?!bull|cow|pig|sheep|chicken|eagle|wolf|horse|tusker)[a-z-]+[_-](?:die|hit)~ new_world"),
    ("footsteps", r"footsteps?\d*~ foot_?step\w*~ walking~ stomp~ heels~ up_stairs~ stairs~ runningecho~"),
    ("bird", r"birds?\d*~ blackbird crow owl rooster ducks? goose gander hen chicken~ seagull lark cuckoo hawk "
             r"eagle~ parrot "
             "quack~ turkey tucan vulture penguin heron~ quetzal chirping~ chriping~ nandou"),
    ("animal", r"dogs?~ bark\w*~ puppy cows? mudchute_cow~ ox mooo?~ sheep~ goat ram lamb horse~ donkey zebra pig~ "
               r"boar cat "
               r"kitten meow lion tiger bear frog crickets?\d?~ grasshopper bees?\d~ bee hornet mosquito wolf~ "
               r"coyote~ fox "
               r"moose~ stag~ deer elephant ele\d~ gorilla chimp dolphin whale orca sea_?lion mouse rat squirrel "
               "rabbit_?chitter~ rabbit bison bulls? animals?~ farm_animal~ growl~ snarl~ hiss~ panda iguana badger "
               "ferret "
               "hippopotamus koala caribou doe camel dromedary giraffe beaver wombat hyena tusker~"),
    ("water", "water~ waterbubbles~ rain~ river ocean waves?~ splash~ water_bubbles~ bubbles~ alienbase-bubbles drip~ "
              "faucet shower stream swimming~ pouring~ sprinkler~ gargle~ flush toilet~ storm~ plunge ripples "
              "beerbubble~ winebubble~ wild_river peeing~"),
    ("fire", r"fire\d*~ fire-?soft campfire fireplace flame~ smallfire small_fire wicker_fire furnace~ torch"),
    ("engine", r"engines?~ motor~ loudmotor~ cars?_~ carpassing truck~ garbage_truck~ train\d?~ subway~ boston_subway~ "
               "drill~ shaver~ vacuum~ blender~ dryer~ plane airship_fly airplane driving~ bus tractor powerdrill~ "
               "powertool~ "
               "power_tool~ generator waterpump~ motorcycle~ jet~ dremel~ electric_screwdriver~ fan~ coffee_machine~ "
               "boat_engine~ rc_roar~ rc_lift~ diesel~ airblower aircompressor lawn~"),
    ("bell", r"bells?\d? bells?_~ bell-~ tiny_?bell~ templebell~ alarm~ siren~ police_siren~ chimes?~ doorbell~ phone~ "
             r"old_phone~ modern_phone~ telephone~ ring\d?~ chapel minarett~ kettle belltoll"),
    ("door", r"doors?\d?~ doorslam~ knock~ slam~ gate~ creak~ chest_~ open_?chest old_door~"),
]  # fmt: skip


def _pattern(words: str) -> re.Pattern[str]:
    parts = []
    for word in words.split():
        start = r"(?:(?<![a-zA-Z])|(?<=[a-z])(?=[A-Z]))"
        parts.append(f"{start}(?i:{word.removesuffix('~')})" + ("" if word.endswith("~") else "(?![a-z])"))
    return re.compile("|".join(parts))


_PATTERNS = [(label, _pattern(words)) for label, words in _RULES]
KINDS = tuple(dict.fromkeys(label for label, _ in _RULES if label not in (OTHER, UNLABELLED)))


def kind(path: str, unknown: str = OTHER) -> str:
    """One of `KINDS`; `OTHER`, or `UNLABELLED`.

    Args:
        path: of the file; its name decides, then whether its folder is called like a kind.
        unknown: what is said of a name without any of the words.
    """
    place = PurePosixPath(path)
    for label, pattern in _PATTERNS:
        if pattern.search(place.stem):
            return label
    for label, pattern in _PATTERNS:
        if label in KINDS and pattern.search(place.parent.name):
            return label
    return unknown


def group_of(path: str) -> str:
    """What a split must keep together: takes of one thing, whose names differ by a number."""
    place = PurePosixPath(path)
    stem = re.sub(r"[-_. ]*\(?(?:\d+[a-d]?)\)?$", "", place.stem)
    return f"{place.parent.name}/{stem or place.parent.name}".lower()
