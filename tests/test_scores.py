"""The scores that the notebook teaches: closed forms, brute force, cases by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from check_scores import LEAST, LEAST_OF_ALL, failures
from notebook_code import notebook_code, run_cell, some_images


def normal(n, dim, seed, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + mean


def test_frechet_distance_is_that_of_the_matrix_root(story):
    a, b = normal(200, 6, 0) @ normal(6, 6, 1), normal(300, 6, 2, mean=0.3) @ normal(6, 6, 3)
    values, vectors = torch.linalg.eig(a.T.cov() @ b.T.cov())
    root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
    squares = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = (squares + (a.T.cov() + b.T.cov() - 2 * root).trace()).item()
    assert story.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    a[:, 2] = 0  # a feature that never fires
    assert story.frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)


def radii_by_force(samples, k=5):
    """The distance of each sample to its k-th nearest other sample, the 0 being to itself."""
    return [sorted(math.dist(sample, other) for other in samples)[k] for sample in samples]


def test_radii_and_the_share_in_balls_are_those_of_brute_force(story):
    real, fake = normal(40, 3, 0), normal(25, 3, 1, mean=1.0)
    radii = story.neighbour_radii(real)
    assert radii.tolist() == pytest.approx(radii_by_force(real.tolist()))
    inside = [any(math.dist(sample, centre) <= radius for centre, radius in zip(real, radii))
              for sample in fake]
    assert 0 < sum(inside) < 25  # a case that tells something
    assert story.share_in_balls(fake, real, radii) == pytest.approx(sum(inside) / 25)


def test_a_row_of_scores_tells_what_is_missing_from_what_is_wrong():
    """Points in a square stand for images, their coordinates for what a judge sees in them."""
    real = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    left, twice = real[real[:, 0] < 0.5] + 1e-3, 2 * real
    names = notebook_code()
    names["judge"], names["test_images"] = None, real
    names["helpers"] = SimpleNamespace(
        judge_images=lambda _, points: (points, torch.tensor([[0.96, 0.04], [0.9, 0.1]])))
    run_cell("score", names)
    half, too_large = names["score"](left), names["score"](twice)
    assert half["precision"] > 0.95 and half["recall"] < 0.7
    assert too_large["precision"] < 0.5 and too_large["recall"] > 0.9
    assert half["samples"] == len(left) and half["confident"] == 0.5  # above 95 %
    assert names["score"](real)["frechet"] < 1e-6 < half["frechet"]


def test_nearest_images_are_those_of_brute_force(story):
    pictures, others = some_images(300, 6, seed=1), some_images(40, 6, seed=2)
    squares = (pictures[:, None] - others[None]).square().sum(dim=(2, 3, 4)).min(dim=1)
    distances, nearest = story.nearest_images(pictures, others)
    assert torch.equal(nearest, squares.indices)
    torch.testing.assert_close(distances.square(), squares.values, rtol=1e-4, atol=1e-4)


@pytest.fixture
def good_scores():
    row = {"samples": 10_000, "frechet": 0.25}
    rows = {name: {**row, **dict.fromkeys(LEAST[name], 0.95)} for name in LEAST}
    bounds = {"untrained MLP": {"frechet": 400.0}, "real training images": {"frechet": 0.16}}
    return {"rows": rows | bounds, **dict.fromkeys(LEAST_OF_ALL, 0.999)}


@pytest.mark.parametrize("column, value", [
    ("samples", 1000), ("frechet", 0.75), ("frechet", 0.15), ("precision", 0.7),
    ("recall", math.nan), ("confident", 0.7)])
def test_check_scores_names_each_shortfall_of_each_network(good_scores, column, value):
    assert failures(good_scores) == []
    for name in LEAST:
        good_scores["rows"][name][column] = value
    found = [failure.split(":")[0] for failure in failures(good_scores)]
    assert found == [f"{name}, {column}" for name in LEAST]


def test_check_scores_names_what_else_falls_short(good_scores):
    good_scores |= dict.fromkeys(LEAST_OF_ALL, 0.85)
    assert [failure.split(":")[0] for failure in failures(good_scores)] == list(LEAST_OF_ALL)
