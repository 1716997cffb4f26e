"""The bar of offline work: seen on a terminal alone, and gone when the work is done."""

from io import StringIO

import pytest
from rich.console import Console

from launch import progress as progress_module
from launch.progress import progress


def written(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, shown: bool = True, total: int | None = 4) -> str:
    """What three of four pieces of work write to a console."""
    screen = StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, color_system=None, _environ={})
    monkeypatch.setattr(progress_module, "Console", lambda: console)
    with progress("reading rows", total, shown=shown) as advance:
        advance(1)
        advance(2)
    return screen.getvalue()


def test_a_terminal_sees_what_is_done_and_how_much_of_it(monkeypatch: pytest.MonkeyPatch):
    screen = written(monkeypatch, terminal=True)
    assert "reading rows" in screen and "3/4" in screen
    assert screen.endswith("\x1b[2K"), "the last thing written takes the bar away"


def test_work_of_unknown_size_shows_its_time_alone(monkeypatch: pytest.MonkeyPatch):
    screen = written(monkeypatch, terminal=True, total=None)
    assert "reading rows" in screen and "0:00:00" in screen and "/" not in screen


@pytest.mark.parametrize(("terminal", "shown"), [(False, True), (True, False)])
def test_a_log_file_and_a_recipe_without_a_console_see_nothing(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool
):
    assert written(monkeypatch, terminal=terminal, shown=shown).strip() == ""
