"""`slimdeploy report` on a small real run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.tests.toolchain.report.expected_charts import CHARTS, SWEEP_CHARTS
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.report.run import read_run
from slimdeploy.toolchain.report.write import report_stage

pytestmark = pytest.mark.xdist_group("report")  # one worker makes what they share


def test_the_page_is_one_file_with_every_chart(page, run):
    text = page.read_text()
    assert page == run / "report.html"
    assert set(re.findall(r'<figure id="([\w-]+)"', text)) == CHARTS
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_says_what_the_run_says(page, run):
    text, table = page.read_text(), json.loads((run / "table.json").read_text())
    for row in table["rows"]:
        name = row["step"] if row["batch"] is None else f"{row['step']}, {row['batch']}"
        assert f"<td>{name}</td>" in text
    bench = json.loads((run / "bench.json").read_text())
    original, final = bench["rows"][:2]
    assert f"<td>{original['params']:,}</td><td>{final['params']:,}</td>" in text
    assert f"<td>÷\u00a0{original['params'] / final['params']:.2f}</td>" in text


def test_a_sweep_has_its_charts_and_tables(sweep_page):
    text = sweep_page.read_text()
    assert set(re.findall(r'<figure id="([\w.-]+)"', text)) == SWEEP_CHARTS
    tables = re.findall(r"<h2>(The [^<]+)</h2>.*?<table>(.*?)</table>", text)
    assert [title for title, _ in tables] == ["The best trade-offs", "The other trials"]
    for trial in sweep_example.TRIALS:
        name = f"<td>λ {trial['sparsity']:g}, ratio {trial['ratio']:g}, align {trial['align']}</td>"
        best = trial["name"] in sweep_example.FRONT
        assert [name in table for _, table in tables] == [best, not best]
    assert "Picked for latency&lt;=1ms: λ 0.001, ratio 0.5, align 8." in text
    assert "Failed: λ 0, ratio 0.9, align 8: the disk is full." in text
    assert "The trials were timed on different machines" in text
    assert "pruning ratio, as requested" in text, "what was reached isn't in sweep.json"
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)


def test_a_sweep_as_markdown(sweep, tmp_path):
    pytest.importorskip("resvg_py", reason="resvg_py draws the PNGs: pip install 'slimdeploy[report]'")
    written = report_stage([sweep], format="md", output=tmp_path / "paper.md").files
    assert {path.stem for path in written if path.suffix == ".png"} == SWEEP_CHARTS
    assert "| λ 0.001, ratio 0.5, align 8 |" in written[0].read_text()


def test_a_sweep_of_another_version_is_refused(sweep, tmp_path):
    document = json.loads((sweep / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(SlimdeployError, match="schema 99; this slimdeploy reads 1"):
        report_stage([tmp_path], format="html", output=None)


def test_markdown_brings_its_charts_as_svg_and_png(run, tmp_path):
    pytest.importorskip("resvg_py", reason="resvg_py draws the PNGs: pip install 'slimdeploy[report]'")
    written = report_stage([run], format="md", output=tmp_path / "paper.md").files
    text = written[0].read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert {Path(name).stem for name in shown} >= CHARTS
    for name in shown:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG")
    assert {path.stem for path in written if path.suffix == ".svg"} == CHARTS


def test_what_is_read_of_a_run(run):
    found = read_run(run)
    assert set(found.pruned) == {"compare-0.5", "pruned"}
    assert found.final.info.graph == found.pruned["pruned"].info.graph
    spec = found.final.info.graph
    from slimdeploy.toolchain.networks.channel_groups import channel_groups

    # Prunable of a ResNet with basic blocks: the stem and the first convolution of each block.
    assert len(found.final.scales) == sum(group.width for group in channel_groups(spec))
    assert len(found.histories["sparse"]) == 2


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(SlimdeployError, match=r"no run and no sweep in .*: slimdeploy run"):
        report_stage([tmp_path], format="html", output=None)


def test_a_run_that_was_killed_is_refused(run, tmp_path):
    entries = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({"train": entries["train"], "finetune": {"inputs": "x"}}))
    with pytest.raises(SlimdeployError, match=r"not finished \(pruned, finetune, bench missing\)"):
        report_stage([tmp_path], format="html", output=None)


def test_an_output_of_one_s_own_is_not_replaced_unasked(run, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(SlimdeployError, match="exists: pass force"):
        report_stage([run], format="html", output=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_charts_of_one_s_own_are_not_replaced_unasked(run, tmp_path):
    pytest.importorskip("resvg_py", reason="resvg_py draws the PNGs: pip install 'slimdeploy[report]'")
    mine = tmp_path / "r-charts" / "layers.svg"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SlimdeployError, match=r"layers\.svg exists: pass force"):
        report_stage([run], format="md", output=tmp_path / "r.md")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"
    report_stage([run], format="md", output=tmp_path / "r.md", force=True)
    assert mine.read_text() != "mine"


STAGES = ("final.safetensors", "bench.json", "sparse.safetensors", "pruned.safetensors")


def test_stages_run_one_by_one_have_a_report_too(run, tmp_path, monkeypatch):
    """From their files, in any order: what a run's page has, but for what only the run's folder tells."""
    monkeypatch.chdir(run)
    (written,) = report_stage(
        [run / name for name in STAGES], format="html", output=tmp_path / "r.html"
    ).files
    page = written.read_text(encoding="utf-8")
    assert set(re.findall(r'<figure id="([^"]+)"', page)) == CHARTS
    steps = [(row["step"], row["accuracy"]) for row in read_run(run).table["rows"] if row["batch"] is None]
    assert page.count(f"{100 * dict(steps)['fine-tuned']:.2f}") > 0
    for step in ("trained", "pruned", "fine-tuned", "final.onnx, 4"):
        assert f"<td>{step}</td>" in page
    assert "tiny-basic on digits" in page


def test_without_the_onnx_files_the_rest_is_there(run, tmp_path):
    for name in ("sparse.safetensors", "final.safetensors", "bench.json"):
        shutil.copy(run / name, tmp_path / name)
    names = ("sparse.safetensors", "final.safetensors", "bench.json")
    document = json.loads((tmp_path / "bench.json").read_text())
    for row in [*document["rows"], *document["comparisons"]]:
        row["model"] = "gone/" + row["model"].rsplit("/", 1)[-1]
    (tmp_path / "bench.json").write_text(json.dumps(document))
    (written,) = report_stage([tmp_path / name for name in names], format="html", output=None).files
    assert written == tmp_path / "report.html"
    page = written.read_text(encoding="utf-8")
    assert "No comparison image by image" in page
    figures = set(re.findall(r'<figure id="([^"]+)"', page))
    assert {"gamma", "channels-1", "ratio", "latency-1"} <= figures
    assert not figures & {"layers", "classes", "confusion-final"}
    with pytest.raises(SlimdeployError, match="exists: pass force"):
        report_stage([tmp_path / name for name in names], format="html", output=None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("final.safetensors", "bench.json"), "give the checkpoints, original and final"),
        (("sparse.safetensors", "final.safetensors"), "give the checkpoints, original and final"),
        (("bench.json",), "give the checkpoints, original and final"),
        (("sparse.safetensors", "sparse.safetensors", "bench.json"), "sparse.safetensors is given twice"),
        (("compare-0.5.safetensors", "final.safetensors", "bench.json"), "it isn't the same network"),
        (("sparse.safetensors", "final.safetensors", "table.json"), "is not a bench result"),
    ],
)
def test_files_that_do_not_go_together(run, tmp_path, names, message):
    with pytest.raises(SlimdeployError, match=message):
        report_stage([run / name for name in names], format="html", output=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_where_it_says(run, tmp_path, slimdeploy_command):
    named = slimdeploy_command("report", run, "-o", tmp_path / "r.md", "--json")
    assert (tmp_path / "r.md").read_text().startswith("# "), named.err
    done = slimdeploy_command("report", run, "-o", tmp_path / "r.html", "--json")
    assert done.exit_code == 0, done.err
    assert done.json["report"] == str(tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size > 10_000
