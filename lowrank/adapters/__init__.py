"""Adapters: transforms that add trainable terms to frozen weights."""

from lowrank.adapters._full import full
from lowrank.adapters._lora import lora
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_mask import lori_mask

__all__ = ["full", "lora", "lori", "lori_mask"]
