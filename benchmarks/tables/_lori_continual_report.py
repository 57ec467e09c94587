"""What the table of sequences shows."""

from benchmarks.record import Records
from benchmarks.report import Block, Heading


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    del records
    return [Heading("Sequences")]
