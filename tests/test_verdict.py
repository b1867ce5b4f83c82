"""Verdict, signature, page and thresholds: what a reader and the ledger get of a judgement."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployment.checks.schema import check_names
from deployment.sealed_verdict import open_verdict, seal_verdict
from deployment.thresholds import load_thresholds, override_path
from deployment.verdict import Check, Verdict
from deployment.verdict_report import verdict_page
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings

KEY, OTHER = b"k" * 32, b"o" * 32
numbers = st.floats(allow_infinity=False)
checks = st.builds(
    Check,
    name=st.text(max_size=20),
    result=st.sampled_from(["pass", "fail", "inconclusive"]),
    value=numbers,
    op=st.sampled_from([">", ">=", "<", "<=", "=="]),
    threshold=st.floats(allow_nan=False, allow_infinity=False),
    unit=st.text(max_size=5),
    explanation=st.text(max_size=40),
    low=st.none() | numbers,
    high=st.none() | numbers,
)


def check(name: str, result: str = "pass", value: float = 0.9, **more: object) -> Check:
    return Check(name, result, value, ">", 0.85, "", "because", **more)  # type: ignore[arg-type]


def verdict(*checks: Check) -> Verdict:
    return Verdict(
        "larder-shop", "3", "b" * 32, "2026-01-01T00:00:00+00:00", checks, "t1", "ranking_v1", "h1", "2", "r"
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(checks, max_size=4))
def test_what_was_sealed_is_what_opens(found: list[Check]) -> None:
    """Every verdict comes back as it was, NaN included; another key opens nothing."""
    sealed = seal_verdict(verdict(*found), KEY)
    again = open_verdict(sealed, KEY)
    same = dataclasses.replace(again, checks=())
    assert same == verdict()
    for one, two in zip(again.checks, found, strict=True):
        for field in dataclasses.fields(Check):
            a, b = getattr(one, field.name), getattr(two, field.name)
            both_missing = isinstance(b, float) and math.isnan(b) and (a is None or math.isnan(a))
            assert a == b or both_missing
    with pytest.raises(BadInputError, match="signature"):
        open_verdict(sealed, OTHER)


def test_a_changed_verdict_does_not_open() -> None:
    """One word changed, and the signature no longer holds."""
    sealed = seal_verdict(verdict(check("auc", "fail", 0.5)), KEY)
    with pytest.raises(BadInputError, match="signature"):
        open_verdict(sealed.replace(b'"fail"', b'"pass"'), KEY)


def test_one_word_and_one_line() -> None:
    """A failure weighs more than what could not be told; the line names what stopped it."""
    assert verdict(check("auc")).word == "passed" and not verdict().passed
    both = verdict(check("a"), check("b", "inconclusive"), check("c", "fail", 0.5))
    assert both.word == "failed" and both.reason == "failed: c 0.5 (must be > 0.85)"
    assert verdict(check("a"), check("b", "inconclusive")).word == "inconclusive"
    assert len(verdict(*(check("x" * 40, "fail") for _ in range(20))).reason) <= 300


def test_the_page_says_why_first_and_runs_nothing() -> None:
    """Red checks come before green ones; strings of a model are text, whatever they hold; nothing is fetched."""
    evil = "<script>alert(1)</script>\"' onload=x"
    bad = Check("feature_list", "fail", 1.0, "==", 0.0, evil, evil)
    page = verdict_page(dataclasses.replace(verdict(check("auc", low=0.88, high=0.92), bad), model=evil))
    assert page.index("Feature list") < page.index(">AUC<")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    assert page.count("<svg") == 1 and "Stopped" in page
    assert "Let through" in verdict_page(verdict(check("auc")))


@settings(max_examples=40, deadline=None)
@given(st.lists(checks, min_size=1, max_size=3))
def test_every_verdict_can_be_shown(found: list[Check]) -> None:
    """No number breaks the page, and no picture leaves its frame."""
    page = verdict_page(verdict(*found))
    for x in re.findall(r'cx="([^"]*)"', page):
        assert 0.0 <= float(x) <= 380.0


def test_feature_lists() -> None:
    """Missing, extra and permuted lists are each named; a file without names is held to their count."""
    asked = ("f_a", "f_b", "r_c")
    assert check_names(asked, asked).result == "pass"
    for found, word in (
        (("f_a", "f_b"), "lacks r_c"),
        ((*asked, "f_d"), "also wants f_d"),
        (("f_b", "f_a", "r_c"), "another order"),
    ):
        said = check_names(found, asked)
        assert said.result == "fail" and word in said.explanation
    assert check_names(("0", "1", "2"), asked).result == "pass"
    assert check_names(("0", "1"), asked).result == "fail"


def test_thresholds_from_the_most_specific_place(tmp_path: Path) -> None:
    """Defaults, then the data set's table, then the project's own file; the hash follows the values."""
    shop = Settings(home=tmp_path, project="shop")
    assert load_thresholds(shop).auc == 0.85
    assert load_thresholds(Settings(home=tmp_path, project="movielens")).auc < 0.85
    before = load_thresholds(shop).hash
    path = override_path(shop)
    path.parent.mkdir(parents=True)
    path.write_text("auc = 0.7\nusers = 100\n")
    assert (load_thresholds(shop).auc, load_thresholds(shop).users) == (0.7, 100)
    assert load_thresholds(shop).latency_p95_ms == 50.0 and load_thresholds(shop).hash != before


@pytest.mark.parametrize(
    "text", ["auk = 0.5", "auc = 'high'", "auc = true", "auc = nan", "users = 0.5", "users = 0", "["]
)
def test_thresholds_that_cannot_be_meant(tmp_path: Path, text: str) -> None:
    """A typing error is said, never ignored."""
    path = override_path(Settings(home=tmp_path, project="shop"))
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"thresholds\.toml"):
        load_thresholds(Settings(home=tmp_path, project="shop"))
