// Answers side by side. The filters are kept in the address, so that a view can be shared.
const PAGE_SIZE = 20;

function exampleSection(report) {
  const all = report.suites.flatMap((suite) => suite.examples.map((example) => prepare(suite, example)));
  if (!all.length) return null;
  const list = element("div", { id: "list" }), count = element("output", { id: "count", class: "soft", "aria-live": "polite" });
  const more = element("button", { class: "more", type: "button", onclick: () => { state.most += PAGE_SIZE; draw(); } }, "Show more");
  const state = { most: PAGE_SIZE };
  const controls = filterControls(all, () => { state.most = PAGE_SIZE; remember(controls); draw(); });

  function draw() {
    const wanted = readControls(controls), found = all.filter((one) => matches(one, wanted));
    const shown = found.slice(0, state.most);
    list.replaceChildren(...(shown.length ? shown.map(exampleCard) : [element("p", { class: "empty" }, "No answer matches these filters.")]));
    count.textContent = found.length.toLocaleString("en") + " of " + all.length.toLocaleString("en") + " examples";
    more.hidden = found.length <= state.most;
  }
  const reset = element("button", { type: "button", onclick: () => { writeControls(controls, new URLSearchParams()); remember(controls); draw(); } }, "Reset");
  const restore = () => { if (location.hash.includes("=")) { writeControls(controls, new URLSearchParams(location.hash.slice(1))); draw(); } };
  window.addEventListener("hashchange", restore);
  restore();
  draw();
  return [element("div", { class: "head" }, element("h2", { id: "answers-title" }, "Answers, side by side"), count),
    element("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }, Object.values(controls).map((one) => one.label), reset),
    list, more, leftOut(report)];
}

function prepare(suite, example) {
  const labels = { suite: suite.name, ...example.labels };
  const different = example.answers[0] !== example.answers[1], spans = example.spans.some((side) => side.length > 0);
  const text = [example.item, example.prompt, ...example.answers, example.reference || ""].join("\n").toLowerCase();
  return { suite, example, labels, different, spans, text };
}

function leftOut(report) {
  const cut = report.suites.filter((suite) => suite.examples_total > suite.examples.length)
    .map((suite) => suite.name + " " + suite.examples.length + " of " + suite.examples_total.toLocaleString("en"));
  return cut.length > 0 && element("p", { class: "note" }, "Shown here: " + cut.join(", ") + ". The journal contains every answer.");
}

// One control for each label, in the order of first occurrence.
function filterControls(all, changed) {
  const values = new Map();
  for (const { labels } of all) for (const [name, value] of Object.entries(labels)) {
    if (!values.has(name)) values.set(name, new Set());
    values.get(name).add(value);
  }
  const controls = Object.create(null);
  for (const [name, set] of values) if (set.size > 1) {
    const input = element("select", { onchange: changed }, element("option", { value: "" }, "all"),
      [...set].sort().map((value) => element("option", { value }, value)));
    controls["label:" + name] = { input, label: element("label", {}, name, input) };
  }
  for (const [name, words] of [["different", "only different"], ["spans", "only highlighted"]]) {
    const input = element("input", { type: "checkbox", onchange: changed });
    controls[name] = { input, label: element("label", { class: "check" }, input, words) };
  }
  const input = element("input", { type: "search", oninput: changed, placeholder: "in prompts and answers" });
  controls.search = { input, label: element("label", { class: "wide" }, "search", input) };
  return controls;
}

function readControls(controls) {
  return Object.entries(controls).map(([name, { input }]) => [name, input.type === "checkbox" ? (input.checked ? "1" : "") : input.value]).filter(([, value]) => value);
}

function writeControls(controls, wanted) {
  for (const [name, { input }] of Object.entries(controls)) {
    const value = wanted.get(name.replace("label:", "")) || "";
    if (input.type === "checkbox") input.checked = value !== "";
    else input.value = value;
    if (input.value !== value && input.type === "select-one") input.value = "";
  }
}

function remember(controls) {
  const wanted = new URLSearchParams(readControls(controls).map(([name, value]) => [name.replace("label:", ""), value]));
  history.replaceState(null, "", "#" + (wanted.toString() || "answers"));
}

function matches(one, wanted) {
  return wanted.every(([name, value]) => {
    if (name === "search") return one.text.includes(value.toLowerCase());
    if (name === "different") return one.different;
    if (name === "spans") return one.spans;
    return one.labels[name.slice("label:".length)] === value;
  });
}

function exampleCard(one) {
  const { example, labels, different } = one;
  const chips = Object.entries(labels).map(([name, value]) => element("span", { class: "chip", title: name }, name === "temperature" ? "T = " + value : value));
  if (!("verdict" in labels)) chips.push(element("span", { class: "chip strong" }, different ? "different" : "identical"));
  const points = example.answers.map((answer) => Array.from(answer));
  const fork = different ? firstDifference(...points) : -1;
  const sides = ["original", "pruned"].map((side, index) => answerBlock(side, points[index], example.spans[index], fork));
  return element("article", { class: "example", "data-item": example.item },
    element("div", { class: "chips" }, chips, element("span", { class: "chip" }, example.item)),
    element("div", { class: "prompt text" + (example.prompt.length > 1200 ? " long" : ""), dir: "auto" }, visible(example.prompt)),
    element("div", { class: "pair" }, sides),
    example.reference !== null && element("div", { class: "reference text", dir: "auto" }, "Reference: ", visible(example.reference)));
}

function firstDifference(first, second) {
  let index = 0;
  while (index < first.length && index < second.length && first[index] === second[index]) index++;
  return index;
}

// Spans count characters, while JavaScript counts UTF-16 halves; hence the list of characters.
function answerBlock(side, characters, spans, fork) {
  const parts = [], cut = (from, to) => pieces(characters, from, to, fork);
  let end = 0;
  for (const span of spans) {
    parts.push(cut(end, span.start), element("mark", { title: span.why }, cut(span.start, span.end)));
    end = span.end;
  }
  parts.push(cut(end, characters.length));
  if (fork >= characters.length) parts.push(forkMark());
  const reasons = new Map();
  for (const { why } of spans) reasons.set(why, (reasons.get(why) || 0) + 1);
  const why = [...reasons].map(([reason, times]) => reason + (times > 1 ? " (" + times + " times)" : "")).join(", ");
  const long = characters.length > 1200;
  return element("div", { class: "answer" }, element("div", { class: "who" }, dot(side), side),
    element("div", { class: "text" + (long ? " long" : ""), dir: "auto", tabindex: long ? "0" : null },
      characters.length ? parts : element("span", { class: "soft" }, "(empty)")),
    why && element("div", { class: "why" }, "highlighted: " + why));
}

function pieces(characters, from, to, fork) {
  if (fork < from || fork >= to) return visible(characters.slice(from, to).join(""));
  return [visible(characters.slice(from, fork).join("")), forkMark(), visible(characters.slice(fork, to).join(""))];
}

// Characters that change the direction of text or are invisible, and so could disguise an answer:
// bidi controls, zero-width characters (not the joiners of scripts and emoji), control characters.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/u;

function visible(text) {
  return text.split(new RegExp("(" + HIDDEN.source + ")", "u")).filter(Boolean).map((part) => HIDDEN.test(part) ? placeholder(part) : part);
}

function placeholder(character) {
  const name = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return element("span", { class: "hidden", title: "an invisible character" }, name);
}

function forkMark() {
  return element("span", { class: "fork", title: "the answers differ from here on" });
}
