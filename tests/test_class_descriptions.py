"""Files with descriptions of classes."""

import pytest

from classquery.data.annotations.schema import AnnotationError
from classquery.data.class_descriptions import read_class_descriptions


def test_json_and_csv_say_the_same(tmp_path):
    (tmp_path / "classes.json").write_text('{"wave": "a person waves", "walk": ["a person walks", "ein Fußgänger"]}')
    (tmp_path / "classes.csv").write_text(
        '\ufeffclass,description,note\nwave,a person waves,\nwalk,a person walks,x\nwalk,"ein Fußgänger",\n'
    )
    for name in ("classes.json", "classes.csv"):
        assert read_class_descriptions(tmp_path / name) == {
            "wave": ["a person waves"],
            "walk": ["a person walks", "ein Fußgänger"],
        }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '["wave"]', r"write .* got \['wave'\]"),
        ("a.json", '{"wave": 1}', "got 1 for 'wave'"),
        ("a.json", '{"wave": [1]}', r"got \[1\] for 'wave'"),
        ("a.json", '{"wave": "a", "wave": "b"}', "class 'wave' is there twice"),
        ("a.json", '{"wave": ', "write"),
        ("a.csv", "label,text\nwave,a\n", r"got the columns \['label', 'text'\]"),
        ("a.csv", "", "got the columns"),
        ("a.csv", b"class,description\n\xff,a\n", "no text in UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=message):
        read_class_descriptions(tmp_path / name)
