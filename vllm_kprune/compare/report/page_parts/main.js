const report = JSON.parse(document.getElementById("report").textContent);

function place(id, content) {
  const node = document.getElementById(id);
  if (content) node.append(...[content].flat(9).filter(Boolean));
  else node.remove();
}

place("top", header(report));
place("summary", [warnings(report), summary(report)]);
place("suites", report.suites.map(section));
place("size", sizeSection(report));
place("answers", exampleSection(report));
place("about", about(report));
if (location.hash.includes("=")) document.getElementById("answers")?.scrollIntoView();
else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
