"""What may be named, read from the source as text, is what there is to choose from."""

import inspect

import pytest

from ltune import objectives, schema
from ltune.models import adapters, quantize
from ltune.objectives import preference_losses, reference


@pytest.mark.parametrize(
    ("base", "module"),
    [
        ("Objective", objectives),
        ("Adapter", adapters),
        ("Quantizer", quantize),
        ("PreferenceLoss", preference_losses),
        ("Reference", reference),
    ],
)
def test_the_choices_are_the_classes_that_can_be_made(base, module):
    named = {name: one for name, one in vars(module).items() if inspect.isclass(one)}
    expected = [name for name, one in named.items() if issubclass(one, named[base]) and not inspect.isabstract(one)]
    assert schema.choices(base) == sorted(expected)
