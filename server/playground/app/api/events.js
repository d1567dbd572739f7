/** Server-sent events, read as they arrive. */

/**
 * One event, or one comment that says the stream lives.
 * @typedef {{at: number, data: string} | {at: number, comment: string}} StreamEvent `at` in ms of `performance.now()`
 */

/**
 * What a browser says of a broken connection is "network error" or less.
 * @param {unknown} error
 * @returns {never}
 */
function told(error) {
  throw error instanceof TypeError ? new Error("The connection ended before the answer did") : error;
}

/**
 * The events of a stream. Characters, line ends and events may be cut anywhere between two pieces.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<StreamEvent>}
 * @throws {Error} where the connection breaks
 */
export async function* readEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(told);
      const at = performance.now();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A return at the end may be the first half of a line end.
      const whole = done || !rest.endsWith("\r") ? rest : rest.slice(0, -1);
      const lines = whole.split(/\r\n|\n|\r/);
      rest = (lines.pop() ?? "") + rest.slice(whole.length);
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { at, data: data.join("\n") };
          data = [];
        } else if (line.startsWith(":")) {
          yield { at, comment: line.slice(1).trim() };
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
