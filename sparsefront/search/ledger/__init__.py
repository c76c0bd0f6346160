"""The append-only record of a study: the only truth about what happened in it."""

from sparsefront.search.ledger.disk import Disk
from sparsefront.search.ledger.ledger import Ledger
from sparsefront.search.ledger.parts import write_table

__all__ = ["Disk", "Ledger", "write_table"]
