"use strict";
// The overview: a card each for scores, ranking, training, ensembles, folds and submissions.

report.pages.overview = (() => {
  const kind = (one) => (one.kind === "ensemble" ? "ensemble, nested" : one.on.length ? `second level on ${one.on.join(", ")}` : "run");
  const leak = (one) => (one.leak ? h("small.warning", {}, `possibly leaked: ${one.leak}`) : null);
  const within = ([value, low, high], digits = 4) => [h("b", {}, number(value, digits)), low == null ? null : h("small", {}, ` ${number(low, digits)} to ${number(high, digits)}`)];

  function tile(title, value, note) {
    return h("div.tile", {}, h("span.tile-title", {}, title), h("span.tile-value", {}, value), h("span.tile-note", {}, note));
  }

  function tiles({ sources, data, constant, n_studies, studies }) {
    const train = data.splits.find((one) => one.split === "train");
    const test = data.splits.find((one) => one.split === "test");
    const [best] = sources;
    return h("div.tiles", {},
      best ? tile("Out-of-fold log loss", number(best.loss[0]), `${best.kind === "ensemble" ? "nested, " : ""}95 %: ${number(best.loss[1])} to ${number(best.loss[2])}`) : null,
      best ? tile("Scored on", plural(best.n_patients, "patient"), `${plural(best.n_slices, "slice")}, ${best.name}${best.leak ? ", possibly leaked" : ""}`) : null,
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
      h("th", { scope: "row" }, h("span.lines", {}, one.name, h("small", {}, kind(one)), leak(one))),
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
    const rows = data.folds.map((one) => h("tr", {}, h("th", { scope: "row" }, `fold ${one.fold}`), h("td.number", {}, count(one.patients)), h("td.number", {}, count(one.slices)), one.rates.map((rate) => h("td.number", {}, number(100 * rate, 2)))));
    const all = h("tr.total", {}, h("th", { scope: "row" }, "all"), h("td.number", {}, count(data.folds.reduce((sum, one) => sum + one.patients, 0))), h("td.number", {}, count(data.folds.reduce((sum, one) => sum + one.slices, 0))), data.rates.map((rate) => h("td.number", {}, number(100 * rate, 2))));
    const positive = h("tr", {}, h("th", { scope: "row" }, "positive slices"), h("td"), h("td"), data.counts.map((n) => h("td.number", {}, count(n))));
    const defects = data.defects ? ` ${plural(data.defects, "defect")} in the data: see work/defects.csv.` : "";
    return card("Folds and labels", `Share of training slices with each label, in percent. The chart shows the relative difference of each fold from all.${defects}`,
      h("div.halves", {}, scrolling("Folds and labels", table(["", "patients", "slices", ...labels.map((label) => SHORT[label])], [...rows, all, positive])),
        charts.chart("Label rates per fold, as a difference from all", () => ({
          data: labels.map((label, i) => ({
            name: label, x: data.folds.map((one) => `fold ${one.fold}`), y: data.folds.map((one) => (data.rates[i] ? 100 * (one.rates[i] / data.rates[i] - 1) : 0)),
            mode: "lines+markers", line: { color: charts.ofLabel(label), dash: charts.dashOfLabel(label), width: 1.5 }, marker: { symbol: charts.style(i).symbol, size: 7 },
          })),
          layout: { showlegend: true, xaxis: { type: "category" }, yaxis: { title: "difference, %" } },
        }))));
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

  function build(source) {
    const { content } = report;
    const has = content.sources.length > 0;
    document.getElementById("overview").append(...[
      has ? null : h("section.card.empty", {}, h("h2", {}, "No predictions yet"), h("p", {}, "Scores, curves and worst slices need predictions. Train a run and predict with it, then make the report again:"),
        h("pre", {}, "python -m ich_kaggle.train --fold 0\npython -m ich_kaggle.predict\npython -m ich_kaggle.report")),
      tiles(content),
      ...(has ? [...scores(content), ranking.build(content, source), h("div.pair", {}, folds(content), learning(content)), ...content.ensembles.map((one) => blend(one, content.labels)), correlation(content)] : [learning(content)]),
      balance(content), submissions(content),
    ].filter((one) => one));
  }

  function show(now) {
    document.title = "Overview – ich_kaggle report";
    if (!document.getElementById("overview").childElementCount) build(now.source);
    else if (report.content.sources.length) ranking.show(now.source);
    charts.redraw();
  }

  return { show };
})();
