"""What a step's metrics tell of ranks that were not in its round."""

from collections.abc import Mapping
from typing import Any

from hpcopt.comm.roll_call import RollCall
from hpcopt.shapes.stats import Rows

TABLE, SCALAR = "absences", "absent"


def told(roll_call: RollCall | None) -> dict[str, Any]:
    """Scalars and tables of a step with a round, for ``StepStats``."""
    if roll_call is None:
        return {"scalars": {}, "tables": {}}
    absent = list(roll_call.absent)
    tables: Mapping[str, Rows] = {TABLE: Rows({"rank_number": absent})} if absent else {}
    return {"scalars": {SCALAR: float(len(absent))}, "tables": dict(tables)}
