import csv
import hashlib
import random
import re
from pathlib import Path

import pytest

from leaf.data import TASKS, load
from leaf.data.asterisk.numbers import english, english_ordinal, french, italian
from leaf.data.asterisk.rows import DATA, SPLITS, recordings, rows, split_key, split_of, utterances
from leaf.data.asterisk.templates import HELD_OUT_TEMPLATES, HELD_OUT_VALUES, TEMPLATES
from leaf.data.asterisk.words import QUESTIONS
from leaf.data.audio import load_audio
from leaf.data.leaks import check_leakage
from leaf.errors import DataError


@pytest.mark.parametrize(
    ("n", "en", "fr", "it"),
    [
        (0, "zero", "zéro", "zero"),
        (1, "one", "un", "uno"),
        (17, "seventeen", "dix-sept", "diciassette"),
        (21, "twenty-one", "vingt et un", "ventuno"),
        (23, "twenty-three", "vingt-trois", "ventitré"),
        (28, "twenty-eight", "vingt-huit", "ventotto"),
        (70, "seventy", "soixante-dix", "settanta"),
        (71, "seventy-one", "soixante et onze", "settantuno"),
        (80, "eighty", "quatre-vingts", "ottanta"),
        (81, "eighty-one", "quatre-vingt-un", "ottantuno"),
        (91, "ninety-one", "quatre-vingt-onze", "novantuno"),
        (99, "ninety-nine", "quatre-vingt-dix-neuf", "novantanove"),
        (100, "one hundred", "cent", "cento"),
        (103, "one hundred three", "cent trois", "centotré"),
        (108, "one hundred eight", "cent huit", "centootto"),
        (188, "one hundred eighty-eight", "cent quatre-vingt-huit", "centottantotto"),
        (200, "two hundred", "deux cents", "duecento"),
        (280, "two hundred eighty", "deux cent quatre-vingts", "duecentottanta"),
        (1000, "one thousand", "mille", "mille"),
        (80000, "eighty thousand", "quatre-vingt mille", "ottantamila"),
    ],
)
def test_numbers(n, en, fr, it):
    assert (english(n), french(n), italian(n)) == (en, fr, it)


def test_number_forms():
    assert french(21, feminine=True) == "vingt et une"
    assert french(81, feminine=True) == "quatre-vingt-une"
    assert french(71, feminine=True) == "soixante et onze"
    assert (english_ordinal(1), english_ordinal(12), english_ordinal(23), english_ordinal(30)) == (
        "first",
        "twelfth",
        "twenty-third",
        "thirtieth",
    )


def test_texts_in_three_languages_by_hand():
    """Utterances found in the corpus, their translations written independently of the templates."""
    want = {
        "Call waiting is activated.": ("Le signal d'appel est activé.", "L'avviso di chiamata è attivato."),
        "Do not disturb is cancelled.": (
            "La fonction ne pas déranger est annulée.",
            "La funzione non disturbare è annullata.",
        ),
        "You have one new message.": ("Vous avez un nouveau message.", "Hai un nuovo messaggio."),
        "You have twenty-one old messages.": (
            "Vous avez vingt et un anciens messages.",
            "Hai ventuno vecchi messaggi.",
        ),
        "To leave the conference, press star.": (
            "Pour quitter la conférence, appuyez sur la touche étoile.",
            "Per lasciare la conferenza, premi asterisco.",
        ),
        "There are currently seventy-one other participants in the conference.": (
            "Il y a actuellement soixante et onze autres participants dans la conférence.",
            "Al momento ci sono altri settantuno partecipanti nella conferenza.",
        ),
        "At the sound of the tone, the time will be exactly one o'clock P.M.": (
            "Au signal sonore, il sera exactement une heure de l'après-midi.",
            "Al segnale acustico sarà esattamente l'una del pomeriggio.",
        ),
        "At the sound of the tone, the time will be exactly eight twenty-one A.M.": (
            "Au signal sonore, il sera exactement huit heures vingt et une du matin.",
            "Al segnale acustico saranno esattamente le otto e ventuno di mattina.",
        ),
        "This message lasts one minute and twenty-one seconds.": (
            "Ce message dure une minute et vingt et une secondes.",
            "Questo messaggio dura un minuto e ventuno secondi.",
        ),
    }
    rng, found = random.Random(5), {}
    for template in TEMPLATES:
        for _ in range(6000):
            utterance = template(rng)
            found[utterance.english] = (utterance.french, utterance.italian)
    for text, translations in want.items():
        assert found[text] == translations


