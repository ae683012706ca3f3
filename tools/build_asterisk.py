"""Build src/leaf/tasks/asterisk_data from Debian's asterisk-core-sounds-en packages.

    python tools/build_asterisk.py [--from DIR]

DIR holds the unpacked packages (usr/share/...); without it they are fetched with `apt-get download` and unpacked.
Every usable English recording is trimmed of leading and trailing silence and written as Ogg Opus; its text, cleaned of
stage directions, goes to recordings.tsv beside its length. What is left out is printed with the reason.
"""

import argparse
import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
OUT = Path(__file__).parent.parent / "src/leaf/tasks/asterisk_data"
LONGEST = 30.0  # seconds
MARGIN = 0.03  # seconds kept around the speech
# The text says something that the recording does not.
MISMATCHED = {"spy-iax2", "letters/ascii123", "letters/zed"}

ATTRIBUTION = """# Attribution

The recordings in this folder are the English voice prompts of Asterisk core sounds (package
asterisk-core-sounds {version} of Debian), recorded by Allison Smith, copyright 2003-2010, with financial
contributions by Digium, Inc. Source: the Asterisk project's telephony sound releases. Licence: Creative Commons
Attribution-ShareAlike 3.0 (CC-BY-SA-3.0), https://creativecommons.org/licenses/by-sa/3.0/.

Changes: silence at both ends trimmed, 8 kHz PCM encoded as Ogg Opus, texts cleaned (stage directions and bracketed
signs removed). The recordings and recordings.tsv are shared under the same licence. The code around them is Apache-2.0.

What it is: one professional voice, {count} short recordings, {hours:.2f} hours, telephone band. Utterances composed
from them are new combinations of the same recordings in the same voice, not new speech.
"""


def fetch(directory: Path) -> None:
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=directory, check=True)
    for package in directory.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(directory)], check=True)


def clean(text: str) -> str:
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>|\.\.\.", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def trim(wave: np.ndarray, rate: int) -> np.ndarray:
    """Cut silence at both ends: 10 ms frames more than 35 dB below the loudest one."""
    frame = rate // 100
    usable = len(wave) // frame * frame
    energy = np.sqrt((wave[:usable].reshape(-1, frame) ** 2).mean(1) + 1e-12)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-35 / 20))
    margin = round(MARGIN * rate)
    return wave[max(loud[0] * frame - margin, 0) : (loud[-1] + 1) * frame + margin]


def build(root: Path) -> None:
    lines = gzip.decompress((root / TEXTS).read_bytes()).decode("utf-8").splitlines()
    texts = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(";"))
    shutil.rmtree(OUT, ignore_errors=True)
    rows = []
    for path in sorted((root / VOICE).rglob("*.wav")):
        name = path.relative_to(root / VOICE).with_suffix("").as_posix()
        text = clean(texts.get(name, ""))
        wave, rate = soundfile.read(path, dtype="float32")
        reason = (
            "no spoken text"
            if not text
            else "text and speech differ"
            if name in MISMATCHED
            else "longer than 30 s"
            if len(wave) > LONGEST * rate
            else "empty"
            if len(wave) < 0.05 * rate
            else None
        )
        if reason:
            print(f"left out {name}: {reason}")
            continue
        wave = trim(wave, rate)
        target = OUT / f"{name}.opus"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, wave, rate, format="OGG", subtype="OPUS")
        rows.append(f"{name}\t{len(wave) / rate:.3f}\t{text}")
    seconds = sum(float(row.split("\t")[1]) for row in rows)
    (OUT / "recordings.tsv").write_text("name\tseconds\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (OUT / "ATTRIBUTION.md").write_text(ATTRIBUTION.format(version="1.6.1", count=len(rows), hours=seconds / 3600))
    size = sum(path.stat().st_size for path in OUT.rglob("*.opus"))
    print(f"{len(rows)} recordings, {seconds / 3600:.2f} h, {size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="folder with the unpacked packages")
    source = parser.parse_args().source
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            fetch(Path(scratch))
        build(source or Path(scratch))


if __name__ == "__main__":
    main()
