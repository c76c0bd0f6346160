"use strict";
// Draws the charts of a search study's report from the numbers in #sparsefront-data. No number is computed here.
(() => {
  const { data, plain, percent, translucent, axis, logAxis, layout, marks, legendTraces, panels, show } = sparsefront;
  const arms = new Map(data.arms.map((arm) => [arm.name, arm]));
  const points = data.points;
  const indices = [...points.candidate.keys()];
  const shownArms = data.arms.filter((arm) => points.arm.includes(arm.name));
  const number = (x) => (x === null ? "unknown" : Number.isInteger(x) ? x.toLocaleString("en") : x.toPrecision(4));
  const setting = (x) => plain(typeof x === "number" ? number(x) : x);
  const valueText = (axis, value) => (axis.is_share ? percent(value) : number(value));

  function attainment(colours) {
    const traces = [];
    const share = data.study.metric === "hypervolume" || data.axes[0].is_share;
    const shown = (value) => (share ? percent(value) : number(value));
    for (const curve of data.curves.filter((c) => c.low)) {
      traces.push({ type: "scatter", mode: "lines", legendgroup: curve.arm, showlegend: false, hoverinfo: "skip",
        x: curve.cost.concat(curve.cost.slice().reverse()), y: curve.high.concat(curve.low.slice().reverse()),
        fill: "toself", fillcolor: translucent(arms.get(curve.arm).colour, 0.14), line: { width: 0 } });
    }
    for (const curve of data.curves) {
      const arm = arms.get(curve.arm);
      traces.push({
        type: "scatter", mode: curve.cost.length > 1 ? "lines" : "markers", name: plain(arm.name), legendgroup: arm.name,
        x: curve.cost, y: curve.mean, line: { color: arm.colour, width: 2.2, dash: arm.dash },
        marker: { color: arm.colour, symbol: arm.symbol, size: 9 }, hoverinfo: "text",
        text: curve.cost.map((cost, i) => `<b>${plain(arm.name)}</b> after ${number(cost)} passes<br>${plain(data.study.metric)} ${shown(curve.mean[i])}` +
          (curve.low ? `<br>95% interval ${shown(curve.low[i])} to ${shown(curve.high[i])}`.replace("95%", percent(1 - data.study.alpha, 0)) : "") +
          `<br>mean of ${curve.n_replicates} replicates`),
      });
    }
    const costs = data.curves.flatMap((curve) => curve.cost);
    const metric = data.study.metric === "hypervolume" ? "hypervolume (share of the box)" : plain(data.axes[0].label);
    return { traces, layout: layout(colours, 440, {
      xaxis: logAxis(colours, costs, { title: "passes spent by one run (log scale)" }),
      yaxis: axis(colours, { title: metric, ...(share ? { tickformat: ".2~%" } : {}) }),
    }) };
  }

  function describe(i) {
    const values = data.axes.map((a) => `<br>${plain(a.label)} ${valueText(a, points.values[a.name][i])}`).join("");
    const settings = Object.keys(points.dims).filter((name) => points.dims[name][i] !== null)
      .map((name) => `${plain(name)} ${setting(points.dims[name][i])}`);
    let lines = "";
    settings.forEach((text, k) => { lines += (k % 4 === 0 ? "<br>" : ", ") + text; });
    return `<b>${plain(points.arm[i])}</b>, replicate ${points.replicate[i]}, number ${points.number[i]}` +
      `<br>${plain(points.candidate[i])}${values}${lines}`;
  }

  function front(colours) {
    const [first, ...others] = data.axes;
    const traces = [];
    others.forEach((other, p) => {
      const suffix = p ? String(p + 1) : "";
      for (const arm of data.arms) {
        for (const onFront of [false, true]) {
          const own = indices.filter((i) => points.arm[i] === arm.name && points.on_front[i] === onFront);
          if (!own.length) continue;
          traces.push({
            type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, xaxis: `x${suffix}`, yaxis: `y${suffix}`,
            showlegend: false, x: own.map((i) => points.values[other.name][i]), y: own.map((i) => points.values[first.name][i]),
            marker: marks(arm, onFront, colours), hoverinfo: "text", text: own.map(describe),
          });
        }
      }
    });
    traces.push(...legendTraces(shownArms));
    const axes = {};
    others.forEach((other, p) => {
      const suffix = p ? String(p + 1) : "";
      const title = `${other.label}${other.is_log ? " (log scale)" : ""}`;
      axes[`xaxis${suffix}`] = other.is_log ? logAxis(colours, points.values[other.name], { title }) :
        axis(colours, { title, ...(other.is_share ? { tickformat: ".2~%" } : {}) });
      axes[`yaxis${suffix}`] = axis(colours, { title: p ? "" : first.label, ...(first.is_share ? { tickformat: ".2~%" } : {}), ...(p ? { matches: "y" } : {}) });
    });
    return { traces, layout: layout(colours, 470, {
      ...(others.length > 1 ? { grid: { rows: 1, columns: others.length, pattern: "independent", xgap: 0.12 } } : {}), ...axes,
    }) };
  }

  // Stopped: blues, the later the darker; completed green; whatever failed in warm colours.
  const COMPLETED = "#009988";
  const STOPPED = ["#cfe1f2", "#a6c8e4", "#74a9d0", "#4386ba", "#22659c", "#0d4377"];
  const FAILED = ["#cc3311", "#ee7733", "#aa4499", "#b07c3a", "#80868b", "#ee3377"];

  function outcomes(colours) {
    const rows = data.outcomes.filter((row) => row.n_candidates).slice().reverse();
    const kinds = new Map();
    for (const row of data.outcomes) for (const part of row.parts) kinds.set(part.text, part.kind);
    const rank = (kind) => ["stopped", "completed"].indexOf(kind) === -1 ? 2 : ["stopped", "completed"].indexOf(kind);
    const texts = [...kinds.keys()].sort((a, b) => rank(kinds.get(a)) - rank(kinds.get(b)) || a.localeCompare(b, "en", { numeric: true }));
    const stopped = texts.filter((text) => kinds.get(text) === "stopped");
    const failed = texts.filter((text) => rank(kinds.get(text)) === 2);
    const colour = (text) => kinds.get(text) === "completed" ? COMPLETED : kinds.get(text) === "stopped"
      ? STOPPED[Math.min(STOPPED.length - 1, stopped.indexOf(text))] : FAILED[failed.indexOf(text) % FAILED.length];
    const traces = texts.map((text) => {
      const shares = rows.map((row) => row.parts.filter((part) => part.text === text).reduce((sum, part) => sum + part.share, 0));
      return { type: "bar", orientation: "h", name: plain(text), y: rows.map((row) => plain(row.arm)), x: shares,
        marker: { color: colour(text), line: { color: colours.surface, width: 1 } }, hoverinfo: "text",
        text: shares.map((share, r) => `<b>${plain(rows[r].arm)}</b><br>${plain(text)}: ${percent(share, 1)} of ${number(rows[r].n_candidates)}`),
        textposition: "none" };
    });
    return { traces, layout: layout(colours, 150 + 44 * rows.length, {
      barmode: "stack", bargap: 0.3, legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "normal" },
      xaxis: axis(colours, { title: "share of the arm's candidates", tickformat: ".0%", range: [0, 1] }),
      yaxis: axis(colours, { type: "category", showgrid: false }),
    }) };
  }

  function importance(colours) {
    const rows = data.importances.filter((row) => row.importances);
    const shown = rows.filter((row) => row.objective === rows[0].objective);
    const names = data.dimensions.map((d) => d.name).filter((name) => shown.some((row) => name in row.importances)).reverse();
    const traces = shown.slice().reverse().map((row) => {
      const arm = arms.get(row.arm);
      return { type: "bar", orientation: "h", name: plain(arm.name), y: names.map(plain), x: names.map((name) => row.importances[name] || 0),
        marker: { color: arm.colour }, hoverinfo: "text", textposition: "none",
        text: names.map((name) => `<b>${plain(name)}</b>, ${plain(arm.name)}<br>${percent(row.importances[name] || 0, 1)} of ${plain(row.objective)}`) };
    });
    return { traces, layout: layout(colours, 130 + names.length * (14 + 13 * shown.length), {
      barmode: "group", bargap: 0.25,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "reversed" },
      xaxis: axis(colours, { title: `importance for ${plain(shown[0].objective)} (share)`, tickformat: ".0%", rangemode: "tozero" }),
      yaxis: axis(colours, { type: "category", showgrid: false }),
    }) };
  }

  // Few values: markers of one value stand side by side, by arm, and spread a little within it.
  const cellsOf = (dimension, known) => {
    const distinct = [...new Set(known)];
    if (dimension.kind !== "choice" && (dimension.is_log || distinct.length > 8)) return [];
    return distinct.sort((a, b) => (typeof a === "number" ? a - b : String(a) < String(b) ? -1 : 1));
  };
  const aside = (arm, i) => 0.8 * ((shownArms.indexOf(arm) + 0.1 + 0.8 * ((i * 0.618034) % 1)) / shownArms.length - 0.5);

  function dimensions(colours, width) {
    const shown = data.dimensions.slice(0, data.n_panels);
    const columns = Math.max(1, Math.min(shown.length, width < 640 ? 1 : shown.length === 4 || shown.length > 6 ? 4 : 3));
    const { rows, place } = panels(shown.length, columns, 0.05);
    const traces = [];
    const axes = {};
    shown.forEach((dimension, d) => {
      const { suffix, x, y, isLeft } = place(d);
      const values = points.dims[dimension.name];
      const common = { domain: x, anchor: `y${suffix}` };
      const title = `<b>${plain(dimension.name)}</b>${dimension.is_log ? " (log)" : ""}`;
      const known = values.filter((v) => v !== null);
      const cells = cellsOf(dimension, known);
      axes[`xaxis${suffix}`] = cells.length
        ? axis(colours, { ...common, title, showgrid: false, range: [-0.5, cells.length - 0.5], tickvals: cells.map((_, k) => k), ticktext: cells.map(setting) })
        : dimension.is_log ? logAxis(colours, known, { ...common, title, nticks: 6 })
          : axis(colours, { ...common, title, nticks: 6 });
      axes[`yaxis${suffix}`] = axis(colours, { domain: y, anchor: `x${suffix}`, tickformat: ".2~%", nticks: 6,
        showticklabels: isLeft, title: isLeft ? "val. error" : "", ...(d ? { matches: "y" } : {}) });
      for (const arm of data.arms) {
        for (const onFront of [false, true]) {
          const own = indices.filter((i) => points.arm[i] === arm.name && points.on_front[i] === onFront && values[i] !== null);
          if (!own.length) continue;
          const marker = marks(arm, onFront, colours);
          traces.push({ type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, showlegend: false,
            xaxis: `x${suffix}`, yaxis: `y${suffix}`, y: own.map((i) => points.val_error[i]),
            x: own.map((i) => (cells.length ? cells.indexOf(values[i]) + aside(arm, i) : values[i])),
            marker: { ...marker, size: onFront ? 7 : 4 }, hoverinfo: "text", text: own.map(describe) });
        }
      }
    });
    traces.push(...legendTraces(shownArms));
    const height = 110 + rows * 240;
    return { traces, layout: layout(colours, height, {
      ...axes, margin: { l: 64, r: 16, t: 40, b: 56 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemsizing: "constant" },
    }) };
  }

  show({ attainment, front, outcomes, importance, dimensions });
})();
