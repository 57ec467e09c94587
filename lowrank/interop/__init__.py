"""Files of other libraries: PEFT's adapters, and the states of this one.

Needs `pip install lowrank[interop]`.
"""

from lowrank.interop._load import Loaded, load_peft
from lowrank.interop._names import parameter_name
from lowrank.interop._save import is_conv, save_peft
from lowrank.interop._state import load_state, read_notes, save_state

__all__ = [
    "Loaded",
    "is_conv",
    "load_peft",
    "load_state",
    "parameter_name",
    "read_notes",
    "save_peft",
    "save_state",
]
