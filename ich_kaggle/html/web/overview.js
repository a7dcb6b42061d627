"use strict";
// The overview: a card each for scores, curves and thresholds, training, ensembles, folds and submissions.

report.pages.overview = (() => {
  let isBuilt = false, threshold = null, shown = { source: 0, label: "any" };
  const parts = {}; // elements that are filled in again
  const curve = () => report.content.sources[shown.source].curves[report.content.labels.indexOf(shown.label)];
  const kind = (one) => (one.kind === "ensemble" ? "ensemble, nested" : one.on.length ? `second level on ${one.on.join(", ")}` : "run");
  const ratio = (a, b) => (b ? a / b : null);
  const within = ([value, low, high], digits = 4) => [h("b", {}, number(value, digits)), low == null ? null : h("small", {}, ` ${number(low, digits)} to ${number(high, digits)}`)];
  const card = (title, note, ...content) => h("section.card", {}, h("h2", {}, title), note ? h("p.note", {}, note) : null, content);

  function tile(title, value, note) {
    return h("div.tile", {}, h("span.tile-title", {}, title), h("span.tile-value", {}, value), h("span.tile-note", {}, note));
  }

  function tiles({ sources, data, constant, n_studies, studies }) {
    const train = data.splits.find((one) => one.split === "train");
    const test = data.splits.find((one) => one.split === "test");
    const [best] = sources;
    return h("div.tiles", {},
      best ? tile("Out-of-fold log loss", number(best.loss[0]), `${best.kind === "ensemble" ? "nested, " : ""}95 %: ${number(best.loss[1])} to ${number(best.loss[2])}`) : null,
      best ? tile("Scored on", plural(best.n_patients, "patient"), `${plural(best.n_slices, "slice")}, ${best.name}`) : null,
      constant != null && best ? tile("Constant prevalence", number(constant), `predicted without images; the best score is ${percent(best.loss[0] / constant, 0)} of it`) : null,
      train ? tile("Train", plural(train.slice_id, "slice"), `${plural(train.study_id, "study", "studies")}, ${plural(train.patient_id, "patient")}`) : null,
      test ? tile("Test", plural(test.slice_id, "slice"), `${plural(test.study_id, "study", "studies")}, ${plural(test.patient_id, "patient")}`) : null,
      tile("Studies shown", plural(studies.length, "study", "studies"), studies.length < n_studies ? `of ${count(n_studies)}: those with the worst slices, and a random draw` : "all training studies"));
  }

  function interval(one, low, high) {
    const place = (value) => `${(100 * (value - low)) / (high - low || 1)}%`;
    const bar = h("span.interval-bar"), dot = h("span.interval-dot");
    bar.style.left = place(one.loss[1]);
    bar.style.right = `calc(100% - ${place(one.loss[2])})`;
    dot.style.left = place(one.loss[0]);
    return h("span.interval", { "aria-hidden": "true" }, bar, dot);
  }

  function scores({ sources, labels }) {
    const low = Math.min(...sources.map((one) => one.loss[1])), high = Math.max(...sources.map((one) => one.loss[2]));
    const total = sources.map((one) => h("tr", {},
      h("th", { scope: "row" }, h("span.lines", {}, one.name, h("small", {}, kind(one)))),
      h("td.number", {}, h("span.lines", {}, within(one.loss))), h("td.wide", {}, interval(one, low, high)),
      h("td.number", {}, count(one.n_patients)), h("td.number", {}, count(one.n_slices)), h("td.number", {}, Object.keys(one.folds).join(" "))));
    const least = labels.map((_, i) => Math.min(...sources.map((one) => one.labels[i][0])));
    const byLabel = sources.map((one) => h("tr", {}, h("th", { scope: "row" }, one.name),
      one.labels.map((loss, i) => h(loss[0] === least[i] ? "td.number.best" : "td.number", {}, h("span.lines", {}, within(loss))))));
    return [
      card("Scores", "The competition's log loss over six labels, with any counted twice; lower is better. Out of fold, with 95 % intervals over patients.",
        scrolling("Scores", table(["", "log loss, 95 %", h("span.scale", { "aria-hidden": "true" }, h("span", {}, number(low, 3)), h("span", {}, number(high, 3))), "patients", "slices", "folds"], total))),
      card("Log loss per label", "With 95 % intervals over patients. The lowest loss of each label is bold.",
        scrolling("Log loss per label", table(["", ...labels.map((label) => h("span", {}, swatch(label), label))], byLabel))),
    ];
  }

  function folds({ sources }) {
    return card("Log loss per fold", "On the slices of each fold, by models that were not trained on it.", charts.chart("Log loss of each run and ensemble per fold", () => ({
      data: sources.map((one, i) => {
        const { color, dash, symbol } = charts.style(i);
        return { name: charts.text(one.name), x: Object.keys(one.folds).map((k) => `fold ${k}`), y: Object.values(one.folds), mode: "lines+markers", line: { color, dash, width: 2 }, marker: { symbol, size: 8 } };
      }),
      layout: { height: 350, showlegend: true, xaxis: { type: "category" }, yaxis: { title: "log loss" } },
    })));
  }

  // --- ranking: the curves of one label, and the counts at a threshold ---

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

  function updateRanking() {
    const one = curve();
    const { name, n_patients } = report.content.sources[shown.source];
    parts.of.textContent = `${shown.label}, ${name}: ${plural(one.n_positive, "positive slice")} of ${count(one.n_positive + one.n_negative)}, on ${plural(n_patients, "patient")}`;
    parts.areas.replaceChildren(...[["ROC AUC", one.auc], ["average precision", one.average_precision], ["Brier score", one.brier], ["calibration error", one.calibration_error]]
      .flatMap(([title, value]) => [h("dt", {}, title), h("dd", {}, number(value, title === "Brier score" ? 4 : 3))]));
    updateCounts();
    for (const element of [parts.roc, parts.pr, parts.calibration]) charts.update(element);
  }

  function ranking({ labels, thresholds }) {
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
      updateRanking();
    };
    return card("Ranking, thresholds, calibration", null,
      choices("label", "Label", labels.map((label) => [label, swatch(label), label]), shown.label, chosen), parts.of,
      h("div.charts", {}, ...[["ROC", parts.roc], ["Precision and recall", parts.pr], ["Calibration", parts.calibration]].map(([title, one]) => h("div", {}, h("h3", {}, title), one))),
      h("div.decide", {},
        h("div.slider", {}, h("label", { for: "threshold" }, "Threshold ", parts.value), parts.slider,
          h("div", {}, h("button", { type: "button", onclick: () => setThreshold(bestF1()) }, "Highest F1"), h("small", {}, " chosen and counted on the same slices. The mark on either curve can be dragged."))),
        h("table.confusion", {}, h("caption", {}, "Slices"), h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "predicted positive"), h("th", { scope: "col" }, "predicted negative"))),
          h("tbody", {}, h("tr", {}, h("th", { scope: "row" }, "positive"), parts.tp, parts.fn), h("tr", {}, h("th", { scope: "row" }, "negative"), parts.fp, parts.tn))),
        parts.rates, parts.areas));
  }

  // --- training, ensembles, data ---

  function learning({ logs }) {
    if (!logs.length) return null;
    const runs = [...new Set(logs.map((one) => one.run))];
    let run = runs[0];
    const chart = charts.chart("Training and validation loss by epoch", () => ({
      data: logs.filter((one) => one.run === run).flatMap((one, i) => {
        const { color, dash, symbol } = charts.style(i);
        const name = `fold ${one.fold}${one.seed ? `, seed ${one.seed}` : ""}`;
        const x = one.epoch.map((epoch) => epoch + 1);
        return [
          { name, legendgroup: name, x, y: one.valid_loss, mode: "lines+markers", line: { color, width: 2, dash }, marker: { symbol, size: 7 }, hovertemplate: "epoch %{x}, valid %{y:.4f}" },
          { name, legendgroup: name, showlegend: false, x, y: one.train_loss, mode: "lines", opacity: 0.55, line: { color, width: 1.2, dash: "dot" }, hovertemplate: "epoch %{x}, train %{y:.4f}" },
        ];
      }),
      layout: { showlegend: true, xaxis: { title: "epoch", dtick: 1, tick0: 1 }, yaxis: { title: "log loss" } },
    }));
    const select = h("select", { onchange: () => { run = select.value; charts.update(chart); } }, runs.map((one) => h("option", {}, one)));
    return card("Learning curves", "Solid, with marks: validation loss of the averaged weights on the held-out fold. Dotted: training loss on augmented batches.", h("label.pick", {}, "Run ", select), chart);
  }

  function meter(value) {
    const bar = h("span.meter", { "aria-hidden": "true" }, h("span"));
    bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, value))}%`;
    return bar;
  }

  function blend(one, labels) {
    const rows = Object.keys(one.runs).map((run) => h("tr", {}, h("th", { scope: "row" }, run),
      h("td.number", {}, number(one.runs[run], 3)), h("td.wide", {}, meter(one.runs[run])),
      labels.map((_, i) => h("td.number", {}, number(one.by_label[run][i], 2))),
      h("td.number", {}, number(one.single[run])),
      h("td.number", {}, one.left_out[run] ? `${one.left_out[run][0] > 0 ? "+" : ""}${number(one.left_out[run][0])} ± ${number(one.left_out[run][1])}` : "–")));
    return card(`Ensemble ${one.name}`, `${one.pipeline}. Nested ${number(one.nested_log_loss)}, plain ${number(one.oof_log_loss)} (fitted and scored on the same slices), on ${plural(one.n_patients, "patient")}.`,
      one.is_stale ? h("p.warning", {}, `The predictions of its runs have changed since: run python -m ich_kaggle.ensemble --name ${one.name} --runs ${Object.keys(one.runs).join(" ")}`) : null,
      scrolling(`Weights of ${one.name}`, table(["", "weight", "", ...labels.map((label) => SHORT[label]), "log loss", "increase without it"], rows)));
  }

  function correlation({ correlation: found }) {
    if (!found) return null;
    const least = Math.min(...found.matrix.flat());
    const shade = (r) => {
      const cell = h("td.number", {}, number(r, 2));
      cell.style.setProperty("--share", `${Math.round(8 + (45 * (r - least)) / (1 - least || 1))}%`);
      return cell;
    };
    const rows = found.matrix.map((row, i) => h("tr", {}, h("th", { scope: "row" }, found.runs[i]), row.map(shade)));
    return card("Error correlation", `Correlation of the errors (probability − label) of the runs, on ${plural(found.n_slices, "slice")} that all of them predict. The lower it is, the more a blend gains.`,
      scrolling("Error correlation", h("div.heat", {}, table(["", ...found.runs], rows))));
  }

  function balance({ data, labels }) {
    if (!data.folds.length) return null;
    const rows = data.folds.map((one) => h("tr", {}, h("th", { scope: "row" }, `fold ${one.fold}`), h("td.number", {}, count(one.patients)), h("td.number", {}, count(one.slices)), one.rates.map((rate) => h("td.number", {}, number(100 * rate, 2)))));
    const all = h("tr.total", {}, h("th", { scope: "row" }, "all"), h("td.number", {}, count(data.folds.reduce((sum, one) => sum + one.patients, 0))), h("td.number", {}, count(data.folds.reduce((sum, one) => sum + one.slices, 0))), data.rates.map((rate) => h("td.number", {}, number(100 * rate, 2))));
    return card("Folds", "Share of slices with each label, in percent. The chart shows the relative difference of each fold from all.",
      h("div.halves", {}, scrolling("Folds", table(["", "patients", "slices", ...labels.map((label) => SHORT[label])], [...rows, all])),
        charts.chart("Label rates per fold, as a difference from all", () => ({
          data: labels.map((label, i) => ({
            name: label, x: data.folds.map((one) => `fold ${one.fold}`), y: data.folds.map((one) => (data.rates[i] ? 100 * (one.rates[i] / data.rates[i] - 1) : 0)),
            mode: "lines+markers", line: { color: charts.ofLabel(label), dash: charts.dashOfLabel(label), width: 1.5 }, marker: { symbol: charts.style(i).symbol, size: 7 },
          })),
          layout: { showlegend: true, xaxis: { type: "category" }, yaxis: { title: "difference, %" } },
        }))));
  }

  function labelCounts({ data, labels }) {
    const rows = labels.map((label, i) => h("tr", {}, h("th", { scope: "row" }, swatch(label), label), h("td.number", {}, count(data.counts[i])), h("td.number", {}, percent(data.rates[i], 2)), h("td.wide", {}, meter(data.rates[i]))));
    return card("Labels", `Training slices.${data.defects ? ` ${plural(data.defects, "defect")} in the data: see work/defects.csv.` : ""}`, scrolling("Labels", table(["", "slices", "share", ""], rows)));
  }

  function submissions({ submissions: rows }) {
    if (!rows.length) return null;
    const columns = Object.keys(rows[0]);
    const both = rows.filter((row) => row.oof && row.private);
    const body = rows.toReversed().map((row) => h("tr", {}, columns.map((name) => h(["oof", "public", "private"].includes(name) ? "td.number" : "td", {}, row[name] || "–"))));
    return card("Submissions", `${plural(rows.length, "submission")}, latest first.`, scrolling("Submissions", table(columns, body)),
      both.length < 2 ? null : charts.chart("Out-of-fold log loss against the private score", () => ({
        data: [{ x: both.map((row) => Number(row.oof)), y: both.map((row) => Number(row.private)), text: both.map((row) => charts.text(row.name)), mode: "markers", marker: { size: 10, color: charts.style(0).color }, hovertemplate: "%{text}<br>out of fold %{x}<br>private %{y}<extra></extra>" }],
        layout: { xaxis: { title: "out-of-fold log loss" }, yaxis: { title: "private log loss" } },
      })));
  }

  function build() {
    const { content } = report;
    const has = content.sources.length > 0;
    document.getElementById("overview").append(...[
      has ? null : h("section.card.empty", {}, h("h2", {}, "No predictions yet"), h("p", {}, "Scores, curves and worst slices need predictions. Train a run and predict with it, then make the report again:"),
        h("pre", {}, "python -m ich_kaggle.train --fold 0\npython -m ich_kaggle.predict\npython -m ich_kaggle.report")),
      tiles(content),
      ...(has ? [...scores(content), ranking(content), h("div.pair", {}, folds(content), learning(content)), ...content.ensembles.map((one) => blend(one, content.labels)), correlation(content)] : [learning(content)]),
      balance(content), labelCounts(content), submissions(content),
    ].filter((one) => one));
    isBuilt = true;
  }

  function show(now) {
    document.title = "Overview – ich_kaggle report";
    const isOther = now.source !== shown.source;
    shown.source = now.source;
    const wasBuilt = isBuilt;
    if (!isBuilt) build();
    if (report.content.sources.length && (isOther || !wasBuilt)) updateRanking();
    charts.redraw();
  }

  return { show };
})();
