"use strict";
// The last script: after it, the page is ready.

(() => {
  const { content } = report;
  if (reading()) { // no known truth: no scores, no worst slices
    delete report.pages.overview;
    delete report.pages.worst;
    document.body.classList.add("reading");
    document.querySelector("nav").hidden = true;
    document.getElementById("intended").hidden = false;
    document.getElementById("intended").textContent = reading().intended_use;
  }
  const source = document.getElementById("source");
  source.append(...content.sources.map((one) => h("option", {}, one.name)));
  source.addEventListener("change", () => go({ source: content.sources[source.selectedIndex].name }, { replace: true }));
  document.getElementById("source-box").hidden = content.sources.length < 2;
  document.querySelector('nav [data-view="worst"]').hidden = !content.sources.length;
  document.getElementById("theme").addEventListener("click", toggleTheme);
  document.getElementById("help-button").addEventListener("click", openHelp);
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  document.getElementById("footer").append(`Made ${content.made.time} by ich_kaggle ${content.made.version}. For research: not a medical device.`);
  try {
    setTheme(localStorage.getItem("theme"));
  } catch {} // some browsers store nothing for pages on the disk
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.redraw());
  addEventListener("hashchange", route);
  addEventListener("keydown", onKey);
  route();
  performance.mark("usable");
})();
