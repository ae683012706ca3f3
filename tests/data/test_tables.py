"""Files of rows: every cell as it is written, and what cannot be read is named with its line."""

import pytest

from leaf.data import load
from leaf.data.cells import cell, our_names, text_cell, with_references
from leaf.data.tables import read_table
from leaf.errors import DataError
from tests.helpers.sound import write


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}.wav", 0.1)
    return tmp_path


def table(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_every_cell_is_the_text_that_is_written(folder, name, delimiter):
    written = ["007", "7", "NA", "null", "nan", "None", "1e3", "True", "7.0", "2020-01-01", "-"]
    lines = ["prompt,audio,reference,split", *(f"p{i},a.wav,{text},train" for i, text in enumerate(written))]
    path = table(folder, name, "\n".join(lines).replace(",", delimiter))
    assert load(str(path), "train")["reference"] == written


def test_a_quotation_mark_is_a_character_of_tsv(folder):
    cells = ['"He said', 'a 5" disc', 'said"', '"quoted"']
    lines = ["prompt\taudio\treference", *(f"p\t{name}.wav\t{text}" for name, text in zip("abcd", cells, strict=True))]
    path = table(folder, "a.tsv", "\n".join(lines))
    assert [row["reference"] for row in read_table(path)] == cells
    with pytest.raises(DataError, match=r"Line 2 of b\.tsv has the cell .*, quoted as in CSV; in TSV a quotation mark"):
        read_table(table(folder, "b.tsv", 'prompt\treference\np\t"He said ""hi"""\n'))
    with pytest.raises(DataError, match=r"Row 2 of c\.tsv has more or fewer .* in line 3\. A cell of TSV holds no tab"):
        read_table(table(folder, "c.tsv", 'prompt\treference\np\t"two\nlines"\n'))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['p,a.wav,"He said', "p,b.wav,x", "p,c.wav,y"],
            r"Line 2 of a\.csv opens a quotation mark that noth",
        ),
        (["p,a.wav,x", 'p,b.wav,"y'], r"Line 3 of a\.csv opens a quotation mark that nothing closes"),
        (
            ['p,a.wav,"He said', "p,b.wav,x", 'p,c.wav,he"'],
            r"row that begins in line 2 of a\.csv has a cell of several lines which holds 'p,b\.wav,x', another row",
        ),
        (['p,a.wav,"He said" to me'], r"Line 2 of a\.csv cannot be read: .*Write a quotation mark .* twice"),
        (['p,a.wav,"He said', 'p,b.wav,"x" or y'], r"Lines 2 to 3 of a\.csv cannot be read"),
    ],
)
def test_an_unbalanced_quotation_mark_in_csv_is_named_with_its_line(folder, lines, message):
    path = table(folder, "a.csv", "\n".join(["prompt,audio,reference", *lines]))
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_quotation_marks_that_csv_allows_stay(folder):
    text = 'prompt,audio,reference\np,a.wav,"one, two\nthree, four, five"\np,b.wav,a 5" disc\n\np,c.wav,"say ""hi"""\n'
    got = [row["reference"] for row in read_table(table(folder, "a.csv", text))]
    assert got == ["one, two\nthree, four, five", 'a 5" disc', 'say "hi"']


