// The page header, a card for each suite, and a section for each suite with all its metrics.
const ARROWS = { higher: "higher is better", lower: "lower is better" };
const sectionId = (suite) => "suite-" + suite.name.replace(/[^a-z0-9_-]/gi, "-");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function header(report) {
  const sides = report.endpoints.map((endpoint) => element("span", {},
    dot(endpoint.name === "original" ? "original" : "pruned"), endpoint.name + ": ", element("b", {}, endpoint.model), " at " + endpoint.url,
    ["profile", "hardware"].filter((name) => endpoint.description[name]).map((name) => ", " + name + " " + endpoint.description[name])));
  return [element("p", { class: "eyebrow" }, "kprune compare" + (report.date && ", " + report.date)), element("h1", {}, "Pruned against original"),
    element("div", { class: "sides" }, sides)];
}

function summary(report) {
  const percentage = tidy(100 * report.confidence) + " %";
  return [element("p", { class: "lead" }, element("b", {}, (sidesOf(report).length ? report.summary : capital(report.summary)) + "."),
    element("span", { class: "soft" }, "Brackets show " + percentage + " confidence intervals. × is pruned divided by original: ×0.92 is 8 % less. Verdicts are corrected for the number of metrics.")),
  sidesTable(report) || element("div", { class: "cards" }, report.suites.map(card))];
}

// The metric that stands for a suite; none if it could not be measured.
function mainMetric(suite) {
  return suite.metrics.find((metric) => metric.name === suite.main);
}

// The metric that a card shows: the main one, unless only another one has the suite's verdict.
function shownMetric(suite) {
  const main = mainMetric(suite);
  return main && [main, ...suite.metrics].find((metric) => metric.verdict === suite.verdict) || main;
}

function whyMissing(suite) {
  const why = suite.unavailable[suite.main];
  return why ? suite.main + " not measured: " + why : suite.unavailable["*"] || Object.values(suite.unavailable)[0] || "";
}

// Both values, with their common unit once.
function bothValues(metric) {
  const [before, after] = [metric.shown.original, metric.shown.pruned], unit = / \D+$/.exec(after);
  return [unit && before.endsWith(unit[0]) ? before.slice(0, -unit[0].length) : before, " → ", element("b", {}, after)];
}

// Notes that a reader must see before the figures.
function isWarning(note) {
  return note.startsWith("WARNING");
}

function warnings(report) {
  return report.suites.flatMap((suite) => suite.notes.filter(isWarning)
    .map((note) => element("p", { class: "warning" }, titleOf(suite) + ": " + note)));
}

function card(suite) {
  const main = shownMetric(suite);
  return element("a", { class: "card", href: "#" + sectionId(suite) },
    element("span", { class: "top" }, element("span", { class: "name" }, capital(suite.name)), badge(suite.verdict, measured(suite))),
    main ? [bigValue(main), main.name !== suite.main && element("span", { class: "sub" }, main.title, main.pruned && [": ", bothValues(main)])]
      : element("span", { class: "sub" }, whyMissing(suite)),
    suite.metrics.length > 0 && element("span", { class: "sub" }, suite.sentence),
    element("span", { class: "foot" }, suite.metrics.length ? suite.words : ""));
}

function measured(suite) {
  if (!suite.metrics.length) return "not measured";
  return suite.verdict;
}

function bigValue(metric) {
  const found = /^(\S*)(.*)$/.exec(metric.shown.effect);
  return element("span", { class: "big" }, found[1], element("small", {}, found[2]));
}

function section(suite) {
  const id = sectionId(suite);
  return element("section", { id, "aria-labelledby": id + "-title" },
    element("div", { class: "head" }, element("h2", { id: id + "-title" }, titleOf(suite)),
      badge(suite.verdict, measured(suite)), suite.metrics.length > 1 && suite.verdict !== "informational" && element("span", { class: "words" }, suite.words)),
    groups(suite.metrics).map((metrics) => group(metrics, suite.main)),
    charts(suite), missing(suite),
    suite.notes.map((note) => element("p", { class: isWarning(note) ? "warning" : "note" }, note)));
}

// Metrics that can share an axis: the same unit and kind of effect; metrics of the pair are separate.
function groups(metrics) {
  const found = new Map();
  for (const metric of metrics) {
    const key = metric.pruned === null ? "pair " + metric.unit : metric.effect_kind === "ratio" ? "ratio" : metric.unit;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(metric);
  }
  return [...found.values()];
}

// Rows that a reader may skip: details, and metrics without any difference.
function isMinor(metric, main) {
  return metric.detail || (metric.name !== main && metric.differing === 0 && metric.effect.value === 0 && metric.pruned !== null);
}

