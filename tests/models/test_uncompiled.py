"""bitsandbytes is there without torch's compiler, and what it would have compiled is compiled when it is called."""

import subprocess
import sys

import pytest
import torch

from ltune.models.uncompiled import _compiled_when_called

PROBE = """
import sys, torch
before = torch.compile
import ltune.models.uncompiled
print(torch.compile is before, "bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
"""


def test_inductor_is_not_imported():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True True False\n", done.stderr


@pytest.mark.parametrize("decorator", [False, True])
def test_a_function_is_compiled_once_when_it_is_called(decorator):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def plain(x):
        return 2 * x

    options = {"backend": backend, "fullgraph": True}
    double = _compiled_when_called(**options)(plain) if decorator else _compiled_when_called(plain, **options)
    assert graphs == []
    for _ in range(2):
        assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert len(graphs) == 1
