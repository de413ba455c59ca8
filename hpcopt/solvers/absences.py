"""What a step's metrics tell of ranks that were not in its round."""

from collections.abc import Mapping
from typing import Any

from hpcopt.comm.roll_call import RollCall
from hpcopt.shapes.stats import Rows

TABLE, COLUMN, SCALAR = "absences", "rank_number", "absent"


def told(roll_call: RollCall | None) -> dict[str, Any]:
    """Scalars and tables of a step with a round, for ``StepStats``."""
    if roll_call is None:
        return {"scalars": {}, "tables": {}}
    absent = list(roll_call.absent)
    tables: Mapping[str, Rows] = {TABLE: Rows({COLUMN: absent})} if absent else {}
    return {"scalars": {SCALAR: float(len(absent))}, "tables": dict(tables)}