@pytest.mark.parametrize("header", ["Prompt,AUDIO, Reference ,Split", " prompt,audio,reference, SPLIT"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_names_of_columns_are_compared_without_case_and_outer_spaces(folder, header, name):
    rows = [("p", "a.wav", "x", "train"), ("p", "b.wav", "y", "Test")]
    if name == "a.csv":
        text = "\n".join([header, *map(",".join, rows)])
    else:
        import json

        text = "\n".join(json.dumps(dict(zip(header.split(","), row, strict=True))) for row in rows)
    path = str(table(folder, name, text))
    assert load(path, "train")["reference"] == ["x"]
    assert load(path, "test")["reference"] == ["y"]


def test_columns_that_differ_in_case_alone_are_refused(folder):
    with pytest.raises(DataError, match=r"header of a\.csv has the columns 'split' and ' Split', .* Rename one"):
        read_table(table(folder, "a.csv", "prompt,split, Split\np,train,test\n"))
    with pytest.raises(DataError, match=r"Line 1 of a\.jsonl has the columns 'reference' and 'Reference'"):
        read_table(table(folder, "a.jsonl", '{"reference": "x", "Reference": "y"}'))
    assert our_names([" Speaker", "Reference"], "x") == {" Speaker": "Speaker", "Reference": "reference"}


def test_mapped_columns_are_found_without_case_and_by_the_way_to_them(folder):
    path = str(table(folder, "a.csv", "Question,audio,Answer,split\np,a.wav,x,test\n"))
    assert load(path, "test", columns={"prompt": "question", "reference": "answer"})["reference"] == ["x"]
    line = '{"prompt": "p", "audio": "a.wav", "split": "test", "translation": {"de": "ja", "en": "yes"}}'
    path = str(table(folder, "a.jsonl", line))
    assert load(path, "test", columns={"reference": "translation.de"})["reference"] == ["ja"]
    with pytest.raises(DataError, match=r"has no reference; it has the columns"):
        load(path, "test", columns={"reference": "translation.fr"})
    with pytest.raises(DataError, match=r"reference .*; it must be text, and this is a dict with de, en\. Name one"):
        load(path, "test", columns={"reference": "translation"})
    assert cell({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "prompt;audio;reference\np;a.wav;x\n",
            "seems to be a semicolon, and that of .csv is a comma",
        ),
        ("a.csv", "prompt\taudio\np\ta.wav\n", "delimiter seems to be a tab, and that of .csv is a comma"),
        ("a.tsv", "prompt,audio\np,a.wav\n", "delimiter seems to be a comma, and that of .tsv is a tab"),
        (
            "a.csv",
            "prompt,reference\na,b\nc,Grüße\n".encode("cp1252"),
            r"\(byte 25 is 0xfc\) in line 3; .*1252",
        ),
        ("a.csv", "prompt,reference\na,b\n".encode("utf-16"), "in line 1; it looks like UTF-16. Save it as UTF-8"),
        ("a.csv", "prompt,reference\na,b\n".encode("utf-16-le"), "NUL character in line 1; it may be UTF-16"),
        ("a.csv", b"PK\x03\x04\xff\x00\x01", "another kind of file under this name"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"Line 2 of a\.jsonl cannot be read as JSON"),
        ("a.json", '[{"prompt": "a"}, 3]', r"Entry 2 of a\.json is a int; it must be an object"),
        ("a.json", '[{"prompt": "a"}', r"The file a\.json cannot be read as JSON"),
        ("a.xlsx", "x", r"no \.jsonl, \.json, \.csv, \.tsv file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(folder, name, content, message):
    with pytest.raises(DataError, match=message):
        read_table(table(folder, name, content))


def test_marks_of_spreadsheets_and_empty_files(folder):
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json"):
        assert read_table(table(folder, name, "")) == []
    assert read_table(table(folder, "b.csv", b"\xef\xbb\xbfprompt,audio\r\np,a.wav\r\n")) == [
        {"prompt": "p", "audio": "a.wav"}
    ]
    assert read_table(table(folder, "b.json", '\ufeff[{"Prompt": "p"}]')) == [{"prompt": "p"}]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.5, "a number with a point. Write it as text"),
        (float("nan"), "a number with a point, or a gap"),
        (True, "true or false"),
        (b"x", "bytes"),
        ({"de": "ja"}, r"a dict with de\. Name one part of it: reference=COLUMN\.de"),
        ([{"role": "user", "content": "x"}], "a list. Messages come from tasks of your own"),
    ],
)
def test_what_is_no_text_is_refused_with_its_kind(value, kind):
    with pytest.raises(DataError, match=f"Row 3 has reference .*; it must be text, and this is {kind}"):
        text_cell(value, "reference", "Row 3")


def test_texts_are_composed_and_whole_numbers_are_their_digits():
    assert [text_cell(value, "x", "Row 1") for value in ("e\u0301", 7, 0, "", None)] == ["é", "7", "0", "", None]


def test_several_references_are_kept(folder):
    assert with_references({"reference": ["a", "b"]}, "Row 1") == {"reference": "a", "references": ["a", "b"]}
    assert with_references({"reference": ["a"]}, "Row 1") == {"reference": "a"}
    assert with_references({"references": ["a", "b"]}, "Row 1") == {"reference": "a", "references": ["a", "b"]}
    assert with_references({"reference": "b", "references": ["a", "b"]}, "Row 1")["references"] == ["b", "a"]
    assert with_references({"reference": "b", "references": None}, "Row 1") == {"reference": "b"}
    for row, message in (
        ({"reference": ["a", " "]}, r"an empty text among its references \(reference\[1\]\)"),
        ({"reference": ["a", ["b"]]}, r"has reference\[1\] \['b'\]; it must be text, and this is a list"),
        ({"reference": "c", "references": ["a"]}, "reference that is not among its references"),
        ({"references": "a|b"}, "must be a list of texts"),
    ):
        with pytest.raises(DataError, match=f"Row 1 .*{message}"):
            with_references(row, "Row 1")
    lines = '{"prompt": "p", "audio": "a.wav", "reference": ["x", "y"], "split": "test"}\n'
    lines += '{"prompt": "p", "audio": "a.wav", "reference": "z", "split": "test"}'
    rows = load(str(table(folder, "a.jsonl", lines)), "test")
    assert (rows["reference"], rows["references"]) == (["x", "z"], [["x", "y"], None])


def test_a_manifest_needs_no_reference(folder):
    rows = load(str(table(folder, "a.csv", "prompt,audio,split\np,a.wav,test\n")), "test")
    assert "reference" not in rows.column_names
    with pytest.raises(DataError, match=r"Row 2 of a\.csv has no reference"):
        load(str(table(folder, "a.csv", "prompt,audio,reference,split\np,a.wav,x,test\np,b.wav,,test\n")), "test")


def test_a_task_that_is_another_kind_of_file_says_how_to_prepare_it(folder):
    with pytest.raises(DataError, match=r"another kind than \.jsonl, \.csv and \.tsv\. `leaf data prepare hub --from"):
        load(str(table(folder, "a.parquet", b"PAR1")), "train")
