"""What the pages reckon with: the tree of a conversation, cut streams, answers in pieces, differences."""

import itertools
import random
from typing import Any

import pytest

from tests.server.playground.hazards import ODD, TEXTS
from tests.server.playground.node import in_node, needs_node

pytestmark = needs_node

WALK = """
const { Talk, newRecord } = await load("talk/talk.js");
const faults = [];
const picture = (talk) => JSON.stringify([talk.path.value, [...talk.children.value].sort()]);
function check(talk, what) {
  const seen = new Set();
  const open = [""];
  while (open.length) {
    for (const id of talk.children.value.get(open.pop()) ?? []) {
      if (seen.has(id)) faults.push(what + ": a message has two places");
      seen.add(id);
      open.push(id);
    }
  }
  if (seen.size !== talk.messages.size) faults.push(what + ": not every message can be reached");
  const path = talk.path.value;
  path.forEach((id, index) => {
    if (index && talk.peek(id).parent !== path[index - 1]) faults.push(what + ": the path is broken");
  });
  if (path.length && talk.children.value.get(path.at(-1))) faults.push(what + ": the path ends too early");
}
out = given.map((moves) => {
  const talk = new Talk(newRecord());
  for (const [kind, where] of moves) {
    const path = talk.path.value;
    const ids = [...talk.messages.keys()];
    const id = path[Math.floor(where * path.length)];
    const before = picture(talk);
    if (kind === "add" || !id) {
      const added = talk.add(path.at(-1) ?? null, { role: "user", content: kind });
      if (talk.path.value.at(-1) !== added) faults.push("add: what was added is not shown");
    } else if (kind === "branch") {
      const added = talk.add(talk.peek(id).parent, { role: "user", content: kind });
      if (!talk.path.value.includes(added)) faults.push("branch: what was added is not shown");
      if (!talk.siblings(added).includes(id)) faults.push("branch: not beside the other");
    } else if (kind === "choose") {
      const any = ids[Math.floor(where * ids.length)];
      talk.choose(any);
      const siblings = talk.siblings(any);
      const shown = talk.path.value.find((one) => siblings.includes(one));
      if (shown !== undefined && shown !== any) faults.push("choose: another is shown");
    } else if (kind === "remove") {
      const rest = path.filter((one) => one !== id);
      const undo = talk.remove(id);
      if (talk.messages.has(id)) faults.push("remove: it is still there");
      check(talk, "remove");
      const inside = path.at(-1) !== id;
      if (inside && JSON.stringify(talk.path.value) !== JSON.stringify(rest)) faults.push("remove: others left");
      if (where < 0.5) {
        undo();
        if (picture(talk) !== before) faults.push("undo: not as it was");
      }
    } else if (kind === "move") {
      const step = where < 0.5 ? -1 : 1;
      const other = path[path.indexOf(id) + step];
      talk.move(id, step);
      if (!other && picture(talk) !== before) faults.push("move: moved over the end");
      if (other) {
        const wanted = path.map((one) => (one === id ? other : one === other ? id : one));
        if (JSON.stringify(talk.path.value) !== JSON.stringify(wanted)) faults.push("move: the two are not exchanged");
      }
    }
    check(talk, kind);
  }
  const again = new Talk(talk.record.value, [...talk.messages.values()].map((one) => one.value).reverse());
  if (picture(again) !== picture(talk)) faults.push("kept: not as it was");
  return faults.splice(0);
});
"""


def test_a_conversation_stays_a_tree_whatever_is_done_to_it() -> None:
    chance = random.Random(16)
    kinds = ["add", "add", "branch", "choose", "remove", "move"]
    walks = [[[chance.choice(kinds), chance.random()] for _ in range(40)] for _ in range(200)]
    for number, faults in enumerate(in_node(WALK, walks)):
        assert faults == [], (walks[number], faults)


