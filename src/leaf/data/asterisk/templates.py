"""Templates of the asterisk task: recordings to join, exact texts in three languages, questions with their answers.

Every template draws its slots from a random generator and makes an `Utterance`, such as the one in its docstring. A
template that is held out puts its utterances into the split `test_heldout`, and so does a slot value that is held out.
The order of the draws must stay as it is: the rows of the task follow from it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from leaf.data.asterisk.numbers import english, english_ordinal, french, italian
from leaf.data.asterisk.slots import Slot, at_italian, counted_messages, digits, key, number_parts, time_of_day
from leaf.data.asterisk.words import ACTIONS, DAYS, FEATURES, MONTHS, STATES

# Held out for the harder test split: these values and templates occur in no training, validation or test row.
HELD_OUT_VALUES = {"Thursday", "August", "remove-last", "speed-dial", "pound", "17", "34", "48"}
HELD_OUT_TEMPLATES = {"queue_quantity", "phone_number"}


@dataclass(frozen=True)
class Utterance:
    """One composed utterance.

    Attributes:
        kind: name of its template.
        parts: names of the recordings, in order.
        english, french, italian: what is said, and its translations.
        questions: (question kind, subject, answer) triples.
        values: slot values that may be held out.
    """

    kind: str
    parts: tuple[str, ...]
    english: str
    french: str
    italian: str
    questions: tuple[tuple[str, str, str], ...]
    values: frozenset[str] = frozenset()

    @property
    def held_out(self) -> bool:
        """Tell whether the utterance belongs to the harder test split."""
        return self.kind in HELD_OUT_TEMPLATES or bool(self.values & HELD_OUT_VALUES)


def date_time(rng: random.Random) -> Utterance:
    """Monday, March third at seven twenty A.M."""
    day, month, number = rng.choice(list(DAYS)), rng.choice(list(MONTHS)), rng.randrange(1, 32)
    at, en, fr, it, values = time_of_day(rng)
    ordinal = (
        [f"digits/h-{number}"]
        if number <= 20 or number == 30
        else [f"digits/{number // 10 * 10}", f"digits/h-{number % 10}"]
    )
    date = f"{month} {english_ordinal(number)}"
    parts = [f"digits/day-{list(DAYS).index(day)}", f"digits/mon-{list(MONTHS).index(month)}", *ordinal]
    french_date = f"{DAYS[day][0].capitalize()} {'premier' if number == 1 else french(number)} {MONTHS[month][0]}"
    italian_date = f"{DAYS[day][1].capitalize()} {'primo' if number == 1 else italian(number)} {MONTHS[month][1]}"
    return Utterance(
        "date_time",
        (*parts, "digits/at", *at),
        f"{day}, {date} at {en}",
        f"{french_date} à {fr}.",
        f"{italian_date} {at_italian(it)}.",
        (("date", "", f"It is {day}, {date}."), ("time", "", f"It is at {en}"), ("day", "", f"It is {day}.")),
        values | {day, month},
    )


def exact_time(rng: random.Random) -> Utterance:
    """At the sound of the tone, the time will be exactly seven twenty P.M."""
    parts, en, fr, it, values = time_of_day(rng)
    verb = "sarà" if it.startswith("l'") else "saranno"
    return Utterance(
        "exact_time",
        ("at-tone-time-exactly", *parts),
        f"At the sound of the tone, the time will be exactly {en}",
        f"Au signal sonore, il sera exactement {fr}.",
        f"Al segnale acustico {verb} esattamente {it}.",
        (("time", "", f"The time will be exactly {en}"),),
        values,
    )


def messages(rng: random.Random) -> Utterance:
    """You have three new messages and two old messages."""
    kinds = rng.choice([("new",), ("old",), ("urgent",), ("new", "old"), ("urgent", "new"), ("urgent", "old")])
    numbers = [rng.randrange(1, 60) for _ in kinds]
    pieces = [counted_messages(n, kind) for n, kind in zip(numbers, kinds, strict=True)]
    parts = ["vm-youhave", *pieces[0].parts] + (["vm-and", *pieces[1].parts] if len(pieces) > 1 else [])
    return Utterance(
        "messages",
        tuple(parts),
        f"You have {' and '.join(p.english for p in pieces)}.",
        f"Vous avez {' et '.join(p.french for p in pieces)}.",
        f"Hai {' e '.join(p.italian for p in pieces)}.",
        tuple((kind, "", f"You have {piece.english}.") for kind, piece in zip(kinds, pieces, strict=True)),
        frozenset(str(n) for n in numbers if n >= 10),
    )


def menu(rng: random.Random) -> Utterance:
    """To leave the conference, press seven. (One or two items, either order of key and action.)"""
    stems = rng.sample(list(ACTIONS), rng.choice([1, 2]))
    keys: list[Slot] = []
    while len(keys) < len(stems):
        drawn = key(rng)
        if drawn not in keys:
            keys.append(drawn)
    action_first = rng.random() < 0.5
    parts, en, fr, it, questions = [], [], [], [], []
    for stem, pressed in zip(stems, keys, strict=True):
        action, effect, action_fr, action_it = ACTIONS[stem]
        if action_first:
            parts += [f"confbridge-{stem}-in", "vm-press", *pressed.parts]
            en.append(f"To {action}, press {pressed.english}.")
            fr.append(f"Pour {action_fr}, appuyez {pressed.french}.")
            it.append(f"Per {action_it}, premi {pressed.italian}.")
        else:
            parts += ["vm-press", *pressed.parts, f"confbridge-{stem}-out"]
            en.append(f"Press {pressed.english} to {action}.")
            fr.append(f"Appuyez {pressed.french} pour {action_fr}.")
            it.append(f"Premi {pressed.italian} per {action_it}.")
        mine = action.replace("your", "my").replace("yourself", "myself")
        questions += [("key", mine, f"Press {pressed.english}."), ("effect", pressed.english, f"{effect}.")]
    values = frozenset(stems).union(*(pressed.values for pressed in keys))
    return Utterance("menu", tuple(parts), " ".join(en), " ".join(fr), " ".join(it), tuple(questions), values)


def person(rng: random.Random) -> Utterance:
    """The person at extension four two one seven is on the phone."""
    parts, en, fr, it, _ = digits(rng, rng.choice([3, 4]))
    name, status, status_fr, status_it = rng.choice(
        [
            ("vm-isonphone", "is on the phone", "est au téléphone", "è al telefono"),
            ("vm-isunavail", "is unavailable", "n'est pas disponible", "non è disponibile"),
        ]
    )
    return Utterance(
        "person",
        ("vm-theperson", *parts, name),
        f"The person at extension {en} {status}.",
        f"La personne au poste {fr} {status_fr}.",
        f"La persona all'interno {it} {status_it}.",
        (("extension", "", f"It is extension {en}."), ("status", "", f"The person {status}.")),
    )


def queue(rng: random.Random) -> Utterance:
    """You are currently caller number three. The estimated hold time is currently twelve minutes."""
    position, wait = rng.randrange(1, 31), rng.randrange(1, 60)
    minutes = "minute" if wait == 1 else "minutes"
    wait_french = "d'une minute" if wait == 1 else f"de {french(wait, True)} minutes"
    return Utterance(
        "queue",
        (
            "queue-thereare",
            *number_parts(position),
            "queue-holdtime",
            *number_parts(wait),
            "queue-minute" if wait == 1 else "queue-minutes",
        ),
        f"You are currently caller number {english(position)}. "
        f"The estimated hold time is currently {english(wait)} {minutes}.",
        f"Vous êtes actuellement l'appelant numéro {french(position)}. "
        f"Le temps d'attente estimé est actuellement {wait_french}.",
        f"Sei attualmente il chiamante numero {italian(position)}. "
        f"Il tempo di attesa stimato è attualmente di {'un minuto' if wait == 1 else italian(wait) + ' minuti'}.",
        (
            ("position", "", f"You are caller number {english(position)}."),
            ("hold", "", f"The estimated hold time is {english(wait)} {minutes}."),
        ),
        frozenset(str(n) for n in (position, wait) if n >= 10),
    )


def queue_quantity(rng: random.Random) -> Utterance:
    """Currently, there are more than twelve callers waiting to speak with a representative."""
    n = rng.randrange(2, 100)
    return Utterance(
        "queue_quantity",
        ("queue-quantity1", *number_parts(n), "queue-quantity2"),
        f"Currently, there are more than {english(n)} callers waiting to speak with a representative.",
        f"Il y a actuellement plus de {french(n)} appelants qui attendent de parler à un représentant.",
        f"Al momento ci sono più di {italian(n)} persone in attesa di parlare con un operatore.",
        (("callers", "", f"More than {english(n)} callers are waiting."),),
        frozenset({str(n)} if n >= 10 else ()),
    )


def duration(rng: random.Random) -> Utterance:
    """This message lasts three minutes and twenty seconds."""
    minute, second = rng.randrange(1, 60), rng.randrange(1, 60)
    en = f"{english(minute)} minute{'s' * (minute > 1)} and {english(second)} second{'s' * (second > 1)}"
    fr = f"{french(minute, True)} minute{'s' * (minute > 1)} et {french(second, True)} seconde{'s' * (second > 1)}"
    it_minute = "un minuto" if minute == 1 else f"{italian(minute)} minuti"
    it_second = "un secondo" if second == 1 else f"{italian(second)} secondi"
    return Utterance(
        "duration",
        (
            "vm-duration",
            *number_parts(minute),
            "minute" if minute == 1 else "vm-minutes",
            "vm-and",
            *number_parts(second),
            "second" if second == 1 else "seconds",
        ),
        f"This message lasts {en}.",
        f"Ce message dure {fr}.",
        f"Questo messaggio dura {it_minute} e {it_second}.",
        (("duration", "", f"It lasts {en}."),),
        frozenset(str(n) for n in (minute, second) if n >= 10),
    )


def amount(rng: random.Random) -> Utterance:
    """You entered two hundred forty-five dollars."""
    n = rng.choice([rng.randrange(2, 100), rng.randrange(100, 1000)])
    return Utterance(
        "amount",
        ("you-entered", *number_parts(n), "digits/dollars"),
        f"You entered {english(n)} dollars.",
        f"Vous avez saisi {french(n)} dollars.",
        f"Hai inserito {italian(n)} dollari.",
        (("amount", "", f"It is {english(n)} dollars."),),
        frozenset({str(n % 100)} if n % 100 >= 10 else ()),
    )


def conference(rng: random.Random) -> Utterance:
    """You are entering conference number four two one."""
    parts, en, fr, it, _ = digits(rng, rng.choice([3, 4, 5]))
    return Utterance(
        "conference",
        ("conf-enteringno", *parts),
        f"You are entering conference number {en}.",
        f"Vous entrez dans la conférence numéro {fr}.",
        f"Stai entrando nella conferenza numero {it}.",
        (("conference", "", f"You are entering conference number {en}."),),
    )


def participants(rng: random.Random) -> Utterance:
    """There are currently five other participants in the conference."""
    n = rng.randrange(2, 100)
    return Utterance(
        "participants",
        ("conf-thereare", *number_parts(n), "conf-otherinparty"),
        f"There are currently {english(n)} other participants in the conference.",
        f"Il y a actuellement {french(n)} autres participants dans la conférence.",
        f"Al momento ci sono altri {italian(n)} partecipanti nella conferenza.",
        (("participants", "", f"There are {english(n)} other participants."),),
        frozenset({str(n)} if n >= 10 else ()),
    )


def received(rng: random.Random) -> Utterance:
    """First message, received Monday at seven twenty P.M."""
    which = rng.choice(["first", "last"])
    day = rng.choice([*DAYS, "today", "yesterday"])
    near = {"today": ("aujourd'hui", "oggi"), "yesterday": ("hier", "ieri")}
    name = f"digits/{day}" if day in near else f"digits/day-{list(DAYS).index(day)}"
    day_fr, day_it = (DAYS | near)[day]
    parts, en, fr, it, values = time_of_day(rng)
    which_fr, which_it = {"first": ("Premier", "Primo"), "last": ("Dernier", "Ultimo")}[which]
    return Utterance(
        "received",
        (f"vm-{which}", "vm-message", "vm-received", name, "digits/at", *parts),
        f"{which.capitalize()} message, received {day} at {en}",
        f"{which_fr} message, reçu {day_fr} à {fr}.",
        f"{which_it} messaggio, ricevuto {day_it} {at_italian(it)}.",
        (("received", "", f"It was received {day} at {en}"), ("which", "", f"It is the {which} message.")),
        values | {day},
    )


def feature_state(rng: random.Random) -> Utterance:
    """Call waiting is activated."""
    name, state = rng.choice(list(FEATURES)), rng.choice(list(STATES))
    en, fr, it, feminine = FEATURES[name]
    state_en, state_fr, state_it = STATES[state]
    return Utterance(
        "feature_state",
        (name, "is", state),
        f"{en} is {state_en}.",
        f"{fr} est {state_fr}{'e' if feminine else ''}.",
        f"{it} è {state_it}{'a' if feminine else 'o'}.",
        (("feature", "", f"{en} is {state_en}."),),
        frozenset({name}),
    )


def feature_target(rng: random.Random) -> Utterance:
    """Call forwarding is set to four two one."""
    name = rng.choice(list(FEATURES))
    en, fr, it, feminine = FEATURES[name]
    parts, digits_en, digits_fr, digits_it, _ = digits(rng, rng.choice([3, 4, 5]))
    return Utterance(
        "feature_target",
        (name, "is-set-to", *parts),
        f"{en} is set to {digits_en}.",
        f"{fr} est réglé{'e' if feminine else ''} sur {digits_fr}.",
        f"{it} è impostat{'a' if feminine else 'o'} su {digits_it}.",
        (("target", en.lower(), f"It is set to {digits_en}."), ("feature", "", f"{en} is set to {digits_en}.")),
        frozenset({name}),
    )


def spelled(rng: random.Random) -> Utterance:
    """You entered K T W four."""
    signs = [rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(rng.choice([3, 4, 5]))]
    parts = [f"digits/{s}" if s.isdigit() else f"letters/{s}" for s in signs]
    en, fr, it = (" ".join(f(int(s)) if s.isdigit() else s.upper() for s in signs) for f in (english, french, italian))
    return Utterance(
        "spelled",
        ("you-entered", *parts),
        f"You entered {en}.",
        f"Vous avez saisi {fr}.",
        f"Hai inserito {it}.",
        (("spelled", "", f"You entered {en}."),),
    )


def directory(rng: random.Random) -> Utterance:
    """Press one for extension four two one."""
    key = rng.randrange(1, 10)
    parts, en, fr, it, _ = digits(rng, rng.choice([3, 4]))
    return Utterance(
        "directory",
        ("dir-multi1", f"digits/{key}", "dir-multi2", "dir-multi3", *parts),
        f"Press {english(key)} for extension {en}.",
        f"Appuyez sur le {french(key)} pour le poste {fr}.",
        f"Premi {italian(key)} per l'interno {it}.",
        (("reach", "", f"Press {english(key)} for extension {en}."), ("extension", "", f"It is extension {en}.")),
    )


def phone_number(rng: random.Random) -> Utterance:
    """Telephone number five five five one two three four."""
    parts, en, fr, it, _ = digits(rng, 7)
    return Utterance(
        "phone_number",
        ("telephone-number", *parts),
        f"Telephone number {en}.",
        f"Numéro de téléphone {fr}.",
        f"Numero di telefono {it}.",
        (("number", "", f"The telephone number is {en}."),),
    )


# template → share of the utterances
TEMPLATES: dict[Callable[[random.Random], Utterance], int] = {
    date_time: 12,
    exact_time: 8,
    messages: 14,
    menu: 14,
    person: 9,
    queue: 9,
    queue_quantity: 3,
    duration: 9,
    amount: 7,
    conference: 6,
    participants: 3,
    received: 9,
    feature_state: 1,
    feature_target: 6,
    spelled: 8,
    directory: 7,
    phone_number: 3,
}
