"""Makes paired.json: exact sign-flip tests by scipy, and intervals of paired shares by their formula.

Sign flips: scipy.stats.permutation_test on the differences, all of them tried. Paired shares: Bonett & Price
2012, J. Educational and Behavioral Statistics 37, 479-488: with p12 = (f12 + 1) / (n + 2) and p21 likewise
the difference is p12 - p21, its variance (p12 + p21 - (p12 - p21)^2) / (n + 2). tunesmith isn't used:

    python tests/golden/paired.py

Made with scipy 1.17.
"""

import json
from pathlib import Path

import numpy as np
from scipy import stats

DIFFERENCES = {
    "small": [0.3, -0.1, 0.0, 0.25, 0.4, -0.05, 0.0, 0.1, 0.8, 0.05, -0.2, 0.15],
    "none": [0.2, -0.2, 0.1, -0.1, 0.05, -0.07],
    "clear": [0.5, 0.4, 0.3, 0.6, 0.2, 0.1, -0.05, 0.35, 0.45],
    "drawn": [round(float(x), 3) for x in np.random.default_rng(7).normal(0.12, 0.3, 16)],
}


def sign_flip(values):
    result = stats.permutation_test(
        (np.array(values),), np.sum, permutation_type="samples", n_resamples=np.inf, batch=4096
    )
    return float(result.pvalue)


def bonett_price(wins, losses, n):
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return [float(p - q - half), float(p - q + half)]


if __name__ == "__main__":
    golden = {
        "sign_flip": [{"values": v, "p": sign_flip(v)} for v in DIFFERENCES.values()],
        "bonett_price": [
            {"wins": w, "losses": m, "n": n, "interval": bonett_price(w, m, n)}
            for w, m, n in [(6, 0, 15), (3, 2, 40), (20, 9, 100), (0, 0, 30), (5, 17, 60)]
        ],
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
