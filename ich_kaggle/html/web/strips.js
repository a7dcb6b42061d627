"use strict";
// The probabilities of a study along z: a strip per label, the truth as bands, a cursor on the slice that is shown.
// Without a known truth: the threshold as a line, and marks on the slices that reach it.

const strips = (() => {
  const HEIGHT = 44;

  function spans(truth) {
    const found = [];
    truth.forEach((is, i) => {
      if (is && !truth[i - 1]) found.push([i, i]);
      if (is) found.at(-1)[1] = i;
    });
    return found;
  }

  const inWords = (found) => (found.length ? found.map(([a, b]) => (a === b ? `${a + 1}` : `${a + 1} to ${b + 1}`)).join(", ") : "none");

  // The line is interrupted at slices without a prediction.
  function line(values) {
    let pen = "M";
    return values.map((p, i) => {
      if (p == null) {
        pen = "M";
        return "";
      }
      const isAlone = values[i - 1] == null && values[i + 1] == null; // drawn as a dash, as no line leads to it
      const step = isAlone ? `M${i + 0.3} ${(1 - p) * HEIGHT}h0.4` : `${pen}${i + 0.5} ${(1 - p) * HEIGHT}`;
      pen = "L";
      return step;
    }).join("");
  }

  const DASHES = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "10 3", longdashdot: "10 2 2 2" };

  function stroke(element, source) {
    const { color, dash } = charts.style(source);
    element.style.stroke = color;
    element.style.strokeDasharray = DASHES[dash];
    return element;
  }

  // A sample of the line of a source, for legends.
  function sample(source) {
    return svg("svg", { class: "sample", viewBox: "0 0 22 8", "aria-hidden": "true" }, stroke(svg("line", { x1: 0, x2: 22, y1: 4, y2: 4 }), source));
  }

  // Return {element, move(slice), show(sources)} of a study; `onslice` is called with the slice that is pressed.
  function strip(data, label, index, onslice) {
    const n = data.slices.length;
    const marked = (data.target ?? data.flags).map((row) => row[index]), word = reading() ? "flagged" : "true";
    const found = spans(marked);
    const level = HEIGHT * (reading() ? 1 - reading().slices[index] : 0.5);
    const cursor = svg("line", { y1: 0, y2: HEIGHT, class: "cursor" });
    const lines = svg("g");
    const plot = svg("svg", { viewBox: `0 0 ${n} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}: probability by slice; ${word} in slices: ${inWords(found)}` },
      ...(reading() ? [] : found).map(([a, b]) => svg("rect", { x: a, width: b - a + 1, y: 0, height: HEIGHT, class: "band", "data-label": label })),
      ...found.map(([a, b]) => svg("rect", { x: a, width: b - a + 1, y: HEIGHT - 3, height: 3, class: "truth", "data-label": label })),
      svg("line", { x1: 0, x2: n, y1: level, y2: level, class: reading() ? "threshold" : "half" }), lines, cursor);
    const pressed = (event) => {
      const box = plot.getBoundingClientRect();
      onslice(Math.max(0, Math.min(n - 1, Math.floor(((event.clientX - box.left) / box.width) * n))));
    };
    plot.addEventListener("pointerdown", (event) => {
      plot.setPointerCapture(event.pointerId);
      pressed(event);
    });
    plot.addEventListener("pointermove", (event) => event.buttons & 1 && pressed(event));
    const value = h("output", {});
    const truth = h("span.is-true", {});
    const element = h("div.strip", { "data-strip": label }, h("div.strip-head", {}, swatch(label), h("span.strip-name", {}, label), truth, value), plot);
    let shown = [];
    return {
      element,
      show(sources) {
        shown = sources;
        lines.replaceChildren(...sources.map((s) => svg("path", { d: line(data.probability[s].map((row) => row[index])), class: "curve" })).map((path, i) => stroke(path, sources[i])));
      },
      move(slice) {
        cursor.setAttribute("x1", slice + 0.5);
        cursor.setAttribute("x2", slice + 0.5);
        truth.textContent = marked[slice] ? word : "";
        value.replaceChildren(...shown.map((s) => h("b", {}, sample(s), chance(data.probability[s][slice][index]))));
      },
    };
  }

  return { strip, sample };
})();
