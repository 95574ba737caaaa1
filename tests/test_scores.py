"""The judge and the scores: closed forms, brute force, cases by hand, bad input."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from check_scores import LIMITS, failures
from conftest import ROOT, differences, flat, notebook_code, run_cell, some_images

import gan_helpers as helpers


def normal(n, dim, seed, mean=0.0, scale=1.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + mean


@pytest.fixture(scope="module")
def test_set():
    return helpers.load_mnist(train=False)


def test_stored_judge_reads_the_test_set_and_the_central_part_of_larger_images(test_set):
    images, labels = test_set[0][::5], test_set[1][::5]
    features, probabilities = helpers.judge_images(helpers.load_judge(), images)
    assert (probabilities.argmax(dim=1) == labels).double().mean() >= 0.99 and helpers.JUDGE_FILE.stat().st_size <= 1e6
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2000))
    padded = torch.nn.functional.pad(images[:20], (2, 2, 2, 2), value=0.3)  # no paper: what is outside must not count
    for seen, expected in zip(helpers.judge_images(helpers.load_judge(), padded), (features, probabilities)):
        torch.testing.assert_close(seen, expected[:20], rtol=1e-4, atol=1e-4)


def test_a_miniature_judge_learns_is_repeatable_and_leaves_the_random_numbers_alone(test_set):
    images, labels = test_set
    judges = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(judges))  # of the program around it, which must not matter to the judge
        before = torch.get_rng_state()
        judges.append(flat(helpers.train_judge(images[:500], labels[:500], epochs=1, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert differences(judges[0], judges[1]) == [] != differences(judges[0], judges[2])
    judge = helpers.train_judge(images[:3000], labels[:3000], epochs=2)
    read = helpers.judge_images(judge, images[3000:4000])[1].argmax(dim=1)
    assert not judge.training and (read == labels[3000:4000]).double().mean() > 0.8


def test_the_command_in_the_data_s_readme_makes_a_judge(test_set, tmp_path, monkeypatch):
    """Run as it stands there, but on a few images, into a file of its own."""
    code = re.search(r'python -c "(.*?)"', (ROOT / "data" / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    few = [part[:200] for part in test_set]
    monkeypatch.setattr(helpers, "load_mnist", lambda train: few)
    monkeypatch.setattr(helpers, "JUDGE_FILE", tmp_path / "judge.pt")
    exec(code, {})  # noqa: S102
    made, expected = helpers.load_judge(tmp_path / "judge.pt"), helpers.train_judge(*few)
    assert differences(flat(made), flat(expected)) == []


def test_frechet_distance_against_closed_form_and_matrix_root(story):
    def exact(n, mean, deviations, seed):
        """Samples whose mean and covariance are exactly `mean` and diag(deviations^2)."""
        samples = normal(n, len(mean), seed)
        samples = samples - samples.mean(dim=0)
        whitener = torch.linalg.cholesky(samples.T.cov()).inverse().T
        return samples @ whitener * torch.tensor(deviations).double() + torch.tensor(mean).double()

    a, b = exact(50, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], 1), exact(70, [1.0, 1.0, 0.0], [2.0, 2.0, 1.5], 2)
    rotation = torch.linalg.qr(normal(3, 3, 5))[0]  # no rotation of both changes a distance
    expected = (1 + 0 + 4) + (1 + 0 + 1)  # squared differences of means, and of deviations where both are diagonal
    for left, right in [(a, b), (b, a), (a @ rotation, b @ rotation)]:
        assert story.frechet_distance(left, right) == pytest.approx(expected, rel=1e-9)

    a, b = normal(200, 6, 0) @ normal(6, 6, 1), normal(300, 6, 2, mean=0.3) @ normal(6, 6, 3)
    values, vectors = torch.linalg.eig(a.T.cov() @ b.T.cov())
    root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
    expected = ((a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()).item()
    assert story.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert story.frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)
    a[:, 2] = 0.0  # a dead feature: the root of a rounding error of 1e-16 is 1e-8
    assert story.frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)


def brute_force(real, fake, k=5):
    """Precision, recall, coverage; and the distance of each real one to its k-th nearest other real one."""
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())
    radius = lambda set_, i: sorted(distance(set_[i], set_[j]) for j in range(len(set_)) if j != i)[k - 1]
    real_radii, fake_radii = ([radius(s, i) for i in range(len(s))] for s in (real, fake))
    precision = sum(any(distance(f, r) <= s for r, s in zip(real, real_radii)) for f in fake) / len(fake)
    recall = sum(any(distance(f, r) <= s for f, s in zip(fake, fake_radii)) for r in real) / len(real)
    coverage = sum(any(distance(f, r) <= s for f in fake) for r, s in zip(real, real_radii)) / len(real)
    return [precision, recall, coverage], real_radii


@pytest.mark.parametrize("n, m, mean", [(20, 30, 1.5), (40, 25, 1.0), (30, 30, 2.0)])
def test_precision_recall_coverage_against_brute_force(story, n, m, mean):
    real, fake = normal(n, 3, 0), normal(m, 3, 1, mean=mean)
    expected, radii = brute_force(real, fake)
    assert helpers.neighbour_radii(real).tolist() == pytest.approx(radii)
    assert helpers.neighbour_radii(real, k=1).tolist() == pytest.approx(brute_force(real, fake, k=1)[1])
    assert story.precision_recall_coverage(real, fake, helpers.neighbour_radii(real)) == pytest.approx(expected)
    assert 0 < min(expected) and sum(expected) < 3  # a case that tells something
    many = normal(1100, 3, 2)  # more than a chunk
    torch.testing.assert_close(helpers.neighbour_radii(many), torch.cdist(many, many).sort(dim=1).values[:, 5])


def test_scores_of_real_images_and_of_noise(story, test_set):
    evaluator = helpers.Evaluator(test_set[0][:1000], story.frechet_distance, story.precision_recall_coverage)
    same, noise = evaluator.scores(test_set[0][:1000]), some_images(1000)
    assert same["frechet"] == pytest.approx(0, abs=1e-6) and same["kl"] == pytest.approx(0, abs=1e-12)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["confident"] > 0.95
    bad = evaluator.scores(noise)
    assert bad["frechet"] > 10 and bad["coverage"] < 0.05 and bad["recall"] < 0.5 and bad["samples"] == 1000
    assert evaluator.distance(noise) == pytest.approx(bad["frechet"])
    assert evaluator.distance(test_set[0][1000:3000]) < 5 < evaluator.distance(noise[:300])  # any number will do
    for n in (999, 1):
        with pytest.raises(ValueError, match=f"^{n} images cannot be scored against 1,000: take as many"):
            evaluator.scores(noise[:n])
    table = helpers.format_scoreboard({"same": same, "noise": bad}).splitlines()
    assert table[0].split() == ["Fréchet", "precision", "recall", "coverage", "confident", "KL", "(nats)"]
    assert table[2].split() == ["noise"] + [f"{bad[key]:.3f}" for key in list(bad)[:6]] and len(table) == 3


def test_kl_and_confidence_by_hand():
    """A judge that reads the first row of pixels: its features, whose first ten are the logits of the digits."""
    judge = torch.nn.Module()
    judge.features, judge.digits = lambda images: images.flatten(1)[:, :64], torch.nn.Linear(64, 10, bias=False)
    judge.digits.weight.data = 8 * torch.eye(10, 64)

    def images(*counts, ink=1.0):
        digits = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return torch.nn.functional.pad((1 + ink) * torch.eye(10)[digits][:, None, None] - 1, (0, 18, 0, 27), value=-1)

    real = images(20, 12, *[1] * 8)  # of 40: a half, three tenths, and eight times a fortieth
    evaluator = helpers.Evaluator(real, lambda *features: 0.0, lambda *features: (0.0, 0.0, 0.0), judge)
    row = evaluator.scores(images(30, 10))
    assert row["histogram"] == [30, 10] + [0] * 8 and row["confident"] == 1  # 1 / (1 + 9 / e^16)
    assert row["kl"] == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.3), rel=1e-5)
    assert evaluator.scores(torch.cat([images(30), images(10, ink=-0.8)]))["confident"] == 0.75  # 1 / (1 + 9 / e^1.6)


def test_nearest_images_against_brute_force(story):
    """The cell `neighbours`, which has the function, on a generator that has learnt one image by heart."""
    names, others, drawn, tests = notebook_code(), *(some_images(n, 6, seed=n) for n in (40, 30, 31))
    drawn[3] = others[17]
    heart = torch.nn.Module()
    heart.forward = lambda latent: drawn[latent[:, 0].long()]
    names.update(scores={}, settings=story.Settings(), images=others, test_images=tests, mlp=SimpleNamespace(
        ema_generator=heart, fixed_noise=torch.arange(30.0)[:, None], history=[]))
    run_cell("neighbours", names)
    apart = lambda images: torch.stack([(others - image).square().sum(dim=(1, 2, 3)) for image in images]).min(dim=1)
    assert torch.equal(names["nearest"], apart(drawn).indices) and names["nearest"][3] == 17
    for found, images in [(names["distances"], drawn), (names["test_distances"], tests[:30])]:
        torch.testing.assert_close(found.square(), apart(images).values, rtol=1e-4, atol=1e-4)
    ratio = apart(drawn).values.median().sqrt() / apart(tests[:30]).values.median().sqrt()
    assert names["memory"] == pytest.approx(ratio.item(), rel=1e-4)


def test_steepness_of_a_linear_generator_is_the_norm_of_its_matrix(story):
    """E |A u|^2 over directions u of length 1 in d dimensions is |A|^2 / d."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Unflatten(1, (1, 4, 4)))
    expected = generator[0].weight.square().sum().item() / 3
    draw = lambda latent: helpers.generate(generator, latent)
    assert story.steepness(draw, torch.randn(2000, 3)).square().mean().item() == pytest.approx(expected, rel=0.03)


