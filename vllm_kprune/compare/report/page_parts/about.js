// How it was measured: endpoints, settings, versions, and how to read the figures.
function about(report) {
  const sets = report.endpoints.map((endpoint) => [endpoint.name, { model: endpoint.model, address: endpoint.url, ...endpoint.facts }]);
  sets.push(["Settings", { seed: report.seed, resamples: report.resamples, ...report.settings }],
    ["Versions", { kprune: report.kprune_version, ...report.versions }]);
  return [element("div", { class: "head" }, element("h2", { id: "about-title" }, "How this was measured")),
    reading(report).map((text) => element("p", {}, text)),
    element("div", { class: "facts" }, sets.map(([title, facts]) => element("div", {}, element("h3", {}, capital(title)), definitions(facts))))];
}

function reading(report) {
  const percentage = tidy(100 * report.confidence) + " %";
  return [
    "Both endpoints got the same items, in turns and in random order. An effect is pruned minus original (pp: percentage points) or pruned divided by original (×). "
      + "Its interval comes from drawing whole items again, with both their sides, " + report.resamples.toLocaleString("en") + " times: Student's t times the standard error of that "
      + "(for shares of which few items differ, after adding two items, as Bonett and Price do; for quantiles, percentiles).",
    "Equal: the whole " + percentage + " interval lies within the margin, drawn as a band. Better, worse: otherwise, if swapping the sides of items at random gives such an effect "
      + "so rarely that it holds after Holm's correction over all metrics of this report. Not enough data: neither can be said; the number of items that would settle it is an estimate. "
      + "A suite is worse if any of its metrics is.",
  ];
}

function definitions(facts) {
  return element("dl", {}, Object.entries(facts).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value))]));
}
