"""What is imported is not looked through for garbage; other garbage is, if it was before."""

import subprocess
import sys

import pytest

PROBE = """
import gc, sys
from ltune.importing import importing
{before}
with importing():
    inside = gc.isenabled()
    import {module}
print(inside, gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    ("before", "module", "said"),
    [("", "json", "False True True"), ("gc.disable()", "json", "False False True"), ("", "sys", "False True False")],
    ids=["collected again", "the caller collects nothing", "nothing new"],
)
def test_garbage_is_looked_for_as_before(before, module, said):
    probe = PROBE.format(before=before, module=module)
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60).stdout == f"{said}\n"


def test_after_a_failure_too():
    probe = PROBE.format(before="", module="none_such").replace("with importing():", "try:\n  with importing():")
    probe = probe.replace("    inside = gc.isenabled()\n    import none_such", "    import none_such\nexcept ImportError:\n  inside = None")
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60).stdout == "None True False\n"
