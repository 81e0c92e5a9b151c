// All elements are made here. Text is inserted as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const SIGNS = { better: "▲", equal: "=", worse: "▼", "not enough data": "?", informational: "·" };
const CLASSES = { better: "better", equal: "equal", worse: "worse", "not enough data": "unsure", informational: "informational" };

function verdictClass(verdict) {
  return CLASSES[verdict] || "informational";
}

function badge(verdict, words) {
  return element("span", { class: "verdict " + verdictClass(verdict) },
    element("span", { "aria-hidden": "true" }, SIGNS[verdict] || "·"), words);
}

function dot(side) {
  return element("span", { class: "dot " + side, "aria-hidden": "true" });
}

function sideLegend() {
  return element("div", { class: "legend soft" },
    element("span", {}, dot("original"), "original"), element("span", {}, dot("pruned"), "pruned"));
}
