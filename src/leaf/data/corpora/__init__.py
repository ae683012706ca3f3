"""Corpora that `leaf data prepare` reads as their publishers lay them out.

Layouts and field names follow the publishers' documentation. They were tested on small corpora built in those layouts,
because the corpora themselves were not available.
"""

from leaf.data.corpora import covost, hub, librisqa, longaudio, voicebench
from leaf.data.corpora.items import Corpus, Options
from leaf.data.corpora.prepare import load_prepared, prepare, prepared_splits

__all__ = ["CORPORA", "Corpus", "Options", "load_prepared", "prepare", "prepared_splits"]

CORPORA: dict[str, Corpus] = {
    "librisqa": Corpus(
        "spoken QA on LibriSpeech, free-form answers (LibriSQA part I)",
        "LibriSpeech: CC-BY-4.0; the questions: see their publisher",
        "LibriSQA-PartI-train.json, LibriSQA-PartI-test.json, LibriSpeech/{train-clean-360,test-clean}",
        librisqa.items,
        validation=0.2,
    ),
    "covost2": Corpus(
        "speech translation of Common Voice clips, --pair en_de and others (CoVoST 2)",
        "CC0-1.0",
        "covost_v2.<pair>.tsv, <language>/validated.tsv, <language>/clips (Common Voice 4)",
        covost.items,
    ),
    "dailytalk": Corpus(
        "open-ended questions on whole spoken dialogues (LongAudio, DailyTalk)",
        "DailyTalk: CC-BY-SA-4.0; the questions: see NVIDIA's LongAudio",
        "DailyTalk_LongAudio.json, data/<dialogue>/<turn>_<speaker>_d<dialogue>.wav",
        longaudio.dailytalk,
        validation=0.1,
        test=0.1,
        max_seconds=40.0,
    ),
    "longaudio": Corpus(
        "open-ended questions on parliament speeches (LongAudio, Europarl-ST and VoxPopuli)",
        "Europarl-ST: CC-BY-NC-4.0; VoxPopuli: CC0-1.0; the questions: see NVIDIA's LongAudio",
        "Europarl_LongAudio.json with en/audios/*.m4a, VoxPopuli_LongAudio.json with raw_audios/en/<year>/*_en.ogg and "
        "asr_en.tsv.gz, or, for the few turns with a transcript, transcribed_data/en/<year>/*.ogg",
        longaudio.parliament,
        validation=0.1,
        test=0.1,
        max_seconds=40.0,
    ),
    "voicebench": Corpus(
        "spoken instructions without references, for judges (VoiceBench: alpacaeval, commoneval, wildvoice)",
        "Apache-2.0",
        "alpacaeval/, commoneval/ or wildvoice/ with test-*.parquet",
        voicebench.items,
        judged_only=True,
    ),
    "hub": Corpus(
        "any data set that `datasets` loads from a folder or the hub, by --columns",
        "its publisher's",
        "a folder or a file of parquet, JSON, CSV or TSV whose rows hold or name audio, or a hub id",
        hub.items,
        validation=0.05,
        test=0.05,
        remote=True,
    ),
}
