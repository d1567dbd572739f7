/** Two texts, word by word: what stands in one of them alone. */

/** Of longer texts the difference is not computed: it takes time and memory with the product of their words. */
export const MOST_WORDS = 3000;

/** @typedef {{kind: "same" | "gone" | "new", text: string}} Piece */

/** @param {string} text */
const words = (text) => text.match(/\s+|[^\s\w]|\w+/gu) ?? [];

/**
 * The second text with what it lacks of the first, in order; null where they are too long.
 * @param {string} before
 * @param {string} after
 * @returns {Piece[] | null}
 */
export function difference(before, after) {
  const a = words(before);
  const b = words(after);
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
  const width = b.length + 1;
  // Lengths of the longest common subsequences of the ends that begin at (i, j).
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  /** @type {Piece[]} */
  const pieces = [];
  /** @param {Piece["kind"]} kind @param {string} text */
  const put = (kind, text) => {
    const last = pieces[pieces.length - 1];
    if (last?.kind === kind) last.text += text;
    else pieces.push({ kind, text });
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) put("same", (j++, a[i++]));
    else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) put("gone", a[i++]);
    else put("new", b[j++]);
  }
  return phrases(pieces);
}

/**
 * Changes between which only spaces stayed become one: what was said, then what is said, instead of word by word in turn.
 * @param {Piece[]} pieces
 * @returns {Piece[]}
 */
function phrases(pieces) {
  /** @type {Piece[]} */
  const found = [];
  /** @type {Piece[]} */
  let run = [];
  const end = () => {
    const [gone, fresh] = [text(run, "new"), text(run, "gone")];
    if (gone.trim() && fresh.trim()) found.push({ kind: "gone", text: gone }, { kind: "new", text: fresh });
    else found.push(...run);
    run = [];
  };
  pieces.forEach((piece, at) => {
    if (piece.kind !== "same") run.push(piece);
    else if (run.length && at < pieces.length - 1 && /^[^\S\n]+$/.test(piece.text)) run.push(piece);
    else {
      end();
      found.push(piece);
    }
  });
  end();
  return found;
}

/** @param {Piece[]} run @param {Piece["kind"]} without */
const text = (run, without) => run.reduce((all, piece) => (piece.kind === without ? all : all + piece.text), "");
