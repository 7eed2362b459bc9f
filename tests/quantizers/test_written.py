from dataclasses import dataclass
from typing import ClassVar

import pytest

from quantizers.errors import UsageError
from quantizers.written import describe_written, parse_written, toml_value


@dataclass(frozen=True)
class Lamp:
    """A ``lamp``.

    More.
    """

    name: ClassVar[str] = "lamp"
    source: ClassVar[str] = "nowhere"

    power: int = 3
    is_on: bool = False


def parse(text):
    return parse_written(
        text, {"lamp": Lamp}, what="a thing", kind="thing", choices=["lamp"], example="power=1"
    )


def test_what_is_written_is_read():
    assert parse("lamp") == Lamp()
    assert parse(" lamp ( power = 5, is_on = true ) ") == Lamp(power=5, is_on=True)
    assert (toml_value(True), toml_value(2), toml_value("a")) == ("true", "2", "'a'")
    parameters = {"power": "3", "is_on": "false"}
    assert describe_written(Lamp) == {
        "name": "lamp",
        "what": "A lamp.",
        "source": "nowhere",
        "parameters": parameters,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamp 3", "a thing is written name or name(parameter=value, ...), not 'lamp 3'"),
        ("lamb", "unknown thing 'lamb' (did you mean 'lamp'?); expected one of: lamp"),
        (
            "lamp(pover=3)",
            "unknown parameter of lamp 'pover' (did you mean 'power'?); expected one of: power, is_on",
        ),
        ("lamp(3)", "lamp(3): parameters must be TOML, such as power=1: "),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
