"use strict";
// The figures, in the colours of the page.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function dressed(given) {
  const ink = colour("--soft"), strong = colour("--ink"), rule = colour("--rule"), card = colour("--card");
  const layout = structuredClone(given);
  layout.font = {family: colour("--sans"), size: 13, color: ink};
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.margin = {l: 64, r: 16, t: 36, b: 48, ...given.margin};
  layout.modebar = {bgcolor: "rgba(0,0,0,0)", color: rule, activecolor: ink};
  layout.hoverlabel = {bgcolor: card, bordercolor: rule, font: {color: strong, size: 13}};
  for (const key of Object.keys(layout).filter(key => /^[xy]axis/.test(key)).concat(["xaxis", "yaxis"])) {
    const own = given[key] ?? {};
    layout[key] = {gridcolor: rule, zeroline: false, linecolor: rule, automargin: true, ...own};
    if (own.title) layout[key].title = {standoff: 14, ...own.title, font: {size: 13}};
    layout[key].tickfont = {...own.tickfont, color: key === "xaxis" && own.side === "top" ? strong : ink};
  }
  for (const note of layout.annotations ?? []) Object.assign(note, {font: {size: 11, color: ink}, bgcolor: card, borderpad: 1});
  return layout;
}

// Named one by one, because the default ones can send a figure to plotly's servers.
const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
const options = {responsive: true, displaylogo: false, modeBarButtons: buttons, plotlyServerURL: "", showTips: false};

const plots = [...document.querySelectorAll(".plot")].map(place => {
  const figure = JSON.parse(place.querySelector("script").textContent);
  Plotly.newPlot(place, figure.data, dressed(figure.layout), options);
  return [place, figure];
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [place, figure] of plots) Plotly.react(place, figure.data, dressed(figure.layout), options);
});

// Tables whose rows a click on a heading sorts: numbers by size, words by letter, empty cells last.
const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

function compare(a, b) {
  if (a === "" || b === "") return a === b ? 0 : null;
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
}

function sort(heading) {
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [valueOf(one, column), valueOf(other, column)];
    return compare(a, b) === null ? (a === "" ? 1 : -1) : sign * compare(a, b);
  });
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...rows);
}

for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}
