"""Tables and sizes as people read them."""

from __future__ import annotations

import pytest

from deepinfer.terminal import format_bytes, print_table

REASON = "the lowest precision that costs less than 1% perplexity"

SIZES = {
    0: "0 B",
    812: "812 B",
    1024: "1.0 KiB",
    5000: "4.9 KiB",
    123_456: "121 KiB",
    32 << 30: "32 GiB",
    5 << 50: "5120 TiB",
}


@pytest.mark.parametrize(("num_bytes", "text"), SIZES.items(), ids=SIZES.values())
def test_size(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_piped_table_is_plain_and_never_folds(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a", REASON * 9), ("longer", "[b]not markup[/b]")], headers=("K", "V"))
    assert capsys.readouterr().out == (
        f"K       V\na       {REASON * 9}\nlonger  [b]not markup[/b]\n"
    )


def test_empty_table_prints_its_headers_only(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([], headers=("K", "V"))
    assert capsys.readouterr().out == "K  V\n"


def test_reason_folds_beside_its_choice_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table([("precision", "int8", REASON)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ")[:2] == ["precision", "int8"]
    assert first.split("  ")[2].strip() == "the lowest precision that costs"
    assert second.strip() == "less than 1% perplexity"


def test_terminal_too_narrow_to_fold_on_wraps_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table([("precision", "int8", "short")])
    assert capsys.readouterr().out.strip() == "precision  int8  short"
