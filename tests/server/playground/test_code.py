"""Requests as programs: each is run, and what it sends is what was asked for. And programs as requests."""

import ast
import base64
import contextlib
import inspect
import io
import json
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import openai.resources.chat.completions
import pytest

from scripts import check_pages
from tests.server.playground.hazards import ODD, PROGRAMS, TEXTS, requests
from tests.server.playground.node import in_node, needs_node
from tests.server.playground.recording import TEXT, Recording, recording

pytestmark = [needs_node, pytest.mark.timeout(600)]

MODEL = "the/first-model"
KEY = "HEADRACE_API_KEY"
needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None, reason="curl or bash is missing here"
)
WRITE = """
    const { snippets, picturesOf, parse } = await load("code/index.js");
    out = given.map(({ request, target }) => {
      const text = snippets(request, target);
      const back = target.id === "curl" ? parse(text).request : null;
      return { text, back, pictures: picturesOf(request) };
    });
"""
PARSE = """
    const { parse } = await load("code/index.js");
    out = given.map(parse);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Recording]:
    with recording() as running:
        yield running


def asked(target: str, url: str, count: int, *, halves: bool = False, key: str | None = None) -> list[dict[str, Any]]:
    """Requests, half of them streamed, with what is written for them and what must be sent."""
    jobs = []
    for index, request in enumerate([*ODD, *requests(7, count, halves=halves), *ODD[::-1]]):
        stream = index % 2 == 0
        whole = {**request, **PROGRAMS}
        wanted = whole if stream else request
        if target != "curl":
            wanted = {"model": MODEL, **wanted}
        if target == "python-huggingface" and not stream:
            wanted["stream"] = False  # the library says so by itself
        aim = {"id": target, "baseUrl": url, "stream": stream, "model": MODEL} | ({"key": key} if key else {})
        jobs.append({"request": whole, "target": aim, "wanted": wanted})
    for job, made in zip(jobs, in_node(WRITE, jobs), strict=True):
        job |= made
    return jobs


def put_pictures(directory: Path, job: dict[str, Any]) -> None:
    """The files that a program reads."""
    for picture in job["pictures"]:
        (directory / picture["name"]).write_bytes(base64.b64decode(picture["url"].partition(",")[2]))


@pytest.mark.parametrize("target", ["python-huggingface", "python-openai"])
def test_python_sends_what_was_asked_for(
    target: str, server: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY, "from-the-environment")
    monkeypatch.setenv("HF_TOKEN", "hf_never_sent")
    for index, job in enumerate(asked(target, server.url, 40, key=KEY)):
        put_pictures(tmp_path, job)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(job["text"], f"snippet-{index}", "exec"), {})
        assert server.bodies[-1] == job["wanted"], job["text"]
        assert server.paths[-1] == "/v1/chat/completions" and server.keys[-1] == "Bearer from-the-environment"
        assert TEXT in said.getvalue() and ("tools" in job["wanted"]) == ('f {"a": 1}' in said.getvalue())
        assert all(len(line) <= 100 or '"' in line for line in job["text"].splitlines())


@pytest.mark.parametrize("target", ["python-huggingface", "python-openai"])
def test_no_key_of_the_user_is_sent_where_none_is_wanted(
    target: str, server: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never_sent")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-sent")
    aim = {"id": target, "baseUrl": server.url, "stream": False, "model": MODEL}
    exec(in_node(WRITE, [{"request": {"messages": []}, "target": aim}])[0]["text"], {})
    assert server.keys[-1] == "Bearer none"


def test_the_libraries_take_the_arguments_that_are_written() -> None:
    known = in_node('out = (await load("code/python.js")).ARGUMENTS;', None)
    ours = set(inspect.signature(huggingface_hub.InferenceClient.chat_completion).parameters)
    assert set(known["huggingface_hub"]) == ours - {"self", "extra_body"}
    theirs = set(inspect.signature(openai.resources.chat.completions.Completions.create).parameters)
    assert set(known["openai"]) <= theirs
    assert theirs - set(known["openai"]) >= {"self", "extra_body", "extra_headers", "extra_query", "timeout"}


def test_a_schema_reaches_the_server_through_huggingface_hub(server: Recording) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}}
    messages = [{"role": "user", "content": "x"}]
    openai_spelling = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    for given, sent in (
        (openai_spelling, {"type": "json_object", "value": schema}),
        ({"type": "json_schema", "value": schema}, {"type": "json", "value": schema}),
    ):
        aim = {"id": "python-huggingface", "baseUrl": server.url, "stream": False, "model": MODEL}
        job = {"request": {"messages": messages, "response_format": given}, "target": aim}
        text = in_node(WRITE, [job])[0]["text"]
        exec(text, {})
        assert server.bodies[-1]["response_format"] == sent
        assert ("# The library sends the schema as" in text) == ("json_schema" in given)


def test_python_literals_hold_every_character_even_halves() -> None:
    for job in asked("python-openai", "http://x/v1", 40, halves=True):
        tree = ast.parse(job["text"].encode("utf-8", "strict").decode())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        (call,) = [one for one in calls if any(keyword.arg == "messages" for keyword in one.keywords)]
        if job["pictures"] or any(keyword.arg in (None, "extra_body") for keyword in call.keywords):
            continue
        assert {one.arg: ast.literal_eval(one.value) for one in call.keywords} == job["wanted"]


@needs_curl
def test_curl_sends_what_was_asked_for_and_is_read_back(server: Recording) -> None:
    for job in asked("curl", server.url, 60, halves=True, key=KEY):
        assert job["back"] == job["wanted"]
        done = subprocess.run(
            ["bash", "-c", job["text"]], env={"PATH": "/usr/bin:/bin", KEY: "k"}, capture_output=True, check=True
        )
        assert server.bodies[-1] == job["wanted"] and server.keys[-1] == "Bearer k"
        assert TEXT[:3].encode() in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", ["javascript-huggingface", "javascript-openai"])
def test_javascript_sends_what_was_asked_for(target: str, server: Recording, tmp_path: Path) -> None:
    if not check_pages.install(check_pages.wanted() | check_pages.CLIENTS):
        pytest.skip("openai and @huggingface/inference come from npm, which is missing or reaches no registry")
    jobs = asked(target, server.url, 30, halves=True, key=KEY)
    home = check_pages.NODE / f"snippets-{target}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    before = len(server.bodies)
    for index, job in enumerate(jobs):
        directory = tmp_path / str(index)
        directory.mkdir()
        put_pictures(directory, job)
        (home / f"{index}.mjs").write_text(job["text"], encoding="utf-8")
    run = """
        for (let index = 0; index < +process.argv[2]; index++) {
          process.chdir(`${process.argv[1]}/${index}`);
          await import(`${process.argv[3]}/${index}.mjs`);
        }
    """
    command = ["node", "--input-type=module", "--eval", run, str(tmp_path), str(len(jobs)), home.as_uri()]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", KEY: "from-the-environment"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert server.bodies[before:] == [job["wanted"] for job in jobs]
    assert set(server.keys[before:]) == {"Bearer from-the-environment"}
    assert done.stdout.count(TEXT) >= len(jobs) and 'f {"a": 1}' in done.stdout
    shutil.rmtree(home)


def quoted(rng: random.Random, text: str) -> str:
    """A text as a word of a shell, in one of the ways of writing it."""
    way = rng.randint(0, 3)
    if way == 0:
        return shlex.quote(text)
    if way == 1:
        return '"' + "".join(f"\\{one}" if one in '"\\$`' else one for one in text) + '"'
    if way == 2:
        escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\", "\x1b": "\\e", "\x01": "\\x01"}
        return "$'" + "".join(escapes.get(one, one if rng.random() < 0.7 else spelled(one)) for one in text) + "'"
    return "".join("\\" + one if one != "\n" else "'\n'" for one in text) or "''"


def spelled(one: str) -> str:
    """A character as an escape of C, by its number or its bytes."""
    if one.isascii():
        return f"\\x{ord(one):02x}"
    return f"\\U{ord(one):08X}" if ord(one) > 0xFFFF else "".join(f"\\x{byte:02x}" for byte in one.encode())


@needs_curl
def test_a_command_is_read_as_bash_reads_it() -> None:
    rng = random.Random(11)
    texts = [text.replace("\x00", "") for text in TEXTS]
    commands = []
    for _ in range(150):
        words = [
            "".join(quoted(rng, rng.choice(texts)) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 5))
        ]
        commands.append(
            "curl " + rng.choice([" ", " \\\n  ", "\t"]).join(words) + rng.choice(["", " # 'said'", ";ls", "\n"])
        )
    found = in_node(
        'const { commandsOf } = await load("code/shell.js"); out = given.map((one) => commandsOf(one)[0].words);',
        commands,
    )
    for command, words in zip(commands, found, strict=True):
        stub = "curl() { printf '%s\\0' \"$@\"; exit; }\n"
        done = subprocess.run(["bash", "-c", stub + command], capture_output=True, check=True)
        assert [word["text"] for word in words[1:]] == done.stdout.decode().split("\0")[:-1], command
        assert all(len(word["text"].encode("utf-16-le")) == 2 * len(word["at"]) for word in words)


BODY = {"messages": [{"role": "user", "content": 'it\'s "this"\n$x `y` \\ é 🌍'}], "temperature": 0}
JSON = json.dumps(BODY)
DOUBLE = '"' + "".join(f"\\{one}" if one in '"\\$`' else one for one in JSON) + '"'
ANSI = "$'" + JSON.replace("\\", "\\\\").replace("'", "\\'") + "'"


def of_windows(text: str) -> str:
    """A text as a word of Windows' command line, as browsers copy it: quotes for the program, carets for the line."""
    quoted = '"' + re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text)) + '"'
    return re.sub(r"[^\w\s:=+~'/.,?;()*`-]", r"^\g<0>", quoted, flags=re.ASCII).replace("\n", "^\n\n")


