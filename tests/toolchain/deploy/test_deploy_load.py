"""A short load test of the HTTP server, and how a load is judged."""

from __future__ import annotations

import json

import pytest

from slimdeploy.benchmarks import serve_load
from slimdeploy.tests.toolchain.deploy.server_process import encoded, running

pytestmark = pytest.mark.xdist_group("test_deploy_serve")  # one worker makes what they share


def test_short_load(models, random_images, tmp_path, capsys):
    """Four seconds at twice the capacity, good and bad requests mixed. How fast is judged by the long run
    alone.
    """
    for i, pixels in enumerate(random_images(8)):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(pixels, "JPEG"))
    with running("--model", models["fp32"], "--latency-ms", 500, "--queue", 16, "--threads", 1) as (_, port):
        images = [str(path) for path in sorted(tmp_path.glob("*.jpg"))]
        limits = ("--limit-ms", "20000", "--max-growth-mb", "50")  # its pools still fill
        code = serve_load.main([f"http://127.0.0.1:{port}", *images, "--seconds", "4", *limits])
    document = json.loads(capsys.readouterr().out)
    assert code == 0, document
    assert document["wrong_answers"] == 0
    assert document["codes"]["200"] > 0
    assert document["codes"]["404"] > 0


def test_load_judges_what_it_sees():
    tally = serve_load.Tally(accepted_ms=[10.0] * 95 + [500.0] * 5)
    assert serve_load.judge(tally, [100.0] * 20, limit_ms=100, max_growth_mb=5) == [
        "p99 of accepted requests is 500.0 ms, above 100 ms"
    ]
    assert serve_load.judge(tally, [100.0 + 5 * i for i in range(20)], limit_ms=1000, max_growth_mb=5) == [
        "the server's memory grew by 85.0 MiB"
    ]
    tally.wrong.append("image 3: class 1 instead of 2")
    assert "image 3" in serve_load.judge(tally, [], limit_ms=1000, max_growth_mb=5)[0]
    assert serve_load.judge(serve_load.Tally(), [], limit_ms=1, max_growth_mb=5) == [
        "no request was accepted"
    ]
