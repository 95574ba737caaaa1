"""The scores that the notebook teaches: closed forms, brute force, cases by hand."""

import math

import pytest
import torch
from check_scores import LEAST, LEAST_OF_ALL, failures
from exercises import covered, kl, shares_of_digits
from notebook_code import some_images
from torch.nn.functional import one_hot


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


def any_within(centre, radii, others):
    """Whether one of the others is no further from the centre than its radius."""
    return any(math.dist(centre, other) <= radius for other, radius in zip(others, radii))


def test_precision_and_recall_are_those_of_brute_force_and_so_is_coverage(story):
    real, fake = normal(40, 3, 0), normal(25, 3, 1, mean=1.0)
    reals, fakes = real.tolist(), fake.tolist()
    real_radii, fake_radii = radii_by_force(reals), radii_by_force(fakes)
    precision = sum(any_within(sample, real_radii, reals) for sample in fakes) / 25
    recall = sum(any_within(sample, fake_radii, fakes) for sample in reals) / 40
    coverage = sum(any_within(sample, [radius] * 25, fakes)
                   for sample, radius in zip(reals, real_radii)) / 40
    expected = precision, recall, coverage
    sides = [story.side_of(samples, None) for samples in (real, fake)]
    assert sides[0].radii.tolist() == pytest.approx(real_radii)
    measured = *story.precision_and_recall(*sides), covered(story, *sides)
    assert measured == pytest.approx(expected)
    assert 0 < min(expected) and sum(expected) < 3  # a case that tells something


def test_too_few_samples_for_balls_are_refused(story):
    with pytest.raises(ValueError, match="^5 samples have no 5th nearest other one"):
        story.side_of(normal(5, 3, 0), None)


def test_kl_and_confidence_are_those_computed_by_hand(story):
    sure = one_hot(torch.tensor(10 * [0] + 30 * [1]), 10).double()
    unsure = one_hot(torch.tensor(30 * [0] + 10 * [1]), 10).double()
    unsure[-10:] *= 0.94  # what is left over does not matter here
    real, fake = (story.side_of(normal(40, 3, 0), read) for read in (sure, unsure))
    shares = shares_of_digits(fake.probabilities)
    assert shares.tolist() == [0.75, 0.25] + [0] * 8  # eight digits are absent on both sides
    by_hand = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert kl(shares, shares_of_digits(real.probabilities)) == pytest.approx(by_hand, rel=1e-5)
    row = story.score(real, fake)
    assert (row["confident"], row["samples"]) == (0.75, 40)
    assert row["frechet"] == pytest.approx(0, abs=1e-6)  # the same features on both sides


def test_nearest_images_are_those_of_brute_force(story):
    pictures, others = some_images(300, 6, seed=1), some_images(40, 6, seed=2)
    squares = (pictures[:, None] - others[None]).square().sum(dim=(2, 3, 4)).min(dim=1)
    distances, nearest = story.nearest_images(pictures, others)
    assert torch.equal(nearest, squares.indices)
    torch.testing.assert_close(distances.square(), squares.values, rtol=1e-4, atol=1e-4)


def test_greys_are_the_nearest_ones(story):
    pictures = torch.linspace(-1, 1, 101)
    for levels in (2, 4, 256):
        greys = torch.linspace(-1, 1, levels)
        nearest = greys[(pictures[:, None] - greys).abs().argmin(dim=1)]
        ties = ((pictures[:, None] - greys).abs().sort(dim=1).values[:, :2].diff() < 1e-5)[:, 0]
        assert (story.in_greys(pictures, levels) - nearest)[~ties].abs().max() < 1e-5


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
