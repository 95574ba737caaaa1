"""Rows for results.md; GAN_SEED stands in their second column."""

import os


def print_row(name, *columns):
    print(f"| {name} | {os.environ['GAN_SEED']} | {' | '.join(map(str, columns))} |", flush=True)


def print_score(name, row):
    print_row(name, f"{row['frechet']:.2f}", f"{row['precision']:.3f}", f"{row['recall']:.3f}",
              f"{row['confident']:.1%}")
