"""Arrays in, arrays out: the linear algebra that families share."""

from lowrank.linalg._product import labelled_product, regroup

__all__ = ["labelled_product", "regroup"]
