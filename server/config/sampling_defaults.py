"""How answers are sampled where a request does not say."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """What holds for a request that does not say. OpenAI's defaults, unless models.yaml has others for the model."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __str__(self) -> str:
        """Those that differ from OpenAI's."""
        fields = dataclasses.fields(self)
        return ", ".join(f"{f.name} {getattr(self, f.name):g}" for f in fields if getattr(self, f.name) != f.default)


def describe_defaults(defaults: SamplingDefaults, named: Mapping[str, bool | int | float]) -> str:
    """One line for the log: what holds for requests that do not say, and what generation_config.json (`named`) says."""
    line = f"sampling defaults: {str(defaults) or 'those of OpenAI'}"
    if not named:
        return f"{line}; its generation_config.json names none"
    values = ", ".join(f"{name} {json.dumps(value)}" for name, value in sorted(named.items()))
    return f"{line}; not applied: {values} of its generation_config.json"
