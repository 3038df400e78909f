"""Makes votes.json: exact sign tests, wins needed and power by scipy, which only the extra `dev` needs.

    python tests/golden/votes.py

Made with scipy 1.17.
"""

import json
from pathlib import Path

from scipy import stats


def p_value(wins, losses):
    return float(stats.binomtest(wins, wins + losses).pvalue)


def wins_needed(n):
    return next((k for k in range(n // 2 + 1, n + 1) if p_value(k, n - k) < 0.05), None)


def power(share, n):
    return float(stats.binom.sf(wins_needed(n) - 1, n, share))


if __name__ == "__main__":
    golden = {
        "sign_test": [
            {"wins": w, "losses": m, "p": p_value(w, m)}
            for w, m in [(1, 0), (5, 0), (6, 0), (14, 6), (15, 5), (21, 9), (33, 17), (61, 39), (300, 350)]
        ],
        "wins_needed": [{"n": n, "wins": wins_needed(n)} for n in (1, 5, 6, 9, 20, 30, 50, 100, 413)],
        "power": [
            {"share": s, "n": n, "power": power(s, n)}
            for s, n in [(0.55, 780), (0.6, 199), (0.7, 49), (0.8, 20), (0.9, 12), (0.95, 9)]
        ],
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
