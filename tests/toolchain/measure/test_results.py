from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import slimdeploy
from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results

KEPT = sorted((Path(slimdeploy.__file__).parent / "benchmarks/results").glob("**/*.json"))


def test_every_kind_has_a_schema_that_is_one():
    for kind in results.SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(results.schema(kind))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_every_kept_result_conforms_to_its_schema(path):
    result = json.loads(path.read_text())
    jsonschema.validate(result, results.schema(result["kind"]))


def test_a_script_writes_a_table_that_conforms(tmp_path):
    result = results.document(
        "table",
        command="python -m slimdeploy.benchmarks.something",
        title="How long something takes",
        columns={"what": "What was done.", "seconds": "Wall clock, s."},
        rows=[{"what": "it", "seconds": 1.5}],
    )
    results.write(tmp_path / "table.json", result)
    read = json.loads((tmp_path / "table.json").read_text())
    assert read == result
    jsonschema.validate(read, results.schema(read["kind"]))


def test_the_example_of_a_sweep_conforms():
    """What the report's tests are made on is what the command writes (tests/toolchain/sweep checks that)."""
    document = sweep_example.document()
    jsonschema.validate(document, results.schema(document["kind"]))


def test_lists_of_numbers_take_one_line_and_texts_stay_as_they_are(tmp_path):
    result = {"samples_ms": [[1.5, 2e-05, -3], [4]], "text": "[\n 1,\n 2\n]", "names": ["a", "b"], "none": []}
    results.write(tmp_path / "r.json", result)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == result
    assert "[1.5, 2e-05, -3]" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a bench result"),
        ('{"kind": "table", "schema": 1}', "is not a bench result"),
        ('{"kind": "bench", "schema": 99}', "schema 99; this slimdeploy reads 1"),
        ("no json", "is not a readable bench result"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(SlimdeployError, match=message):
        results.read(tmp_path / "r.json", "bench")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SlimdeployError, match=r"^no bench result at .*none\.json$"):
        results.read(tmp_path / "none.json", "bench")