def test_check_scores_notices_each_shortfall():
    row = {"samples": 10_000, "frechet": 0.3, "precision": 0.95, "recall": 0.9, "confident": 0.97, "kl": 0.01,
           "histogram": [1000] * 10}
    rows = {**dict.fromkeys(LIMITS, row), "untrained MLP": {"frechet": 500.0}, "real training images": {"frechet": 0.2}}
    good = {"rows": rows, "memory": 1.0, "read as asked": 0.99, "reader of forged digits": 0.97,
            "training_seconds": {"mlp": 10_000.0, "dcgan": 10_000.0}}  # however long it took
    cases = [((), "memory", 0.85, 1), ((), "read as asked", 0.9, 1), ((), "reader of forged digits", 0.9, 1),
             ((), "memory", 1.0, 0), (("rows", "real training images"), "frechet", 2.0, len(LIMITS))]
    for name, (limit, *_) in LIMITS.items():
        worse = {"frechet": limit + 0.01, "precision": 0.8, "recall": 0.7, "confident": 0.7, "kl": 0.1, "samples": 1000,
                 "histogram": [1111] * 9 + [1]}
        cases += [(("rows", name), key, value, 1) for key, value in worse.items()]
    for path, key, value, shortfalls in cases:
        bad = place = json.loads(json.dumps(good))
        for step in path:
            place = place[step]
        place[key] = value
        assert len(failures(bad)) == shortfalls, (path, key)
