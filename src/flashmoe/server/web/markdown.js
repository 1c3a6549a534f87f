// Markdown to DOM nodes. No HTML is ever parsed, so a model's text cannot become markup or script.

const FENCE = /^\s*```(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function link(text, address) {
  const node = element("a", text);
  node.href = address;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  return node;
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, match.index));
    const [whole, code, strong, em, label, address] = match;
    if (code) nodes.push(element("code", code.slice(1, -1)));
    else if (strong) nodes.push(element("strong", ...inline(strong.slice(2, -2))));
    else if (em) nodes.push(element("em", ...inline(em.slice(1, -1))));
    else nodes.push(link(label, address));
    end = match.index + whole.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

function codeBlock(lines, at) {
  let end = at + 1;
  while (end < lines.length && !FENCE.test(lines[end])) end++;
  return [element("pre", element("code", lines.slice(at + 1, end).join("\n"))), end + 1];
}

function list(lines, at) {
  const ordered = ITEM.exec(lines[at])[1] !== undefined;
  const node = element(ordered ? "ol" : "ul");
  if (ordered) node.start = Number(ITEM.exec(lines[at])[1]);
  for (let match; at < lines.length && (match = ITEM.exec(lines[at])); at++) {
    if ((match[1] !== undefined) !== ordered) break;
    node.append(element("li", ...inline(match[2])));
  }
  return [node, at];
}

function paragraph(lines, at) {
  const node = element("p");
  const begin = at;
  while (at < lines.length && lines[at].trim() && (at === begin || !startsBlock(lines[at]))) {
    if (at > begin) node.append(element("br"));
    node.append(...inline(lines[at++]));
  }
  return [node, at];
}

const startsBlock = (line) => FENCE.test(line) || ITEM.test(line) || HEADING.test(line);

function block(lines, at) {
  const heading = HEADING.exec(lines[at]);
  if (heading) return [element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2])), at + 1];
  if (FENCE.test(lines[at])) return codeBlock(lines, at);
  return ITEM.test(lines[at]) ? list(lines, at) : paragraph(lines, at);
}

/** The nodes of a text: headings, paragraphs, lists, code, emphasis, links to http(s). */
export function markdown(text) {
  const lines = text.split("\n");
  const nodes = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [node, next] = block(lines, at);
    nodes.push(node);
    at = next;
  }
  return nodes;
}
