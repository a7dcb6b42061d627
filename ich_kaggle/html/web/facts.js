"use strict";
// The facts and the table beside the curves of a study.

const studyFacts = (() => {
  const pairs = (list) => h("dl.facts", {}, list.flatMap(([title, value]) => [h("dt", {}, title), h("dd", {}, String(value))]));

  // The series and slices that were read, those that were not, and the probabilities of the study.
  function ofReading(one, data) {
    const levels = reading().studies;
    const refused = data.series.filter((series) => series.reason), read = data.series.find((series) => !series.reason);
    const about = (series) => `${plural(series.n_slices, "slice")}${series.spacing_mm == null ? "" : ` ${series.spacing_mm} mm apart`}${series.kernel ? `, kernel ${series.kernel}` : ""}`;
    const unread = data.notes.flatMap((note, i) => (data.images.cached[i] ? [] : [[`slice ${i + 1}`, note]]));
    const aside = (read?.left_aside ?? []).map(({ file, reason }) => [file, reason]);
    const found = report.content.labels.map((name, i) => h("tr", {}, h("th", { scope: "row" }, name, one.flags[i] ? h("span.is-true", {}, "flagged") : ""), h("td.number", {}, chance(one.max[i])), h("td.number", {}, chance(levels[i])), h("td.number", {}, chance(one.aggregate[i]))));
    const titled = (title, list) => (list.length ? [h("h3", {}, title), pairs(list)] : []);
    return [
      ...(read ? [scrolling("Probabilities of the study", table(["of the study", "largest", "threshold", "aggregate"], found))] : []),
      pairs([["study", one.id], ["series read", one.series ?? "none"], ["reason", data.why], ...(read?.notes?.length ? [["notes", read.notes.join("; ")]] : []), ...(read ? [["content", about(read)]] : []), ["slices not read", one.n_unread]]),
      ...titled("Slices not read", unread), ...titled("Skipped files of the series", aside),
      ...titled("Series refused", refused.map((series) => [series.series, `${series.reason} (${about(series)})`])),
    ];
  }

  function ofScores(one) {
    const { sources, labels } = report.content;
    const losses = sources.map((source, i) => h("tr", {}, h("th", { scope: "row" }, source.name), h("td.number", {}, number(one.losses[i][0], 3))));
    return [
      pairs([["study", one.id], ["patient", one.patient], ["fold", one.fold ?? "–"], ["slices", one.n], ["positive slices", labels.map((name, i) => (one.counts[i] ? `${SHORT[name]} ${one.counts[i]}` : null)).filter((x) => x).join(", ") || "none"]]),
      losses.length ? table(["log loss of the study", ""], losses) : "",
    ];
  }

  return (one, data) => (reading() ? ofReading(one, data) : ofScores(one));
})();
