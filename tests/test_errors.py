"""What a message quotes cannot paint a terminal or fill it."""

from fgaseg.errors import CheckpointError, FGASegError, Interrupted


def test_the_middle_of_a_very_long_line_is_left_out():
    whole = "a" * 2000
    assert str(CheckpointError(whole)) == whole
    long = "a" * 1500 + "b" * 1500
    assert str(CheckpointError(f"first\n{long}\nlast")) == f"first\n{'a' * 1000} [...] {'b' * 500}\nlast"


def test_control_characters_are_escaped_and_lines_stay():
    assert str(FGASegError("a\x1b[2J\nb\tc")) == str(FGASegError("a\\x1b[2J\nb\\tc"))
    assert "\x1b" not in str(FGASegError("a\x1b[2J")) and str(FGASegError("a\nb")) == "a\nb"
    assert FGASegError(3, "a\x1b").args == (3, "a\\x1b")
    assert Interrupted("stopped", 15).signal == 15
