"use strict";
// One study: its slices in four windows, its probabilities along z, its explanations.

report.pages.studies = (() => {
  let parts = null; // elements that change
  let study = null, data = null, slice = 0, shownWindow = Object.keys(WINDOWS)[0], label = "any"; // what is shown
  let stacks = {}, lines = [], wheel = 0, timer = 0;
  let map = null, opacity = 0.6, picked = null; // explanation, and the sources whose curves are drawn

  // --- the slices ---

  const missing = (one) => {
    const { cache, bone } = report.content;
    if (!cache) return "The slices are not cached: run python -m ich_kaggle.cache, then make the report again.";
    if (one === "bone" && !bone) return "The cache lacks the bone window. It is rendered from the DICOM files, which were missing when the report was made, or left out by --no-bone.";
    return null;
  };

  function stage() {
    for (const name of ["where", "level", "place", "truth"]) parts[name] = h(`span.caption.${name}`);
    parts.images = h("div.images");
    parts.heat = h("div.heatmap", { hidden: true });
    parts.message = h("p.message", { hidden: true });
    parts.stage = h("div.stage", { id: "stage", tabindex: "0", role: "img", "aria-label": "Slice" }, parts.images, parts.heat, parts.where, parts.level, parts.place, parts.truth, parts.message);
    parts.stage.addEventListener("wheel", onWheel, { passive: false });
    parts.slider = h("input", { type: "range", id: "slice", min: 1, step: 1, value: 1, "aria-label": "Slice", oninput: () => move(parts.slider.value - 1) });
    parts.windows = h("div.buttons", { role: "group", "aria-label": "Window" }, Object.entries(WINDOWS).map(([name, { title, key }]) =>
      h("button", { type: "button", "data-window": name, disabled: Boolean(missing(name)), title: missing(name) ?? `${WINDOWS[name].level} (${key})`, onclick: () => setWindow(name) }, title, h("kbd", { "aria-hidden": "true" }, key))));
    return h("div.card.view", {}, h("div.row", {}, parts.windows, h("div.buttons", {},
      h("button.step", { type: "button", onclick: () => next(-1), title: "Previous study (p)", "aria-label": "Previous study (p)" }, "‹"), h("button.step", { type: "button", onclick: () => next(1), title: "Next study (n)", "aria-label": "Next study (n)" }, "›"))),
      report.content.cache && !report.content.bone ? h("p.note", { id: "no-bone" }, missing("bone")) : null,
      parts.stage, parts.slider, explanation());
  }

  function onWheel(event) {
    event.preventDefault();
    // One notch of a wheel is one slice; the small steps of a touchpad add up to one.
    wheel = Math.abs(event.deltaY) >= 50 || event.deltaMode ? Math.sign(event.deltaY) * 30 : wheel + event.deltaY;
    if (Math.abs(wheel) < 30) return;
    move(slice + Math.sign(wheel));
    wheel = 0;
  }

  // All slices are stacked, loaded and decoded, and one of them is visible: no slice waits for its picture.
  function stack(name) {
    if (stacks[name] || !data.images[name]) return;
    const images = data.images[name].map(() => h("img", { alt: "", decoding: "async", draggable: "false" }));
    const order = images.map((_, i) => i).filter((i) => data.images[name][i]).sort((a, b) => Math.abs(a - slice) - Math.abs(b - slice));
    let loaded = 0;
    for (const i of order) {
      images[i].addEventListener("load", () => {
        loaded += 1;
        if (loaded < order.length) tell(`loading ${loaded} of ${order.length}`);
        else if (data) draw();
      });
      images[i].addEventListener("error", () => {
        images[i].dataset.failed = `${data.images[name][i]} can't be read: make the report again`;
        draw();
      });
      images[i].src = report.picture(data.images[name][i]);
    }
    stacks[name] = images;
    parts.images.append(...images);
  }

  function tell(message) {
    parts.message.hidden = !message;
    parts.message.textContent = message ?? "";
  }

  function draw() {
    const kind = shownWindow === "bone" ? "bone" : "cached";
    const n = data.slices.length, one = studyList.summary(study);
    parts.where.textContent = `${study}\n${studyList.beside(one)}`;
    parts.slider.disabled = !n;
    if (!n) {
      for (const name of ["level", "place", "truth"]) parts[name].textContent = "";
      parts.stage.setAttribute("aria-label", "No slice");
      tell("No series of this study could be read. The reasons are listed below.");
      return;
    }
    stack(kind);
    const isUnread = reading() && !data.images.cached[slice];
    tell(missing(shownWindow) ?? (isUnread ? `This slice could not be read: ${data.notes[slice]}` : null) ?? stacks[kind]?.[slice].dataset.failed);
    for (const [name, images] of Object.entries(stacks)) images.forEach((image, i) => image.classList.toggle("on", name === kind && i === slice));
    parts.images.className = `images only-${WINDOWS[shownWindow].key}`;
    for (const button of parts.windows.children) button.setAttribute("aria-pressed", button.dataset.window === shownWindow);
    const names = report.content.labels.filter((_, i) => (data.target ?? data.flags)[slice][i]);
    const [said, nothing] = reading() ? ["flagged", isUnread ? "not read" : "no flag"] : ["truth", "no hemorrhage"];
    const series = reading() ? (isUnread ? "" : data.notes[slice] && `\n${data.notes[slice]}`) : data.series.at(-1) ? `, series ${data.series[slice] + 1}` : "";
    parts.level.textContent = `${WINDOWS[shownWindow].title}\n${WINDOWS[shownWindow].level}`;
    parts.place.textContent = `${slice + 1} / ${n}\n${data.position[slice].toFixed(1)} mm${series}`;
    parts.truth.textContent = names.filter((name) => name !== "any" || (reading() && names.length === 1)).join("\n") || nothing;
    parts.stage.setAttribute("aria-label", `Slice ${slice + 1} of ${n}, ${WINDOWS[shownWindow].title} window, ${said}: ${names.join(", ") || nothing}`);
    parts.slider.value = slice + 1;
    parts.slider.setAttribute("aria-valuetext", `slice ${slice + 1} of ${n}`);
    for (const one of lines) one.move(slice);
    drawHeat();
  }

  function move(to) {
    if (!data) return;
    slice = Math.max(0, Math.min(data.slices.length - 1, to));
    draw();
    clearTimeout(timer); // browsers limit how often an address may change
    timer = setTimeout(() => go({ slice: slice + 1 }, { replace: true }), 250);
  }

  function setWindow(name) {
    if (missing(name)) return;
    shownWindow = name;
    if (data) draw();
    flush({ window: name });
  }

  function setLabel(name) {
    label = name;
    for (const [i, one] of lines.entries()) one.element.classList.toggle("on", report.content.labels[i] === name);
    if (parts.heatLabel) parts.heatLabel.value = name;
    flush({ label: name });
    drawHeat();
  }

  function flush(changes) {
    clearTimeout(timer);
    if (study) go({ slice: slice + 1, ...changes }, { replace: true });
  }

  function next(step) {
    clearTimeout(timer);
    const to = studyList.beyond(study, step);
    if (to && to !== study) go({ view: null, study: to, slice: null });
  }

  // --- explanations ---

  function explanation() {
    if (reading()) return null;
    if (!report.content.maps.length) return h("p.note", { id: "no-maps" }, "Explanations of a model can be shown over the slices: run python -m ich_kaggle.explain --run RUN, then make the report again.");
    parts.map = h("select", { id: "map", onchange: () => { map = parts.map.value === "" ? null : Number(parts.map.value); drawHeat(); } }, h("option", { value: "" }, "none"), report.content.maps.map((title, i) => h("option", { value: i }, title)));
    parts.heatLabel = h("select", { id: "map-label", onchange: () => setLabel(parts.heatLabel.value) }, report.content.labels.map((name) => h("option", {}, name)));
    const slider = h("input", { type: "range", id: "opacity", min: 0, max: 100, value: 100 * opacity, oninput: () => { opacity = slider.value / 100; drawHeat(); } });
    parts.noMap = h("span.note", { role: "status" });
    return h("div.row.explain", {}, h("label", {}, "Explain by ", parts.map), h("label", {}, "for ", parts.heatLabel), h("label", {}, "opacity ", slider), parts.noMap);
  }

  // The picture holds the maps of all labels, stacked vertically: that of the label is moved into the frame.
  function drawHeat() {
    if (!data || !parts.map) return;
    const reference = map == null ? null : data.maps[map]?.[slice];
    parts.heat.hidden = !reference;
    parts.noMap.textContent = map != null && !reference ? `not explained: run python -m ich_kaggle.explain --studies ${study}` : "";
    if (!reference) return;
    const image = parts.heat.firstChild ?? parts.heat.appendChild(h("img", { alt: "", draggable: "false" }));
    const source = report.picture(reference);
    if (image.getAttribute("src") !== source) image.src = source;
    image.style.transform = `translateY(${(-100 * report.content.labels.indexOf(label)) / report.content.labels.length}%)`;
    parts.heat.style.opacity = opacity;
  }

  function toggleHeat() {
    if (!parts.map) return;
    map = map == null ? 0 : null;
    parts.map.value = map ?? "";
    drawHeat();
  }

  // --- the curves ---

  function side() {
    const { sources } = report.content;
    parts.strips = h("div.strips");
    parts.facts = h("div.study-facts");
    parts.legend = h("fieldset.legend", { hidden: !sources.length || reading() }, h("legend", {}, "Probability by slice"), sources.map((one, i) => h("label", {}, h("input", { type: "checkbox", value: i, onchange: () => pick(i) }), strips.sample(i), h("span", {}, one.name))));
    return h("div.card.curves", {}, parts.legend, parts.strips, h("p.note", {}, reading() ? `Dashed: the threshold of a slice (${reading().rule}). Bars at the bottom: slices that reach it.` : "Bands: slices that have the label."), parts.facts);
  }

  function pick(i) {
    picked = picked.includes(i) ? picked.filter((one) => one !== i) : [...picked, i].sort();
    showCurves();
  }

  function showCurves() {
    for (const input of parts.legend.querySelectorAll("input")) input.checked = picked.includes(Number(input.value));
    const known = picked.filter((s) => data.probability[s].some((row) => row[0] != null));
    for (const one of lines) {
      one.show(known);
      one.move(slice);
    }
  }

  async function open(id) {
    const found = await report.study(id).catch((error) => error);
    if (state().study !== id) return; // another was selected meanwhile
    if (found instanceof Error || !found) {
      [study, data] = [null, null];
      tell(`${id}: ${found?.message ?? "not in its file: make the report again"}`);
      return;
    }
    [study, data, stacks] = [id, found, {}];
    parts.images.replaceChildren();
    parts.slider.max = Math.max(1, data.slices.length);
    lines = (data.slices.length ? report.content.labels : []).map((name, i) => strips.strip(data, name, i, move));
    parts.strips.replaceChildren(...lines.map((one) => one.element));
    parts.facts.replaceChildren(...studyFacts(studyList.summary(id), data));
  }

  function build() {
    parts = {};
    const { sources } = report.content;
    picked ??= sources.map((_, i) => i).slice(0, 3);
    document.getElementById("studies").append(studyList.build(), stage(), side());
  }

  async function show(now) {
    if (!parts) build();
    studyList.fill(now, study);
    const id = now.study ?? study ?? studyList.beyond(null, 1);
    document.title = `${id ?? "Studies"} – ich_kaggle report`;
    if (id && !now.study) return go({ view: null, study: id }, { replace: true });
    if (!id || !studyList.summary(id)) {
      tell(id ? `${id} is not in this report.` : "This report has no studies.");
      [study, data] = [null, null];
      return;
    }
    if (id !== study || !data) {
      const wanted = Number.isInteger(now.slice) ? now.slice : null;
      await open(id);
      if (study !== id || !data) return;
      slice = Math.max(0, Math.min(data.slices.length - 1, wanted ?? Math.floor(data.slices.length / 2)));
      studyList.mark(study);
      showCurves();
    } else if (Number.isInteger(now.slice)) slice = Math.max(0, Math.min(data.slices.length - 1, now.slice));
    if (now.window) shownWindow = missing(now.window) ? Object.keys(WINDOWS)[0] : now.window;
    if (now.label) label = now.label;
    if (parts.heatLabel) parts.heatLabel.value = label;
    for (const [i, one] of lines.entries()) one.element.classList.toggle("on", report.content.labels[i] === label);
    draw();
  }

  const by = (step) => () => move(slice + step);
  const keys = {
    ArrowUp: by(-1), ArrowLeft: by(-1), ArrowDown: by(1), ArrowRight: by(1), PageUp: by(-5), PageDown: by(5), Home: by(-1e6), End: by(1e6),
    ...Object.fromEntries(Object.entries(WINDOWS).map(([name, { key }]) => [key, () => setWindow(name)])),
    n: () => next(1), p: () => next(-1), e: toggleHeat, "/": () => document.getElementById("search").focus(),
    l: () => setLabel(report.content.labels[(report.content.labels.indexOf(label) + 1) % report.content.labels.length]),
  };

  return { show, keys };
})();
