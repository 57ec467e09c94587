"""Every law for every instance whose claims call for it."""

import pytest

from tests.instances import INSTANCES
from tests.laws import LAWS

CASES = [
    pytest.param(law, instance, id=f"{law.__name__[4:]}-{instance.name}")
    for law, when in LAWS.items()
    for instance in INSTANCES
    if when(instance)
]


@pytest.mark.parametrize(("law", "instance"), CASES)
def test_law(law, instance):
    law(instance)


def test_names_are_unique():
    names = [instance.name for instance in INSTANCES]
    assert len(names) == len(set(names))
