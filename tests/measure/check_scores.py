"""Check the scores of a full run; .ci/run calls it:  python tests/measure/check_scores.py output/scores.json

The limits are the quality this project promises on any machine: what three seeds reach (results.md), and a margin for the
seed. Times are printed and never checked: machines differ fourfold.
"""

import json
import sys

# Fréchet at most; precision, recall and confident at least.
LIMITS = {"MLP": (0.6, 0.84, 0.82, 0.79), "DCGAN": (0.5, 0.83, 0.81, 0.79), "conditional DCGAN": (0.4, 0.91, 0.77, 0.96)}


def failures(scores):
    """Sentences on what falls short in the content of a scores.json; empty where all is well."""
    rows = scores["rows"]
    untrained, real = rows["untrained MLP"], rows["real training images"]
    checks = {"nearest training image at most 10 % nearer than for test images": scores["memory"] >= 0.9,
              "at least 98 % read as asked": scores["read as asked"] >= 0.98,
              "taught by forgeries alone, at least 96.5 % read": scores["reader of forged digits"] >= 0.965}
    for name, (frechet, precision, recall, confident) in LIMITS.items():
        row = rows[name]
        checks |= {
            f"{name}: 10,000 samples": row["samples"] == 10_000,
            f"{name}: real images beat the generator, the generator beats noise":
                real["frechet"] < row["frechet"] < untrained["frechet"] / 100,
            f"{name}: Fréchet at most {frechet}": row["frechet"] <= frechet,
            f"{name}: precision at least {precision}": row["precision"] >= precision,
            f"{name}: recall at least {recall}": row["recall"] >= recall,
            f"{name}: confident at least {confident}": row["confident"] >= confident,
            f"{name}: KL from the real histogram below 0.02 nats": row["kl"] < 0.02,
            f"{name}: all ten digits, each at least 5 %": min(row["histogram"]) >= 0.05 * row["samples"],
        }
    return [f"not met: {what}" for what, met in checks.items() if not met]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        scores = json.load(file)
    print("seconds of training:", ", ".join(f"{name} {value:.0f}" for name, value in scores["training_seconds"].items()))
    found = failures(scores)
    print("\n".join(found) or "the full run's scores are as promised")
    sys.exit(bool(found))