# English → French and Italian, one or more for each template, written out by hand
BY_HAND = {
    "Tuesday, November first at one nineteen P.M.": (
        "Mardi premier novembre à une heure dix-neuf de l'après-midi.",
        "Martedì primo novembre all'una e diciannove del pomeriggio.",
    ),
    "Saturday, July twenty-third at eight oh five P.M.": (
        "Samedi vingt-trois juillet à huit heures cinq du soir.",
        "Sabato ventitré luglio alle otto e cinque di sera.",
    ),
    "Last message, received yesterday at one twenty-three P.M.": (
        "Dernier message, reçu hier à une heure vingt-trois de l'après-midi.",
        "Ultimo messaggio, ricevuto ieri all'una e ventitré del pomeriggio.",
    ),
    "First message, received today at seven fifty-seven A.M.": (
        "Premier message, reçu aujourd'hui à sept heures cinquante-sept du matin.",
        "Primo messaggio, ricevuto oggi alle sette e cinquantasette di mattina.",
    ),
    "The person at extension four eight zero four is unavailable.": (
        "La personne au poste quatre huit zéro quatre n'est pas disponible.",
        "La persona all'interno quattro otto zero quattro non è disponibile.",
    ),
    "The person at extension eight two six one is on the phone.": (
        "La personne au poste huit deux six un est au téléphone.",
        "La persona all'interno otto due sei uno è al telefono.",
    ),
    "You are currently caller number thirteen. The estimated hold time is currently one minute.": (
        "Vous êtes actuellement l'appelant numéro treize. Le temps d'attente estimé est actuellement d'une minute.",
        "Sei attualmente il chiamante numero tredici. Il tempo di attesa stimato è attualmente di un minuto.",
    ),
    "You are currently caller number five. The estimated hold time is currently eight minutes.": (
        "Vous êtes actuellement l'appelant numéro cinq. Le temps d'attente estimé est actuellement de huit minutes.",
        "Sei attualmente il chiamante numero cinque. Il tempo di attesa stimato è attualmente di otto minuti.",
    ),
    "Currently, there are more than ninety-one callers waiting to speak with a representative.": (
        "Il y a actuellement plus de quatre-vingt-onze appelants qui attendent de parler à un représentant.",
        "Al momento ci sono più di novantuno persone in attesa di parlare con un operatore.",
    ),
    "You entered one hundred dollars.": ("Vous avez saisi cent dollars.", "Hai inserito cento dollari."),
    "You entered five hundred dollars.": ("Vous avez saisi cinq cents dollars.", "Hai inserito cinquecento dollari."),
    "You entered two hundred eighty-one dollars.": (
        "Vous avez saisi deux cent quatre-vingt-un dollars.",
        "Hai inserito duecentottantuno dollari.",
    ),
    "You are entering conference number two two two one nine.": (
        "Vous entrez dans la conférence numéro deux deux deux un neuf.",
        "Stai entrando nella conferenza numero due due due uno nove.",
    ),
    "Press one to increase your speaking volume to other participants. Press eight to exit the menu.": (
        "Appuyez sur le un pour augmenter le volume de votre voix pour les autres participants. "
        "Appuyez sur le huit pour quitter le menu.",
        "Premi uno per alzare il volume della tua voce per gli altri partecipanti. Premi otto per uscire dal menu.",
    ),
    "Do not disturb is set to nine four four two zero.": (
        "La fonction ne pas déranger est réglée sur neuf quatre quatre deux zéro.",
        "La funzione non disturbare è impostata su nove quattro quattro due zero.",
    ),
    "You entered one C F.": ("Vous avez saisi un C F.", "Hai inserito uno C F."),
    "Press five for extension zero five nine.": (
        "Appuyez sur le cinq pour le poste zéro cinq neuf.",
        "Premi cinque per l'interno zero cinque nove.",
    ),
    "Telephone number nine six zero four one eight two.": (
        "Numéro de téléphone neuf six zéro quatre un huit deux.",
        "Numero di telefono nove sei zero quattro uno otto due.",
    ),
}


def everything():
    return [utterance for items in utterances().values() for utterance in items]


def test_translations_of_composed_rows_by_hand():
    found = {utterance.english: (utterance.french, utterance.italian) for utterance in everything()}
    assert {text: found.get(text) for text in BY_HAND} == BY_HAND


