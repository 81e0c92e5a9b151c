// Charts are drawn in percentages, so that they follow the available width; the style sheet colours them.
const percent = (number) => number.toFixed(3) + "%";

// One interval on the axis of its group, drawn over the band that counts as equal.
function track(metric, scale) {
  const { effect, margin, pruned } = metric, ratio = metric.effect_kind === "ratio";
  if (effect.value === null) return element("div", { class: "track" });
  const nothing = ratio ? 1 : 0, edges = ratio ? [1 / (1 + margin), 1 + margin] : [-margin, margin];
  const at = (value) => Math.min(100, Math.max(0, scale.at(value)));
  const parts = [];
  if (pruned) {
    const [from, to] = edges.map(at);
    if (margin) parts.push(shape("rect", { class: "band", x: percent(from), width: percent(to - from), y: "8%", height: "84%" }));
    parts.push(shape("line", { class: "zero", x1: percent(at(nothing)), x2: percent(at(nothing)), y1: "0", y2: "100%" }));
  }
  if (effect.low !== null)
    parts.push(shape("line", { class: "whisker", x1: percent(at(effect.low)), x2: percent(at(effect.high)), y1: "50%", y2: "50%" }));
  parts.push(shape("circle", { class: "point", cx: percent(at(effect.value)), cy: "50%", r: 5 }));
  const label = metric.title + ": " + metric.shown.effect + ", " + metric.words;
  return element("div", { class: "track " + verdictClass(metric.verdict) }, shape("svg", { role: "img", "aria-label": label }, parts));
}

function axis(scale, text) {
  const ticks = scale.ticks.map((tick) => {
    const at = scale.at(tick), anchor = at < 6 ? "start" : at > 94 ? "end" : "middle";
    return shape("text", { x: percent(at), y: "14", "text-anchor": anchor }, text(tick));
  });
  return element("div", { class: "axis", "aria-hidden": "true" }, element("div", { class: "ticks" }, shape("svg", {}, ticks)));
}

// A frame with a grid and tick labels; `marks` are drawn inside it in percent, with y upwards.
function frame(caption, label, x, y, xText, yText, marks) {
  const lines = [
    ...y.ticks.map((tick) => [
      shape("line", { class: "grid", x1: "0", x2: "100%", y1: percent(100 - y.at(tick)), y2: percent(100 - y.at(tick)) }),
      shape("text", { x: "-8", y: percent(100 - y.at(tick)), dy: "4", "text-anchor": "end" }, yText(tick)),
    ]),
    ...x.ticks.map((tick) => shape("text", { x: percent(x.at(tick)), y: "100%", dy: "17", "text-anchor": "middle" }, xText(tick))),
  ];
  return element("figure", { class: "chart" }, element("figcaption", {}, caption),
    element("div", { class: "plot" }, shape("svg", { role: "img", "aria-label": label }, lines, marks)));
}

function distributionChart(metric) {
  const { original, pruned } = metric.distribution, all = [...original, ...pruned];
  const least = Math.min(...all), wide = least > 0 && Math.max(...all) / least > 12;
  const x = wide ? logarithmic(all, []) : linear(all, []);
  const y = { ticks: [0, 0.25, 0.5, 0.75, 1], at: (share) => 100 * share };
  const steps = original.length - 1;
  const curve = (side, values) => shape("path", { class: "curve stroke-" + side,
    d: values.map((value, rank) => (rank ? "L" : "M") + x.at(value).toFixed(2) + " " + (100 - 100 * rank / steps).toFixed(2)).join("") });
  const curves = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", x: "0", y: "0", width: "100%", height: "100%" },
    curve("original", original), curve("pruned", pruned));
  const dots = [["original", original], ["pruned", pruned]].flatMap(([side, values]) => [0.5, 0.95].map((share) =>
    shape("circle", { class: "fill-" + side, r: 3.5, cx: percent(x.at(values[Math.round(share * steps)])), cy: percent(100 - 100 * share) })));
  const caption = [element("b", {}, metric.title.replace(/,? (median|p50)\b/, "")),
    element("span", { class: "soft" }, " cumulative share of values, " + (metric.unit || "") + (wide ? " (logarithmic)" : "") + "; dots: p50, p95"), sideLegend()];
  return frame(caption, metric.title + ": distribution on both sides", x, y, tidy, (share) => tidy(100 * share) + " %", [curves, dots]);
}

// A metric of both sides against their size.
function sizeChart(size, quality, name) {
  const sides = ["original", "pruned"].map((side) => ({ side, at: size[side].value, ...quality[side] }));
  const ends = sides.flatMap((one) => [one.low, one.high, one.value].filter((value) => value !== null));
  const x = linear(sides.map((one) => one.at), [0]), y = linear(ends, []);
  const marks = [shape("line", { class: "link", x1: percent(x.at(sides[0].at)), x2: percent(x.at(sides[1].at)),
    y1: percent(100 - y.at(sides[0].value)), y2: percent(100 - y.at(sides[1].value)) })];
  for (const one of sides) {
    const cx = percent(x.at(one.at));
    if (one.low !== null) marks.push(shape("line", { class: "bar stroke-" + one.side, x1: cx, x2: cx,
      y1: percent(100 - y.at(one.low)), y2: percent(100 - y.at(one.high)) }));
    marks.push(shape("circle", { class: "fill-" + one.side, r: 5.5, cx, cy: percent(100 - y.at(one.value)) }));
  }
  const caption = [element("b", {}, name), element("span", { class: "soft" }, " " + quality.title), sideLegend()];
  const label = name + ", " + quality.title + ": " + quality.shown.original + " at " + size.shown.original + ", " + quality.shown.pruned + " at " + size.shown.pruned;
  return frame(caption, label, x, y, valueTick(size.unit), valueTick(quality.unit), marks);
}

// Loss of quality against prompt tokens saved, at each keep rate.
function savingChart(points, quality) {
  const ends = points.flatMap(({ change }) => [change.low, change.value, change.high].filter((value) => value !== null));
  const x = linear(points.map((point) => point.saved), [0]), y = linear(ends, [0]);
  const up = (value) => percent(100 - y.at(value));
  const marks = points.slice(1).map((point, index) => shape("line", { class: "link", x1: percent(x.at(points[index].saved)),
    y1: up(points[index].change.value), x2: percent(x.at(point.saved)), y2: up(point.change.value) }));
  for (const { saved, change, rate } of points) {
    const cx = percent(x.at(saved));
    if (change.low !== null) marks.push(shape("line", { class: "bar stroke-pruned", x1: cx, x2: cx, y1: up(change.low), y2: up(change.high) }));
    marks.push(shape("circle", { class: "fill-pruned", r: 5, cx, cy: up(change.value) }),
      shape("text", { x: cx, y: up(change.value), dx: x.at(saved) > 70 ? "-9" : "9", dy: x.at(saved) > 70 ? "15" : "-7", "text-anchor": x.at(saved) > 70 ? "end" : "start" }, "keep " + rate));
  }
  const caption = [element("b", {}, "Savings against quality"), element("span", { class: "soft" }, " change in quality over prompt tokens saved")];
  return frame(caption, "quality against prompt tokens saved", x, y, valueTick("share"), effectTick(quality.unit, false), marks);
}