function group(metrics, main) {
  const first = metrics[0], ratio = first.effect_kind === "ratio" && first.pruned !== null, pair = first.pruned === null;
  const numbers = metrics.flatMap(({ effect }) => [effect.low, effect.value, effect.high])
    .filter((value) => value !== null && (!ratio || value > 0));
  const margins = metrics.map((metric) => metric.margin);
  const anchors = ratio ? [1, ...margins.map((margin) => 1 + margin), ...margins.map((margin) => 1 / (1 + margin))]
    : pair ? [0] : [0, ...margins, ...margins.map((margin) => -margin)];
  const scale = ratio ? logarithmic(numbers, anchors, RATIOS) : linear(numbers, anchors);
  const text = pair ? valueTick(first.unit) : effectTick(first.unit, ratio);
  const minor = metrics.filter((metric) => isMinor(metric, main)), rows = (some) => some.map((metric) => row(metric, scale));
  const folded = minor.length > 3 && minor.length < metrics.length ? minor : [];
  return element("div", { class: "group" }, rows(metrics.filter((metric) => !folded.includes(metric))), axis(scale, text),
    folded.length > 0 && element("details", { class: "more-rows" },
      element("summary", {}, folded.length + " more metrics: details, and those without a difference"), rows(folded), axis(scale, text)));
}

function row(metric, scale) {
  const details = [metric.pruned && ARROWS[metric.better], metric.items.toLocaleString("en") + (metric.items === 1 ? " item" : " items")];
  if (metric.dropped) details.push(metric.dropped.toLocaleString("en") + " without a value");
  if (metric.pruned && metric.aggregate !== "exact") details.push(metric.differing.toLocaleString("en") + " differ");
  const decided = metric.p_adjusted !== null && ["better", "worse"].includes(metric.verdict);
  const p = decided && (metric.p_adjusted < 0.001 ? ", p < 0.001" : ", p = " + Number(metric.p_adjusted.toPrecision(2)));
  return element("div", { class: "row", "data-metric": metric.name },
    element("div", { class: "label" }, metric.title, element("span", { class: "soft" }, details.filter(Boolean).join(" · "))),
    element("div", { class: "values figure" + (metric.verdict === "worse" ? " worse" : "") }, metric.pruned && bothValues(metric)),
    track(metric, scale),
    element("div", { class: "effect" }, element("span", { class: "figure" }, metric.shown.effect), badge(metric.verdict, [metric.words, p])));
}

function charts(suite) {
  const drawn = suite.metrics.filter((metric) => metric.distribution).map(distributionChart);
  const curve = saving(suite);
  if (curve) drawn.push(curve);
  return drawn.length > 0 && element("div", { class: "charts" }, drawn);
}

// Metrics named saved@RATE and quality@RATE form the curve of input pruning.
function saving(suite) {
  const byName = new Map(suite.metrics.map((metric) => [metric.name, metric]));
  const points = [];
  for (const metric of suite.metrics) {
    const found = /^quality@(.+)$/.exec(metric.name), saved = found && byName.get("saved@" + found[1]);
    if (saved && saved.effect.value !== null && metric.effect.value !== null)
      points.push({ rate: found[1], saved: Math.abs(saved.effect.value), change: metric.effect, metric });
  }
  points.sort((a, b) => a.saved - b.saved);
  return points.length > 1 && savingChart(points, points[0].metric);
}

function missing(suite) {
  const reasons = Object.entries(suite.unavailable);
  return reasons.length > 0 && element("ul", { class: "missing" }, reasons.map(([name, why]) =>
    element("li", {}, element("b", {}, name === "*" ? "Not measured" : name + " not measured"), ": " + why)));
}

// The main metric of each quality suite against the size that the memory suite measured.
function sizeSection(report) {
  const memory = report.suites.find((suite) => suite.name === "memory");
  const size = memory && memory.metrics.find((metric) => metric.unit === "bytes" && metric.pruned && metric.original.value !== null && metric.pruned.value !== null);
  const kinds = report.suites.filter((suite) => ["stability", "translation", "accuracy"].includes(suite.name))
    .map((suite) => [suite, mainMetric(suite)])
    .filter(([, metric]) => metric && metric.pruned && metric.original.value !== null && metric.pruned.value !== null);
  if (!size || !kinds.length) return null;
  return [element("div", { class: "head" }, element("h2", { id: "size-title" }, "Size against quality"),
    element("span", { class: "words" }, size.title)),
  element("div", { class: "charts" }, kinds.map(([suite, metric]) => sizeChart(size, metric, capital(suite.name))))];
}