READ = """
const { readEvents } = await load("api/events.js");
out = [];
for (const pieces of given) {
  const stream = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
      controller.close();
    },
  });
  const events = [];
  for await (const { data, comment } of readEvents(stream)) events.push(data ?? ": " + comment);
  out.push(events);
}
"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_the_same_wherever_a_stream_is_cut(end: str) -> None:
    lines = ['data: {"a": "é 🌍 \u2028"}', "", ": alive", "", "data: one", "data:two", "", "event: x", ""]
    whole = end.join([*lines, "data: [DONE]", "", ""]).encode()
    chance = random.Random(3)
    cuts = [sorted(chance.sample(range(1, len(whole)), chance.randint(0, 20))) for _ in range(100)]
    cuts.append(list(range(1, len(whole))))
    streams = [
        [list(whole[begin:stop]) for begin, stop in zip([0, *cut], [*cut, len(whole)], strict=True)] for cut in cuts
    ]
    wanted = ['{"a": "é 🌍 \u2028"}', ": alive", "one\ntwo", "[DONE]"]
    for cut, events in zip(cuts, in_node(READ, streams), strict=True):
        assert events == wanted, cut


def test_an_event_without_an_end_is_none() -> None:
    assert in_node(READ, [[list(b"data: whole\n\ndata: hal")], []]) == [["whole"], []]


def test_a_connection_that_breaks_is_told_in_words() -> None:
    script = """
    const { readEvents } = await load("api/events.js");
    const told = async (error) => {
      const stream = new ReadableStream({ start: (one) => one.error(error) });
      try { for await (const event of readEvents(stream)) void event; } catch (one) { return one.message; }
    };
    out = [await told(new TypeError("network error")), await told(new DOMException("stopped", "AbortError"))];
    """
    assert in_node(script, None) == ["The connection ended before the answer did", "stopped"]


def test_the_pieces_of_an_answer_are_laid_end_to_end() -> None:
    script = """
    const { nothing, addPiece } = await load("talk/assemble.js");
    out = given.map((choices) => {
      const answer = nothing();
      for (const choice of choices) addPiece(answer, choice);
      return answer;
    });
    """
    call: dict[str, Any] = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}
    more = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    answers = in_node(
        script,
        [
            [{"delta": {"role": "assistant", "content": ""}}, {"delta": {"content": "a"}}, {"delta": {"content": "b"}}],
            [{"delta": {"reasoning": "x", "reasoning_content": "x"}}, {"delta": {"reasoning_content": "y"}}],
            [{"delta": {"tool_calls": [call, second]}}, {"delta": {"content": None, "tool_calls": [more]}}],
            [{"delta": {}, "logprobs": {"content": [{"token": "t"}]}}, {"finish_reason": "length"}, {"delta": None}],
        ],
    )
    assert answers[0]["content"] == "ab" and answers[0]["calls"] == []
    assert answers[1]["reasoning"] == "xy", "one thought, though it is told under two names"
    assert answers[2]["calls"] == [
        {"id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"id": "c2", "name": "g", "arguments": "{}"},
    ]
    assert answers[3]["tokens"] == [{"token": "t"}] and answers[3]["finish"] == "length"


def test_a_difference_holds_both_texts() -> None:
    chance = random.Random(5)
    words = ["a", "b", "c", " ", "\n", ".", "é", "🌍", "naïve", *TEXTS]
    pairs = [["".join(chance.choices(words, k=chance.randint(0, 30))) for _ in range(2)] for _ in range(200)]
    pairs += [["The sea is wide.", "The man was wide."], ["a b", "a, new b"]]
    pairs += [["", ""], ["same words", "same words"], ["one", ""], ["", "two"], ["x " * 4000, "y"]]
    script = """
    const { difference } = await load("text/difference.js");
    out = given.map(([before, after]) => difference(before, after));
    """
    found = in_node(script, pairs)
    assert found.pop() is None, "too long to be compared"
    assert [(piece["kind"], piece["text"]) for piece in found[-6]] == [
        ("same", "The "), ("gone", "sea is"), ("new", "man was"), ("same", " wide."),
    ], "phrases, not words in turn"  # fmt: skip
    assert "gone" not in [piece["kind"] for piece in found[-5]], "what only came is not struck"
    assert found[-4] == [] and found[-3] == [{"kind": "same", "text": "same words"}]
    for (before, after), pieces in zip(pairs, found, strict=False):
        assert "".join(piece["text"] for piece in pieces if piece["kind"] != "new") == before
        assert "".join(piece["text"] for piece in pieces if piece["kind"] != "gone") == after
        kinds = [piece["kind"] for piece in pieces]
        assert all(one != other for one, other in itertools.pairwise(kinds)), "pieces of a kind are one"


def test_a_request_that_becomes_a_conversation_is_asked_as_it_was() -> None:
    script = """
    const { fromRequest } = await load("talk/given.js");
    const { requestOf, forPrograms } = await load("talk/request.js");
    out = given.map((body) => {
      const { settings, messages } = fromRequest(body);
      return forPrograms(requestOf(settings, messages, { continues: body.continue_final_message === true }));
    });
    """
    for body, again in zip(ODD, in_node(script, ODD), strict=True):
        del again["stream"], again["stream_options"]
        assert again == body


INCOMING = """
const { read } = await load("state/incoming.js");
out = given.map((talks) => read({ headrace: 1, talks }).map(({ record, messages }) => ({
  owned: record.owner !== null, columns: record.columns.length,
  ids: new Set([record.id, ...messages.map(({ id }) => id)]).size,
  roots: messages.filter(({ parent }) => parent === null).length, count: messages.length,
})));
"""


def one_kept(*messages: tuple[str, str | None], **record: Any) -> dict[str, Any]:
    said = [{"id": name, "parent": parent, "role": "user", "content": name} for name, parent in messages]
    return {"record": {"id": "t"} | record, "messages": said}


def test_a_broken_file_keeps_all_that_is_in_it() -> None:
    """Whatever leads in a circle or nowhere, stands twice or belongs to nobody is shown, as a beginning of its own."""
    beside = [one_kept(("m", None), id=f"c{index}", owner="t") for index in range(5)]
    many = one_kept(("a", None), columns=[*(f"c{index}" for index in range(5)), "c0", "t", "gone"])
    files = [
        [one_kept(("a", "b"), ("b", "a"), ("c", "b"))],
        [one_kept(("a", "a"), ("b", "gone"), ("c", "b"))],
        [one_kept(("a", None), ("a", None)), one_kept(("a", None))],
        [one_kept(("a", None), owner="nobody")],
        [many, *beside],
        [None, 5, one_kept(("a", None)) | {"messages": [None, 7, {"id": "a"}]}],
    ]
    found = in_node(INCOMING, files)
    assert [[one["count"] for one in file] for file in found] == [[3], [3], [2, 1], [1], [1] * 6, [1]]
    assert [[one["roots"] for one in file] for file in found] == [[1], [2], [2, 1], [1], [1] * 6, [1]]
    assert all(one["ids"] == one["count"] + 1 for file in found for one in file)
    assert not found[3][0]["owned"]
    assert found[4][0]["columns"] == 3 and [one["owned"] for one in found[4]] == [False, *[True] * 3, False, False]


def test_a_conversation_of_more_messages_than_a_page_can_show_is_refused_with_the_number() -> None:
    """However many conversations there are: what the page exports itself it takes back."""
    tried = """
    const { read } = await load("state/incoming.js");
    out = given.map((counts) => {
      const said = (count) => Array.from({ length: count }, (_, at) => ({ id: String(at), role: "user", content: "" }));
      const talks = counts.map((count, at) => ({ record: { id: `t${at}` }, messages: said(count) }));
      try { return read({ headrace: 1, talks }).reduce((sum, { messages }) => sum + messages.length, 0); }
      catch (error) { return error.message; }
    });
    """
    found = in_node(tried, [[20_000], [100] * 250, [5, 20_001]])
    assert found[:2] == [20_000, 25_000] and "has 20001 messages; at most 20000" in found[2]


def test_a_circle_of_any_length_has_one_beginning() -> None:
    rng = random.Random(3)
    talks = []
    for _ in range(50):
        count = rng.randint(1, 30)
        names = [str(index) for index in range(count)]
        talk = one_kept(*((name, rng.choice([*names, None, "gone"])) for name in names))
        talks.append([talk])
    walk = """
    const { read } = await load("state/incoming.js");
    const { Talk } = await load("talk/talk.js");
    out = given.map((talks) => {
      const [{ record, messages }] = read({ headrace: 1, talks });
      const { children } = new Talk(record, messages);
      const seen = [];
      const walk = (id) => (children.value.get(id) ?? []).forEach((one) => (seen.push(one), walk(one)));
      walk("");
      return [seen.length, new Set(seen).size];
    });
    """
    assert in_node(walk, talks) == [[len(talk["messages"])] * 2 for (talk,) in talks]
