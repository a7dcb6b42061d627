"use strict";
// The card on ranking: the curves and the calibration of one label, and the counts at a threshold.

const ranking = (() => {
  let threshold = null;
  const shown = { source: 0, label: "any" };
  const parts = {}; // elements that are filled in again
  const curve = () => report.content.sources[shown.source].curves[report.content.labels.indexOf(shown.label)];
  const ratio = (a, b) => (b ? a / b : null);

  function points(axes) {
    const one = curve();
    const at = { roc: (tp, fp) => [fp / one.n_negative, tp / one.n_positive], pr: (tp, fp) => [tp / one.n_positive, tp + fp ? tp / (tp + fp) : 1] }[axes];
    return one.tp.map((tp, i) => at(tp, one.fp[i]));
  }

  function rankingChart(axes, title, x, y, guide) {
    const build = () => {
      const { content } = report;
      const one = curve();
      const xy = points(axes), color = charts.ofLabel(shown.label), mark = xy[threshold];
      const end = axes === "roc" ? [[1, 1], ...xy, [0, 0]] : xy;
      const none = !one.n_positive || !one.n_negative;
      return {
        data: none ? [] : [
          { ...guide(one), mode: "lines", line: { color: charts.color("--soft"), width: 1, dash: "dot" }, hoverinfo: "skip" },
          { x: end.map((p) => p[0]), y: end.map((p) => p[1]), mode: "lines", line: { color, width: 2.5, shape: axes === "pr" ? "hv" : "linear" }, hovertemplate: `${x} %{x:.3f}<br>${y} %{y:.3f}<extra></extra>` },
          { x: [mark[0]], y: [mark[1]], mode: "markers", marker: { color: charts.color("--card"), size: 13, symbol: "circle", line: { color, width: 3.5 } }, hovertemplate: `threshold ${content.thresholds[threshold]}<extra></extra>` },
        ],
        layout: { height: 320, xaxis: { title: x, range: [-0.02, 1.02] }, yaxis: { title: y, range: [-0.02, 1.04] }, annotations: none ? [{ text: "one class only", showarrow: false, x: 0.5, y: 0.5 }] : [] },
      };
    };
    const element = charts.chart(title, build, ".grab");
    dragging(element, axes);
    return element;
  }

  // The mark is dragged, or moves to where the curve is pressed. Plotly reports clicks on points only, hence its axes.
  function dragging(element, axes) {
    const pick = (event) => {
      const { xaxis, yaxis } = element._fullLayout;
      const box = element.getBoundingClientRect();
      const x = xaxis.p2d(event.clientX - box.left - xaxis._offset), y = yaxis.p2d(event.clientY - box.top - yaxis._offset);
      const far = points(axes).map((p) => (p[0] - x) ** 2 + (p[1] - y) ** 2);
      setThreshold(far.indexOf(Math.min(...far)));
    };
    element.addEventListener("pointerdown", (event) => {
      if (!element._fullLayout) return;
      if (event.pointerType !== "touch") {
        event.preventDefault(); // Plotly would handle the moves that follow
        element.setPointerCapture(event.pointerId);
      }
      pick(event);
    }, true);
    element.addEventListener("pointermove", (event) => element.hasPointerCapture(event.pointerId) && pick(event), true);
  }

  function calibration() {
    return charts.chart("Calibration: observed rate against predicted probability", () => {
      const { found, meant, count: n } = curve().reliability;
      const color = charts.ofLabel(shown.label);
      return {
        data: [
          { x: [0, 1], y: [0, 1], mode: "lines", line: { color: charts.color("--soft"), width: 1, dash: "dot" }, hoverinfo: "skip" },
          { x: meant, y: found, customdata: n, mode: "lines+markers", line: { color, width: 2 }, marker: { color, size: n.map((k) => 5 + 3 * Math.log10(k)) }, hovertemplate: "predicted %{x:.3f}<br>observed %{y:.3f}<br>%{customdata} slices<extra></extra>" },
        ],
        layout: { height: 320, xaxis: { title: "predicted", range: [-0.04, 1.04] }, yaxis: { title: "observed", range: [-0.04, 1.04] } },
      };
    });
  }

  function setThreshold(index) {
    threshold = index;
    parts.slider.value = index;
    updateCounts();
    for (const element of [parts.roc, parts.pr]) {
      if (!element.data?.length) continue;
      const [x, y] = points(element === parts.roc ? "roc" : "pr")[index];
      Plotly.restyle(element, { x: [[x]], y: [[y]] }, [2]);
    }
  }

  function bestF1() {
    const { tp, fp, n_positive } = curve();
    const f = tp.map((hits, i) => (2 * hits) / (hits + fp[i] + n_positive));
    return f.indexOf(Math.max(...f));
  }

  function updateCounts() {
    const one = curve();
    const value = report.content.thresholds[threshold];
    const tp = one.tp[threshold], fp = one.fp[threshold], fn = one.n_positive - tp, tn = one.n_negative - fp;
    parts.value.textContent = value;
    parts.slider.setAttribute("aria-valuetext", `threshold ${value}`);
    for (const [name, n] of Object.entries({ tp, fp, fn, tn })) parts[name].textContent = count(n);
    const rates = { sensitivity: ratio(tp, one.n_positive), specificity: ratio(tn, one.n_negative), precision: ratio(tp, tp + fp), F1: ratio(2 * tp, 2 * tp + fp + fn) };
    parts.rates.replaceChildren(...Object.entries(rates).flatMap(([name, rate]) => [h("dt", {}, name), h("dd", {}, number(rate, 3))]));
  }

  function update() {
    const one = curve();
    const { name, n_patients } = report.content.sources[shown.source];
    parts.of.textContent = `${shown.label}, ${name}: ${plural(one.n_positive, "positive slice")} of ${count(one.n_positive + one.n_negative)}, on ${plural(n_patients, "patient")}`;
    parts.areas.replaceChildren(...[["ROC AUC", one.auc], ["average precision", one.average_precision], ["Brier score", one.brier], ["calibration error", one.calibration_error]]
      .flatMap(([title, value]) => [h("dt", {}, title), h("dd", {}, number(value, title === "Brier score" ? 4 : 3))]));
    updateCounts();
    for (const element of [parts.roc, parts.pr, parts.calibration]) charts.update(element);
  }

  function build({ labels, thresholds }, source) {
    shown.source = source;
    threshold = bestF1();
    parts.of = h("p.note", { "aria-live": "polite" });
    parts.slider = h("input", { type: "range", id: "threshold", min: 0, max: thresholds.length - 1, step: 1, value: threshold, oninput: () => setThreshold(Number(parts.slider.value)) });
    parts.value = h("output", { for: "threshold", id: "threshold-value" });
    for (const name of ["tp", "fp", "fn", "tn"]) parts[name] = h("td.number", { id: name });
    parts.rates = h("dl.facts");
    parts.areas = h("dl.facts");
    parts.roc = rankingChart("roc", "ROC curve with the threshold marked", "1 − specificity", "sensitivity", () => ({ x: [0, 1], y: [0, 1] }));
    parts.pr = rankingChart("pr", "Precision and recall with the threshold marked", "recall", "precision", (one) => ({ x: [0, 1], y: Array(2).fill(one.n_positive / (one.n_positive + one.n_negative)) }));
    parts.calibration = calibration();
    const chosen = (label) => {
      shown.label = label;
      update();
    };
    const made = card("Ranking, thresholds, calibration", null,
      choices("label", "Label", labels.map((label) => [label, swatch(label), label]), shown.label, chosen), parts.of,
      h("div.charts", {}, ...[["ROC", parts.roc], ["Precision and recall", parts.pr], ["Calibration", parts.calibration]].map(([title, one]) => h("div", {}, h("h3", {}, title), one))),
      h("div.decide", {},
        h("div.slider", {}, h("label", { for: "threshold" }, "Threshold ", parts.value), parts.slider,
          h("div", {}, h("button", { type: "button", onclick: () => setThreshold(bestF1()) }, "Highest F1"), h("small", {}, " chosen and counted on the same slices. The mark on either curve can be dragged."))),
        h("table.confusion", {}, h("caption", {}, "Slices"), h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "predicted positive"), h("th", { scope: "col" }, "predicted negative"))),
          h("tbody", {}, h("tr", {}, h("th", { scope: "row" }, "positive"), parts.tp, parts.fn), h("tr", {}, h("th", { scope: "row" }, "negative"), parts.fp, parts.tn))),
        parts.rates, parts.areas));
    update();
    return made;
  }

  function show(source) {
    if (source === shown.source) return;
    shown.source = source;
    update();
  }

  return { build, show };
})();
