"""The charts that reports contain, by the ids of their figures."""

CHARTS = {
    "sparse-accuracy", "sparse-loss", "sparse-zero", "final-accuracy", "final-loss", "final-zero",
    "gamma", "channels-1", "ratio", "latency-1", "latency-4", "layers", "classes",
    "confusion-original", "confusion-final", "reliability",
}  # fmt: skip
SWEEP_CHARTS = {
    "pareto", "ratio-0-1", "ratio-0-8", "ratio-0.001-1", "ratio-0.001-8", "gamma-0", "gamma-1",
    "curves-train", "curves-finetune",
}  # fmt: skip
