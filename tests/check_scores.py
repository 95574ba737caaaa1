"""Check the scores of a full run; .ci/run calls it:  python tests/check_scores.py output/scores.json

The limits are the quality this project promises; README's table has what three seeds reach.
"""

import json
import sys


def failures(scores):
    """Sentences on what falls short in the content of a scores.json; empty where all is well."""
    rows = scores["rows"]
    trained, untrained, real = rows["trained"], rows["untrained"], rows["real training images"]
    checks = {
        "10,000 samples": trained["samples"] == 10_000,
        "real images beat the generator, the generator beats noise":
            real["frechet"] < trained["frechet"] < untrained["frechet"] / 100,
        "precision at least 0.75": trained["precision"] >= 0.75,
        "recall at least 0.75": trained["recall"] >= 0.75,
        "at least 80 % confident": trained["confident"] >= 0.80,
        "KL from the real histogram below 0.02 nats": trained["kl"] < 0.02,
        "all ten digits, each at least 5 %": min(trained["histogram"]) >= 0.05 * trained["samples"],
        "nearest training image at most 10 % nearer than for test images": scores["memory"] >= 0.9,
        "training at most 180 s": scores["training_seconds"] <= 180,
    }
    return [f"not met: {what}" for what, met in checks.items() if not met]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        found = failures(json.load(file))
    print("\n".join(found) or "the full run's scores are as promised")
    sys.exit(bool(found))