def test_the_english_text_is_what_the_recordings_say_one_after_the_other():
    with (DATA / "recordings.tsv").open(encoding="utf-8", newline="") as file:
        said = {row["name"]: row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    for utterance in everything():
        assert split_key(" ".join(said[name] for name in utterance.parts)) == split_key(utterance.english)


def test_translations_agree_with_themselves():
    """French elides before vowels; Italian says tu throughout, as the recorded menus do."""
    for utterance in everything():
        # un, onze and huit are numbers read out after de/le/que: only une has to elide
        assert not re.search(r"\b(de|que|le|la) (une|est|appel|appelant)\b", utterance.french)
        assert not re.search(r"\b(Lei|Suo|Sua|suo|sua|Ha|inserisca|Inserisca|Attenda|Riprovi)\b", utterance.italian)
        assert not re.search(r"centootta|\b(dello|della|lo|la|(?<!l')una) [aeiou]", utterance.italian)
        for text in (utterance.french, utterance.italian):
            assert text.endswith((".", "!", "?"))
            assert text == text.strip()
            assert "  " not in text


def test_every_template_speaks_only_shipped_recordings_and_ends_its_sentences():
    rng = random.Random(1)
    for template in TEMPLATES:
        for _ in range(300):
            utterance = template(rng)
            assert all(name in recordings() for name in utterance.parts)
            for text in (utterance.english, utterance.french, utterance.italian):
                assert text.endswith(".")
                assert "  " not in text
                assert "{" not in text
            assert all(kind in QUESTIONS and answer.endswith(".") for kind, _, answer in utterance.questions)


def test_sizes_lengths_and_determinism():
    sizes = {split: len(items) for split, items in utterances().items()}
    assert sizes["train"] >= 6000
    assert sizes["validation"] >= 300
    assert sizes["test"] >= 500
    assert sizes["test_heldout"] == 500
    assert all(0.5 <= row["seconds"] <= 7.5 for split in sizes for row in rows("asr", split))


@pytest.mark.parametrize(
    ("variant", "want"),
    [("asr", "483f816d02e492b4"), ("fr", "f6a0901e30d2c490"), ("it", "1ec831297b02fec1"), ("qa", "c52f7953dd1b8108")],
)
def test_rows_are_the_same_on_every_machine(variant, want):
    """A change here means that scores from before are of other rows; say so in the changelog."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows(variant, split):
            files = [Path(name).relative_to(DATA).as_posix() for name in row["audio"]]
            digest.update(f"{row['id']}|{row['prompt']}|{row['reference']}|{row['kind']}|{files}".encode())
    assert digest.hexdigest()[:16] == want


@pytest.mark.parametrize("name", sorted(TASKS))
def test_nothing_of_a_test_split_is_in_training(name):
    splits = {split: load(name, split).to_list() for split in TASKS[name].splits}
    assert check_leakage(splits) == []
    assert check_leakage({name: its for name, its in splits.items() if name != "train"}, training="validation") == []
    planted = {**splits, "test": [*splits["test"], splits["train"][0]]}
    assert any("is in train too" in leak for leak in check_leakage(planted))
    natural = next(row for row in splits["test"] if len(row["audio"]) == 1)
    heard = {**splits["train"][0], "audio": [*splits["train"][0]["audio"], *natural["audio"]]}
    assert any("is heard in train" in leak for leak in check_leakage({**splits, "train": [*splits["train"], heard]}))


def test_held_out_values_and_templates_occur_in_no_other_split():
    for split, items in utterances().items():
        for utterance in items:
            outside = utterance.kind in HELD_OUT_TEMPLATES or bool(utterance.values & HELD_OUT_VALUES)
            assert outside == (split == "test_heldout")
    gone = r"Thursday|August|press pound|most recently joined|speed dial is|telephone number|callers waiting"
    gone = re.compile(rf"{gone}|\b(seventeen|thirty-four|forty-eight)\b", re.IGNORECASE)
    for split in ("train", "validation", "test"):
        assert [row["text"] for row in rows("asr", split) if gone.search(row["text"])] == []
    assert sum(bool(gone.search(row["text"])) for row in rows("asr", "test_heldout")) == 500


def test_splits_are_shared_by_all_tasks_and_follow_the_text():
    texts = {name: {row["text"] for row in load(name, "test")} for name in TASKS}
    assert len(set(map(frozenset, texts.values()))) == 1
    assert split_of("Press  ONE, now!") == split_of("press one now")


def test_audio_of_rows_loads_at_the_stated_length():
    for row in load("asterisk_qa", "test").select(range(0, 500, 50)):
        wave = load_audio(row["audio"])
        assert len(wave) / 16000 == pytest.approx(row["seconds"], abs=0.05)
        assert abs(wave).max() > 0.05


def test_attribution_travels_with_the_recordings():
    text = (DATA / "ATTRIBUTION.md").read_text()
    assert "CC-BY-SA-3.0" in text
    assert "Allison Smith" in text
    assert len(list(DATA.rglob("*.opus"))) == len(recordings()) == 547


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="Did you mean 'asterisk_qa'"):
        load("asterisk_aq", "train")
    with pytest.raises(DataError, match="Allowed are train, validation, test, test_heldout"):
        load("asterisk_qa", "dev")
    with pytest.raises(DataError, match=r"Did you mean 'validation'\?"):
        load("asterisk_qa", "validatoin")
    with pytest.raises(DataError, match="limit is 0"):
        load("asterisk_qa", "test", limit=0)
