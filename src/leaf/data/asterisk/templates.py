"""Templates of the asterisk task: slots → recordings to join, exact texts in three languages, questions with answers.

Every template draws its slots from a random generator and returns an `Utterance`. A slot value that is held out puts
the utterance into the split `test_heldout`; so does a held-out template.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from leaf.data.asterisk.numbers import english, english_ordinal, french, italian

DAYS = {
    "Sunday": ("dimanche", "domenica"),
    "Monday": ("lundi", "lunedì"),
    "Tuesday": ("mardi", "martedì"),
    "Wednesday": ("mercredi", "mercoledì"),
    "Thursday": ("jeudi", "giovedì"),
    "Friday": ("vendredi", "venerdì"),
    "Saturday": ("samedi", "sabato"),
}
MONTHS = {
    "January": ("janvier", "gennaio"),
    "February": ("février", "febbraio"),
    "March": ("mars", "marzo"),
    "April": ("avril", "aprile"),
    "May": ("mai", "maggio"),
    "June": ("juin", "giugno"),
    "July": ("juillet", "luglio"),
    "August": ("août", "agosto"),
    "September": ("septembre", "settembre"),
    "October": ("octobre", "ottobre"),
    "November": ("novembre", "novembre"),
    "December": ("décembre", "dicembre"),
}
# recording stem → (English, what the caller then does, French, Italian)
ACTIONS = {
    "leave": ("leave the conference", "You leave the conference", "quitter la conférence", "lasciare la conferenza"),
    "menu-exit": ("exit the menu", "You exit the menu", "quitter le menu", "uscire dal menu"),
    "mute": (
        "mute or unmute yourself",
        "You mute or unmute yourself",
        "activer ou désactiver votre micro",
        "attivare o disattivare il microfono",
    ),
    "lock": (
        "lock or unlock the conference",
        "You lock or unlock the conference",
        "verrouiller ou déverrouiller la conférence",
        "bloccare o sbloccare la conferenza",
    ),
    "remove-last": (
        "remove the participant who most recently joined the conference",
        "You remove the participant who most recently joined the conference",
        "expulser le dernier participant arrivé dans la conférence",
        "rimuovere l'ultimo partecipante entrato nella conferenza",
    ),
    "dec-list-vol": (
        "decrease the audio volume from other participants",
        "You decrease the audio volume from other participants",
        "baisser le volume des autres participants",
        "abbassare il volume degli altri partecipanti",
    ),
    "inc-list-vol": (
        "increase the audio volume from other participants",
        "You increase the audio volume from other participants",
        "augmenter le volume des autres participants",
        "alzare il volume degli altri partecipanti",
    ),
    "rest-list-vol": (
        "reset the audio volume of the conference to the default level",
        "You reset the audio volume of the conference to the default level",
        "rétablir le volume de la conférence à son niveau par défaut",
        "riportare il volume della conferenza al livello predefinito",
    ),
    "dec-talk-vol": (
        "decrease your speaking volume to other participants",
        "You decrease your speaking volume to other participants",
        "baisser le volume de votre voix pour les autres participants",
        "abbassare il volume della tua voce per gli altri partecipanti",
    ),
    "inc-talk-vol": (
        "increase your speaking volume to other participants",
        "You increase your speaking volume to other participants",
        "augmenter le volume de votre voix pour les autres participants",
        "alzare il volume della tua voce per gli altri partecipanti",
    ),
    "rest-talk-vol": (
        "reset your speaking volume to the default level",
        "You reset your speaking volume to the default level",
        "rétablir le volume de votre voix à son niveau par défaut",
        "riportare il volume della tua voce al livello predefinito",
    ),
}
# recording → (English, French with article, Italian with article, feminine in French and Italian)
FEATURES = {
    "call-forwarding": ("Call forwarding", "Le renvoi d'appel", "Il trasferimento di chiamata", False),
    "call-waiting": ("Call waiting", "Le signal d'appel", "L'avviso di chiamata", False),
    "do-not-disturb": ("Do not disturb", "La fonction ne pas déranger", "La funzione non disturbare", True),
    "speed-dial": ("Speed dial", "La numérotation abrégée", "La composizione rapida", True),
}
STATES = {
    "activated": ("activated", "activé", "attivat"),
    "de-activated": ("de-activated", "désactivé", "disattivat"),
    "cancelled": ("cancelled", "annulé", "annullat"),
}
KEYS = {"star": ("star", "étoile", "asterisco"), "pound": ("pound", "dièse", "cancelletto")}

# Held out for the harder test split: these values and templates occur in no training, validation or test row.
HELD_OUT_VALUES = {"Thursday", "August", "remove-last", "speed-dial", "pound", "17", "34", "48"}
HELD_OUT_TEMPLATES = {"queue_quantity", "phone_number"}


@dataclass(frozen=True)
class Utterance:
    """Hold one composed utterance: recordings, texts, (question kind, subject, answer) triples, slot values."""

    kind: str
    parts: tuple[str, ...]
    english: str
    french: str
    italian: str
    questions: tuple[tuple[str, str, str], ...]
    values: frozenset[str] = frozenset()

    @property
    def held_out(self) -> bool:
        """Return whether the utterance belongs to the harder test split."""
        return self.kind in HELD_OUT_TEMPLATES or bool(self.values & HELD_OUT_VALUES)


# question kind → wordings; {} is the subject
QUESTIONS = {
    "transcribe": ("What does the speaker say?", "What do you hear?", "Which words are spoken?"),
    "day": ("Which day is mentioned?", "What day of the week do you hear?", "Which weekday is it?"),
    "date": ("What is the date?", "Which date is mentioned?", "What date do you hear?"),
    "time": ("What time is mentioned?", "At what time is it?", "Which time do you hear?"),
    "new": ("How many new messages do I have?", "How many messages are new?"),
    "old": ("How many old messages do I have?", "How many messages are old?"),
    "urgent": ("How many urgent messages do I have?", "How many messages are urgent?"),
    "key": ("What do I press to {}?", "Which key do I press to {}?", "How do I {}?"),
    "effect": ("What happens if I press {}?", "What does {} do?"),
    "extension": ("Which extension is mentioned?", "What is the extension?"),
    "status": ("Why can I not reach the person?", "What is said about the person?"),
    "position": ("What is my place in the queue?", "Which caller am I?"),
    "hold": ("How long is the estimated hold time?", "How long do I have to wait?"),
    "duration": ("How long does the message last?", "What is the length of the message?"),
    "amount": ("How much is it?", "Which amount was entered?", "How many dollars were entered?"),
    "conference": ("Which conference am I entering?", "What is the conference number?"),
    "participants": ("How many other participants are there?", "How many others are in the conference?"),
    "callers": ("How many callers are waiting?", "How many people are waiting to speak with a representative?"),
    "number": ("What is the telephone number?", "Which telephone number do you hear?"),
    "which": ("Which message is it?", "Is it the first or the last message?"),
    "received": ("When was the message received?", "When did the message arrive?"),
    "feature": ("What is said about the feature?", "Which feature was changed, and how?"),
    "target": ("What is {} set to?", "Where does {} go to?"),
    "spelled": ("What was entered?", "Which characters are spelled?", "What did I enter?"),
    "reach": ("What do I press for the extension?", "Which key takes me to the extension?"),
}


def _number_parts(n: int) -> list[str]:
    if n >= 100:
        head = [f"digits/{n // 100}", "digits/hundred"]
        return head if n % 100 == 0 else head + _number_parts(n % 100)
    if n <= 20 or n % 10 == 0:
        return [f"digits/{n}"]
    return [f"digits/{n // 10 * 10}", f"digits/{n % 10}"]


def _digits(rng: random.Random, size: int) -> tuple[list[str], str, str, str]:
    numbers = [rng.randrange(10) for _ in range(size)]
    en, fr, it = (" ".join(f(n) for n in numbers) for f in (english, french, italian))
    return [f"digits/{n}" for n in numbers], en, fr, it


def _time(rng: random.Random) -> tuple[list[str], str, str, str, frozenset[str]]:
    """Return recordings and texts of a time, with the preposition `at` in French and Italian."""
    hour, minute, after_noon = rng.randrange(1, 12), rng.choice([0, *range(1, 60)]), rng.random() < 0.5
    parts, en = [f"digits/{hour}"], english(hour)
    if minute == 0:
        parts, en = [*parts, "digits/oclock"], f"{en} o'clock"
    elif minute < 10:
        parts, en = [*parts, "digits/oh", f"digits/{minute}"], f"{en} oh {english(minute)}"
    else:
        parts, en = parts + _number_parts(minute), f"{en} {english(minute)}"
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
    return parts, en, fr, it, frozenset({str(minute)} if minute >= 10 else ())


def _at_italian(time: str) -> str:
    return f"al{time}"  # l'una → all'una, le due → alle due


def date_time(rng: random.Random) -> Utterance:
    """Monday, March third at seven twenty A.M."""
    day, month, number = rng.choice(list(DAYS)), rng.choice(list(MONTHS)), rng.randrange(1, 32)
    at, en, fr, it, values = _time(rng)
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
        f"{italian_date} {_at_italian(it)}.",
        (("date", "", f"It is {day}, {date}."), ("time", "", f"It is at {en}"), ("day", "", f"It is {day}.")),
        values | {day, month},
    )


def exact_time(rng: random.Random) -> Utterance:
    """At the sound of the tone, the time will be exactly seven twenty P.M."""
    parts, en, fr, it, values = _time(rng)
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


def _messages(n: int, kind: str) -> tuple[list[str], str, str, str]:
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
    return [*_number_parts(n), name, "vm-message" if one else "vm-messages"], en, fr, it


def messages(rng: random.Random) -> Utterance:
    """You have three new messages and two old messages."""
    kinds = rng.choice([("new",), ("old",), ("urgent",), ("new", "old"), ("urgent", "new"), ("urgent", "old")])
    numbers = [rng.randrange(1, 60) for _ in kinds]
    pieces = [_messages(n, kind) for n, kind in zip(numbers, kinds, strict=True)]
    parts = ["vm-youhave", *pieces[0][0]] + (["vm-and", *pieces[1][0]] if len(pieces) > 1 else [])
    return Utterance(
        "messages",
        tuple(parts),
        f"You have {' and '.join(p[1] for p in pieces)}.",
        f"Vous avez {' et '.join(p[2] for p in pieces)}.",
        f"Hai {' e '.join(p[3] for p in pieces)}.",
        tuple((kind, "", f"You have {piece[1]}.") for kind, piece in zip(kinds, pieces, strict=True)),
        frozenset(str(n) for n in numbers if n >= 10),
    )


def _key(rng: random.Random) -> tuple[str, str, str, str, str]:
    """Return recording, English, French, Italian and slot value of a key."""
    if rng.random() < 0.15:
        name = rng.choice(list(KEYS))
        return f"digits/{name}", KEYS[name][0], f"sur la touche {KEYS[name][1]}", KEYS[name][2], name
    n = rng.randrange(10)
    return f"digits/{n}", english(n), f"sur le {french(n)}", italian(n), ""


def menu(rng: random.Random) -> Utterance:
    """To leave the conference, press seven. (One or two items, either order of key and action.)"""
    stems = rng.sample(list(ACTIONS), rng.choice([1, 2]))
    keys: list[tuple[str, str, str, str, str]] = []
    while len(keys) < len(stems):
        key = _key(rng)
        if key not in keys:
            keys.append(key)
    action_first = rng.random() < 0.5
    parts, en, fr, it, questions = [], [], [], [], []
    for stem, key in zip(stems, keys, strict=True):
        action, effect, action_fr, action_it = ACTIONS[stem]
        if action_first:
            parts += [f"confbridge-{stem}-in", "vm-press", key[0]]
            en.append(f"To {action}, press {key[1]}.")
            fr.append(f"Pour {action_fr}, appuyez {key[2]}.")
            it.append(f"Per {action_it}, premi {key[3]}.")
        else:
            parts += ["vm-press", key[0], f"confbridge-{stem}-out"]
            en.append(f"Press {key[1]} to {action}.")
            fr.append(f"Appuyez {key[2]} pour {action_fr}.")
            it.append(f"Premi {key[3]} per {action_it}.")
        questions.append(("key", action.replace("your", "my").replace("yourself", "myself"), f"Press {key[1]}."))
        questions.append(("effect", key[1], f"{effect}."))
    values = frozenset(stems) | {key[4] for key in keys if key[4]}
    return Utterance("menu", tuple(parts), " ".join(en), " ".join(fr), " ".join(it), tuple(questions), values)


def person(rng: random.Random) -> Utterance:
    """The person at extension four two one seven is on the phone."""
    parts, en, fr, it = _digits(rng, rng.choice([3, 4]))
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
            *_number_parts(position),
            "queue-holdtime",
            *_number_parts(wait),
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
        ("queue-quantity1", *_number_parts(n), "queue-quantity2"),
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
            *_number_parts(minute),
            "minute" if minute == 1 else "vm-minutes",
            "vm-and",
            *_number_parts(second),
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
        ("you-entered", *_number_parts(n), "digits/dollars"),
        f"You entered {english(n)} dollars.",
        f"Vous avez saisi {french(n)} dollars.",
        f"Hai inserito {italian(n)} dollari.",
        (("amount", "", f"It is {english(n)} dollars."),),
        frozenset({str(n % 100)} if n % 100 >= 10 else ()),
    )


def conference(rng: random.Random) -> Utterance:
    """You are entering conference number four two one."""
    parts, en, fr, it = _digits(rng, rng.choice([3, 4, 5]))
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
        ("conf-thereare", *_number_parts(n), "conf-otherinparty"),
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
    parts, en, fr, it, values = _time(rng)
    which_fr, which_it = {"first": ("Premier", "Primo"), "last": ("Dernier", "Ultimo")}[which]
    return Utterance(
        "received",
        (f"vm-{which}", "vm-message", "vm-received", name, "digits/at", *parts),
        f"{which.capitalize()} message, received {day} at {en}",
        f"{which_fr} message, reçu {day_fr} à {fr}.",
        f"{which_it} messaggio, ricevuto {day_it} {_at_italian(it)}.",
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
    parts, digits_en, digits_fr, digits_it = _digits(rng, rng.choice([3, 4, 5]))
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
    parts, en, fr, it = _digits(rng, rng.choice([3, 4]))
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
    parts, en, fr, it = _digits(rng, 7)
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
