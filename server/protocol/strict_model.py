"""What every object of a request is made of."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Exact types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)
