"use strict";
// Plotly charts in the colours of the page, drawn when they come into view and when the theme changes.

const charts = (() => {
  const LABEL_COLORS = { epidural: "#d55e00", intraparenchymal: "#0072b2", intraventricular: "#56b4e9", subarachnoid: "#009e73", subdural: "#cc79a7" };
  const SERIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star"];
  let reading = null; // Plotly
  const drawn = new Map(); // by element: the function that returns its data and layout
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) draw(target);
  }, { rootMargin: "200px" });

  function color(name) {
    const probe = document.getElementById("footer");
    probe.style.color = `var(${name})`;
    const found = getComputedStyle(probe).color;
    probe.style.color = "";
    return found;
  }

  const ofLabel = (label) => LABEL_COLORS[label] ?? color("--ink");
  const dashOfLabel = (label) => DASHES[report.content.labels.indexOf(label) % DASHES.length];
  const style = (i) => ({ color: SERIES[i % SERIES.length], dash: DASHES[Math.floor(i / SERIES.length + i) % DASHES.length], symbol: SYMBOLS[i % SYMBOLS.length] });
  // Plotly interprets some HTML in its texts.
  const text = (value) => String(value).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function layout(wanted) {
    const [ink, soft, line] = ["--ink", "--soft", "--line"].map(color);
    const axis = (own = {}) => ({
      gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: true, tickfont: { color: soft }, ...own,
      title: { text: own.title ?? "", font: { size: 12, color: soft }, standoff: 8 },
    });
    const { xaxis, yaxis, ...rest } = wanted;
    return {
      font: { family: "system-ui, sans-serif", size: 12, color: ink }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      margin: { l: 44, r: 12, t: 12, b: 40 }, height: 300, dragmode: false, hovermode: "closest", showlegend: false,
      legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, font: { color: ink } },
      hoverlabel: { bgcolor: color("--card"), bordercolor: line, font: { color: ink } },
      ...rest, xaxis: axis(xaxis), yaxis: axis(yaxis),
    };
  }

  // Plotly is large: it is loaded when the first chart comes into view, after the page is painted.
  function load() {
    reading ??= new Promise((resolve) => {
      const script = document.createElement("script");
      const inert = document.getElementById("plotly");
      if (inert) script.textContent = inert.textContent;
      else script.src = "plotly.min.js";
      script.addEventListener("load", resolve);
      requestAnimationFrame(() => setTimeout(() => {
        document.head.append(script);
        if (inert) resolve();
      }));
    });
    return reading;
  }

  function draw(element) {
    if (!drawn.has(element)) return;
    if (!window.Plotly) {
      load().then(redraw);
      return;
    }
    seen.unobserve(element);
    const { data, layout: wanted } = drawn.get(element)();
    Plotly.react(element, data, layout(wanted), { displayModeBar: false, responsive: true });
    element.dispatchEvent(new Event("drawn"));
  }

  function redraw() {
    for (const element of drawn.keys()) {
      if (!element.isConnected) drawn.delete(element);
      else if (element.classList.contains("js-plotly-plot")) draw(element);
      else {
        seen.unobserve(element);
        seen.observe(element);
      }
    }
  }

  return {
    ofLabel, dashOfLabel, style, text, color,

    // Return an element in which Plotly draws the data and the layout that `build` returns.
    chart(title, build, size = "") {
      const element = h(`div.chart${size}`, { role: "img", "aria-label": title });
      drawn.set(element, build);
      seen.observe(element);
      return element;
    },

    update: (element) => element.isConnected && window.Plotly && draw(element),

    redraw,
  };
})();
