import pytest

from dse.ranges import bit_range
from quantizers.errors import UsageError


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("8", [8]),
        ("3-8", [3, 4, 5, 6, 7, 8]),
        ("2-2", [2]),
        ("2", [2]),
        ("64", [64]),
        ("63-64", [63, 64]),
        (" 3 - 4 ", [3, 4]),
    ],
)
def test_widths(text, widths):
    assert list(bit_range(text, 2, 64)) == widths


@pytest.mark.parametrize(
    "text",
    ["", "-", "x", "3-", "-3", "8-3", "3-8-9", "1_0", "+4", "2.0", "0x8", "1e1", "3,5", "1", "65", "1-8", "8-65", "3-1" + "0" * 5000],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_what_is_no_range(text):
    with pytest.raises(UsageError) as error:
        bit_range(text, 2, 64)
    assert str(error.value) == (f"--bits must be a width or a range within 2-64, such as 3-64, not {text!r}")
    assert error.value.given == text
    assert error.value.expected == ["64", "3-64"]


def test_the_message_names_the_limits_of_the_command():
    with pytest.raises(UsageError) as error:
        bit_range("9", 3, 8)
    assert str(error.value) == "--bits must be a width or a range within 3-8, such as 4-8, not '9'"
    assert error.value.expected == ["8", "4-8"]
