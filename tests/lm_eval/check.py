"""lm-evaluation-harness through this server against the same harness on transformers: `make lm-eval`.

    python -m tests.lm_eval.check [--python PYTHON] [--json FILE]

Starts `headrace serve` with the default model in float32, evaluates the tasks beside this file through its
`local-completions` and through its `hf` on the same weights, and compares every sample: log-likelihoods within what
rounding leaves, choices and texts exactly. The harness comes with dozens of packages, pandas, scipy and pyarrow among
them, which nothing else here needs; so it has an environment of its own, `.venv-lm-eval`, that sees this one's packages
for torch and transformers.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from engine.weights.sources import resolve
from server.benchmarks.record import circumstances, write_json
from tests.conftest import DEFAULT_MODEL_SOURCE
from tests.places import ROOT
from tests.serving import running_server

TASKS = Path(__file__).resolve().parent / "tasks"
VENV = ROOT / ".venv-lm-eval"
HARNESS = "lm-eval[api,hf]==0.4.13"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTEXT = 2048
TOLERANCE = 1e-3
"""Of a log-likelihood, relative and absolute: sums in fp32 in another order."""


def main() -> int:
    """Evaluate twice and compare; the exit code."""
    parser = argparse.ArgumentParser(description="Compare lm-evaluation-harness on this server and on transformers.")
    parser.add_argument("--python", type=Path, help="of an environment that has the harness; made when not given")
    parser.add_argument("--json", metavar="FILE", help="metrics by either road, with versions, commit and machine")
    options = parser.parse_args()
    python = options.python or harness_python()
    weights = resolve(DEFAULT_MODEL_SOURCE).directory
    with tempfile.TemporaryDirectory() as work:
        tasks = write_tasks(Path(work) / "tasks")
        # The directory, since the GGUF file itself would be served with its own blocks, which bf16 rounds.
        options_of_server = ("--served-name", MODEL, "--dtype", "float32", "--context", str(CONTEXT))
        with running_server(str(weights), *options_of_server) as url:
            asked = f"base_url={url}/v1/completions,model={MODEL},tokenizer={weights},max_length={CONTEXT}"
            served = evaluate(
                python, tasks, "local-completions", f"{asked},tokenizer_backend=huggingface,num_concurrent=4"
            )
        direct = evaluate(python, tasks, "hf", f"pretrained={weights},dtype=float32,max_length={CONTEXT - 1}")
    complaints = [complaint for task in direct for complaint in compare(task, served[task], direct[task])]
    for task, found in direct.items():
        print(f"{task}: {len(found['samples'])} samples, {found['results']}")
    difference = largest_difference(*map(all_samples, (served, direct)))
    print(f"log-likelihoods differ by at most {difference:.1e}")
    print("\n".join(complaints) or "the server and transformers agree on every sample")
    if options.json is not None:
        tasks_found = {
            task: {"samples": len(found["samples"]), "served": served[task]["results"], "direct": found["results"]}
            for task, found in direct.items()
        }
        figures = {"harness": HARNESS, "largest_difference": difference, "disagreements": len(complaints)}
        write_json(options.json, {**circumstances(), **figures, "tasks": tasks_found})
    return 1 if complaints else 0


def harness_python() -> Path:
    """Python of `.venv-lm-eval`, which is made first if it is not there."""
    python = VENV / "bin" / "python"
    if not (VENV / ".installed").exists():
        print(f"installing {HARNESS} into {VENV.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
        (Path(found.stdout.strip()) / "headrace-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
        constraints = ROOT / "constraints.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, HARNESS], check=True)
        (VENV / ".installed").touch()
    return python


def write_tasks(directory: Path) -> Path:
    """The tasks with the place of their data filled in: the harness wants it absolute."""
    directory.mkdir()
    for source in TASKS.glob("*.yaml"):
        (directory / source.name).write_text(source.read_text().replace("${TASKS}", str(TASKS)))
    return directory


def evaluate(python: Path, tasks: Path, backend: str, model_args: str) -> dict[str, dict[str, Any]]:
    """By task: `results`, the metrics, and `samples`, what the model said of each document, by its number."""
    with tempfile.TemporaryDirectory() as output:
        command: list[str | Path] = [python, "-m", "lm_eval", "--model", backend, "--model_args", model_args]
        command += ["--tasks", ",".join(sorted(names_of(tasks))), "--include_path", tasks, "--batch_size", "4"]
        command += ["--device", "cpu", "--log_samples", "--output_path", output]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": f"{output}/datasets"}
        subprocess.run(command, check=True, env={**os.environ, **offline}, stdout=subprocess.DEVNULL)
        (report,) = Path(output).rglob("results_*.json")
        results = json.loads(report.read_text())["results"]
        return {
            task: {"results": numbers(results[task]), "samples": samples(next(Path(output).rglob(f"samples_{task}_*")))}
            for task in results
        }


def names_of(tasks: Path) -> list[str]:
    """The names in the task files."""
    return [path.read_text().partition("\n")[0].removeprefix("task: ") for path in tasks.glob("*.yaml")]


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """The metrics alone, without their standard errors, which are drawn by lot."""
    found = {name.partition(",")[0]: value for name, value in results.items() if isinstance(value, float)}
    return {name: value for name, value in found.items() if not name.endswith("_stderr")}


def samples(path: Path) -> dict[int, list[Any]]:
    """What came back for each request of each document."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["doc_id"]: row["resps"] for row in rows}


def compare(task: str, served: dict[str, Any], direct: dict[str, Any]) -> list[str]:
    """Where the two differ by more than rounding."""
    complaints = []
    for name, expected in direct["results"].items():
        if not math.isclose(served["results"][name], expected, rel_tol=TOLERANCE):
            complaints.append(f"{task}: {name} is {served['results'][name]} in place of {expected}")
    assert served["samples"].keys() == direct["samples"].keys() and served["samples"]
    for number, expected in direct["samples"].items():
        if not alike(served["samples"][number], expected):
            complaints.append(f"{task}, sample {number}: {served['samples'][number]} in place of {expected}")
    return complaints


def all_samples(report: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the model said, by task."""
    return {task: found["samples"] for task, found in report.items()}


def largest_difference(served: Any, direct: Any) -> float:
    """Of all numbers that two reports have in the same place."""
    if isinstance(direct, dict):
        return max((largest_difference(served[key], value) for key, value in direct.items()), default=0.0)
    if isinstance(direct, list):
        return max(map(largest_difference, served, direct), default=0.0)
    try:
        return abs(float(served) - float(direct))
    except ValueError:
        return 0.0


def alike(found: Any, expected: Any) -> bool:
    """Numbers within rounding, everything else exactly."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    try:
        return math.isclose(float(found), float(expected), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except (TypeError, ValueError):
        return bool(found == expected)


if __name__ == "__main__":
    sys.exit(main())
