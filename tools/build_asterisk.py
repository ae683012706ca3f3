"""Build src/leaf/data/asterisk/recordings from Debian's asterisk-core-sounds-en packages.

    python tools/build_asterisk.py [--from DIR] [--check]

DIR holds the unpacked packages (usr/share/...); without it they are fetched with `apt-get download` and unpacked.
Every usable English recording is trimmed of leading and trailing silence and written as Ogg Opus; its text, cleaned of
stage directions and misspellings, goes to recordings.tsv beside its length. What is left out is listed with the reason
in ATTRIBUTION.md. --check builds beside the committed folder and compares: texts and lengths must be the same, decoded
samples within 1e-3. Files are not compared byte by byte, because an Ogg stream carries a random serial number.
"""

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
DOC = "usr/share/doc/asterisk-core-sounds-en"
OUT = Path(__file__).parent.parent / "src/leaf/data/asterisk/recordings"
LONGEST = 30.0  # seconds
MARGIN = 0.03  # seconds kept around the speech
MISMATCHED = {"spy-iax2"}  # the text says itself that the recording leaves out the 2
# What the shipped texts misspell, and signs as they are spoken.
CORRECTIONS = {
    "umute": "unmute",
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "Un-indentified": "Unidentified",
    "witheld": "withheld",
    "exclaimation-point": "exclamation point",
    "xray": "x-ray",
    " i ": " I ",
    "*": "star",
    "#": "pound",
}

ATTRIBUTION = """# Attribution

The recordings in this folder are the English voice prompts of Asterisk core sounds (package
asterisk-core-sounds {version} of Debian), recorded by Allison Smith, copyright 2003-2010, with financial
contributions by Digium, Inc. Source: the Asterisk project's telephony sound releases. Licence: Creative Commons
Attribution-ShareAlike 3.0 (CC-BY-SA-3.0), https://creativecommons.org/licenses/by-sa/3.0/.

Changes: silence at both ends trimmed, 8 kHz PCM encoded as Ogg Opus, texts cleaned (stage directions and bracketed
signs removed, misspellings corrected). The recordings and recordings.tsv are shared under the same licence. The code
around them is Apache-2.0.

What it is: one professional voice, {count} short recordings, {hours:.2f} hours, telephone band. Utterances composed
from them are new combinations of the same recordings in the same voice, not new speech.

Left out of the package's recordings:
{left_out}
"""


def fetch(directory: Path) -> None:
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=directory, check=True)
    for package in directory.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(directory)], check=True)


def clean(text: str) -> str:
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>|\.\.\.", " ", text)
    for wrong, right in CORRECTIONS.items():
        text = text.replace(wrong, right)
    return re.sub(r"\s+", " ", text).strip()


def trim(wave: np.ndarray, rate: int) -> np.ndarray:
    """Cut silence at both ends: 10 ms frames more than 35 dB below the loudest one."""
    frame = rate // 100
    usable = len(wave) // frame * frame
    energy = np.sqrt((wave[:usable].reshape(-1, frame) ** 2).mean(1) + 1e-12)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-35 / 20))
    margin = round(MARGIN * rate)
    return wave[max(loud[0] * frame - margin, 0) : (loud[-1] + 1) * frame + margin]


def unusable(name: str, text: str, wave: np.ndarray, rate: int) -> str | None:
    """Return why a recording is left out, or None."""
    if not text:
        return "no spoken text (tones, silence)"
    if name in MISMATCHED:
        return "text and speech differ"
    if len(wave) > LONGEST * rate:
        return f"longer than {LONGEST:.0f} s"
    return "empty" if len(wave) < 0.05 * rate else None


def build(root: Path, out: Path) -> None:
    """Write recordings, recordings.tsv and ATTRIBUTION.md to an empty folder."""
    lines = gzip.decompress((root / DOC / "core-sounds-en.txt.gz").read_bytes()).decode("utf-8").splitlines()
    texts = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(";"))
    rows: list[str] = []
    left_out: dict[str, list[str]] = {}
    for path in sorted((root / VOICE).rglob("*.wav")):
        name = path.relative_to(root / VOICE).with_suffix("").as_posix()
        text = clean(texts.get(name, ""))
        wave, rate = soundfile.read(path, dtype="float32")
        if reason := unusable(name, text, wave, rate):
            left_out.setdefault(reason, []).append(name)
            continue
        wave = trim(wave, rate)
        target = out / f"{name}.opus"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, wave, rate, format="OGG", subtype="OPUS")
        rows.append(f"{name}\t{len(wave) / rate:.3f}\t{text}")
    if not rows:
        sys.exit(f"No recordings were found in {root / VOICE}.")
    seconds = sum(float(row.split("\t")[1]) for row in rows)
    version = re.search(r"\((.*?)\)", gzip.decompress((root / DOC / "changelog.Debian.gz").read_bytes()).decode())
    (out / "recordings.tsv").write_text("name\tseconds\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (out / "ATTRIBUTION.md").write_text(
        ATTRIBUTION.format(
            version=version[1] if version else "of unknown version",
            count=len(rows),
            hours=seconds / 3600,
            left_out="\n".join(f"- {reason}: {', '.join(names)}" for reason, names in left_out.items()),
        ),
        encoding="utf-8",
    )
    size = sum(path.stat().st_size for path in out.rglob("*.opus"))
    print(f"{len(rows)} recordings, {seconds / 3600:.2f} h, {size / 2**20:.1f} MiB")


def check(new: Path, committed: Path) -> None:
    """Exit with a message unless two built folders hold the same texts, lengths and samples."""
    for name in ("recordings.tsv", "ATTRIBUTION.md"):
        if (new / name).read_bytes() != (committed / name).read_bytes():
            sys.exit(f"{name} differs from the committed one.")
    files = {path.relative_to(new) for path in new.rglob("*.opus")}
    if files != {path.relative_to(committed) for path in committed.rglob("*.opus")}:
        sys.exit("The folders hold different recordings.")
    for file in sorted(files):
        ours, theirs = (soundfile.read(folder / file)[0] for folder in (new, committed))
        if ours.shape != theirs.shape or np.abs(ours - theirs).max() > 1e-3:
            sys.exit(f"{file} decodes to other samples than the committed one.")
    print(f"The committed folder is the same, {len(files)} recordings.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="folder with the unpacked packages")
    parser.add_argument("--check", action="store_true", help="compare with the committed folder, change nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        packages, out = Path(scratch) / "packages", Path(scratch) / "out"
        packages.mkdir()
        out.mkdir()
        if args.source is None:
            fetch(packages)
        build(args.source or packages, out)
        if args.check:
            check(out, OUT)
        else:
            shutil.rmtree(OUT, ignore_errors=True)  # only now that a whole build stands
            shutil.copytree(out, OUT)


if __name__ == "__main__":
    main()
