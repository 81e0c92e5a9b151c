// Several pruned sides: their suites are called SUITE@SIDE, and one table shows all of them.
const titleOf = (suite) => capital(suite.name.replace("@", ": "));

function sidesOf(report) {
  return [...new Set(report.suites.map((suite) => suite.name.split("@")[1]).filter(Boolean))];
}

// A row for each suite's main metric, a column for each side; null with one pruned side.
function sidesTable(report) {
  const sides = sidesOf(report);
  if (!sides.length) return null;
  const names = [...new Set(report.suites.map((suite) => suite.name.split("@")[0]))];
  const heads = ["original", ...sides].map((side) => element("th", { scope: "col" }, dot(side === "original" ? side : "pruned"), side));
  return element("div", { class: "sides-table", tabindex: "0", role: "region", "aria-label": "All sides" }, element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Main metric"), heads)),
    element("tbody", {}, names.map((name) => sidesRow(report, name, sides)))));
}

function sidesRow(report, name, sides) {
  const suites = sides.map((side) => report.suites.find((suite) => suite.name === name + "@" + side));
  const mains = suites.map((suite) => suite && mainMetric(suite)), main = mains.find(Boolean);
  const before = [...new Set(mains.filter((metric) => metric && metric.pruned).map((metric) => metric.shown.original))];
  return element("tr", {},
    element("th", { scope: "row" }, capital(name), main && element("span", { class: "soft" }, main.title)),
    element("td", { class: "figure", "data-side": "original" }, before.join(" / ")),
    suites.map((suite, at) => element("td", { "data-side": sides[at] }, sideCell(suite, mains[at]))));
}

function sideCell(suite, main) {
  if (!suite || !suite.metrics.length) return element("span", { class: "soft" }, "not measured");
  return element("a", { href: "#" + sectionId(suite) },
    main && [element("span", { class: "figure" }, main.shown.pruned || main.shown.effect),
      main.pruned && element("span", { class: "soft figure" }, main.shown.effect)],
    badge(suite.verdict, suite.verdict));
}
