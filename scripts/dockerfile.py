"""What a Dockerfile says, as far as ours goes: its instructions in order, and the stages that they make."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

KNOWN = frozenset(
    (
        "ARG",
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "LABEL",
        "ENV",
        "VOLUME",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    )
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `name` in capitals, `text` what stands behind it with its lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The text as words, without options of the instruction itself."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def options(self) -> dict[str, str]:
        """Those options: `--from=build` is `{"from": "build"}`."""
        return dict(re.findall(r"(?:^|\s)--([\w-]+)=(\S+)", self.text)) if self.name in ("COPY", "HEALTHCHECK") else {}

    @property
    def command(self) -> list[str]:
        """The words of a CMD, an ENTRYPOINT or a HEALTHCHECK in its JSON form. Raises ValueError for another."""
        return [str(word) for word in json.loads(self.text[self.text.index("[") :])]

    @property
    def pairs(self) -> dict[str, str]:
        """The names and values of an ENV, a LABEL or an ARG."""
        return dict(word.partition("=")[::2] for word in self.words)


def parse_dockerfile(text: str) -> list[Instruction]:
    """The instructions. Raises ValueError for one that nobody here knows."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"{name} is no instruction that is known here")
        found.append(Instruction(name, rest.strip()))
    return found


def expanded(text: str, values: Mapping[str, str]) -> str:
    """A text with `$NAME` and `${NAME}` replaced by what is known; what is not known becomes nothing."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values.get(found[1] or found[2], ""), text)
