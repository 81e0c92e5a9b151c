// How it was measured: endpoints, settings, versions, and how to read the results.
function about(report) {
  const sets = report.endpoints.map((endpoint) => [endpoint.name, { model: endpoint.model, address: endpoint.url, ...endpoint.description }]);
  sets.push(["Settings", { seed: report.seed, resamples: report.resamples, ...ofThisRun(report) }],
    ["Versions", { kprune: report.kprune_version, ...report.versions }]);
  return [element("div", { class: "head" }, element("h2", { id: "about-title" }, "How this was measured")),
    reading(report).filter(Boolean).map((text) => element("p", {}, text)),
    element("div", { class: "details" }, sets.map(([title, set]) => element("div", {}, element("h3", {}, capital(title)), definitions(set))))];
}

// Without the options of suites that were not run.
function ofThisRun(report) {
  const ran = new Set(report.suites.map((suite) => suite.name.split("@")[0]));
  return Object.fromEntries(Object.entries(report.settings).filter(([name]) => !name.includes(".") || ran.has(name.split(".")[0])));
}

function reading(report) {
  const percentage = tidy(100 * report.confidence) + " %";
  return [
    sidesOf(report).length > 0 && "The original was asked once, together with the first pruned side, and each side is compared with its answers. For latency, it was measured again beside each side.",
    "Both endpoints got the same items, alternately and in random order. An effect is pruned minus original (pp: percentage points) or pruned divided by original (×). "
      + "Its interval is based on drawing whole items, with both their sides, " + report.resamples.toLocaleString("en") + " times: the effect plus and minus Student's t times the standard error of these draws. "
      + "Where no item differs, the interval is exact: about 3 / n to each side. For shares where few items differ, two items are added first (Bonett and Price); for quantiles, the interval consists of percentiles.",
    "Equal: the whole " + percentage + " interval lies within the margin, which is drawn as a band. Better, worse: otherwise, if randomly swapping the sides of items gives such an effect "
      + "so rarely that it is significant after Holm's correction over all metrics of this report. Not enough data: neither can be concluded; the number of items that would settle it is an estimate. "
      + "Informational: the metric has no better side and gets no verdict. A suite is worse if any of its metrics is worse.",
  ];
}

function definitions(set) {
  return element("dl", {}, Object.entries(set).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value))]));
}
