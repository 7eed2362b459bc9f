import subprocess
import sys

import pytest

import quantizers


def test_formats_need_no_torch():
    code = "import sys; from quantizers import parse_format; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_name_is_there():
    for name in quantizers.__all__:
        assert getattr(quantizers, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError) as error:
        quantizers.prase_format  # noqa: B018
    assert str(error.value) == "module 'quantizers' has no attribute 'prase_format'"
