"""What is said where bcc cannot be imported: that it is missing only if it is."""

import sys

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.steering import compiler_child


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The folder in which the distribution's packages are looked for; no other has bcc."""
    monkeypatch.setattr(compiler_child, "DISTRIBUTION_PACKAGES", str(tmp_path))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "dist-packages" not in path])
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    yield tmp_path
    sys.modules.pop("bcc", None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, compiler_child.MISSING_BCC),
        ("", compiler_child.MISSING_BCC),
        ("import libbcc_of_another_python", "cannot be imported: ModuleNotFoundError: No module named 'libbcc_of_"),
        (
            "raise ImportError('undefined\\n symbol: x')",
            "bcc is there and cannot be imported: ImportError: undefined symbol",
        ),
        ("raise OSError('libbcc.so.0: cannot open')", "cannot be imported: OSError: libbcc.so.0: cannot open"),
    ],
    ids=["absent", "the one of PyPI", "a part is absent", "of another Python", "no library"],
)
def test_the_reason_is_the_true_one(packages, source, said):
    if source is not None:
        (packages / "bcc.py").write_text(source)
    with pytest.raises(ConfigurationError) as caught:
        compiler_child._import_bcc()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
