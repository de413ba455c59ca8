"""A test for drift calls it as often as its level says where there is none, and finds it where there is."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from hpcopt.analysis.assurance.profile import drift_from_profile, drift_from_samples, level_of_look, read_profile
from hpcopt.errors import DataError

PROFILE = {"a": 0.6, "b": 0.3, "c": 0.1}


def test_chi_square_is_scipys():
    seen = {"a": 310, "b": 160, "c": 30}
    found = drift_from_profile(seen, PROFILE, 0.01)
    assert (found.method, found.p_value) == (
        "chi-square",
        pytest.approx(chisquare([310, 160, 30], [300, 150, 50]).pvalue),
    )
    samples = {"a": 60, "b": 25, "c": 15}
    found = drift_from_samples(seen, samples, 0.01)
    expected = chi2_contingency([[310, 160, 30], [60, 25, 15]], correction=False).pvalue
    assert (found.method, found.p_value) == ("chi-square", pytest.approx(expected))


def test_a_small_number_is_tested_exactly():
    """Two heads in two throws of a coin: as odd as two tails, and nothing else is."""
    found = drift_from_profile({"heads": 2}, {"heads": 0.5, "tails": 0.5}, 0.01)
    assert (found.method, found.p_value, found.found) == ("exact", pytest.approx(0.5), False)
    assert drift_from_profile({"heads": 9}, {"heads": 0.5, "tails": 0.5}, 0.01).p_value == pytest.approx(2 / 512)
    assert drift_from_profile({"heads": 8, "tails": 1}, {"heads": 0.5, "tails": 0.5}, 0.01).p_value == pytest.approx(
        20 / 512
    )


def test_monte_carlo_is_near_exact(monkeypatch):
    seen = {"a": 6, "b": 6, "c": 3}
    exact = drift_from_profile(seen, PROFILE, 0.01)
    monkeypatch.setattr("hpcopt.analysis.assurance.profile.MOST_OUTCOMES", 0)
    drawn = drift_from_profile(seen, PROFILE, 0.01)
    assert (exact.method, drawn.method) == ("exact", "Monte Carlo")
    assert drawn.p_value == pytest.approx(exact.p_value, rel=0.1)


@pytest.mark.parametrize("n", [12, 400])
def test_drift_is_called_by_chance_as_seldom_as_the_level_says(n):
    rng = np.random.default_rng(0)
    w = np.array(list(PROFILE.values()))
    called = [
        drift_from_profile(dict(zip("abc", rng.multinomial(n, w).tolist(), strict=True)), PROFILE, 0.05).found
        for _ in range(600)
    ]
    assert np.mean(called) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    other = [
        drift_from_profile(dict(zip("abc", rng.multinomial(400, w[::-1]).tolist(), strict=True)), PROFILE, 0.05).found
        for _ in range(20)
    ]
    assert all(other)


def test_few_against_few_samples():
    found = drift_from_samples({"a": 3}, {"b": 3}, 0.2)
    assert (found.method, found.found) == ("Monte Carlo", True)
    assert found.p_value == pytest.approx(2 / 20, abs=0.01)  # one of 6!/(3! 3!) ways, and its mirror
    assert drift_from_samples({}, {"b": 3}, 0.05).p_value == 1
    assert drift_from_samples({"b": 2}, {"b": 3}, 0.05).p_value == 1


def test_a_class_that_the_profile_never_gives_is_drift():
    assert drift_from_profile({"a": 50, "z": 1}, PROFILE, 1e-9).found
    assert drift_from_profile({"a": 50, "z": 1}, {**PROFILE, "z": 0.0}, 1e-9).found
    assert not drift_from_profile({}, PROFILE, 0.05).found


def test_all_looks_together_have_the_level():
    assert sum(level_of_look(0.01, look) for look in range(1, 10_000)) == pytest.approx(0.01, rel=1e-3)


def test_a_profile_is_a_table_of_weights(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_text("[profile]\n0 = 3\n7 = 1.0\n")
    assert read_profile(path) == {"0": 0.75, "7": 0.25}
    for text, said in [
        ("[other]\n", "it takes a table"),
        ("[profile]\n0 = -1\n", "0 or more"),
        ("[profile]\n0 = 0\n", "not all 0"),
        ("[profile]\n0 = nan\n", "0 or more"),
        ("[profile]\n0 = 'x'\n", "it takes a table"),
        ("profile", "it takes a table"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_profile(path)
    with pytest.raises(DataError, match="no operational profile"):
        read_profile(tmp_path / "missing.toml")
