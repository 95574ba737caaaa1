"""The scores that the notebook teaches: closed forms, brute force, cases by hand."""

import math

import pytest
import torch
from check_scores import LEAST, LEAST_OF_ALL, failures
from conftest import notebook_code, some_images
from torch.nn.functional import one_hot, pad

import gan_helpers as helpers


def normal(n, dim, seed, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + mean


def test_frechet_distance_to_the_same_features_scaled_and_moved_has_its_closed_form(story):
    features = normal(50, 3, 0)
    squares = (2 * features.mean(dim=0) + 1).square().sum()
    expected = (squares + 4 * features.T.cov().trace()).item()
    assert story.frechet_distance(features, 3 * features + 1) == pytest.approx(expected)


def test_frechet_distance_is_that_of_the_matrix_root(story):
    a, b = normal(200, 6, 0) @ normal(6, 6, 1), normal(300, 6, 2, mean=0.3) @ normal(6, 6, 3)
    values, vectors = torch.linalg.eig(a.T.cov() @ b.T.cov())
    root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
    squares = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = (squares + (a.T.cov() + b.T.cov() - 2 * root).trace()).item()
    assert story.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert story.frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_bears_a_feature_that_never_fires(story):
    features = normal(200, 6, 0)
    features[:, 2] = 0
    assert story.frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-6)


def radii_by_force(samples, k=5):
    """The distance of each sample to its k-th nearest other sample."""
    radii = []
    for i, sample in enumerate(samples):
        others = [other for j, other in enumerate(samples) if j != i]
        radii.append(sorted(math.dist(sample, other) for other in others)[k - 1])
    return radii


def any_within(centre, radii, others):
    """Whether one of the others is no further from the centre than its radius."""
    return any(math.dist(centre, other) <= radius for other, radius in zip(others, radii))


@pytest.mark.parametrize("n, m, mean", [(20, 30, 1.5), (40, 25, 1.0), (30, 30, 2.0)])
def test_precision_recall_and_coverage_are_those_of_brute_force(story, n, m, mean):
    real, fake = normal(n, 3, 0), normal(m, 3, 1, mean)
    reals, fakes = real.tolist(), fake.tolist()
    real_radii, fake_radii = radii_by_force(reals), radii_by_force(fakes)
    precision = sum(any_within(sample, real_radii, reals) for sample in fakes) / m
    recall = sum(any_within(sample, fake_radii, fakes) for sample in reals) / n
    coverage = sum(any_within(sample, [radius] * m, fakes)
                   for sample, radius in zip(reals, real_radii)) / n
    expected = [precision, recall, coverage]
    radii = story.neighbour_radii(real)
    assert radii.tolist() == pytest.approx(real_radii)
    assert story.precision_recall_coverage(real, fake, radii) == pytest.approx(expected)
    assert 0 < min(expected) and sum(expected) < 3  # a case that tells something


class FirstRowJudge(torch.nn.Module):
    """Reads the first ten pixels as logits, 16 times as strong; all pixels are its features."""

    digits = torch.nn.Linear(64, 10, bias=False)
    digits.weight.data = 8 * torch.eye(10, 64)

    def features(self, images):
        return images.flatten(1)[:, :64]


def written(*digits, ink=1.0):
    """Images that `FirstRowJudge` reads as these digits."""
    rows = (1 + ink) * one_hot(torch.tensor(digits), 10)[:, None, None] - 1
    return pad(rows.float(), (0, 18, 0, 27), value=-1)


def test_kl_and_confidence_are_those_computed_by_hand():
    names = notebook_code()
    names["judge"] = FirstRowJudge()
    real = written(*[0] * 20, *[1] * 20)
    pale = torch.cat([written(*[0] * 30), written(*[1] * 10, ink=-0.8)])
    row = names["score"](helpers.judge_images(names["judge"], real), pale)
    assert row["histogram"] == [30, 10] + [0] * 8  # eight digits are absent on both sides
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert row["kl"] == pytest.approx(by_hand, rel=1e-5)
    assert row["confident"] == 0.75  # 1 / (1 + 9 / e^16), and 1 / (1 + 9 / e^1.6) of the pale


def test_scores_of_real_images_are_perfect_and_those_of_noise_are_bad():
    names = notebook_code()
    images, names["judge"] = helpers.load_mnist(train=False)[0][:1000], helpers.load_judge()
    real = helpers.judge_images(names["judge"], images)
    same, noise = names["score"](real, images), names["score"](real, some_images(1000))
    assert same["frechet"] == pytest.approx(0, abs=1e-5) and same["kl"] == 0
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["samples"] == 1000
    assert noise["frechet"] > 10 and noise["coverage"] < 0.05 and noise["recall"] < 0.5


def test_nearest_images_are_those_of_brute_force(story):
    pictures, others = some_images(300, 6, seed=1), some_images(40, 6, seed=2)
    pictures[3] = others[17]
    squares = (pictures[:, None] - others[None]).square().sum(dim=(2, 3, 4)).min(dim=1)
    distances, nearest = story.nearest_images(pictures, others)
    assert torch.equal(nearest, squares.indices) and nearest[3] == 17
    torch.testing.assert_close(distances.square(), squares.values, rtol=1e-4, atol=1e-4)


@pytest.fixture
def good_scores():
    row = {"samples": 10_000, "frechet": 0.3, "kl": 0.002, "histogram": [1000] * 10}
    rows = {name: {**row, **dict.fromkeys(LEAST[name], 0.95)} for name in LEAST}
    bounds = {"untrained MLP": {"frechet": 400.0}, "real training images": {"frechet": 0.16}}
    return {"rows": rows | bounds, **dict.fromkeys(LEAST_OF_ALL, 0.98)}


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("column, value", [
    ("samples", 1000), ("frechet", 0.61), ("frechet", 0.15), ("precision", 0.7), ("recall", 0.7),
    ("coverage", 0.7), ("confident", 0.7), ("kl", math.nan), ("histogram", [1111] * 9 + [1])])
def test_check_scores_notices_each_shortfall_of_a_network(good_scores, name, column, value):
    assert failures(good_scores) == []
    good_scores["rows"][name][column] = value
    assert [failure.split(":")[0] for failure in failures(good_scores)] == [f"{name}, {column}"]


@pytest.mark.parametrize("what", LEAST_OF_ALL)
def test_check_scores_notices_what_else_falls_short(good_scores, what):
    good_scores[what] = 0.85
    assert len(failures(good_scores)) == 1
