"""Words that charts share."""

from __future__ import annotations

from slimdeploy.toolchain.report.charts import strength_text


def test_a_strength_is_a_number_or_a_share() -> None:
    assert strength_text(1e-4) == "λ = 0.0001"
    assert strength_text(0.0) == "λ = 0"
    assert strength_text("auto:0.9") == "λ adjusted to 90% zeros"
