// Scales convert values to percent of the width, with ticks: linear, or logarithmic for ratios.
function linear(values, anchors) {
  let low = Math.min(...values, ...anchors), high = Math.max(...values, ...anchors);
  if (low === high) { const room = Math.abs(low) / 10 || 1; low -= room; high += room; }
  const room = (high - low) * 0.06;
  if (!anchors.includes(low)) low -= room;
  if (!anchors.includes(high)) high += room;
  return { low, high, ticks: linearTicks(low, high), at: (value) => 100 * (value - low) / (high - low) };
}

function linearTicks(low, high) {
  const raw = (high - low) / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) ticks.push(index * step);
  return ticks;
}

const RATIOS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100];

function logarithmic(values, anchors, candidates) {
  const inner = linear(values.map(Math.log), anchors.map(Math.log));
  const low = Math.exp(inner.low), high = Math.exp(inner.high);
  let ticks = (candidates || decades(low, high)).filter((tick) => tick >= low && tick <= high);
  // Ticks closer than an eighth of the width would overlap; 1 is always kept.
  const at = (value) => inner.at(Math.log(value));
  const kept = ticks.includes(1) && candidates ? [1] : ticks.slice(0, 1);
  for (const tick of ticks) if (kept.every((other) => Math.abs(at(tick) - at(other)) > 13)) kept.push(tick);
  return { low, high, ticks: kept.sort((a, b) => a - b), at };
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) ticks.push(factor * Math.pow(10, power));
  return ticks;
}

function tidy(value) {
  const text = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(6)));
  return text.replace("-", "−");
}

// The text of ticks for effects and values in a unit.
function effectTick(unit, ratio) {
  if (ratio) return (value) => "×" + tidy(value);
  const sign = (value) => (value > 0 ? "+" : "") + tidy(value);
  if (unit === "share") return (value) => sign(100 * value) + (value ? "" : " pp");
  if (unit === "bytes") return (value) => sign(value / 1e6) + (value ? "" : " MB");
  return (value) => sign(value) + (value || !unit ? "" : " " + unit);
}

function valueTick(unit) {
  if (unit === "share") return (value) => tidy(100 * value) + " %";
  if (unit === "bytes") return (value) => (value >= 1e9 ? tidy(value / 1e9) + " GB" : value ? tidy(value / 1e6) + " MB" : "0");
  return (value) => tidy(value);
}
