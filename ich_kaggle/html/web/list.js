"use strict";
// The list of studies: searched, sorted, filtered.

const studyList = (() => {
  const parts = {}; // elements that change
  let rows = [], filledFor = null;

  const marks = (one) => one.counts ?? one.flags; // by label: true slices, or whether the study is flagged
  const beside = (one) => one.patient ?? one.series ?? "";
  const summary = (id) => report.content.studies.find((one) => one.id === id);

  const SORTS = {
    loss: ["log loss", (one, s) => one.losses[s]?.[0]],
    id: ["id", null],
  };

  function sorts() {
    if (reading()) {
      const found = report.content.labels.map((name, i) => [name, [`probability of ${name}`, (one) => one.max[i]]]);
      return Object.fromEntries([found.pop(), ...found, ["id", ["id", null]]]);
    }
    const labels = report.content.labels.map((name, i) => [name, [`log loss of ${name}`, (one, s) => one.losses[s]?.[i + 1]]]);
    return { ...SORTS, ...Object.fromEntries(labels) };
  }

  function listed(now) {
    const by = sorts()[parts.sort.value][1];
    const wanted = parts.search.value.trim().toLowerCase();
    const only = report.content.labels.indexOf(parts.filter.value);
    const found = report.content.studies.filter((one) => (only < 0 || marks(one)[only]) && (one.id.toLowerCase().includes(wanted) || beside(one).toLowerCase().includes(wanted)));
    const value = (one) => (by ? by(one, now.source) ?? -1 : 0);
    return found.sort((a, b) => value(b) - value(a) || (a.id < b.id ? -1 : 1));
  }

  // Fill the list, unless it was filled for the same source.
  function fill(now, study) {
    if (filledFor !== now.source) refill(now, study);
  }

  function refill(now, study) {
    const by = sorts()[parts.sort.value][1] ?? Object.values(sorts())[0][1];
    rows = listed(now);
    parts.count.textContent = `${rows.length} of ${plural(report.content.studies.length, "study", "studies")}`;
    parts.list.replaceChildren(...rows.map((one) => h("li", {}, h("a", { href: link({ study: one.id }), "data-id": one.id, tabindex: "-1" },
      h("span.id", {}, one.id), h("b", {}, number(by(one, now.source), 3)), reading() && !one.n ? h("span.tags", {}, h("span.tag", {}, "not read")) : tags(report.content.labels.filter((_, i) => marks(one)[i])), one.fold == null ? null : h("small", {}, `fold ${one.fold}`)))));
    filledFor = now.source;
    mark(study);
  }

  // Tab reaches one link of the list; arrow keys move from there.
  function mark(study) {
    const links = [...parts.list.querySelectorAll("a")];
    for (const one of links) one.removeAttribute("aria-current");
    const current = links.find((one) => one.dataset.id === study) ?? links[0];
    for (const one of links) one.tabIndex = one === current ? 0 : -1;
    if (current?.dataset.id === study) {
      current.setAttribute("aria-current", "true");
      const box = current.getBoundingClientRect(), frame = parts.list.getBoundingClientRect();
      if (box.top < frame.top || box.bottom > frame.bottom) parts.list.scrollTop += box.top - frame.top - frame.height / 3;
    }
  }

  function onListKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const links = [...parts.list.querySelectorAll("a")];
    links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + step))].focus();
  }

  function build() {
    const again = () => refill(state(), state().study);
    parts.search = h("input", { type: "search", id: "search", placeholder: `study or ${reading() ? "series" : "patient"} id`, autocomplete: "off", oninput: again });
    parts.sort = h("select", { id: "sort", onchange: again }, Object.entries(sorts()).filter(([value]) => report.content.sources.length || value === "id").map(([value, [title]]) => h("option", { value }, title)));
    parts.filter = h("select", { id: "filter", onchange: again }, h("option", { value: "" }, "all studies"), report.content.labels.map((name) => h("option", { value: name }, `${reading() ? "flagged:" : "with"} ${name === "any" ? "any hemorrhage" : name}`)));
    parts.count = h("p.note", { id: "count", "aria-live": "polite" });
    parts.list = h("ol.list", { id: "list", "aria-label": "Studies found", onkeydown: onListKey });
    return h("aside.card.side", { "aria-label": "Pick a study" },
      h("label", { for: "search" }, "Search"), parts.search, h("label", { for: "sort" }, "Sort by"), parts.sort, h("label", { for: "filter" }, "Show"), parts.filter, parts.count, parts.list);
  }

  // Return the id of the study `step` rows after `study` in the list, or that of the first or last row.
  function beyond(study, step) {
    const i = rows.findIndex((one) => one.id === study);
    return rows[Math.max(0, Math.min(rows.length - 1, i + step))]?.id;
  }

  return { build, fill, mark, beyond, beside, summary };
})();
