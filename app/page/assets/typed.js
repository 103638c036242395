// A person's own message: every character as it was written. What looks like code is set in a fixed-width font.

const FENCE = /^\s*(```|~~~)/;
const CODE_END = /[;{}]\s*(\/\/.*|#.*)?$|^\s*[)\]}]+[;,]?$|=>\s*$/;
const CODE_BEGIN =
  /^\s*(def |class |import |from \S+ import|return\b|#include|const |let |var |function\b|public |private |static |async |fn |func |package |using |if \(|if .+:$|elif |else\b.*[:{]$|for \(|for .+ in .+:$|while .+[:{]|try[:{ ]|except|catch|@\w+|\/\/|\/\*|<\/?[a-z][\w-]*[\s>]|SELECT |INSERT |UPDATE |CREATE |\$ |>>> |sudo |pip |npm |git |File ".*", line|Traceback|at \S+\()/;
const ASSIGNMENT =
  /^\s*[\w.[\]"']+\s*(=|\+=|-=|:=)\s*\S|^\s*[\w.]+\(.*\)\s*$|^\s*(pass|break|continue|end|fi|done)\s*$|^\s*"[\w-]+":\s/;
const LEAST = 0.6; // of the lines of a paragraph
const LONGEST = 200000; // characters: a longer message is not searched for code
const SEEN = 200; // characters at each end of a line: enough to tell

// Puts `text` into `box`: text nodes, and spans around code. The box's text is exactly `text`.
export function showTyped(box, text) {
  if (text.length > LONGEST) {
    box.textContent = text;
    return;
  }
  let plain = "";
  for (const { lines, isCode } of pieces(text.split("\n"))) {
    if (!isCode) {
      plain += lines;
      continue;
    }
    box.append(plain);
    plain = "";
    const span = document.createElement("span");
    span.className = "kw-typed-code";
    span.textContent = lines;
    box.append(span);
  }
  if (plain) box.append(plain);
}

// Runs of lines, each with its line ends: fenced code, paragraphs that look like code, and everything else.
function pieces(lines) {
  const found = [];
  let at = 0;
  const take = (end, isCode) => {
    const piece = lines.slice(at, end).join("\n") + (end < lines.length ? "\n" : "");
    const last = found.at(-1);
    if (last?.isCode === isCode) last.lines += piece;
    else found.push({ lines: piece, isCode });
    at = end;
  };
  while (at < lines.length) {
    const fence = FENCE.exec(lines[at]);
    let end = at + 1;
    if (fence) {
      while (end < lines.length && !lines[end].trimStart().startsWith(fence[1])) end++;
      take(Math.min(end + 1, lines.length), true);
    } else if (!lines[at].trim()) {
      while (end < lines.length && !lines[end].trim()) end++;
      // Empty lines between two pieces of code belong to it.
      const next = paragraphEnd(lines, end);
      take(end, found.at(-1)?.isCode === true && next > end && looksLikeCode(lines.slice(end, next)));
    } else {
      end = paragraphEnd(lines, at);
      take(end, looksLikeCode(lines.slice(at, end)));
    }
  }
  return found;
}

function paragraphEnd(lines, start) {
  let end = start;
  while (end < lines.length && lines[end].trim() && !FENCE.test(lines[end])) end++;
  return end;
}

function looksLikeCode(lines) {
  if (lines.length < 2) return false;
  const code = lines.filter((line) => {
    const begin = line.slice(0, SEEN);
    return CODE_END.test(line.slice(-SEEN)) || CODE_BEGIN.test(begin) || ASSIGNMENT.test(begin);
  });
  return code.length >= 2 && code.length >= LEAST * lines.length;
}
