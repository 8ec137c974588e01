"use strict";

// The table: a click on a title sorts by it, a second one the other way round; empty cells stay last.
const body = document.querySelector("#trials tbody");
const titles = [...document.querySelectorAll("#trials thead th")];
titles.forEach((title, column) => {
  title.querySelector("button").addEventListener("click", () => {
    const ascending = title.getAttribute("aria-sort") !== "ascending";
    const isNumber = title.classList.contains("number");
    const compare = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
    const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : ascending ? compare(a, b) : compare(b, a)));
    titles.forEach((other) => other.setAttribute("aria-sort", "none"));
    title.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  });
});
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown.toLocaleString("en")} of ${body.rows.length.toLocaleString("en")} shown`;
});

for (const button of document.querySelectorAll(".copy")) {
  const code = button.parentElement.querySelector("code");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code); // ready for Ctrl-C where the browser refuses the clipboard
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl-C";
    }
  });
}

// Figures: one copy of the data, in columns, becomes the named data sets that all specifications refer to.
const page = JSON.parse(document.getElementById("figures").textContent);
const rowsOf = (columns) => {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
};
const datasets = Object.fromEntries(Object.entries(page.data).map(([name, columns]) => [name, rowsOf(columns)]));
const used = (spec) => {
  const text = JSON.stringify(spec);
  return Object.fromEntries(Object.entries(datasets).filter(([name]) => text.includes(`"name":"${name}"`)));
};
const draw = (place, spec) => {
  const whole = { autosize: { type: "fit-x", contains: "padding" }, datasets: used(spec), ...spec };
  // `ast`: expressions are interpreted, so that the page needs no permission to turn text into code.
  return vegaEmbed(place, whole, { mode: "vega-lite", ast: true, actions: false, renderer: "svg", config: page.config, tooltip: { theme: "custom" } }).catch((error) => {
    place.textContent = `This figure could not be drawn: ${error.message}`;
    place.classList.add("failed");
    console.error(error);
  });
};
// The figures are drawn one after the other, first those that the reader sees. The pauses let the browser paint the page and react to the reader.
const isSeen = (place) => place.getBoundingClientRect().bottom > 0 && place.getBoundingClientRect().top < innerHeight;
const drawAll = async () => {
  const waiting = new Map([...document.querySelectorAll(".chart")].map((place) => [place, page.specs[place.id.slice("chart-".length)]]));
  for (const [place, spec] of waiting) place.style.minHeight = `${spec.height}px`; // what the reader sees must not move away
  while (waiting.size) {
    await new Promise((resume) => setTimeout(resume));
    const places = [...waiting.keys()];
    const place = places.find(isSeen) ?? places[0];
    await draw(place, waiting.get(place));
    waiting.delete(place);
  }
  document.documentElement.dataset.figures = "drawn";
};
drawAll();
