import hashlib
import random

import pytest

from leaf.errors import DataError
from leaf.speech.audio import load_audio
from leaf.tasks import TASKS, check_leakage, load
from leaf.tasks.asterisk import DATA, recordings, split_of, utterances
from leaf.tasks.asterisk_templates import HELD_OUT_TEMPLATES, HELD_OUT_VALUES, QUESTIONS, TEMPLATES
from leaf.tasks.numbers import english, english_ordinal, french, italian


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
        (200, "two hundred", "deux cents", "duecento"),
        (280, "two hundred eighty", "deux cent quatre-vingts", "duecentoottanta"),
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
        "first", "twelfth", "twenty-third", "thirtieth",
    )  # fmt: skip


def test_texts_in_three_languages_by_hand():
    """Utterances found in the corpus, their translations written independently of the templates."""
    want = {
        "Call waiting is activated.": ("Le signal d'appel est activé.", "L'avviso di chiamata è attivato."),
        "Do not disturb is cancelled.": (
            "La fonction ne pas déranger est annulée.", "La funzione non disturbare è annullata.",
        ),
        "You have one new message.": ("Vous avez un nouveau message.", "Hai un nuovo messaggio."),
        "You have twenty-one old messages.": (
            "Vous avez vingt et un anciens messages.", "Hai ventuno vecchi messaggi.",
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
    }  # fmt: skip
    rng, found = random.Random(5), {}
    for template in TEMPLATES:
        for _ in range(6000):
            utterance = template(rng)
            found[utterance.english] = (utterance.french, utterance.italian)
    for text, translations in want.items():
        assert found[text] == translations


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
    digest = hashlib.sha256()
    for name in sorted(TASKS):
        for row in load(name, "test"):
            assert 0.3 <= row["seconds"] <= 7.5
            digest.update(f"{row['id']}|{row['prompt']}|{row['reference']}".encode())
    assert digest.hexdigest()[:16] == "f233b26040c9a628"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_nothing_of_a_test_split_is_in_training(name):
    splits = {split: load(name, split).to_list() for split in TASKS[name].splits}
    assert check_leakage(splits) == []
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
    words = " ".join(row["text"] for row in load("asterisk_asr", "train"))
    assert not any(word in words for word in ("Thursday", "August", "pound,", "telephone number"))


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
    assert len(list(DATA.rglob("*.opus"))) == len(recordings()) == 545


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="Did you mean 'asterisk_qa'"):
        load("asterisk_aq", "train")
    with pytest.raises(DataError, match="allowed are train, validation, test, test_heldout"):
        load("asterisk_qa", "dev")
