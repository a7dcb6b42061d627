"use strict";
// The slices of highest loss of each label: misses and false alarms.

report.pages.worst = (() => {
  const KINDS = { missed: ["Missed", "slices with the label, lowest probability first"], called: ["False alarms", "slices without the label, highest probability first"] };

  function card(one, label, window) {
    return h("a.card-link", { href: link({ study: one.study, slice: one.slice + 1, window, label }) },
      h(`span.thumb.only-${WINDOWS[window].key}`, {}, one.image ? h("img", { src: report.picture(one.image), alt: "", loading: "lazy", decoding: "async" }) : "no picture"),
      h("span.card-line", {}, h("b", {}, `p ${chance(one.p)}`), h("span", {}, `loss ${number(one.loss, 2)}`)),
      h("span.card-line", {}, h("span.id", {}, one.study)),
      h("span.card-line", {}, tags(one.truth), h("small", {}, `slice ${one.slice + 1}`)));
  }

  function show(now) {
    const { content } = report;
    const cached = Object.keys(WINDOWS).filter((one) => one !== "bone");
    const window = cached.includes(now.window) ? now.window : cached[0];
    const label = now.label ?? "any";
    const found = content.worst[label];
    const section = document.getElementById("worst");
    document.title = `Worst slices: ${label} – ich_kaggle report`;
    section.replaceChildren(
      h("div.card", {}, h("h2", {}, "Worst slices"),
        h("p.note", {}, `Slices with the highest log loss of one label, by the predictions of ${content.sources[0].name}, among the ${plural(content.studies.length, "study", "studies")} of this report.`),
        h("div.row", {},
          choices("worst-label", "Label", content.labels.map((one) => [one, swatch(one), one]), label, (one) => refocus(() => go({ view: "worst", label: one }))),
          choices("worst-window", "Window", cached.map((one) => [one, WINDOWS[one].title]), window, (one) => refocus(() => go({ view: "worst", window: one }, { replace: true }))))),
      ...Object.entries(KINDS).map(([kind, [title, text]]) => h("section.card", {}, h("h3", {}, title, h("small", {}, text)),
        found[kind].length ? h("div.gallery", {}, found[kind].map((one) => card(one, label, window))) : h("p.note", {}, "None."))));
  }

  // The page is built anew: return the focus to the choice that had it.
  function refocus(change) {
    const { name, value } = document.activeElement;
    change();
    document.querySelector(`#worst input[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`)?.focus();
  }

  return { show };
})();