POWERSHELL = "'" + JSON.replace("'", "''") + "'"
EXPANDED = re.sub(r"([\\\\$`])", r"\\\1", JSON)
COMMANDS = [
    JSON,
    f"\n  {json.dumps(BODY, indent=2)}\n",
    f"curl http://x/v1/chat/completions -d {shlex.quote(JSON)}",
    f"$ curl -X POST http://x -H 'Content-Type: application/json' --data {shlex.quote(JSON)}",
    f"curl --data-raw {ANSI} 'http://x' --compressed",
    f"curl -sSNd{shlex.quote(JSON)} http://x | jq .",
    f"curl http://x --json {DOUBLE}",
    f"curl http://x \\\r\n  -H 'A: b' \\\r\n  --data-binary {DOUBLE}\r\n",
    f"curl -d @- http://x <<'EOF'\n{json.dumps(BODY, indent=1)}\nEOF\necho done",
    f'curl http://x --data-binary @- <<-"E O F" -H "Authorization: Bearer $KEY"\n\t{JSON}\n\tE O F\n',
    f"curl -d @- http://x <<EOF\n{EXPANDED}\nEOF",
    f"cat <<'EOF' | curl http://x -d @-\n{JSON}\nEOF",
    f"echo {shlex.quote(JSON)} | curl http://x --json @-",
    f"curl {of_windows('http://x?a&c')} ^\r\n  -H {of_windows('A: b')} ^\r\n  --data-raw {of_windows(JSON)}&\r\n",
    f"C:\\Users\\me> curl.exe http://x {of_windows('--json')} {of_windows(json.dumps(BODY, indent=2))}",
    'curl http://x ^\n -d "' + re.sub(r'(\\*)"', r'\1\1\\"', JSON) + '" -s\n',
    f"curl.exe http://x `\r\n  -H 'A: b' `\r\n  --json {POWERSHELL}",
    f"export A=b\n# a comment with 'one quote\nA=b /usr/bin/curl http://x -d @- <<< {shlex.quote(JSON)}",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_a_pasted_command_becomes_its_request(text: str) -> None:
    assert in_node(PARSE, [text]) == [{"request": BODY}]


REFUSED = {
    "": (1, "Paste a curl command"),
    "print('hello')": (1, "Neither a curl command nor JSON"),
    "curl http://x": (1, "sends no body"),
    "curl http://x -d 'open": (1, "quote that begins here has no end"),
    "curl http://x \\\n  -d @body.json": (2, "The file body.json cannot be read"),
    "curl http://x -d @-": (1, "a here-document"),
    "curl http://x -G \\\n-d a": (1, "must be a POST"),
    "curl http://x \\\n -F a=b": (2, "A form is no request"),
    'curl http://x -d "{\n\\"messages\\": [],\n\\"a\\": \\"$A\\"}"': (3, "Only a shell knows $A"),
    'curl http://x -d @- <<E\n{"messages": [],\n "a": $(id)}\nE': (3, "Only a shell knows $(id)"),
    'curl http://x -d ^\n  ^"{}^"': (2, "no messages"),
    'curl http://x ^\r\n -d ^"{^\\^"messages^\\^":^\n\n5}^"': (4, "messages: must be an array"),
    "curl http://x -d 'a=b'": (1, "cannot begin with"),
    "curl http://x -d '[]'": (1, "must be an object"),
    'curl http://x -d \'{"prompt": "a"}\'': (1, "raw completions"),
    "curl http://x -d '{\"a\": 1}'": (1, "no messages"),
    '{"messages": [\n{"role": "user", "content": "a"},\n{"role": "pirate", "content": "a"}]}': (3, "messages[1].role"),
    '{"messages": [{"role": "user",\n "content": 5}]}': (2, "messages[0].content"),
    '{"messages": [{"role": "user", "content":\n[{"type": "audio"}]}]}': (2, "messages[0].content[0]"),
    '{"messages": [],\n"messages": []}': (2, 'The name "messages" stands here twice'),
    '{"messages": [],\n\n"seed": 9007199254740993}': (3, "cannot hold the number 9007199254740993"),
    '{"messages": [],\n"a": "b\nc"}': (2, "must be escaped"),
    '{"messages": [],\n}': (2, "Nothing follows the comma"),
    '{"messages": []}\n}': (2, "Nothing may follow"),
    '{"messages": [],\n"choice": ["a", 1]}': (2, "must hold texts alone"),
    '{"messages": [],\n"tools": {}}': (2, "tools: must be an array"),
    '{"a": ' + "[" * 1000: (1, "Nested deeper"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_taken_is_refused_at_its_line(text: str) -> None:
    (found,) = in_node(PARSE, [text])
    line, words = REFUSED[text]
    assert words in found["error"] and found["line"] == line


def test_json_is_read_as_the_language_reads_it() -> None:
    """What JSON.parse takes comes out the same, and what it refuses is refused, but for what is refused on purpose."""
    rng = random.Random(5)
    texts = [json.dumps(one, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2])) for one in requests(3, 60)]
    for text in texts[:60]:
        at = rng.randrange(len(text))
        texts += [
            text[:at] + rng.choice(["", '"', "}", "]", ",", "\\", "\n", "0", "é", ":"]) + text[at + 1 :],
            text[:at],
        ]
    read = """
        const { readJson } = await load("core/json.js");
        const tried = (read, text) => {
          try { return { value: read(text) }; } catch ({ message, at }) { return { message, at }; }
        };
        out = given.map((text) => [
          tried(JSON.parse, text), tried((one) => readJson(one).value, text), text.length,
        ]);
    """
    found = in_node(read, texts)
    for text, (theirs, ours, length) in zip(texts, found, strict=True):
        if "value" in ours:
            assert ours == theirs, text
        else:
            on_purpose = "twice" in ours["message"] or "hold the number" in ours["message"]
            assert 0 <= ours["at"] <= length and (on_purpose or "value" not in theirs), (text, ours)
    assert sum("value" in ours for _, ours, _ in found) >= 60
