"""VoiceBench (Chen et al., arXiv 2410.17196): spoken instructions without references, for judges only."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leaf.data.corpora.items import Clip, Item, Options, Refusal
from leaf.data.corpora.wordings import wordings_of
from leaf.errors import DataError

SUBSETS = ("alpacaeval", "commoneval", "wildvoice")


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the open-ended subsets that there are: `<subset>/test-*.parquet` with the columns audio and prompt."""
    files = [(subset, file) for subset in SUBSETS for file in sorted(source.glob(f"**/{subset}/*.parquet"))]
    if not files:
        raise DataError(f"{source} has no parquet file in {', '.join(SUBSETS)}. Download the subsets there.")
    words = wordings_of("voicebench", options.wordings)
    for subset, file in files:
        try:
            table = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read: {error}.") from error
        missing = {"audio", "prompt"} - set(table.schema_arrow.names)
        if missing:
            raise DataError(f"{file} has no column {', '.join(missing)}; it has {table.schema_arrow.names}.")
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=["audio", "prompt"]):
            for row in batch.to_pylist():
                name = f"{subset}-{file.stem}-{number}"
                number += 1
                data = (row["audio"] or {}).get("bytes")
                if not data:
                    yield Refusal(name, "audio missing")
                    continue
                asked = words.put(str(row["prompt"] or ""), f"voicebench/{name}")
                yield Item(
                    id=name,
                    audio=(Clip(data=data),),
                    prompt=asked.prompt,
                    test_prompt=asked.test,
                    reference="",
                    recording=f"voicebench/{name}",
                    split="test",
                    text=str(row["prompt"] or ""),
                )
