"""The comparison that `make lm-eval` ends with can fail, and its tasks are well formed."""

import copy
import json
from typing import Any

from tests.lm_eval.check import TASKS, compare, names_of

REPORT: dict[str, Any] = {
    "results": {"acc": 0.5},
    "samples": {0: [[["-1.5", "False"]], [["-2.5", "True"]]], 1: [["a text"]]},
}


def test_what_differs_is_told() -> None:
    assert compare("t", REPORT, REPORT) == []
    for place, value in ((0, "-1.505"), (1, "True")):
        other = copy.deepcopy(REPORT)
        other["samples"][0][0][0][place] = value
        assert len(compare("t", other, REPORT)) == 1
    other = copy.deepcopy(REPORT)
    other["samples"][1] = [["another"]]
    other["results"]["acc"] = 0.6
    assert len(compare("t", other, REPORT)) == 2
    other = copy.deepcopy(REPORT)
    other["samples"][0][0][0][0] = "-1.5001"
    assert compare("t", other, REPORT) == []


def test_the_tasks_have_data() -> None:
    assert len(names_of(TASKS)) == 4 and all(name.startswith("headrace_") for name in names_of(TASKS))
    for path in TASKS.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) >= 10 and all(row.keys() == rows[0].keys() for row in rows)
