"""Slots of the asterisk templates: draw a number, a time or a key, with its recordings and its words."""

import random
from typing import NamedTuple

from leaf.data.asterisk.numbers import english, french, italian
from leaf.data.asterisk.words import KEYS


class Slot(NamedTuple):
    """What was drawn for a slot.

    Attributes:
        parts: names of the recordings, in order.
        english, french, italian: what they say, and its translations.
        values: what may be held out (see `HELD_OUT_VALUES` of the templates).
    """

    parts: list[str]
    english: str
    french: str
    italian: str
    values: frozenset[str] = frozenset()


def number_parts(n: int) -> list[str]:
    """Name the recordings that say a number below 1,000 when they are joined."""
    if n >= 100:
        head = [f"digits/{n // 100}", "digits/hundred"]
        return head if n % 100 == 0 else head + number_parts(n % 100)
    if n <= 20 or n % 10 == 0:
        return [f"digits/{n}"]
    return [f"digits/{n // 10 * 10}", f"digits/{n % 10}"]


def digits(rng: random.Random, size: int) -> Slot:
    """Draw a number that is said digit by digit."""
    numbers = [rng.randrange(10) for _ in range(size)]
    en, fr, it = (" ".join(f(n) for n in numbers) for f in (english, french, italian))
    return Slot([f"digits/{n}" for n in numbers], en, fr, it)


def time_of_day(rng: random.Random) -> Slot:
    """Draw a time; the Italian has its article, see `at_italian`."""
    hour, minute, after_noon = rng.randrange(1, 12), rng.choice([0, *range(1, 60)]), rng.random() < 0.5
    parts, en = [f"digits/{hour}"], english(hour)
    if minute == 0:
        parts, en = [*parts, "digits/oclock"], f"{en} o'clock"
    elif minute < 10:
        parts, en = [*parts, "digits/oh", f"digits/{minute}"], f"{en} oh {english(minute)}"
    else:
        parts, en = parts + number_parts(minute), f"{en} {english(minute)}"
    parts, en = [*parts, "digits/p-m" if after_noon else "digits/a-m"], f"{en} {'P.M.' if after_noon else 'A.M.'}"
    when = (
        ("du matin", "di mattina")
        if not after_noon
        else (("de l'après-midi", "del pomeriggio") if hour < 6 else ("du soir", "di sera"))
    )
    fr = f"{french(hour, True)} heure{'s' if hour > 1 else ''}"
    fr = f"{fr} {french(minute, True)} {when[0]}" if minute else f"{fr} {when[0]}"
    it = "l'una" if hour == 1 else f"le {italian(hour)}"
    it = f"{it} e {italian(minute)} {when[1]}" if minute else f"{it} {when[1]}"
    return Slot(parts, en, fr, it, frozenset({str(minute)} if minute >= 10 else ()))


def at_italian(time: str) -> str:
    """Put the preposition before a time: l'una becomes all'una, le due becomes alle due."""
    return f"al{time}"


def counted_messages(n: int, kind: str) -> Slot:
    """Say how many new, old or urgent messages there are."""
    one = n == 1
    name = {"new": "vm-INBOX", "old": "vm-Old", "urgent": "vm-Urgent"}[kind]
    en = f"{english(n)} {kind} message{'' if one else 's'}"
    number_fr, number_it = french(n), "un" if one else italian(n)
    fr = {
        "new": f"{number_fr} {'nouveau message' if one else 'nouveaux messages'}",
        "old": f"{number_fr} {'ancien message' if one else 'anciens messages'}",
        "urgent": f"{number_fr} {'message urgent' if one else 'messages urgents'}",
    }[kind]
    it = {
        "new": f"{number_it} {'nuovo messaggio' if one else 'nuovi messaggi'}",
        "old": f"{number_it} {'vecchio messaggio' if one else 'vecchi messaggi'}",
        "urgent": f"{number_it} {'messaggio urgente' if one else 'messaggi urgenti'}",
    }[kind]
    return Slot([*number_parts(n), name, "vm-message" if one else "vm-messages"], en, fr, it)


def key(rng: random.Random) -> Slot:
    """Draw a key of the telephone; the French has its preposition."""
    if rng.random() < 0.15:
        name = rng.choice(list(KEYS))
        en, fr, it = KEYS[name]
        return Slot([f"digits/{name}"], en, f"sur la touche {fr}", it, frozenset({name}))
    n = rng.randrange(10)
    return Slot([f"digits/{n}"], english(n), f"sur le {french(n)}", italian(n))
