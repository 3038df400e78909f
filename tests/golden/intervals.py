"""Makes intervals.json: reference intervals by scipy, which only the extra `dev` needs.

    python tests/golden/intervals.py

Made with scipy 1.17. The bootstrap draws 400,000 resamples, so its third decimal stands.
"""

import json
from pathlib import Path

import numpy as np
from scipy import stats

# Skewed on purpose (most answers share little, a few much): BCa and percentiles differ.
SKEWED = [0.0, 0.05, 0.05, 0.1, 0.1, 0.1, 0.12, 0.15, 0.2, 0.2, 0.25, 0.3, 0.45, 0.9, 1.0]
DIFFERENCES = [0.3, -0.1, 0.0, 0.25, 0.4, -0.05, 0.0, 0.1, 0.8, 0.05, -0.2, 0.15]


def interval(values):
    result = stats.bootstrap((values,), np.mean, n_resamples=400_000, batch=10_000, method="BCa", rng=1)
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def wilson(successes, n):
    result = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return [float(result.low), float(result.high)]


if __name__ == "__main__":
    golden = {
        "bootstrap": [{"values": v, "interval": interval(v)} for v in (SKEWED, DIFFERENCES)],
        "wilson": [
            {"successes": k, "n": n, "interval": wilson(k, n)}
            for k, n in [(0, 15), (6, 15), (15, 15), (57, 100)]
        ],
        "mcnemar": [
            {"wins": w, "losses": m, "p": float(stats.binomtest(w, w + m).pvalue)}
            for w, m in [(6, 0), (5, 0), (15, 5), (8, 8), (2, 9)]
        ],
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
