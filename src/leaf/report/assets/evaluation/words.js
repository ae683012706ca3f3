"use strict";
// The difference of two texts, word by word.
const words = (() => {
  const { element } = leaf;
  // A word is a run of letters and digits, with apostrophes and hyphens inside. Any other sign is on its own, as is
  // every character of the scripts that write without spaces.
  const UNSPACED = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}";
  const WORD = `(?:(?![${UNSPACED}])[\\p{L}\\p{N}\\p{M}])+`;
  const PIECES = new RegExp(`\\s+|${WORD}(?:['’-]${WORD})*|.`, "gu");
  const HAS_UNSPACED = new RegExp(`[${UNSPACED}]`, "u");
  const MOST_CELLS = 400000; // of the table below: some hundreds of words on both sides

  // [{text, key, before}]: `key` is what is compared, `before` the space in front.
  function split(text, lowercase) {
    const found = [];
    // The first word of one text may come to stand after words of the other.
    let before = HAS_UNSPACED.test(text) ? "" : " ";
    for (const piece of text.match(PIECES) || []) {
      const space = !piece.trim();
      if (!space) found.push({ text: piece, key: lowercase ? piece.toLowerCase() : piece, before });
      before = space ? " " : "";
    }
    return found;
  }

  function commonStart(x, y) {
    let count = 0;
    while (count < x.length && count < y.length && x[count].key === y[count].key) count += 1;
    return count;
  }

  // Table of (x.length + 1) rows: at [i, j] the length of the longest common subsequence of x from i and y from j on.
  function commonLengths(x, y) {
    const width = y.length + 1;
    const length = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i -= 1) {
      for (let j = y.length - 1; j >= 0; j -= 1) {
        const at = i * width + j;
        length[at] = x[i].key === y[j].key ? length[at + width + 1] + 1 : Math.max(length[at + width], length[at + 1]);
      }
    }
    return length;
  }

  // [[kind, token]]: what x and y have in common is "same", the rest of x "missing" and the rest of y "extra".
  function aligned(x, y) {
    if (x.length * y.length > MOST_CELLS) {
      // Thousands of words on both sides would take too long: all are taken as replaced.
      return [...x.map((token) => ["missing", token]), ...y.map((token) => ["extra", token])];
    }
    const found = [];
    const width = y.length + 1;
    const length = commonLengths(x, y);
    let [i, j] = [0, 0];
    while (i < x.length || j < y.length) {
      const at = i * width + j;
      if (i < x.length && j < y.length && x[i].key === y[j].key) {
        found.push(["same", y[j]]);
        i += 1;
        j += 1;
      } else if (j === y.length || (i < x.length && length[at + width] >= length[at + 1])) {
        found.push(["missing", x[i]]); // before what is extra, where both are as good
        i += 1;
      } else {
        found.push(["extra", y[j]]);
        j += 1;
      }
    }
    return found;
  }

  // Runs [{kind: "same" | "missing" | "extra", tokens}].
  function difference(reference, prediction, lowercase) {
    const [r, p] = [split(reference, lowercase), split(prediction, lowercase)];
    // Most answers are right but for a few words, so the table is needed for the middle alone.
    const head = commonStart(r, p);
    const tail = commonStart(r.slice(head).reverse(), p.slice(head).reverse());
    const middle = aligned(r.slice(head, r.length - tail), p.slice(head, p.length - tail));
    const same = (tokens) => tokens.map((token) => ["same", token]);
    const runs = [];
    for (const [kind, token] of [...same(p.slice(0, head)), ...middle, ...same(p.slice(p.length - tail))]) {
      if (runs.at(-1)?.kind === kind) runs.at(-1).tokens.push(token);
      else runs.push({ kind, tokens: [token] });
    }
    return runs;
  }

  // Make an element of a prediction, in which words are marked that it misses or adds against the reference.
  function marked(reference, prediction, lowercase) {
    if (!prediction.trim()) return element("span.said.dim", {}, "(empty)");
    const line = element("span.said", { dir: "auto" });
    if (!reference) {
      line.textContent = prediction;
      return line;
    }
    difference(reference, prediction, lowercase).forEach(({ kind, tokens }, at) => {
      const text = tokens.map((token, i) => (i ? token.before : "") + token.text).join("");
      if (at) line.append(tokens[0].before);
      line.append({ same: text, missing: element("del", {}, text), extra: element("ins", {}, text) }[kind]);
    });
    return line;
  }

  return { marked };
})();
