"""The judge and the scores: oracles, hand-made cases, bad input."""

import copy
import math

import pytest
import torch
from check_scores import FRECHET, failures

import gan_helpers as helpers


def normal(n, dim, seed, mean=0.0, scale=1.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + mean


@pytest.fixture(scope="module")
def test_set():
    return helpers.load_mnist(train=False)


# ---------------------------------------------------------------------------------------------------------------------
# The judge


def test_stored_judge_reads_the_test_set(test_set):
    images, labels = test_set
    reading = helpers.judge_images(helpers.load_judge(), images[::5])
    assert (reading.probabilities.argmax(dim=1) == labels[::5]).double().mean() >= 0.99
    assert reading.features.shape == (2000, 64) and reading.features.dtype == torch.float64
    torch.testing.assert_close(reading.probabilities.sum(dim=1), torch.ones(2000))
    assert reading.histogram.sum() == 2000 and len(reading.histogram) == 10
    assert helpers.JUDGE_FILE.stat().st_size <= 1e6


def test_a_miniature_judge_learns_is_repeatable_and_survives_the_disk(test_set, tmp_path):
    images, labels = helpers.load_mnist(train=True)
    first, second = (helpers.train_judge(images[:3000], labels[:3000], epochs=2, seed=7) for _ in range(2))
    path = tmp_path / "judge.pt"
    helpers.save_judge(first, path)
    loaded = helpers.load_judge(path)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    read = helpers.judge_images(loaded, test_set[0][:1000]).probabilities.argmax(dim=1)
    assert (read == test_set[1][:1000]).double().mean() > 0.8


def test_the_judge_s_readme_has_the_command_that_recreates_it():
    readme = (helpers.DATA_FOLDER / "README.md").read_text(encoding="utf-8")
    assert helpers.JUDGE_COMMAND in readme


def test_judge_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weights": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="missing or damaged"):
        helpers.load_judge(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_judge_sees_the_central_part_of_larger_images(test_set):
    images, judge = test_set[0][:20], helpers.load_judge()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=0.3)  # no paper: what is outside must not count
    expected, seen = helpers.judge_images(judge, images), helpers.judge_images(judge, padded)
    torch.testing.assert_close(seen.features, expected.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.probabilities, expected.probabilities, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Fréchet distance


def exact_moments(n, mean, deviations, seed=0):
    """Samples whose mean and covariance are exactly `mean` and diag(deviations^2)."""
    samples = normal(n, len(mean), seed)
    samples = samples - samples.mean(dim=0)
    whitener = torch.linalg.cholesky(samples.T.cov()).inverse().T
    return samples @ whitener * torch.tensor(deviations, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def test_frechet_distance_closed_form():
    a = exact_moments(50, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], seed=1)
    b = exact_moments(70, [1.0, 1.0, 0.0], [2.0, 2.0, 1.5], seed=2)
    expected = (1 + 0 + 4) + (1 + 0 + 1)  # squared differences of means, and of deviations where both are diagonal
    assert helpers.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(normal(3, 3, 5))[0]  # no rotation of both changes a distance
    assert helpers.frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_against_the_matrix_root():
    a, b = normal(200, 6, 0) @ normal(6, 6, 1), normal(300, 6, 2, mean=0.3) @ normal(6, 6, 3)
    values, vectors = torch.linalg.eig(a.T.cov() @ b.T.cov())
    root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
    torch.testing.assert_close(root @ root, a.T.cov() @ b.T.cov())
    expected = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert helpers.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    assert helpers.frechet_distance(a.float(), b.float()) == pytest.approx(expected.item(), rel=1e-4)


def test_frechet_distance_is_zero_for_the_same_and_symmetric_even_with_dead_features():
    a, b = normal(100, 5, 0), normal(100, 5, 1)
    distance = helpers.frechet_distance(a, b)
    assert isinstance(distance, float) and distance == pytest.approx(helpers.frechet_distance(b, a), rel=1e-9)
    a[:, 2] = b[:, 4] = 0.0  # the root of a rounding error of 1e-16 is 1e-8
    assert helpers.frechet_distance(a, a[torch.randperm(100)]) == pytest.approx(0, abs=1e-6)
    assert helpers.frechet_distance(a, b) == pytest.approx(helpers.frechet_distance(b, a), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Precision, recall, coverage


def brute_force(real, fake, k):
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())
    radius = lambda set_, i: sorted(distance(set_[i], set_[j]) for j in range(len(set_)) if j != i)[k - 1]
    real_radii, fake_radii = ([radius(s, i) for i in range(len(s))] for s in (real, fake))
    precision = sum(any(distance(f, r) <= s for r, s in zip(real, real_radii)) for f in fake) / len(fake)
    recall = sum(any(distance(f, r) <= s for f, s in zip(fake, fake_radii)) for r in real) / len(real)
    coverage = sum(any(distance(f, r) <= s for f in fake) for r, s in zip(real, real_radii)) / len(real)
    return precision, recall, coverage


@pytest.mark.parametrize("k, n, m, mean", [(1, 20, 30, 0.5), (3, 40, 25, 1.0), (5, 30, 30, 2.0)])
def test_precision_recall_coverage_against_brute_force(k, n, m, mean):
    real, fake = normal(n, 3, 0), normal(m, 3, 1, mean=mean)
    expected = brute_force(real, fake, k)
    assert helpers.precision_recall_coverage(real, fake, k) == pytest.approx(expected)
    assert 0 < sum(expected) < 3  # a case that tells something
    radii = helpers.neighbour_radii(real, k)
    assert helpers.precision_recall_coverage(real, fake, k, real_radii=radii) == pytest.approx(expected)


def test_chunks_do_not_matter():
    real, fake = normal(2300, 4, 0), normal(1100, 4, 1, mean=0.5)
    distances = torch.cdist(fake, real)
    radii = [torch.cdist(s, s).sort(dim=1).values[:, 5] for s in (real, fake)]
    expected = ((distances <= radii[0]).any(1), (distances <= radii[1][:, None]).any(0), (distances <= radii[0]).any(0))
    ours = helpers.precision_recall_coverage(real, fake)
    assert ours == pytest.approx([share.double().mean().item() for share in expected], abs=2e-3)


def test_a_collapsed_set_is_precise_and_poor():
    real = normal(500, 4, 0)
    collapsed = real[:1] + normal(500, 4, 1, scale=1e-3)
    precision, recall, coverage = helpers.precision_recall_coverage(real, collapsed)
    assert precision > 0.99 and recall < 0.01 and coverage < 0.05


def test_one_wild_outlier_inflates_recall_but_not_coverage():
    real = normal(500, 4, 0)
    fake = real[:1] + normal(500, 4, 1, scale=1e-3)
    wild = torch.cat([fake, torch.full((1, 4), 100.0, dtype=torch.float64)])
    before, after = helpers.precision_recall_coverage(real, fake), helpers.precision_recall_coverage(real, wild)
    assert after[1] > 0.9 > before[1]
    assert abs(after[2] - before[2]) <= 0.002


# ---------------------------------------------------------------------------------------------------------------------
# Histogram, memorisation, the board


def test_kl_divergence_by_hand():
    assert helpers.kl_divergence(torch.tensor([30, 10]), torch.tensor([1, 1])) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert helpers.kl_divergence(torch.tensor([2, 4]), torch.tensor([10, 20])) == pytest.approx(0, abs=1e-12)
    assert helpers.kl_divergence(torch.tensor([5, 0]), torch.tensor([1, 1])) == pytest.approx(math.log(2))


def test_nearest_images_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(40, 1, 6, 6, generator=generator) * 2 - 1
    images = torch.rand(7, 1, 6, 6, generator=generator) * 2 - 1
    images[3] = others[17]
    distances, indices = helpers.nearest_images(images, others)
    for row, image in enumerate(images):
        all_distances = [(image - other).square().sum().sqrt().item() for other in others]
        assert indices[row] == min(range(40), key=all_distances.__getitem__)
        assert distances[row].item() == pytest.approx(min(all_distances), abs=1e-6)
    assert indices[3] == 17 and distances[3] == 0


def test_score_images_of_real_and_of_noise(test_set):
    reference = helpers.make_reference(test_set[0][:1000])
    same = helpers.score_images(reference, test_set[0][:1000])
    assert same["frechet"] == pytest.approx(0, abs=1e-6) and same["kl"] == pytest.approx(0, abs=1e-12)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["confident"] > 0.95
    assert sum(same["histogram"]) == same["samples"] == 1000
    noise = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bad = helpers.score_images(reference, noise)
    assert bad["frechet"] > 10 and bad["coverage"] < 0.05 and bad["recall"] < 0.5
    assert helpers.frechet_of_images(reference, noise) == pytest.approx(bad["frechet"])
    with pytest.raises(ValueError, match="at least 65"):
        helpers.score_images(reference, noise[:64])
    table = helpers.format_scoreboard({"same": same, "noise": bad}).splitlines()
    assert len(table) == 3 and "Fréchet" in table[0] and f"{bad['frechet']:.3f}" in table[2] and "1.000" in table[1]
    left, right = helpers.plot_scoreboard({"same": same, "noise": bad}).axes[:2]
    assert list(left.lines[0].get_xdata()) == [same["frechet"], bad["frechet"]]
    assert [text.get_text() for text in left.texts] == ["0.00", f"{bad['frechet']:.2f}"]
    assert right.images[0].get_array()[0].tolist() == [count / 1000 for count in same["histogram"]]


def test_save_json_round_trip(tmp_path):
    import json
    values = {"a": [1, 2.5], "é": None}
    helpers.save_json(values, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == values


def test_check_scores_notices_each_shortfall():
    row = {"samples": 10_000, "frechet": 0.5, "precision": 0.85, "recall": 0.8, "confident": 0.85, "kl": 0.01,
           "histogram": [1000] * 10}
    good = {"rows": {"MLP": row, "DCGAN": dict(row), "untrained MLP": {"frechet": 500.0},
                     "real training images": {"frechet": 0.2}},
            "memory": 1.0, "read as asked": 0.97, "reader of forged digits": 0.97,
            "training_seconds": {"mlp": 120.0, "dcgan": 150.0}}
    assert failures(good) == []
    cases = [(("memory",), 0.89), (("read as asked",), 0.93), (("reader of forged digits",), 0.94)]
    for name, limit in FRECHET.items():
        cases += [(("rows", name, key), value) for key, value in {
            "frechet": limit + 0.01, "precision": 0.82, "recall": 0.74, "confident": 0.77, "kl": 0.021,
            "histogram": [1111] * 9 + [1], "samples": 1000}.items()]
    for path, value in cases:
        bad = copy.deepcopy(good)
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert len(failures(bad)) == 1, path
    bad = copy.deepcopy(good)
    bad["rows"]["real training images"]["frechet"] = 2.0
    assert len(failures(bad)) == 2
    good["training_seconds"] = {"mlp": 10_000.0, "dcgan": 10_000.0}
    assert failures(good) == []  # however long it took
